//! `PUT /v1/tenants/{tenant}`: what a tenant may do, and what one run may use.

use enisle_cordon::Trust;
pub use enisle_wire::limits::{RequestedLimits, Shown as Limits};
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
