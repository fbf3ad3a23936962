//! `GET /v1/workers`: the processes.

use enisle_cordon::Level;
use serde::{Deserialize, Serialize};

/// A page of worker processes, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerPage {
    pub workers: Vec<Worker>,
    /// What `after` has to be for the next page; left out on the last one.
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
    /// For which tenants it is.
    pub cordon: Level,
    /// The names of those who live in it.
    pub tenants: Vec<String>,
    /// Places that were ever taken; none is taken a second time.
    pub places_used: u32,
    /// By the kernel; null if the process has just ended.
    pub rss_bytes: Option<u64>,
    /// At the last look at it.
    pub committed_bytes: u64,
    /// What it may commit.
    pub bound_bytes: u64,
    pub age_ms: u64,
    /// V8's version.
    pub v8: String,
}
