//! Cases that are not attacks: whether a worker dies with its parent, leaves the daemon's session
//! keyring and yields to the daemon, and whether protection keys work as the posture expects.

use std::io::Read;

use enisle_hardening::LayerSet;
use enisle_hardening::islands::keys;
use enisle_hardening::process::spawn::{NICER, OOM_SCORE};

use crate::attacker::start;
use crate::is_required;

/// Starts a process from a thread that ends at once, and returns whether the process ended with it.
pub(crate) fn dies_with_its_parent(layers: LayerSet) -> bool {
    // The process waits for a byte that never comes. So it ends only when its parent dies, or when
    // the channel is closed.
    let started = std::thread::spawn(move || {
        let arguments = ["layers", "wait", &layers.bits().to_string()];
        let (attacker, mut channel) = start(&arguments.map(str::to_owned), layers);
        // The process writes a byte when it is in its jail, with every layer on that it should
        // have.
        channel.read_exact(&mut [0]).expect("it is ready");
        (attacker, channel)
    });
    let (mut attacker, mut channel) = started.join().expect("the thread ends");
    channel.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
    // The channel ends when the process dies; a time-out means that the process lives.
    let dead = channel.read(&mut [0]).is_ok_and(|got| got == 0);
    drop(channel);
    attacker.kill();
    attacker.collect();
    dead
}

/// The number of this process's session keyring; negative if there is none, or none is allowed.
pub(crate) fn session_keyring() -> i64 {
    // SAFETY: KEYCTL_GET_KEYRING_ID takes two numbers.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, libc::KEY_SPEC_SESSION_KEYRING, 0) }
}

/// Whether a worker's session keyring differs from that of its parent. `None` without keyrings.
pub(crate) fn keys_are_left() -> Option<bool> {
    // This test makes a keyring of its own, so that there is one to inherit.
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, or null for a keyring without one.
    let ours =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if ours < 0 {
        return None;
    }
    let (mut worker, mut channel) = start(&["layers", "keyring"].map(str::to_owned), LayerSet::NONE);
    let mut theirs = [0; 8];
    channel.read_exact(&mut theirs).expect("it says which");
    worker.collect();
    Some(i64::from_le_bytes(theirs) != ours && session_keyring() == ours)
}

/// Whether the kernel would kill a worker before its parent if memory runs out, and prefers the
/// parent when both want a processor.
pub(crate) fn steps_back() -> Option<bool> {
    let arguments = ["layers", "wait", &LayerSet::NONE.bits().to_string()];
    let (mut worker, mut channel) = start(&arguments.map(str::to_owned), LayerSet::NONE);
    channel.read_exact(&mut [0]).expect("it is ready");
    let read = |pid: &str| {
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        // The nice value is field 19. Field 2 is a name in parentheses, which may contain spaces.
        let nice = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(16)).expect("a nice value").to_owned();
        (score.trim().parse::<i32>().expect("a number"), nice.parse::<i32>().expect("a number"))
    };
    let (ours, theirs) = (read("self"), read(&worker.pid.to_string()));
    worker.kill();
    worker.collect();
    Some(theirs.0 == (ours.0 + OOM_SCORE).clamp(OOM_SCORE, 1000) && theirs.1 == (ours.1 + NICER).min(19))
}

/// What `holds` returns. Without keys `None`, or false if this machine is required to have them.
fn with_keys(holds: impl FnOnce() -> bool) -> Option<bool> {
    if keys::available() > 0 { Some(holds()) } else { is_required("pku").then_some(false) }
}

pub(crate) fn counting_keys_gives_them_back() -> Option<bool> {
    with_keys(|| keys::available() == keys::available())
}

pub(crate) fn keys_deliver_faults() -> Option<bool> {
    with_keys(keys::delivers_faults)
}
