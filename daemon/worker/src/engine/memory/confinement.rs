//! Checks whether a tenant's thread has the right keys open, at the edges between V8 and the
//! worker: the points where V8 calls a native or a callback, and where a native returns to V8.
//!
//! Nothing that a tenant can reach opens a key, and the worker opens none between
//! [`super::cage::Entering::enter`] and the end of the tenant's code. V8 opens its JIT key for
//! writing while it writes code, and then calls only the worker's functions for memory
//! ([`super::hooks`]), which are not edges. So PKRU has one value at every edge. Debug builds check
//! every edge, release builds one in [`SAMPLED`]. A wrong value is recorded and ends the process.

use std::cell::Cell;

use enisle_hardening::islands::keys::pkru::Pkru;

thread_local! {
    static EXPECTED: Cell<Option<Pkru>> = const { Cell::new(None) };
    static EDGES: Cell<u32> = const { Cell::new(0) };
}

/// A release build checks one edge in this many. A check costs about 10 ns.
const SAMPLED: u32 = 64;

/// Sets which keys this thread must have open from now on.
pub(super) fn expect(pkru: Pkru) {
    EXPECTED.set(Some(pkru));
}

/// Whether V8 has opened the key of its JIT pages on this thread: it is about to write code, or
/// metadata of code.
pub(super) fn writes_code() -> bool {
    EXPECTED.get().is_some_and(|expected| Pkru::current() != expected)
}

/// Marks an edge between V8 and the worker, and checks it or counts it.
#[inline]
pub(in crate::engine) fn edge() {
    let Some(expected) = EXPECTED.get() else { return };
    let edges = EDGES.get().wrapping_add(1);
    EDGES.set(edges);
    if (cfg!(debug_assertions) || edges.is_multiple_of(SAMPLED)) && Pkru::current() != expected {
        enisle_hardening::fault::wrong_keys();
    }
}
