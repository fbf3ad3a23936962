//! What a fuzzer found.

use std::fmt;

/// Something that must not be, and how to have it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The target or the invariant, as it is named on the command line and in corpora.
    pub what: String,
    /// Starts the case again: `--seed` of the same command.
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
