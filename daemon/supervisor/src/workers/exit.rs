//! The end of a worker process: what was known of it before, and on which place it is put.

use std::sync::OnceLock;
use std::time::Duration;

use enisle_cordon::blame::{Consequence, Thread};
use enisle_cordon::{Ending, Room, Signal, Verdict};
use enisle_hardening::islands::Zone;
use enisle_wire::control::Slot;

use crate::workers::death::Death;
use crate::workers::violation;

/// What the supervisor saw and heard of a process before its end; of each the first.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// For whose doing it is ended, and what that was, where the supervisor saw it.
    pub(super) culprit: OnceLock<(Slot, Signal)>,
    /// Whose run V8 gave up on, by its thread's last words, and whether it was over its own limit.
    pub(super) gave_up: OnceLock<(Slot, bool)>,
    /// It is ended for something that its tenants did, whoever of them.
    pub(super) misbehaved: OnceLock<Signal>,
}

impl Evidence {
    /// How it ended, for whoever judges it, and on whose thread that was. What the kernel put on
    /// record goes before what was said.
    pub(super) fn ending(&self, death: &Death, zone: &Zone) -> (Ending, Option<Slot>) {
        let words = self.gave_up.get().copied();
        if let Death::Fault(fault) = death {
            let slot = fault.place.map(Slot);
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
            // Whoever may send that signal is outside, the kernel's own choice in want of memory
            // included.
            (Death::Signaled(signal), None) if *signal == nix::sys::signal::Signal::SIGKILL => Signal::Unattributed,
            (Death::Fault(_) | Death::Exited(_) | Death::Signaled(_) | Death::Unknown, None) => Signal::Crash,
        };
        (Ending::Silent(silent), None)
    }
}

/// What was judged of an end, once.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) death: Death,
    pub(crate) verdict: Verdict,
    pub(crate) consequence: Consequence<Slot>,
    /// Those who were there.
    pub(crate) here: Vec<Slot>,
    /// Only one tenant was ever there.
    pub(crate) was_one_tenants: bool,
    /// On whose thread it ended, and the CPU time of that thread, where that is known.
    pub(super) computed: Option<(Slot, Duration)>,
}

impl Exit {
    /// Judges by what is known: of the end, of those who were there and how much of its bound the
    /// process had left, and of who holds most (asked only where that decides).
    pub(super) fn judge(
        death: Death,
        (ending, slot): (Ending, Option<Slot>),
        here: Vec<Slot>,
        was_one_tenants: bool,
        room: Room,
        largest: impl FnOnce() -> Option<Slot>,
    ) -> Self {
        let thread = match slot {
            Some(slot) if here.contains(&slot) => Thread::Here,
            Some(_) => Thread::Left,
            None => Thread::Unknown,
        };
        let verdict = enisle_cordon::blame(ending, thread, !was_one_tenants, room);
        let largest = (verdict == Verdict::WantOfMemory).then(largest).flatten();
        let consequence =
            enisle_cordon::blame::consequence(verdict, slot.filter(|_| thread == Thread::Here), &here, largest);
        Self { death, verdict, consequence, here, was_one_tenants, computed: None }
    }

    /// How much CPU time the thread of that place had used, if it ended over something on that
    /// thread and that is known.
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

    fn killed() -> Death {
        Death::Killed("why".to_owned())
    }

    #[test]
    fn the_record_of_a_fault_goes_before_what_was_said() {
        let evidence = Evidence::default();
        let _ = (evidence.culprit.set((B, Signal::HardKill)), evidence.gave_up.set((B, true)));
        let kind = Kind::Refused { call: 59 };
        let fault = Fault { signal: 31, code: 1, place: Some(A.0), pc: 0, kind, room: 0, in_allocator: false };
        let found = evidence.ending(&Death::Fault(fault), &zone());
        assert_eq!(found, (Ending::Attack(Signal::RefusedCall), Some(A)));
    }

    #[test]
    fn what_was_seen_goes_before_last_words_and_those_before_silence() {
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
    fn who_is_not_there_any_more_is_not_put_on_record() {
        let did = (Ending::Did(Signal::HardKill), Some(B));
        let judge = |here| Exit::judge(killed(), did, here, false, Room::Plenty, || None).consequence;
        assert_eq!(judge(vec![A]), Consequence::Nothing);
        assert_eq!(judge(vec![A, B]), Consequence::Blame(B, Seen::in_company(Signal::HardKill)));
    }

    #[test]
    fn who_holds_most_is_asked_for_want_of_memory_only() {
        let out_of_memory = (Ending::OutOfMemory { certain: false }, Some(A));
        let judge = |room, largest: fn() -> Option<Slot>| {
            Exit::judge(Death::OutOfMemory, out_of_memory, vec![A, B], false, room, largest).consequence
        };
        assert_eq!(judge(Room::Near, || Some(B)), Consequence::KeepApart(B));
        let unasked = judge(Room::Plenty, || unreachable!("nobody asks"));
        assert_eq!(unasked, Consequence::Blame(A, Seen::in_company(Signal::OutOfMemory)));
    }
}
