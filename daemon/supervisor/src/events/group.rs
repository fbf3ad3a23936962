//! On whose account events are, and how a second's room is shared.

use crate::share::{Exhausted, Held, Parts, Supply};

/// Of a second's room all uids together that no rule names have a few places of their own.
const STRANGERS: u64 = 4;

/// On whose account an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Group {
    Daemon,
    /// Root and the daemon's own uid, where no rule names them.
    Owner,
    Uid(u32),
    /// All uids that no rule names.
    Strangers,
}

/// What one second has room for, shared by groups as everything is that clients share.
#[derive(Debug, Clone)]
pub(super) struct Room {
    known: Supply,
    strangers: Supply,
}

impl Room {
    pub(super) fn new(what: &'static str, whole: u64, parts: Parts) -> Self {
        // Root's is the one part of it.
        Self { known: Supply::new(what, whole, parts), strangers: Supply::new(what, STRANGERS, Parts::new(&[])) }
    }

    /// A place for one; what the daemon says of itself needs none.
    pub(super) fn take(&self, group: Group) -> Result<Option<Held>, Exhausted> {
        let held = match group {
            Group::Daemon => return Ok(None),
            Group::Owner => self.known.take(0, 1),
            Group::Uid(uid) => self.known.take(uid, 1),
            Group::Strangers => self.strangers.take(0, 1),
        };
        held.map(Some)
    }
}
