//! The account that an event is charged to, and how a second's capacity is shared.

use crate::share::{Exhausted, Held, Parts, Supply};

/// The capacity of a second for all uids together that no rule names.
const STRANGERS: u64 = 4;

/// The account that an event is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Group {
    Daemon,
    /// Root and the daemon's own uid, if no rule names them.
    Owner,
    Uid(u32),
    /// All uids that no rule names.
    Strangers,
}

/// How many events a second has capacity for, shared among groups like every resource that clients
/// share.
#[derive(Debug, Clone)]
pub(super) struct Room {
    known: Supply,
    strangers: Supply,
}

impl Room {
    pub(super) fn new(what: &'static str, whole: u64, parts: Parts) -> Self {
        // Root and the daemon's own uid count together, as uid 0.
        Self { known: Supply::new(what, whole, parts), strangers: Supply::new(what, STRANGERS, Parts::new(&[])) }
    }

    /// Takes capacity for one event. The daemon's own events need none.
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
