//! The work that goes on for as long as the daemon lives: it retires idle and old homes, observes
//! running tenants, and moves misplaced ones.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use enisle_cordon::{Because, Seen, Signal};
use enisle_hardening::process::allocator;

use crate::cordons::warden::Scene;
use crate::daemon::{Daemon, SOME_TENANTS, Supplies};
use crate::events::EventKind;
use crate::homes::blame::Roster;
use crate::homes::entries::OccupiedWorker;
use crate::workers::holdings::Unexplained;
use crate::workers::process::Worker;

/// The memory of busy processes is read once in this many windows, because reading a process's
/// mappings takes some milliseconds. A process that has grown is read in the next window.
const WINDOWS_PER_READING: u32 = 6;
/// The memory of an idle worker does not change, so one idle worker is read in this many windows.
const WINDOWS_PER_IDLE_READING: u32 = 60;
/// How many readings in a row must find too much memory before a tenant is moved. Memory that a run
/// needs only for a moment does not count.
const READINGS_BEFORE_ACTION: u32 = 2;

/// The longest time for which the pages of a large request are kept after its end.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(2);

/// With more names than this, freed pages are given back now and then even without large requests.
const MANY_NAMES: usize = 10_000;
const ROUNDS_WITH_NAMES: u32 = 5;

impl Daemon {
    /// Retires idle homes, empties old workers, looks after tenants, and checks the keys of one
    /// worker after the other, for as long as the daemon lives.
    pub(crate) async fn keep_house(self: &Arc<Self>) {
        let workers = &self.config.workers;
        let (idle, age) = (Duration::from_secs(workers.idle_secs), Duration::from_secs(workers.max_age_secs));
        let pause = idle.min(age).clamp(Duration::from_millis(500), Duration::from_secs(10));
        let mut rounds = tokio::time::interval(pause);
        loop {
            rounds.tick().await;
            self.homes.pool.bury_dead();
            self.homes.pool.retire_idle(idle);
            self.homes.pool.retire_old(age);
            self.look_after_tenants().await;
            self.homes.pool.inspect_next().await;
        }
    }

    /// Gives pages back to the machine after large requests, for as long as the daemon lives.
    pub(crate) async fn give_back_memory(self: &Arc<Self>) {
        let (mut rounds, mut rounds_left) = (tokio::time::interval(GIVE_BACK_EVERY), 0);
        loop {
            rounds.tick().await;
            let Supplies { bodies, scripts, .. } = &self.supplies;
            // With many names there are many small allocations, such as queued records and events.
            rounds_left = if rounds_left == 0 { ROUNDS_WITH_NAMES } else { rounds_left - 1 };
            let names = rounds_left == 0 && self.count_tenants() > MANY_NAMES;
            if bodies.has_given_back_much() | scripts.has_given_back_much() | names {
                let _ = tokio::task::spawn_blocking(allocator::give_back_freed_pages).await;
            }
        }
    }

    /// Lets scores decay and suspicions end, and has misplaced tenants moved.
    async fn look_after_tenants(self: &Arc<Self>) {
        let mut last = None;
        loop {
            let some = self.tenants_after(last.as_ref(), SOME_TENANTS);
            for tenant in &some {
                self.warden.look_after(tenant);
                if tenant.on_probation().is_some_and(|uid| self.warden.has_forgiven(uid)) {
                    tenant.end_probation();
                }
                if !self.homes.look_after(tenant) {
                    tenant.tidy();
                }
            }
            let Some(tenant) = some.last() else { return };
            last = Some(tenant.name.clone());
            // There may be a hundred thousand tenants, and other tasks need their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Observes the thread of every tenant with a run, in one window after the other, for as long
    /// as the daemon lives. So a tenant is observed while its run goes on, and not only at its end.
    pub(crate) async fn watch(self: &Arc<Self>) {
        let (rules, counters) = (&self.config.cordon.rules.shape, self.counters.is_ok());
        let mut windows = tokio::time::interval(Duration::from_millis(rules.window_ms));
        windows.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut count, mut reading, mut in_turn) = (0, None, 0);
        loop {
            windows.tick().await;
            let busy = self.homes.pool.busy();
            for (tenant, home) in &busy {
                let seen: Vec<_> = home.observe(rules, counters).into_iter().map(Seen::certain).collect();
                if !seen.is_empty() {
                    self.warden.saw(tenant, home.uid, &seen);
                }
            }
            count = (count + 1) % WINDOWS_PER_IDLE_READING;
            // A reading takes time, and the windows do not wait for it.
            if reading.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                let workers = self.to_be_read(count, &mut in_turn);
                if !workers.is_empty() {
                    let daemon = Arc::clone(self);
                    reading = Some(tokio::spawn(async move { daemon.read_memory(workers).await }));
                }
            }
        }
    }

