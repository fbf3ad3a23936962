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
    /// The tenant's owner: a tenant with secrets shares a process only with tenants of the same
    /// owner. Left out if the tenant has no owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub trust: Trust,
    /// Names of the entries of `env` that are secrets. A sealed tenant does not get these entries.
    pub secrets: Vec<String>,
    /// Whether `eval` and `new Function` work.
    pub allow_eval: bool,
}

/// How much a tenant may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Quota {
    /// Runs that are queued or running.
    pub in_flight: u32,
    /// Runs a second, on average.
    pub per_second: u32,
    /// Runs that may come at once after a pause.
    pub burst: u32,
}

/// A policy to set. A field that is left out gets its built-in value, not its previous one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RequestedLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<RequestedQuota>,
    /// The tenant's owner, at most 128 bytes: a tenant with secrets shares a process only with
    /// tenants of the same owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Names of secret entries of `env`: at most 100, each of at most 128 bytes. A sealed tenant
    /// does not get these entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// Whether `eval` and `new Function` work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_eval: Option<bool>,
}

/// A quota to set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestedQuota {
    /// Runs that are queued or running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Runs a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// Runs that may come at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}
