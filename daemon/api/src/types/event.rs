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
    Told(Event),
}

/// Something that happened, with its details beside these fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts from 1 without gaps.
    pub seq: u64,
    pub unix_ms: u64,
    /// How many events this one stands for, with the details of the first of them; left out if it
    /// stands for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(flatten)]
    pub what: What,
}

/// Events of a class that were forgotten before they were read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Missed {
    pub event: MissedEvent,
    pub class: EventClass,
    pub count: u64,
}

/// The one word of such a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MissedEvent {
    Missed,
}

/// How an event is kept and told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventClass {
    /// What an attack leaves, and what an operator ordered.
    Evidence,
    /// The life of workers, tenants' homes and the daemon.
    Course,
    /// What anybody can cause at will.
    Common,
}

/// What happened. `uid` is who ran the tenant, or for whom the worker was started; `byUid` is the
/// operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum What {
    /// The daemon has started.
    Started { version: String },
    /// The daemon begins no more runs, and is about to end.
    Draining,
    /// A worker process has started.
    WorkerStarted { worker: u64, pid: i32, uid: u32, level: Level },
    /// A worker was not what it should be, and was killed before it had a tenant.
    WorkerRejected { worker: u64, pid: i32, uid: u32, findings: Vec<String> },
    /// A worker process has died.
    WorkerDied { worker: u64, pid: i32, uid: u32, reason: String, tenants: Vec<String> },
    /// A worker process was ended because nobody needs it.
    WorkerRetired { worker: u64, pid: i32, uid: u32 },
    /// A tenant has moved into a worker.
    Admitted { tenant: String, uid: u32, worker: u64, level: Level, reason: String },
    /// A tenant has moved out of a worker.
    Retired { tenant: String, uid: u32, worker: u64, reason: String },
    /// A run was begun again after its worker died.
    Retried { tenant: String, uid: u32, run: String, reason: String },
    /// A run ended otherwise than well or by its own exception.
    RunEnded { tenant: String, uid: u32, run: String, outcome: Outcome },
    /// A worker broke the protocol; `tenant` is on whose channel it was, null on the worker's own.
    ProtocolViolation { worker: u64, pid: i32, uid: u32, tenant: Option<String>, what: String },
    /// A layer stopped an attack, and the worker has ended. Who and what is the worker's record: an
    /// allegation, if the attacker could execute code of its own.
    Violation {
        worker: u64,
        pid: i32,
        uid: u32,
        /// On whose thread it was.
        tenant: Option<String>,
        layer: String,
        what: String,
        address: Option<String>,
        /// Whose island the address is on, if it is another tenant's.
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
        blame: Blame,
    },
    /// A worker held more outside its tenants' islands than they explain: it takes no further
    /// tenant, and those it has leave it one by one; `tenant` seems to hold most, if one does.
    UnexplainedMemory { worker: u64, pid: i32, uid: u32, tenant: Option<String>, held_mb: u64, most_mb: u64 },
    /// Pages of a worker did not carry the key that they should, and it was ended.
    Mistagged { worker: u64, pid: i32, uid: u32, findings: Vec<String> },
    /// A tenant must live further out, or may come in again; each reason with its numbers. `uid` is
    /// who ran the tenant, or gave the order.
    Cordoned { tenant: String, uid: u32, from: Level, to: Level, reasons: Vec<Reason> },
    /// A process died or held too much, and it is not known whose doing that was: this one of its
    /// tenants is kept from others for a while, alone or with half of those who were there.
    KeptApart { tenant: String, uid: u32, alone: bool, because: Because, for_secs: u64 },
    /// The tenants of a uid were blamed for so many deaths of processes that its new homes are
    /// alone; without another one all are forgiven after that time.
    BudgetUsedUp { uid: u32, deaths: u64, clear_in_ms: u64 },
    /// An operator ordered that a tenant lives at least that far out.
    Ordered { tenant: String, level: Level, reason: String, by_uid: u32 },
    /// An operator let a tenant in again.
    Lifted { tenant: String, reason: String, by_uid: u32 },
    /// The runs of a tenant go to its new home from now on.
    Rehomed { tenant: String, uid: u32, worker: u64, level: Level, token: u64 },
    /// The old home is empty; `fenced` if runs did not end in time, and were begun again in the new
    /// one.
    Drained { tenant: String, uid: u32, worker: u64, fenced: bool, ms: u64 },
    /// There was no room for a tenant that must live alone. It is refused until there is.
    NoRoom { tenant: String, uid: u32, level: Level, reason: String },
    /// The end of a run came from a home that its tenant has left: it was discarded, and the run
    /// begun again.
    Fenced { tenant: String, uid: u32, run: String, token: u64 },
    /// Something that was kept could not be read at the start.
    RecordBroken { what: String },
    /// An operator has set a policy.
    PolicyChanged { tenant: String, by_uid: u32 },
    /// A peer asked for what it may not do.
    Denied { uid: u32, what: String },
    /// More different events of a class than are told one by one in a second.
    Others { class: EventClass },
}

/// What follows from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Blame {
    /// It counts against the tenant: nobody else can have caused it.
    Certain,
    /// It counts against the tenant, and less: others were there.
    InCompany,
    /// The process had no memory left.
    WantOfMemory,
    /// It is not known whose doing it was.
    Unknown,
    /// It is nobody's doing.
    Nobody,
}
