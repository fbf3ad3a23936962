//! How much memory a worker process holds, read from outside, and which of its tenants holds it.
//!
//! Memory on an island belongs to the island's tenant. Other memory does not show by its address
//! which tenant holds it. It is credited in two ways:
//!
//! | memory outside the islands | credited to |
//! |---|---|
//! | on an account that the worker keeps | the slot that the worker names |
//! | the rest, touched since the last reading | the slot whose page faults alone explain it |
//!
//! Two kinds of a thread's page faults explain nothing outside the islands: those for memory on its
//! own island, and those for memory that went on its account. That memory is on the account, or the
//! slot gave it back and libc may keep it.
//!
//! Memory that several slots may have touched is credited to none of them, and a busy neighbour's
//! page faults are enough for that. So a slot gains little by falsifying its account. If the
//! account is too low, the best for the slot is that its memory stays uncredited; if the account is
//! too high, the slot blames itself.

use std::collections::BTreeMap;

use enisle_cordon::blame::holds_most;
use enisle_hardening::fault::Taken;
use enisle_hardening::islands::tags::{Bytes, Held};
use enisle_wire::control::Slot;

use crate::workers::threads::Faults;

/// One reading of a process's memory.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// As reported by the kernel.
    pub(crate) held: Held,
    /// The page faults before and after `held` was read. All memory in `held` had its page fault
    /// before the second count.
    pub(crate) faults: [Faults; 2],
    /// What each slot has taken outside the islands, as the worker alleges.
    pub(crate) taken: BTreeMap<Slot, Taken>,
}

impl Reading {
    fn on_accounts(&self) -> u64 {
        self.taken.values().map(|taken| taken.now).fold(0, u64::saturating_add)
    }
}

/// A page fault brings in this much memory, unless the kernel uses huge pages without being asked.
const FAULT_BYTES: u64 = 4096;

/// What the readings of one process have shown.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// What was outside the islands before the first tenant moved in.
    began: Bytes,
    last: Reading,
    /// Memory outside the islands and on no account, by the slot whose thread must have touched it.
    touched: BTreeMap<Slot, u64>,
    /// How many readings in a row found too much outside the islands.
    readings_over: u32,
}

/// What a process holds outside its tenants' islands, if that is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unexplained {
    pub(crate) bytes: u64,
    pub(crate) most: u64,
    /// How many readings in a row have found too much.
    pub(crate) readings: u32,
}

impl Holdings {
    /// Starts from a process that has no tenant.
    pub(crate) fn new(held: Held) -> Self {
        Self { began: held.outside, last: Reading { held, ..Reading::default() }, ..Self::default() }
    }

    pub(crate) fn record(&mut self, reading: Reading) {
        let before = std::mem::replace(&mut self.last, reading);
        let grown = |of: fn(&Self, &Reading) -> u64| of(self, &self.last).saturating_sub(of(self, &before));
        // Memory that is taken off an account makes the unexplained part grow, but it was there
        // before. So the smaller of the two growths counts.
        let growth = grown(Self::unexplained).min(grown(Self::brought_in));
        let ([since, _], [_, now]) = (&before.faults, &self.last.faults);
        let all = now.all.saturating_sub(since.all);
        for (slot, faults) in &now.of {
            let own = faults.saturating_sub(count(&since.of, *slot));
            let others = all.saturating_sub(own).saturating_mul(FAULT_BYTES);
            let resident = |held| island(held, *slot).resident;
            let on_island = resident(&self.last.held).saturating_sub(resident(&before.held));
            // Memory that went on the account is there, or was given back: then it may lie free in
            // libc, and belongs to no tenant.
            let given = taken(&self.last, *slot).ever.saturating_sub(taken(&before, *slot).ever);
            let own = own.saturating_mul(FAULT_BYTES).saturating_sub(on_island).saturating_sub(given);
            let certain = growth.saturating_sub(others).min(own);
            // A thread that gives back most of what it touches need not be the holder of the rest.
            if certain >= own / 2 {
                *self.touched.entry(*slot).or_default() += certain;
            }
        }
        // Memory that was given back may have been any slot's, so all credits for touched memory
        // shrink in proportion.
        let most = self.grown().saturating_sub(self.last.on_accounts());
        let touched = self.touched.values().sum::<u64>();
        if touched > most {
            self.touched.values_mut().for_each(|bytes| *bytes = share(most, *bytes, touched));
        }
    }

