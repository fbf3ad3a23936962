//! What the last daemon left, as it was read at the start, and the errors that keep this daemon
//! from starting.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use enisle_cordon::Standing;
use enisle_cordon::audit::Head;

use crate::tenants::policy::TenantName;

/// What was read at the start.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) standings: BTreeMap<TenantName, Standing>,
    /// The last line of the audit log, according to the database.
    pub(crate) head: Option<Head>,
    /// Whether the database of standings was damaged or is gone.
    pub(crate) lost: bool,
    /// What could not be read, and where it is now.
    pub(crate) broken: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{0} cannot be used for the daemon's records: {1}")]
    Folder(PathBuf, io::Error),
    #[error("the database of standings {0} can be neither opened nor made: {1}")]
    Database(PathBuf, redb::Error),
    #[error("another enisled keeps its records in {0}; give this one another --state-dir")]
    Taken(PathBuf),
    #[error("the database of standings {0} could not be examined ({1}); nothing was changed, try again")]
    Unexamined(PathBuf, String),
    #[error("the thread that keeps records could not be started: {0}")]
    Thread(io::Error),
}
