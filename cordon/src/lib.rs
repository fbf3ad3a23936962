//! Decides how far out a tenant lives, and which tenants it may share a process with.
//!
//! All functions are pure; `clippy.toml` forbids I/O, clocks and threads. The caller passes in the
//! facts and the time, and gets an answer, with the reasons as data.
//!
//! ```text
//! Sample ─ Shape::observe ─▶ Signal ─ decide ─▶ Decision ─ (the daemon moves the tenant) ─ place
//!
//!            score ≥ 60            ≥ 90, with evidence        ≥ 180
//!   shared ───────────▶ solo ───────────▶ sealed ───────────▶ expelled ── lift ─▶ shared
//!      ▲                 │ ▲                │
//!      └─ a clean day ───┘ └─ a clean day ──┘      (with a score below 20)
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`signal`] | what counts against a tenant: kind, source and weight of each signal |
//! | [`rules`] | the other numbers: thresholds, times and configured weights |
//! | [`score`] | the decayed sum of a tenant's signals |
//! | [`mod@decide`] | the level that score, suspicion and orders demand, with hysteresis |
//! | [`shape`] | how a tenant's thread behaves in windows of half a second |
//! | [`mod@place`] | which process a tenant goes to, and which tenants may share one |
//! | [`moving`] | when a tenant moves |
//! | [`mod@blame`] | which tenant is to blame for the death of a process |
//! | [`deaths`] | each uid's budget for the deaths that its tenants are blamed for |
//! | [`time`] | moments and spans of time, as values |
//! | [`audit`] | the chain of hashed lines of the audit log |
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")
)]

pub mod audit;
pub mod blame;
pub mod deaths;
pub mod decide;
pub mod moving;
pub mod place;
pub mod rules;
pub mod score;
pub mod shape;
pub mod signal;
pub mod standby;
pub mod time;

use serde::{Deserialize, Serialize};

pub use blame::{Because, Ending, MemoryRules, Room, Site, Verdict, blame};
pub use deaths::{DeathRules, Deaths};
pub use decide::{Circumstances, Decision, Order, Reason, Standing, Trust, decide};
pub use place::{
    Bounds, CAGES_PER_PROCESS, Capacity, Case, MAX_TENANTS_PER_PROCESS, Placement, Process, Traits, place,
};
pub use rules::Rules;
pub use shape::{Sample, Shape};
pub use signal::{Kind, Seen, Signal, Source};
pub use time::Time;

/// The cordon level: how far out a tenant lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Level {
    /// In a process with other tenants.
    #[default]
    Shared,
    /// In a process of its own.
    Solo,
    /// In a process of its own that generates no machine code: no JIT, no WebAssembly, and no page
    /// becomes executable. Limits are lower, and secrets are withheld.
    Sealed,
    /// Nowhere: the tenant may not run.
    Expelled,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Shared, Self::Solo, Self::Sealed, Self::Expelled];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Solo => "solo",
            Self::Sealed => "sealed",
            Self::Expelled => "expelled",
        }
    }

    /// Whether the tenant has a process of its own.
    #[must_use]
    pub fn is_alone(self) -> bool {
        matches!(self, Self::Solo | Self::Sealed)
    }

    /// One level further in; `shared` is the innermost level.
    #[must_use]
    pub fn inward(self) -> Self {
        match self {
            Self::Shared | Self::Solo => Self::Shared,
            Self::Sealed => Self::Solo,
            Self::Expelled => Self::Sealed,
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.as_str() == word).ok_or_else(|| UnknownLevel(word.to_owned()))
    }
}

/// A word that does not name a level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no cordon level {0:?}; the levels are shared, solo, sealed and expelled")]
pub struct UnknownLevel(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_read_back_and_levels_are_ordered_outward() {
        for level in Level::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert!(level.inward() <= level);
        }
        assert!("out".parse::<Level>().unwrap_err().to_string().contains("sealed"));
        assert!(Level::ALL.is_sorted());
    }
}
