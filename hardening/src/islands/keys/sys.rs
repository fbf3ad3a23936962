//! The system calls for memory protection keys.

use std::ops::Range;

/// `pkey_alloc(2)` without restrictions: the key is open until the calling thread closes it.
pub(super) fn alloc() -> Option<u8> {
    // SAFETY: pkey_alloc takes two numbers: no flags, no access disabled.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
    u8::try_from(key).ok()
}

/// `pkey_free(2)`. Only for keys that were allocated to count them, and that no page carries.
pub(super) fn free(key: u8) {
    // SAFETY: pkey_free takes a number.
    unsafe { libc::syscall(libc::SYS_pkey_free, libc::c_int::from(key)) };
}

/// `pkey_mprotect(2)`.
///
/// # Safety
/// As `mprotect(2)`: nothing relies on `pages` having another protection. Every thread that uses
/// the pages has `key` open.
pub(super) unsafe fn tag(pages: &Range<usize>, protection: libc::c_int, key: u8) -> Result<(), i32> {
    let (start, bytes) = (pages.start, pages.end - pages.start);
    // SAFETY: the caller keeps this function's contract.
    let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, start, bytes, protection, libc::c_int::from(key)) };
    if result == 0 { Ok(()) } else { Err(nix::errno::Errno::last_raw()) }
}
