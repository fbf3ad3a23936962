//! What this machine offers, layer by layer. Layers that every supported kernel has are taken for
//! granted; all others are probed.

use std::fs;
use std::io;
use std::ptr;

use crate::islands::keys;
use crate::layers::{Layer, LayerSet};
use crate::process::rights;
use crate::process::spawn::{NAMESPACES, clone_args};

/// One layer on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub layer: Layer,
    pub on: bool,
    /// What was found, or what is missing.
    pub detail: String,
}

/// Every layer on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posture {
    pub findings: Vec<Finding>,
    /// How many protection keys a process can take; 0 if the kernel does not deliver their faults.
    pub keys: usize,
    /// What an operator should know about this machine besides its layers.
    pub notes: Vec<String>,
    /// Whether Landlock also restricts abstract sockets and signals (version 6 of its interface,
    /// Linux 6.12).
    pub landlock_scopes: bool,
}

impl Posture {
    /// Probes this machine. This takes a few milliseconds, and starts short-lived children.
    #[must_use]
    pub fn probe() -> Self {
        let keys = keys::available();
        let faults = keys > 0 && keys::delivers_faults();
        let namespaces = probe_namespaces();
        let version = landlock_version();
        let landlock_scopes = version.as_ref().is_ok_and(|version| *version >= LANDLOCK_WITH_SCOPES);
        let landlock = match version {
            Ok(version) if landlock_scopes => (true, format!("interface version {version}")),
            Ok(version) => (true, format!("interface version {version}, without scopes")),
            Err(error) => (false, error.to_string()),
        };
        let findings = Layer::ALL
            .into_iter()
            .map(|layer| {
                let (on, detail) = match layer {
                    Layer::Namespaces => namespaces.namespaces(),
                    Layer::EmptyRoot => namespaces.empty_root(),
                    Layer::Landlock => landlock.clone(),
                    Layer::Seccomp | Layer::ThreadFilter | Layer::SealedFilter => seccomp(),
                    Layer::DenyWriteExecute => deny_write_execute(),
                    Layer::Speculation => speculation(),
                    Layer::Keys if keys::tenants_of(keys) > 0 && faults => (true, keys_detail(keys)),
                    Layer::Keys if keys > 0 && !faults => {
                        (false, "this kernel does not deliver faults on a closed key to their handler".to_owned())
                    }
                    Layer::Keys if keys > 0 => (false, format!("only {keys} keys are left")),
                    Layer::Keys => (false, "this processor or kernel has no memory protection keys".to_owned()),
                    Layer::Rlimits
                    | Layer::Capabilities
                    | Layer::NoNewPrivileges
                    | Layer::NotDumpable
                    | Layer::ParentDeath => (true, String::new()),
                };
                Finding { layer, on, detail }
            })
            .collect();
        let notes = strict_overcommit().into_iter().chain(passed_descriptors()).collect();
        Self { findings, keys: if faults { keys } else { 0 }, notes, landlock_scopes }
    }

    /// The layers that this machine has.
    #[must_use]
    pub fn layers(&self) -> LayerSet {
        self.findings.iter().filter(|finding| finding.on).map(|finding| finding.layer).collect()
    }

    /// The layers of `required` that this machine lacks.
    pub fn missing(&self, required: LayerSet) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| !finding.on && required.has(finding.layer))
    }
}

/// How far a child in namespaces of its own got.
enum Probe {
    /// The child could not be made, or could not mount an empty file system, for this reason.
    NoNamespaces(String),
    /// The child could not replace its root.
    NoNewRoot(io::Error),
    Complete,
}

impl Probe {
    fn namespaces(&self) -> (bool, String) {
        match self {
            Self::NoNamespaces(why) => (false, why.clone()),
            Self::NoNewRoot(_) | Self::Complete => (true, "user, mnt, pid, net, ipc, uts, cgroup".to_owned()),
        }
    }

