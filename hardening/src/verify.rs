//! Verifies a worker from outside, before the supervisor admits a tenant there.
//!
//! Everything is read from `/proc`, which the worker cannot write; nothing that the worker sends is
//! used. Each layer that `/proc` shows is checked if the plan has it. For a sealed worker this
//! includes that it has made no executable memory. Some properties are checked whatever the layers:
//! program, user and group, no descriptors but the four, an empty environment.
//!
//! `/proc` does not show Landlock, the dumpable flag and the parent-death signal. For these the
//! supervisor trusts the worker's start-up code, which runs before any tenant's code.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;

use crate::jail::{Plan, limits::core_bytes};
use crate::layers::{Layer, LayerSet};
use crate::process::spawn::{NAMESPACES, OOM_SCORE};

/// What a worker is expected to be.
#[derive(Debug)]
pub struct Expected<'a> {
    pub plan: &'a Plan,
    /// The program that the supervisor started.
    pub program: &'a File,
    /// The worker's uid outside its user namespace; `gid` likewise.
    pub uid: u32,
    pub gid: u32,
    /// The inode of the worker's end of the control channel.
    pub control_inode: u64,
    /// The inode of the pipe that is the worker's standard error.
    pub stderr_inode: u64,
}

/// One deviation from what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The layer that is missing; `None` for a property that every worker must have.
    pub layer: Option<Layer>,
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{layer}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// Reads a worker's state and compares it with what is expected.
///
/// # Errors
/// `/proc` of the worker could not be read: the worker has died, or the caller may not see it.
/// Either way the worker is not verified.
pub fn verify(pid: Pid, expected: &Expected<'_>) -> io::Result<Vec<Finding>> {
    let mut findings = Findings { expected, list: Vec::new() };
    let proc = format!("/proc/{pid}");
    let read = |file: &str| fs::read_to_string(format!("{proc}/{file}"));
    let mut texts = Texts {
        status: read("status")?,
        limits: read("limits")?,
        oom_score: read("oom_score_adj")?,
        mountinfo: read("mountinfo")?,
        environ: fs::read(format!("{proc}/environ"))?,
        maps: read("maps")?,
        threads: Vec::new(),
    };
    findings.program(&fs::metadata(format!("{proc}/exe"))?)?;
    findings.namespaces(&proc)?;
    findings.descriptors(&proc)?;
    for thread in fs::read_dir(format!("{proc}/task"))? {
        let thread = thread?.path();
        let status = fs::read_to_string(thread.join("status"));
        // Read after the status: a thread that has not begun to end now had not when its status was
        // read.
        match fs::read_to_string(thread.join("stat")) {
            Ok(stat) if is_ending(&stat) => {}
            Ok(_) => texts.threads.push(status?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    if texts.threads.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the worker has died"));
    }
    findings.texts(&texts);
    Ok(findings.list)
}

/// Those files of a process in `/proc` that are judged by their text alone.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    pub status: String,
    pub limits: String,
    pub oom_score: String,
    pub mountinfo: String,
    pub environ: Vec<u8>,
    pub maps: String,
    /// `status` of each thread.
    pub threads: Vec<String>,
}

/// Compares these texts with what is expected.
#[must_use]
pub fn judge(texts: &Texts, expected: &Expected<'_>) -> Vec<Finding> {
    let mut findings = Findings { expected, list: Vec::new() };
    findings.texts(texts);
    findings.list
}

/// How many threads of a process run under the filters of a tenant's thread.
///
/// # Errors
/// `/proc` of that process could not be read.
pub fn confined_threads(pid: Pid, layers: LayerSet) -> io::Result<usize> {
    let own = crate::filter::filters_of(layers) + crate::filter::THREAD_FILTERS;
    let mut confined = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended does not count.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        confined += usize::from(filters(&status) >= own);
    }
    Ok(confined)
}

/// Whether a thread has begun to end (`PF_EXITING` of linux/sched.h, in the `flags` of
/// proc_pid_stat(5)). It executes nothing of its program any more, and newer kernels give it no
/// filter. A thread that has been joined may still be seen like this.
#[must_use]
pub fn is_ending(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name before the last parenthesis may contain anything.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

fn filters(status: &str) -> usize {
    field(status, "Seccomp_filters").parse().unwrap_or(0)
}

struct Findings<'a> {
    expected: &'a Expected<'a>,
    list: Vec<Finding>,
}

