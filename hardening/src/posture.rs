//! What this machine really offers, layer by layer: probed, never assumed.

use std::fs;
use std::io;
use std::ptr;

use crate::layers::{Layer, LayerSet};
use crate::mpk;
use crate::spawn::{NAMESPACES, clone_args};

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
    /// Protection keys that a process can take and rely on.
    pub keys: usize,
}

impl Posture {
    /// Probes this machine. Takes a few milliseconds and one short-lived child.
    #[must_use]
    pub fn probe() -> Self {
        let keys = mpk::available();
        let faults = keys > 0 && mpk::delivers_faults();
        let namespaces = probe_namespaces();
        let findings = Layer::ALL
            .into_iter()
            .map(|layer| {
                let (on, detail) = match layer {
                    Layer::Namespaces | Layer::EmptyRoot => namespaces.clone(),
                    Layer::Landlock => landlock(),
                    Layer::Seccomp | Layer::ThreadFilter | Layer::SealedFilter => seccomp(),
                    Layer::DenyWriteExecute => deny_write_execute(),
                    Layer::Speculation => speculation(),
                    Layer::Keys if mpk::tenants_of(keys) > 0 && faults => (
                        true,
                        format!(
                            "{keys} keys, for {} tenants a process; native code in a tenant's thread can open any of them",
                            mpk::tenants_of(keys)
                        ),
                    ),
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
        Self { findings, keys: if faults { keys } else { 0 } }
    }

    /// The layers that are there.
    #[must_use]
    pub fn layers(&self) -> LayerSet {
        self.findings.iter().filter(|finding| finding.on).map(|finding| finding.layer).collect()
    }

    /// The layers of `required` that this machine lacks.
    pub fn missing(&self, required: LayerSet) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| !finding.on && required.has(finding.layer))
    }
}

/// Makes a child in every namespace, which mounts an empty file system as a worker would.
fn probe_namespaces() -> (bool, String) {
    let flags = NAMESPACES.iter().fold(0, |all, (_, flag)| all | flag);
    let mut args = clone_args(flags, 0);
    // SAFETY: a valid clone_args of the size given, without CLONE_VM; the child makes raw system calls and exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    if pid == 0 {
        mount_and_exit();
    }
    let Ok(pid) = i32::try_from(pid) else { return (false, "no such process id".to_owned()) };
    if pid < 0 {
        return (false, format!("clone3 with all namespaces: {}", io::Error::last_os_error()));
    }
    match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None) {
        Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => (true, "user, mnt, pid, net, ipc, uts, cgroup".to_owned()),
        Ok(nix::sys::wait::WaitStatus::Exited(_, errno)) => {
            (false, format!("mounting in a user namespace: {}", io::Error::from_raw_os_error(errno)))
        }
        Ok(other) => (false, format!("the probe ended as {other:?}")),
        Err(error) => (false, format!("the probe was lost: {error}")),
    }
}

/// The child's part: the two mounts that security modules forbid to unprivileged namespaces.
fn mount_and_exit() -> ! {
    let null = ptr::null::<libc::c_char>();
    // SAFETY: source, type and data may be null for a change of propagation; the target is a C string.
    let private = unsafe { libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()) };
    let mounted = if private == 0 {
        let (target, kind) = (c"/proc".as_ptr(), c"tmpfs".as_ptr());
        // SAFETY: all three are C strings, the data is null.
        unsafe { libc::mount(c"enisle".as_ptr(), target, kind, libc::MS_NODEV, null.cast()) }
    } else {
        private
    };
    let code = if mounted == 0 { 0 } else { nix::errno::Errno::last_raw() };
    // SAFETY: _exit ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Asks only: what this process has set, which an older kernel does not know.
fn deny_write_execute() -> (bool, String) {
    // SAFETY: the request takes no pointer.
    let result = unsafe { libc::prctl(libc::PR_GET_MDWE, 0, 0, 0, 0) };
    if result >= 0 { (true, String::new()) } else { (false, "this kernel does not know PR_SET_MDWE".to_owned()) }
}

fn landlock() -> (bool, String) {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_int = 1;
    // SAFETY: with the version flag the attribute is null and its size 0; see landlock_create_ruleset(2).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    match version {
        1.. => (true, format!("interface version {version}{}", if version < 6 { ", without scopes" } else { "" })),
        _ => (false, io::Error::last_os_error().to_string()),
    }
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
    // Left on for every process of the machine, and no process can choose.
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
    fn a_probe_names_every_layer_once() {
        let posture = Posture::probe();
        assert_eq!(posture.findings.iter().map(|finding| finding.layer).collect::<Vec<_>>(), Layer::ALL);
    }

    #[test]
    fn what_is_required_and_off_is_missing() {
        let mut posture = Posture::probe();
        for finding in &mut posture.findings {
            finding.on = finding.layer != Layer::Landlock;
        }
        let missing: Vec<_> = posture.missing(LayerSet::all()).map(|finding| finding.layer).collect();
        assert_eq!(missing, [Layer::Landlock]);
        assert_eq!(posture.missing(LayerSet::NONE).count(), 0);
    }
}
