//! How much a tenant may hold outside V8's heap: array buffers, and "native" memory, which is what
//! V8, ICU, C++ and Rust allocate for the tenant.
//!
//! V8 has no limit for either. The archive's patches call the functions below before they allocate
//! a buffer, and [`super::heap`] and [`super::commons`] count on the thread's account
//! ([`super::account`]) which pages they take and give back. The account also includes the heaps of
//! kept isolates ([`crate::engine::isolate::shelf`]).
//!
//! A script must not be able to learn from its account what another tenant's thread has done. ICU
//! keeps caches for all threads, and an entry is on the account of the thread that adds it. So the
//! exact cost of a formatter shows whether another tenant has used it before. Therefore the
//! refusals that a script sees depend only on its own buffers, and on what else it held when its
//! turn began, in whole MiB. The exact account only ends runs.
//!
//! What happens over the limit:
//!
//! * A buffer that does not fit what the script sees: V8 collects garbage, then the script gets a
//!   `RangeError`.
//! * A buffer that fits what the script sees, but not the exact account: V8 collects garbage, and
//!   the run ends if that is not enough.
//! * Native memory: little can be refused, because ICU writes to where the memory should be,
//!   whether or not there is any. At the next check V8 collects garbage, which frees what dead
//!   objects hold, and the run ends if that is not enough.
//! * Native memory that exceeds the limit by more than [`SLACK`], within one operation of V8: a
//!   large block is refused to ICU, and the run ends. For anything else the process ends, after a
//!   report of whose run it was.

use std::cell::Cell;

use super::account::{self, Held, Look, native, used};
use super::{commons, confinement, heap};

/// V8 aborts if it cannot move an on-heap typed array of up to this size out of the heap
/// (`v8_typed_array_max_size_in_heap`). So a buffer of this size is always granted, and counted.
const ALWAYS_GRANTED: usize = 64;

/// What a tenant's isolates take in native memory before they run a script: two at a time, about
/// 0.7 MiB each.
const OWN: usize = 2 << 20;

/// The most native memory that is not held against a tenant. When its scripts hold nothing, [`OWN`]
/// is left, and caches of V8 and ICU, which all threads use and nothing can give back. This is less
/// than the 16 MiB that a tenant at rest may hold beyond its limit (SPECIFICATION).
const MOST_BASE: usize = 14 << 20;

/// How far native memory may get over the limit before the run notices. V8 checks when a loop has
/// executed a certain number of bytes of bytecode (`--interrupt-budget`). That is about a thousand
/// turns of a short loop, each of which may make a formatter of 30 KiB.
const SLACK: usize = 48 << 20;

/// How much more heap, and how much more native memory, a run gets until it notices that it was
/// ended. With [`SLACK`] that is less than 64 MiB.
pub(super) const LAST_ROOM: usize = 8 << 20;

/// How far apart checks are at least: checks closer together are not worth their garbage
/// collections.
const CLOSE: usize = 1 << 20;

/// A script sees the native memory that it holds rounded up to a multiple of this.
const SEEN_STEP: usize = 1 << 20;
/// This is added before rounding. So a script that takes up to this much native memory in a turn is
/// still refused a buffer before the run is ended for it.
const RESERVE: usize = 1 << 20;

/// The native memory that a script sees each of its buffers take. V8's objects for a buffer take
/// less.
const SEEN_OF_BUFFER: usize = 512;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// What the tenant's thread held when nothing of its scripts was left.
    static BASE: Cell<usize> = const { Cell::new(0) };
    /// How much native memory the script sees: as it was when the turn began.
    static SEEN: Cell<usize> = const { Cell::new(0) };
    #[cfg(feature = "attack-natives")]
    static EXACTLY: Cell<bool> = const { Cell::new(false) };
    /// The last buffer that V8 requested fits what the script sees, but not the exact account.
    static EXHAUSTED: Cell<bool> = const { Cell::new(false) };
    /// The run has requested more of the process's memory than a tenant gets.
    static TO_END: Cell<bool> = const { Cell::new(false) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A thread has entered a new cage.
pub(super) fn reset(slot: u32) {
    account::reset(slot);
    BASE.set(0);
    SEEN.set(0);
    EXHAUSTED.set(false);
    LIMIT.set(usize::MAX);
}

/// Sets the limit of this thread's tenant from now on.
pub(in crate::engine) fn set_limit(bytes: usize) {
    LIMIT.set(bytes.saturating_add(seen_base()));
    REFUSED.set(false);
    EXHAUSTED.set(false);
    TO_END.set(false);
    #[cfg(feature = "attack-natives")]
    EXACTLY.set(false);
    begin_turn();
}

/// A turn begins: the native memory that the script holds now is what it sees until the next turn.
pub(in crate::engine) fn begin_turn() {
    SEEN.set(seen(native()));
}

fn seen(native: usize) -> usize {
    native.saturating_add(RESERVE).next_multiple_of(SEEN_STEP)
}

/// For the attack harness: from now on the script sees the exact account.
#[cfg(feature = "attack-natives")]
pub(in crate::engine) fn see_exactly() {
    EXACTLY.set(true);
}

/// How much native memory is not held against the tenant.
fn base() -> usize {
    BASE.get().clamp(OWN, MOST_BASE)
}

/// [`base`] as a script sees it, so that a script that holds nothing sees all of its limit.
fn seen_base() -> usize {
    seen(base())
}

/// Nothing of the tenant's scripts is left: what the thread still holds is not theirs.
pub(crate) fn settle() {
    BASE.set(native());
}

/// From now on the run of `handle` checks its native memory by `look` when it nears the limit.
pub(in crate::engine) fn hold(handle: &v8::IsolateHandle, look: Look) -> Held<'_> {
    let used = used();
    let held = account::hold(handle, look, used.max(LIMIT.get()).saturating_add(SLACK));
    look_again(used);
    held
}