    fn empty_root(&self) -> (bool, String) {
        match self {
            Self::NoNamespaces(why) => (false, why.clone()),
            // See pivot_root(2).
            Self::NoNewRoot(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let why = "the root of this machine is the kernel's first file system (an initramfs)";
                (false, format!("pivot_root: {error}; {why}"))
            }
            Self::NoNewRoot(error) => (false, format!("pivot_root: {error}")),
            Self::Complete => (true, String::new()),
        }
    }
}

/// Makes a child with a namespace of its own of every kind. The child mounts an empty file system
/// and makes that file system its root, as a worker does.
fn probe_namespaces() -> Probe {
    let flags = NAMESPACES.iter().fold(0, |all, (_, flag)| all | flag);
    let mut args = clone_args(flags, 0);
    // SAFETY: a valid clone_args of the size given, without CLONE_VM: the child has a copy of
    // everything, makes system calls through libc's thin wrappers, and exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    if pid == 0 {
        mount_and_exit();
    }
    let Ok(pid) = i32::try_from(pid) else { return Probe::NoNamespaces("no such process id".to_owned()) };
    if pid < 0 {
        return Probe::NoNamespaces(format!("clone3 with all namespaces: {}", io::Error::last_os_error()));
    }
    match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None) {
        Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => Probe::Complete,
        Ok(nix::sys::wait::WaitStatus::Exited(_, code)) if code & AT_THE_ROOT != 0 => {
            Probe::NoNewRoot(io::Error::from_raw_os_error(code & !AT_THE_ROOT))
        }
        Ok(nix::sys::wait::WaitStatus::Exited(_, errno)) => {
            Probe::NoNamespaces(format!("mounting in a user namespace: {}", io::Error::from_raw_os_error(errno)))
        }
        Ok(other) => Probe::NoNamespaces(format!("the probe ended as {other:?}")),
        Err(error) => Probe::NoNamespaces(format!("the probe was lost: {error}")),
    }
}

/// Set in the exit code of a child that could mount, but could not replace its root. The errno is
/// in the other seven bits.
const AT_THE_ROOT: libc::c_int = 0x80;

/// The child's part. It makes two mounts, which security modules may forbid in unprivileged
/// namespaces. Then it replaces its root, which the kernel forbids if the root is the kernel's
/// first file system (pivot_root(2), EINVAL).
fn mount_and_exit() -> ! {
    let null = ptr::null::<libc::c_char>();
    // SAFETY: source, type and data may be null for a change of propagation; the target is a C
    // string.
    let private = unsafe { libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()) };
    let mounted = if private == 0 {
        let (target, kind) = (c"/proc".as_ptr(), c"tmpfs".as_ptr());
        // SAFETY: all three are C strings, the data is null.
        unsafe { libc::mount(c"enisle".as_ptr(), target, kind, libc::MS_NODEV, null.cast()) }
    } else {
        private
    };
    let code = if mounted == 0 { exchange_root() } else { nix::errno::Errno::last_raw() };
    // SAFETY: _exit ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Makes the file system that is mounted on `/proc` the root, and returns the child's exit code.
fn exchange_root() -> libc::c_int {
    let here = c".".as_ptr();
    // SAFETY: the path is a C string.
    let moved = unsafe { libc::chdir(c"/proc".as_ptr()) } == 0;
    // SAFETY: both paths are C strings.
    if moved && unsafe { libc::syscall(libc::SYS_pivot_root, here, here) } == 0 {
        0
    } else {
        AT_THE_ROOT | nix::errno::Errno::last_raw()
    }
}

/// Asks for this process's setting and changes nothing. Kernels without the setting return an
/// error.
fn deny_write_execute() -> (bool, String) {
    // SAFETY: the request takes no pointer.
    let result = unsafe { libc::prctl(libc::PR_GET_MDWE, 0, 0, 0, 0) };
    if result >= 0 { (true, String::new()) } else { (false, "this kernel does not know PR_SET_MDWE".to_owned()) }
}

