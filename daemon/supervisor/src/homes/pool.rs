//! Decides which tenants live where: placement (by `cordon`), admission, retirement of idle
//! tenants, and removal of dead workers.
//!
//! A worker belongs to one uid, or to nobody yet: tenants that different uids run never share a
//! worker, so a uid's usage is counted in whole workers. A slot in a worker is used up by its
//! tenant: a cage and a key are never reused. A worker is ended when its last tenant has left, even
//! if slots are unused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Bounds, Capacity, Level, Placement, Signal, place};
use enisle_wire::control::Slot;
use tokio::sync::{Notify, OnceCell};

use crate::clock;
use crate::cordons::warden::Warden;
use crate::events::EventKind;
use crate::homes::blame::Roster;
use crate::homes::demand::Demand;
use crate::homes::entries::{Entries, Entry, Listed, OccupiedWorker, Owner, Part, Taken};
use crate::homes::home::Home;
use crate::homes::residence::Residence;
use crate::homes::standby::{NotPrepared, Standby};
use crate::homes::starting::{Starter, retired};
use crate::share::{Parts, Supply};
use crate::tenants::tenant::{Expelled, Tenant};
use crate::workers::birth::StartError;
use crate::workers::process::Worker;

/// How often a tenant that waits for room looks for tenants that have become idle.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(100);

/// How many workers may die before one is ready for a tenant.
const TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(
        "every one of the {0} worker processes available to this uid holds a busy tenant (workers.max; a uid has half \
         of what the others leave, or its share_percent in [[peers]])"
    )]
    Full(usize),
    #[error(
        "as many tenants of this uid as may live alone do ({0}; cordon.max_alone), each is busy, and this one is not put beside others \
         instead"
    )]
    FullAlone(usize),
    #[error("a worker process could not be started: {0}")]
    Start(#[from] StartError),
    #[error(transparent)]
    NotPrepared(#[from] NotPrepared),
    #[error(transparent)]
    Expelled(#[from] Expelled),
}

/// How many there are.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) workers: usize,
    pub(crate) standby: usize,
    pub(crate) tenants: usize,
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) starter: Starter,
    pub(crate) capacity: Capacity,
    pub(crate) bounds: Bounds,
    pub(super) homes: Supply,
    homes_alone: Supply,
    pub(super) demand: Arc<Demand>,
    pub(super) warden: Arc<Warden>,
    /// Notified whenever a tenant has left or a worker has died.
    room: Notify,
    entries: Mutex<Entries>,
    /// The number of the entry whose worker's keys were checked last.
    inspected: AtomicU64,
}