/// Sets the next check half way from what is live to the limit, but at least [`CLOSE`] after what
/// is used, and at the limit itself at the latest. Memory that is free in the heaps is used up
/// first, without a check: the account grows only when a heap does.
fn look_again(used: usize) {
    let live = used.saturating_sub(commons::free());
    let half_way = live + LIMIT.get().saturating_sub(live) / 2;
    account::look_at(half_way.max(used.saturating_add(CLOSE)).min(LIMIT.get()));
}

/// How much more heap or native memory the run may take before the process ends.
pub(super) fn last_room() -> usize {
    account::until_last().max(LAST_ROOM)
}

/// The run has been ended: it gets at most [`LAST_ROOM`] until it notices.
pub(super) fn no_more() {
    account::end_after(LAST_ROOM);
}

/// Lifts all limits for this run: the attack harness shows what they prevent.
#[cfg(feature = "attack-natives")]
pub(in crate::engine) fn lift() {
    LIMIT.set(usize::MAX);
    account::no_marks();
}

/// Whether this run's limits are lifted.
pub(super) fn is_lifted() -> bool {
    cfg!(feature = "attack-natives") && LIMIT.get() == usize::MAX
}

/// Whether the tenant holds more than its limit. If not, the next check is set.
pub(in crate::engine) fn is_over() -> bool {
    let over = is_truly_above(LIMIT.get());
    if !over {
        look_again(used());
    }
    over
}

/// Whether the tenant holds more than `bytes`, beyond what is not held against it.
pub(in crate::engine) fn is_above(bytes: usize) -> bool {
    is_truly_above(bytes.saturating_add(base()))
}

/// Gives back to the kernel the pages of the calling thread's tenant in which nothing is live any
/// more.
pub(crate) fn trim() {
    heap::trim();
    commons::trim();
}

fn is_truly_above(bytes: usize) -> bool {
    // Pages in which nothing is live any more are given back first.
    used() > bytes && {
        trim();
        used() > bytes
    }
}

/// Like [`is_above`], for the limit minus `bytes`.
pub(in crate::engine) fn is_above_limit_less(bytes: usize) -> bool {
    is_truly_above(LIMIT.get().saturating_sub(bytes))
}

/// How many bytes the tenant may still take, by the exact account.
pub(in crate::engine) fn left() -> usize {
    LIMIT.get().saturating_sub(used())
}

/// How many bytes the script sees it may still take. Nothing that another thread does within a turn
/// changes that.
fn seen_left() -> usize {
    #[cfg(feature = "attack-natives")]
    if EXACTLY.get() {
        return left();
    }
    LIMIT.get().saturating_sub(account::buffers().saturating_add(SEEN.get()))
}

/// Whether the script may have `bytes` more. If they fit what the script sees, but not the exact
/// account, requests the check that ends the run.
pub(in crate::engine) fn has_room(bytes: usize) -> bool {
    if bytes > seen_left() {
        return false;
    }
    let fits = bytes <= left() || {
        // Pages in which nothing is live any more are given back first.
        trim();
        bytes <= left()
    };
    EXHAUSTED.set(!fits);
    if !fits {
        // The check ends the run.
        account::ask_to_look();
    }
    fits
}

/// Whether the last buffer did not fit the exact account although the script saw room for it, or
/// the run is to end anyway.
pub(super) fn is_exhausted() -> bool {
    EXHAUSTED.get() || TO_END.get()
}

/// The run has requested more of the process's memory than a tenant gets: ends it.
pub(super) fn end_the_run() {
    TO_END.set(true);
    account::ask_to_look();
}

/// Whether `bytes` more of native memory would end the process. If so, ends the run instead, and
/// the caller must do without them.
pub(super) fn ends_instead(bytes: usize) -> bool {
    let refused = bytes > account::until_last();
    if refused {
        end_the_run();
    }
    refused
}

/// Sets how many bytes of heap are on the shelf.
pub(in crate::engine) fn shelve(bytes: usize) {
    account::shelve(if is_lifted() { 0 } else { bytes });
}

