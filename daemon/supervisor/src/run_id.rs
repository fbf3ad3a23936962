//! The names of runs: each one once, and none says how many others there were.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use enisle_wire::tenant::RunId;

/// Half of a name, which has 48 bits.
const HALF_BITS: u32 = 24;
const HALF: u64 = (1 << HALF_BITS) - 1;
/// A Feistel network of four rounds and more cannot be told from a random permutation if its rounds
/// cannot (Luby and Rackoff, 1988).
const ROUNDS: u64 = 6;

/// A counter behind a permutation, whose key is drawn at the start.
#[derive(Debug)]
pub(crate) struct RunIds {
    next: AtomicU64,
    /// SipHash under a random key.
    key: RandomState,
}

impl RunIds {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(0), key: RandomState::new() }
    }

    pub(crate) fn next(&self) -> RunId {
        RunId(self.permute(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// One to one over 48 bits: each round can be undone.
    fn permute(&self, number: u64) -> u64 {
        let (mut left, mut right) = ((number >> HALF_BITS) & HALF, number & HALF);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (self.key.hash_one((round, right)) & HALF));
        }
        (left << HALF_BITS) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_comes_twice_and_none_says_how_many_there_were() {
        let (ids, others) = (RunIds::new(), RunIds::new());
        let names: Vec<_> = (0..100_000).map(|_| ids.next().0).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| *name < 1 << 48));
        let steps: BTreeSet<_> = names.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(steps.len() > 99_000, "{} steps", steps.len());
        assert_ne!(others.next().0, names[0], "the key is drawn anew");
    }
}
