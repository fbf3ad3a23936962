//! What all clients share, and how much of it each uid may have.
//!
//! A uid may hold half of what the others leave free. So uids that take all they can leave
//! something for the next uid, down to the last unit. Root and the daemon's own uid may hold
//! everything, unless `[[peers]]` names them; `share_percent` there sets another part than half.

mod turns;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::config::Peer;

pub(crate) use turns::{Lanes, Turn, Turns};

/// How much of a supply one uid may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Percent(u8),
    HalfOfWhatIsFree,
}

impl Part {
    /// The most that a uid may hold of `whole`, if all others together hold `others`.
    fn of(self, whole: u64, others: u64) -> u64 {
        let left = whole.saturating_sub(others);
        match self {
            Self::All => left,
            Self::Percent(percent) => left.min(whole.saturating_mul(percent.into()) / 100),
            Self::HalfOfWhatIsFree => left.div_ceil(2),
        }
    }
}

/// What the configuration says about each uid's part.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// `None` if root and the daemon's uid have the same part as other uids.
    owner: Option<u32>,
    named: BTreeMap<u32, Option<u8>>,
}

impl Parts {
    pub(crate) fn new(peers: &[Peer]) -> Self {
        let mut named = BTreeMap::new();
        for peer in peers {
            let share: &mut Option<u8> = named.entry(peer.uid).or_default();
            *share = (*share).max(peer.share_percent);
        }
        Self { owner: Some(nix::unistd::geteuid().as_raw()), named }
    }

    /// Half of what is free for every uid, whatever the rules say.
    pub(crate) fn halves() -> Self {
        Self { owner: None, named: BTreeMap::new() }
    }

    /// Gives root and the daemon's own uid no more than others.
    pub(crate) fn without_owner(self) -> Self {
        Self { owner: None, ..self }
    }

    /// Whether a rule names the uid, or the uid needs no rule.
    pub(crate) fn knows(&self, uid: u32) -> bool {
        self.is_owner(uid) || self.named.contains_key(&uid)
    }

    /// Whether the uid may hold everything.
    pub(crate) fn has_all(&self, uid: u32) -> bool {
        self.of(uid) == Part::All
    }

    fn is_owner(&self, uid: u32) -> bool {
        self.owner.is_some_and(|owner| uid == 0 || uid == owner)
    }

    fn of(&self, uid: u32) -> Part {
        match self.named.get(&uid) {
            Some(Some(percent)) => Part::Percent(*percent),
            None if self.is_owner(uid) => Part::All,
            _ => Part::HalfOfWhatIsFree,
        }
    }
}

/// Units of something that all clients share: bytes, connections, names.
#[derive(Debug, Clone)]
pub(crate) struct Supply(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the units are, and which setting says how many there are.
    what: &'static str,
    whole: u64,
    parts: Parts,
    held: Mutex<BTreeMap<u32, Holding>>,
    given_back: Notify,
    /// Whether much was given back at one time since [`Supply::has_given_back_much`] was last
    /// called.
    much_given_back: AtomicBool,
}

/// What a uid holds, and since when the amount has not changed.
#[derive(Debug, Clone, Copy)]
struct Holding {
    units: u64,
    since: Instant,
}

/// The least number of units that is much to give back at one time: for bytes, a quarter of a MiB.
const MUCH: u64 = 256 << 10;

/// A uid wants more units than it may take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "uid {uid} holds {held} of {what}, may hold {most} at the moment, and needs {wanted} more; it is given back as \
     requests end, and an operator can grant more with [[peers]] share_percent"
)]
pub(crate) struct Exhausted {
    uid: u32,
    what: &'static str,
    held: u64,
    most: u64,
    wanted: u64,
}

