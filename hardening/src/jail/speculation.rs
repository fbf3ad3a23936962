//! Speculation of two kinds, forced off so that nothing in the process can turn it on again.
//!
//! `PR_SET_SPECULATION_CTRL`, see the kernel's `Documentation/userspace-api/spec_ctrl.rst`.

use std::io;

use super::JailError;

const CONTROLS: [(&str, libc::c_int); 2] = [
    // Loads that bypass older stores (Spectre v4) can be steered from JIT-compiled code.
    ("store bypass", libc::PR_SPEC_STORE_BYPASS),
    // Indirect branches trained by another process (Spectre v2).
    ("indirect branch", libc::PR_SPEC_INDIRECT_BRANCH),
];

pub(super) fn force_off() -> Result<(), JailError> {
    for (name, control) in CONTROLS {
        // SAFETY: PR_SET_SPECULATION_CTRL takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_SET_SPECULATION_CTRL, control, libc::PR_SPEC_FORCE_DISABLE, 0, 0) };
        if result == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // ENODEV: this processor has no such control; ENXIO: it is fixed for the whole machine,
            // on or off.
            Some(libc::ENODEV | libc::ENXIO) => {}
            // EPERM: the process that started the daemon has forced speculation off already; or
            // speculation is left on for the whole machine. The posture reports which.
            Some(libc::EPERM) if !controllable(control) => {}
            _ => return Err(JailError::Speculation(name, error)),
        }
    }
    Ok(())
}

/// Whether this process can choose the control, and the choice was not forced before.
fn controllable(control: libc::c_int) -> bool {
    // SAFETY: PR_GET_SPECULATION_CTRL takes numbers only.
    let state = unsafe { libc::prctl(libc::PR_GET_SPECULATION_CTRL, control, 0, 0, 0) };
    let state = u32::try_from(state).unwrap_or(0);
    state & libc::PR_SPEC_PRCTL != 0 && state & libc::PR_SPEC_FORCE_DISABLE == 0
}
