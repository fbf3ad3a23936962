//! Isolates that are kept between the runs of a script, as far as the tenant's memory limit allows.
//! The least recently used are disposed of first.

use enisle_wire::MOST_KEPT;

use super::resting::Resting;
use crate::engine::memory::quota;
use crate::engine::modules::Modules;

/// The state of a script whose isolate is kept: the script has been evaluated, and later runs only
/// call it.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(in crate::engine) modules: Modules,
    pub(in crate::engine) exports: v8::Global<v8::Value>,
    /// The last timer's number. The next run continues from it, so that an old number never names a
    /// new timer.
    pub(in crate::engine) last_timer: u32,
    /// The size of the heap after the last run.
    pub(in crate::engine) heap_bytes: usize,
}

/// One script's kept isolate.
#[derive(Debug)]
pub(crate) struct Kept<'cage> {
    key: u64,
    /// Declared before the isolate, which it points into, so that it is dropped first.
    pub(crate) evaluated: Evaluated,
    pub(crate) resting: Resting<'cage>,
}

/// The kept isolates of one tenant, the least recently used first.
#[derive(Debug, Default)]
pub(crate) struct Shelf<'cage>(Vec<Kept<'cage>>);

impl<'cage> Shelf<'cage> {
    /// Takes a script's isolate from the shelf, if it is there. An isolate with another heap limit
    /// is disposed of instead.
    pub(crate) fn take(&mut self, key: u64, memory_mb: u32) -> Option<Kept<'cage>> {
        let at = self.0.iter().position(|kept| kept.key == key)?;
        let kept = self.remove(at);
        (kept.resting.memory_mb == memory_mb).then_some(kept)
    }

    /// Puts an isolate on the shelf, and disposes of isolates that do not fit the tenant's memory:
    /// while nothing runs, all that the tenant holds must be within the limit. If only one is left
    /// and does not fit, it first collects its garbage.
    pub(crate) fn put(&mut self, key: u64, resting: Resting<'cage>, evaluated: Evaluated) {
        self.0.push(Kept { key, evaluated, resting });
        self.account();
        while self.0.len() > MOST_KEPT || (self.0.len() > 1 && self.is_over()) {
            drop(self.remove(0));
        }
        if self.is_over()
            && let Some(last) = self.0.last_mut()
        {
            last.evaluated.heap_bytes = last.resting.collect();
            self.account();
            if self.is_over() {
                drop(self.remove(0));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Disposes of a script's isolate.
    pub(crate) fn forget(&mut self, key: u64) {
        self.0.retain(|kept| kept.key != key);
        self.account();
    }

    /// Kept isolates count against the memory limit of each run. Before a run, disposes of them
    /// until at least half of the limit is free.
    pub(crate) fn make_room(&mut self, memory_mb: u32) {
        let half = (memory_mb as usize) << 19;
        while !self.0.is_empty() && quota::is_above(half) {
            drop(self.remove(0));
        }
    }

    fn remove(&mut self, at: usize) -> Kept<'cage> {
        let kept = self.0.remove(at);
        self.account();
        kept
    }

    /// Counts the heaps of all kept isolates on the tenant's account.
    fn account(&self) {
        quota::shelve(self.0.iter().map(|kept| kept.evaluated.heap_bytes).sum());
    }

    fn is_over(&self) -> bool {
        // Leaves a sixteenth of the limit for partly filled pages, which no account counts.
        let unseen = self.0.last().map_or(0, |kept| (kept.resting.memory_mb as usize) << 16);
        quota::is_above_limit_less(unseen)
    }
}