    /// What the process holds outside the islands beyond what it began with, counting only memory
    /// that is both committed and resident: file pages are only resident, reserves only committed.
    fn brought_in(&self, Reading { held: Held { outside, .. }, .. }: &Reading) -> u64 {
        let committed = outside.committed.saturating_sub(self.began.committed);
        committed.min(outside.resident.saturating_sub(self.began.resident))
    }

    /// The part of [`Self::brought_in`] that is on no account.
    fn unexplained(&self, reading: &Reading) -> u64 {
        self.brought_in(reading).saturating_sub(reading.on_accounts())
    }

    /// What a tenant seems to hold in total.
    pub(crate) fn of(&self, slot: Slot) -> u64 {
        self.island(slot).committed.saturating_add(self.credit(slot))
    }

    fn credit(&self, slot: Slot) -> u64 {
        taken(&self.last, slot).now.saturating_add(count(&self.touched, slot))
    }

    /// What is on a tenant's island.
    pub(crate) fn island(&self, slot: Slot) -> Bytes {
        island(&self.last.held, slot)
    }

    /// Everything that is committed.
    pub(crate) fn committed(&self) -> u64 {
        let Held { islands, outside } = &self.last.held;
        islands.iter().map(|bytes| bytes.committed).sum::<u64>() + outside.committed
    }

    /// What is committed outside the islands beyond what the process began with.
    fn grown(&self) -> u64 {
        self.last.held.outside.committed.saturating_sub(self.began.committed)
    }

    /// The part of [`Self::grown`] that is credited to none of these slots.
    fn uncredited(&self, tenants: &[Slot]) -> u64 {
        let credited = tenants.iter().map(|slot| self.credit(*slot)).fold(0, u64::saturating_add);
        self.grown().saturating_sub(credited)
    }

    /// What is held outside the islands, if it is more than `most`; counts the readings in a row
    /// that found too much.
    pub(crate) fn too_much(&mut self, most: u64) -> Option<Unexplained> {
        let bytes = self.grown();
        if bytes <= most {
            self.readings_over = 0;
            return None;
        }
        self.readings_over = self.readings_over.saturating_add(1);
        Some(Unexplained { bytes, most, readings: self.readings_over })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.readings_over > 0
    }

    /// Which of these slots holds most of everything, if known.
    pub(crate) fn largest(&self, tenants: &[Slot]) -> Option<Slot> {
        self.first(tenants, |slot| self.of(slot))
    }

    /// Which of these slots holds most of what is outside the islands, if known.
    pub(crate) fn largest_outside(&self, tenants: &[Slot]) -> Option<Slot> {
        self.first(tenants, |slot| self.credit(slot))
    }

    fn first(&self, tenants: &[Slot], held: impl Fn(Slot) -> u64) -> Option<Slot> {
        let held: Vec<_> = tenants.iter().map(|slot| held(*slot)).collect();
        holds_most(&held, self.uncredited(tenants)).and_then(|index| tenants.get(index).copied())
    }
}

fn count(of: &BTreeMap<Slot, u64>, slot: Slot) -> u64 {
    of.get(&slot).copied().unwrap_or_default()
}

fn taken(reading: &Reading, slot: Slot) -> Taken {
    reading.taken.get(&slot).copied().unwrap_or_default()
}

fn island(held: &Held, slot: Slot) -> Bytes {
    held.islands.get(slot.0 as usize).copied().unwrap_or_default()
}

