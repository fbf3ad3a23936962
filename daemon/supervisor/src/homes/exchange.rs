//! What a home and the task that speaks for it hand to each other: runs, their ends, and how far
//! the home has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enisle_wire::Outcome;
use enisle_wire::control::Slot;
use enisle_wire::tenant::{Advice, LogLine, ScriptError, Usage};
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::cordons::meter::Meter;
use crate::homes::job::Job;
use crate::share::{Exhausted, Held};
use crate::workers::listeners::Listener;

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By the worker's word.
    Done(Box<Finished>),
    /// By the supervisor's own judgement, from how the process ended.
    Judged(Box<Finished>),
    /// The worker died under it.
    Lost(Lost),
    /// It ended, and there was no room for its answer.
    Unanswered { bytes: usize, why: Exhausted, usage: Usage },
    /// The resident was gone before the run began.
    NotBegun,
}

impl Ended {
    /// What it is charged.
    pub(crate) fn cpu_us(&self) -> u64 {
        match self {
            Self::Done(finished) | Self::Judged(finished) => finished.usage.cpu_us,
            Self::Lost(Lost { usage, .. }) | Self::Unanswered { usage, .. } => usage.cpu_us,
            Self::NotBegun => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) why: String,
    /// It is known to be another tenant's doing.
    pub(crate) anothers_doing: bool,
    /// What it had used; nothing where it was another tenant's doing.
    pub(crate) usage: Usage,
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) outcome: Outcome,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) error: Option<ScriptError>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) truncated: bool,
    pub(crate) usage: Usage,
    pub(crate) queued: Duration,
    /// The worker's word: it weighs little.
    pub(crate) advice: Advice,
    /// What result and log are charged, where they are of any size.
    pub(crate) held: Option<Held>,
}

impl Finished {
    /// An end that no worker has told of.
    pub(crate) fn of_ours(outcome: Outcome, error: Option<ScriptError>, usage: Usage) -> Self {
        Self {
            outcome,
            result: None,
            error,
            logs: Vec::new(),
            truncated: true,
            usage,
            queued: Duration::ZERO,
            advice: Advice::default(),
            held: None,
        }
    }
}

/// What is spoken on with a tenant's thread.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) slot: Slot,
    pub(crate) stream: UnixStream,
    pub(crate) listener: Listener,
}

/// A run whose turn it is.
pub(crate) struct Ticket {
    pub(crate) job: Job,
    /// When it began to wait.
    pub(crate) at: Instant,
    pub(crate) reply: oneshot::Sender<Ended>,
    /// The next one's turn comes when this one is over.
    pub(crate) _turn: OwnedSemaphorePermit,
}

/// What a home and its task share.
#[derive(Debug)]
pub(crate) struct HomeState {
    pub(crate) warm: AtomicBool,
    pub(crate) phase: watch::Sender<Phase>,
    /// One run at a time. Those that wait do so here, not in the queue of the task: who goes away
    /// waits no more.
    pub(crate) turn: Arc<Semaphore>,
    pub(crate) leaves: watch::Sender<Leaves>,
    /// A script was replaced or deleted: its isolate is of no use. Which ones are there, the meter
    /// knows, so that however often this happens nothing waits here.
    pub(crate) scripts_changed: Notify,
    pub(crate) meter: Meter,
    /// Milliseconds after `epoch` at which it was last used.
    used_ms: AtomicU64,
    epoch: Instant,
}

/// Whether the tenant leaves a home, and for how long its last run there is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaves {
    No,
    /// For as long as the run takes.
    InTime,
    /// For a bounded time.
    InHaste,
}

/// How far a home has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    /// Its thread is locked down and has an isolate.
    Ready,
    Gone,
}

impl Default for HomeState {
    fn default() -> Self {
        Self {
            warm: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Starting),
            turn: Arc::new(Semaphore::new(1)),
            leaves: watch::Sender::new(Leaves::No),
            scripts_changed: Notify::new(),
            meter: Meter::default(),
            used_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl HomeState {
    /// Nothing comes from here any more.
    pub(crate) fn gone(&self) {
        self.warm.store(false, Ordering::Relaxed);
        self.turn.close();
        self.phase.send_replace(Phase::Gone);
    }

    /// It is used now.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(now, Ordering::Relaxed);
    }

    /// For how long it has not been used.
    pub(crate) fn idle(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.used_ms.load(Ordering::Relaxed)))
    }
}
