//! What an event says, and what kind of event it is.

use enisle_cordon::{Because, Level, Reason};
use serde::Serialize;

/// How an event is kept, told and logged. Each class has room of its own, so that a flood of one
/// pushes nothing of another out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Class {
    /// What an attack leaves, and what an operator ordered. It goes to the audit log as well.
    Evidence,
    /// The life of workers, tenants' homes and the daemon.
    Course,
    /// What anybody can cause at will: counted, and told once a second.
    Common,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Evidence, Self::Course, Self::Common];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::Course => "course",
            Self::Common => "common",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    /// Counts from 1 without gaps. Of events that are not remembered any more a list says how many
    /// they were.
    pub(crate) seq: u64,
    pub(crate) unix_ms: u64,
    /// How many events this one stands for; the details are those of the first of them.
    #[serde(skip_serializing_if = "is_one")]
    pub(crate) count: u64,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &u64) -> bool {
    *count == 1
}

/// `uid` is who ran the tenant, or for whom the worker was started.
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
        uid: u32,
        level: &'static str,
    },
    /// A worker was not what it should be, and was killed before it had a tenant.
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
    /// A run was begun again after its worker died.
    Retried {
        tenant: String,
        uid: u32,
        run: String,
        reason: String,
    },
    /// A run ended otherwise than well or by its own exception.
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
        /// On whose channel it was; none on the worker's own.
        tenant: Option<String>,
        what: String,
    },
    /// A layer stopped an attack; the worker has ended. Who and what is the worker's record: an
    /// allegation, if the attacker could execute code of its own.
    Violation {
        worker: u64,
        pid: i32,
        uid: u32,
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
        uid: u32,
        tenant: Option<String>,
        what: String,
        pc: String,
        /// What the worker could still have committed.
        room_mb: u64,
        /// What follows: `certain` or `inCompany` it counts against the tenant, otherwise not.
        blame: &'static str,
    },
    /// A worker held more outside its tenants' islands than they explain: it takes nobody in, and
    /// its tenants leave it one by one. This is the one that seems to hold most of it, if one does.
    UnexplainedMemory {
        worker: u64,
        pid: i32,
        uid: u32,
        tenant: Option<String>,
        held_mb: u64,
        most_mb: u64,
    },
    /// Pages of a worker did not carry the key that they should; it was ended.
    Mistagged {
        worker: u64,
        pid: i32,
        uid: u32,
        findings: Vec<String>,
    },
    /// A tenant has to live further out, or may come in again; each reason with its numbers.
    Cordoned {
        tenant: String,
        /// Whose doing it was: whoever ran the tenant, or gave the order.
        uid: u32,
        from: Level,
        to: Level,
        reasons: Vec<Reason>,
    },
    /// A process died or held too much, and it is not known whose doing that was: this one of its
    /// tenants is kept from others for a while, alone or with half of those who were there.
    KeptApart {
        tenant: String,
        uid: u32,
        alone: bool,
        because: Because,
        for_secs: u64,
    },
    /// Tenants of a uid's were blamed for so many deaths of processes that its new homes are alone;
    /// without another one all are forgiven after that time.
    BudgetUsedUp {
        uid: u32,
        deaths: u64,
        clear_in_ms: u64,
    },
    /// An operator ordered that a tenant lives at least that far out.
    Ordered {
        tenant: String,
        level: Level,
        reason: String,
        by_uid: u32,
    },
    /// An operator let a tenant in again.
    Lifted {
        tenant: String,
        reason: String,
        by_uid: u32,
    },
    /// A tenant's runs go to its new home from now on.
    Rehomed {
        tenant: String,
        uid: u32,
        worker: u64,
        level: &'static str,
        token: u64,
    },
    /// The old home is empty.
    Drained {
        tenant: String,
        uid: u32,
        worker: u64,
        /// Runs did not end in time, and were begun again in the new home.
        fenced: bool,
        ms: u64,
    },
    /// There was no room for a tenant that has to live alone. It is refused until there is.
    NoRoom {
        tenant: String,
        uid: u32,
        level: &'static str,
        reason: String,
    },
    /// The end of a run came from a home that its tenant has left: discarded, and the run begun
    /// again.
    Fenced {
        tenant: String,
        uid: u32,
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
    /// More different events of a class than are told one by one in a second.
    Others {
        class: Class,
    },
}

/// Whose doing an event is, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Daemon,
    Uid(u32),
    Tenant(String),
}

/// Events with the same key repeat each other.
pub(super) type Key = (std::mem::Discriminant<What>, Source, String);

impl What {
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

    /// The tenant, where it is known; else who caused it.
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

    /// The uid on whose account it is told and written down; none if it is the daemon's own.
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Started { .. } | Self::Draining | Self::RecordBroken { .. } | Self::Others { .. } => None,
            Self::Denied { uid, .. }
            | Self::WorkerStarted { uid, .. }
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

