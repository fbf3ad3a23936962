//! `GET /v1/version`, `GET /v1/info`: what a daemon is, and what its machine provides.

use enisle_wire::Outcome;
use serde::{Deserialize, Serialize};

use super::policy::Policy;

/// The running versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Version {
    /// The daemon's version.
    pub enisled: String,
    /// The version of the API.
    pub api: String,
    /// The version of the frames between the daemon and its workers.
    pub wire: u16,
    /// The version of V8; null until the first worker has started.
    pub v8: Option<String>,
}

/// What every caller needs to know. Operators also see how the machine is secured and how full it
/// is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Info {
    /// The policy of a tenant for which none was set.
    pub defaults: Policy,
    /// Every way in which a run can end.
    pub outcomes: Vec<Outcome>,
    pub uptime_ms: u64,
    /// Whether the daemon is about to end. If so, it starts no more runs.
    pub draining: bool,
    /// For operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posture: Option<Posture>,
    /// For operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// For operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// For operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deaths: Option<DeathBudget>,
    /// For operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

/// What this machine offers, and which of it the workers use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Posture {
    pub layers: Vec<LayerState>,
    /// Protection keys that a process can allocate.
    pub keys: usize,
    /// Whether the configuration lets tenants share a process without protection keys.
    pub share_without_keys: bool,
    /// What the posture means for where tenants live, in a sentence.
    pub consequence: String,
}

/// One layer of defence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerState {
    pub layer: String,
    /// Whether the workers have the layer.
    pub on: bool,
    /// What was found on this machine.
    pub detail: String,
    /// What the layer protects against.
    pub protects: String,
    /// What the layer's absence means; null if the workers have it.
    pub consequence: Option<String>,
    /// How to get the layer; null if this machine has it.
    pub remedy: Option<String>,
}

/// Whether the processor's performance counters are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    pub on: bool,
    /// Why the counters are not used; null if they are used.
    pub detail: Option<String>,
}

/// The highest numbers of tenants and processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Capacity {
    pub tenants_per_process: usize,
    pub max_processes: usize,
    /// How many processes may each belong to a single tenant.
    pub max_alone: usize,
}

/// For each uid, the deaths of processes that count against it because one of its tenants was
/// blamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeathBudget {
    /// From this many deaths on, new homes of the uid are on probation. 0: there is no budget.
    pub budget: u32,
    /// After this time one death is forgiven, and after the same time again the next one.
    pub regain_secs: u64,
    /// The uids against which deaths count.
    pub held_against: Vec<HeldAgainst>,
}

/// A uid, and the deaths that count against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeldAgainst {
    pub uid: u32,
    pub deaths: u64,
    pub used_up: bool,
    /// All deaths are forgiven after this time, unless another death follows.
    pub clear_in_ms: u64,
}

/// How many workers, tenants and runs there are now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    /// Worker processes, those on standby included.
    pub workers: usize,
    /// Worker processes that are nobody's yet.
    pub standby: usize,
    /// Tenants that have a home now.
    pub residents: usize,
    /// Tenants whose names are known.
    pub tenants: usize,
    pub in_flight: u64,
}
