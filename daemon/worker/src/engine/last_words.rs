//! When V8 cannot continue, the thread reports which run it was executing, and ends the process.
//! [`super::memory::heap_limit`] tries to end the run before that happens.

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use enisle_wire::control::{GAVE_UP_EXIT, OUT_OF_MEMORY_EXIT};
use enisle_wire::tenant::{FromTenant, RunId};
use enisle_wire::{MAX_FROM_TENANT_BYTES, encode};

use super::kernel::exit_now;

/// What the thread reports if V8 cannot continue. It is prepared before the run, because reporting
/// must not allocate. Its fields are plain values, because a signal handler reads them, at any
/// point of the thread's life.
#[derive(Debug, Clone, Copy)]
struct LastWords {
    channel: RawFd,
    /// The frame for a run that is over its own memory limit, and the frame for a run that may not
    /// be.
    certain: Frame,
    uncertain: Frame,
    over_its_limit: bool,
}

thread_local! {
    static LAST_WORDS: Cell<Option<LastWords>> = const { Cell::new(None) };
}

// A thread-local with a destructor is registered on its first use, which allocates, and is
// destroyed before its thread has ended. A handler can accept neither.
const _: () = assert!(!std::mem::needs_drop::<Cell<Option<LastWords>>>());

/// `Aborting`, encoded.
#[derive(Debug, Clone, Copy)]
struct Frame {
    bytes: [u8; Self::MOST],
    length: usize,
}

impl Frame {
    /// The header, the tag, a run's identifier and `certain`: at most 25 bytes.
    const MOST: usize = 32;

    /// Empty if the encoding does not fit, which cannot happen.
    fn aborting(id: RunId, certain: bool) -> Self {
        let encoded = encode(&FromTenant::Aborting { id, certain }, MAX_FROM_TENANT_BYTES).unwrap_or_default();
        let mut frame = Self { bytes: [0; Self::MOST], length: 0 };
        if let Some(bytes) = frame.bytes.get_mut(..encoded.len()) {
            bytes.copy_from_slice(&encoded);
            frame.length = encoded.len();
        }
        frame
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// More than V8 requests at a time, except for a single object that is over every limit anyway.
const PLENTY: usize = 64 << 20;

/// V8 cannot continue: reports whose run it was, and ends the process.
pub(super) unsafe extern "C" fn out_of_memory(_: *const std::ffi::c_char, _: &v8::OomDetails) {
    // If the process could still commit plenty of memory, V8 has reached the heap's own limit.
    // Otherwise the process is out of memory.
    if enisle_hardening::fault::may_commit(PLENTY) {
        it_is_over_its_limit();
    }
    enisle_hardening::fault::out_of_memory();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

/// V8 has given up because one of its own checks failed, for example the check that no array
/// exceeds the maximum length. Runs in a signal handler.
pub(super) extern "C" fn gave_up() {
    say_last_words();
    exit_now(GAVE_UP_EXIT);
}

fn say_last_words() {
    if let Some(words) = LAST_WORDS.get() {
        // SAFETY: the descriptor is open as long as its tenant's thread lives, and that is this
        // thread.
        let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(words.channel) };
        let frame = if words.over_its_limit { &words.certain } else { &words.uncertain };
        let _ = nix::unistd::write(channel, frame.bytes());
    }
}

/// The run has reached its own memory limit. The last words say so from now on, however the process
/// ends.
pub(super) fn it_is_over_its_limit() {
    LAST_WORDS.set(LAST_WORDS.get().map(|words| LastWords { over_its_limit: true, ..words }));
}

/// Ends the process: the tenant's native memory is so far over its limit that it is not safe to
/// wait until the run ends.
#[cold]
pub(super) fn over_the_limit() -> ! {
    it_is_over_its_limit();
    enisle_hardening::fault::thread_ends_process();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

/// Ends the process, which has no memory left, whichever tenant took it.
#[cold]
pub(super) fn no_memory_left() -> ! {
    enisle_hardening::fault::out_of_memory();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

/// Prepares what this thread reports if V8 cannot continue with a run.
pub(super) fn remember_last_words(channel: &UnixStream, id: RunId) {
    let (certain, uncertain) = (Frame::aborting(id, true), Frame::aborting(id, false));
    LAST_WORDS.set(Some(LastWords { channel: channel.as_raw_fd(), certain, uncertain, over_its_limit: false }));
}

/// The run is over.
pub(super) fn forget_last_words() {
    LAST_WORDS.set(None);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Read;

    use super::*;

    #[test]
    fn the_frame_of_every_run_fits() {
        for (id, certain) in [(u128::MAX, true), (u128::MAX, false), (0, true)] {
            let id = RunId(id);
            let encoded = encode(&FromTenant::Aborting { id, certain }, MAX_FROM_TENANT_BYTES).unwrap();
            assert_eq!(Frame::aborting(id, certain).bytes(), encoded);
        }
    }

    /// Writes the thread's last words when the thread ends.
    struct AtTheEnd;

    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            it_is_over_its_limit();
            say_last_words();
        }
    }

    thread_local! {
        static AT_THE_END: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
    }

    #[test]
    fn a_thread_has_its_last_words_until_it_has_ended() {
        let (mut ours, channel) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            // Destructors run in reverse order: this one runs last.
            AT_THE_END.set(Some(AtTheEnd));
            remember_last_words(&channel, RunId(7));
            // Open until the end of the test's process.
            std::mem::forget(channel);
        })
        .join()
        .unwrap();
        let mut said = [0; Frame::MOST];
        ours.set_nonblocking(true).unwrap();
        let length = ours.read(&mut said).unwrap();
        assert_eq!(said.get(..length), Some(Frame::aborting(RunId(7), true).bytes()));
    }
}
