//! The slots of one worker process: the state of each, in one map under one lock.

use std::collections::BTreeMap;
use std::time::Instant;

use enisle_wire::control::{OverrunCause, Slot};
use enisle_wire::tenant::RunId;

use crate::workers::birth::START_TIMEOUT;

/// A run that its worker could not end, or whose remains the worker could not dispose of in time.
/// The process was killed for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun {
    pub(crate) run: RunId,
    pub(crate) cause: OverrunCause,
}

/// The state of a slot that has a thread, or had one.
#[derive(Debug, Default)]
struct SlotState {
    /// The tenant's thread has reported that it is ready, and has not ended.
    confined: bool,
    /// A tenant has taken the slot, which was on standby until then.
    taken: bool,
    /// When the tenant left; its last work may still be ending.
    left: Option<Instant>,
    /// The tenant must leave, because the process holds more memory than its tenants explain.
    unwanted: bool,
    overrun: Option<Overrun>,
}

impl SlotState {
    /// Whether a tenant may be running here: it has taken the slot, the thread is ready, and the
    /// tenant has not left, or left only a moment ago.
    fn is_inhabited(&self) -> bool {
        self.taken && self.confined && self.left.is_none_or(|left| left.elapsed() < 2 * START_TIMEOUT)
    }
}

/// Every slot that ever had a thread.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<Slot, SlotState>);

impl Slots {
    /// The slot gets a thread, and is on standby.
    pub(super) fn prepare(&mut self, slot: Slot) {
        self.0.insert(slot, SlotState::default());
    }

    /// A tenant takes the slot.
    pub(super) fn take(&mut self, slot: Slot) {
        self.with(slot, |state| state.taken = true);
    }

    /// The slots that tenants ever took.
    pub(super) fn ever_taken(&self) -> Vec<Slot> {
        self.0.iter().filter(|(_, state)| state.taken).map(|(slot, _)| *slot).collect()
    }

    /// How many slots ever had a thread.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The slots whose tenants are there.
    pub(super) fn inhabited(&self) -> Vec<Slot> {
        self.0.iter().filter(|(_, state)| state.is_inhabited()).map(|(slot, _)| *slot).collect()
    }

    /// The inhabited slots whose tenants need not leave.
    pub(super) fn wanted(&self) -> Vec<Slot> {
        self.inhabited().into_iter().filter(|slot| !self.is_unwanted(*slot)).collect()
    }

    pub(super) fn is_unwanted(&self, slot: Slot) -> bool {
        self.0.get(&slot).is_some_and(|state| state.unwanted)
    }

    pub(super) fn send_away(&mut self, slot: Slot) {
        self.with(slot, |state| state.unwanted = true);
    }

    pub(super) fn note_confined(&mut self, slot: Slot) {
        self.with(slot, |state| state.confined = true);
    }

    /// How many threads have reported that they are ready, and have not ended.
    pub(super) fn confined(&self) -> usize {
        self.0.values().filter(|state| state.confined).count()
    }

    pub(super) fn note_ended(&mut self, slot: Slot) {
        self.with(slot, |state| state.confined = false);
    }

    pub(super) fn note_left(&mut self, slot: Slot) {
        self.with(slot, |state| state.left = Some(Instant::now()));
    }

    pub(super) fn note_overrun(&mut self, slot: Slot, overrun: Overrun) {
        self.with(slot, |state| state.overrun = Some(overrun));
    }

    pub(super) fn overrun(&self, slot: Slot) -> Option<Overrun> {
        self.0.get(&slot).and_then(|state| state.overrun)
    }

    /// Changes a slot's state. A slot that never had a thread has none, so reports about it are
    /// ignored.
    fn with(&mut self, slot: Slot, change: impl FnOnce(&mut SlotState)) {
        if let Some(state) = self.0.get_mut(&slot) {
            change(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Slot = Slot(0);
    const B: Slot = Slot(1);

    #[test]
    fn a_slot_whose_thread_is_not_ready_or_has_ended_is_not_inhabited() {
        let mut slots = Slots::default();
        for slot in [A, B] {
            slots.prepare(slot);
            slots.take(slot);
        }
        assert_eq!((slots.inhabited(), slots.confined()), (Vec::new(), 0));
        for slot in [A, B] {
            slots.note_confined(slot);
        }
        assert_eq!((slots.inhabited(), slots.confined()), (vec![A, B], 2));
        slots.note_ended(A);
        assert_eq!((slots.inhabited(), slots.ever_taken()), (vec![B], vec![A, B]));
    }

    #[test]
    fn a_slot_on_standby_has_a_thread_and_no_tenant() {
        let mut slots = Slots::default();
        slots.prepare(A);
        slots.note_confined(A);
        assert_eq!((slots.inhabited(), slots.ever_taken(), slots.confined(), slots.count()), (vec![], vec![], 1, 1));
        slots.take(A);
        assert_eq!((slots.inhabited(), slots.ever_taken()), (vec![A], vec![A]));
    }

    #[test]
    fn a_slot_whose_tenant_has_just_left_is_still_inhabited() {
        let mut slots = Slots::default();
        slots.prepare(A);
        slots.take(A);
        slots.note_confined(A);
        slots.note_left(A);
        assert_eq!(slots.inhabited(), [A]);
    }

    #[test]
    fn a_tenant_that_is_sent_away_is_unwanted_and_its_neighbour_is_not() {
        let mut slots = Slots::default();
        for slot in [A, B] {
            slots.prepare(slot);
            slots.take(slot);
        }
        for slot in [A, B] {
            slots.note_confined(slot);
        }
        slots.send_away(A);
        assert_eq!((slots.wanted(), slots.is_unwanted(A), slots.is_unwanted(B)), (vec![B], true, false));
    }

    #[test]
    fn reports_about_a_slot_that_was_never_taken_are_ignored() {
        let mut slots = Slots::default();
        slots.prepare(A);
        slots.take(A);
        slots.note_confined(B);
        slots.note_overrun(B, Overrun { run: RunId(7), cause: OverrunCause::Cpu });
        assert_eq!((slots.count(), slots.confined(), slots.overrun(B)), (1, 0, None));
    }
}
