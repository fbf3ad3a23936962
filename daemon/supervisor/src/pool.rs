//! Which tenants live where: placement by `cordon`, admission, idleness, and what happens when a worker dies.
//!
//! A place in a worker is spent by the tenant that has it: cage and key are never handed on. A worker whose places are
//! spent and whose tenants have left is ended.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enisle_cordon::{Capacity, Level, Placement, Process, place};
use enisle_wire::control::{Admit, Slot};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use crate::birth::{Blueprint, StartError};
use crate::events::{Events, What};
use crate::policy::TenantName;
use crate::process::Worker;
use crate::resident::Resident;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(
        "every one of the {0} worker processes that the configuration allows (workers.max) is taken by a busy tenant"
    )]
    Full(usize),
    #[error("a worker process could not be started: {0}")]
    Start(#[from] StartError),
    #[error("a channel for the tenant could not be made: {0}")]
    Channel(std::io::Error),
}

/// A worker, living or about to.
#[derive(Debug)]
struct Entry {
    level: Level,
    places_used: u32,
    /// Too old: nobody comes in any more.
    closing: bool,
    residents: BTreeMap<Slot, (TenantName, Option<Arc<Resident>>)>,
    /// Set once its process is ready; whoever comes first starts it, whoever comes meanwhile waits.
    worker: Arc<OnceCell<Arc<Worker>>>,
}

impl Entry {
    fn is_dead(&self) -> bool {
        self.worker.get().is_some_and(|worker| worker.is_dead())
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    blueprint: Arc<Blueprint>,
    pub(crate) capacity: Capacity,
    pub(crate) max_workers: usize,
    snapshot: OwnedFd,
    events: Arc<Events>,
    entries: Mutex<(u64, BTreeMap<u64, Entry>)>,
    /// The worker whose keys were looked at last.
    inspected: AtomicU64,
}

/// One worker, for `GET /v1/workers`.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) places_used: u32,
    pub(crate) tenants: Vec<String>,
}

