//! `PUT /v1/tenants/{tenant}`: what a tenant may do, and what one run may use.

use enisle_cordon::Trust;
use serde::{Deserialize, Serialize};

/// What a tenant may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Policy {
    pub limits: Limits,
    pub quota: Quota,
    /// Whose the tenant is: tenants with secrets share a process with nobody else's. Left out if
    /// it is nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub trust: Trust,
    /// Entries of `env` that are secrets. A sealed tenant does not get them.
    pub secrets: Vec<String>,
    /// `eval` and `new Function` work.
    pub allow_eval: bool,
}

/// What one run may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// Of the processor's time.
    pub cpu_ms: u32,
    pub wall_ms: u32,
    /// For the heap, and once more for what is outside it.
    pub memory_mb: u32,
    /// Of the result.
    pub output_bytes: u32,
    pub log_bytes: u32,
    pub log_lines: u32,
    /// Pending at one time.
    pub timers: u32,
    /// All modules together.
    pub code_bytes: u32,
    /// Accepted; nothing makes requests yet.
    pub sub_requests: u32,
}

/// What a tenant may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Quota {
    /// Runs that are queued or running.
    pub in_flight: u32,
    /// Runs a second, over time.
    pub per_second: u32,
    /// Runs at once after a pause.
    pub burst: u32,
}

/// A policy to be set. What is left out has its built-in value, not that of the policy before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RequestedLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<RequestedQuota>,
    /// Whose the tenant is, in at most 128 bytes: tenants with secrets share a process with nobody
    /// else's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Entries of `env` that are secrets: at most 100, of 128 bytes each. A sealed tenant does not
    /// get them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// `eval` and `new Function` work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_eval: Option<bool>,
}

/// Limits to be set, or those that a run asks for, of which the lower one of run and policy holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestedLimits {
    /// Of the processor's time; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u32>,
    /// At least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u32>,
    /// For the heap, and once more for what is outside it; at least 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lines: Option<u32>,
    /// Pending at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timers: Option<u32>,
    /// All modules together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_bytes: Option<u32>,
    /// Accepted; nothing makes requests yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_requests: Option<u32>,
}

/// A quota to be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestedQuota {
    /// Runs that are queued or running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Runs a second, over time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// Runs at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}
