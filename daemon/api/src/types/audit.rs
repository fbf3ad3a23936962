//! `GET /v1/audit`: where every decision is recorded.

use serde::{Deserialize, Serialize};

/// The audit log, and the last of its lines that is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditHead {
    /// The folder of the log's files.
    pub folder: String,
    /// The number of the last line; 0 if there is none yet.
    pub seq: u64,
    /// The hash of the last line.
    pub hash: String,
    /// How many lines the daemon has dropped since its start, because the disk was too slow.
    pub lost: u64,
}
