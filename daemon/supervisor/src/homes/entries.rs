//! The table of all workers and their occupants, and what can be read from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use enisle_cordon::{Level, Process, Traits};
use enisle_wire::control::Slot;
use tokio::sync::OnceCell;

use crate::homes::blame::Roster;
use crate::homes::home::Home;
use crate::homes::residence::Residence;
use crate::homes::standby::Standby;
use crate::share::Held;
use crate::tenants::tenant::Tenant;
use crate::workers::process::Worker;

/// What a worker takes of its uid's share: one process and, if the worker is for a tenant that
/// lives alone, one single-tenant home.
pub(super) type Part = (Held, Option<Held>);

/// A tenant that has a slot in a worker, or is about to move in.
#[derive(Debug)]
struct Occupant {
    residence: Arc<Residence>,
    /// Set once the tenant has moved in.
    home: Option<Arc<Home>>,
}

/// The uid whose tenants a worker may hold, and what the uid holds of the supplies for it.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    /// Shared with the start, which may outlast the request for the process.
    pub(super) held: Arc<Part>,
}

/// A worker, running or about to start.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` while the worker is on standby, nobody's yet.
    pub(super) owner: Option<Owner>,
    pub(super) level: Level,
    /// The first slot that never had a thread.
    next_slot: u32,
    /// Slots that are ready for a tenant, the oldest first.
    standby: VecDeque<Standby>,
    /// A slot is being made ready ahead.
    preparing: bool,
    /// No more tenants are admitted.
    pub(super) closing: bool,
    occupants: BTreeMap<Slot, Occupant>,
    /// Set once the process is ready. The first tenant starts the process, and others wait for
    /// that.
    pub(super) worker: Arc<OnceCell<Arc<Worker>>>,
    pub(super) roster: Arc<Roster>,
}

/// One worker, for `GET /v1/workers`.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) slots_used: u32,
    /// Slots that are ready for a tenant.
    pub(crate) standby: usize,
    pub(crate) tenants: Vec<String>,
}

/// A slot that a tenant has taken.
pub(super) struct Taken {
    pub(super) slot: Slot,
    /// The place in it, if that is ready.
    pub(super) standby: Option<Standby>,
}

/// A worker with its tenants.
#[derive(Debug)]
pub(crate) struct OccupiedWorker {
    pub(crate) worker: Arc<Worker>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) tenants: Vec<(Slot, Arc<Tenant>)>,
    /// One of its tenants has a run in progress or on its way.
    pub(crate) busy: bool,
}

impl Entry {
    pub(super) fn new(owner: Option<Owner>, level: Level) -> Self {
        Self {
            owner,
            level,
            next_slot: 0,
            standby: VecDeque::new(),
            preparing: false,
            closing: false,
            occupants: BTreeMap::new(),
            worker: Arc::default(),
            roster: Arc::default(),
        }
    }

    /// The worker has started.
    pub(super) fn started(&mut self, worker: Arc<Worker>, roster: Arc<Roster>) {
        (self.worker, self.roster) = (Arc::new(OnceCell::new_with(Some(worker))), roster);
    }

