//! Events that repeat each other within a second, counted instead of emitted one by one.

use std::collections::HashMap;

use super::group::{Group, Room};
use super::kind::{EventKind, Key};
use crate::share::Held;

/// The events of one class in a second.
#[derive(Debug)]
pub(super) struct Tally {
    /// How many events with the same key are emitted at once; the rest is only counted.
    direct: u64,
    /// Capacity for different events.
    room: Room,
    places: HashMap<(Group, Key), usize>,
    counted: Vec<(EventKind, u64, Option<Held>)>,
    others: u64,
}

/// What becomes of an event.
#[derive(Debug)]
pub(super) enum Counted {
    /// It is emitted at once.
    Now(EventKind),
    /// It is emitted at the end of the second, together with the events that it repeats.
    Later,
    /// The second has no capacity left for different events, so this one is only counted among the
    /// others.
    NoPlace(EventKind),
}

impl Tally {
    pub(super) fn new(direct: u64, room: Room) -> Self {
        Self { direct, room, places: HashMap::new(), counted: Vec::new(), others: 0 }
    }

    pub(super) fn count(&mut self, kind: EventKind, group: Group) -> Counted {
        let key = (group, kind.key());
        if let Some(known) = self.places.get(&key).and_then(|place| self.counted.get_mut(*place)) {
            known.1 += 1;
            if known.1 <= self.direct {
                return Counted::Now(kind);
            }
            // The event emitted later is the first one that was not emitted at once.
            if known.1 == self.direct + 1 {
                known.0 = kind;
            }
            return Counted::Later;
        }
        let Ok(held) = self.room.take(group) else {
            self.others += 1;
            return Counted::NoPlace(kind);
        };
        self.places.insert(key, self.counted.len());
        let now = (self.direct > 0).then(|| kind.clone());
        self.counted.push((kind, 1, held));
        now.map_or(Counted::Later, Counted::Now)
    }

    /// The events still to be emitted, in the order in which they first occurred, and how many
    /// events had no capacity. Starts a new second.
    pub(super) fn take(&mut self) -> (Vec<(EventKind, u64)>, u64) {
        let direct = self.direct;
        let Self { counted, others, .. } = std::mem::replace(self, Self::new(direct, self.room.clone()));
        let left = counted.into_iter().filter_map(|(kind, count, _)| {
            let left = count.saturating_sub(direct);
            (left > 0).then_some((kind, left))
        });
        (left.collect(), others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Parts;

    fn room(whole: u64) -> Room {
        Room::new("events", whole, Parts::halves())
    }

    fn denied(uid: u32) -> EventKind {
        EventKind::Denied { uid, what: "operate the daemon".to_owned() }
    }

    fn ended(tenant: &str) -> EventKind {
        EventKind::RunEnded { tenant: tenant.to_owned(), uid: 7, run: "run_1".to_owned(), outcome: "exceededCpu" }
    }

    #[test]
    fn repetitions_are_one_event_with_a_count() {
        let mut tally = Tally::new(0, room(8));
        for _ in 0..1000 {
            assert!(matches!(tally.count(denied(7), Group::Uid(7)), Counted::Later));
        }
        tally.count(denied(8), Group::Uid(8));
        let counts: Vec<_> = tally.take().0.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1000, 1]);
        assert!(tally.take().0.is_empty());
    }

    #[test]
    fn the_first_events_are_emitted_at_once_if_configured() {
        let mut tally = Tally::new(4, room(8));
        let now = |_: &u8| matches!(tally.count(ended("t"), Group::Uid(7)), Counted::Now(_));
        let emitted = (0..10).filter(now).count();
        let (left, others) = tally.take();
        assert_eq!((emitted, left.first().map(|(_, count)| *count), others), (4, Some(6), 0));
        tally.count(ended("t"), Group::Uid(7));
        assert!(tally.take().0.is_empty(), "what was emitted is not emitted again");
    }

    #[test]
    fn no_group_gets_more_than_half_of_the_free_capacity() {
        let mut tally = Tally::new(0, room(8));
        for _ in 0..2 {
            for group in [Group::Owner, Group::Uid(7)] {
                (0..100).for_each(|n| drop(tally.count(ended(&format!("{group:?}{n}")), group)));
            }
            (1000..2000).for_each(|uid| drop(tally.count(denied(uid), Group::Strangers)));
            tally.count(ended("another"), Group::Uid(8));
            tally.count(EventKind::Draining, Group::Daemon);
            let (counted, others) = tally.take();
            // The owner gets half, uid 7 half of the rest, all uids without a rule together a few,
            // uid 8 one, and the daemon's own event needs no capacity.
            assert_eq!((counted.len(), others), (4 + 2 + 4 + 1 + 1, 96 + 98 + 996));
        }
    }
}
