//! A finding of a fuzzer.

use std::fmt;

/// Something that must not happen, and the seed that makes it happen again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name of the target or of the invariant.
    pub what: String,
    /// The value for `--seed` with which the same command repeats the run.
    pub seed: u64,
    /// What was expected, and what was seen.
    pub said: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "finding: {} (seed {}): {}", self.what, self.seed, self.said)
    }
}

impl std::error::Error for Finding {}
