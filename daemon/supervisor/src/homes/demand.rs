//! The demand for places on standby: how many there should be.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use enisle_cordon::standby::{Arrivals, Stock, wanted};
use enisle_cordon::{Level, Time};
use tokio::sync::Notify;

/// At most one in so many of the worker processes may be on standby.
const MOST_PART: usize = 4;

/// What decides how many places are on standby.
#[derive(Debug)]
pub(crate) struct Demand {
    /// Workers for tenants that share, while nobody arrives. At 0 nothing is made ready.
    least: usize,
    /// What an isolate may use that is made for a tenant not known yet, at the levels that are not
    /// sealed, and sealed.
    memory_mb: [u32; 2],
    arrivals: Mutex<Arrivals>,
    pub(super) changed: Notify,
    pub(super) ended: AtomicBool,
}

impl Demand {
    pub(crate) fn new(least: usize, memory_mb: [u32; 2]) -> Self {
        let (arrivals, changed, ended) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Self { least, memory_mb, arrivals, changed, ended }
    }

    pub(super) fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no place is made ready before a tenant needs it.
    pub(super) fn is_off(&self) -> bool {
        self.least == 0
    }

    /// A tenant needs a place.
    pub(super) fn arrived(&self, now: Time) {
        self.arrivals().note(now);
    }

    /// A place was taken, or its worker ends.
    pub(super) fn note_change(&self) {
        self.changed.notify_waiters();
    }

    /// The daemon ends: no more is made.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(super) fn memory_mb(&self, level: Level) -> u32 {
        let [unsealed, sealed] = self.memory_mb;
        if level == Level::Sealed { sealed } else { unsealed }
    }

    /// How many workers of a level should be on standby. Tenants come to live alone one by one.
    pub(super) fn wanted(&self, level: Level, now: Time, processes: usize) -> usize {
        let most = (processes / MOST_PART).max(1);
        match level {
            Level::Shared => wanted(*self.arrivals(), now, Stock { least: self.least, most: most.max(self.least) }),
            Level::Solo | Level::Sealed => 1,
            Level::Expelled => 0,
        }
    }
}
