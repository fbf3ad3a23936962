//! What a worker process holds, seen from outside, and who of its tenants holds it.
//!
//! What is on an island is its tenant's. What is anywhere else belongs to nobody by its address;
//! when it has grown since the last look, the growth is credited to the tenants' threads by the
//! page faults that each has had meanwhile, because who touches memory first makes the kernel find
//! it. A credit decides who is looked at first, and nothing else.

use std::collections::BTreeMap;

use enisle_cordon::blame::holds_most;
use enisle_hardening::tags::{Bytes, Held};
use enisle_wire::control::Slot;

/// What was found of one process.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// Committed outside the islands before anybody lived there.
    began: u64,
    held: Held,
    /// Of what is outside, by whose thread seems to have made the process hold it.
    credits: BTreeMap<Slot, u64>,
    faults: BTreeMap<Slot, u64>,
    /// Looks in a row that found too much outside.
    looks_over: u32,
}

/// What a process holds outside its tenants' islands, when that is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unexplained {
    pub(crate) bytes: u64,
    pub(crate) most: u64,
    /// How many looks in a row have found it.
    pub(crate) looks: u32,
}

impl Holdings {
    /// Of a process without a tenant.
    pub(crate) fn new(held: Held) -> Self {
        Self { began: held.outside.committed, held, ..Self::default() }
    }

    /// Takes in a look: what is held, and the page faults of every tenant's thread since it began.
    pub(crate) fn look(&mut self, held: Held, faults: BTreeMap<Slot, u64>) {
        let before = self.held.outside.committed.max(self.began);
        let growth = held.outside.committed.saturating_sub(before);
        let since = |slot: &Slot, now: u64| now.saturating_sub(self.faults.get(slot).copied().unwrap_or_default());
        let new: BTreeMap<_, _> = faults.iter().map(|(slot, now)| (*slot, since(slot, *now))).collect();
        let all: u64 = new.values().sum();
        for (slot, faults) in new.iter().filter(|(_, faults)| **faults > 0) {
            *self.credits.entry(*slot).or_default() += share(growth, *faults, all);
        }
        self.held = held;
        self.faults = faults;
        // What was given back was everybody's, for all that is known.
        let (grown, credited) = (self.grown(), self.credits.values().sum::<u64>());
        if credited > grown {
            self.credits.values_mut().for_each(|credit| *credit = share(grown, *credit, credited));
        }
    }

    /// What a tenant seems to hold in all.
    pub(crate) fn of(&self, slot: Slot) -> u64 {
        self.island(slot).committed + self.credit(slot)
    }

    fn credit(&self, slot: Slot) -> u64 {
        self.credits.get(&slot).copied().unwrap_or_default()
    }

    /// What is on a tenant's island.
    pub(crate) fn island(&self, slot: Slot) -> Bytes {
        self.held.islands.get(slot.0 as usize).copied().unwrap_or_default()
    }

    /// All that is committed.
    pub(crate) fn committed(&self) -> u64 {
        self.held.islands.iter().map(|bytes| bytes.committed).sum::<u64>() + self.held.outside.committed
    }

    /// What is outside the islands and was not there in the beginning.
    fn grown(&self) -> u64 {
        self.held.outside.committed.saturating_sub(self.began)
    }

    /// Of that, what none of these has a credit for.
    fn uncredited(&self, tenants: &[Slot]) -> u64 {
        self.grown().saturating_sub(tenants.iter().map(|slot| self.credit(*slot)).sum())
    }

    /// Whether there is more outside the islands than may be; counted over looks.
    pub(crate) fn too_much(&mut self, most: u64) -> Option<Unexplained> {
        let bytes = self.grown();
        if bytes <= most {
            self.looks_over = 0;
            return None;
        }
        self.looks_over = self.looks_over.saturating_add(1);
        Some(Unexplained { bytes, most, looks: self.looks_over })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.looks_over > 0
    }

    /// Who of these holds most of everything, if that is known.
    pub(crate) fn largest(&self, tenants: &[Slot]) -> Option<Slot> {
        self.first(tenants, |slot| self.of(slot))
    }

    /// Who of these holds most of what is outside the islands, if that is known.
    pub(crate) fn largest_outside(&self, tenants: &[Slot]) -> Option<Slot> {
        self.first(tenants, |slot| self.credit(slot))
    }

    fn first(&self, tenants: &[Slot], held: impl Fn(Slot) -> u64) -> Option<Slot> {
        let held: Vec<_> = tenants.iter().map(|slot| held(*slot)).collect();
        holds_most(&held, self.uncredited(tenants)).and_then(|place| tenants.get(place).copied())
    }
}

/// `part` of `all` parts of `whole`.
fn share(whole: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(islands: [u64; 2], outside: u64) -> Held {
        let bytes = |mib: u64| Bytes { resident: 0, committed: mib * MIB };
        Held { islands: islands.map(bytes).to_vec(), outside: bytes(outside) }
    }

    fn faults(counts: [u64; 2]) -> BTreeMap<Slot, u64> {
        (0..).map(Slot).zip(counts).collect()
    }

    const BOTH: [Slot; 2] = [Slot(0), Slot(1)];

    #[test]
    fn growth_is_credited_to_whose_thread_had_the_faults() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.look(held([10, 20], 100), faults([500, 900]));
        assert_eq!(holdings.largest(&BOTH), Some(Slot(1)), "by its island");
        holdings.look(held([10, 20], 500), faults([500 + 3000, 900 + 1000]));
        assert_eq!((holdings.of(Slot(0)), holdings.of(Slot(1))), (310 * MIB, 120 * MIB));
        assert_eq!(holdings.largest(&BOTH), Some(Slot(0)));
        holdings.look(held([10, 20], 300), faults([3500, 1900]));
        assert_eq!(holdings.of(Slot(0)), 160 * MIB, "what was given back is taken from all credits");
        holdings.look(held([10, 20], 90), faults([3500, 1900]));
        assert_eq!((holdings.of(Slot(0)), holdings.largest_outside(&BOTH)), (10 * MIB, None));
    }

    #[test]
    fn what_nobody_has_touched_makes_nobody_the_largest() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.look(held([10, 20], 500), faults([0, 0]));
        assert_eq!((holdings.largest(&BOTH), holdings.largest_outside(&BOTH)), (None, None));
        // And if whoever has the credit is not there any more.
        holdings.look(held([10, 20], 900), faults([0, 5]));
        assert_eq!(holdings.largest_outside(&BOTH), Some(Slot(1)));
        assert_eq!(holdings.largest(&[Slot(0)]), None);
    }

    #[test]
    fn too_much_is_counted_until_it_is_not_any_more() {
        let mut holdings = Holdings::new(held([0, 0], 100));
        holdings.look(held([0, 0], 200), faults([0, 0]));
        let looks = |holdings: &mut Holdings, most| holdings.too_much(most * MIB).map(|found| found.looks);
        assert_eq!([looks(&mut holdings, 99), looks(&mut holdings, 99)], [Some(1), Some(2)]);
        assert_eq!([looks(&mut holdings, 100), looks(&mut holdings, 99)], [None, Some(1)]);
    }
}
