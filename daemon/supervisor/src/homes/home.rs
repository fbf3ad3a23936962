//! A home: one tenant in one worker. This module says which runs may enter the home, and how each
//! of them ended. The task that speaks on the tenant's channel is in [`crate::homes::speaker`].
//!
//! When a tenant leaves a home, its current run finishes there; queued runs go to the next home.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Shape, Signal, shape};
use enisle_wire::control::Slot;
use enisle_wire::tenant::RunId;
use nix::unistd::Pid;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::cordons::counters::Counters;
use crate::cordons::warden::Warden;
use crate::homes::exchange::{Ended, HomeState, Leaves, Ticket};
use crate::homes::job::Job;
use crate::homes::speaker::Speaker;
use crate::homes::standby::Standby;
use crate::tenants::tenant::Tenant;
use crate::workers::process::Worker;
use crate::workers::threads;

/// A tenant's slot in a worker, with the channel to the tenant's thread.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) worker: Arc<Worker>,
    pub(crate) slot: Slot,
    /// The number of this home among the tenant's homes.
    pub(crate) token: u64,
    /// The uid whose share the home counts against.
    pub(crate) uid: u32,
    tickets: mpsc::Sender<Box<Ticket>>,
    state: Arc<HomeState>,
    /// Runs in progress or on their way; [`CLOSED`] once the tenant moves out.
    users: AtomicUsize,
    unused: Notify,
    /// Everything that still arrives from here is discarded.
    fenced: AtomicBool,
    /// The tenant's thread once it is known, and the processor's counters for it.
    thread: OnceLock<Pid>,
    counters: Mutex<Option<Counters>>,
    shape: Mutex<Shape>,
}

/// The value of `users` once no more runs may enter.
const CLOSED: usize = usize::MAX;

/// Permission to run here: while it exists, [`Home::close`] does not close the home.
#[derive(Debug)]
pub(crate) struct Visit(Arc<Home>);

impl std::ops::Deref for Visit {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.state.touch();
        if self.0.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.unused.notify_waiters();
        }
    }
}

/// Cancels a run whose client has disconnected: dropping this before the run ends cancels it.
struct CancelOnDrop<'a> {
    home: &'a Home,
    run: Option<RunId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            self.home.worker.cancel(self.home.slot, run);
        }
    }
}

impl Home {
    /// Gives a place on standby to a tenant.
    pub(crate) fn new(
        tenant: Arc<Tenant>,
        worker: Arc<Worker>,
        standby: Standby,
        uid: u32,
        warden: Arc<Warden>,
    ) -> Arc<Self> {
        let token = tenant.next_token();
        let listener = worker.take(standby.slot);
        let (tickets, receive) = mpsc::channel(1);
        let (state, slot) = (Arc::<HomeState>::default(), standby.slot);
        let speaker = Speaker::new(tenant, Arc::clone(&worker), standby, listener, Arc::clone(&state), warden);
        tokio::spawn(speaker.speak(receive));
        Arc::new(Self {
            worker,
            slot,
            token,
            uid,
            tickets,
            state,
            users: AtomicUsize::new(0),
            unused: Notify::new(),
            fenced: AtomicBool::new(false),
            thread: OnceLock::new(),
            counters: Mutex::default(),
            shape: Mutex::default(),
        })
    }

