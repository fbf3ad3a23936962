//! What happened, for operators: a bounded memory of events, and whoever follows them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use enisle_cordon::{Level, Reason};
use serde::Serialize;
use tokio::sync::broadcast;

/// Events that are remembered, and that a slow follower may lag behind.
const KEPT: usize = 1024;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    /// Counts from 1 without gaps.
    pub(crate) seq: u64,
    pub(crate) unix_ms: u64,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum What {
    Started {
        version: &'static str,
    },
    Draining,
    WorkerStarted {
        worker: u64,
        pid: i32,
        level: &'static str,
    },
    /// A worker was not what it should be, and was killed before it had a tenant.
    WorkerRejected {
        worker: u64,
        pid: i32,
        findings: Vec<String>,
    },
    WorkerDied {
        worker: u64,
        pid: i32,
        reason: String,
        tenants: Vec<String>,
    },
    WorkerRetired {
        worker: u64,
        pid: i32,
    },
    Admitted {
        tenant: String,
        worker: u64,
        level: &'static str,
        reason: &'static str,
    },
    Retired {
        tenant: String,
        worker: u64,
        reason: &'static str,
    },
    /// A run was begun again after its worker died.
    Retried {
        tenant: String,
        run: String,
        reason: String,
    },
    /// A run ended otherwise than well or by its own exception.
    RunEnded {
        tenant: String,
        run: String,
        outcome: &'static str,
    },
    /// A worker broke the protocol.
    ProtocolViolation {
        worker: u64,
        pid: i32,
        what: String,
    },
    /// A layer stopped an attack; the worker has ended. Who and what is the worker's record: an allegation, if the attacker
    /// could execute code of its own.
    Violation {
        worker: u64,
        pid: i32,
        /// On whose thread it was.
        tenant: Option<String>,
        layer: &'static str,
        what: String,
        address: Option<String>,
        /// Whose island the address is on, if it is another's.
        victim: Option<String>,
        pc: String,
    },
    /// A worker crashed by itself.
    Crashed {
        worker: u64,
        pid: i32,
        tenant: Option<String>,
        what: String,
        pc: String,
    },
    /// Pages of a worker did not carry the key that they should; it was ended.
    Mistagged {
        worker: u64,
        pid: i32,
        findings: Vec<String>,
    },
    /// A tenant has to live further out, or may come in again; each reason with its numbers.
    Cordoned {
        tenant: String,
        from: Level,
        to: Level,
        reasons: Vec<Reason>,
    },
    /// A process died, and nobody knows whose doing it was: this one of its tenants is kept from others for a while, alone or with
    /// half of those who were there.
    KeptApart {
        tenant: String,
        alone: bool,
        for_secs: u64,
    },
    /// A tenant's runs go to its new home from now on.
    Rehomed {
        tenant: String,
        worker: u64,
        level: &'static str,
        token: u64,
    },
    /// The old home is empty.
    Drained {
        tenant: String,
        worker: u64,
        /// Runs did not end in time, and were begun again in the new home.
        fenced: bool,
        ms: u64,
    },
    /// There was no room for a tenant that has to live alone. It is refused until there is.
    NoRoom {
        tenant: String,
        level: &'static str,
        reason: String,
    },
    /// The end of a run came from a home that its tenant has left: discarded, and the run begun again.
    Fenced {
        tenant: String,
        run: String,
        token: u64,
    },
    /// Something that was kept could not be read at the start.
    RecordBroken {
        what: String,
    },
    PolicyChanged {
        tenant: String,
        by_uid: u32,
    },
    Denied {
        uid: u32,
        what: String,
    },
}

/// More than that in a second are only counted.
const LOGGED_PER_SECOND: u32 = 50;

#[derive(Debug, Default)]
struct Window {
    second: u64,
    logged: u32,
    dropped: u64,
}

#[derive(Debug)]
pub(crate) struct Events {
    logged: Mutex<Window>,
    kept: Mutex<(u64, VecDeque<Event>)>,
    followers: broadcast::Sender<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { logged: Mutex::default(), kept: Mutex::default(), followers: broadcast::Sender::new(KEPT) }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<Event>)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, what: What) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.lock();
        kept.0 += 1;
        let event = Event { seq: kept.0, unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), what };
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(event.clone());
        // Under the lock, so that a follower sees every event once: it subscribes under the same lock.
        let _ = self.followers.send(event.clone());
        drop(kept);
        self.log(&event);
    }

    /// Into the log as well, but only so many a second: tenants can cause events at will.
    fn log(&self, event: &Event) {
        let second = event.unix_ms / 1000;
        let (logged, dropped) = {
            let mut window = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            if window.second != second {
                *window = Window { second, logged: 0, dropped: window.dropped };
            }
            window.logged += 1;
            if window.logged > LOGGED_PER_SECOND {
                window.dropped += 1;
                return;
            }
            (window.logged, std::mem::take(&mut window.dropped))
        };
        if dropped > 0 && logged == 1 {
            tracing::warn!(dropped, "events were not logged, for there were too many; /v1/events has the last ones");
        }
        tracing::info!(event = %serde_json::to_string(&event.what).unwrap_or_default(), "event");
    }

    /// What is remembered, and what comes next.
    pub(crate) fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.lock();
        (kept.1.iter().cloned().collect(), self.followers.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_sees_the_past_and_then_the_present_without_gap_or_repeat() {
        let events = Events::new();
        events.tell(What::Draining);
        let (past, mut next) = events.follow();
        events.tell(What::Draining);
        assert_eq!(past.iter().map(|event| event.seq).collect::<Vec<_>>(), [1]);
        assert_eq!(next.try_recv().unwrap().seq, 2);
    }

    #[test]
    fn memory_is_bounded() {
        let events = Events::new();
        for _ in 0..KEPT + 10 {
            events.tell(What::Draining);
        }
        assert_eq!(events.follow().0.len(), KEPT);
    }
}
