//! What a fault in a worker means: an attack that a layer stopped, or a crash.

use enisle_cordon::blame::NULL_PAGE_BYTES;
use enisle_cordon::{Ending, Signal, Site};
use enisle_hardening::Layer;
use enisle_hardening::fault::{Fault, Kind};
use enisle_hardening::islands::Zone;
use enisle_wire::control::Slot;

/// As the kernel numbers it, on every processor (signal(7)).
const SIGABRT: i32 = nix::sys::signal::Signal::SIGABRT as i32;

/// `si_code` of a fault of which the processor did not say where it was (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// A layer stopped something that no script does by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attack {
    /// As in `enisle doctor`, or `v8-sandbox`.
    pub(crate) layer: &'static str,
    pub(crate) address: Option<u64>,
    /// The place on whose island the address is, if that is another's.
    pub(crate) victim: Option<Slot>,
}

/// Whether a fault is an attack.
///
/// A closed key, one that is open and should not be, and a refused system call are. An address on somebody else's island is, mapped or not: V8's guards keep
/// every honest access on its own. Any other bad address is a crash, and so is V8 giving up.
pub(crate) fn attack(fault: &Fault, zone: &Zone) -> Option<Attack> {
    let victim = |address: u64| {
        let address = usize::try_from(address).ok()?;
        let place = zone.islands().position(|island| island.range().contains(&address))?;
        let place = u32::try_from(place).ok().filter(|place| Some(*place) != fault.place)?;
        Some(Slot(place))
    };
    match fault.kind {
        Kind::ClosedKey { address, .. } => {
            Some(Attack { layer: Layer::Keys.name(), address: Some(address), victim: victim(address) })
        }
        Kind::Refused { .. } => {
            let layer = if fault.place.is_some() { Layer::ThreadFilter } else { Layer::Seccomp };
            Some(Attack { layer: layer.name(), address: None, victim: None })
        }
        Kind::Access { address } => {
            let victim = victim(address).filter(|_| fault.place.is_some())?;
            Some(Attack { layer: "v8-sandbox", address: Some(address), victim: Some(victim) })
        }
        Kind::WrongKeys => Some(Attack { layer: Layer::Keys.name(), address: None, victim: None }),
        Kind::GaveUp | Kind::OutOfMemory => None,
    }
}

/// What a fault is for whoever judges it. `certain`: the run was over its own limit, by its
/// thread's last words.
pub(crate) fn ending(fault: &Fault, zone: &Zone, certain: bool) -> Ending {
    match (attack(fault, zone), fault.kind) {
        (Some(_), Kind::Refused { .. }) => Ending::Attack(Signal::RefusedCall),
        (Some(_), Kind::ClosedKey { .. } | Kind::WrongKeys) => Ending::Attack(Signal::ClosedKey),
        (Some(_), Kind::Access { .. }) => Ending::Attack(Signal::ForeignAddress),
        (_, Kind::OutOfMemory) => Ending::OutOfMemory { certain },
        _ if fault.in_allocator => Ending::Fault(Site::Allocator),
        // V8 gives up by a breakpoint or an undefined instruction; libc, by this, over its heap.
        (_, Kind::GaveUp) if fault.signal == SIGABRT && !certain => Ending::Fault(Site::Allocator),
        (_, Kind::GaveUp) => Ending::GaveUp { certain },
        // Of an address that no processor has the kernel says 0 as well.
        (None, Kind::Access { address }) if address < NULL_PAGE_BYTES && fault.code != SI_KERNEL => {
            Ending::Fault(Site::NullPage)
        }
        (None, _) => Ending::Fault(Site::Elsewhere),
    }
}

/// In words, for logs and errors. Addresses of the worker are for operators only; see the events.
pub(crate) fn describe(fault: &Fault) -> String {
    match fault.kind {
        Kind::ClosedKey { key, .. } => {
            format!("its thread reached for memory with protection key {key}, which is closed to it")
        }
        Kind::Refused { call } => format!("its thread made system call {call}, which the filter refuses"),
        Kind::Access { .. } => format!("its thread reached for memory that is not there (signal {})", fault.signal),
        Kind::WrongKeys => "its thread had other protection keys open than its own".to_owned(),
        Kind::GaveUp => format!("V8 gave up (signal {})", fault.signal),
        Kind::OutOfMemory => "V8 ran out of memory".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(place: Option<u32>, kind: Kind) -> Fault {
        Fault { signal: 11, code: 4, place, pc: 0, kind, room: 0, in_allocator: false }
    }

    fn address_on(zone: &Zone, place: usize) -> u64 {
        zone.island(place).map_or(0, |island| island.sandbox().start as u64)
    }

    #[test]
    fn a_closed_key_names_the_one_whose_island_it_was() {
        let zone = Zone::place(3, || 1);
        let kind = Kind::ClosedKey { address: address_on(&zone, 2), key: 5 };
        let attack = attack(&fault(Some(0), kind), &zone);
        assert_eq!(attack.map(|attack| (attack.layer, attack.victim)), Some(("keys", Some(Slot(2)))));
    }

    #[test]
    fn a_bad_address_on_ones_own_island_is_a_crash_and_on_anothers_an_attack() {
        let zone = Zone::place(2, || 1);
        let at = |place| attack(&fault(Some(0), Kind::Access { address: address_on(&zone, place) }), &zone);
        assert_eq!(at(0), None);
        assert_eq!(at(1).map(|attack| attack.layer), Some("v8-sandbox"));
        assert_eq!(attack(&fault(Some(0), Kind::Access { address: 8 }), &zone), None);
    }

    #[test]
    fn the_workers_own_threads_attack_nobody_by_crashing() {
        let zone = Zone::place(1, || 1);
        assert_eq!(attack(&fault(None, Kind::Access { address: address_on(&zone, 0) }), &zone), None);
        assert_eq!(attack(&fault(None, Kind::GaveUp), &zone), None);
    }

    #[test]
    fn where_a_fault_was_is_told_by_its_address_and_by_the_allocators_code() {
        let zone = Zone::place(2, || 1);
        let at = |address| fault(Some(0), Kind::Access { address });
        let site = |fault| ending(&fault, &zone, false);
        assert_eq!(site(at(8)), Ending::Fault(Site::NullPage));
        assert_eq!(site(at(NULL_PAGE_BYTES)), Ending::Fault(Site::Elsewhere));
        assert_eq!(site(Fault { code: SI_KERNEL, ..at(0) }), Ending::Fault(Site::Elsewhere));
        assert_eq!(site(at(address_on(&zone, 0))), Ending::Fault(Site::Elsewhere));
        assert_eq!(site(at(address_on(&zone, 1))), Ending::Attack(Signal::ForeignAddress));
        assert_eq!(site(Fault { in_allocator: true, ..at(8) }), Ending::Fault(Site::Allocator));
        let foreign = Fault { in_allocator: true, ..at(address_on(&zone, 1)) };
        assert_eq!(site(foreign), Ending::Attack(Signal::ForeignAddress), "an attack is one anywhere");
        let gave_up = fault(Some(0), Kind::GaveUp);
        assert_eq!(site(gave_up), Ending::GaveUp { certain: false });
        let aborted = Fault { signal: SIGABRT, ..gave_up };
        assert_eq!(site(aborted), Ending::Fault(Site::Allocator));
        assert_eq!(ending(&aborted, &zone, true), Ending::GaveUp { certain: true });
    }
}
