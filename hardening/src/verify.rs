//! What the supervisor reads about a worker, from outside, before it trusts it with a tenant.
//!
//! A worker says on its control channel that it is jailed; nothing here believes that. Everything is read from `/proc`,
//! which the worker cannot write. That a sealed worker makes no code is seen by what is executable in it. Three things the kernel does not show: Landlock, the dumpable flag and the
//! parent-death signal; they rest on the worker's start-up code, which has run no tenant's code before.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;

use crate::jail::{Plan, limits::core_bytes};
use crate::layers::{Layer, LayerSet};
use crate::spawn::{NAMESPACES, OOM_SCORE};

/// What a worker is expected to be.
#[derive(Debug)]
pub struct Expected<'a> {
    pub plan: &'a Plan,
    /// The program that it was started from.
    pub program: &'a File,
    /// The uid and gid outside.
    pub uid: u32,
    pub gid: u32,
    /// The inode of the worker's end of the control channel.
    pub control_inode: u64,
    /// The inode of the pipe that is its standard error.
    pub stderr_inode: u64,
}

/// One thing that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub layer: Layer,
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.layer, self.what)
    }
}

/// Reads a worker's state and compares.
///
/// # Errors
/// `/proc` of that process could not be read: it has died, or it is not ours to see. Both mean that it is not verified.
pub fn verify(pid: Pid, expected: &Expected<'_>) -> io::Result<Vec<Finding>> {
    let mut findings = Findings { expected, list: Vec::new() };
    let proc = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{proc}/status"))?;
    findings.identity(&status, &fs::metadata(format!("{proc}/exe"))?)?;
    findings.privileges(&status);
    findings.speculation(&status);
    findings.limits(&fs::read_to_string(format!("{proc}/limits"))?);
    findings.oom_score(&fs::read_to_string(format!("{proc}/oom_score_adj"))?);
    findings.namespaces(&proc)?;
    findings.root(&fs::read_to_string(format!("{proc}/mountinfo"))?);
    findings.descriptors(&proc)?;
    findings.environment(&fs::read(format!("{proc}/environ"))?);
    findings.code(&fs::read_to_string(format!("{proc}/maps"))?);
    for thread in fs::read_dir(format!("{proc}/task"))? {
        findings.filter(&fs::read_to_string(thread?.path().join("status"))?);
    }
    Ok(findings.list)
}

/// How many threads of a process run under a tenant's own filters.
///
/// # Errors
/// `/proc` of that process could not be read.
pub fn confined_threads(pid: Pid, layers: LayerSet) -> io::Result<usize> {
    let own = crate::seccomp::filters_of(layers) + crate::seccomp::THREAD_FILTERS;
    let mut confined = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended is none.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        confined += usize::from(filters(&status) >= own);
    }
    Ok(confined)
}

fn filters(status: &str) -> usize {
    field(status, "Seccomp_filters").parse().unwrap_or(0)
}

struct Findings<'a> {
    expected: &'a Expected<'a>,
    list: Vec<Finding>,
}

