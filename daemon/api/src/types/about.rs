//! `GET /v1/version`, `GET /v1/info`: what a daemon is, and what its machine gives it.

use enisle_wire::Outcome;
use serde::{Deserialize, Serialize};

use super::policy::Policy;

/// Which versions run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Version {
    /// The daemon's.
    pub enisled: String,
    /// The API's.
    pub api: String,
    /// That of the frames between the daemon and its workers.
    pub wire: u16,
    /// V8's; null until the first worker has started.
    pub v8: Option<String>,
}

/// What whoever may run something needs to know; to operators also how the machine is secured, and
/// how full it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Info {
    /// The policy of a tenant for which none was set.
    pub defaults: Policy,
    /// Every way in which a run can end.
    pub outcomes: Vec<Outcome>,
    pub uptime_ms: u64,
    /// The daemon is about to end, and begins no run.
    pub draining: bool,
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posture: Option<Posture>,
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deaths: Option<DeathBudget>,
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

/// What this machine offers, and what the workers have of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Posture {
    pub layers: Vec<LayerState>,
    /// Protection keys that a process can take.
    pub keys: usize,
    /// The configuration accepts tenants in one process without protection keys.
    pub share_without_keys: bool,
    /// What this means for where tenants live, in a sentence.
    pub consequence: String,
}

/// One layer of defence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerState {
    pub layer: String,
    /// The workers have it.
    pub on: bool,
    /// What was found on this machine.
    pub detail: String,
    /// What it protects against.
    pub protects: String,
    /// What it means that the workers are without it; null if they have it.
    pub consequence: Option<String>,
    /// How to get it; null if this machine has it.
    pub remedy: Option<String>,
}

/// Whether the processor's counters are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    pub on: bool,
    /// Why not; null if they are.
    pub detail: Option<String>,
}

/// How much there may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Capacity {
    pub tenants_per_process: usize,
    pub max_processes: usize,
    /// Processes that may each belong to one tenant.
    pub max_alone: usize,
}

/// The deaths of processes that the tenants of a uid may be blamed for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeathBudget {
    /// From this many on, new homes of the uid are on probation.
    pub budget: u32,
    /// One death is forgiven after this time.
    pub regain_secs: u64,
    /// The uids that any deaths are held against.
    pub held_against: Vec<HeldAgainst>,
}

/// The deaths that are held against one uid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeldAgainst {
    pub uid: u32,
    pub deaths: u64,
    pub used_up: bool,
    /// Without another death all are forgiven after this time.
    pub clear_in_ms: u64,
}

/// How much there is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    pub workers: usize,
    /// Tenants that have a home at the moment.
    pub residents: usize,
    /// Tenants whose names are known.
    pub tenants: usize,
    pub in_flight: u64,
}
