//! The standings and the audit log, which outlive the daemon, and the lock on the state folder.

pub(crate) mod audit_log;
pub(crate) mod entry;
pub(crate) mod kept;
pub(crate) mod notes;
pub(crate) mod recorder;
mod replay;
pub(crate) mod standings;
