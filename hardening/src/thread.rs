//! A tenant thread's own clock and signal stack.

use std::io;
use std::ptr;
use std::time::Duration;

/// The CPU time of one thread, readable from another.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of the calling thread. It reads as zero once the thread has ended.
    ///
    /// # Errors
    /// The kernel has no per-thread clocks.
    pub fn of_this_thread() -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: pthread_self has no preconditions.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: `this` is a live thread, `clock` is writable.
        match unsafe { libc::pthread_getcpuclockid(this, &raw mut clock) } {
            0 => Ok(Self(clock)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// CPU time used so far.
    #[must_use]
    pub fn now(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is writable; an ended thread's clock makes the call fail, which leaves it zero.
        unsafe { libc::clock_gettime(self.0, &raw mut time) };
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

/// Makes all threads allocate from libc's one main arena. An arena a thread costs memory a tenant, and gives memory back
/// only after reading a file of `/proc`, which the filter answers by ending the process. To be called before any thread.
pub fn share_one_arena() {
    // SAFETY: mallopt takes two numbers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Tells the scheduler that this process computes and does not wait: it neither preempts the supervisor when it wakes up
/// nor trades places in the middle of a run that is over in a millisecond. Without effect where it is refused.
pub fn schedule_as_batch() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are readable; 0 is the calling thread, whose policy its threads inherit.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}

/// Usable bytes of a signal stack: a frame with AVX-512 and AMX state takes about 11 KiB, a handler of ours little more.
const SIGNAL_STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

/// A signal stack of the calling thread's own, with a guard page below, so that a handler runs when the thread's own
/// stack is used up. It has to be dropped on the thread that made it.
#[derive(Debug)]
pub struct SignalStack {
    base: *mut libc::c_void,
}

impl SignalStack {
    /// # Errors
    /// No memory, or the kernel refused the stack.
    pub fn install() -> io::Result<Self> {
        let bytes = GUARD_BYTES + SIGNAL_STACK_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: GUARD_BYTES is inside the mapping.
        let usable = unsafe { base.byte_add(GUARD_BYTES) };
        // SAFETY: the range is the rest of the mapping made above.
        if unsafe { libc::mprotect(usable, SIGNAL_STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let new = libc::stack_t { ss_sp: usable, ss_flags: 0, ss_size: SIGNAL_STACK_BYTES };
        // SAFETY: `new` names memory that stays mapped until this value is dropped on the same thread.
        if unsafe { libc::sigaltstack(&raw const new, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let off = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: disabling names no memory; this thread does not run on the stack, or its Drop would not run.
        unsafe { libc::sigaltstack(&raw const off, ptr::null_mut()) };
        // SAFETY: the mapping is this value's own and no stack any more.
        unsafe { libc::munmap(self.base, GUARD_BYTES + SIGNAL_STACK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_thread_advances_with_its_work() {
        let clock = CpuClock::of_this_thread().unwrap();
        let start = clock.now();
        while clock.now() == start {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_signal_stack_is_installed_and_removed() {
        let current = || {
            let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
            // SAFETY: `stack` is writable.
            unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
            (stack.ss_flags, stack.ss_size)
        };
        let stack = SignalStack::install().unwrap();
        assert_eq!(current(), (0, SIGNAL_STACK_BYTES));
        drop(stack);
        assert_eq!(current().0, libc::SS_DISABLE);
    }
}