    pub(super) fn is_of(&self, uid: u32) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.uid == uid)
    }

    /// How many slots tenants have ever taken.
    fn slots_used(&self) -> u32 {
        let ahead = self.standby.len() + usize::from(self.preparing);
        self.next_slot - u32::try_from(ahead).unwrap_or(0)
    }

    /// A slot that never had a thread. A slot is never reused.
    fn unused_slot(&mut self) -> Slot {
        self.next_slot += 1;
        Slot(self.next_slot - 1)
    }

    /// Takes a slot for a tenant that is about to move in.
    pub(super) fn take_slot(&mut self, residence: &Arc<Residence>) -> Taken {
        let standby = self.standby.pop_front();
        let slot = standby.as_ref().map_or_else(|| self.unused_slot(), |standby| standby.slot);
        self.occupants.insert(slot, Occupant { residence: Arc::clone(residence), home: None });
        Taken { slot, standby }
    }

    /// A slot to be made ready ahead, if none is and there is one: a worker that runs has one on
    /// standby as long as it has slots.
    pub(super) fn slot_to_prepare(&mut self, slots: u32) -> Option<(Arc<Worker>, Slot)> {
        let worker = Arc::clone(self.worker.get()?);
        let needs_one = self.is_open() && self.standby.is_empty() && !self.preparing && self.next_slot < slots;
        needs_one.then(|| {
            self.preparing = true;
            (worker, self.unused_slot())
        })
    }

    /// A slot was made ready, or was not: then its worker is ending.
    pub(super) fn prepared(&mut self, made: Option<Standby>) {
        self.preparing = false;
        self.standby.extend(made);
    }

    /// Whether it is nobody's, and a tenant could move in at once.
    fn stands_by(&self) -> bool {
        self.owner.is_none() && self.is_open() && !self.standby.is_empty()
    }

    pub(super) fn moved_in(&mut self, slot: Slot, residence: &Arc<Residence>, home: &Arc<Home>) {
        let occupant = Occupant { residence: Arc::clone(residence), home: Some(Arc::clone(home)) };
        self.occupants.insert(slot, occupant);
    }

    /// Removes the occupant of a slot, and returns its residence. The slot stays used up.
    pub(super) fn moved_out(&mut self, slot: Slot) -> Option<Arc<Residence>> {
        self.occupants.remove(&slot).map(|occupant| occupant.residence)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.occupants.is_empty()
    }

    /// Whether the worker admits further tenants.
    fn is_open(&self) -> bool {
        !self.closing && !self.worker.get().is_some_and(|worker| worker.has_ended())
    }

    pub(super) fn is_dead(&self) -> bool {
        self.worker.get().is_some_and(|worker| worker.is_dead())
    }

    pub(super) fn homes(&self) -> impl Iterator<Item = &Arc<Home>> {
        self.occupants.values().filter_map(|occupant| occupant.home.as_ref())
    }

    pub(super) fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.occupants.values().map(|occupant| &occupant.residence.tenant)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.tenants().map(|tenant| tenant.name.to_string()).collect()
    }

    /// The residences of all occupants but the one in slot `but`.
    pub(super) fn others(&self, but: Slot) -> impl Iterator<Item = &Arc<Residence>> {
        self.occupants.iter().filter(move |(slot, _)| **slot != but).map(|(_, occupant)| &occupant.residence)
    }

    /// The homes with a run in progress or on its way, and their tenants.
    pub(super) fn busy(&self) -> impl Iterator<Item = (Arc<Tenant>, Arc<Home>)> {
        self.occupants.values().filter_map(|occupant| {
            let home = occupant.home.as_ref().filter(|home| home.is_used())?;
            Some((Arc::clone(&occupant.residence.tenant), Arc::clone(home)))
        })
    }

    /// Whether all tenants have moved in and are warm, and none has a run in progress or on its
    /// way.
    pub(super) fn is_idle(&self) -> bool {
        self.occupants.values().all(|occupant| occupant.home.as_ref().is_some_and(|home| home.is_idle()))
    }

    /// The time since a home in this worker was last used; `None` if there is none.
    pub(super) fn unused_for(&self) -> Option<Duration> {
        self.homes().map(|home| home.unused_for()).min()
    }

    fn process(&self, id: u64, traits: impl Fn(&Tenant) -> Traits) -> Process<u64> {
        Process {
            id,
            level: self.level,
            tenants: self.tenants().map(|tenant| traits(tenant)).collect(),
            busy: self.homes().filter(|home| home.is_used()).count(),
            slots_used: self.slots_used() as usize,
        }
    }

    /// The worker with its tenants, if it is alive and has any.
    pub(super) fn occupied(&self) -> Option<OccupiedWorker> {
        let worker = self.worker.get().filter(|worker| !worker.is_dead() && !self.is_empty())?;
        let tenants = self.occupants.iter().map(|(slot, occupant)| (*slot, Arc::clone(&occupant.residence.tenant)));
        Some(OccupiedWorker {
            worker: Arc::clone(worker),
            roster: Arc::clone(&self.roster),
            tenants: tenants.collect(),
            busy: self.homes().any(|home| home.is_used()),
        })
    }

    /// The worker for listing, if it has started.
    pub(super) fn listed(&self) -> Option<Listed> {
        let worker = Arc::clone(self.worker.get()?);
        let (slots_used, standby) = (self.slots_used(), self.standby.len());
        Some(Listed { worker, slots_used, standby, tenants: self.names() })
    }
}

