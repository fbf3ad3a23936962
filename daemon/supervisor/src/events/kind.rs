//! What an event says, and its class.

use enisle_cordon::{Because, Level, Reason};
use serde::Serialize;

use super::class::Class;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    /// Numbers the events from 1, without gaps. A reader learns how many were dropped.
    pub(crate) seq: u64,
    pub(crate) unix_ms: u64,
    /// How many events this one stands for; the details are those of the first.
    #[serde(skip_serializing_if = "is_one")]
    pub(crate) count: u64,
    #[serde(flatten)]
    pub(crate) kind: EventKind,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &u64) -> bool {
    *count == 1
}

/// `uid` is the uid that ran the tenant, or whose worker it is. A worker on standby is the daemon's
/// own.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum EventKind {
    Started {
        version: &'static str,
    },
    Draining,
    WorkerStarted {
        worker: u64,
        pid: i32,
        uid: u32,
        level: &'static str,
    },
    /// A worker that was on standby was given to a uid, whose tenants move in.
    WorkerTaken {
        worker: u64,
        pid: i32,
        uid: u32,
        level: &'static str,
    },
    /// A worker failed its verification, and was killed before it had a tenant.
    WorkerRejected {
        worker: u64,
        pid: i32,
        uid: u32,
        findings: Vec<String>,
    },
    WorkerDied {
        worker: u64,
        pid: i32,
        uid: u32,
        reason: String,
        tenants: Vec<String>,
    },
    WorkerRetired {
        worker: u64,
        pid: i32,
        uid: u32,
    },
    Admitted {
        tenant: String,
        uid: u32,
        worker: u64,
        level: &'static str,
        reason: &'static str,
    },
    Retired {
        tenant: String,
        uid: u32,
        worker: u64,
        reason: &'static str,
    },
    /// A run was restarted after its worker died.
    Retried {
        tenant: String,
        uid: u32,
        run: String,
        reason: String,
    },
    /// A run ended with an outcome other than success or an exception of its own.
    RunEnded {
        tenant: String,
        uid: u32,
        run: String,
        outcome: &'static str,
    },
    /// A worker broke the protocol.
    ProtocolViolation {
        worker: u64,
        pid: i32,
        uid: u32,
        /// The tenant whose channel it was; `None` for the control channel.
        tenant: Option<String>,
        what: String,
    },
    /// A layer stopped an attack; the worker has ended. The details come from the worker's own
    /// record, which is only an allegation if the attacker could execute its own code.
    Violation {
        worker: u64,
        pid: i32,
        uid: u32,
        /// The tenant whose thread it was.
        tenant: Option<String>,
        layer: &'static str,
        what: String,
        address: Option<String>,
        /// The tenant whose island the address is on, if it is another's.
        victim: Option<String>,
        pc: String,
    },
    /// A worker crashed, without a sign of an attack.
    Crashed {
        worker: u64,
        pid: i32,
        uid: u32,
        tenant: Option<String>,
        what: String,
        pc: String,
        /// How much memory the worker could still have committed.
        room_mb: u64,
        /// `certain` and `inCompany` count against the tenant, the others do not.
        blame: &'static str,
    },
    /// A worker held more memory outside its tenants' islands than they explain. It takes no more
    /// tenants, and its tenants leave one by one. `tenant`, if given, is known to hold most.
    UnexplainedMemory {
        worker: u64,
        pid: i32,
        uid: u32,
        tenant: Option<String>,
        held_mb: u64,
        most_mb: u64,
    },
    /// Pages of a worker did not carry the key that they should, so the worker was ended.
    Mistagged {
        worker: u64,
        pid: i32,
        uid: u32,
        findings: Vec<String>,
    },
    /// A tenant must live further out, or may come back in. Each reason has its numbers.
    Cordoned {
        tenant: String,
        /// The uid that ran the tenant, or gave the order.
        uid: u32,
        from: Level,
        to: Level,
        reasons: Vec<Reason>,
    },
    /// A process died or held too much memory, and no tenant is certainly to blame. This tenant of
    /// the process is kept apart for a while, alone or with half of the tenants that were there.
    KeptApart {
        tenant: String,
        uid: u32,
        alone: bool,
        because: Because,
        for_secs: u64,
    },
    /// The tenants of a uid were blamed for so many deaths of processes that the uid's budget is
    /// used up: new homes of its tenants are on probation. All deaths are forgiven after
    /// `clear_in_ms`, unless another death follows.
    BudgetUsedUp {
        uid: u32,
        deaths: u64,
        clear_in_ms: u64,
    },
    /// An operator ordered that a tenant lives at this level or further out.
    Ordered {
        tenant: String,
        level: Level,
        reason: String,
        by_uid: u32,
    },
    /// An operator lifted an order.
    Lifted {
        tenant: String,
        reason: String,
        by_uid: u32,
    },
    /// The runs of a tenant go to its new home from now on.
    Rehomed {
        tenant: String,
        uid: u32,
        worker: u64,
        level: &'static str,
        token: u64,
    },
    /// A home that its tenant was leaving is given up.
    Drained {
        tenant: String,
        uid: u32,
        worker: u64,
        /// Whether the home's run did not end in time, and restarts in the new home.
        fenced: bool,
        ms: u64,
    },
    /// There was no room for a tenant that must live alone. Its runs are refused until there is.
    NoRoom {
        tenant: String,
        uid: u32,
        level: &'static str,
        reason: String,
    },
    /// An attempt at a run ended in a fenced home. The end was discarded; usually the run restarts.
    Fenced {
        tenant: String,
        uid: u32,
        run: String,
        token: u64,
    },
    /// Stored data could not be read at the start.
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
    /// A class had more different events in a second than are emitted one by one. `count` says how
    /// many were left out.
    Others {
        class: Class,
    },
}

