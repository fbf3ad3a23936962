//! What a line of the audit log says.

use std::collections::BTreeMap;

use enisle_cordon::audit::Head;
use enisle_cordon::{Because, Level, Reason};
use serde::{Deserialize, Serialize};

/// One line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Entry {
    /// A tenant must live at another level from now on.
    Moved {
        tenant: String,
        from: Level,
        to: Level,
        reasons: Vec<Reason>,
    },
    /// An operator's order, whether it moved the tenant or not.
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
    /// A tenant's policy was set. The policy contains the names of secrets, not their values.
    PolicyChanged {
        tenant: String,
        policy: serde_json::Value,
        by_uid: u32,
    },
    /// Tenants are kept apart for a while, each alone or with its half. A line has all tenants that
    /// one death, or one reading of a worker's memory, concerns.
    Apart {
        worker: u64,
        because: Because,
        alone: Vec<String>,
        halves: Vec<Vec<String>>,
        for_secs: u64,
    },
    /// Stored data could not be read.
    Broken {
        what: String,
    },
    /// An event that is evidence, and how many it stands for.
    Seen {
        count: u64,
        event: serde_json::Value,
    },
    /// This many lines of each kind are missing here: the disk had stopped, or was too slow.
    Lost {
        kinds: BTreeMap<String, u64>,
    },
    /// The oldest file was deleted, because the log was over its bound (`audit.keep_mb`) or the
    /// disk was nearly full. `through` is the last line of that file, with its hash; the next line
    /// is the first one that is left. For a quarantined file there is no `through`.
    Deleted {
        file: String,
        through: Option<Head>,
    },
}

impl Entry {
    /// The name of the decision, or of the event.
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
