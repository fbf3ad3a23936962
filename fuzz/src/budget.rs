//! How long a fuzzer runs, and from which seed and case.

use std::time::{Duration, Instant};

use clap::Args;
use fastrand::Rng;

/// How long a fuzzer runs, and from which seed and case.
#[derive(Debug, Clone, Copy, Args)]
pub struct Budget {
    /// How long to run, in minutes. Several targets run for this long each.
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,
    /// The seed of the random choices. Without it, a seed is drawn and printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Resume a run of that seed at this case. A fuzzer that has rounds resumes at this round.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
}

impl Budget {
    /// The seed that was given, or a new one.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| fastrand::u64(..))
    }

    /// The end of a run that begins now.
    pub(crate) fn ends(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.minutes * 60.0)
    }
}

/// The random choices of one case. Only the seed and the case's number decide them, so that a run
/// can be resumed where it ended.
pub(crate) fn choices(seed: u64, case: u64) -> Rng {
    Rng::with_seed(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
