//! Checks whether a tenant's thread has the right keys open, at the edges of every call from V8 to
//! the worker.
//!
//! Nothing that a tenant can reach opens a key, and the worker opens none after
//! [`super::cage::Entering::enter`]; V8 opens its JIT key for writing while it writes code, never
//! while it calls. So the register has one value at every edge. Debug builds check each time,
//! release builds occasionally; a wrong value is recorded and ends the process.

use std::cell::Cell;

use enisle_hardening::islands::keys::pkru::Pkru;

thread_local! {
    static EXPECTED: Cell<Option<Pkru>> = const { Cell::new(None) };
    static EDGES: Cell<u32> = const { Cell::new(0) };
}

/// A release build checks one edge of this many. A check costs about 10 ns.
const SAMPLED: u32 = 64;

/// Sets which keys this thread has open from now on.
pub(super) fn expect(pkru: Pkru) {
    EXPECTED.set(Some(pkru));
}

/// Whether V8 has opened the key of its JIT pages on this thread: it is about to write code, or
/// metadata of code.
pub(super) fn writes_code() -> bool {
    EXPECTED.get().is_some_and(|expected| Pkru::current() != expected)
}

/// An edge between V8 and the worker.
#[inline]
pub(in crate::engine) fn edge() {
    let Some(expected) = EXPECTED.get() else { return };
    let edges = EDGES.get().wrapping_add(1);
    EDGES.set(edges);
    if (cfg!(debug_assertions) || edges.is_multiple_of(SAMPLED)) && Pkru::current() != expected {
        enisle_hardening::fault::wrong_keys();
    }
}