    /// The workers whose memory is read in this window: always those that have grown, at intervals
    /// those that are busy or over their allowance, and less often one idle worker, in turn.
    fn to_be_read(&self, window: u32, in_turn: &mut u64) -> Vec<OccupiedWorker> {
        let mut workers = self.homes.pool.occupied();
        let mut next = None;
        if window == 0 {
            let idle = || workers.iter().filter(|occupied| !occupied.busy).map(|occupied| occupied.worker.id);
            next = idle().filter(|id| *id > *in_turn).min().or_else(|| idle().min());
            *in_turn = next.unwrap_or_default();
        }
        let is_due = window.is_multiple_of(WINDOWS_PER_READING);
        workers.retain(|OccupiedWorker { worker, busy, .. }| {
            (is_due && (*busy || worker.is_over())) || Some(worker.id) == next || worker.has_grown()
        });
        workers
    }

    /// Compares what processes hold with what their tenants explain: memory on an island with its
    /// tenant's limits, all other memory with what a process needs.
    async fn read_memory(&self, workers: Vec<OccupiedWorker>) {
        for OccupiedWorker { worker, roster, tenants, .. } in workers {
            let process = Arc::clone(&worker);
            if tokio::task::spawn_blocking(move || process.read_memory()).await.is_err() {
                continue;
            }
            for (slot, tenant) in &tenants {
                let limits = self.homes.limits_at(tenant, worker.level);
                let most = self.config.cordon.rules.shape.most_resident(limits.memory_mb);
                if worker.resident_bytes(*slot) > most {
                    self.warden.saw(tenant, worker.uid(), &[Seen::certain(Signal::Resident)]);
                }
            }
            if let Some(found) = worker.unexplained().filter(|found| found.readings >= READINGS_BEFORE_ACTION) {
                self.empty(&worker, &roster, found);
            }
        }
    }

    /// Empties a process that holds more than its tenants explain: it admits no more tenants, and
    /// with each reading one tenant leaves. If one of them is known to hold most, that tenant
    /// leaves first, and then lives alone. The process is ended when the last tenant leaves, which
    /// frees the rest.
    fn empty(&self, worker: &Worker, roster: &Roster, found: Unexplained) {
        self.homes.pool.close(worker);
        let Some((slot, holds_most)) = worker.send_one_away() else { return };
        let Some(tenant) = roster.tenant_in(slot) else { return };
        let (name, pid) = (tenant.name.to_string(), worker.pid.as_raw());
        let (held_mb, most_mb) = (found.bytes >> 20, found.most >> 20);
        self.events.emit(EventKind::UnexplainedMemory {
            worker: worker.id,
            pid,
            uid: worker.uid(),
            tenant: holds_most.then_some(name),
            held_mb,
            most_mb,
        });
        if worker.was_one_tenants() {
            // No other tenant can have caused this.
            self.warden.saw(&tenant, worker.uid(), &[Seen::certain(Signal::Resident)]);
        } else if holds_most {
            let scene = Scene { worker: worker.id, uid: worker.uid() };
            self.warden.keep_apart(&[(Arc::clone(&tenant), None)], Because::UnexplainedMemory, scene);
        }
        self.warden.ask_for_move(&tenant);
    }

    /// Moves misplaced tenants, for as long as the daemon lives.
    pub(crate) async fn move_tenants(self: &Arc<Self>) {
        let Some(mut moves) = self.moves.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        while let Some(tenant) = moves.recv().await {
            let homes = Arc::clone(&self.homes);
            tokio::spawn(async move { homes.rehome(&tenant).await });
        }
    }
}
