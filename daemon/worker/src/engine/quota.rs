//! How many bytes of array buffers a tenant may hold.
//!
//! V8 has no such limit: backing stores lie outside the heap. The archive's patch asks the
//! functions below, whose names it knows, before it allocates one, and tells them when it frees it.
//!
//! One tenant is one thread, and V8 runs single-threaded, so the account is thread-local. A refused allocation is a
//! `RangeError` in the script.

use std::cell::Cell;

/// V8 aborts where it cannot move an on-heap typed array of up to this size out of the heap
/// (`v8_typed_array_max_size_in_heap`), so that much is always granted, and counted.
const ALWAYS_GRANTED: usize = 64;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A thread begins with a new cage.
pub(super) fn reset() {
    USED.set(0);
    LIMIT.set(usize::MAX);
}

/// Sets the limit of this thread's tenant for what comes now.
pub(super) fn set_limit(bytes: usize) {
    LIMIT.set(bytes);
    REFUSED.set(false);
}

/// Bytes that the tenant may still take.
pub(super) fn left() -> usize {
    LIMIT.get().saturating_sub(USED.get())
}

pub(super) fn used() -> usize {
    USED.get()
}

/// Whether an allocation was refused since the last call. V8 collects garbage before it believes a refusal, and then
/// tells its near-heap-limit callback, though the heap itself may be nearly empty.
pub(super) fn take_refused() -> bool {
    REFUSED.replace(false)
}

/// Takes `bytes` from the account, or refuses.
fn charge(bytes: usize) -> bool {
    if bytes > left() && bytes > ALWAYS_GRANTED {
        REFUSED.set(true);
        return false;
    }
    USED.set(USED.get().saturating_add(bytes));
    true
}

fn refund(bytes: usize) {
    USED.set(USED.get().saturating_sub(bytes));
}

/// V8 asks before it allocates a buffer, or reserves a resizable one, whole.
#[unsafe(no_mangle)]
extern "C" fn v8_tenant_take(bytes: usize) -> bool {
    super::confinement::edge();
    charge(bytes)
}

#[unsafe(no_mangle)]
extern "C" fn v8_tenant_give_back(bytes: usize) {
    refund(bytes);
}

/// V8 asks this first and answers a larger request with a `RangeError` without collecting garbage for it.
#[unsafe(no_mangle)]
extern "C" fn v8_tenant_most() -> usize {
    LIMIT.get().max(ALWAYS_GRANTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_refuses_over_its_limit_and_grants_again_after_a_refund() {
        reset();
        set_limit(1000);
        assert!(charge(900));
        assert!(!charge(200));
        assert!(take_refused() && !take_refused());
        refund(500);
        assert!(charge(200));
    }

    #[test]
    fn what_v8_cannot_do_without_is_granted_and_counted() {
        reset();
        set_limit(10);
        assert!(charge(64));
        assert_eq!(used(), 64);
        assert!(!charge(65));
    }
}
