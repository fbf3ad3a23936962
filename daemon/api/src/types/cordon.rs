//! `PUT`, `DELETE /v1/tenants/{tenant}/cordon`: an operator's order, and a tenant's standing.

use enisle_cordon::decide::Past;
use enisle_cordon::{Level, Signal, Source};
use serde::{Deserialize, Serialize};

/// An order: the tenant lives at least this far out until the order is lifted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CordonRequest {
    /// The daemon refuses `shared`: to let a tenant back in, lift the order.
    #[cfg_attr(feature = "schema", schemars(with = "OrderedLevel"))]
    pub level: Level,
    /// The reason, 1 to 1,024 bytes; it is written to the audit log.
    pub reason: String,
}

/// The levels that an order can name.
#[cfg(feature = "schema")]
#[derive(Debug, Clone, Copy, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderedLevel {
    /// A process of its own.
    Solo,
    /// A process of its own, without a compiler, with lower limits and no secrets.
    Sealed,
    /// Nowhere: no run of the tenant starts.
    Expelled,
}

/// A tenant's standing, for operators: its level, its score with the signals that add up to it, and
/// its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cordon {
    pub level: Level,
    pub since_unix_ms: u64,
    pub score: f64,
    pub thresholds: Thresholds,
    pub signals: Vec<SignalState>,
    /// Null if the tenant is not suspected.
    pub suspected_until_unix_ms: Option<u64>,
    /// Null if the tenant is not kept apart.
    pub kept_apart: Option<KeptApart>,
    /// Whether the tenant got its home while its uid's budget of deaths was used up.
    pub on_probation: bool,
    /// The operator's order; null if there is none.
    pub order: Option<StandingOrder>,
    pub first_seen_unix_ms: u64,
    /// The tenant's last moves, oldest first.
    pub history: Vec<Past>,
}

/// The score at which a tenant reaches each level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Thresholds {
    /// From this score on the tenant is watched: it shares a process only with other watched
    /// tenants.
    pub watch: f64,
    pub solo: f64,
    pub sealed: f64,
    pub expelled: f64,
}

/// What one signal contributes to a score now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignalState {
    pub signal: Signal,
    /// Who measured it.
    pub source: Source,
    pub points: f64,
    /// Points for each occurrence.
    pub weight: f64,
    pub half_life_secs: u64,
    pub count: u32,
    /// Time since the signal was last seen.
    pub age_ms: u64,
    /// True if no other tenant can have caused the signal.
    pub certain: bool,
}

/// The tenant is kept apart from others for a while, without a decision about it. A process that it
/// was in died or held too much memory, and it is not certain which tenant is to blame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeptApart {
    /// True: the tenant lives alone. False: with half of the tenants that were in the process.
    pub alone: bool,
    /// For how much longer.
    pub for_ms: u64,
}

/// An order in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StandingOrder {
    pub level: Level,
    pub reason: String,
    pub by_uid: u32,
    pub unix_ms: u64,
}
