//! `GET /v1/audit`: where every decision is written down.

use serde::{Deserialize, Serialize};

/// The audit log, and the last of its lines that is on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditHead {
    /// The folder with its files.
    pub folder: String,
    /// The number of the last line; 0 if there is none yet.
    pub seq: u64,
    /// The hash of the last line.
    pub hash: String,
    /// How many lines the disk was too slow for.
    pub lost: u64,
}
