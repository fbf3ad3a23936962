//! The classes of events.

use serde::Serialize;

/// How an event is kept, emitted and logged. Each class has room of its own, so a flood of one
/// class does not displace another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Class {
    /// Traces of attacks, decisions, and operators' orders. They are also in the audit log.
    Evidence,
    /// The life of workers, tenants' homes and the daemon.
    Course,
    /// What any client can cause at will: counted, and emitted once a second.
    Common,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Evidence, Self::Course, Self::Common];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::Course => "course",
            Self::Common => "common",
        }
    }
}
