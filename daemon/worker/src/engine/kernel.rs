//! What the engine requests from the kernel directly.

/// Fills `bytes` with random bytes from the kernel. False if the kernel gives none; if V8 wanted
/// the bytes, it then ends the process.
pub(super) fn fill_random(bytes: &mut [u8]) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: `rest` is writable for its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) if got > 0 => rest = rest.split_at_mut(got).1,
            _ => return false,
        }
    }
    true
}

/// Ends the process with all its threads at once: no destructor and no exit handler runs. For
/// callbacks that must not return to V8.
pub(super) fn exit_now(code: libc::c_int) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
