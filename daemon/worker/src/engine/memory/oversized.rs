//! An object that is larger than its run's limit, and for which the run was ended. V8 makes the
//! object all the same, and writes all of it before V8 checks whether the run must end. It may be a
//! string of a gigabyte, joined from a few parts. Nothing will read the object. So while the run
//! lasts, the watchdog gives the object's pages back, except the first ones, where V8's own
//! metadata is, and the last ones.
//!
//! To the rest of V8 this is like a tenant that writes zeros into its own sandbox, which V8's
//! sandbox is designed for.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use enisle_hardening::islands::Island;
use enisle_hardening::islands::frozen::{self, MOST_SLOTS};

use super::account;

/// Where the object of a slot is.
#[derive(Debug)]
struct Oversized {
    start: AtomicUsize,
    /// 0 while the object is only expected; [`NONE`] if there is none.
    bytes: AtomicUsize,
}

const NONE: usize = usize::MAX;

/// How much stays at the beginning of an object: the metadata that V8 keeps in front of it.
const STAY: usize = 1 << 20;
/// How much stays at the end of an object, where V8 commits in steps of 256 KiB. The highest digit
/// of a `BigInt` must not become zero, because V8 would then read past the digits.
const END_STAYS: usize = 512 << 10;

static OVERSIZED: [Oversized; MOST_SLOTS] =
    [const { Oversized { start: AtomicUsize::new(0), bytes: AtomicUsize::new(NONE) } }; MOST_SLOTS];

thread_local! {
    /// The size of the object that is expected next; [`NONE`] if none is.
    static EXPECTED: Cell<usize> = const { Cell::new(NONE) };
    /// How many such objects this run has made.
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

fn of_slot(slot: u32) -> Option<&'static Oversized> {
    OVERSIZED.get(usize::try_from(slot).ok()?)
}

/// The most such objects in a run: they follow each other within one operation of V8.
const MOST_OVERSIZED: u32 = 8;

/// An object of `bytes` comes next on this thread, or later in this run. False if the run has made
/// too many. Only the latest object's pages are given back: V8 no longer writes the earlier
/// objects.
pub(super) fn expect(bytes: usize) -> bool {
    let seen = SEEN.get() + 1;
    SEEN.set(seen);
    if seen > MOST_OVERSIZED {
        return false;
    }
    EXPECTED.set(bytes);
    // While the new object is only expected, the pages of the one before it are still given back.
    if let Some(object) = of_slot(account::slot()) {
        let _ = object.bytes.compare_exchange(NONE, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
    true
}

/// Whether `bytes` that V8 commits may be the expected object.
pub(super) fn is_expected(bytes: usize) -> bool {
    bytes >= EXPECTED.get()
}

/// The expected object is at `start`, in the sandbox of this thread.
pub(super) fn is_at(start: usize, bytes: usize) {
    if let Some(object) = of_slot(account::slot()) {
        EXPECTED.set(NONE);
        object.start.store(start, Ordering::Release);
        object.bytes.store(bytes, Ordering::Release);
    }
}

/// The run is over, and its objects are gone.
pub(crate) fn forget() {
    EXPECTED.set(NONE);
    SEEN.set(0);
    if let Some(object) = of_slot(account::slot()) {
        object.bytes.store(NONE, Ordering::Release);
    }
}

/// Gives back the pages of the oversized object of a slot. Returns whether there is one, or may be
/// soon.
pub(crate) fn trim(slot: u32) -> bool {
    let Some(object) = of_slot(slot) else { return false };
    let bytes = object.bytes.load(Ordering::Acquire);
    if bytes == NONE {
        return false;
    }
    let start = object.start.load(Ordering::Acquire);
    let sandbox = usize::try_from(slot).ok().and_then(|slot| frozen::zone().island(slot)).map(Island::sandbox);
    if let Some(sandbox) = sandbox
        && bytes > STAY + END_STAYS
        && sandbox.contains(&start)
        && bytes <= sandbox.end - start
    {
        // SAFETY: the pages are in the sandbox of the slot. V8 tolerates whatever is written there,
        // and reads nothing of this object before it ends the run.
        unsafe { libc::madvise((start + STAY) as *mut c_void, bytes - STAY - END_STAYS, libc::MADV_DONTNEED) };
    }
    true
}
