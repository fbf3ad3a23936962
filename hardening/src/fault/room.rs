//! How much memory the process could still commit. The handler measures this before the process
//! ends, and cannot open a file to do so.

use std::ptr;

use crate::islands::{GAP_BYTES, frozen};

/// The most that [`room`] looks for, because the filter of a tenant's thread traps a mapping of
/// [`GAP_BYTES`] or more.
const MOST_ROOM: usize = GAP_BYTES - LEAST_ROOM;
const LEAST_ROOM: usize = 1 << 16;

/// How many bytes the process may still commit (`RLIMIT_DATA`, or the machine's own limit), to
/// within 64 KiB. Found by trying, because the handler cannot open a file in `/proc`, and because
/// the supervisor cannot measure the memory of a process that has ended.
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

/// Whether the process may still commit `bytes`. Found by trying.
#[must_use]
pub fn may_commit(bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses an address where nothing is mapped.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return false;
    }
    // In the zone the mapping may be on another tenant's island, where the filter would trap the
    // unmapping. Such a mapping stays until the process ends.
    if !frozen::is_in_zone(at as usize) {
        // SAFETY: the memory was mapped above, and nothing uses it.
        unsafe { libc::munmap(at, bytes) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_may_still_commit_is_measured_within_its_limit() {
        // The limit would affect other tests of this process, so a child sets it for itself.
        // SAFETY: the child reads a file, makes system calls and ends. Reading allocates, which
        // glibc allows after a fork: it holds the allocator's locks while it forks.
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
