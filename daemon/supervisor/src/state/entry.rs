//! What a line of the audit log says.

use std::collections::BTreeMap;

use enisle_cordon::audit::Head;
use enisle_cordon::{Because, Level, Reason};
use serde::{Deserialize, Serialize};

/// One line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Entry {
    /// A tenant has to live elsewhere from now on.
    Moved {
        tenant: String,
        from: Level,
        to: Level,
        reasons: Vec<Reason>,
    },
    /// An operator's word, whether it moved the tenant or not.
    Ordered {
        tenant: String,
        level: Level,
        reason: String,
        by_uid: u32,
    },
    Lifted {
        tenant: String,
        reason: String,
        by_uid: u32,
    },
    /// A tenant's policy was set; of secrets it has the names.
    PolicyChanged {
        tenant: String,
        policy: serde_json::Value,
        by_uid: u32,
    },
    /// Tenants are kept from others for a while, each alone or together with its half: one line for
    /// all whom one death, or one look at a worker, was about.
    Apart {
        worker: u64,
        because: Because,
        alone: Vec<String>,
        halves: Vec<Vec<String>>,
        for_secs: u64,
    },
    /// Something that was kept could not be read.
    Broken {
        what: String,
    },
    /// An event that is evidence, and how many it stands for.
    Seen {
        count: u64,
        event: serde_json::Value,
    },
    /// So many lines of each kind are missing here: the disk had stopped, or was too slow.
    Lost {
        kinds: BTreeMap<String, u64>,
    },
    /// The oldest file was deleted, for the log had as many bytes as it may have (`audit.keep_mb`).
    /// The line after `through`, whose hash this is, is the first one that is left. A file that was
    /// put aside as broken has no such line.
    Deleted {
        file: String,
        through: Option<Head>,
    },
}

impl Entry {
    /// In a word: the name of the decision, or of the event.
    pub(crate) fn kind(&self) -> String {
        let name = match self {
            Self::Seen { event, .. } => event.get("event").and_then(serde_json::Value::as_str).unwrap_or("seen"),
            Self::Moved { .. } => "moved",
            Self::Ordered { .. } => "ordered",
            Self::Lifted { .. } => "lifted",
            Self::PolicyChanged { .. } => "policyChanged",
            Self::Apart { .. } => "apart",
            Self::Broken { .. } => "broken",
            Self::Lost { .. } => "lost",
            Self::Deleted { .. } => "deleted",
        };
        name.to_owned()
    }
}