    /// Enters the home. `None` once the tenant is moving out or its worker has ended.
    pub(crate) fn visit(self: &Arc<Self>) -> Option<Visit> {
        if !self.is_open() {
            return None;
        }
        let come_in = |users| if users == CLOSED { None } else { Some(users + 1) };
        self.users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, come_in).ok()?;
        self.state.touch();
        Some(Visit(Arc::clone(self)))
    }

    /// Has isolates of replaced or deleted scripts disposed of, if any are here.
    pub(crate) fn forget_replaced(&self) {
        self.state.scripts_changed.notify_one();
    }

    /// Closes the home to further runs, if no run is in it. Returns whether it did.
    pub(crate) fn close(&self) -> bool {
        self.users.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether runs may enter.
    pub(crate) fn is_open(&self) -> bool {
        !self.tickets.is_closed()
            && !self.worker.has_ended()
            && !self.is_closed()
            && *self.state.leaves.borrow() == Leaves::No
    }

    /// Whether the home was lost, although the tenant was not to leave it: its process has ended,
    /// or is about to.
    pub(crate) fn is_lost(&self) -> bool {
        let stays = !self.is_closed() && *self.state.leaves.borrow() == Leaves::No;
        stays && (self.tickets.is_closed() || self.worker.has_ended())
    }

    /// The tenant leaves: its thread ends after the current run, and queued runs go to the next
    /// home.
    pub(crate) fn leave(&self) {
        self.leave_at_least(Leaves::InTime);
    }

    /// The tenant leaves, and its current run has bounded time. The task that waits for that run
    /// uses [`Home::overstays`].
    pub(crate) fn leave_in_haste(&self) {
        self.leave_at_least(Leaves::InHaste);
    }

    fn leave_at_least(&self, leaves: Leaves) {
        self.state.turn.close();
        self.state.leaves.send_if_modified(|known| {
            let later = *known < leaves;
            *known = leaves.max(*known);
            later
        });
    }

    /// Waits until the tenant has been leaving in haste for `patience`.
    pub(crate) async fn overstays(&self, patience: Duration) {
        let mut leaves = self.state.leaves.subscribe();
        if leaves.wait_for(|leaves| *leaves == Leaves::InHaste).await.is_ok() {
            tokio::time::sleep(patience).await;
        }
    }

    /// Fences the home: everything that still arrives from it is discarded.
    pub(crate) fn fence(&self) {
        self.leave();
        self.fenced.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    /// Whether a run is in progress or on its way.
    pub(crate) fn is_used(&self) -> bool {
        !matches!(self.users.load(Ordering::SeqCst), 0 | CLOSED)
    }

    /// Samples the thread, with the processor's counters if available, and returns the signals that
    /// its last window shows.
    pub(crate) fn observe(&self, rules: &shape::ShapeRules, with_counters: bool) -> Vec<Signal> {
        let thread = self.thread.get().copied().or_else(|| {
            let thread = self.worker.thread_of(self.slot)?;
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            *counters = with_counters.then(|| Counters::of(thread).ok()).flatten();
            Some(*self.thread.get_or_init(|| thread))
        });
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = counters.as_mut().and_then(|counters| counters.read().ok()).unwrap_or_default();
        let kernels = thread.and_then(|thread| threads::counts(self.worker.pid, thread));
        let sample = kernels.map(|kernels| self.state.meter.sample(kernels, counted));
        let mut shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        sample.map(|sample| shape.observe(sample, rules)).unwrap_or_default()
    }

    /// Whether the tenant is moving out.
    pub(crate) fn is_closed(&self) -> bool {
        self.users.load(Ordering::SeqCst) == CLOSED
    }

    /// Waits until no run is in the home, and closes it. Also returns if the worker dies. The
    /// caller must keep new runs from entering meanwhile.
    pub(crate) async fn close_when_unused(&self) {
        loop {
            let unused = self.unused.notified();
            if self.close() || self.is_closed() || self.worker.is_dead() {
                return;
            }
            tokio::select! {
                () = unused => {}
                _ = self.worker.death() => {}
            }
        }
    }

    /// Runs one job. Dropping the future cancels it.
    pub(crate) async fn run(&self, job: Job) -> Ended {
        let at = Instant::now();
        let Ok(turn) = Arc::clone(&self.state.turn).acquire_owned().await else { return Ended::NotBegun };
        let mut guard = CancelOnDrop { home: self, run: Some(job.run.id) };
        let (reply, answer) = oneshot::channel();
        // The ticket always fits: it carries the turn, and only one turn exists.
        let ended = match self.tickets.try_send(Box::new(Ticket { job, at, reply, _turn: turn })) {
            Ok(()) => answer.await.unwrap_or(Ended::NotBegun),
            Err(_) => Ended::NotBegun,
        };
        guard.run = None;
        ended
    }

    /// Whether a warm isolate is waiting and no run is in progress or on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.warm.load(Ordering::Relaxed) && matches!(self.users.load(Ordering::SeqCst), 0 | CLOSED)
    }

    pub(crate) fn unused_for(&self) -> Duration {
        self.state.idle()
    }
}