impl Findings<'_> {
    /// If this worker should have `layer`, and `holds` is false, adds the finding `what`.
    fn expect(&mut self, layer: Layer, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.expected.plan.layers.has(layer) {
            self.list.push(Finding { layer: Some(layer), what: what() });
        }
    }

    /// If `holds` is false, adds the finding `what`, whatever the layers of this worker.
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.list.push(Finding { layer: None, what: what() });
        }
    }

    fn texts(&mut self, texts: &Texts) {
        self.user(&texts.status);
        self.privileges(&texts.status);
        self.speculation(&texts.status);
        self.limits(&texts.limits);
        self.oom_score(&texts.oom_score);
        self.root(&texts.mountinfo);
        self.environment(&texts.environ);
        self.code(&texts.maps);
        texts.threads.iter().for_each(|status| self.filter(status));
    }

    fn program(&mut self, exe: &fs::Metadata) -> io::Result<()> {
        let program = File::from(self.expected.program.as_fd().try_clone_to_owned()?).metadata()?;
        self.require((exe.dev(), exe.ino()) == (program.dev(), program.ino()), || {
            "it executes a program other than the worker's".to_owned()
        });
        Ok(())
    }

    fn user(&mut self, status: &str) {
        for (name, id) in [("Uid", self.expected.uid), ("Gid", self.expected.gid)] {
            let (found, id) = (field(status, name).to_owned(), id.to_string());
            // Real, effective, saved and file system id.
            let all = found.split_whitespace().eq([id.as_str(); 4]);
            self.require(all, || format!("{name} is {found}, expected {id}"));
        }
    }

    fn privileges(&mut self, status: &str) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let bits = field(status, set).to_owned();
            self.expect(Layer::Capabilities, is_zero(&bits), || format!("{set} is {bits}"));
        }
        // The process of an ordinary user without a user namespace cannot empty the bounding set.
        // With no_new_privs that is harmless.
        if self.expected.plan.layers.has(Layer::Namespaces) || nix::unistd::geteuid().is_root() {
            let bits = field(status, "CapBnd").to_owned();
            self.expect(Layer::Capabilities, is_zero(&bits), || format!("CapBnd is {bits}"));
        }
        self.expect(Layer::NoNewPrivileges, field(status, "NoNewPrivs") == "1", || "no_new_privs is off".to_owned());
    }

    fn filter(&mut self, status: &str) {
        let (mode, filters) = (field(status, "Seccomp").to_owned(), filters(status));
        let thread = field(status, "Pid").to_owned();
        let says = || format!("thread {thread} has seccomp mode {mode} with {filters} filters");
        self.expect(Layer::Seccomp, mode == "2" && filters >= crate::filter::FILTERS, says);
        let wanted = crate::filter::filters_of(self.expected.plan.layers);
        self.expect(Layer::SealedFilter, mode == "2" && filters >= wanted, says);
    }

    fn speculation(&mut self, status: &str) {
        for name in ["Speculation_Store_Bypass", "SpeculationIndirectBranch"] {
            let state = field(status, name).to_owned();
            self.expect(Layer::Speculation, !can_be_turned_on(&state), || format!("{name} is {state:?}"));
        }
    }

    fn limits(&mut self, limits: &str) {
        let plan = self.expected.plan;
        for (name, wanted) in [
            ("Max core file size", core_bytes()),
            ("Max file size", 0),
            ("Max open files", plan.descriptors),
            ("Max processes", plan.threads),
            ("Max data size", plan.data_bytes),
        ] {
            let hard =
                limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1)).unwrap_or("?");
            self.expect(Layer::Rlimits, hard == wanted.to_string(), || format!("{name} is {hard}, expected {wanted}"));
        }
    }

    fn oom_score(&mut self, score: &str) {
        let score = score.trim();
        self.expect(Layer::Rlimits, score.parse::<i32>().is_ok_and(|score| score >= OOM_SCORE), || {
            format!("oom_score_adj is {score}, expected at least {OOM_SCORE}")
        });
    }

    fn namespaces(&mut self, proc: &str) -> io::Result<()> {
        for (name, _) in NAMESPACES {
            let theirs = fs::read_link(format!("{proc}/ns/{name}"))?;
            let ours = fs::read_link(format!("/proc/self/ns/{name}"))?;
            self.expect(Layer::Namespaces, theirs != ours, || {
                format!("it shares the {name} namespace with the daemon")
            });
        }
        Ok(())
    }

    fn root(&mut self, mountinfo: &str) {
        let mut mounts = mountinfo.lines();
        let empty = match (mounts.next(), mounts.next()) {
            (Some(only), None) => {
                let fields: Vec<_> = only.split_whitespace().collect();
                let read_only = fields.get(5).is_some_and(|options| options.split(',').any(|option| option == "ro"));
                fields.get(4) == Some(&"/") && only.contains(" - tmpfs enisle ") && read_only
            }
            _ => false,
        };
        self.expect(Layer::EmptyRoot, empty, || {
            format!("its mounts are not one empty read-only file system but {} lines", mountinfo.lines().count())
        });
    }

    /// No descriptors but these: null, null, the supervisor's pipe, the supervisor's socket.
    fn descriptors(&mut self, proc: &str) -> io::Result<()> {
        let socket = format!("socket:[{}]", self.expected.control_inode);
        let pipe = format!("pipe:[{}]", self.expected.stderr_inode);
        for entry in fs::read_dir(format!("{proc}/fd"))? {
            let entry = entry?;
            let number = entry.file_name().to_string_lossy().into_owned();
            let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
            let allowed = match number.as_str() {
                "0" | "1" => target == "/dev/null",
                "2" => target == pipe,
                "3" => target == socket,
                _ => false,
            };
            self.require(allowed, || format!("descriptor {number} is {target}"));
        }
        Ok(())
    }

    /// In a sealed worker only the program, its libraries and the kernel's own pages are
    /// executable.
    fn code(&mut self, maps: &str) {
        for line in maps.lines() {
            self.expect(Layer::DenyWriteExecute, !is_made_code(line), || format!("it has made code: {line}"));
        }
    }

    fn environment(&mut self, environ: &[u8]) {
        self.require(environ.is_empty(), || "its environment is not empty".to_owned());
    }
}