impl Pool {
    pub(crate) fn new(
        starter: Starter,
        capacity: Capacity,
        bounds: Bounds,
        parts: Parts,
        demand: Demand,
        warden: Arc<Warden>,
    ) -> Self {
        Self {
            starter,
            capacity,
            bounds,
            homes: Supply::new("the worker processes (workers.max)", bounds.processes as u64, parts.clone()),
            homes_alone: Supply::new("the single-tenant homes (cordon.max_alone)", bounds.alone as u64, parts),
            demand: Arc::new(demand),
            warden,
            room: Notify::new(),
            entries: Mutex::default(),
            inspected: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a tenant a home at `level`, which counts against the uid's share: a place on standby,
    /// or one that is made for the tenant. A worker that dies before it is ready is replaced, at
    /// most twice. If there is no room, this waits until `until` in three cases: the tenant is to
    /// live alone, the uid has no process, or the tenant still has a run in a home that it is
    /// leaving. A tenant that is to live alone is never put beside others for lack of room.
    pub(crate) async fn admit(
        &self,
        residence: &Arc<Residence>,
        level: Level,
        memory_mb: u32,
        uid: u32,
        until: Instant,
    ) -> Result<Arc<Home>, AdmitError> {
        let mut more = 1..TRIES;
        loop {
            match self.admit_once(residence, level, memory_mb, uid, until).await {
                Err(AdmitError::Start(StartError::NotReady(_)) | AdmitError::NotPrepared(NotPrepared::Thread(_)))
                    if more.next().is_some() => {}
                admitted => return admitted,
            }
        }
    }

    async fn admit_once(
        &self,
        residence: &Arc<Residence>,
        level: Level,
        memory_mb: u32,
        uid: u32,
        until: Instant,
    ) -> Result<Arc<Home>, AdmitError> {
        let tenant = &residence.tenant;
        let reserved = loop {
            let room = self.room.notified();
            let error = match self.reserve(residence, level, uid) {
                Ok(reserved) => break reserved,
                Err(AdmitError::Full(_)) if self.make_room(uid, &self.homes, |_| true) => continue,
                Err(AdmitError::FullAlone(_)) if self.make_room(uid, &self.homes_alone, Level::is_alone) => continue,
                Err(error) => error,
            };
            let left = until.saturating_duration_since(Instant::now());
            // A uid without a process waits as well: `make_room` gives it the process of another
            // uid as soon as one is idle.
            if left.is_zero() || !(level.is_alone() || self.homes.held_by(uid) == 0 || residence.is_draining()) {
                return Err(error);
            }
            // A tenant that becomes idle does not notify, so idle tenants are looked for at
            // intervals.
            let _ = tokio::time::timeout(left.min(LOOK_FOR_ROOM), room).await;
        };
        // Until the tenant has moved in, a failure or a client that disconnects gives the slot up
        // again.
        let ReservedSlot { entry, taken: Taken { slot, standby }, worker: cell, roster, held } = reserved;
        let mut reservation = Reservation { pool: self, entry, slot, kept: false };
        let start = || self.starter.start(level, Some(uid), Arc::clone(&roster), Some(held));
        let worker = Arc::clone(cell.get_or_try_init(start).await?);
        let standby = match standby {
            Some(standby) => standby,
            None => Standby::make(&worker, slot, memory_mb).await?,
        };
        roster.add(slot, tenant);
        let home = Home::new(Arc::clone(tenant), Arc::clone(&worker), standby, uid, Arc::clone(&self.warden));
        if let Some(entry) = self.lock().by_id.get_mut(&entry) {
            entry.moved_in(slot, residence, &home);
        }
        reservation.kept = true;
        self.demand.note_change();
        let reason = match level {
            Level::Shared => "first run, or back after idleness",
            Level::Solo => "it must live alone",
            Level::Sealed | Level::Expelled => "it must live sealed",
        };
        self.warden.events.emit(EventKind::Admitted {
            tenant: tenant.name.to_string(),
            uid,
            worker: worker.id,
            level: level.as_str(),
            reason,
        });
        Ok(home)
    }

    /// Takes a slot, if there is one. The slot's process may still need to be started.
    fn reserve(&self, residence: &Arc<Residence>, level: Level, uid: u32) -> Result<ReservedSlot, AdmitError> {
        self.bury_dead();
        let (outdated, now) = (self.warden.engine_is_outdated(), clock::now());
        let traits = |tenant: &Tenant| tenant.traits(outdated, &self.warden.cordon.rules, now);
        let mut entries = self.lock();
        let processes = entries.open_to(uid, traits);
        // Closing workers accept no tenants, but still count against the bounds.
        let (closing, closing_alone) = entries.closing(uid);
        let most = |supply: &Supply| usize::try_from(supply.most(uid)).unwrap_or(usize::MAX);
        let (most, alone) = (most(&self.homes), most(&self.homes_alone));
        let bounds = Bounds { processes: most.saturating_sub(closing), alone: alone.saturating_sub(closing_alone) };
        self.demand.arrived(clock::monotonic());
        let id = match place(&traits(&residence.tenant), level, &processes, self.capacity, bounds) {
            Placement::Into(id) => id,
            Placement::Full | Placement::Refused => return Err(AdmitError::Full(most)),
            Placement::FullAlone => return Err(AdmitError::FullAlone(alone)),
            Placement::New(level) => {
                let held_home = self.homes.take(uid, 1).map_err(|_| AdmitError::Full(most))?;
                let held_alone = level.is_alone().then(|| self.homes_alone.take(uid, 1)).transpose();
                let held = Arc::new((held_home, held_alone.map_err(|_| AdmitError::FullAlone(alone))?));
                match entries.give_standby(level, Owner { uid, held }) {
                    Ok(id) => id,
                    Err(owner) => {
                        self.make_room_of_standby(&mut entries, level);
                        entries.add(Entry::new(Some(owner), level))
                    }
                }
            }
        };
        let entry = entries.by_id.get_mut(&id).ok_or(AdmitError::Full(most))?;
        let held = Arc::clone(&entry.owner.as_ref().ok_or(AdmitError::Full(most))?.held);
        if let Some(worker) = entry.worker.get().filter(|worker| worker.belongs_to(uid)) {
            let (worker, pid) = (worker.id, worker.pid.as_raw());
            self.warden.events.emit(EventKind::WorkerTaken { worker, pid, uid, level: level.as_str() });
        }
        let taken = entry.take_slot(residence);
        let (worker, roster) = (Arc::clone(&entry.worker), Arc::clone(&entry.roster));
        Ok(ReservedSlot { entry: id, taken, worker, roster, held })
    }

    /// Removes dead workers from the pool, and emits an event for each.
    pub(crate) fn bury_dead(&self) {
        let dead: Vec<_> = self.lock().by_id.extract_if(.., |_, entry| entry.is_dead()).collect();
        for (_, entry) in dead {
            let Some(worker) = entry.worker.get().cloned() else { continue };
            self.room.notify_waiters();
            let tenants = entry.names();
            let events = Arc::clone(&self.warden.events);
            tokio::spawn(async move {
                let reason = worker.death().await.to_string();
                let (id, pid, uid) = (worker.id, worker.pid.as_raw(), worker.uid());
                events.emit(EventKind::WorkerDied { worker: id, pid, uid, reason, tenants });
            });
        }
    }

    /// Has a tenant leave a home, and removes the tenant from its slot. A process without tenants
    /// is ended, because at least one of its slots is used up.
    pub(crate) fn leave(&self, home: &Home, reason: &'static str) {
        home.leave();
        home.worker.note_left(home.slot);
        let mut entries = self.lock();
        let Some((id, entry)) = entries.of(&home.worker) else { return };
        if let Some(residence) = entry.moved_out(home.slot) {
            residence.note_left(home);
            self.warden.events.emit(EventKind::Retired {
                tenant: residence.tenant.name.to_string(),
                uid: home.uid,
                worker: home.worker.id,
                reason,
            });
        }
        if entry.is_empty() {
            entries.by_id.remove(&id);
            self.warden.events.emit(retired(&home.worker));
            home.worker.kill("no tenant lives in it any more");
        }
        self.room.notify_waiters();
        self.demand.note_change();
    }

    /// Retires the homes that have run nothing for `idle`.
    pub(crate) fn retire_idle(&self, idle: Duration) {
        self.move_out(|_| true, idle, "idle");
    }

    /// From now on no more tenants are admitted to that worker.
    pub(crate) fn close(&self, worker: &Worker) {
        if let Some((_, entry)) = self.lock().of(worker) {
            entry.closing = true;
        }
    }

    /// Admits no more tenants to workers older than `age`, and retires their homes as soon as they
    /// are idle: what an attacker has learnt about a process's memory is worthless in the next one.
    pub(crate) fn retire_old(&self, age: Duration) {
        for entry in self.lock().by_id.values_mut() {
            entry.closing |= entry.worker.get().is_some_and(|worker| worker.started_at.elapsed() >= age);
        }
        self.demand.note_change();
        self.move_out(|entry| entry.closing, Duration::ZERO, "its process admits no more tenants");
    }

    fn move_out(&self, which: impl Fn(&Entry) -> bool, idle: Duration, reason: &'static str) {
        let homes: Vec<_> = {
            let entries = self.lock();
            let entries = entries.by_id.values().filter(|entry| which(entry));
            entries.flat_map(Entry::homes).cloned().collect()
        };
        for home in homes {
            if home.is_idle() && home.unused_for() >= idle && home.close() {
                self.leave(&home, reason);
            }
        }
    }

    /// Checks the keys of one worker; each call takes the next worker. A worker whose pages do not
    /// carry the keys that they should is killed: its tenants are not isolated from each other.
    pub(crate) async fn inspect_next(&self) {
        let worker = {
            let entries = self.lock();
            let after = self.inspected.load(Ordering::Relaxed);
            let next = entries.by_id.range(after + 1..).chain(entries.by_id.iter()).find_map(|(id, entry)| {
                let worker = entry.worker.get().filter(|worker| !worker.is_dead())?;
                Some((*id, Arc::clone(worker)))
            });
            let Some((id, worker)) = next else { return };
            self.inspected.store(id, Ordering::Relaxed);
            worker
        };
        let looked_at = Arc::clone(&worker);
        let findings = tokio::task::spawn_blocking(move || looked_at.mistagged()).await.unwrap_or_default();
        if !findings.is_empty() {
            let pid = worker.pid.as_raw();
            worker.misbehaves(Signal::ClosedKey);
            worker.kill("its pages do not carry the keys that they should");
            self.warden.events.emit(EventKind::Mistagged { worker: worker.id, pid, uid: worker.uid(), findings });
        }
    }

    /// Whether the home's process has another tenant that this tenant must move away from.
    pub(crate) fn is_among_others(&self, tenant: &Tenant, home: &Home) -> bool {
        let (outdated, now) = (self.warden.engine_is_outdated(), clock::now());
        let traits = |tenant: &Tenant| tenant.traits(outdated, &self.warden.cordon.rules, now);
        let mut entries = self.lock();
        let own = traits(tenant);
        entries
            .of(&home.worker)
            .is_some_and(|(_, entry)| entry.others(home.slot).any(|other| own.must_leave(&traits(&other.tenant))))
    }

    /// The homes with a run in progress or on its way, and their tenants.
    pub(crate) fn busy(&self) -> Vec<(Arc<Tenant>, Arc<Home>)> {
        self.lock().by_id.values().flat_map(Entry::busy).collect()
    }

    /// Every worker with at least one tenant.
    pub(crate) fn occupied(&self) -> Vec<OccupiedWorker> {
        self.lock().by_id.values().filter_map(Entry::occupied).collect()
    }

    /// Retires the tenants of one process of a wanted level, all of them idle. The candidates are
    /// the uid's own processes and, if nothing of the supply is free, those of uids that hold more;
    /// the one that was unused for longest is taken. Returns false if no tenant could be retired.
    fn make_room(&self, uid: u32, supply: &Supply, wanted: impl Fn(Level) -> bool) -> bool {
        let (nothing_free, own) = (supply.free() == 0, supply.held_by(uid));
        let may_lose = |other: u32| other == uid || (nothing_free && supply.held_by(other) > own);
        let victim = {
            let entries = self.lock();
            let owned = entries.by_id.values().filter_map(|entry| Some((entry, entry.owner.as_ref()?.uid)));
            let candidates = owned.filter(|(entry, uid)| may_lose(*uid) && wanted(entry.level)).map(|(entry, _)| entry);
            let oldest = candidates.filter(|entry| entry.is_idle()).max_by_key(|entry| entry.unused_for());
            oldest.map(|entry| entry.homes().cloned().collect::<Vec<_>>())
        };
        match victim {
            Some(homes) => self.empty(&homes, "its process was needed for another tenant"),
            None => false,
        }
    }

    /// Has the tenants of these homes move out. A home that a run has entered meanwhile stays, and
    /// its process with it. Returns whether any tenant has moved out.
    pub(super) fn empty(&self, homes: &[Arc<Home>], reason: &'static str) -> bool {
        let closed: Vec<_> = homes.iter().filter(|home| home.close()).collect();
        for home in &closed {
            self.leave(home, reason);
        }
        !closed.is_empty()
    }

    /// Ends one worker on standby if there are as many workers as there may be, of all or of those
    /// for a single tenant: a tenant needs room for one of this level.
    fn make_room_of_standby(&self, entries: &mut Entries, level: Level) {
        let is_full = entries.by_id.len() >= self.bounds.processes;
        let alone_is_full = level.is_alone() && entries.alone() >= self.bounds.alone;
        if (is_full || alone_is_full)
            && let Some(entry) = entries.take_out_standby(|entry| !alone_is_full || entry.level.is_alone())
        {
            self.end_standby(&entry);
        }
    }

    pub(super) fn end_standby(&self, entry: &Entry) {
        // One that is still starting is ended when it is ready.
        if let Some(worker) = entry.worker.get() {
            self.warden.events.emit(retired(worker));
            worker.kill("it is not wanted on standby any more");
        }
    }

    pub(crate) fn list(&self) -> Vec<Listed> {
        self.bury_dead();
        self.lock().by_id.values().filter_map(Entry::listed).collect()
    }

    /// How many workers there are, how many of them are on standby, and how many tenants there are.
    pub(crate) fn counts(&self) -> Counts {
        let entries = self.lock();
        let started = entries.by_id.values().filter(|entry| entry.worker.get().is_some());
        started.fold(Counts::default(), |counts, entry| Counts {
            workers: counts.workers + 1,
            standby: counts.standby + usize::from(entry.owner.is_none()),
            tenants: counts.tenants + entry.tenants().count(),
        })
    }

    /// Kills every worker, at the end of the daemon.
    pub(crate) async fn end(&self) {
        self.demand.end();
        let entries = std::mem::take(&mut self.lock().by_id);
        for worker in entries.into_values().filter_map(|entry| entry.worker.get().cloned()) {
            worker.kill("the daemon is ending");
            worker.death().await;
        }
    }
}

/// A slot that was taken, in a process that may still need to be started.
struct ReservedSlot {
    entry: u64,
    taken: Taken,
    worker: Arc<OnceCell<Arc<Worker>>>,
    roster: Arc<Roster>,
    held: Arc<Part>,
}

/// Gives a taken slot up again on drop, unless the tenant has moved in.
struct Reservation<'a> {
    pool: &'a Pool,
    entry: u64,
    slot: Slot,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.pool.demand.note_change();
        let mut entries = self.pool.lock();
        let Some(entry) = entries.by_id.get_mut(&self.entry) else { return };
        // A worker that died on the way is buried like any other, with the tenant's name.
        if entry.is_dead() {
            drop(entries);
            return self.pool.bury_dead();
        }
        entry.moved_out(self.slot);
        if !entry.is_empty() {
            return;
        }
        // A process that was never started is forgotten. A process that was started has used up a
        // slot, and is ended.
        let worker = entry.worker.get().cloned();
        let entry = entries.by_id.remove(&self.entry);
        if let Some(worker) = worker {
            self.pool.warden.events.emit(retired(&worker));
            worker.kill("no tenant lives in it any more");
            // The uid holds its part of the supplies until the process is dead: abandoned requests
            // are not free.
            tokio::spawn(async move {
                worker.death().await;
                drop(entry);
            });
        }
    }
}
