//! What a run says when V8 cannot go on: whose it was, before the process ends; and what is done at the heap limit, so that it
//! does not come to that.

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use enisle_wire::control::{GAVE_UP_EXIT, OUT_OF_MEMORY_EXIT};
use enisle_wire::tenant::{FromTenant, RunId};
use enisle_wire::{MAX_FROM_TENANT_BYTES, encode};

use super::run::RunState;
use super::{confinement, exit_now, memory, quota};
use crate::watchdog::{Cause, Watched};

/// What the thread says if V8 cannot go on: prepared, because saying it must not allocate. Plain
/// values, because a handler reads them, which may do so at any point of the thread's life.
#[derive(Debug, Clone, Copy)]
struct LastWords {
    channel: RawFd,
    /// The frame when the run is over its own heap limit, and when it may not be.
    certain: Frame,
    uncertain: Frame,
    over_its_limit: bool,
}

thread_local! {
    static LAST_WORDS: Cell<Option<LastWords>> = const { Cell::new(None) };
}

// A thread-local with a destructor would be registered by its first use, which allocates, and be
// gone before its thread is: the handler may do neither.
const _: () = assert!(!std::mem::needs_drop::<Cell<Option<LastWords>>>());

/// `Aborting`, encoded.
#[derive(Debug, Clone, Copy)]
struct Frame {
    bytes: [u8; Self::MOST],
    length: usize,
}

impl Frame {
    /// Header, tag, a run's identifier, and whether it is certain: 25 bytes at the most.
    const MOST: usize = 32;

    /// Empty if it is longer than it can be.
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

/// More than V8 asks for at a time, but for one object that is over every limit anyway.
const PLENTY: usize = 64 << 20;

/// V8 cannot go on: tell whose run it was, and end the process.
pub(super) unsafe extern "C" fn out_of_memory(_: *const std::ffi::c_char, _: &v8::OomDetails) {
    // What the process could still commit says whose want of memory it was.
    // Where the process has plenty, it is the heap's own limit that V8 has met.
    if enisle_hardening::fault::may_commit(PLENTY) {
        it_is_over_its_limit();
    }
    enisle_hardening::fault::out_of_memory();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

/// V8 has given up, by a check of its own: among others that no array is larger than one may be. Runs in a handler.
pub(super) extern "C" fn gave_up() {
    say_last_words();
    exit_now(GAVE_UP_EXIT);
}

fn say_last_words() {
    if let Some(words) = LAST_WORDS.get() {
        // SAFETY: the descriptor is open as long as its tenant's thread, which is this one.
        let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(words.channel) };
        let frame = if words.over_its_limit { &words.certain } else { &words.uncertain };
        let _ = nix::unistd::write(channel, frame.bytes());
    }
}

/// V8 is near a heap limit. Ends the run, and gives V8 the room that it needs to get there: the next allocation may be
/// one of the largest that there are, and refusing it would end the process with everybody in it.
pub(super) unsafe extern "C" fn near_heap_limit(data: *mut std::ffi::c_void, current: usize, initial: usize) -> usize {
    confinement::edge();
    // SAFETY: `data` is the `HeapWatch` that `execute` keeps alive until it has taken this callback away.
    let watch = unsafe { &*data.cast::<HeapWatch<'_>>() };
    // SAFETY: V8 calls this on the isolate's own thread; what comes out is not dropped as an owner.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(watch.isolate) };
    // SAFETY: the function takes nothing and reads a variable of this thread.
    let for_an_object = unsafe { v8_tenant_wanted() } != 0;
    // A refused array buffer makes V8 ask here too, when it has collected garbage in vain. That is
    // not a full heap. An object that does not fit needs its room though, however empty the heap
    // is: V8 ends the process otherwise.
    if !for_an_object && quota::take_refused() && isolate.get_heap_statistics().used_heap_size() < initial / 2 {
        return current;
    }
    if quota::is_lifted() {
        return initial.saturating_add(1280 << 20);
    }
    watch.watched.end(Cause::Memory);
    it_is_over_its_limit();
    // What native memory leaves of the run's last room. A run that fills that as well, with small
    // objects, is not on its way out.
    let room = quota::last_room();
    quota::no_more();
    // SAFETY: as above.
    let wanted = unsafe { v8_tenant_wanted() };
    let limit = current.max(initial.saturating_add(room));
    if current == initial && wanted <= room {
        return limit;
    }
    if wanted < OVERSIZED_FROM || !memory::expect_oversized(wanted) {
        return limit;
    }
    watch.watched.look_now();
    limit.saturating_add(wanted)
}

/// Smaller objects find their room.
const OVERSIZED_FROM: usize = 1 << 20;

fn it_is_over_its_limit() {
    LAST_WORDS.set(LAST_WORDS.get().map(|words| LastWords { over_its_limit: true, ..words }));
}

/// V8 is at a point where a run may be looked at, and this one has asked for it because its native
/// memory nears the limit: what dead objects hold goes, and if that is not enough, so does the run.
pub(super) unsafe extern "C" fn look_at_memory(isolate: v8::UnsafeRawIsolatePtr, _: *mut std::ffi::c_void) {
    // SAFETY: V8 calls this on the isolate's own thread; what comes out is not dropped as an owner.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    isolate.memory_pressure_notification(v8::MemoryPressureLevel::Critical);
    if quota::is_over() || quota::is_exhausted() {
        it_is_over_its_limit();
        quota::no_more();
        if let Some(state) = isolate.get_slot::<RunState>() {
            state.watched.end(Cause::Memory);
        }
    }
}

/// The tenant's native memory is so far over its limit that the run cannot be waited for.
#[cold]
pub(super) fn over_the_limit() -> ! {
    it_is_over_its_limit();
    enisle_hardening::fault::thread_ends_process();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

/// The process has no memory left, whoever has it.
#[cold]
pub(super) fn no_memory_left() -> ! {
    enisle_hardening::fault::out_of_memory();
    say_last_words();
    exit_now(OUT_OF_MEMORY_EXIT);
}

unsafe extern "C" {
    /// The size of the object that V8 asks for room for, in the archive
    /// (`v8/patches/14-large-objects.patch`).
    fn v8_tenant_wanted() -> usize;
}

/// What the callback at the heap limit needs to know.
pub(super) struct HeapWatch<'a> {
    pub(super) watched: &'a Watched,
    pub(super) isolate: v8::UnsafeRawIsolatePtr,
}

/// Prepares what this thread says if V8 cannot go on with a run.
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
    fn the_frame_of_every_run_has_room() {
        for (id, certain) in [(u128::MAX, true), (u128::MAX, false), (0, true)] {
            let id = RunId(id);
            let encoded = encode(&FromTenant::Aborting { id, certain }, MAX_FROM_TENANT_BYTES).unwrap();
            assert_eq!(Frame::aborting(id, certain).bytes(), encoded);
        }
    }

    /// Says the thread's last words when the thread ends.
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
            // Destructors go the way back: this one is the last.
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
