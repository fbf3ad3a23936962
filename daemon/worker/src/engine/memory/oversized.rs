//! An object that is larger than its run's limit, which the run was ended for. V8 makes it all the
//! same, and writes all of it before it looks whether it has to end: a string of a gigabyte, from
//! parts that are few. Nobody will read it. So as long as the run lasts, the watchdog gives its
//! pages back, all but the first ones, where V8's own notes are, and the last ones.
//!
//! To the rest of V8 that is a tenant that writes zeros into its own sandbox, which V8's sandbox
//! is there for.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use enisle_hardening::islands::Island;
use enisle_hardening::islands::frozen::{self, MOST_PLACES};

use super::account;

/// Where the object of a place is.
#[derive(Debug)]
struct Oversized {
    start: AtomicUsize,
    /// 0 as long as it is only expected; [`NONE`] otherwise.
    bytes: AtomicUsize,
}

const NONE: usize = usize::MAX;

/// Pages at the beginning of an object that stay: the notes that V8 keeps in front of it.
const STAY: usize = 1 << 20;
/// Pages at its end that stay, where V8 commits in steps of 256 KiB: the highest digit of a `BigInt`
/// is never zero, and V8 reads past its digits if it is.
const END_STAYS: usize = 512 << 10;

static OVERSIZED: [Oversized; MOST_PLACES] =
    [const { Oversized { start: AtomicUsize::new(0), bytes: AtomicUsize::new(NONE) } }; MOST_PLACES];

thread_local! {
    /// How large the object is that comes next, which nobody will read.
    static EXPECTED: Cell<usize> = const { Cell::new(NONE) };
    /// How many there were in this run.
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

fn of_place(place: u32) -> Option<&'static Oversized> {
    OVERSIZED.get(usize::try_from(place).ok()?)
}

/// So many of them come one after the other, within one operation of V8's.
const MOST_OVERSIZED: u32 = 8;

/// An object of so many bytes comes next on this thread, or later in this run. False if there were
/// too many. The pages of the last one are given back; those before it have been written.
pub(super) fn expect(bytes: usize) -> bool {
    let seen = SEEN.get() + 1;
    SEEN.set(seen);
    if seen > MOST_OVERSIZED {
        return false;
    }
    EXPECTED.set(bytes);
    // As long as it is only expected, the one before is looked after.
    if let Some(object) = of_place(account::place()) {
        let _ = object.bytes.compare_exchange(NONE, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
    true
}

/// Whether a mapping of so many bytes may be that object.
pub(super) fn is_expected(bytes: usize) -> bool {
    bytes >= EXPECTED.get()
}

/// The object is there, in the sandbox of this thread.
pub(super) fn is_at(start: usize, bytes: usize) {
    if let Some(object) = of_place(account::place()) {
        EXPECTED.set(NONE);
        object.start.store(start, Ordering::Release);
        object.bytes.store(bytes, Ordering::Release);
    }
}

/// The run is over, and the object gone.
pub(crate) fn forget() {
    EXPECTED.set(NONE);
    SEEN.set(0);
    if let Some(object) = of_place(account::place()) {
        object.bytes.store(NONE, Ordering::Release);
    }
}

/// Gives back the pages of the oversized object of a place. Says whether there is one, or may be
/// one soon.
pub(crate) fn trim(place: u32) -> bool {
    let Some(object) = of_place(place) else { return false };
    let bytes = object.bytes.load(Ordering::Acquire);
    if bytes == NONE {
        return false;
    }
    let start = object.start.load(Ordering::Acquire);
    let sandbox = usize::try_from(place).ok().and_then(|place| frozen::zone().island(place)).map(Island::sandbox);
    if let Some(sandbox) = sandbox
        && bytes > STAY + END_STAYS
        && sandbox.contains(&start)
        && bytes <= sandbox.end - start
    {
        // SAFETY: the pages are in the sandbox of the place. V8 puts up with whatever is written
        // there, and reads nothing of this object before it ends the run.
        unsafe { libc::madvise((start + STAY) as *mut c_void, bytes - STAY - END_STAYS, libc::MADV_DONTNEED) };
    }
    true
}
