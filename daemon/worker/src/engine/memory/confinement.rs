//! Whether a tenant's thread still has the keys open that it should, asked at the edges of every
//! call from V8 to us.
//!
//! Nothing that a tenant can reach opens a key, and nothing of ours does after
//! [`super::cage::Entering::enter`]; V8 opens its JIT key for writing while it writes code, never
//! while it calls. So the register is one and the same at every edge. Debug builds look each time,
//! release builds once in a while; a register that is wrong is put on record and ends the process.

use std::cell::Cell;

use enisle_hardening::islands::keys::pkru::Pkru;

thread_local! {
    static EXPECTED: Cell<Option<Pkru>> = const { Cell::new(None) };
    static EDGES: Cell<u32> = const { Cell::new(0) };
}

/// A release build looks at one edge of so many. A look costs some 10 ns.
const SAMPLED: u32 = 64;

/// What this thread has open from now on.
pub(super) fn expect(pkru: Pkru) {
    EXPECTED.set(Some(pkru));
}

/// Whether V8 has opened the key of its JIT pages on this thread: it is about to write code, or
/// notes on code.
pub(super) fn writes_code() -> bool {
    EXPECTED.get().is_some_and(|expected| Pkru::current() != expected)
}

/// An edge between V8 and us.
#[inline]
pub(in crate::engine) fn edge() {
    let Some(expected) = EXPECTED.get() else { return };
    let edges = EDGES.get().wrapping_add(1);
    EDGES.set(edges);
    if (cfg!(debug_assertions) || edges.is_multiple_of(SAMPLED)) && Pkru::current() != expected {
        enisle_hardening::fault::wrong_keys();
    }
}
