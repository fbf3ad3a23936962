//! Decides which tenant is to blame for the death of a process.
//!
//! [`blame`] is a pure function from what is known to a verdict. In a process that only ever held
//! one tenant, everything is that tenant's doing. In company, two kinds of death are not blamed on
//! the tenant whose thread they happened on. One is a death for want of memory: the tenants of a
//! process share its bound, and one tenant can exhaust it for another. The other is a fault in the
//! allocator, which the tenants share as well.
//!
//! | what ended a process in company | room left: plenty | pressed | near the bound |
//! |---|---|---|---|
//! | an act that a layer stopped or the supervisor saw | suspect | suspect | suspect |
//! | V8 gave up on a run that is over its own limit | suspect | suspect | suspect |
//! | V8 gave up on any other run, or for memory | suspect | want of memory | want of memory |
//! | a fault at a null page | suspect | want of memory | want of memory |
//! | a fault in the allocator | bisect | want of memory | want of memory |
//! | any other fault | suspect | suspect | want of memory |
//! | no record of the thread | bisect, with points | the same | the same |
//!
//! *Suspect*: the tenant whose thread it was is suspected, and its points stay below the threshold
//! for `solo`. If the thread was one of the process's own, *suspect* means *bisect, with points*.
//! *Want of memory*: no standing changes, and the tenant that holds most lives alone for a while;
//! if that tenant is not known, all are bisected, without points.

use serde::{Deserialize, Serialize};

use crate::signal::{Seen, Signal};

/// When a worker process is short of memory, and how much memory its tenants explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryRules {
    /// A process is near its bound if less than this part of the bound is left, in per cent; 0
    /// switches this off.
    pub near_percent: u32,
    /// With less than this part of the bound left, in per cent, an allocation within a tenant's own
    /// limit can fail. The bound includes 2 GiB for V8 itself and one largest allocation. With
    /// twelve tenants and the default limits, that is a quarter of the bound.
    pub pressed_percent: u32,
    /// How much a process may hold outside its tenants' islands beyond what it began with, in MiB
    /// ...
    pub outside_mb: u64,
    /// ... and how much more for each tenant.
    pub outside_tenant_mb: u64,
}

impl Default for MemoryRules {
    fn default() -> Self {
        Self { near_percent: 5, pressed_percent: 15, outside_mb: 256, outside_tenant_mb: 64 }
    }
}

impl MemoryRules {
    /// What a process may hold outside its tenants' islands beyond what it began with, in bytes.
    #[must_use]
    pub fn most_outside(&self, tenants: usize) -> u64 {
        let each = self.outside_tenant_mb.saturating_mul(tenants as u64);
        self.outside_mb.saturating_add(each).saturating_mul(1 << 20)
    }
}

/// Where a fault was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Below 64 KiB: a field of an object that does not exist, as after a refused allocation.
    NullPage,
    /// In the code of the allocator, or in one of its own checks.
    Allocator,
    Elsewhere,
}

/// Addresses below this are in the null page.
pub const NULL_PAGE_BYTES: u64 = 64 << 10;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A layer stopped something that no script does by accident.
    Attack(Signal),
    Fault(Site),
    /// V8 gave up on one of its own checks. `certain`: the run was over its own limit.
    GaveUp {
        certain: bool,
    },
    /// V8 was refused memory that it cannot do without.
    OutOfMemory {
        certain: bool,
    },
    /// The process was killed for what the supervisor saw a tenant do.
    Did(Signal),
    /// The process ended, or was killed, for something that left no record of the thread.
    Silent(Signal),
    /// The process was killed for a reason that has nothing to do with its tenants.
    Innocent,
}

impl Ending {
    /// The signal that this ending counts as; `None` if it counts against no tenant.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Attack(signal) | Self::Did(signal) | Self::Silent(signal) => Some(signal),
            Self::Fault(_) => Some(Signal::Crash),
            Self::GaveUp { .. } => Some(Signal::EngineAbort),
            Self::OutOfMemory { .. } => Some(Signal::OutOfMemory),
            Self::Innocent => None,
        }
    }
}

/// Whose thread the process died on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The thread of a tenant that lives in the process.
    Here,
    /// The thread of a tenant that has left, or whose thread was not ready yet: that tenant is
    /// innocent.
    NotLiving,
    /// Unknown, or one of the process's own threads.
    Unknown,
}

