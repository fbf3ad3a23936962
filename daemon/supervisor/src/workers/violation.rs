//! Distinguishes an attack that a layer stopped from a crash, by the record of the fault.

use enisle_cordon::blame::NULL_PAGE_BYTES;
use enisle_cordon::{Ending, Signal, Site};
use enisle_hardening::Layer;
use enisle_hardening::fault::{Fault, Kind};
use enisle_hardening::islands::Zone;
use enisle_wire::control::Slot;

/// SIGABRT has the same number on every processor (signal(7)).
const SIGABRT: i32 = nix::sys::signal::Signal::SIGABRT as i32;

/// The `si_code` of a fault for which the processor did not report the address (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// A layer stopped something that no script does by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attack {
    /// A name from `enisle doctor`, or `v8-sandbox`.
    pub(crate) layer: &'static str,
    pub(crate) address: Option<u64>,
    /// The slot on whose island the address is, if that is another tenant's.
    pub(crate) victim: Option<Slot>,
}

/// The attack that a fault shows, if it shows one.
///
/// These faults are attacks: an access through a closed key, a key that is open and should not be,
/// a refused system call, and an access by a tenant's thread to another tenant's island. That
/// address need not be mapped, because V8's guard regions keep every honest access on the thread's
/// own island. An access to any other bad address is a crash, and so is V8 giving up.
pub(crate) fn attack(fault: &Fault, zone: &Zone) -> Option<Attack> {
    let victim = |address: u64| {
        let address = usize::try_from(address).ok()?;
        let slot = zone.islands().position(|island| island.range().contains(&address))?;
        let slot = u32::try_from(slot).ok().filter(|slot| Some(*slot) != fault.slot)?;
        Some(Slot(slot))
    };
    match fault.kind {
        Kind::ClosedKey { address, .. } => {
            Some(Attack { layer: Layer::Keys.name(), address: Some(address), victim: victim(address) })
        }
        Kind::Refused { .. } => {
            let layer = if fault.slot.is_some() { Layer::ThreadFilter } else { Layer::Seccomp };
            Some(Attack { layer: layer.name(), address: None, victim: None })
        }
        Kind::Access { address } => {
            let victim = victim(address).filter(|_| fault.slot.is_some())?;
            Some(Attack { layer: "v8-sandbox", address: Some(address), victim: Some(victim) })
        }
        Kind::WrongKeys => Some(Attack { layer: Layer::Keys.name(), address: None, victim: None }),
        Kind::GaveUp | Kind::OutOfMemory => None,
    }
}

/// A fault, as the verdict needs it. `certain`: the thread's last frame said that the run was over
/// its own limit.
pub(crate) fn ending(fault: &Fault, zone: &Zone, certain: bool) -> Ending {
    match (attack(fault, zone), fault.kind) {
        (Some(_), Kind::Refused { .. }) => Ending::Attack(Signal::RefusedCall),
        (Some(_), Kind::ClosedKey { .. } | Kind::WrongKeys) => Ending::Attack(Signal::ClosedKey),
        (Some(_), Kind::Access { .. }) => Ending::Attack(Signal::ForeignAddress),
        (_, Kind::OutOfMemory) => Ending::OutOfMemory { certain },
        _ if fault.in_allocator => Ending::Fault(Site::Allocator),
        // V8 gives up by a breakpoint or an undefined instruction; libc, by SIGABRT when it finds
        // its heap damaged.
        (_, Kind::GaveUp) if fault.signal == SIGABRT && !certain => Ending::Fault(Site::Allocator),
        (_, Kind::GaveUp) => Ending::GaveUp { certain },
        // For a non-canonical address the kernel reports 0 as well, with SI_KERNEL.
        (None, Kind::Access { address }) if address < NULL_PAGE_BYTES && fault.code != SI_KERNEL => {
            Ending::Fault(Site::NullPage)
        }
        (None, _) => Ending::Fault(Site::Elsewhere),
    }
}

/// Describes a fault in words, for logs and errors, without addresses. Addresses in the worker are
/// for operators only, and are in events.
pub(crate) fn describe(fault: &Fault) -> String {
    match fault.kind {
        Kind::ClosedKey { key, .. } => {
            format!("its thread accessed memory with protection key {key}, which is closed to it")
        }
        Kind::Refused { call } => format!("its thread made system call {call}, which the filter refuses"),
        Kind::Access { .. } => format!("its thread accessed memory that it may not access (signal {})", fault.signal),
        Kind::WrongKeys => "its thread had other protection keys open than its own".to_owned(),
        Kind::GaveUp => format!("V8 gave up (signal {})", fault.signal),
        Kind::OutOfMemory => "V8 ran out of memory".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(slot: Option<u32>, kind: Kind) -> Fault {
        Fault { signal: 11, code: 4, slot, pc: 0, kind, room: 0, in_allocator: false }
    }

    fn address_on(zone: &Zone, slot: usize) -> u64 {
        zone.island(slot).map_or(0, |island| island.sandbox().start as u64)
    }

    #[test]
    fn an_access_through_a_closed_key_names_the_victim() {
        let zone = Zone::place(3, || 1);
        let kind = Kind::ClosedKey { address: address_on(&zone, 2), key: 5 };
        let attack = attack(&fault(Some(0), kind), &zone);
        assert_eq!(attack.map(|attack| (attack.layer, attack.victim)), Some(("keys", Some(Slot(2)))));
    }

    #[test]
    fn a_bad_address_is_a_crash_on_the_own_island_and_an_attack_on_anothers() {
        let zone = Zone::place(2, || 1);
        let at = |slot| attack(&fault(Some(0), Kind::Access { address: address_on(&zone, slot) }), &zone);
        assert_eq!(at(0), None);
        assert_eq!(at(1).map(|attack| attack.layer), Some("v8-sandbox"));
        assert_eq!(attack(&fault(Some(0), Kind::Access { address: 8 }), &zone), None);
    }

    #[test]
    fn a_crash_of_the_workers_own_threads_is_not_an_attack() {
        let zone = Zone::place(1, || 1);
        assert_eq!(attack(&fault(None, Kind::Access { address: address_on(&zone, 0) }), &zone), None);
        assert_eq!(attack(&fault(None, Kind::GaveUp), &zone), None);
    }

    #[test]
    fn the_site_of_a_fault_follows_from_its_address_and_the_allocators_code() {
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
        assert_eq!(site(foreign), Ending::Attack(Signal::ForeignAddress), "such an access is an attack at any address");
        let gave_up = fault(Some(0), Kind::GaveUp);
        assert_eq!(site(gave_up), Ending::GaveUp { certain: false });
        let aborted = Fault { signal: SIGABRT, ..gave_up };
        assert_eq!(site(aborted), Ending::Fault(Site::Allocator));
        assert_eq!(ending(&aborted, &zone, true), Ending::GaveUp { certain: true });
    }
}
