//! The thresholds, the times, and the weights that differ from those of [`crate::signal`]. All of
//! these numbers are configuration. Here are their defaults, and the reasons for the defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::blame::MemoryRules;
use crate::deaths::DeathRules;
use crate::shape::ShapeRules;
use crate::signal::{Signal, Weight};
use crate::time::{DAY_SECS, HOUR_SECS, MINUTE_SECS};

/// How scores become decisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// At this score a tenant is watched: it shares a process only with other watched tenants.
    pub watch: f64,
    /// At this score a tenant gets a process of its own.
    pub solo: f64,
    /// At this score a tenant is sealed. No score becomes this high without evidence.
    pub sealed: f64,
    /// At this score a tenant is expelled: it may not run.
    pub expelled: f64,
    /// A tenant moves back in, one level at a time, when its score is below this ...
    pub back_below: f64,
    /// ... and no evidence and no nuisance has counted against the tenant for this long.
    pub back_after_secs: u64,
    /// How long a tenant lives alone after it killed a process, or may have, whatever its score.
    /// Each further suspicion lasts six times as long, up to `back_after_secs`.
    pub suspicion_secs: u64,
    /// How long tenants are kept apart after an unattributed death, after a death for want of
    /// memory, or because of unexplained memory.
    pub unexplained_secs: u64,
    /// The most that all advisory signals (statements of the worker) may add up to.
    pub advisory_most: f64,
    /// The most that all signals about what happened beside a tenant may add up to.
    pub share_most: f64,
    /// The most that all nuisances and priors together may add up to; below `sealed`.
    pub nuisance_most: f64,
    /// A tenant known for less than this is new.
    pub new_for_secs: u64,
    /// Weights that differ from the defaults, by signal.
    pub signals: BTreeMap<Signal, Weight>,
    pub shape: ShapeRules,
    pub memory: MemoryRules,
    pub deaths: DeathRules,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            watch: 30.0,
            solo: 60.0,
            sealed: 90.0,
            // One violation of 100 points seals, and a second one within nine days expels.
            expelled: 180.0,
            back_below: 20.0,
            back_after_secs: DAY_SECS,
            suspicion_secs: 10 * MINUTE_SECS,
            // An hour is long enough to catch a tenant that kills again. It is not longer, because
            // a tenant can bring this on others.
            unexplained_secs: HOUR_SECS,
            advisory_most: 15.0,
            share_most: 15.0,
            nuisance_most: 85.0,
            new_for_secs: DAY_SECS,
            signals: BTreeMap::new(),
            shape: ShapeRules::default(),
            memory: MemoryRules::default(),
            deaths: DeathRules::default(),
        }
    }
}

/// Why rules cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RulesError {
    #[error("the thresholds must rise: back_below {0}, watch {1}, solo {2}, sealed {3}, expelled {4}")]
    Thresholds(f64, f64, f64, f64, f64),
    #[error("{0} is {1}; it must be a number from 0 up to, but below, {2}")]
    Range(&'static str, f64, f64),
    #[error(
        "the weight of {0:?} is invalid: points must be 0 or more, most at least points, half_life_secs at least 1"
    )]
    Weight(Signal),
    #[error("shape.window_ms is {0}; it must be between 100 and 60000")]
    Window(u64),
    #[error("{0} is {1} seconds; it must be at most 366 days")]
    Time(&'static str, u64),
    #[error("shape: streak must be at least 1, shares between 0 and 1, and every other number positive")]
    Shape,
}

impl Rules {
    /// The weight of a signal: the configured one, or the default.
    #[must_use]
    pub fn weight(&self, signal: Signal) -> Weight {
        self.signals.get(&signal).copied().unwrap_or_else(|| signal.default_weight())
    }

    /// Checks that the rules are consistent.
    ///
    /// # Errors
    /// Names the key that is wrong.
    pub fn check(&self) -> Result<(), RulesError> {
        let Self { back_below, watch, solo, sealed, expelled, .. } = *self;
        let thresholds = [0.0, back_below, watch, solo, sealed, expelled];
        if !thresholds.iter().all(|value| value.is_finite()) || !thresholds.is_sorted_by(|lower, higher| lower < higher)
        {
            return Err(RulesError::Thresholds(back_below, watch, solo, sealed, expelled));
        }
        for (name, value, most) in [
            ("advisory_most", self.advisory_most, solo),
            ("share_most", self.share_most, solo),
            ("nuisance_most", self.nuisance_most, sealed),
        ] {
            if !(0.0..most).contains(&value) {
                return Err(RulesError::Range(name, value, most));
            }
        }
        for (signal, weight) in &self.signals {
            let numbers = weight.points.is_finite() && weight.most.is_finite();
            if !numbers || weight.points < 0.0 || weight.most < weight.points || weight.half_life_secs == 0 {
                return Err(RulesError::Weight(*signal));
            }
        }
        for (name, secs) in [
            ("back_after_secs", self.back_after_secs),
            ("suspicion_secs", self.suspicion_secs),
            ("unexplained_secs", self.unexplained_secs),
            ("new_for_secs", self.new_for_secs),
        ] {
            if secs > 366 * DAY_SECS {
                return Err(RulesError::Time(name, secs));
            }
        }
        let shape = &self.shape;
        let share = |part: f64| (0.0..=1.0).contains(&part);
        let positive = |number: f64| number.is_finite() && number > 0.0;
        let shares = share(shape.busy_share) && share(shape.busy_least) && share(shape.minute_share);
        let numbers = positive(shape.regular) && positive(shape.mispredictions) && positive(shape.resident_times);
        if shape.streak == 0 || !shares || !numbers {
            return Err(RulesError::Shape);
        }
        if !(100..=60_000).contains(&self.shape.window_ms) {
            return Err(RulesError::Window(self.shape.window_ms));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::Kind;

    #[test]
    fn the_defaults_are_consistent() {
        assert_eq!(Rules::default().check(), Ok(()));
        let weights = Signal::ALL.map(|signal| (signal, signal.default_weight())).into();
        assert_eq!(Rules { signals: weights, ..Rules::default() }.check(), Ok(()));
    }

    #[test]
    fn rules_that_contradict_themselves_are_refused() {
        let error = |rules: Rules| rules.check().unwrap_err().to_string();
        assert!(error(Rules { solo: 95.0, ..Rules::default() }).contains("rise"));
        assert!(error(Rules { watch: f64::NAN, ..Rules::default() }).contains("rise"));
        assert!(error(Rules { share_most: 60.0, ..Rules::default() }).contains("share_most"));
        let weight = Weight { points: 5.0, half_life_secs: 0, most: 5.0 };
        assert!(error(Rules { signals: [(Signal::Busy, weight)].into(), ..Rules::default() }).contains("Busy"));
    }

    #[test]
    fn a_tenant_that_has_done_nothing_is_not_cordoned() {
        let priors: f64 = Signal::ALL
            .into_iter()
            .filter(|signal| signal.kind() == Kind::Prior)
            .map(|signal| signal.default_weight().most)
            .sum();
        assert!(priors < Rules::default().solo);
    }

    #[test]
    fn a_weight_is_set_by_the_name_of_its_signal() {
        let rules: Rules = toml::from_str("[signals.refusedCall]\npoints = 1\nhalf_life_secs = 2\nmost = 3\n").unwrap();
        assert!((rules.weight(Signal::RefusedCall).points - 1.0).abs() < f64::EPSILON);
        assert_eq!(rules.weight(Signal::Crash), Signal::Crash.default_weight());
        assert!(toml::from_str::<Rules>("[signals.refused]\npoints = 1\n").is_err());
    }
}
