//! The account of a tenant's thread: counters of the bytes that the thread holds outside the heap
//! of the isolate in a run, and the two thresholds at which the worker acts.
//!
//! One tenant is one thread, so the counters are thread-local. [`super::heap`] and
//! [`super::commons`] count here what they take and give back. [`super::quota`] decides the limits,
//! and what a script sees of them. Whenever native memory is taken, the sum of the counters is
//! compared with the thresholds. Above the first, the run checks its memory at the next point where
//! V8 can collect garbage. Above the last, the process ends.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use enisle_hardening::fault;
use enisle_hardening::islands::frozen::MOST_SLOTS;

use crate::engine::last_words;

/// How a run checks its memory: the function that V8 calls at an interrupt.
pub(in crate::engine) type Look = unsafe extern "C" fn(v8::UnsafeRawIsolatePtr, *mut c_void);

/// Stands for the slot of a thread that is not a tenant's.
const NO_SLOT: u32 = u32::MAX;

thread_local! {
    static SLOT: Cell<u32> = const { Cell::new(NO_SLOT) };
    static BUFFERS: Cell<usize> = const { Cell::new(0) };
    static NATIVE: Cell<usize> = const { Cell::new(0) };
    /// The heaps of kept isolates, without the isolate that is in a run.
    static SHELVED: Cell<usize> = const { Cell::new(0) };
    /// At how many bytes the run checks its memory.
    static NEXT_LOOK: Cell<usize> = const { Cell::new(usize::MAX) };
    /// At how many bytes the process ends.
    static LAST: Cell<usize> = const { Cell::new(usize::MAX) };
    /// The isolate handle of the run that checks; null if there is none.
    static RUN: Cell<*const v8::IsolateHandle> = const { Cell::new(ptr::null()) };
    /// How the run checks; set together with `RUN`.
    static LOOK: Cell<Option<Look>> = const { Cell::new(None) };
}

/// For each slot, native memory that other threads have given back and that the slot's own thread
/// has not subtracted yet.
static GIVEN_BACK: [AtomicUsize; MOST_SLOTS] = [const { AtomicUsize::new(0) }; MOST_SLOTS];

/// A thread has entered a new cage, and its account begins at zero.
pub(super) fn reset(slot: u32) {
    SLOT.set(slot);
    BUFFERS.set(0);
    NATIVE.set(0);
    SHELVED.set(0);
    NEXT_LOOK.set(usize::MAX);
    LAST.set(usize::MAX);
}

/// The slot of the calling thread.
pub(super) fn slot() -> u32 {
    SLOT.get()
}

/// All that is on the account.
pub(super) fn used() -> usize {
    SHELVED.get().saturating_add(used_outside_heaps())
}

/// Buffers and native memory.
pub(in crate::engine) fn used_outside_heaps() -> usize {
    BUFFERS.get().saturating_add(native())
}

/// Bytes of buffers, without native memory.
pub(in crate::engine) fn buffers() -> usize {
    BUFFERS.get()
}

/// Bytes of native memory, without buffers.
pub(super) fn native() -> usize {
    if let Some(given_back) = given_back(SLOT.get()) {
        NATIVE.set(NATIVE.get().saturating_sub(given_back.swap(0, Ordering::Relaxed)));
    }
    NATIVE.get()
}

fn given_back(slot: u32) -> Option<&'static AtomicUsize> {
    GIVEN_BACK.get(usize::try_from(slot).ok()?)
}

/// Sets how many bytes of heap are on the shelf.
pub(super) fn shelve(bytes: usize) {
    SHELVED.set(bytes);
}

/// Counts the bytes of a buffer that was granted.
pub(super) fn take_buffer(bytes: usize) {
    BUFFERS.set(BUFFERS.get().saturating_add(bytes));
}

pub(super) fn give_back_buffer(bytes: usize) {
    BUFFERS.set(BUFFERS.get().saturating_sub(bytes));
}

/// Counts native memory. It is never refused.
#[inline]
pub(super) fn take_native(bytes: usize) {
    let native = NATIVE.get().saturating_add(bytes);
    NATIVE.set(native);
    if native.saturating_add(BUFFERS.get()).saturating_add(SHELVED.get()) > NEXT_LOOK.get().min(LAST.get()) {
        near_the_limit();
    }
}

/// Counts native memory outside the island, and adds it to the slot's account beside the fault page
/// ([`fault::account`]). The supervisor can attribute this memory only by that account.
#[inline]
pub(super) fn take_outside(bytes: usize) {
    take_native(bytes);
    if let Some(account) = fault::account(SLOT.get()) {
        account.take(bytes);
    }
}

/// Subtracts native memory that the calling thread itself has taken.
#[inline]
pub(super) fn give_back_native(bytes: usize) {
    NATIVE.set(NATIVE.get().saturating_sub(bytes));
}

/// The inverse of [`take_outside`]. `slot` may be another tenant's, because ICU's caches belong to
/// the whole process.
#[inline]
pub(super) fn give_back_outside(slot: u32, bytes: usize) {
    if let Some(account) = fault::account(slot) {
        account.give_back(bytes);
    }
    if slot == SLOT.get() {
        give_back_native(bytes);
    } else if let Some(given_back) = given_back(slot) {
        given_back.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A run, while its native memory is held against a limit.
#[derive(Debug)]
pub(in crate::engine) struct Held<'a>(std::marker::PhantomData<&'a v8::IsolateHandle>);

/// From now on the run of `handle` checks its memory by `look` when it passes the threshold that
/// [`look_at`] sets; at `last` bytes the process ends.
pub(super) fn hold(handle: &v8::IsolateHandle, look: Look, last: usize) -> Held<'_> {
    RUN.set(handle);
    LOOK.set(Some(look));
    LAST.set(last);
    Held(std::marker::PhantomData)
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        no_marks();
        RUN.set(ptr::null());
        LOOK.set(None);
    }
}

/// Sets at how many bytes the run checks its memory next.
pub(super) fn look_at(bytes: usize) {
    NEXT_LOOK.set(bytes);
}

/// How many bytes are left until the process ends.
pub(super) fn until_last() -> usize {
    LAST.get().saturating_sub(used())
}

/// Stops the checks: the process ends when `bytes` more are taken.
pub(super) fn end_after(bytes: usize) {
    NEXT_LOOK.set(usize::MAX);
    LAST.set(used().saturating_add(bytes));
}

/// Removes both thresholds: nothing happens, however much is taken.
pub(super) fn no_marks() {
    NEXT_LOOK.set(usize::MAX);
    LAST.set(usize::MAX);
}

#[cold]
fn near_the_limit() {
    let used = used();
    if used > LAST.get() {
        last_words::over_the_limit();
    }
    if used <= NEXT_LOOK.get() {
        return;
    }
    // No further check is requested until this one has set the next threshold.
    NEXT_LOOK.set(usize::MAX);
    ask_to_look();
}

/// Has the run check its memory as soon as it can.
#[cold]
pub(super) fn ask_to_look() {
    // SAFETY: null, or what the `Held` of this thread borrows.
    if let (Some(run), Some(look)) = (unsafe { RUN.get().as_ref() }, LOOK.get()) {
        run.request_interrupt(look, ptr::null_mut());
    }
}

#[cfg(test)]
pub(super) fn next_look() -> usize {
    NEXT_LOOK.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_another_thread_gives_back_comes_off_the_owners_account() {
        reset(2);
        take_native(1000);
        std::thread::spawn(|| give_back_outside(2, 400)).join().unwrap();
        assert_eq!(used(), 600);
    }
}