/// Whether an allocation was refused since the last call. V8 collects garbage before it accepts a
/// refusal, and then calls its near-heap-limit callback, though the heap itself may be nearly
/// empty.
pub(super) fn take_refused() -> bool {
    REFUSED.replace(false)
}

/// What a buffer of `bytes` takes: V8's allocator uses steps of 128 (isolate-group.h).
const fn cost(bytes: usize) -> usize {
    bytes.saturating_add(127) / 128 * 128
}

/// Puts a buffer of `bytes` on the account, or refuses it.
fn charge(bytes: usize) -> bool {
    if bytes > cost(ALWAYS_GRANTED) && !has_room(bytes) {
        REFUSED.set(true);
        return false;
    }
    account::take_buffer(bytes);
    SEEN.set(SEEN.get().saturating_add(SEEN_OF_BUFFER));
    true
}

fn refund(bytes: usize) {
    SEEN.set(SEEN.get().saturating_sub(SEEN_OF_BUFFER));
    account::give_back_buffer(bytes);
}

/// V8 calls this before it allocates a buffer, or reserves the full length of a resizable one.
#[unsafe(no_mangle)]
extern "C" fn v8_tenant_take(bytes: usize) -> bool {
    confinement::edge();
    charge(cost(bytes))
}

#[unsafe(no_mangle)]
extern "C" fn v8_tenant_give_back(bytes: usize) {
    refund(cost(bytes));
}

/// The largest buffer that is worth requesting. V8 asks this first, and answers a larger request
/// with a `RangeError`, without collecting garbage for it.
#[unsafe(no_mangle)]
extern "C" fn v8_tenant_most() -> usize {
    LIMIT.get().saturating_sub(seen_base()).max(ALWAYS_GRANTED)
}

#[cfg(test)]
mod tests {
    use super::super::account::{give_back_outside, next_look, take_native};
    use super::*;

    #[test]
    fn an_account_refuses_above_its_limit_and_grants_again_after_a_refund() {
        reset(0);
        set_limit(1000);
        assert!(charge(OWN + 900));
        assert!(!charge(200));
        assert!(take_refused() && !take_refused());
        refund(500);
        assert!(charge(200));
    }

    #[test]
    fn what_v8_needs_unconditionally_is_granted_and_counted() {
        reset(0);
        set_limit(10);
        assert!(charge(OWN));
        assert!(charge(cost(64)));
        assert_eq!(used(), OWN + cost(64));
        assert!(!charge(cost(129)));
    }

    #[test]
    fn what_a_script_sees_within_a_turn_does_not_depend_on_a_caches_content() {
        let refused_from = |taken: usize, given_back: usize| {
            reset(6);
            take_native(OWN);
            set_limit(100 << 20);
            take_native(taken);
            give_back_outside(6, given_back);
            std::thread::spawn(move || give_back_outside(6, given_back)).join().unwrap();
            (0..).position(|_| !charge(64 << 10)).unwrap()
        };
        let seen = refused_from(0, 0);
        assert_eq!([refused_from(30_000, 0), refused_from(500_000, 1000)], [seen; 2]);
        begin_turn();
        assert!(!has_room(1));
    }

    #[test]
    fn a_buffer_that_fits_the_visible_account_but_not_the_exact_one_ends_the_run() {
        reset(7);
        set_limit(10 << 20);
        take_native(seen_base() + (4 << 20));
        assert!(charge(6 << 20) && !is_exhausted());
        assert!(!charge(1 << 20) && is_exhausted());
        // Garbage has gone meanwhile.
        refund(6 << 20);
        assert!(charge(1 << 20) && !is_exhausted());
        // A buffer that is over both is an error in the script.
        assert!(!charge(20 << 20) && !is_exhausted());
    }

    #[test]
    fn native_memory_counts_beside_buffers_and_is_never_refused() {
        reset(1);
        set_limit(1000);
        take_native(seen_base() + 900);
        assert!(!charge(200) && !is_over());
        take_native(200);
        assert!(is_over());
        give_back_outside(1, 300);
        assert!(!is_over() && charge(200));
    }

    #[test]
    fn memory_that_stays_after_all_scripts_is_not_held_against_the_next() {
        reset(4);
        take_native(12 << 20);
        set_limit(8 << 20);
        assert!(is_over());
        settle();
        set_limit(8 << 20);
        assert!(!is_over() && charge(8 << 20) && !charge(1000));
        // What is more than `MOST_BASE` is held against it.
        refund(8 << 20);
        take_native(MOST_BASE);
        settle();
        set_limit(8 << 20);
        assert!(is_over());
    }

    #[test]
    fn checks_come_closer_and_the_last_one_is_at_the_limit() {
        reset(3);
        set_limit(100 << 20);
        let mut looks = Vec::new();
        loop {
            let used = next_look().min(LIMIT.get());
            looks.push(used);
            look_again(used);
            if next_look() == used {
                break;
            }
        }
        assert_eq!(looks.last(), Some(&LIMIT.get()));
        assert!(looks.len() < 16, "{looks:?}");
    }
}