/// The first version of Landlock's interface that restricts abstract sockets and signals.
const LANDLOCK_WITH_SCOPES: libc::c_long = 6;

fn landlock_version() -> io::Result<libc::c_long> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_int = 1;
    // SAFETY: with the version flag the attribute is null and its size 0; see
    // landlock_create_ruleset(2).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version > 0 { Ok(version) } else { Err(io::Error::last_os_error()) }
}

/// A note for machines whose kernel promises no more memory than it has (`vm.overcommit_memory` is
/// 2). There V8's ranges for code count in full, used or not. The two figures in the note were
/// measured: `Committed_AS` with one tenant, and what each further tenant adds.
fn strict_overcommit() -> Option<String> {
    let setting = fs::read_to_string("/proc/sys/vm/overcommit_memory").ok()?;
    if setting.trim() != "2" {
        return None;
    }
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let limit = memory.lines().find_map(|line| line.strip_prefix("CommitLimit:")).unwrap_or(" of unknown size");
    Some(format!(
        "vm.overcommit_memory is 2: a worker process takes some 700 MiB of the machine's commit limit ({}), and 140 MiB more \
         for each further tenant; where the limit is reached, a process ends and its runs begin again",
        limit.trim()
    ))
}

/// A note for kernels that cannot refuse the descriptors that clients pass to the daemon.
fn passed_descriptors() -> Option<String> {
    let why = "this kernel cannot refuse descriptors that clients pass (SO_PASSRIGHTS, Linux 6.16): the daemon ends such \
               a connection, and has a thread of its own close it";
    (!rights::can_be_refused()).then(|| why.to_owned())
}

/// What `doctor` shows if there are keys.
fn keys_detail(keys: usize) -> String {
    let tenants = keys::tenants_of(keys);
    format!("{keys} keys, for {tenants} tenants a process; native code in a tenant's thread can open any of them")
}

fn seccomp() -> (bool, String) {
    const SECCOMP_GET_ACTION_AVAIL: libc::c_int = 2;
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the argument points to a readable u32.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, ptr::from_ref(&kill)) };
    if result == 0 {
        (true, "every call that is not listed ends the process".to_owned())
    } else {
        (false, io::Error::last_os_error().to_string())
    }
}

fn speculation() -> (bool, String) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let states: Vec<_> =
        status.lines().filter_map(|line| line.strip_prefix("Speculation")?.split_once(":\t")).collect();
    // Speculation is left on for the whole machine, so that no process can choose.
    let exposed = states.iter().any(|(_, state)| matches!(*state, "vulnerable" | "always enabled"));
    let detail =
        states.iter().map(|(name, state)| format!("{} {state}", name.trim_start_matches('_'))).collect::<Vec<_>>();
    match states.len() {
        0 => (false, "this kernel shows no speculation controls".to_owned()),
        _ if exposed => (false, format!("decided for the whole machine: {}", detail.join(", "))),
        _ => (true, format!("daemon itself: {}", detail.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reports_every_layer_once() {
        let posture = Posture::probe();
        assert_eq!(posture.findings.iter().map(|finding| finding.layer).collect::<Vec<_>>(), Layer::ALL);
    }

    #[test]
    fn all_keys_of_a_processor_serve_twelve_tenants() {
        let detail = keys_detail(15);
        assert!(detail.starts_with("15 keys, for 12 tenants a process;"), "{detail}");
    }

    #[test]
    fn a_required_layer_that_is_off_is_missing() {
        let mut posture = Posture::probe();
        for finding in &mut posture.findings {
            finding.on = finding.layer != Layer::Landlock;
        }
        let missing: Vec<_> = posture.missing(LayerSet::all()).map(|finding| finding.layer).collect();
        assert_eq!(missing, [Layer::Landlock]);
        assert_eq!(posture.missing(LayerSet::NONE).count(), 0);
    }
}
