//! How long a fuzzer runs, and where it begins.

use std::time::{Duration, Instant};

use clap::Args;
use fastrand::Rng;

/// How long, and from which seed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Budget {
    /// How long, in minutes; with several targets, each.
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,
    /// Where the random choices begin; one is drawn and printed if it is left out.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Resume a run of that seed at this case; at this round, where the fuzzer has rounds.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
}

impl Budget {
    /// The seed that was given, or a new one.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| fastrand::u64(..))
    }

    /// When a run that begins now ends.
    pub(crate) fn ends(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.minutes * 60.0)
    }
}

/// The random choices of one case: decided by the seed and the case's number alone, so that a run
/// is resumed where it ended.
pub(crate) fn choices(seed: u64, case: u64) -> Rng {
    Rng::with_seed(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
