//! Privileges that a worker gives up: capabilities, the user namespaces that it could make, the
//! daemon's keyring, the host's name, memory that becomes executable. A worker is uid 0 of its own
//! user namespace and has no capability there.

use std::fs;
use std::io;

use caps::CapSet;

use super::JailError;

/// `SECBIT_NOROOT`, `SECBIT_NO_SETUID_FIXUP`, `SECBIT_NO_CAP_AMBIENT_RAISE`, each with its lock
/// (linux/securebits.h): uid 0 loses its meaning, and no exec gives a capability back. `KEEP_CAPS`
/// stays off, locked.
const SECURE_BITS: libc::c_ulong = 0b1110_1111;

pub(super) fn drop_capabilities() -> Result<(), JailError> {
    // Clearing the bounding set and setting the securebits take CAP_SETPCAP, so both come first.
    // The process of an ordinary user without a user namespace has neither this capability nor any
    // other in the sets below.
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

/// Forbids nested user namespaces: inside one, the worker would have every capability again. The
/// filter forbids them too, in case this setting cannot be made. It is made while the host's
/// `/proc` is still mounted. If that `/proc` is read-only, only the filter forbids them.
pub(super) fn forbid_user_namespaces() {
    let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
}

/// Replaces the session keyring with an empty one. The inherited keyring gives access to the keys
/// of the user who started the daemon (session-keyring(7)). As a second layer, the filter traps
/// every call about keyrings.
pub(super) fn leave_session_keyring() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, or null for a keyring without one.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    if keyring >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // ENOSYS: a kernel without keyrings. EPERM: the filter of a container manager forbids the
        // call. EDQUOT: other processes of this user have used up the user's quota of keys. None is
        // a reason to refuse to start, because the worker's filter traps all calls about keyrings.
        Some(libc::ENOSYS | libc::EPERM | libc::EDQUOT) => Ok(()),
        _ => Err(error),
    }
}

/// Replaces the host's name, which `uname` would otherwise reveal.
pub(super) fn hide_host_name() -> io::Result<()> {
    let name = b"enisle";
    // SAFETY: `name` is readable for the length given.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on no mapping is both writable and executable, and no mapping that is not executable
/// becomes executable (PR_SET_MDWE(2const)).
pub(super) fn deny_write_execute() -> io::Result<()> {
    let refuse = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    // SAFETY: the request takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_MDWE, refuse, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