impl Supply {
    pub(crate) fn new(what: &'static str, whole: u64, parts: Parts) -> Self {
        let (held, given_back, much_given_back) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Self(Arc::new(Inner { what, whole, parts, held, given_back, much_given_back }))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, Holding>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most units that the uid may hold at the moment, including those that it holds.
    pub(crate) fn most(&self, uid: u32) -> u64 {
        self.most_beside(uid, &self.held())
    }

    fn most_beside(&self, uid: u32, held: &BTreeMap<u32, Holding>) -> u64 {
        let others = beside(uid, held).map(|holding| holding.units).sum();
        self.0.parts.of(uid).of(self.0.whole, others)
    }

    /// The most that a uid may hold when no other uid holds anything.
    pub(crate) fn most_ever(&self, uid: u32) -> u64 {
        self.0.parts.of(uid).of(self.0.whole, 0)
    }

    pub(crate) fn held_by(&self, uid: u32) -> u64 {
        self.held().get(&uid).map_or(0, |holding| holding.units)
    }

    /// Since when the others' holdings have not changed; `None` if they hold nothing.
    fn unchanged_beside(&self, uid: u32) -> Option<Instant> {
        beside(uid, &self.held()).map(|holding| holding.since).max()
    }

    /// The units that no uid holds.
    pub(crate) fn free(&self) -> u64 {
        self.0.whole.saturating_sub(self.held().values().map(|holding| holding.units).sum())
    }

    /// Takes units for a uid.
    pub(crate) fn take(&self, uid: u32, units: u64) -> Result<Held, Exhausted> {
        let mut held = self.none(uid);
        held.grow(units)?;
        Ok(held)
    }

    /// Counts units that a uid already uses, even beyond the uid's part.
    pub(crate) fn keep(&self, uid: u32, units: u64) -> Held {
        hold(&mut self.held(), uid, units);
        Held { pool: self.clone(), uid, units }
    }

    /// Whether much was given back at one time since this was last called.
    pub(crate) fn has_given_back_much(&self) -> bool {
        self.0.much_given_back.swap(false, Ordering::Relaxed)
    }

    /// An empty holding, to grow later.
    pub(crate) fn none(&self, uid: u32) -> Held {
        Held { pool: self.clone(), uid, units: 0 }
    }

    fn add(&self, uid: u32, units: u64) -> Result<(), Exhausted> {
        let mut held = self.held();
        let (most, has) = (self.most_beside(uid, &held), held.get(&uid).map_or(0, |holding| holding.units));
        if has.saturating_add(units) > most {
            return Err(Exhausted { uid, what: self.0.what, held: has, most, wanted: units });
        }
        hold(&mut held, uid, units);
        Ok(())
    }

    fn give_back(&self, uid: u32, units: u64) {
        if units == 0 {
            return;
        }
        let mut held = self.held();
        if let Some(has) = held.get_mut(&uid) {
            *has = Holding { units: has.units.saturating_sub(units), since: Instant::now() };
            if has.units == 0 {
                held.remove(&uid);
            }
        }
        drop(held);
        if units >= MUCH {
            self.0.much_given_back.store(true, Ordering::Relaxed);
        }
        self.0.given_back.notify_waiters();
    }
}

fn beside(uid: u32, held: &BTreeMap<u32, Holding>) -> impl Iterator<Item = &Holding> {
    held.iter().filter(move |(other, _)| **other != uid).map(|(_, holding)| holding)
}

fn hold(held: &mut BTreeMap<u32, Holding>, uid: u32, units: u64) {
    if units > 0 {
        let has = held.get(&uid).map_or(0, |holding| holding.units);
        held.insert(uid, Holding { units: has + units, since: Instant::now() });
    }
}

/// Units that a uid holds. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Held {
    pool: Supply,
    uid: u32,
    units: u64,
}

impl Held {
    /// Takes more units.
    pub(crate) fn grow(&mut self, by: u64) -> Result<(), Exhausted> {
        self.pool.add(self.uid, by)?;
        self.units += by;
        Ok(())
    }

    /// Takes more units, and waits for them at most `patience`. Fails at once if the wait is
    /// useless: if only other uids could give units back, and their holdings have not changed for
    /// as long as `patience`.
    pub(crate) async fn grow_within(&mut self, by: u64, patience: Duration) -> Result<(), Exhausted> {
        let until = Instant::now() + patience;
        let pool = self.pool.clone();
        loop {
            let given_back = pool.0.given_back.notified();
            let Err(exhausted) = self.grow(by) else { return Ok(()) };
            // A uid never gets more than its part of a supply that is otherwise free.
            let never = self.units.saturating_add(by) > pool.most_ever(self.uid);
            let all_of_its_own = pool.held_by(self.uid) == self.units;
            let stuck =
                all_of_its_own && pool.unchanged_beside(self.uid).is_some_and(|since| since.elapsed() >= patience);
            if never || stuck || timeout_at(until, given_back).await.is_err() {
                return Err(exhausted);
            }
        }
    }

    /// Gives back what exceeds `units`.
    pub(crate) fn shrink_to(&mut self, units: u64) {
        let over = self.units.saturating_sub(units);
        self.units -= over;
        self.pool.give_back(self.uid, over);
    }

    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }
}