impl Findings<'_> {
    /// Notes `what` unless `holds`, if `layer` is one that this worker should have.
    fn expect(&mut self, layer: Layer, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.expected.plan.layers.has(layer) {
            self.list.push(Finding { layer, what: what() });
        }
    }

    fn identity(&mut self, status: &str, exe: &fs::Metadata) -> io::Result<()> {
        let program = File::from(self.expected.program.as_fd().try_clone_to_owned()?).metadata()?;
        self.expect(Layer::NoNewPrivileges, (exe.dev(), exe.ino()) == (program.dev(), program.ino()), || {
            "it executes another program than the worker's".to_owned()
        });
        for (name, id) in [("Uid", self.expected.uid), ("Gid", self.expected.gid)] {
            let found = field(status, name).to_owned();
            let all = found.split_whitespace().all(|word| word == id.to_string());
            self.expect(Layer::Capabilities, all, || format!("{name} is {found}, expected {id}"));
        }
        Ok(())
    }

    fn privileges(&mut self, status: &str) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let bits = field(status, set).to_owned();
            self.expect(Layer::Capabilities, is_zero(&bits), || format!("{set} is {bits}"));
        }
        // An ordinary user without a namespace cannot empty the bounding set; no_new_privs makes it moot.
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
        self.expect(Layer::Seccomp, mode == "2" && filters >= crate::seccomp::FILTERS, says);
        let wanted = crate::seccomp::filters_of(self.expected.plan.layers);
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

    /// Exactly: null, null, our pipe, our socket.
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
            self.expect(Layer::Rlimits, allowed, || format!("descriptor {number} is {target}"));
        }
        Ok(())
    }

    /// In a sealed worker only the program, its libraries and the kernel's own page are executable.
    fn code(&mut self, maps: &str) {
        for line in maps.lines() {
            self.expect(Layer::DenyWriteExecute, !is_made_code(line), || format!("it has made code: {line}"));
        }
    }

    fn environment(&mut self, environ: &[u8]) {
        self.expect(Layer::NoNewPrivileges, environ.is_empty(), || "its environment is not empty".to_owned());
    }
}

/// The value of one line of `/proc/PID/status`; empty where this kernel has no such line.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("").trim()
}

/// Whether a line of `/proc/PID/maps` is executable memory that no file is behind, or that can be written too.
fn is_made_code(line: &str) -> bool {
    let mut fields = line.split_whitespace();
    let (protection, inode) = (fields.nth(1).unwrap_or_default(), fields.nth(2).unwrap_or_default());
    let kernels = matches!(fields.next(), Some("[vdso]" | "[vsyscall]"));
    protection.contains('x') && (protection.contains('w') || (inode == "0" && !kernels))
}

/// Whether a process may choose to speculate, by the kernel's word for it. "thread …" and
/// "conditional …" are processes that can choose; only a forced choice cannot be taken back.
/// Every other word is about the whole machine, and the posture tells that
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
    fn a_field_is_read_whole_and_not_by_its_prefix() {
        let status = "Seccomp:\t2\nSeccomp_filters:\t3\n";
        assert_eq!(field(status, "Seccomp"), "2");
        assert_eq!(field(status, "Seccomp_filters"), "3");
        assert_eq!(field(status, "Sec"), "");
    }

    #[test]
    fn code_that_was_made_is_told_from_code_that_was_loaded() {
        assert!(is_made_code("7f00-7f10 rwxp 00000000 00:00 0 "));
        assert!(is_made_code("7f00-7f10 r-xp 00000000 00:00 0 [anon:v8]"));
        assert!(is_made_code("7f00-7f10 rwxp 00000000 08:01 77 /worker"));
        assert!(!is_made_code("7f00-7f10 r-xp 00000000 08:01 77 /worker"));
        assert!(!is_made_code("7f00-7f10 r-xp 00000000 00:00 0 [vdso]"));
        assert!(!is_made_code("7f00-7f10 rw-p 00000000 00:00 0 "));
    }

    #[test]
    fn only_a_forced_choice_about_speculation_is_for_good() {
        for state in ["thread vulnerable", "thread mitigated", "conditional enabled", "conditional disabled"] {
            assert!(can_be_turned_on(state), "{state}");
        }
        for state in ["thread force mitigated", "conditional force disabled", "not vulnerable", "always enabled"] {
            assert!(!can_be_turned_on(state), "{state}");
        }
    }

    #[test]
    fn a_worker_that_would_outlive_the_daemon_when_memory_runs_out_is_found() {
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

    #[test]
    fn a_capability_set_is_zero_only_as_a_number() {
        assert!(is_zero("0000000000000000"));
        assert!(!is_zero("0000000000000001"));
        assert!(!is_zero(""));
    }
}
