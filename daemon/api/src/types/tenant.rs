//! `GET /v1/tenants`, `GET /v1/tenants/{tenant}`: the tenants.

use std::collections::BTreeMap;

use enisle_cordon::Level;
use enisle_wire::Outcome;
use serde::{Deserialize, Serialize};

use super::cordon::Cordon;
use super::policy::Policy;

/// A tenant, as the caller may see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum TenantView {
    Full(Box<Tenant>),
    Own(OwnTenant),
}

/// A tenant, for operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tenant {
    pub name: String,
    pub policy: Policy,
    pub in_flight: u32,
    pub cordon: Cordon,
    /// Null if the tenant has no home now.
    pub resident: Option<HomeView>,
    pub usage: TenantUsage,
}

/// A tenant, for peers that act for it and do not operate the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnTenant {
    pub name: String,
    pub policy: Policy,
    pub in_flight: u32,
    pub cordon: OwnCordon,
    pub usage: OwnUsage,
}

/// How far out a tenant lives, without the reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnCordon {
    pub level: Level,
    pub since_unix_ms: u64,
}

/// What a tenant has used, in whole milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnUsage {
    /// Runs that have ended.
    pub runs: u64,
    pub cpu_ms: u64,
    /// How many runs ended with each outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
}

/// What a tenant has used, for operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantUsage {
    /// Runs that have ended.
    pub runs: u64,
    /// Attempts that were sent to a worker: a run that restarts counts once more.
    pub begun: u64,
    /// How many reported ends were discarded, because the tenant had left the home that reported
    /// them.
    pub fenced: u64,
    pub cpu_ms: f64,
    /// How many runs ended with each outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
}

/// The home of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HomeView {
    /// The worker's id.
    pub worker: u64,
    pub pid: i32,
    pub cordon: Level,
    /// Whether an isolate is warm and no run is in progress.
    pub warm: bool,
    pub unused_ms: u64,
}

/// A page of tenants, ordered by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantPage {
    pub tenants: Vec<TenantRow>,
    /// The value of `after` for the next page; left out on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A tenant in a list: without its policy and history, which may be long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantRow {
    pub name: String,
    pub in_flight: u32,
    pub cordon: CordonRow,
    /// Null if the tenant has no home now.
    pub resident: Option<HomeView>,
    pub usage: TenantUsage,
}

/// How far out a tenant lives, and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CordonRow {
    pub level: Level,
    pub since_unix_ms: u64,
    pub score: f64,
}
