//! What waits to be written down: bounded, and never a reason to wait.
//!
//! A disk may be slower than whoever causes evidence. Standings replace each other, so there is one
//! for each tenant at the most. Lines of the audit log queue up to a bound, whose last quarter is
//! for decisions alone. Over it a line is not kept, but counted by its kind, and that count is a
//! line of the log itself, behind those that were kept: nothing is missing without the log saying
//! so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use enisle_cordon::Standing;

use crate::policy::TenantName;
use crate::record::Entry;

/// Lines that wait at the most; a line has some hundred bytes.
const MOST_WAITING: usize = 8192;
/// Of those, lines about what was seen.
const MOST_SEEN: usize = MOST_WAITING / 4 * 3;

/// What is taken to be written at one time.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) standings: BTreeMap<TenantName, Option<Standing>>,
    pub(crate) entries: VecDeque<Entry>,
}

#[derive(Debug, Default)]
struct Waiting {
    batch: Batch,
    /// Lines that were not kept, by kind, since the last batch was taken.
    lost: BTreeMap<String, u64>,
    /// And since the start.
    lost_ever: u64,
    closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Notes {
    waiting: Mutex<Waiting>,
    woken: Condvar,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a tenant stands from now on; `None` if there is nothing to remember. False once nobody
    /// writes any more.
    pub(crate) fn stands(&self, tenant: TenantName, standing: Option<Standing>) -> bool {
        let mut waiting = self.lock();
        waiting.batch.standings.insert(tenant, standing);
        self.woken.notify_one();
        !waiting.closed
    }

    /// One more line. False once nobody writes any more.
    pub(crate) fn decided(&self, entry: Entry) -> bool {
        let mut waiting = self.lock();
        let most = if matches!(entry, Entry::Seen { .. }) { MOST_SEEN } else { MOST_WAITING };
        if waiting.batch.entries.len() < most {
            waiting.batch.entries.push_back(entry);
        } else {
            *waiting.lost.entry(entry.kind()).or_default() += 1;
            waiting.lost_ever += 1;
        }
        self.woken.notify_one();
        !waiting.closed
    }

    /// Waits for something to write. `None` once the notes are closed and there is nothing left.
    pub(crate) fn take(&self) -> Option<Batch> {
        let idle = |waiting: &mut Waiting| {
            waiting.batch.entries.is_empty() && waiting.batch.standings.is_empty() && !waiting.closed
        };
        let mut waiting = self.woken.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let mut batch = std::mem::take(&mut waiting.batch);
        let kinds = std::mem::take(&mut waiting.lost);
        drop(waiting);
        if !kinds.is_empty() {
            tracing::error!(?kinds, "lines of the audit log were lost: the disk is too slow");
            batch.entries.push_back(Entry::Lost { kinds });
        }
        (!batch.entries.is_empty() || !batch.standings.is_empty()).then_some(batch)
    }

    /// How many lines were not kept since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost_ever
    }

    /// No more comes, or nobody takes any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.woken.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Entry {
        Entry::Seen { count: 1, event: serde_json::json!({ "event": "crashed" }) }
    }

    fn decision() -> Entry {
        Entry::Lifted { tenant: "t".into(), reason: "fine".into(), by_uid: 0 }
    }

    #[test]
    fn over_the_bound_lines_are_counted_by_kind_and_the_log_says_so() {
        let notes = Notes::default();
        for _ in 0..MOST_WAITING {
            assert!(notes.decided(seen()));
        }
        // There is room left for decisions.
        for _ in 0..=MOST_WAITING / 4 {
            notes.decided(decision());
        }
        assert_eq!(notes.lost(), MOST_WAITING as u64 / 4 + 1);
        let batch = notes.take().unwrap();
        assert_eq!(batch.entries.len(), MOST_WAITING + 1);
        let Some(Entry::Lost { kinds }) = batch.entries.back() else { panic!("{:?}", batch.entries.back()) };
        let expected = [("crashed".to_owned(), MOST_WAITING as u64 / 4), ("lifted".to_owned(), 1)];
        assert_eq!(kinds, &BTreeMap::from(expected));
        // Then there is room again.
        notes.decided(seen());
        assert_eq!(notes.take().unwrap().entries.len(), 1);
    }

    #[test]
    fn a_tenants_last_standing_is_what_waits() {
        let notes = Notes::default();
        let name: TenantName = "t".parse().unwrap();
        for _ in 0..100_000 {
            notes.stands(name.clone(), None);
        }
        assert_eq!(notes.take().unwrap().standings.len(), 1);
    }

    #[test]
    fn whoever_is_closed_gives_what_is_left_and_says_that_nobody_writes() {
        let notes = Notes::default();
        notes.decided(decision());
        notes.close();
        assert_eq!(notes.take().unwrap().entries.len(), 1);
        assert!(notes.take().is_none() && !notes.decided(decision()));
    }
}
