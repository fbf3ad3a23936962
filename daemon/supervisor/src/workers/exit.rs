//! The end of a worker process: the evidence that was gathered before, and the verdict.

use std::sync::OnceLock;
use std::time::Duration;

use enisle_cordon::blame::{Consequence, Thread};
use enisle_cordon::{Ending, Room, Signal, Verdict};
use enisle_hardening::islands::Zone;
use enisle_wire::control::Slot;

use crate::workers::death::Death;
use crate::workers::violation;

/// What the supervisor observed, and what the process reported, before its end; the first of each
/// kind counts.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// The slot whose tenant the process is killed for, and what the supervisor saw that tenant do.
    pub(super) culprit: OnceLock<(Slot, Signal)>,
    /// The slot on whose run V8 gave up, and whether that run was over its own limit. Both are from
    /// the last frame of the slot's thread.
    pub(super) gave_up: OnceLock<(Slot, bool)>,
    /// The process is killed for something that one of its tenants did, and it is unknown which.
    pub(super) misbehaved: OnceLock<Signal>,
}

impl Evidence {
    /// How the process ended, as the verdict needs it, and on which slot's thread. The record of a
    /// fault takes precedence over what the supervisor saw. What the supervisor saw takes
    /// precedence over the thread's last frame, and the last frame over the exit status.
    pub(super) fn ending(&self, death: &Death, zone: &Zone) -> (Ending, Option<Slot>) {
        let words = self.gave_up.get().copied();
        if let Death::Fault(fault) = death {
            let slot = fault.slot.map(Slot);
            let certain = words.is_some_and(|(speaker, certain)| certain && Some(speaker) == slot);
            return (violation::ending(fault, zone, certain), slot);
        }
        if let Some((slot, signal)) = self.culprit.get() {
            return (Ending::Did(*signal), Some(*slot));
        }
        let silent = match (death, words) {
            (Death::GaveUp, Some((slot, certain))) => return (Ending::GaveUp { certain }, Some(slot)),
            (_, Some((slot, certain))) => return (Ending::OutOfMemory { certain }, Some(slot)),
            (Death::Killed(_), None) => {
                return (self.misbehaved.get().map_or(Ending::Innocent, |signal| Ending::Silent(*signal)), None);
            }
            (Death::Filter, None) => Signal::RefusedCall,
            (Death::OutOfMemory, None) => Signal::OutOfMemory,
            (Death::GaveUp, None) => Signal::EngineAbort,
            // SIGKILL can only come from outside: from an operator, or from the kernel when memory
            // runs out.
            (Death::Signaled(signal), None) if *signal == nix::sys::signal::Signal::SIGKILL => Signal::Unattributed,
            (Death::Fault(_) | Death::Exited(_) | Death::Signaled(_) | Death::Unknown, None) => Signal::Crash,
        };
        (Ending::Silent(silent), None)
    }
}

/// The end of a process, judged once.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) death: Death,
    pub(crate) verdict: Verdict,
    pub(crate) consequence: Consequence<Slot>,
    /// The slots whose tenants were there.
    pub(crate) here: Vec<Slot>,
    /// Whether only one tenant was ever there.
    pub(crate) was_one_tenants: bool,
    /// The slot on whose thread the process ended, and the CPU time of that thread, if known.
    pub(super) computed: Option<(Slot, Duration)>,
}

/// Who was in a process.
#[derive(Debug, Clone)]
pub(super) struct Company {
    /// The slots whose tenants are there.
    pub(super) here: Vec<Slot>,
    /// The slots that tenants ever took.
    pub(super) ever: Vec<Slot>,
    /// Whether only one tenant was ever there.
    pub(super) was_one_tenants: bool,
}

impl Exit {
    /// Reaches a verdict from how the process ended, which tenants were there, how much of its
    /// bound the process had left, and which slot holds most (computed only if the verdict depends
    /// on it).
    pub(super) fn judge(
        death: Death,
        (ending, slot): (Ending, Option<Slot>),
        Company { here, ever, was_one_tenants }: Company,
        room: Room,
        largest: impl FnOnce() -> Option<Slot>,
    ) -> Self {
        let thread = match slot {
            Some(slot) if here.contains(&slot) => Thread::Here,
            Some(slot) if ever.contains(&slot) => Thread::NotLiving,
            // A thread on standby is the process's own: whoever was there may have made it fail.
            Some(_) | None => Thread::Unknown,
        };
        let verdict = enisle_cordon::blame(ending, thread, !was_one_tenants, room);
        let largest = (verdict == Verdict::WantOfMemory).then(largest).flatten();
        let consequence =
            enisle_cordon::blame::consequence(verdict, slot.filter(|_| thread == Thread::Here), &here, largest);
        Self { death, verdict, consequence, here, was_one_tenants, computed: None }
    }