/// How much of its bound a process had left. If there is no record of that, `Plenty` is assumed,
/// because a process that ends by a genuine fault leaves a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Plenty,
    Pressed,
    Near,
}

impl Room {
    /// Compares the bytes that a process could still commit with its bound.
    #[must_use]
    pub fn of(left: u64, bound: u64, rules: &MemoryRules) -> Self {
        let below = |percent: u32| u128::from(left) * 100 < u128::from(bound) * u128::from(percent);
        match (below(rules.near_percent), below(rules.pressed_percent)) {
            (true, _) => Self::Near,
            (false, true) => Self::Pressed,
            (false, false) => Self::Plenty,
        }
    }
}

/// What follows from a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// The death is blamed on the tenant whose thread it was. If the signal is not certain, that
    /// tenant only may have caused the death.
    Thread(Seen),
    /// The tenant that holds most lives alone for a while ([`holds_most`]); no standing changes.
    WantOfMemory,
    /// The tenants that were there are bisected; if a signal is given, each gets a share of points.
    Bisect(Option<Signal>),
}

/// Why tenants are kept apart for a while without a decision about their standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Because {
    /// A process that they were in died an unattributed death.
    UnexplainedDeath,
    /// A process died for want of memory, and this tenant held most of that memory, or may have.
    WantOfMemory,
    /// A process held more than its tenants explain, and this tenant seems to hold most of the
    /// excess.
    UnexplainedMemory,
}

/// Decides which tenant is to blame for a death. `company` says whether the process ever held more
/// than one tenant.
#[must_use]
pub fn blame(ending: Ending, thread: Thread, company: bool, room: Room) -> Verdict {
    let Some(signal) = ending.signal() else { return Verdict::Nothing };
    if thread == Thread::NotLiving {
        return Verdict::Nothing;
    }
    if !company {
        return Verdict::Thread(Seen::certain(signal));
    }
    let pressed = room != Room::Plenty;
    match ending {
        Ending::Fault(Site::NullPage | Site::Allocator) if pressed => Verdict::WantOfMemory,
        Ending::Fault(_) if room == Room::Near => Verdict::WantOfMemory,
        Ending::GaveUp { certain: false } | Ending::OutOfMemory { certain: false } if pressed => Verdict::WantOfMemory,
        Ending::Fault(Site::Allocator) => Verdict::Bisect(None),
        Ending::Silent(signal) => Verdict::Bisect(Some(signal)),
        // The process's own threads work for all tenants, so any tenant may have caused this.
        _ if thread == Thread::Unknown => {
            Verdict::Bisect(Some(if matches!(ending, Ending::Attack(_)) { Signal::Crash } else { signal }))
        }
        _ => Verdict::Thread(Seen::in_company(signal)),
    }
}

/// What a death means for the tenants that had a slot in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence<S> {
    /// The death means nothing to any tenant.
    Nothing,
    /// That slot's tenant is to blame.
    Blame(S, Seen),
    /// The process ran out of memory. That slot's tenant held most of it, and is kept apart.
    KeepApart(S),
    /// The tenants that were there are bisected; if a signal is given, each gets a share of points.
    Bisect(Because, Option<Signal>),
}

/// Applies a verdict to slots. `thread` is the slot on whose thread the process died, if its tenant
/// lives there; `here` are all slots whose tenants live there; `largest` is the slot whose tenant
/// holds most, if known.
#[must_use]
pub fn consequence<S: Copy>(verdict: Verdict, thread: Option<S>, here: &[S], largest: Option<S>) -> Consequence<S> {
    match verdict {
        Verdict::Nothing => Consequence::Nothing,
        // In a process that only ever held one tenant, an unattributed end is that tenant's doing.
        Verdict::Thread(seen) => {
            thread.or_else(|| here.first().copied()).map_or(Consequence::Nothing, |slot| Consequence::Blame(slot, seen))
        }
        Verdict::WantOfMemory => {
            largest.map_or(Consequence::Bisect(Because::WantOfMemory, None), Consequence::KeepApart)
        }
        Verdict::Bisect(signal) => Consequence::Bisect(Because::UnexplainedDeath, signal),
    }
}

impl<S: PartialEq> Consequence<S> {
    /// Whether that slot's tenant is to blame.
    #[must_use]
    pub fn blames(&self, slot: S) -> bool {
        matches!(self, Self::Blame(to_blame, _) if *to_blame == slot)
    }