/// Shares out `whole`: the amount for `part` of `all` parts.
fn share(whole: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Memory in MiB, all of it both committed and resident.
    fn held(islands: [u64; 2], outside: u64) -> Held {
        let bytes = |mib: u64| Bytes { resident: mib * MIB, committed: mib * MIB };
        Held { islands: islands.map(bytes).to_vec(), outside: bytes(outside) }
    }

    fn both(counts: [u64; 2]) -> BTreeMap<Slot, u64> {
        (0..).map(Slot).zip(counts).collect()
    }

    /// A reading with as many page faults as bring in `faults_mib`, and with `taken_mib` on the
    /// accounts.
    fn reading(held: Held, faults_mib: [u64; 2], taken_mib: [u64; 2]) -> Reading {
        let counts = faults_mib.map(|mib| mib * MIB / FAULT_BYTES);
        let faults = Faults { all: counts.iter().sum(), of: both(counts) };
        let taken = (0..).map(Slot).zip(taken_mib.map(|mib| Taken { now: mib * MIB, ever: mib * MIB }));
        Reading { held, faults: [faults.clone(), faults], taken: taken.collect() }
    }

    const BOTH: [Slot; 2] = [Slot(0), Slot(1)];

    #[test]
    fn an_account_credits_memory_despite_a_neighbour_with_more_page_faults() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        // The second tenant fills slowly; the first keeps using up and giving back its heap.
        for step in 1..=100 {
            holdings.record(reading(held([20, 20], 100 + 5 * step), [60 * step, 6 * step], [0, 5 * step]));
        }
        assert_eq!((holdings.of(Slot(0)), holdings.of(Slot(1))), (20 * MIB, 520 * MIB));
        assert_eq!((holdings.largest(&BOTH), holdings.largest_outside(&BOTH)), (Some(Slot(1)), Some(Slot(1))));
        // When the second tenant has left, the first one does not take its place.
        assert_eq!(holdings.largest_outside(&[Slot(0)]), None);
    }

    #[test]
    fn memory_on_no_account_is_uncredited_if_two_tenants_may_have_touched_it() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        for step in 1..=100 {
            holdings.record(reading(held([20, 20], 100 + 5 * step), [60 * step, 6 * step], [0, 0]));
        }
        assert_eq!((holdings.of(Slot(0)), holdings.of(Slot(1))), (20 * MIB, 20 * MIB));
        assert_eq!((holdings.largest(&BOTH), holdings.largest_outside(&BOTH)), (None, None));
    }

    #[test]
    fn memory_on_no_account_is_credited_to_the_thread_that_must_have_touched_it() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([10, 20], 100), [10, 20], [0, 0]));
        assert_eq!(holdings.largest(&BOTH), Some(Slot(1)), "by its island");
        holdings.record(reading(held([10, 60], 500), [10 + 400, 20 + 90], [0, 0]));
        assert_eq!((holdings.of(Slot(0)), holdings.of(Slot(1))), (320 * MIB, 60 * MIB));
        assert_eq!(holdings.largest_outside(&BOTH), Some(Slot(0)));
        holdings.record(reading(held([10, 60], 200), [410, 110], [0, 0]));
        assert_eq!(holdings.of(Slot(0)), 110 * MIB, "what was given back is taken off");
        holdings.record(reading(held([10, 60], 90), [410, 110], [0, 0]));
        assert_eq!((holdings.of(Slot(0)), holdings.largest_outside(&BOTH)), (10 * MIB, None));
    }

    #[test]
    fn no_tenant_is_credited_with_more_than_its_own_page_faults_explain() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([0, 0], 500), [3, 0], [0, 0]));
        assert_eq!((holdings.of(Slot(0)), holdings.largest_outside(&BOTH)), (3 * MIB, None));
        // The growth counts only if it is both committed and resident, so not reserves that no
        // thread has touched, and not file pages.
        let one_sided = |resident: u64, committed: u64| {
            let mut held = held([0, 0], 0);
            held.outside = Bytes { resident: resident * MIB, committed: committed * MIB };
            held
        };
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(one_sided(100, 500), [0, 300], [0, 0]));
        holdings.record(reading(one_sided(100, 500), [0, 600], [0, 0]));
        assert_eq!((holdings.of(Slot(1)), holdings.largest_outside(&BOTH)), (0, None));
    }

    #[test]
    fn page_faults_of_ended_threads_or_during_a_reading_are_not_attributed_to_others() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        let mut gone = reading(held([0, 0], 500), [400, 400], [0, 0]);
        gone.faults[1].of.remove(&Slot(1));
        holdings.record(gone);
        assert_eq!(holdings.of(Slot(0)), 0);
        // The page faults happened between the first count of the last reading and the reading of
        // its memory.
        let mut holdings = Holdings::new(held([0, 0], 100));
        let mut first = reading(held([0, 0], 100), [0, 400], [0, 0]);
        first.faults[0] = Faults::default();
        holdings.record(first);
        holdings.record(reading(held([0, 0], 500), [400, 400], [0, 0]));
        assert_eq!(holdings.of(Slot(0)), 0);
    }

    #[test]
    fn memory_that_was_taken_and_given_back_is_not_credited_because_libc_keeps_it() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        let mut reading = reading(held([0, 0], 200), [90, 10], [1, 20]);
        reading.taken.insert(Slot(0), Taken { now: MIB, ever: 300 * MIB });
        holdings.record(reading);
        assert_eq!((holdings.of(Slot(0)), holdings.of(Slot(1))), (MIB, 20 * MIB));
    }

    #[test]
    fn a_thread_that_gives_back_most_of_what_it_touches_is_not_credited_with_the_rest() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([0, 0], 150), [500, 10], [0, 0]));
        assert_eq!(holdings.of(Slot(0)), 0);
    }

    #[test]
    fn a_forged_account_blames_its_forger_or_no_tenant() {
        let honest = |forged| {
            let mut holdings = Holdings::new(held([0, 0], 100));
            let mut reading = reading(held([0, 0], 500), [400, 90], [0, 80]);
            reading.taken.insert(Slot(0), Taken { now: forged, ever: 0 });
            holdings.record(reading);
            (holdings.largest_outside(&BOTH), holdings.largest(&BOTH), holdings.of(Slot(1)))
        };
        for (forged, who) in [(0, Some(Slot(0))), (320 * MIB, Some(Slot(0))), (u64::MAX, Some(Slot(0)))] {
            assert_eq!(honest(forged), (who, who, 80 * MIB), "{forged}");
        }
        // A slot that empties its account does not shift its memory to a neighbour that has page
        // faults.
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([0, 0], 500), [320, 80], [320, 80]));
        holdings.record(reading(held([0, 0], 500), [320, 480], [0, 80]));
        assert_eq!((holdings.largest_outside(&BOTH), holdings.of(Slot(1))), (None, 80 * MIB));
        // Either slot may have touched the memory on no account, so it is credited to neither. It
        // is more than what the honest slot holds, so that slot is not named either.
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([0, 0], 500), [400, 500], [0, 80]));
        assert_eq!(holdings.largest_outside(&BOTH), None);
    }

    #[test]
    fn readings_over_the_bound_are_counted_until_one_is_within_it() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.record(reading(held([0, 0], 200), [0, 0], [0, 0]));
        let looks = |holdings: &mut Holdings, most| holdings.too_much(most * MIB).map(|found| found.readings);
        assert_eq!([looks(&mut holdings, 99), looks(&mut holdings, 99)], [Some(1), Some(2)]);
        assert_eq!([looks(&mut holdings, 100), looks(&mut holdings, 99)], [None, Some(1)]);
    }
}
