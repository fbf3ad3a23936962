//! The current time. Only this module reads the wall clock, except for the timestamps of the log.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use enisle_cordon::Time;

/// Milliseconds since the beginning of 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same time, for the cordon engine. If the wall clock is set back, the engine's time stands
/// still.
pub(crate) fn now() -> Time {
    Time(unix_ms())
}

/// Milliseconds since the first call. Windows of observation and the forgiving of deaths use this
/// clock, because the wall clock may be set meanwhile.
pub(crate) fn monotonic() -> Time {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    Time(u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX))
}
