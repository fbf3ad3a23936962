//! `GET /v1/workers`: the processes.

use enisle_cordon::Level;
use serde::{Deserialize, Serialize};

/// A page of worker processes, ordered by id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerPage {
    pub workers: Vec<Worker>,
    /// The value of `after` for the next page; left out on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Worker {
    pub id: u64,
    pub pid: i32,
    /// The cordon level of its tenants.
    pub cordon: Level,
    /// The names of the tenants that live in it. None while it is on standby.
    pub tenants: Vec<String>,
    /// Slots that were ever taken; a slot is never taken twice.
    pub places_used: u32,
    /// Slots that are ready for a tenant that is not there yet.
    pub places_ready: usize,
    /// Resident memory as reported by the kernel; null if the process has just ended.
    pub rss_bytes: Option<u64>,
    /// Committed memory when the daemon last read it.
    pub committed_bytes: u64,
    /// The most memory that it may commit.
    pub bound_bytes: u64,
    pub age_ms: u64,
    /// V8's version.
    pub v8: String,
}
