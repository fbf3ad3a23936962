//! The time that a script sees. It stands still during a turn, and counts whole milliseconds.
//!
//! ```text
//! Clock::new ─▶ begin_run ─▶ (wait_for ─▶ look)*
//!                   ▲               │ one turn after the other
//!                   └───────────────┘
//! ```
//!
//! If a script could wait for the exact edge of a millisecond, it would have a much finer clock:
//! repeat an operation until the edge comes, and count. So each look is behind the real clock by a
//! random part of a millisecond, and one look does not reveal where in its millisecond the clock
//! was. The time never goes back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::engine::kernel::fill_random;
use crate::engine::memory::cage;

/// One tenant's clock, for the life of its thread.
#[derive(Debug)]
pub(crate) struct Clock {
    epoch: Instant,
    /// Milliseconds from 1970 to `epoch`, by the machine's clock when a run began. If that clock
    /// has been set back since, the value stays.
    epoch_ms: u64,
    now_ms: u64,
}

/// How far a look is behind the real clock. It is drawn before a wait, so that the look after the
/// wait is not too early.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Lag(Duration);

impl Lag {
    fn draw() -> Self {
        let mut random = [0; 4];
        // Without random bytes V8 would have ended the process long before.
        fill_random(&mut random);
        Self(Duration::from_nanos((u64::from(u32::from_ne_bytes(random)) * 1_000_000) >> 32))
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), epoch_ms: 0, now_ms: 0 }
    }

    /// A run begins. It must not see an earlier time than the last run saw.
    pub(in crate::engine) fn begin_run(&mut self) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.epoch_ms = self.epoch_ms.max(whole_ms(since_1970.saturating_sub(self.epoch.elapsed())));
        self.look(Lag::draw());
    }

    /// Milliseconds since this clock was made, as of the current turn.
    pub(in crate::engine) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The moment from which a look finds at least `ms`, and the lag for that look.
    pub(in crate::engine) fn wait_for(&self, ms: u64) -> (Instant, Lag) {
        let lag = Lag::draw();
        (self.epoch + Duration::from_millis(ms) + lag.0, lag)
    }

    /// Looks at the real clock: a turn begins.
    pub(in crate::engine) fn look(&mut self, lag: Lag) {
        self.look_when(self.epoch.elapsed(), lag);
        cage::set_clock(self.epoch_ms.saturating_add(self.now_ms));
    }

    fn look_when(&mut self, elapsed: Duration, lag: Lag) {
        self.now_ms = self.now_ms.max(whole_ms(elapsed.saturating_sub(lag.0)));
    }

    /// The start of this clock. From it the attack harness has timers use the real, moving clock,
    /// to see what that would reveal.
    #[cfg(feature = "attack-natives")]
    pub(in crate::engine) fn epoch(&self) -> Instant {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_look_is_behind_by_less_than_a_millisecond_and_never_goes_back() {
        let mut clock = Clock::new();
        let mut looks = Vec::new();
        for (elapsed, lag) in [(5_900, 0), (6_100, 999), (6_999, 0), (7_000, 1), (9_000, 0)] {
            clock.look_when(us(elapsed), Lag(us(lag)));
            looks.push(clock.now_ms());
        }
        assert_eq!(looks, [5, 5, 6, 6, 9]);
    }

    #[test]
    fn lags_are_spread_over_less_than_a_millisecond() {
        let mut lags: Vec<_> = (0..100).map(|_| Lag::draw().0).collect();
        assert!(lags.iter().all(|lag| *lag < us(1000)));
        lags.sort_unstable();
        lags.dedup();
        assert!(lags.len() > 90 && lags.iter().any(|lag| *lag < us(300)) && lags.iter().any(|lag| *lag > us(700)));
    }

    #[test]
    fn a_wait_for_a_moment_reaches_it() {
        let mut clock = Clock::new();
        for ms in [0, 1, 7, 7, 1000] {
            let (until, lag) = clock.wait_for(ms);
            clock.look_when(until - clock.epoch, lag);
            assert!(clock.now_ms() == ms, "{ms}: {clock:?}");
        }
    }
}
