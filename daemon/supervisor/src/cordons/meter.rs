//! Counts what a tenant does on its channel, as the supervisor sees it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use enisle_cordon::Sample;
use enisle_cordon::shape::Messages;
use enisle_wire::MOST_KEPT;

use crate::clock;

/// The supervisor's own counts for one home of a tenant.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    runs: u64,
    isolates: u64,
    messages: Messages,
    log_bytes: u64,
    last_message: Option<Instant>,
    /// Since when isolates of scripts have been kept here, and how often they were called.
    kept_since: Option<Instant>,
    kept_calls: u64,
    /// The scripts whose isolates are kept, as inferred here, the most recently used last.
    kept: VecDeque<u64>,
    /// The scripts that may have an isolate, because the thread was not asked to dispose of it:
    /// those that are registered, and a few that were until recently.
    may_be_kept: BTreeSet<u64>,
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run is sent. The first message of a run has no gap before it.
    pub(crate) fn run_begins(&self, keeps: Option<u64>) {
        let mut counts = self.lock();
        counts.runs += 1;
        counts.last_message = None;
        let known = keeps.and_then(|key| counts.kept.iter().position(|kept| *kept == key));
        counts.isolates += u64::from(known.is_none());
        if let Some(key) = keeps {
            known.and_then(|at| counts.kept.remove(at));
            counts.kept.push_back(key);
            counts.may_be_kept.insert(key);
            if counts.kept.len() > MOST_KEPT {
                counts.kept.pop_front();
            }
            counts.kept_since.get_or_insert_with(Instant::now);
            counts.kept_calls += 1;
        }
    }

    /// Forgets the scripts that are no longer registered, and returns those that may have an
    /// isolate. The caller has these isolates disposed of.
    pub(crate) fn forget_but(&self, is_registered: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut counts = self.lock();
        let forgotten: Vec<_> = counts.may_be_kept.extract_if(.., |key| !is_registered(*key)).collect();
        counts.kept.retain(|key| !forgotten.contains(key));
        forgotten
    }

    /// The thread has sent a message of a run; `log_bytes` of it are console output.
    pub(crate) fn message(&self, bytes: usize, log_bytes: usize) {
        let (now, mut counts) = (Instant::now(), self.lock());
        counts.messages.count += 1;
        counts.messages.bytes += bytes as u64;
        counts.log_bytes += log_bytes as u64;
        if let Some(last) = counts.last_message.replace(now) {
            let gap = (now - last).as_secs_f64() * 1e3;
            counts.messages.gaps_ms += gap;
            counts.messages.gaps_ms2 += gap * gap;
        }
    }

    /// All counts of one moment, merged with the kernel's and the processor's.
    pub(crate) fn sample(&self, kernels: Sample, (instructions, mispredictions): (u64, u64)) -> Sample {
        let counts = self.lock();
        let isolate_ms = counts.kept_since.map_or(0, |since| since.elapsed().as_millis());
        Sample {
            at: clock::monotonic(),
            runs: counts.runs,
            isolates: counts.isolates,
            messages: counts.messages,
            log_bytes: counts.log_bytes,
            isolate_ms: u64::try_from(isolate_ms).unwrap_or(u64::MAX),
            isolate_calls: counts.kept_calls,
            instructions,
            mispredictions,
            ..kernels
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_needs_an_isolate_unless_its_script_was_among_the_most_recent() {
        let meter = Meter::default();
        let isolates = || meter.lock().isolates;
        (0..8).for_each(|key| meter.run_begins(Some(key)));
        (0..8).for_each(|key| meter.run_begins(Some(key)));
        assert_eq!(isolates(), 8);
        // One more than there is room for, in turn: none is ever kept until its next call.
        (0..9).cycle().take(18).for_each(|key| meter.run_begins(Some(key + 100)));
        assert_eq!(isolates(), 26);
        meter.run_begins(None);
        assert_eq!(isolates(), 27);
    }

    #[test]
    fn a_script_that_is_no_longer_registered_is_forgotten_once() {
        let meter = Meter::default();
        (0..20).for_each(|key| meter.run_begins(Some(key)));
        assert_eq!(meter.forget_but(|key| key != 3), [3]);
        assert!(meter.forget_but(|key| key != 3).is_empty());
    }

    #[test]
    fn gaps_are_counted_within_a_run_and_not_between_two() {
        let meter = Meter::default();
        for _ in 0..2 {
            meter.run_begins(None);
            meter.message(10, 0);
        }
        assert!(meter.lock().messages.gaps_ms < f64::EPSILON);
        meter.message(10, 4);
        let counts = meter.lock();
        assert!(counts.messages.gaps_ms > 0.0 && counts.messages.count == 3 && counts.log_bytes == 4);
    }
}