impl Pool {
    pub(crate) fn new(
        blueprint: Arc<Blueprint>,
        capacity: Capacity,
        max_workers: usize,
        snapshot: OwnedFd,
        events: Arc<Events>,
    ) -> Self {
        Self {
            blueprint,
            capacity,
            max_workers,
            snapshot,
            events,
            entries: Mutex::default(),
            inspected: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Entry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a tenant a home. It says by itself when it is warm; runs may be sent before.
    pub(crate) async fn admit(
        &self,
        tenant: &TenantName,
        level: Level,
        memory_mb: u32,
    ) -> Result<Arc<Resident>, AdmitError> {
        let reserved = loop {
            match self.reserve(tenant, level) {
                Some(reserved) => break reserved,
                None if self.make_room() => {}
                None => return Err(AdmitError::Full(self.max_workers)),
            }
        };
        // Until the tenant has moved in, a failure or a client that goes away gives the place up again.
        let mut reservation = Reservation { pool: self, entry: reserved.entry, slot: reserved.slot, kept: false };
        let Place { entry, slot, worker: cell } = reserved;
        let start = || async {
            let worker = Worker::start(&self.blueprint, level, &self.snapshot, &self.events).await?;
            Ok::<_, StartError>(worker)
        };
        let worker = Arc::clone(cell.get_or_try_init(start).await?);
        let (ours, theirs) = StdUnixStream::pair().map_err(AdmitError::Channel)?;
        ours.set_nonblocking(true).map_err(AdmitError::Channel)?;
        let ours = UnixStream::from_std(ours).map_err(AdmitError::Channel)?;
        worker.admit(tenant, Admit { slot, memory_mb }, theirs.into());
        let resident = Resident::new(tenant.clone(), Arc::clone(&worker), slot, ours, Arc::clone(&self.events));
        if let Some(entry) = self.lock().1.get_mut(&entry) {
            entry.residents.insert(slot, (tenant.clone(), Some(Arc::clone(&resident))));
        }
        reservation.kept = true;
        let reason = match level {
            Level::Shared => "first run, or back after idleness",
            Level::Solo => "a run of it was lost with its worker, or ended one",
        };
        self.events.tell(What::Admitted {
            tenant: tenant.to_string(),
            worker: worker.id,
            level: level.as_str(),
            reason,
        });
        Ok(resident)
    }

    /// Takes a place, if there is one. The process behind it may still have to be started.
    fn reserve(&self, tenant: &TenantName, level: Level) -> Option<Place> {
        self.bury_dead();
        let mut guard = self.lock();
        let (next, entries) = &mut *guard;
        let processes: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| !entry.closing)
            .map(|(id, entry)| Process {
                id: *id,
                level: entry.level,
                residents: entry.residents.len(),
                places_used: entry.places_used as usize,
            })
            .collect();
        // Those that take nobody in are there all the same.
        let most = self.max_workers.saturating_sub(entries.len() - processes.len());
        let id = match place(level, &processes, self.capacity, most) {
            Placement::Into(id) => id,
            Placement::Full => return None,
            Placement::New(level) => {
                *next += 1;
                let (closing, residents) = (false, BTreeMap::new());
                let entry = Entry { level, places_used: 0, closing, residents, worker: Arc::default() };
                entries.insert(*next, entry);
                *next
            }
        };
        let entry = entries.get_mut(&id)?;
        let slot = Slot(entry.places_used);
        entry.places_used += 1;
        entry.residents.insert(slot, (tenant.clone(), None));
        Some(Place { entry: id, slot, worker: Arc::clone(&entry.worker) })
    }

    /// Forgets dead workers, and tells of each.
    pub(crate) fn bury_dead(&self) {
        let dead: Vec<_> = self.lock().1.extract_if(.., |_, entry| entry.is_dead()).collect();
        for (_, entry) in dead {
            let Some(worker) = entry.worker.get().cloned() else { continue };
            let tenants = entry.residents.values().map(|(tenant, _)| tenant.to_string()).collect();
            let events = Arc::clone(&self.events);
            tokio::spawn(async move {
                let reason = worker.death().await.to_string();
                events.tell(What::WorkerDied { worker: worker.id, pid: worker.pid.as_raw(), reason, tenants });
            });
        }
    }

    /// A tenant has left its place. A process that nobody lives in any more, and that has spent a place, is ended.
    pub(crate) fn leave(&self, resident: &Resident, reason: &'static str) {
        let mut guard = self.lock();
        let found = guard
            .1
            .iter_mut()
            .find(|(_, entry)| entry.worker.get().is_some_and(|worker| worker.id == resident.worker.id));
        let Some((id, entry)) = found else { return };
        let id = *id;
        if let Some((tenant, _)) = entry.residents.remove(&resident.slot) {
            self.events.tell(What::Retired { tenant: tenant.to_string(), worker: resident.worker.id, reason });
        }
        if entry.residents.is_empty() {
            guard.1.remove(&id);
            self.events.tell(What::WorkerRetired { worker: resident.worker.id, pid: resident.worker.pid.as_raw() });
            resident.worker.kill("nobody lives in it any more");
        }
    }

    /// Lets the residents move out that have run nothing for `idle`.
    pub(crate) fn retire_idle(&self, idle: Duration) {
        self.move_out(|_| true, idle, "idle");
    }

    /// Takes nobody into that worker any more.
    pub(crate) fn close(&self, worker: &Worker) {
        for entry in self.lock().1.values_mut() {
            entry.closing |= entry.worker.get().is_some_and(|known| known.id == worker.id);
        }
    }

    /// Takes nobody into workers older than `age` any more, and lets their residents move out as soon as they are idle: what
    /// an attacker has learnt of a process's memory is worth nothing in the next one.
    pub(crate) fn retire_old(&self, age: Duration) {
        for entry in self.lock().1.values_mut() {
            entry.closing |= entry.worker.get().is_some_and(|worker| worker.started_at.elapsed() >= age);
        }
        self.move_out(|entry| entry.closing, Duration::ZERO, "its process is old");
    }

    fn move_out(&self, whose: impl Fn(&Entry) -> bool, idle: Duration, reason: &'static str) {
        let residents: Vec<_> = {
            let guard = self.lock();
            let entries = guard.1.values().filter(|entry| whose(entry));
            entries.flat_map(|entry| entry.residents.values()).filter_map(|(_, resident)| resident.clone()).collect()
        };
        for resident in residents {
            if resident.is_idle() && resident.unused_for() >= idle && resident.close() {
                self.leave(&resident, reason);
            }
        }
    }

    /// Looks at the keys of one worker, each time the next one. One whose pages do not carry the keys that they should is
    /// ended: its tenants are not kept apart.
    pub(crate) async fn inspect_next(&self) {
        let worker = {
            let guard = self.lock();
            let after = self.inspected.load(Ordering::Relaxed);
            let next = guard.1.range(after + 1..).chain(guard.1.iter()).find_map(|(id, entry)| {
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
            worker.kill("its pages do not carry the keys that they should");
            self.events.tell(What::Mistagged { worker: worker.id, pid, findings });
        }
    }

    /// Ends the process whose tenants are all idle and that was unused for longest. False if every one is busy.
    fn make_room(&self) -> bool {
        let victim = {
            let guard = self.lock();
            let all_idle = |entry: &&Entry| {
                entry
                    .residents
                    .values()
                    .all(|(_, resident)| resident.as_ref().is_some_and(|resident| resident.is_idle()))
            };
            let unused_for = |entry: &Entry| {
                entry.residents.values().filter_map(|(_, resident)| Some(resident.as_ref()?.unused_for())).min()
            };
            let oldest = guard.1.values().filter(all_idle).max_by_key(|entry| unused_for(entry));
            oldest
                .map(|entry| entry.residents.values().filter_map(|(_, resident)| resident.clone()).collect::<Vec<_>>())
        };
        match victim {
            Some(residents) if !residents.is_empty() => {
                // One that somebody has come into meanwhile stays, and its process with it.
                let closed: Vec<_> = residents.iter().filter(|resident| resident.close()).collect();
                for resident in &closed {
                    self.leave(resident, "its process was needed for another tenant");
                }
                !closed.is_empty()
            }
            _ => false,
        }
    }

    pub(crate) fn list(&self) -> Vec<Listed> {
        self.bury_dead();
        let guard = self.lock();
        guard
            .1
            .values()
            .filter_map(|entry| {
                let worker = Arc::clone(entry.worker.get()?);
                let tenants = entry.residents.values().map(|(tenant, _)| tenant.to_string()).collect();
                Some(Listed { worker, places_used: entry.places_used, tenants })
            })
            .collect()
    }

    /// Ends every worker, at the end of the daemon.
    pub(crate) async fn end(&self) {
        let entries = std::mem::take(&mut self.lock().1);
        for worker in entries.into_values().filter_map(|entry| entry.worker.get().cloned()) {
            worker.kill("the daemon is ending");
            worker.death().await;
        }
    }
}

/// A place that was taken, in a process that may still have to be started.
struct Place {
    entry: u64,
    slot: Slot,
    worker: Arc<OnceCell<Arc<Worker>>>,
}

/// A place that was taken and is given up again unless the tenant moves in.
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
        let mut guard = self.pool.lock();
        let Some(entry) = guard.1.get_mut(&self.entry) else { return };
        entry.residents.remove(&self.slot);
        if !entry.residents.is_empty() {
            return;
        }
        // A process that never came to be is forgotten; one that did has spent a place on nobody, and is ended.
        let worker = entry.worker.get().cloned();
        guard.1.remove(&self.entry);
        if let Some(worker) = worker {
            self.pool.events.tell(What::WorkerRetired { worker: worker.id, pid: worker.pid.as_raw() });
            worker.kill("nobody lives in it any more");
        }
    }
}
