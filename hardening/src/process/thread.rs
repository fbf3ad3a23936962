//! A tenant's thread: the stack that it runs on, and its clock.

use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

use super::PAGE_BYTES;

/// The CPU time of one thread, readable from another.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of the thread that reads it.
    pub(crate) const OWN: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    /// The clock of the calling thread, to be read only while this thread lives. After the thread
    /// has ended, the clock reads as zero; or, if the kernel has given the thread's id to another
    /// thread of this process, as that thread's time.
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

    /// The CPU time that the thread has used so far.
    #[must_use]
    pub fn now(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is writable. If no thread of the process has the clock's id, the call
        // fails and leaves `time` zero.
        unsafe { libc::clock_gettime(self.0, &raw mut time) };
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

/// Makes all threads allocate from libc's one main arena. An arena for each thread would cost
/// memory for each tenant. Also, libc reads a file in `/proc` before it shrinks such an arena, and
/// the filter ends the process for that. Call this before any other thread starts.
pub fn share_one_arena() {
    // SAFETY: mallopt takes two numbers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Declares to the scheduler that the calling thread computes and does not wait. When such a thread
/// wakes up, it preempts neither the supervisor nor another tenant's thread, so a run of a
/// millisecond is rarely interrupted. The threads that watch tenants keep the ordinary policy, so
/// that they can preempt a tenant's thread. If the kernel refuses, nothing changes.
fn schedule_as_batch() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are readable; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}

/// How many bytes of a signal stack a handler can use, besides the frame that the kernel puts
/// there.
const SIGNAL_STACK_BYTES: usize = 64 * 1024;

/// A thread on a stack of its caller's choice, with a signal stack of its own.
#[derive(Debug)]
pub struct Thread {
    thread: libc::pthread_t,
    /// Only [`Self::join`] unmaps it, because a thread that was not joined may still need it.
    signal_stack: ManuallyDrop<MmapRaw>,
}

/// What a new thread starts with.
struct Beginning {
    name: CString,
    body: Box<dyn FnOnce() + Send>,
    signal_stack: Range<usize>,
}

/// Starts a thread on `stack`, and makes the lowest page of `stack` a guard page. The thread keeps
/// its signal stack for its whole life. That stack has no key, because handlers run with every key
/// but 0 closed.
///
/// # Safety
/// `stack` is mapped readable and writable, in whole pages, and nothing else uses it until the
/// thread has been joined.
///
/// # Errors
/// Out of memory, or the kernel starts no thread.
pub unsafe fn spawn(name: CString, stack: &Range<usize>, body: Box<dyn FnOnce() + Send>) -> io::Result<Thread> {
    // The frame contains the processor's registers: those of AVX-512 and AMX take 11 KiB.
    // SAFETY: getauxval has no preconditions.
    let frame = usize::try_from(unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) }).unwrap_or(0);
    let signal_bytes = SIGNAL_STACK_BYTES + frame.next_multiple_of(PAGE_BYTES);
    let signal_stack = MmapOptions::new().len(PAGE_BYTES + signal_bytes).map_anon()?;
    let signal_stack = MmapRaw::from(signal_stack);
    for guard in [stack.start, signal_stack.as_mut_ptr() as usize] {
        // SAFETY: the page is the lowest of a stack that this function was given or has mapped, and
        // is not in use yet.
        if unsafe { libc::mprotect(guard as *mut libc::c_void, PAGE_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let usable = signal_stack.as_mut_ptr() as usize + PAGE_BYTES;
    let beginning = Box::new(Beginning { name, body, signal_stack: usable..usable + signal_bytes });
    let check = |errno| if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) };

    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the attributes are writable.
    check(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    // SAFETY: initialised by the call above.
    let mut attributes = unsafe { attributes.assume_init() };
    let (base, bytes) = (stack.start as *mut libc::c_void, stack.end - stack.start);
    // SAFETY: the attributes are valid; the memory is the caller's to give.
    check(unsafe { libc::pthread_attr_setstack(&raw mut attributes, base, bytes) })?;
    let (mut thread, beginning) = (0, Box::into_raw(beginning));
    // SAFETY: the attributes are valid; `begin` runs once and takes back the box.
    let started = unsafe { libc::pthread_create(&raw mut thread, &raw const attributes, begin, beginning.cast()) };
    // SAFETY: the attributes are valid and not used again.
    unsafe { libc::pthread_attr_destroy(&raw mut attributes) };
    if started != 0 {
        // SAFETY: no thread has taken the box.
        drop(unsafe { Box::from_raw(beginning) });
        return Err(io::Error::from_raw_os_error(started));
    }
    Ok(Thread { thread, signal_stack: ManuallyDrop::new(signal_stack) })
}

extern "C" fn begin(beginning: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `spawn` passes the box on to this thread only.
    let Beginning { name, body, signal_stack } = *unsafe { Box::from_raw(beginning.cast::<Beginning>()) };
    // The thread sets its own name: to name another thread, libc opens a file in `/proc`. The
    // kernel cuts long names.
    // SAFETY: the name is a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    drop(name);
    schedule_as_batch();
    let (base, bytes) = (signal_stack.start as *mut libc::c_void, signal_stack.len());
    let new = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: bytes };
    // SAFETY: `new` names memory that stays mapped until the thread has been joined.
    if unsafe { libc::sigaltstack(&raw const new, ptr::null_mut()) } == 0 {
        body();
    }
    ptr::null_mut()
}

impl Thread {
    /// Waits for the thread to end and unmaps its signal stack.
    pub fn join(self) {
        let Self { thread, signal_stack } = self;
        // SAFETY: `thread` was started joinable and this value, the only one, joins it once.
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
        drop(ManuallyDrop::into_inner(signal_stack));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_clock_of_a_thread_advances_with_its_work() {
        let clock = CpuClock::of_this_thread().unwrap();
        let (start, begun) = (clock.now(), Instant::now());
        while clock.now() == start {
            assert!(begun.elapsed() < Duration::from_secs(10), "the clock stands still");
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_thread_runs_on_the_stack_that_it_was_given() {
        let map = MmapRaw::from(MmapOptions::new().len(1 << 20).map_anon().unwrap());
        let stack = map.as_mut_ptr() as usize..map.as_mut_ptr() as usize + map.len();
        let (send, receive) = std::sync::mpsc::channel();
        let body = Box::new(move || send.send(ptr::from_ref(&send) as usize).unwrap());
        // SAFETY: the memory was mapped above and is kept until the join.
        let thread = unsafe { spawn(c"given".to_owned(), &stack, body) }.unwrap();
        assert!(stack.contains(&receive.recv_timeout(Duration::from_secs(10)).unwrap()));
        thread.join();
    }
}