    /// The CPU time of that slot's thread, if the process ended on that thread and the time is
    /// known.
    pub(super) fn computed(&self, slot: Slot) -> Option<Duration> {
        self.computed.filter(|(whose, _)| *whose == slot).map(|(_, time)| time)
    }
}

#[cfg(test)]
mod tests {
    use enisle_cordon::Seen;
    use enisle_hardening::fault::{Fault, Kind};

    use super::*;

    const A: Slot = Slot(0);
    const B: Slot = Slot(1);

    fn zone() -> Zone {
        Zone::place(2, || 1)
    }

    /// These tenants are there, of two that ever were.
    fn company(here: Vec<Slot>) -> Company {
        Company { here, ever: vec![A, B], was_one_tenants: false }
    }

    /// Otherwise an attacker could fill the memory until a thread on standby fails, unpunished.
    #[test]
    fn a_thread_on_standby_is_the_processs_own() {
        let standby = Slot(2);
        let gave_up = (Ending::GaveUp { certain: false }, Some(standby));
        let judge = |room| Exit::judge(Death::GaveUp, gave_up, company(vec![A, B]), room, || Some(A)).consequence;
        assert_eq!(judge(Room::Near), Consequence::KeepApart(A));
        assert!(matches!(judge(Room::Plenty), Consequence::Bisect(..)), "{:?}", judge(Room::Plenty));
        let alone = Company { here: Vec::new(), ever: Vec::new(), was_one_tenants: true };
        assert!(matches!(
            Exit::judge(Death::GaveUp, gave_up, alone, Room::Plenty, || None).consequence,
            Consequence::Nothing | Consequence::Bisect(..)
        ));
    }

    fn killed() -> Death {
        Death::Killed("why".to_owned())
    }

    #[test]
    fn the_record_of_a_fault_takes_precedence_over_what_was_reported() {
        let evidence = Evidence::default();
        let _ = (evidence.culprit.set((B, Signal::HardKill)), evidence.gave_up.set((B, true)));
        let kind = Kind::Refused { call: 59 };
        let fault = Fault { signal: 31, code: 1, slot: Some(A.0), pc: 0, kind, room: 0, in_allocator: false };
        let found = evidence.ending(&Death::Fault(fault), &zone());
        assert_eq!(found, (Ending::Attack(Signal::RefusedCall), Some(A)));
    }

    #[test]
    fn observations_take_precedence_over_last_words_and_those_over_the_exit_status() {
        let (evidence, zone) = (Evidence::default(), zone());
        assert_eq!(evidence.ending(&killed(), &zone), (Ending::Innocent, None));
        assert_eq!(evidence.ending(&Death::Exited(1), &zone), (Ending::Silent(Signal::Crash), None));
        let _ = evidence.misbehaved.set(Signal::Protocol);
        assert_eq!(evidence.ending(&killed(), &zone), (Ending::Silent(Signal::Protocol), None));
        let _ = evidence.gave_up.set((A, false));
        assert_eq!(evidence.ending(&Death::GaveUp, &zone), (Ending::GaveUp { certain: false }, Some(A)));
        assert_eq!(evidence.ending(&Death::OutOfMemory, &zone), (Ending::OutOfMemory { certain: false }, Some(A)));
        let _ = evidence.culprit.set((B, Signal::HardKill));
        assert_eq!(evidence.ending(&Death::GaveUp, &zone), (Ending::Did(Signal::HardKill), Some(B)));
    }

    #[test]
    fn a_tenant_that_has_left_is_not_blamed() {
        let did = (Ending::Did(Signal::HardKill), Some(B));
        let judge = |here| Exit::judge(killed(), did, company(here), Room::Plenty, || None).consequence;
        assert_eq!(judge(vec![A]), Consequence::Nothing);
        assert_eq!(judge(vec![A, B]), Consequence::Blame(B, Seen::in_company(Signal::HardKill)));
    }

    #[test]
    fn the_largest_holder_is_computed_only_for_want_of_memory() {
        let out_of_memory = (Ending::OutOfMemory { certain: false }, Some(A));
        let judge = |room, largest: fn() -> Option<Slot>| {
            Exit::judge(Death::OutOfMemory, out_of_memory, company(vec![A, B]), room, largest).consequence
        };
        assert_eq!(judge(Room::Near, || Some(B)), Consequence::KeepApart(B));
        let unasked = judge(Room::Plenty, || unreachable!("the largest holder does not matter here"));
        assert_eq!(unasked, Consequence::Blame(A, Seen::in_company(Signal::OutOfMemory)));
    }
}
