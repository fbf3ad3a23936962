//! Events that repeat each other within a second, counted instead of told one by one.

use std::collections::HashMap;

use super::group::{Group, Room};
use super::what::{Key, What};
use crate::share::Held;

/// What a second's events of one class came to.
#[derive(Debug)]
pub(super) struct Tally {
    /// Repetitions that are told at once before the rest is counted.
    direct: u64,
    /// For different events.
    room: Room,
    places: HashMap<(Group, Key), usize>,
    counted: Vec<(What, u64, Option<Held>)>,
    others: u64,
}

/// What becomes of an event.
#[derive(Debug)]
pub(super) enum Counted {
    /// It is told at once.
    Now(What),
    /// It is told with those that it repeats, at the end of the second.
    Later,
    /// There is no place for it: its second has had too many that differ. It is one of the others.
    NoPlace(What),
}

impl Tally {
    pub(super) fn new(direct: u64, room: Room) -> Self {
        Self { direct, room, places: HashMap::new(), counted: Vec::new(), others: 0 }
    }

    pub(super) fn count(&mut self, what: What, group: Group) -> Counted {
        let key = (group, what.key());
        if let Some(known) = self.places.get(&key).and_then(|place| self.counted.get_mut(*place)) {
            known.1 += 1;
            if known.1 <= self.direct {
                return Counted::Now(what);
            }
            // What is told later is the first that was not told at once.
            if known.1 == self.direct + 1 {
                known.0 = what;
            }
            return Counted::Later;
        }
        let Ok(held) = self.room.take(group) else {
            self.others += 1;
            return Counted::NoPlace(what);
        };
        self.places.insert(key, self.counted.len());
        let now = (self.direct > 0).then(|| what.clone());
        self.counted.push((what, 1, held));
        now.map_or(Counted::Later, Counted::Now)
    }

    /// What has yet to be told, in the order in which it began, and how many events were of no kind
    /// that is in it. A new second begins.
    pub(super) fn take(&mut self) -> (Vec<(What, u64)>, u64) {
        let direct = self.direct;
        let Self { counted, others, .. } = std::mem::replace(self, Self::new(direct, self.room.clone()));
        let left = counted.into_iter().filter_map(|(what, count, _)| {
            let left = count.saturating_sub(direct);
            (left > 0).then_some((what, left))
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

    fn denied(uid: u32) -> What {
        What::Denied { uid, what: "operate the daemon".to_owned() }
    }

    fn ended(tenant: &str) -> What {
        What::RunEnded { tenant: tenant.to_owned(), uid: 7, run: "run_1".to_owned(), outcome: "exceededCpu" }
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
    fn the_first_ones_are_told_at_once_where_that_is_asked_for() {
        let mut tally = Tally::new(4, room(8));
        let now = |_: &u8| matches!(tally.count(ended("t"), Group::Uid(7)), Counted::Now(_));
        let told = (0..10).filter(now).count();
        let (left, others) = tally.take();
        assert_eq!((told, left.first().map(|(_, count)| *count), others), (4, Some(6), 0));
        tally.count(ended("t"), Group::Uid(7));
        assert!(tally.take().0.is_empty(), "what was told is not told again");
    }

    #[test]
    fn nobody_has_more_than_half_of_the_places_that_are_free() {
        let mut tally = Tally::new(0, room(8));
        for _ in 0..2 {
            for group in [Group::Owner, Group::Uid(7)] {
                (0..100).for_each(|n| drop(tally.count(ended(&format!("{group:?}{n}")), group)));
            }
            (1000..2000).for_each(|uid| drop(tally.count(denied(uid), Group::Strangers)));
            tally.count(ended("another"), Group::Uid(8));
            tally.count(What::Draining, Group::Daemon);
            let (told, others) = tally.take();
            // Half, half of the rest, a few for all strangers, one, and the daemon's own.
            assert_eq!((told.len(), others), (4 + 2 + 4 + 1 + 1, 96 + 98 + 996));
        }
    }
}
