//! What outlives the daemon, and the lock on it.

pub(crate) mod audit_log;
pub(crate) mod entry;
pub(crate) mod kept;
pub(crate) mod notes;
pub(crate) mod recorder;
mod replay;
pub(crate) mod standings;
