//! What time it is: the one place that asks for the wall clock.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use enisle_cordon::Time;

/// Milliseconds since the beginning of 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same for the engine that decides about cordons, which sees to it that time does not go back.
pub(crate) fn now() -> Time {
    Time(unix_ms())
}

/// Milliseconds since the daemon's first look: windows, and deaths that are forgiven, are no
/// business of the wall clock's, which may be set.
pub(crate) fn monotonic() -> Time {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    Time(u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX))
}
