//! Isolates that stay between the runs of a script, within a tenant's memory; the least recently
//! used go first.

use enisle_wire::MOST_KEPT;

use super::resting::Resting;
use crate::engine::memory::quota;
use crate::engine::modules::Modules;

/// What stays of a script whose isolate is kept: it has been evaluated, and is only called from
/// then on.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(in crate::engine) modules: Modules,
    pub(in crate::engine) exports: v8::Global<v8::Value>,
    /// Numbers of timers go on, so that an old one never names a new one.
    pub(in crate::engine) last_timer: u32,
    /// Heap, when the last run had ended.
    pub(in crate::engine) heap_bytes: usize,
}

/// One script's isolate, at rest.
#[derive(Debug)]
pub(crate) struct Kept<'cage> {
    key: u64,
    /// Before the isolate, which it points into.
    pub(crate) evaluated: Evaluated,
    pub(crate) resting: Resting<'cage>,
}

/// The isolates of one tenant that stay, the least recently used first.
#[derive(Debug, Default)]
pub(crate) struct Shelf<'cage>(Vec<Kept<'cage>>);

impl<'cage> Shelf<'cage> {
    /// Takes a script's isolate from the shelf, if it is there and has that heap limit.
    pub(crate) fn take(&mut self, key: u64, memory_mb: u32) -> Option<Kept<'cage>> {
        let at = self.0.iter().position(|kept| kept.key == key)?;
        let kept = self.remove(at);
        (kept.resting.memory_mb == memory_mb).then_some(kept)
    }

    /// Puts an isolate on the shelf, and disposes of those that do not fit the tenant's memory: all
    /// that the tenant holds is to be within the limit while nothing runs. The last one may first
    /// collect its garbage.
    pub(crate) fn put(&mut self, key: u64, resting: Resting<'cage>, evaluated: Evaluated) {
        self.0.push(Kept { key, evaluated, resting });
        self.tell();
        while self.0.len() > MOST_KEPT || (self.0.len() > 1 && self.is_over()) {
            drop(self.remove(0));
        }
        if self.is_over()
            && let Some(last) = self.0.last_mut()
        {
            last.evaluated.heap_bytes = last.resting.collect();
            self.tell();
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
        self.tell();
    }

    /// What is kept is on the account of each run. It leaves a run half of the limit at the least.
    pub(crate) fn make_room(&mut self, memory_mb: u32) {
        let half = (memory_mb as usize) << 19;
        while !self.0.is_empty() && quota::is_above(half) {
            drop(self.remove(0));
        }
    }

    fn remove(&mut self, at: usize) -> Kept<'cage> {
        let kept = self.0.remove(at);
        self.tell();
        kept
    }

    /// Puts the heaps on the shelf on the tenant's account.
    fn tell(&self) {
        quota::shelve(self.0.iter().map(|kept| kept.evaluated.heap_bytes).sum());
    }

    fn is_over(&self) -> bool {
        // A sixteenth for pages that are filled in part, which no account has.
        let unseen = self.0.last().map_or(0, |kept| (kept.resting.memory_mb as usize) << 16);
        quota::is_above_limit_less(unseen)
    }
}