    /// What makes two events of one kind and source different ones.
    fn detail(&self) -> String {
        match self {
            Self::RunEnded { outcome, .. } => (*outcome).to_owned(),
            Self::Retired { reason, .. } => (*reason).to_owned(),
            // Whom an operator's word is about.
            Self::Ordered { tenant, .. } | Self::Lifted { tenant, .. } | Self::PolicyChanged { tenant, .. } => {
                tenant.clone()
            }
            Self::Cordoned { to, .. } => to.as_str().to_owned(),
            Self::Violation { layer, tenant: Some(_), .. } => (*layer).to_owned(),
            Self::Violation { layer, worker, .. } => format!("{layer} {worker}"),
            // Of a uid's workers each is told of.
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

    /// The audit log has it as an event. Other evidence is there as the decision that it was.
    pub(super) fn is_audited(&self) -> bool {
        match self {
            Self::Cordoned { .. }
            | Self::KeptApart { .. }
            | Self::Ordered { .. }
            | Self::Lifted { .. }
            | Self::PolicyChanged { .. }
            | Self::RecordBroken { .. }
            // Each of them is there.
            | Self::Others { .. } => false,
            what => what.class() == Class::Evidence,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use enisle_api::openapi;
    use enisle_api::types::event::EventLine;

    use super::*;

    /// One of the kind that comes behind that one: a kind that is left out does not compile.
    #[expect(clippy::too_many_lines, reason = "one arm a kind of event")]
    fn behind(what: Option<&What>) -> Option<What> {
        let t = || "t".to_owned();
        Some(match what {
            None => What::Started { version: "1" },
            Some(What::Started { .. }) => What::Draining,
            Some(What::Draining) => What::WorkerStarted { worker: 1, pid: 2, uid: 3, level: "solo" },
            Some(What::WorkerStarted { .. }) => What::WorkerRejected { worker: 1, pid: 2, uid: 3, findings: vec![t()] },
            Some(What::WorkerRejected { .. }) => {
                What::WorkerDied { worker: 1, pid: 2, uid: 3, reason: t(), tenants: vec![t()] }
            }
            Some(What::WorkerDied { .. }) => What::WorkerRetired { worker: 1, pid: 2, uid: 3 },
            Some(What::WorkerRetired { .. }) => {
                What::Admitted { tenant: t(), uid: 3, worker: 1, level: "shared", reason: "new" }
            }
            Some(What::Admitted { .. }) => What::Retired { tenant: t(), uid: 3, worker: 1, reason: "idle" },
            Some(What::Retired { .. }) => What::Retried { tenant: t(), uid: 3, run: t(), reason: t() },
            Some(What::Retried { .. }) => What::RunEnded { tenant: t(), uid: 3, run: t(), outcome: "exceededCpu" },
            Some(What::RunEnded { .. }) => {
                What::ProtocolViolation { worker: 1, pid: 2, uid: 3, tenant: None, what: t() }
            }
            Some(What::ProtocolViolation { .. }) => What::Violation {
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
            Some(What::Violation { .. }) => What::Crashed {
                worker: 1,
                pid: 2,
                uid: 3,
                tenant: None,
                what: t(),
                pc: t(),
                room_mb: 4,
                blame: "inCompany",
            },
            Some(What::Crashed { .. }) => {
                What::UnexplainedMemory { worker: 1, pid: 2, uid: 3, tenant: None, held_mb: 4, most_mb: 5 }
            }
            Some(What::UnexplainedMemory { .. }) => What::Mistagged { worker: 1, pid: 2, uid: 3, findings: vec![t()] },
            Some(What::Mistagged { .. }) => {
                let reasons = vec![Reason::Unsuspected, Reason::Score { score: 60.5, threshold: 60.0 }];
                What::Cordoned { tenant: t(), uid: 3, from: Level::Shared, to: Level::Solo, reasons }
            }
            Some(What::Cordoned { .. }) => {
                let because = Because::WantOfMemory;
                What::KeptApart { tenant: t(), uid: 3, alone: true, because, for_secs: 4 }
            }
            Some(What::KeptApart { .. }) => What::BudgetUsedUp { uid: 3, deaths: 2, clear_in_ms: 4 },
            Some(What::BudgetUsedUp { .. }) => {
                What::Ordered { tenant: t(), level: Level::Sealed, reason: t(), by_uid: 0 }
            }
            Some(What::Ordered { .. }) => What::Lifted { tenant: t(), reason: t(), by_uid: 0 },
            Some(What::Lifted { .. }) => What::Rehomed { tenant: t(), uid: 3, worker: 1, level: "sealed", token: 2 },
            Some(What::Rehomed { .. }) => What::Drained { tenant: t(), uid: 3, worker: 1, fenced: true, ms: 4 },
            Some(What::Drained { .. }) => What::NoRoom { tenant: t(), uid: 3, level: "solo", reason: t() },
            Some(What::NoRoom { .. }) => What::Fenced { tenant: t(), uid: 3, run: t(), token: 2 },
            Some(What::Fenced { .. }) => What::RecordBroken { what: t() },
            Some(What::RecordBroken { .. }) => What::PolicyChanged { tenant: t(), by_uid: 0 },
            Some(What::PolicyChanged { .. }) => What::Denied { uid: 3, what: t() },
            Some(What::Denied { .. }) => What::Others { class: Class::Common },
            Some(What::Others { .. }) => return None,
        })
    }

    #[test]
    fn every_kind_of_event_is_told_as_it_is_described() {
        let kinds = std::iter::successors(behind(None), |what| behind(Some(what)));
        let mut told = BTreeSet::new();
        for (count, what) in (1..).zip(kinds) {
            let written = serde_json::to_value(Event { seq: 1, unix_ms: 2, count, what }).unwrap();
            told.insert(written["event"].as_str().unwrap().to_owned());
            let read: EventLine = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), written);
        }
        let document = openapi::document();
        let described = document["components"]["schemas"]["Event"]["oneOf"].as_array().unwrap();
        let described = described.iter().map(|one| one["properties"]["event"]["const"].as_str().unwrap().to_owned());
        assert_eq!(told, described.collect());
    }
}
