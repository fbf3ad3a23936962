//! Turns at slow work, so that no uid waits for all the work of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns at slow work: a fixed number at one time. Each uid has a fixed number of entries in the
/// queue, so each waits for at most that many of every other uid.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    most: usize,
    each: usize,
    of: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
}

impl Turns {
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), most: all, each, of: Mutex::default() }
    }

    /// Whether any turn is taken.
    pub(crate) fn are_taken(&self) -> bool {
        self.all.available_permits() < self.most
    }

    /// Waits for a turn of the uid. The turn ends when the returned value is dropped.
    pub(crate) async fn turn(&self, uid: u32) -> Turn {
        let own = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(of.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
        };
        // Neither semaphore is ever closed.
        let own = own.acquire_owned().await.ok();
        Turn { _all: Arc::clone(&self.all).acquire_owned().await.ok(), _own: own }
    }
}

/// Turns at work on bytes, on other threads than the one that serves connections. Short work does
/// not wait for long work.
#[derive(Debug)]
pub(crate) struct Lanes {
    little: Turns,
    much: Turns,
}

/// The longest that short work may be: in the worst case, about ten milliseconds of work.
const LITTLE_BYTES: usize = 1 << 20;

impl Lanes {
    /// One job at a time in each lane, and one entry of each uid in the lane's queue.
    pub(crate) fn new() -> Self {
        Self { little: Turns::new(1, 1), much: Turns::new(1, 1) }
    }

    /// Waits for a turn of the uid at work on this many bytes.
    pub(crate) async fn turn(&self, uid: u32, bytes: usize) -> Turn {
        let lane = if bytes <= LITTLE_BYTES { &self.little } else { &self.much };
        lane.turn(uid).await
    }
}

/// A turn, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Turn {
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_uid_waits_for_one_turn_of_every_other() {
        let turns = Arc::new(Turns::new(1, 1));
        let first = turns.turn(1).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let waits: Vec<_> = [1, 1, 2]
            .map(|uid| {
                let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
                tokio::spawn(async move {
                    let _turn = turns.turn(uid).await;
                    order.lock().unwrap().push(uid);
                })
            })
            .into();
        tokio::task::yield_now().await;
        drop(first);
        for wait in waits {
            wait.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [2, 1, 1]);
    }

    #[tokio::test]
    async fn short_work_does_not_wait_for_long_work() {
        let lanes = Lanes::new();
        let _much = lanes.turn(1, LITTLE_BYTES + 1).await;
        assert!(lanes.turn(2, LITTLE_BYTES + 1).now_or_never().is_none());
        assert!(lanes.turn(2, LITTLE_BYTES).now_or_never().is_some());
    }
}
