//! Applies the end of a process to the tenants that lived in it: changes standings, keeps tenants
//! apart, and emits an event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enisle_cordon::blame::Consequence;
use enisle_cordon::{Because, Verdict};
use enisle_hardening::fault::Fault;
use enisle_wire::control::Slot;

use crate::cordons::warden::{Scene, Warden};
use crate::events::EventKind;
use crate::tenants::tenant::Tenant;
use crate::workers::death::Death;
use crate::workers::exit::Exit;
use crate::workers::process::Worker;
use crate::workers::violation::{self, Attack};

/// Every tenant that was ever admitted to one process, by slot.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<BTreeMap<Slot, Arc<Tenant>>>);

impl Roster {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Slot, Arc<Tenant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, slot: Slot, tenant: &Arc<Tenant>) {
        self.lock().insert(slot, Arc::clone(tenant));
    }

    /// The tenant that lives, or lived, in that slot.
    pub(crate) fn tenant_in(&self, slot: Slot) -> Option<Arc<Tenant>> {
        self.lock().get(&slot).cloned()
    }

    fn name_in(&self, slot: Slot) -> Option<String> {
        self.tenant_in(slot).map(|tenant| tenant.name.to_string())
    }

    /// The tenants of the slots in `here`, except the tenant of slot `but`.
    fn others(&self, here: &[Slot], but: Option<Slot>) -> Vec<Arc<Tenant>> {
        let others = here.iter().filter(|slot| Some(**slot) != but);
        others.filter_map(|slot| self.tenant_in(*slot)).collect()
    }
}

/// Emits an event if the process ended by a fault, and applies the consequence: to the tenant
/// responsible, to all tenants that were there, or to none.
pub(super) fn apply(worker: &Worker, exit: &Exit, roster: &Roster, warden: &Warden) {
    if let Death::Fault(fault) = &exit.death {
        warden.events.emit(fault_event(worker, fault, exit.verdict, roster));
    }
    let scene = Scene { worker: worker.id, uid: worker.uid() };
    let all = || roster.others(&exit.here, None);
    match exit.consequence {
        Consequence::Nothing => {}
        Consequence::Blame(slot, seen) => {
            let Some(culprit) = roster.tenant_in(slot) else { return };
            warden.saw_death(&culprit, worker.uid(), seen, &roster.others(&exit.here, Some(slot)));
        }
        Consequence::KeepApart(slot) => {
            let largest: Vec<_> = roster.tenant_in(slot).into_iter().map(|largest| (largest, None)).collect();
            warden.keep_apart(&largest, Because::WantOfMemory, scene);
        }
        Consequence::Bisect(because, None) => warden.bisect(&all(), because, scene),
        Consequence::Bisect(_, Some(signal)) => warden.saw_unexplained_death(&all(), signal, scene),
    }
}

/// The event of a fault: whose thread it was on, and what the verdict is.
fn fault_event(worker: &Worker, fault: &Fault, verdict: Verdict, roster: &Roster) -> EventKind {
    let (worker_id, pid, uid) = (worker.id, worker.pid.as_raw(), worker.uid());
    let tenant = fault.slot.and_then(|slot| roster.name_in(Slot(slot)));
    let (what, pc) = (violation::describe(fault), format!("{:#x}", fault.pc));
    match worker.attack(fault) {
        Some(Attack { layer, address, victim }) => {
            let address = address.map(|address| format!("{address:#x}"));
            let victim = victim.and_then(|slot| roster.name_in(slot));
            EventKind::Violation { worker: worker_id, pid, uid, tenant, layer, what, address, victim, pc }
        }
        None => {
            let (room_mb, blame) = (fault.room >> 20, verdict_name(verdict));
            EventKind::Crashed { worker: worker_id, pid, uid, tenant, what, pc, room_mb, blame }
        }
    }
}

/// The verdict on a death as one word, for an event.
fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Nothing => "nobody",
        Verdict::Thread(seen) if seen.certain => "certain",
        Verdict::Thread(_) => "inCompany",
        Verdict::WantOfMemory => "wantOfMemory",
        Verdict::Bisect(_) => "unknown",
    }
}
