//! Capabilities: a worker is uid 0 of its own user namespace and has no privilege there.

use std::fs;
use std::io;

use caps::CapSet;

use super::JailError;

/// `SECBIT_NOROOT`, `SECBIT_NO_SETUID_FIXUP`, `SECBIT_NO_CAP_AMBIENT_RAISE`, each with its lock
/// (linux/securebits.h): uid 0 loses its meaning, and no exec gives a capability back. `KEEP_CAPS`
/// stays off, locked.
const SECURE_BITS: libc::c_ulong = 0b1110_1111;

pub(super) fn drop_capabilities() -> Result<(), JailError> {
    // Clearing the bounding set and setting the securebits take CAP_SETPCAP, so they come first. An
    // ordinary user without a namespace of its own does not have that capability, nor any in the
    // other sets.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false) {
        caps::clear(None, CapSet::Bounding).map_err(|error| JailError::Capabilities("bounding", error))?;
        // SAFETY: PR_SET_SECUREBITS takes a number.
        if unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) } != 0 {
            return Err(JailError::SecureBits(io::Error::last_os_error()));
        }
    }
    for (name, set) in [
        ("ambient", CapSet::Ambient),
        ("effective", CapSet::Effective),
        ("permitted", CapSet::Permitted),
        ("inheritable", CapSet::Inheritable),
    ] {
        caps::clear(None, set).map_err(|error| JailError::Capabilities(name, error))?;
    }
    Ok(())
}

/// A nested user namespace would give every capability back inside it. The filter refuses to make
/// one; this is the layer behind it, set while the host's `/proc` is still mounted. Where `/proc`
/// is read-only there is only the filter.
pub(super) fn forbid_user_namespaces() {
    let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
}

/// The session keyring is inherited, with the keys of the user who started the daemon
/// (session-keyring(7)). An empty one replaces it; the filter, which refuses every call about keys,
/// is the layer behind this.
pub(super) fn leave_session_keyring() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, or null for a keyring without one.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    if keyring >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A kernel without keys, or the filter of a container manager that this process runs under.
        // EDQUOT: this user's other processes have used up its quota of keys, which is not a reason
        // to refuse to start: the filter still refuses all calls about keys.
        Some(libc::ENOSYS | libc::EPERM | libc::EDQUOT) => Ok(()),
        _ => Err(error),
    }
}

/// Otherwise `uname` reveals the host's name.
pub(super) fn hide_host_name() -> io::Result<()> {
    let name = b"enisle";
    // SAFETY: `name` is readable for the length given.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// No page that is or was writable becomes executable, and no executable page becomes writable, for
/// good (PR_SET_MDWE(2const)).
pub(super) fn deny_write_execute() -> io::Result<()> {
    let refuse = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    // SAFETY: the request takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_MDWE, refuse, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
