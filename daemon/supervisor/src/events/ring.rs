//! The last events of one class.

use std::collections::{HashMap, VecDeque};

use super::group::Group;
use super::kind::{Event, Source};

/// Bounded storage. When it is full, the group with the most events loses one: the oldest event of
/// that group's source with the most events.
#[derive(Debug)]
pub(super) struct Ring {
    most: usize,
    /// How many events were ever put into the ring.
    pushed: u64,
    kept: VecDeque<Kept>,
    held: HashMap<Group, HashMap<Source, usize>>,
}

#[derive(Debug)]
pub(super) struct Kept {
    /// Numbers the events of this class from 1.
    pub(super) number: u64,
    pub(super) event: Event,
    group: Group,
}

impl Ring {
    pub(super) fn new(most: usize) -> Self {
        Self { most, pushed: 0, kept: VecDeque::new(), held: HashMap::new() }
    }

    pub(super) fn push(&mut self, event: Event, group: Group) {
        if self.kept.len() >= self.most {
            self.forget_one();
        }
        self.pushed += 1;
        *self.held.entry(group).or_default().entry(event.kind.source()).or_default() += 1;
        self.kept.push_back(Kept { number: self.pushed, event, group });
    }

    /// The first event after `seq`.
    pub(super) fn after(&self, seq: u64) -> Option<&Kept> {
        self.kept.get(self.kept.partition_point(|kept| kept.event.seq <= seq))
    }

    fn forget_one(&mut self) {
        let of = |sources: &HashMap<Source, usize>| sources.values().sum::<usize>();
        let most = self.held.iter().max_by_key(|(_, sources)| of(sources));
        let Some((group, sources)) = most else { return };
        let (group, most) = (*group, sources.values().copied().max().unwrap_or_default());
        let greedy = |kept: &Kept| kept.group == group && sources.get(&kept.event.kind.source()) == Some(&most);
        let Some(oldest) = self.kept.iter().position(greedy) else { return };
        let Some(gone) = self.kept.remove(oldest) else { return };
        if let Some(sources) = self.held.get_mut(&group) {
            let source = gone.event.kind.source();
            if most <= 1 {
                sources.remove(&source);
            } else {
                sources.insert(source, most - 1);
            }
        }
        self.held.retain(|_, sources| !sources.is_empty());
    }
}
