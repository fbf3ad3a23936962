//! Keeps places on standby, so that a new tenant waits for nothing but its run.
//!
//! On standby are whole workers, nobody's yet, each with a place that is ready; and in each worker
//! that has tenants and unused slots, one more place. How many workers, `cordon::standby` decides
//! by how fast tenants arrive. They count against `workers.max`, and give way to any tenant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use enisle_cordon::Level;
use enisle_wire::control::Slot;

use crate::clock;
use crate::homes::blame::Roster;
use crate::homes::entries::{Entries, Entry};
use crate::homes::find::Homes;
use crate::homes::home::Home;
use crate::homes::pool::Pool;
use crate::homes::standby::Standby;
use crate::workers::process::Worker;

/// How many places are made at one time. Making one takes a processor for some 15 ms, and for 25
/// more if several tenants may come.
const MAKERS: usize = 2;
/// How soon making is tried again after a failure, at first and at last.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_AT_LAST: Duration = Duration::from_secs(60);
/// How long after a tenant has come no worker is started for standby, as long as one is ready. The
/// tenant's run comes first: on two processors, a start beside a run of a millisecond doubles the
/// run's time.
const RUN_FIRST: Duration = Duration::from_millis(5);
/// How often it is decided again while tenants arrive: the stock falls when they no longer do.
const DECIDE_AGAIN: Duration = Duration::from_secs(5);
/// A process whose tenants ran something more recently does not give way to standby: they will run
/// something again soon.
const IDLE_ENOUGH: Duration = Duration::from_secs(1);

/// The next thing to do.
enum Task {
    Start(u64, Level),
    Prepare(u64, Arc<Worker>, Slot, Level),
    /// A process of idle tenants gives way: the next new tenant would end it.
    MakeRoom(Vec<Arc<Home>>),
    /// Decide again after [`RUN_FIRST`].
    Wait,
}

impl Homes {
    /// Keeps places on standby for as long as the daemon lives.
    pub(crate) async fn keep_standby(self: &Arc<Self>) {
        let mut makers = tokio::task::JoinSet::new();
        for _ in 0..MAKERS {
            let homes = Arc::clone(self);
            makers.spawn(async move { homes.pool.make_standby().await });
        }
        makers.join_all().await;
    }
}

impl Pool {
    async fn make_standby(&self) {
        let mut try_again = TRY_AGAIN;
        while !self.demand.ended.load(Ordering::SeqCst) {
            let mut changed = std::pin::pin!(self.demand.changed.notified());
            changed.as_mut().enable();
            match self.next_task() {
                None if self.demand.arrivals().are_remembered(clock::monotonic()) => {
                    let _ = tokio::time::timeout(DECIDE_AGAIN, changed).await;
                }
                None => changed.await,
                Some(task) => match self.carry_out(task).await {
                    Ok(()) => try_again = TRY_AGAIN,
                    Err(why) => {
                        tracing::warn!(%why, again_in_secs = try_again.as_secs(), "a place could not be made ready");
                        tokio::time::sleep(try_again).await;
                        try_again = (try_again * 2).min(TRY_AGAIN_AT_LAST);
                    }
                },
            }
        }
    }

    /// Decides what to do next, and ends workers on standby that are not wanted any more.
    fn next_task(&self) -> Option<Task> {
        if self.demand.is_off() {
            return None;
        }
        self.bury_dead();
        let (now, most) = (clock::monotonic(), self.bounds.processes);
        let mut entries = self.lock();
        while let Some(old) = entries.take_out_standby(|entry| entry.closing) {
            self.end_standby(&old);
        }
        let to_prepare = entries.by_id.iter_mut().find_map(|(id, entry)| {
            let (worker, slot) = entry.slot_to_prepare(self.starter.slots(entry.level))?;
            Some(Task::Prepare(*id, worker, slot, entry.level))
        });
        if to_prepare.is_some() {
            return to_prepare;
        }
        // Tenants that wait come first. Otherwise a client that abandons one start after the other
        // would have more processes started than the turns of its uid allow.
        if self.starter.is_busy() {
            return None;
        }
        for level in [Level::Shared, Level::Solo, Level::Sealed] {
            let wanted = self.demand.wanted(level, now, most);
            while entries.on_standby(level) > wanted
                && let Some(surplus) = entries.take_out_standby(|entry| entry.level == level)
            {
                self.end_standby(&surplus);
            }
            let has_room = !level.is_alone() || entries.alone() < self.bounds.alone;
            if entries.on_standby(level) < wanted && has_room {
                if entries.by_id.len() < most {
                    if entries.is_ready(level) && self.demand.arrivals().last_within(RUN_FIRST, now) {
                        return Some(Task::Wait);
                    }
                    return Some(Task::Start(entries.add(Entry::new(None, level)), level));
                }
                return self.least_used(&entries).map(Task::MakeRoom);
            }
        }
        None
    }

    /// The homes in the process that has been idle for longest, while new tenants arrive. It is one
    /// of the uid that holds most, as if a tenant of another uid needed it.
    fn least_used(&self, entries: &Entries) -> Option<Vec<Arc<Home>>> {
        let idle = entries.by_id.values().filter(|entry| entry.is_idle());
        let owned = idle.filter_map(|entry| Some((entry.owner.as_ref()?.uid, entry.unused_for()?, entry)));
        let (_, unused, entry) = owned.max_by_key(|(uid, unused, _)| (self.homes.held_by(*uid), *unused))?;
        let are_arriving = self.demand.arrivals().are_remembered(clock::monotonic());
        (are_arriving && unused >= IDLE_ENOUGH).then(|| entry.homes().cloned().collect())
    }

    async fn carry_out(&self, task: Task) -> Result<(), String> {
        match task {
            Task::MakeRoom(homes) => drop(self.empty(&homes, "room was made for new tenants")),
            Task::Wait => tokio::time::sleep(RUN_FIRST).await,
            Task::Start(id, level) => {
                let roster = Arc::<Roster>::default();
                let started = self.starter.start(level, None, Arc::clone(&roster), None).await;
                let mut entries = self.lock();
                match (started, entries.by_id.get_mut(&id)) {
                    (Ok(worker), Some(entry)) => {
                        let (demand, process) = (Arc::clone(&self.demand), Arc::clone(&worker));
                        tokio::spawn(async move {
                            process.death().await;
                            demand.note_change();
                        });
                        entry.started(worker, roster);
                    }
                    // It gave way to a tenant before it was ready.
                    (Ok(worker), None) => worker.kill("it is not wanted on standby any more"),
                    (Err(error), _) => {
                        entries.by_id.remove(&id);
                        return Err(error.to_string());
                    }
                }
            }
            Task::Prepare(id, worker, slot, level) => {
                let made = Standby::make(&worker, slot, self.demand.memory_mb(level)).await;
                let (made, failed) =
                    made.map_or_else(|error| (None, Err(error.to_string())), |made| (Some(made), Ok(())));
                if let Some(entry) = self.lock().by_id.get_mut(&id) {
                    entry.prepared(made);
                }
                return failed;
            }
        }
        Ok(())
    }
}
