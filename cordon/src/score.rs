//! A tenant's score: the decayed sum of the signals against it.
//!
//! The points of a signal halve with each half-life. Time never goes back: a clock that is set back
//! counts as one that stands still.

use serde::{Deserialize, Serialize};

use crate::rules::Rules;
use crate::signal::{Kind, Signal, Source};
use crate::time::Time;

/// The points of one signal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    signal: Signal,
    /// No other tenant can have caused the signal: none was in the process, or a signal of this
    /// kind is always the tenant's own doing.
    certain: bool,
    /// The points at the moment `at`.
    points: f64,
    at: Time,
    /// How often the signal was counted.
    count: u32,
}

/// All signals that were counted against one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(Vec<Entry>);

/// What a signal contributes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Contribution {
    pub signal: Signal,
    pub source: Source,
    /// No other tenant can have caused the signal. A signal that others may have caused counts for
    /// less: see [`total`].
    pub certain: bool,
    pub points: f64,
    pub count: u32,
    /// The time since the signal was last counted.
    pub age_ms: u64,
}

/// A signal with fewer points than this is forgotten.
const NOTHING: f64 = 0.05;

impl Entry {
    fn left(&self, rules: &Rules, now: Time) -> f64 {
        let half_life_ms = rules.weight(self.signal).half_life_secs.saturating_mul(1000).max(1);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of some years fit 53 bits")]
        let halvings = now.since(self.at) as f64 / half_life_ms as f64;
        self.points * (-halvings).exp2()
    }
}

impl Score {
    /// Counts a signal once more.
    pub(crate) fn add(&mut self, signal: Signal, certain: bool, rules: &Rules, now: Time) {
        let weight = rules.weight(signal);
        let known = self.0.iter_mut().find(|entry| entry.signal == signal && entry.certain == certain);
        if let Some(entry) = known {
            let now = now.max(entry.at);
            entry.points = (entry.left(rules, now) + weight.points).min(weight.most);
            entry.at = now;
            entry.count = entry.count.saturating_add(1);
        } else {
            // Most tenants have one signal, and there may be very many tenants. So the list gets no
            // spare room.
            self.0.reserve_exact(1);
            self.0.push(Entry { signal, certain, points: weight.points, at: now, count: 1 });
        }
    }

    /// Forgets signals whose points have decayed.
    pub(crate) fn tidy(&mut self, rules: &Rules, now: Time) {
        self.0.retain(|entry| entry.left(rules, now) >= NOTHING);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has_doubtful_evidence(&self) -> bool {
        self.0.iter().any(|entry| !entry.certain && entry.signal.kind() == Kind::Evidence)
    }

    /// How many processes the tenant has killed, or may have killed.
    pub(crate) fn processes_taken(&self) -> u32 {
        let taken = self.0.iter().filter(|entry| entry.signal.takes_worker());
        taken.fold(0, |sum, entry| sum.saturating_add(entry.count))
    }

    pub(crate) fn contributions(&self, rules: &Rules, now: Time) -> impl Iterator<Item = Contribution> {
        self.0.iter().map(move |entry| Contribution {
            signal: entry.signal,
            source: entry.signal.source(),
            certain: entry.certain,
            points: entry.left(rules, now),
            count: entry.count,
            age_ms: now.since(entry.at),
        })
    }
}

/// The sum of contributions.
///
/// Evidence that is certain counts in full. Nuisances and priors that are certain count up to
/// `nuisance_most`, which is below the threshold for `sealed`. The rest cannot bring a score to the
/// threshold for `solo`: signals that others may have caused (those of `Kind::Share`, and those
/// observed in company), and signals that only the worker reports. So no tenant can push a
/// neighbour to that threshold, and no worker can push its tenant there.
#[must_use]
pub fn total(contributions: &[Contribution], rules: &Rules) -> f64 {
    let sum = |wanted: &dyn Fn(&Contribution) -> bool| -> f64 {
        contributions.iter().filter(|known| wanted(known)).map(|known| known.points).sum()
    };
    let of = |kind: Kind| sum(&|known| known.certain && known.signal.kind() == kind);
    let own = of(Kind::Evidence) + (of(Kind::Nuisance) + of(Kind::Prior)).min(rules.nuisance_most);
    if own >= rules.solo {
        return own;
    }
    let others = sum(&|known| !known.certain)
        + of(Kind::Share).min(rules.share_most)
        + of(Kind::Advisory).min(rules.advisory_most);
    (own + others).min(own.max(rules.solo - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000);

    fn scored(signals: &[(Signal, bool)]) -> f64 {
        let (mut score, rules) = (Score::default(), Rules::default());
        for (signal, certain) in signals {
            score.add(*signal, *certain, &rules, START);
        }
        total(&score.contributions(&rules, START).collect::<Vec<_>>(), &rules)
    }

    #[test]
    fn half_of_the_points_are_left_after_a_half_life() {
        let (mut score, rules) = (Score::default(), Rules::default());
        score.add(Signal::HardKill, true, &rules, START);
        let at = |hours: u64| {
            let now = START.plus(hours * 3_600_000);
            total(&score.contributions(&rules, now).collect::<Vec<_>>(), &rules)
        };
        assert!((at(0) - 40.0).abs() < 1e-9 && (at(24) - 20.0).abs() < 1e-9 && (at(48) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_goes_back_raises_no_score() {
        let (mut score, rules) = (Score::default(), Rules::default());
        score.add(Signal::HardKill, true, &rules, START);
        score.add(Signal::HardKill, true, &rules, Time(0));
        let contributions: Vec<_> = score.contributions(&rules, Time(0)).collect();
        assert!((total(&contributions, &rules) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn only_evidence_leads_beyond_solo() {
        let rules = Rules::default();
        let nuisances: Vec<_> =
            Signal::ALL.iter().filter(|signal| signal.kind() != Kind::Evidence).map(|signal| (*signal, true)).collect();
        let many: Vec<_> = nuisances.iter().cycle().take(500).copied().collect();
        assert!(scored(&many) < rules.sealed);
        assert!(scored(&[(Signal::ClosedKey, true)]) >= rules.sealed);
    }

    #[test]
    fn signals_in_company_stay_below_solo() {
        let rules = Rules::default();
        let doubtful = [(Signal::ClosedKey, false); 20];
        assert!(scored(&doubtful) < rules.solo);
        let with_own: Vec<_> = doubtful.into_iter().chain([(Signal::HardKill, true)]).collect();
        assert!(scored(&with_own) < rules.solo);
    }
}