/// Every worker, running or about to start, by a number that is never reused.
#[derive(Debug, Default)]
pub(super) struct Entries {
    last_id: u64,
    pub(super) by_id: BTreeMap<u64, Entry>,
}

impl Entries {
    pub(super) fn add(&mut self, entry: Entry) -> u64 {
        self.last_id += 1;
        self.by_id.insert(self.last_id, entry);
        self.last_id
    }

    /// Gives a worker on standby to a uid; returns its number.
    pub(super) fn give_standby(&mut self, level: Level, owner: Owner) -> Result<u64, Owner> {
        let ready = self.by_id.iter_mut().find(|(_, entry)| entry.level == level && entry.stands_by());
        let Some((id, entry)) = ready else { return Err(owner) };
        entry.owner = Some(owner);
        Ok(*id)
    }

    /// How many workers of a level are nobody's and may be taken, now or soon.
    pub(super) fn on_standby(&self, level: Level) -> usize {
        let nobodys = |entry: &&Entry| entry.owner.is_none() && entry.level == level && entry.is_open();
        self.by_id.values().filter(nobodys).count()
    }

    /// Whether a worker of a level is nobody's, and a tenant could move in at once.
    pub(super) fn is_ready(&self, level: Level) -> bool {
        self.by_id.values().any(|entry| entry.level == level && entry.stands_by())
    }

    /// How many workers are for a single tenant, or for a tenant of that kind that may come.
    pub(super) fn alone(&self) -> usize {
        self.by_id.values().filter(|entry| entry.level.is_alone()).count()
    }

    /// Takes out a worker that is nobody's and of which `which` is true, the newest first.
    pub(super) fn take_out_standby(&mut self, which: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let nobodys = self.by_id.iter().rev().find(|(_, entry)| entry.owner.is_none() && which(entry));
        let id = nobodys.map(|(id, _)| *id)?;
        self.by_id.remove(&id)
    }

    /// The entry of that worker.
    pub(super) fn of(&mut self, worker: &Worker) -> Option<(u64, &mut Entry)> {
        let is_it = |entry: &Entry| entry.worker.get().is_some_and(|known| known.id == worker.id);
        self.by_id.iter_mut().find(|(_, entry)| is_it(entry)).map(|(id, entry)| (*id, entry))
    }

    /// A uid's workers that still admit tenants, for placement.
    pub(super) fn open_to(&self, uid: u32, traits: impl Fn(&Tenant) -> Traits + Copy) -> Vec<Process<u64>> {
        let open = self.by_id.iter().filter(|(_, entry)| entry.is_of(uid) && entry.is_open());
        open.map(|(id, entry)| entry.process(*id, traits)).collect()
    }

    /// How many of a uid's workers admit no more tenants, and how many of these workers are for
    /// tenants that live alone.
    pub(super) fn closing(&self, uid: u32) -> (usize, usize) {
        let closing = self.by_id.values().filter(|entry| entry.is_of(uid) && !entry.is_open());
        closing.fold((0, 0), |(all, alone), entry| (all + 1, alone + usize::from(entry.level.is_alone())))
    }
}