/// The tenant or uid that an event is attributed to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Daemon,
    Uid(u32),
    Tenant(String),
}

/// Events with the same key repeat each other.
pub(super) type Key = (std::mem::Discriminant<EventKind>, Source, String);

impl EventKind {
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::WorkerRejected { .. }
            | Self::ProtocolViolation { .. }
            | Self::Violation { .. }
            | Self::Crashed { .. }
            | Self::UnexplainedMemory { .. }
            | Self::Mistagged { .. }
            | Self::Cordoned { .. }
            | Self::KeptApart { .. }
            | Self::BudgetUsedUp { .. }
            | Self::Ordered { .. }
            | Self::Lifted { .. }
            | Self::NoRoom { .. }
            | Self::RecordBroken { .. }
            | Self::PolicyChanged { .. } => Class::Evidence,
            Self::Started { .. }
            | Self::Draining
            | Self::WorkerStarted { .. }
            | Self::WorkerTaken { .. }
            | Self::WorkerDied { .. }
            | Self::WorkerRetired { .. }
            | Self::Retried { .. }
            | Self::Rehomed { .. }
            | Self::Drained { .. }
            | Self::Fenced { .. } => Class::Course,
            Self::Admitted { .. } | Self::Retired { .. } | Self::RunEnded { .. } | Self::Denied { .. } => Class::Common,
            Self::Others { class } => *class,
        }
    }

    /// The tenant that caused the event, if it is known; otherwise the uid, or the daemon.
    pub(crate) fn source(&self) -> Source {
        let tenant = match self {
            Self::Admitted { tenant, .. }
            | Self::Retired { tenant, .. }
            | Self::Retried { tenant, .. }
            | Self::RunEnded { tenant, .. }
            | Self::Cordoned { tenant, .. }
            | Self::KeptApart { tenant, .. }
            | Self::Rehomed { tenant, .. }
            | Self::Drained { tenant, .. }
            | Self::NoRoom { tenant, .. }
            | Self::Fenced { tenant, .. } => Some(tenant),
            Self::ProtocolViolation { tenant, .. }
            | Self::Violation { tenant, .. }
            | Self::Crashed { tenant, .. }
            | Self::UnexplainedMemory { tenant, .. } => tenant.as_ref(),
            _ => None,
        };
        match (tenant, self.uid()) {
            (Some(tenant), _) => Source::Tenant(tenant.clone()),
            (None, Some(uid)) => Source::Uid(uid),
            (None, None) => Source::Daemon,
        }
    }

    /// The uid that the event is charged to; `None` if it is the daemon's own.
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Started { .. } | Self::Draining | Self::RecordBroken { .. } | Self::Others { .. } => None,
            Self::Denied { uid, .. }
            | Self::WorkerStarted { uid, .. }
            | Self::WorkerTaken { uid, .. }
            | Self::WorkerRejected { uid, .. }
            | Self::WorkerDied { uid, .. }
            | Self::WorkerRetired { uid, .. }
            | Self::BudgetUsedUp { uid, .. }
            | Self::Admitted { uid, .. }
            | Self::Retired { uid, .. }
            | Self::Retried { uid, .. }
            | Self::RunEnded { uid, .. }
            | Self::ProtocolViolation { uid, .. }
            | Self::Violation { uid, .. }
            | Self::Crashed { uid, .. }
            | Self::UnexplainedMemory { uid, .. }
            | Self::Mistagged { uid, .. }
            | Self::Cordoned { uid, .. }
            | Self::KeptApart { uid, .. }
            | Self::Rehomed { uid, .. }
            | Self::Drained { uid, .. }
            | Self::NoRoom { uid, .. }
            | Self::Fenced { uid, .. } => Some(*uid),
            Self::Ordered { by_uid, .. } | Self::Lifted { by_uid, .. } | Self::PolicyChanged { by_uid, .. } => {
                Some(*by_uid)
            }
        }
    }

    /// What distinguishes two events of one kind and source.
    fn detail(&self) -> String {
        match self {
            Self::RunEnded { outcome, .. } => (*outcome).to_owned(),
            Self::Retired { reason, .. } => (*reason).to_owned(),
            // These differ by the tenant that an operator decided about.
            Self::Ordered { tenant, .. } | Self::Lifted { tenant, .. } | Self::PolicyChanged { tenant, .. } => {
                tenant.clone()
            }
            Self::Cordoned { to, .. } => to.as_str().to_owned(),
            Self::Violation { layer, tenant: Some(_), .. } => (*layer).to_owned(),
            Self::Violation { layer, worker, .. } => format!("{layer} {worker}"),
            // Each worker of a uid has its own event.
            Self::ProtocolViolation { tenant: None, worker, .. }
            | Self::Crashed { tenant: None, worker, .. }
            | Self::UnexplainedMemory { tenant: None, worker, .. }
            | Self::WorkerRejected { worker, .. }
            | Self::Mistagged { worker, .. } => worker.to_string(),
            Self::RecordBroken { what } => what.clone(),
            _ => String::new(),
        }
    }

    pub(super) fn key(&self) -> Key {
        (std::mem::discriminant(self), self.source(), self.detail())
    }

    /// Whether the audit log records the event itself. It records other evidence as a decision.
    pub(super) fn is_audited(&self) -> bool {
        match self {
            Self::Cordoned { .. }
            | Self::KeptApart { .. }
            | Self::Ordered { .. }
            | Self::Lifted { .. }
            | Self::PolicyChanged { .. }
            | Self::RecordBroken { .. }
            // The audit log has each piece of evidence that this event counts.
            | Self::Others { .. } => false,
            kind => kind.class() == Class::Evidence,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use enisle_api::openapi;
    use enisle_api::types::event::EventLine;

    use super::*;

    /// The next kind of event after the given one. If a kind is missing, this does not compile.
    #[expect(clippy::too_many_lines, reason = "one arm a kind of event")]
    fn after(kind: Option<&EventKind>) -> Option<EventKind> {
        let t = || "t".to_owned();
        Some(match kind {
            None => EventKind::Started { version: "1" },
            Some(EventKind::Started { .. }) => EventKind::Draining,
            Some(EventKind::Draining) => EventKind::WorkerStarted { worker: 1, pid: 2, uid: 3, level: "solo" },
            Some(EventKind::WorkerStarted { .. }) => {
                EventKind::WorkerTaken { worker: 1, pid: 2, uid: 3, level: "solo" }
            }
            Some(EventKind::WorkerTaken { .. }) => {
                EventKind::WorkerRejected { worker: 1, pid: 2, uid: 3, findings: vec![t()] }
            }
            Some(EventKind::WorkerRejected { .. }) => {
                EventKind::WorkerDied { worker: 1, pid: 2, uid: 3, reason: t(), tenants: vec![t()] }
            }
            Some(EventKind::WorkerDied { .. }) => EventKind::WorkerRetired { worker: 1, pid: 2, uid: 3 },
            Some(EventKind::WorkerRetired { .. }) => {
                EventKind::Admitted { tenant: t(), uid: 3, worker: 1, level: "shared", reason: "new" }
            }
            Some(EventKind::Admitted { .. }) => EventKind::Retired { tenant: t(), uid: 3, worker: 1, reason: "idle" },
            Some(EventKind::Retired { .. }) => EventKind::Retried { tenant: t(), uid: 3, run: t(), reason: t() },
            Some(EventKind::Retried { .. }) => {
                EventKind::RunEnded { tenant: t(), uid: 3, run: t(), outcome: "exceededCpu" }
            }
            Some(EventKind::RunEnded { .. }) => {
                EventKind::ProtocolViolation { worker: 1, pid: 2, uid: 3, tenant: None, what: t() }
            }
            Some(EventKind::ProtocolViolation { .. }) => EventKind::Violation {
                worker: 1,
                pid: 2,
                uid: 3,
                tenant: Some(t()),
                layer: "keys",
                what: t(),
                address: None,
                victim: None,
                pc: t(),
            },
            Some(EventKind::Violation { .. }) => EventKind::Crashed {
                worker: 1,
                pid: 2,
                uid: 3,
                tenant: None,
                what: t(),
                pc: t(),
                room_mb: 4,
                blame: "inCompany",
            },
            Some(EventKind::Crashed { .. }) => {
                EventKind::UnexplainedMemory { worker: 1, pid: 2, uid: 3, tenant: None, held_mb: 4, most_mb: 5 }
            }
            Some(EventKind::UnexplainedMemory { .. }) => {
                EventKind::Mistagged { worker: 1, pid: 2, uid: 3, findings: vec![t()] }
            }
            Some(EventKind::Mistagged { .. }) => {
                let reasons = vec![Reason::Unsuspected, Reason::Score { score: 60.5, threshold: 60.0 }];
                EventKind::Cordoned { tenant: t(), uid: 3, from: Level::Shared, to: Level::Solo, reasons }
            }
            Some(EventKind::Cordoned { .. }) => {
                let because = Because::WantOfMemory;
                EventKind::KeptApart { tenant: t(), uid: 3, alone: true, because, for_secs: 4 }
            }
            Some(EventKind::KeptApart { .. }) => EventKind::BudgetUsedUp { uid: 3, deaths: 2, clear_in_ms: 4 },
            Some(EventKind::BudgetUsedUp { .. }) => {
                EventKind::Ordered { tenant: t(), level: Level::Sealed, reason: t(), by_uid: 0 }
            }
            Some(EventKind::Ordered { .. }) => EventKind::Lifted { tenant: t(), reason: t(), by_uid: 0 },
            Some(EventKind::Lifted { .. }) => {
                EventKind::Rehomed { tenant: t(), uid: 3, worker: 1, level: "sealed", token: 2 }
            }
            Some(EventKind::Rehomed { .. }) => {
                EventKind::Drained { tenant: t(), uid: 3, worker: 1, fenced: true, ms: 4 }
            }
            Some(EventKind::Drained { .. }) => EventKind::NoRoom { tenant: t(), uid: 3, level: "solo", reason: t() },
            Some(EventKind::NoRoom { .. }) => EventKind::Fenced { tenant: t(), uid: 3, run: t(), token: 2 },
            Some(EventKind::Fenced { .. }) => EventKind::RecordBroken { what: t() },
            Some(EventKind::RecordBroken { .. }) => EventKind::PolicyChanged { tenant: t(), by_uid: 0 },
            Some(EventKind::PolicyChanged { .. }) => EventKind::Denied { uid: 3, what: t() },
            Some(EventKind::Denied { .. }) => EventKind::Others { class: Class::Common },
            Some(EventKind::Others { .. }) => return None,
        })
    }

    #[test]
    fn every_kind_of_event_is_serialised_as_documented() {
        let kinds = std::iter::successors(after(None), |kind| after(Some(kind)));
        let mut names = BTreeSet::new();
        for (count, kind) in (1..).zip(kinds) {
            let written = serde_json::to_value(Event { seq: 1, unix_ms: 2, count, kind }).unwrap();
            names.insert(written["event"].as_str().unwrap().to_owned());
            let read: EventLine = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), written);
        }
        let document = openapi::document();
        let described = document["components"]["schemas"]["Event"]["oneOf"].as_array().unwrap();
        let described = described.iter().map(|one| one["properties"]["event"]["const"].as_str().unwrap().to_owned());
        assert_eq!(names, described.collect());
    }
}
