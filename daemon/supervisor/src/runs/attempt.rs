//! What follows from each way an attempt at a run can end: the pure core of [`Daemon::run`].
//!
//! ```text
//! in a fenced home, not judged by us    Discard; the tenth time, give up
//! Done, Judged                          Answer
//! Unanswered                            Refuse
//! NotBegun                              Wait; the eleventh time, give up
//! Lost, by another tenant's doing       Retry
//! Lost, otherwise                       Retry; the second time, give up
//! ```
//!
//! The number of attempts is bounded, except for losses that are another tenant's doing: after two
//! of those the tenant lives alone, where no other tenant can kill its worker.
//!
//! [`Daemon::run`]: crate::daemon::Daemon::run

use enisle_wire::Outcome;
use enisle_wire::tenant::Usage;

use crate::homes::exchange::{Ended, Finished, Lost};
use crate::share::Exhausted;

/// A run is given up at this many ends in fenced homes.
const MOST_FENCED: u32 = 10;
/// How many workers may die before they receive the same run; after each, the run waits again.
const MOST_NOT_BEGUN: u32 = 10;
/// After this many losses by other tenants' doing, a run is tried alone.
const MOST_IN_COMPANY: u32 = 2;
/// A run is given up at this many losses that are not another tenant's doing.
const LAST_LOSS: u32 = 2;

/// How the attempts at one run have ended so far.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// How often the run was lost with its worker, and not by another tenant's doing.
    lost: u32,
    /// How often the run was lost with its worker, by another tenant's doing.
    lost_in_company: u32,
    not_begun: u32,
    fenced: u32,
}

/// What to do about a run after one attempt has ended.
#[derive(Debug)]
pub(crate) enum Next {
    /// Report this end.
    Answer(Box<Finished>),
    /// Report that the run ended and that there was no memory for its answer.
    Refuse {
        bytes: usize,
        why: Exhausted,
        usage: Usage,
    },
    /// The attempt ended in a fenced home. Only its CPU time counts; the run restarts, or is given
    /// up.
    Discard {
        cpu_us: u64,
        gives_up: Option<GaveUp>,
    },
    /// No worker received the run: it waits for a home again.
    Wait,
    /// The worker died during the run. The run restarts, in a single-tenant home if `alone`.
    Retry {
        alone: bool,
        why: String,
        usage: Usage,
    },
    GiveUp(GaveUp, Usage),
}

/// Why a run is not tried again, for the report of the outcome `workerLost`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GaveUp {
    #[error("the worker process died twice under this run; the last time {0}")]
    DiedTwice(String),
    #[error("this run was restarted again and again because its tenant was moved while it ran")]
    Moved,
    #[error("this run never began: no worker process lived long enough to receive it")]
    NeverBegun,
}

impl GaveUp {
    /// Whether the run counts as ended: only then may its tenant share a process again.
    pub(crate) fn is_an_end(&self) -> bool {
        matches!(self, Self::DiedTwice(_))
    }
}

impl Attempts {
    /// Takes in how an attempt ended; `fenced` says whether its home was fenced by then.
    pub(crate) fn after(&mut self, ended: Ended, fenced: bool) -> Next {
        if fenced && !is_our_judgement(&ended) {
            self.fenced += 1;
            let gives_up = (self.fenced >= MOST_FENCED).then_some(GaveUp::Moved);
            return Next::Discard { cpu_us: ended.cpu_us(), gives_up };
        }
        match ended {
            Ended::Done(finished) | Ended::Judged(finished) => Next::Answer(finished),
            Ended::Unanswered { bytes, why, usage } => Next::Refuse { bytes, why, usage },
            Ended::NotBegun if self.not_begun >= MOST_NOT_BEGUN => Next::GiveUp(GaveUp::NeverBegun, Usage::default()),
            // Such an end does not count as a loss, but the number of such ends is bounded as well.
            Ended::NotBegun => {
                self.not_begun += 1;
                Next::Wait
            }
            Ended::Lost(Lost { why, anothers_doing: true, usage }) => {
                self.lost_in_company += 1;
                Next::Retry { alone: self.lost_in_company == MOST_IN_COMPANY, why, usage }
            }
            Ended::Lost(Lost { why, anothers_doing: false, usage }) => {
                self.lost += 1;
                if self.lost >= LAST_LOSS {
                    return Next::GiveUp(GaveUp::DiedTwice(why), usage);
                }
                Next::Retry { alone: true, why, usage }
            }
        }
    }
}

