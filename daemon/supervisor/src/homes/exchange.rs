//! What a home and the task that speaks for it exchange: runs, how they ended, and the home's
//! state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enisle_wire::Outcome;
use enisle_wire::tenant::{Advice, LogLine, ScriptError, Usage};
use serde_json::value::RawValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::cordons::meter::Meter;
use crate::homes::job::Job;
use crate::share::{Exhausted, Held};

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As reported by the worker.
    Done(Box<Finished>),
    /// As judged by the supervisor, from how the process ended.
    Judged(Box<Finished>),
    /// The worker died during the run.
    Lost(Lost),
    /// The run ended, and there was no memory for its answer.
    Unanswered { bytes: usize, why: Exhausted, usage: Usage },
    /// The home was gone before the run began.
    NotBegun,
}

impl Ended {
    /// The CPU time that the run is charged.
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
    /// This tenant is exonerated ([`enisle_cordon::blame::Consequence::exonerates`]).
    pub(crate) anothers_doing: bool,
    /// What the run had used; the CPU time is zero if this tenant is exonerated.
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
    /// What the worker alleges that the script attempted: it counts little.
    pub(crate) advice: Advice,
    /// The charge for result and log; `None` if there are none.
    pub(crate) held: Option<Held>,
}

impl Finished {
    /// An end that the supervisor decides on without a report from the worker.
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

/// A run whose turn it is.
pub(crate) struct Ticket {
    pub(crate) job: Job,
    /// When it began to wait.
    pub(crate) at: Instant,
    pub(crate) reply: oneshot::Sender<Ended>,
    /// Gives the turn to the next run when this one is over.
    pub(crate) _turn: OwnedSemaphorePermit,
}

/// What a home and its task share.
#[derive(Debug)]
pub(crate) struct HomeState {
    pub(crate) warm: AtomicBool,
    /// One run at a time. Runs queue here and not in the task's channel, so that a run whose client
    /// disconnects leaves the queue at once.
    pub(crate) turn: Arc<Semaphore>,
    pub(crate) leaves: watch::Sender<Leaves>,
    /// A script was replaced or deleted: its isolate is of no more use. The notification does not
    /// name the script, so repeated changes do not accumulate; the meter lists the isolates that
    /// may exist.
    pub(crate) scripts_changed: Notify,
    pub(crate) meter: Meter,
    /// When the home was last used, in milliseconds after `epoch`.
    used_ms: AtomicU64,
    epoch: Instant,
}

/// Whether the tenant leaves a home, and how long its last run there may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaves {
    No,
    /// As long as the run takes.
    InTime,
    /// A bounded time.
    InHaste,
}

impl Default for HomeState {
    fn default() -> Self {
        Self {
            warm: AtomicBool::new(false),
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
    /// The task has ended: no more runs are accepted, and no more results come.
    pub(crate) fn gone(&self) {
        self.warm.store(false, Ordering::Relaxed);
        self.turn.close();
    }

    /// Notes that the home is in use now.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(now, Ordering::Relaxed);
    }

    /// How long the home has not been used.
    pub(crate) fn idle(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.used_ms.load(Ordering::Relaxed)))
    }
}
