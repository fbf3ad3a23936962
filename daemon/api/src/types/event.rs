//! `GET /v1/events`: what happened, one JSON object a line.

use enisle_cordon::decide::Reason;
use enisle_cordon::{Because, Level};
use enisle_wire::Outcome;
use serde::{Deserialize, Serialize};

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventLine {
    Missed(Missed),
    Event(Event),
}

/// Something that happened. The details of its kind stand beside these fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// The event's number. The first event of the daemon has number 1. The numbers of dropped
    /// events are missing from the answer.
    pub seq: u64,
    pub unix_ms: u64,
    /// How many events this line stands for; the details are those of the first one. Left out if
    /// the line stands for a single event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// How many events of a class were dropped before this reader could read them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Missed {
    pub event: MissedEvent,
    pub class: EventClass,
    pub count: u64,
}

/// The only value of `event` in a line about dropped events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MissedEvent {
    Missed,
}

/// How events are stored and reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventClass {
    /// Traces of attacks, and operators' orders.
    Evidence,
    /// The life of workers, tenants' homes and the daemon.
    Course,
    /// What any client can cause at will.
    Common,
}

/// What happened. `uid` is the uid that ran the tenant, or whose worker it is; `byUid` is the
/// operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventKind {
    /// The daemon has started.
    Started { version: String },
    /// The daemon starts no more runs, and is about to end.
    Draining,
    /// A worker process has started. If it is on standby, nobody's yet, `uid` is the daemon's own.
    WorkerStarted { worker: u64, pid: i32, uid: u32, level: Level },
    /// A worker on standby was given to a uid, whose tenants move in.
    WorkerTaken { worker: u64, pid: i32, uid: u32, level: Level },
    /// A worker failed its verification, and was killed before it had a tenant.
    WorkerRejected { worker: u64, pid: i32, uid: u32, findings: Vec<String> },
    /// A worker process has died.
    WorkerDied { worker: u64, pid: i32, uid: u32, reason: String, tenants: Vec<String> },
    /// A worker process that is not needed any more was ended.
    WorkerRetired { worker: u64, pid: i32, uid: u32 },
    /// A tenant has moved into a worker.
    Admitted { tenant: String, uid: u32, worker: u64, level: Level, reason: String },
    /// A tenant has moved out of a worker.
    Retired { tenant: String, uid: u32, worker: u64, reason: String },
    /// A run was restarted after its worker died.
    Retried { tenant: String, uid: u32, run: String, reason: String },
    /// A run ended with an outcome other than `ok` and `exception`.
    RunEnded { tenant: String, uid: u32, run: String, outcome: Outcome },
    /// A worker broke the protocol. `tenant` is the tenant on whose channel it did so; null if that
    /// was the control channel.
    ProtocolViolation { worker: u64, pid: i32, uid: u32, tenant: Option<String>, what: String },
    /// A layer stopped an attack, and the worker has ended. The details come from the worker's own
    /// record. If the attacker could execute its own code, this record is only an allegation.
    Violation {
        worker: u64,
        pid: i32,
        uid: u32,
        /// The tenant whose thread it was.
        tenant: Option<String>,
        layer: String,
        what: String,
        address: Option<String>,
        /// The tenant whose island the address is on, if that is another tenant.
        victim: Option<String>,
        pc: String,
    },
    /// A worker crashed, and nothing shows that a layer stopped an attack.
    Crashed {
        worker: u64,
        pid: i32,
        uid: u32,
        tenant: Option<String>,
        what: String,
        pc: String,
        /// How much memory the worker could still have committed.
        room_mb: u64,
        blame: Blame,
    },
    /// A worker held more memory outside its tenants' islands than the tenants explain. It takes no
    /// further tenants, and its tenants leave one by one. `tenant` is the one that seems to hold
    /// most; null if that is not known.
    UnexplainedMemory { worker: u64, pid: i32, uid: u32, tenant: Option<String>, held_mb: u64, most_mb: u64 },
    /// Pages of a worker carried a wrong key, so the worker was ended.
    Mistagged { worker: u64, pid: i32, uid: u32, findings: Vec<String> },
    /// A tenant must live further out, or may come back in. `reasons` says why, with numbers. `uid`
    /// is the uid that ran the tenant, or that gave the order.
    Cordoned { tenant: String, uid: u32, from: Level, to: Level, reasons: Vec<Reason> },
    /// A process died or held too much memory, and it is not certain which of its tenants is to
    /// blame. `tenant` is one of them. It is kept apart for a while, alone or with half of the
    /// tenants that were there.
    KeptApart { tenant: String, uid: u32, alone: bool, because: Because, for_secs: u64 },
    /// The tenants of a uid were blamed for so many deaths of processes that the uid's budget is
    /// used up: its tenants get their new homes alone. All deaths are forgiven after `clearInMs`,
    /// unless another death follows.
    BudgetUsedUp { uid: u32, deaths: u64, clear_in_ms: u64 },
    /// An operator ordered a tenant to at least this level.
    Ordered { tenant: String, level: Level, reason: String, by_uid: u32 },
    /// An operator lifted an order.
    Lifted { tenant: String, reason: String, by_uid: u32 },
    /// The runs of a tenant go to its new home from now on.
    Rehomed { tenant: String, uid: u32, worker: u64, level: Level, token: u64 },
    /// The home that a tenant has left is empty. `fenced` is true if its run did not end in time:
    /// that run restarts in the new home.
    Drained { tenant: String, uid: u32, worker: u64, fenced: bool, ms: u64 },
    /// There was no room for a tenant that must live alone. Its runs are refused until there is.
    NoRoom { tenant: String, uid: u32, level: Level, reason: String },
    /// A home that its tenant had left reported the end of a run. The daemon discarded the report,
    /// and restarted the run.
    Fenced { tenant: String, uid: u32, run: String, token: u64 },
    /// The daemon could not read stored data when it started.
    RecordBroken { what: String },
    /// An operator has set a policy.
    PolicyChanged { tenant: String, by_uid: u32 },
    /// A peer asked for something that it may not do.
    Denied { uid: u32, what: String },
    /// In one second, a class had more different events than are reported individually.
    Others { class: EventClass },
}

/// Who is blamed for a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Blame {
    /// The crash counts against the tenant: no other tenant can have caused it.
    Certain,
    /// The crash counts against the tenant, but less: other tenants were in the process.
    InCompany,
    /// The process had run out of memory.
    WantOfMemory,
    /// The crash could not be attributed.
    Unknown,
    /// No tenant is to blame.
    Nobody,
}