/// The value of one line of `/proc/PID/status`; empty if this kernel has no such line.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("").trim()
}

/// Whether a line of `/proc/PID/maps` is executable memory that has no file (except the kernel's
/// own), or that is also writable.
fn is_made_code(line: &str) -> bool {
    let mut fields = line.split_whitespace();
    let (protection, inode) = (fields.nth(1).unwrap_or_default(), fields.nth(2).unwrap_or_default());
    let kernels = matches!(fields.next(), Some("[vdso]" | "[vsyscall]"));
    protection.contains('x') && (protection.contains('w') || (inode == "0" && !kernels))
}

/// Whether a process can still choose to speculate, judged by the state that the kernel reports. In
/// the states "thread …" and "conditional …" the process can choose, unless the choice was forced.
/// Every other state is about the whole machine, and the posture reports it
/// (`Documentation/userspace-api/spec_ctrl.rst`, `arch/x86/kernel/cpu/bugs.c`).
fn can_be_turned_on(state: &str) -> bool {
    let can_choose = state.starts_with("thread ") || state.starts_with("conditional ");
    can_choose && !state.contains(" force ")
}

fn is_zero(bits: &str) -> bool {
    u64::from_str_radix(bits, 16) == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "Seccomp:\t2\nSeccomp_filters:\t3\n";
        assert_eq!(field(status, "Seccomp"), "2");
        assert_eq!(field(status, "Seccomp_filters"), "3");
        assert_eq!(field(status, "Sec"), "");
    }

    #[test]
    fn a_thread_that_has_begun_to_end_is_recognised() {
        let runs = fs::read_to_string("/proc/thread-self/stat").expect("the calling thread's");
        assert!(!is_ending(&runs), "{runs}");
        let mut child = std::process::Command::new("true").spawn().expect("a program that ends at once");
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(Pid::from_raw(child.id().cast_signed())),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .expect("it ends");
        let ended = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it is not collected yet");
        child.wait().expect("it is collected");
        assert!(is_ending(&ended), "{ended}");
        assert!(is_ending("7 (a) 5 4) R 1 7 7 0 -1 4194308 0"));
        assert!(!is_ending("7 (a 4) R 1 7 7 0 -1 4194304 4"));
        assert!(!is_ending(""));
    }

    #[test]
    fn code_that_was_made_is_distinguished_from_code_that_was_loaded() {
        assert!(is_made_code("7f00-7f10 rwxp 00000000 00:00 0 "));
        assert!(is_made_code("7f00-7f10 r-xp 00000000 00:00 0 [anon:v8]"));
        assert!(is_made_code("7f00-7f10 rwxp 00000000 08:01 77 /worker"));
        assert!(!is_made_code("7f00-7f10 r-xp 00000000 08:01 77 /worker"));
        assert!(!is_made_code("7f00-7f10 r-xp 00000000 00:00 0 [vdso]"));
        assert!(!is_made_code("7f00-7f10 rw-p 00000000 00:00 0 "));
    }

    #[test]
    fn only_a_forced_choice_about_speculation_is_final() {
        for state in ["thread vulnerable", "thread mitigated", "conditional enabled", "conditional disabled"] {
            assert!(can_be_turned_on(state), "{state}");
        }
        for state in ["thread force mitigated", "conditional force disabled", "not vulnerable", "always enabled"] {
            assert!(!can_be_turned_on(state), "{state}");
        }
    }

    #[test]
    fn a_worker_that_the_kernel_would_spare_when_memory_runs_out_is_found() {
        let plan = Plan::for_tenants(LayerSet::NONE.with(Layer::Rlimits), 1, 1);
        let program = File::open("/proc/self/exe").unwrap();
        let expected = Expected { plan: &plan, program: &program, uid: 0, gid: 0, control_inode: 0, stderr_inode: 0 };
        let found = |score| {
            let mut findings = Findings { expected: &expected, list: Vec::new() };
            findings.oom_score(score);
            findings.list.len()
        };
        assert_eq!(["500\n", "1000\n", "499\n", "0\n", "-1000\n", ""].map(found), [0, 0, 1, 1, 1, 1]);
    }

    /// What `look` finds wrong with a worker that should have no layer at all.
    fn found_without_layers(look: impl FnOnce(&mut Findings<'_>)) -> Vec<String> {
        let plan = Plan::for_tenants(LayerSet::NONE, 1, 1);
        let program = File::open("/proc/self/exe").unwrap();
        let expected = Expected { plan: &plan, program: &program, uid: 7, gid: 8, control_inode: 3, stderr_inode: 2 };
        let mut findings = Findings { expected: &expected, list: Vec::new() };
        look(&mut findings);
        findings.list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn another_program_or_user_is_found_without_any_layer() {
        let found = |uids: &str, gids: &str, exe: &str| {
            let (status, exe) = (format!("Uid:\t{uids}\nGid:\t{gids}\n"), fs::metadata(exe).unwrap());
            found_without_layers(|findings| {
                findings.program(&exe).unwrap();
                findings.user(&status);
            })
        };
        let (own, other) = ("/proc/self/exe", "/dev/null");
        assert_eq!(found("7\t7\t7\t7", "8\t8\t8\t8", own), [""; 0]);
        let program = "it executes a program other than the worker's";
        assert_eq!(found("7\t7\t7\t7", "8\t8\t8\t8", other), [program]);
        assert_eq!(found("7\t7\t0\t7", "8\t8\t8\t8", own), ["Uid is 7\t7\t0\t7, expected 7"]);
        assert_eq!(found("7\t7\t7\t7", "8\t8\t8\t0", own), ["Gid is 8\t8\t8\t0, expected 8"]);
        assert_eq!(found("", "", own).len(), 2);
    }

    #[test]
    fn an_extra_descriptor_is_found_without_any_layer() {
        let proc = tempfile::tempdir().unwrap();
        let open = proc.path().join("fd");
        fs::create_dir(&open).unwrap();
        let put = |number, target| std::os::unix::fs::symlink(target, open.join(number)).unwrap();
        let found = || found_without_layers(|findings| findings.descriptors(&proc.path().to_string_lossy()).unwrap());
        put("0", "/dev/null");
        put("1", "/dev/null");
        put("2", "pipe:[2]");
        put("3", "socket:[3]");
        assert_eq!(found(), [""; 0]);
        put("4", "/etc/shadow");
        assert_eq!(found(), ["descriptor 4 is /etc/shadow"]);
    }

    #[test]
    fn an_environment_is_found_without_any_layer() {
        assert_eq!(found_without_layers(|findings| findings.environment(b"")), [""; 0]);
        let found = found_without_layers(|findings| findings.environment(b"SECRET=1\0"));
        assert_eq!(found, ["its environment is not empty"]);
    }

    #[test]
    fn a_capability_set_without_a_number_does_not_count_as_zero() {
        assert!(is_zero("0000000000000000"));
        assert!(!is_zero("0000000000000001"));
        assert!(!is_zero(""));
    }
}
