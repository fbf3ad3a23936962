//! Moments and spans of time, as values: the caller says what time it is.

use serde::{Deserialize, Serialize};

pub(crate) const MINUTE_SECS: u64 = 60;
pub(crate) const HOUR_SECS: u64 = 60 * MINUTE_SECS;
pub(crate) const DAY_SECS: u64 = 24 * HOUR_SECS;

/// A moment, in milliseconds. A caller counts from 1970, or from any other fixed moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds from `earlier` to `self`; 0 if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
