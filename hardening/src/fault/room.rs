//! How much the process could still commit, found where no file can be opened: in a handler, before
//! the process ends.

use std::ptr;

use crate::islands::{GAP_BYTES, frozen};

/// How much [`room`] looks for: the filter of a tenant's thread lets no mapping be as long as
/// [`GAP_BYTES`].
const MOST_ROOM: usize = GAP_BYTES - LEAST_ROOM;
const LEAST_ROOM: usize = 1 << 16;

/// What the process may still commit (`RLIMIT_DATA`, or the machine's own limit), within 64 KiB.
/// Found by asking for it: a handler can open no file in `/proc`, and a process that has ended has
/// no memory that the supervisor could look at.
pub(super) fn room() -> usize {
    let (mut found, mut step) = (0, (MOST_ROOM + LEAST_ROOM) / 2);
    while step >= LEAST_ROOM {
        if may_commit(found + step) {
            found += step;
        }
        step /= 2;
    }
    found
}

/// Whether the process may still commit so much. Found by asking for it.
#[must_use]
pub fn may_commit(bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses a place where nothing is.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return false;
    }
    // On another's island the filter would trap: it stays then, for the moment that is left.
    if !frozen::is_in_zone(at as usize) {
        // SAFETY: it was mapped just now, and nobody uses it.
        unsafe { libc::munmap(at, bytes) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_may_still_commit_is_found_within_its_bound() {
        // A bound of the process's own, which other tests of this process must not meet.
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { nix::unistd::fork() }.unwrap();
        if child.is_child() {
            let own = std::fs::read_to_string("/proc/self/statm").ok();
            let pages = own.and_then(|own| own.split_whitespace().nth(5)?.parse::<u64>().ok()).unwrap_or(0);
            let bound = pages * 4096 + (300 << 20);
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_DATA, bound, bound);
            let found = room() as u64 >> 20;
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(i32::from(!(290..=300).contains(&found))) };
        }
        let nix::unistd::ForkResult::Parent { child } = child else { return };
        let ended = nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
    }
}
