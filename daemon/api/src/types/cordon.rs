//! `PUT`, `DELETE /v1/tenants/{tenant}/cordon`: an operator's word; and how a tenant stands.

use enisle_cordon::decide::Past;
use enisle_cordon::{Level, Signal, Source};
use serde::{Deserialize, Serialize};

/// A tenant lives at least that far out until the order is lifted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CordonRequest {
    /// The daemon refuses `shared`: to let a tenant in again, lift the order.
    #[cfg_attr(feature = "schema", schemars(with = "OrderedLevel"))]
    pub level: Level,
    /// Why: 1 to 1,024 bytes, which are written to the audit log.
    pub reason: String,
}

/// What an order can say.
#[cfg(feature = "schema")]
#[derive(Debug, Clone, Copy, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderedLevel {
    /// A process of its own.
    Solo,
    /// A process of its own, without a compiler, with lower limits and no secrets.
    Sealed,
    /// Not run at all.
    Expelled,
}

/// How a tenant stands, for operators: its score, what it is made of, and how it came to this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cordon {
    pub level: Level,
    pub since_unix_ms: u64,
    pub score: f64,
    pub thresholds: Thresholds,
    pub signals: Vec<SignalState>,
    /// Null if it is not suspected.
    pub suspected_until_unix_ms: Option<u64>,
    /// Null if it is not kept from others.
    pub kept_apart: Option<KeptApart>,
    /// It has a new home, and its uid's budget of deaths was used up.
    pub on_probation: bool,
    /// The operator's order; null if there is none.
    pub order: Option<StandingOrder>,
    pub first_seen_unix_ms: u64,
    /// Its last moves, the oldest first.
    pub history: Vec<Past>,
}

/// From which score on a tenant lives where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Thresholds {
    /// It shares a process only with others from this score on.
    pub watch: f64,
    pub solo: f64,
    pub sealed: f64,
    pub expelled: f64,
}

/// What one signal contributes to a score at the moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignalState {
    pub signal: Signal,
    /// Who measured it.
    pub source: Source,
    pub points: f64,
    /// Points each time.
    pub weight: f64,
    pub half_life_secs: u64,
    pub count: u32,
    /// Since it was last seen.
    pub age_ms: u64,
    /// Nobody else can have caused it.
    pub certain: bool,
}

/// Why a tenant is kept from others although no decision says so: a process that it was in died,
/// and it is not known whose doing that was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeptApart {
    /// It lives alone; otherwise with half of the tenants that were there.
    pub alone: bool,
    /// For this much longer.
    pub for_ms: u64,
}

/// An order that holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StandingOrder {
    pub level: Level,
    pub reason: String,
    pub by_uid: u32,
    pub unix_ms: u64,
}