    /// Whether that slot's tenant is not held responsible: another tenant is to blame, memory ran
    /// out and another tenant held most of it, or the tenants are bisected without points. A run
    /// that was lost there restarts; neither its CPU time nor the loss counts.
    #[must_use]
    pub fn exonerates(&self, slot: S) -> bool {
        match self {
            Self::Blame(to_blame, _) | Self::KeepApart(to_blame) => *to_blame != slot,
            Self::Bisect(_, signal) => signal.is_none(),
            Self::Nothing => false,
        }
    }
}

/// The index of the tenant that holds most, if it holds at least as much as is left unexplained.
#[must_use]
pub fn holds_most(held: &[u64], unexplained: u64) -> Option<usize> {
    let (index, most) = held.iter().enumerate().max_by_key(|(index, held)| (**held, std::cmp::Reverse(*index)))?;
    (*most > 0 && *most >= unexplained).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMS: [Room; 3] = [Room::Plenty, Room::Pressed, Room::Near];
    const HERE: Thread = Thread::Here;

    fn endings() -> Vec<Ending> {
        let certain = [false, true];
        let attacks = [Signal::RefusedCall, Signal::ClosedKey, Signal::ForeignAddress].map(Ending::Attack);
        let faults = [Site::NullPage, Site::Allocator, Site::Elsewhere].map(Ending::Fault);
        let gave_up = certain.map(|certain| Ending::GaveUp { certain });
        let no_memory = certain.map(|certain| Ending::OutOfMemory { certain });
        let did = [Signal::Protocol, Signal::HardKill].map(Ending::Did);
        let silent = [Signal::RefusedCall, Signal::Unattributed, Signal::Crash].map(Ending::Silent);
        [attacks.as_slice(), &faults, &gave_up, &no_memory, &did, &silent].concat()
    }

    /// The verdicts for plenty, pressed and near, one letter each. C suspects the tenant of the
    /// thread, in company; M is want of memory; H bisects without points, P with points.
    fn row(ending: Ending, thread: Thread) -> String {
        let letter = |room| match blame(ending, thread, true, room) {
            Verdict::Thread(seen) if seen == Seen::in_company(ending.signal().unwrap()) => 'C',
            Verdict::WantOfMemory => 'M',
            Verdict::Bisect(None) => 'H',
            Verdict::Bisect(Some(_)) => 'P',
            other => panic!("{ending:?}: {other:?}"),
        };
        ROOMS.map(letter).iter().collect()
    }

    #[test]
    fn the_table_holds() {
        for (ending, here, unknown) in [
            (Ending::Attack(Signal::ClosedKey), "CCC", "PPP"),
            (Ending::Attack(Signal::RefusedCall), "CCC", "PPP"),
            (Ending::Attack(Signal::ForeignAddress), "CCC", "PPP"),
            (Ending::Fault(Site::NullPage), "CMM", "PMM"),
            (Ending::Fault(Site::Allocator), "HMM", "HMM"),
            (Ending::Fault(Site::Elsewhere), "CCM", "PPM"),
            (Ending::GaveUp { certain: false }, "CMM", "PMM"),
            (Ending::GaveUp { certain: true }, "CCC", "PPP"),
            (Ending::OutOfMemory { certain: false }, "CMM", "PMM"),
            (Ending::OutOfMemory { certain: true }, "CCC", "PPP"),
            (Ending::Did(Signal::Protocol), "CCC", "PPP"),
            (Ending::Did(Signal::HardKill), "CCC", "PPP"),
            (Ending::Silent(Signal::Unattributed), "PPP", "PPP"),
        ] {
            assert_eq!(
                (row(ending, HERE).as_str(), row(ending, Thread::Unknown).as_str()),
                (here, unknown),
                "{ending:?}"
            );
        }
    }

    #[test]
    fn a_tenant_that_was_always_alone_is_blamed_with_certainty() {
        for (ending, room) in endings().into_iter().flat_map(|ending| ROOMS.map(|room| (ending, room))) {
            let certain = Verdict::Thread(Seen::certain(ending.signal().unwrap()));
            assert_eq!(blame(ending, HERE, false, room), certain, "{ending:?}, {room:?}");
        }
    }

    #[test]
    fn a_tenant_that_has_left_is_not_blamed_and_innocent_ends_blame_no_tenant() {
        for (ending, room) in endings().into_iter().flat_map(|ending| ROOMS.map(|room| (ending, room))) {
            assert_eq!(blame(ending, Thread::NotLiving, true, room), Verdict::Nothing);
            assert_eq!(blame(Ending::Innocent, HERE, true, room), Verdict::Nothing);
        }
    }

    #[test]
    fn less_room_never_makes_a_tenant_more_to_blame() {
        let worse = |ending, thread| {
            let order = ROOMS.map(|room| blame(ending, thread, true, room));
            let blamed =
                order.map(|verdict| u8::from(matches!(verdict, Verdict::Thread(_) | Verdict::Bisect(Some(_)))));
            assert!(blamed.is_sorted_by(|more, less| more >= less), "{ending:?}: {order:?}");
        };
        endings().into_iter().for_each(|ending| {
            worse(ending, HERE);
            worse(ending, Thread::Unknown);
        });
    }

    #[test]
    fn a_death_is_blamed_on_the_thread_that_it_was_on_or_on_the_only_tenant() {
        let seen = Seen::certain(Signal::Crash);
        let on = |thread, here: &[u8]| consequence(Verdict::Thread(seen), thread, here, None);
        assert_eq!(on(Some(2), &[1, 2]), Consequence::Blame(2, seen));
        assert_eq!(on(None, &[1]), Consequence::Blame(1, seen));
        assert_eq!(on(None, &[]), Consequence::Nothing);
    }

    #[test]
    fn want_of_memory_isolates_the_largest_holder_or_bisects_all_without_points() {
        let on = |largest| consequence(Verdict::WantOfMemory, Some(1), &[1, 2], largest);
        assert_eq!(on(Some(2)), Consequence::KeepApart(2));
        assert_eq!(on(None), Consequence::Bisect(Because::WantOfMemory, None));
    }

    #[test]
    fn a_death_blames_at_most_one_slot_and_never_one_that_it_exonerates() {
        let verdicts: Vec<_> = endings()
            .into_iter()
            .flat_map(|ending| [Thread::Here, Thread::NotLiving, Thread::Unknown].map(|thread| (ending, thread)))
            .flat_map(|(ending, thread)| ROOMS.map(|room| (ending, thread, room)))
            .flat_map(|(ending, thread, room)| [true, false].map(|company| blame(ending, thread, company, room)))
            .collect();
        for (verdict, largest) in verdicts.iter().flat_map(|verdict| [None, Some(2)].map(|largest| (*verdict, largest)))
        {
            let consequence = consequence(verdict, Some(1), &[1, 2, 3], largest);
            let doing: Vec<_> = (1..=3).filter(|slot| consequence.blames(*slot)).collect();
            assert!(doing.len() <= 1, "{consequence:?}");
            assert!(doing.iter().all(|slot| !consequence.exonerates(*slot)), "{consequence:?}");
            let acquitted = (1..=3).filter(|slot| consequence.exonerates(*slot)).count();
            // One tenant is responsible, or all are exonerated, or none is.
            assert!([0, 2, 3].contains(&acquitted), "{consequence:?}");
        }
    }

    #[test]
    fn the_distance_to_the_bound_is_in_per_cent_and_zero_means_never() {
        let rules = MemoryRules::default();
        let bound = 8 << 30;
        let at = |percent: u64| Room::of(bound / 100 * percent, bound, &rules);
        assert_eq!(
            [at(0), at(4), at(6), at(14), at(16)],
            [Room::Near, Room::Near, Room::Pressed, Room::Pressed, Room::Plenty]
        );
        let off = MemoryRules { near_percent: 0, pressed_percent: 0, ..rules };
        assert_eq!(Room::of(0, bound, &off), Room::Plenty);
    }

    #[test]
    fn the_largest_holder_is_known_unless_more_is_unexplained() {
        assert_eq!(holds_most(&[1, 5, 3], 0), Some(1));
        assert_eq!(holds_most(&[1, 5, 3], 5), Some(1));
        assert_eq!(holds_most(&[1, 5, 3], 6), None);
        assert_eq!(holds_most(&[4, 4], 0), Some(0));
        assert_eq!(holds_most(&[0, 0], 0), None);
        assert_eq!(holds_most(&[], 0), None);
    }
}