/// Whether an end was decided by the supervisor, and not the worker: it counts even in a fenced
/// home.
fn is_our_judgement(ended: &Ended) -> bool {
    match ended {
        Ended::NotBegun | Ended::Unanswered { .. } => true,
        // A canceled run in a fenced home was canceled by us, because its tenant was to leave.
        Ended::Judged(finished) => finished.outcome != Outcome::Canceled,
        Ended::Done(_) | Ended::Lost(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USAGE: Usage = Usage { cpu_us: 7, wall_us: 8, startup_us: 0, peak_heap_bytes: 0 };

    fn finished(outcome: Outcome) -> Box<Finished> {
        Box::new(Finished::of_ours(outcome, None, USAGE))
    }

    fn lost(anothers_doing: bool) -> Ended {
        Ended::Lost(Lost { why: "it was killed".to_owned(), anothers_doing, usage: USAGE })
    }

    fn unanswered() -> Ended {
        let supply = crate::share::Supply::new("bytes", 0, crate::share::Parts::halves());
        Ended::Unanswered { bytes: 9, why: supply.take(5, 1).unwrap_err(), usage: USAGE }
    }

    /// The ways an attempt can fail, by number.
    fn failure(number: u8) -> Ended {
        match number {
            0 => lost(false),
            1 => lost(true),
            _ => Ended::NotBegun,
        }
    }

    /// Tries until no further attempt follows. Returns how many there were, and what follows
    /// instead.
    fn try_all(attempts: &mut Attempts, ends: impl IntoIterator<Item = (Ended, bool)>) -> Option<(usize, Next)> {
        let nexts = ends.into_iter().map(|(ended, fenced)| attempts.after(ended, fenced));
        let last =
            |next: &Next| !matches!(next, Next::Wait | Next::Retry { .. } | Next::Discard { gives_up: None, .. });
        nexts.enumerate().find(|(_, next)| last(next)).map(|(at, next)| (at + 1, next))
    }

    #[test]
    fn a_run_that_was_given_up_says_what_happened_to_it() {
        let died = GaveUp::DiedTwice("it was killed by SIGKILL".to_owned()).to_string();
        assert!(died.contains("died twice") && died.ends_with("it was killed by SIGKILL"), "{died}");
        for (why, word) in [(GaveUp::Moved, "moved"), (GaveUp::NeverBegun, "never began")] {
            let said = why.to_string();
            assert!(said.contains(word) && !said.contains("died twice"), "{said}");
        }
    }

    #[test]
    fn only_a_run_that_was_tried_to_its_end_lets_its_tenant_share_again() {
        assert!(GaveUp::DiedTwice(String::new()).is_an_end());
        assert!(!GaveUp::Moved.is_an_end() && !GaveUp::NeverBegun.is_an_end());
    }

    #[test]
    fn an_end_that_counts_is_reported_wherever_it_happened() {
        for ended in [Ended::Done(finished(Outcome::Ok)), Ended::Judged(finished(Outcome::Canceled))] {
            assert!(matches!(Attempts::default().after(ended, false), Next::Answer(_)));
        }
        // The supervisor's own judgement counts even in a fenced home.
        for fenced in [false, true] {
            let judged = Ended::Judged(finished(Outcome::Violation));
            assert!(matches!(Attempts::default().after(judged, fenced), Next::Answer(_)));
            let refused = Attempts::default().after(unanswered(), fenced);
            assert!(matches!(refused, Next::Refuse { bytes: 9, usage: USAGE, .. }));
            assert!(matches!(Attempts::default().after(Ended::NotBegun, fenced), Next::Wait));
        }
    }

    #[test]
    fn reports_of_a_fenced_home_are_discarded_but_its_usage_is_charged() {
        let canceled = || Ended::Judged(finished(Outcome::Canceled));
        for ended in [Ended::Done(finished(Outcome::Ok)), canceled(), lost(true), lost(false)] {
            let next = Attempts::default().after(ended, true);
            assert!(matches!(next, Next::Discard { cpu_us: 7, gives_up: None }), "{next:?}");
        }
        let (tried, next) = try_all(&mut Attempts::default(), (0..20).map(|_| (canceled(), true))).unwrap();
        assert!(matches!(next, Next::Discard { cpu_us: 7, gives_up: Some(GaveUp::Moved) }), "{next:?}");
        assert_eq!(tried, 10);
    }

    #[test]
    fn a_run_that_no_worker_receives_is_given_up_the_eleventh_time() {
        let (tried, next) = try_all(&mut Attempts::default(), (0..20).map(|_| (Ended::NotBegun, false))).unwrap();
        assert!(matches!(next, Next::GiveUp(GaveUp::NeverBegun, usage) if usage == Usage::default()), "{next:?}");
        assert_eq!(tried, 11);
    }

    #[test]
    fn a_run_is_alone_after_one_loss_of_its_own_and_given_up_after_two() {
        let mut attempts = Attempts::default();
        assert!(matches!(attempts.after(lost(false), false), Next::Retry { alone: true, usage: USAGE, .. }));
        let Next::GiveUp(why, usage) = attempts.after(lost(false), false) else { panic!("it is restarted") };
        assert_eq!((why, usage), (GaveUp::DiedTwice("it was killed".to_owned()), USAGE));
    }

    #[test]
    fn a_run_is_alone_after_two_losses_in_company_and_never_given_up_for_them() {
        let mut attempts = Attempts::default();
        let alone: Vec<_> = (0..5)
            .map(|_| match attempts.after(lost(true), false) {
                Next::Retry { alone, .. } => alone,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(alone, [false, true, false, false, false]);
    }

    proptest! {
        /// The run is tried again after at most nine discarded ends, ten attempts that never began
        /// and one loss not done by others, in any order. The next end of any of these kinds is the
        /// last.
        #[test]
        fn only_other_tenants_can_have_a_run_tried_for_ever(ends in prop::collection::vec((0_u8..3, any::<bool>()), 0..200)) {
            let mut attempts = Attempts::default();
            let known = ends.iter().map(|(number, fenced)| (failure(*number), *fenced));
            let tried = try_all(&mut attempts, known).map_or(ends.len(), |(tried, _)| tried);
            let others = ends.iter().take(tried).filter(|(number, fenced)| *number == 1 && !fenced).count();
            prop_assert!(tried - others <= 9 + 10 + 1 + 1, "{tried} attempts, {others} of them lost by others' doing");
        }

        /// However many attempts failed before, an end that counts is reported.
        #[test]
        fn an_end_after_failures_is_still_reported(ends in prop::collection::vec((0_u8..3, any::<bool>()), 0..30)) {
            let mut attempts = Attempts::default();
            if try_all(&mut attempts, ends.iter().map(|(number, fenced)| (failure(*number), *fenced))).is_none() {
                prop_assert!(matches!(attempts.after(Ended::Done(finished(Outcome::Ok)), false), Next::Answer(_)));
            }
        }
    }
}