/// Bytes that stay charged until the last reference to any of them is dropped.
pub(crate) fn charged(mut bytes: Vec<u8>, mut held: Held) -> Bytes {
    struct Charged {
        bytes: Vec<u8>,
        _held: Held,
    }

    impl AsRef<[u8]> for Charged {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    bytes.shrink_to_fit();
    held.shrink_to(bytes.len() as u64);
    Bytes::from_owner(Charged { bytes, _held: held })
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.give_back(self.uid, self.units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    fn rule(uid: u32, share_percent: Option<u8>) -> Peer {
        Peer { uid, tenants: Vec::new(), operate: false, share_percent }
    }

    fn pool(whole: u64, peers: &[Peer]) -> Supply {
        let mut parts = Parts::new(peers);
        parts.owner = Some(77);
        Supply::new("units", whole, parts)
    }

    #[test]
    fn a_uid_has_half_of_what_is_free_and_the_next_one_half_of_the_rest() {
        let pool = pool(64, &[]);
        let first = pool.take(1, 32).unwrap();
        assert!(pool.take(1, 1).is_err());
        let _second = pool.take(2, 16).unwrap();
        assert!(pool.take(2, 1).is_err());
        drop(first);
        assert!(pool.take(2, 16).is_ok());
    }

    #[test]
    fn the_owner_may_hold_everything_unless_a_rule_names_it() {
        assert!(pool(10, &[]).take(0, 10).is_ok());
        assert!(pool(10, &[]).take(77, 10).is_ok());
        assert!(pool(10, &[rule(77, None)]).take(77, 6).is_err());
        assert!(pool(10, &[rule(0, Some(20))]).take(0, 3).is_err());
    }

    #[test]
    fn halves_apply_to_every_uid_whatever_the_rules_say() {
        for parts in [Parts::halves(), Parts::new(&[]).without_owner()] {
            assert!(Supply::new("units", 10, parts).take(0, 6).is_err());
        }
        let pool = Supply::new("units", 10, Parts::halves());
        assert!(pool.take(5, 6).is_err());
    }

    #[test]
    fn a_rule_may_set_another_part() {
        let pool = pool(100, &[rule(5, Some(75)), rule(5, None)]);
        assert!(pool.take(5, 76).is_err());
        let _most = pool.take(5, 75).unwrap();
    }

    #[test]
    fn what_is_already_in_use_counts_whatever_the_part_is() {
        let pool = pool(10, &[]);
        let kept = pool.keep(1, 8);
        assert!(pool.take(1, 1).is_err());
        assert!(pool.take(2, 1).is_ok());
        drop(kept);
        assert!(pool.take(1, 5).is_ok());
    }

    #[tokio::test]
    async fn a_waiting_uid_gets_what_is_given_back() {
        let pool = pool(64, &[]);
        let first = pool.take(1, 32).unwrap();
        let mut more = pool.none(1);
        let waits = tokio::spawn(async move { more.grow_within(20, Duration::from_secs(60)).await.map(|()| more) });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waits.await.unwrap().unwrap().units(), 20);
        // A uid does not wait for more than it may ever have.
        assert!(pool.none(1).grow_within(33, Duration::from_secs(3600)).await.is_err());
    }

    #[tokio::test]
    async fn a_uid_does_not_wait_for_what_others_have_held_for_long() {
        const PATIENCE: Duration = Duration::from_millis(20);
        let pool = pool(64, &[]);
        let kept = pool.take(1, 32).unwrap();
        let mut more = pool.take(2, 16).unwrap();
        // During this wait the other uid's holding stays unchanged, so the next wait is useless.
        assert!(more.grow_within(1, PATIENCE).await.is_err());
        assert!(more.grow_within(1, PATIENCE).now_or_never().unwrap().is_err());
        // Other holdings of the same uid may end.
        more.shrink_to(8);
        let _own = pool.take(2, 8).unwrap();
        assert!(more.grow_within(1, Duration::from_secs(3600)).now_or_never().is_none());
        drop(kept);
        assert!(more.grow_within(1, PATIENCE).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn bytes_are_charged_until_their_last_slice_is_dropped() {
        let pool = pool(64, &[]);
        let bytes = charged(vec![0; 10], pool.take(1, 20).unwrap());
        let slice = bytes.slice(3..5);
        drop(bytes);
        assert_eq!(pool.held_by(1), 10);
        drop(slice);
        assert_eq!(pool.held_by(1), 0);
    }

    proptest! {
        /// Whatever uids take and give back, they never hold more than the whole, and a uid that
        /// holds nothing gets a unit as long as one is free.
        #[test]
        fn another_uid_always_gets_something(steps in proptest::collection::vec((0_u32..6, 0_u64..40, any::<bool>()), 1..200)) {
            let pool = pool(100, &[rule(3, Some(30))]);
            let mut held: Vec<Held> = Vec::new();
            for (uid, units, gives_back) in steps {
                let uid = uid + 1;
                if gives_back {
                    held.retain(|held| held.uid() != uid);
                } else {
                    held.extend(pool.take(uid, units).ok());
                }
                let total: u64 = held.iter().map(Held::units).sum();
                prop_assert!(total <= 100);
                prop_assert_eq!(total, (1..=6).map(|uid| pool.held_by(uid)).sum::<u64>());
                prop_assert_eq!(pool.take(99, 1).is_ok(), total < 100);
            }
            drop(held);
            prop_assert_eq!(pool.most_ever(1), 50);
            prop_assert_eq!(pool.free(), 100);
        }
    }
}
