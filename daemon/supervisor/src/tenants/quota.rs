//! A tenant's quota: how many runs at one time, and how many per second. Time is passed in, so that
//! tests need no clock.

use std::time::{Duration, Instant};

use crate::tenants::policy::Quota;

/// One tenant's use of its quota.
#[derive(Debug)]
pub(crate) struct Account {
    in_flight: u32,
    /// Runs that may start at once; refilled over time up to the quota's burst.
    tokens: f64,
    filled_at: Instant,
}

/// Why a run may not start, and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverQuota {
    #[error("{0} runs of this tenant are in flight, which is its quota (inFlight)")]
    InFlight(u32),
    #[error("this tenant starts more than {0} runs a second (perSecond)")]
    Rate(u32, Duration),
}

impl OverQuota {
    /// For `Retry-After`, in whole seconds.
    pub(crate) fn retry_after_secs(self) -> u64 {
        match self {
            Self::InFlight(_) => 1,
            Self::Rate(_, wait) => wait.as_secs() + 1,
        }
    }
}

impl Account {
    pub(crate) fn new(quota: &Quota, now: Instant) -> Self {
        Self { in_flight: 0, tokens: quota.burst.into(), filled_at: now }
    }

    /// Takes a place for one run.
    pub(crate) fn begin(&mut self, quota: &Quota, now: Instant) -> Result<(), OverQuota> {
        let rate = f64::from(quota.per_second);
        let earned = now.saturating_duration_since(self.filled_at).as_secs_f64() * rate;
        self.tokens = (self.tokens + earned).min(quota.burst.into());
        self.filled_at = now;
        if self.in_flight >= quota.in_flight {
            return Err(OverQuota::InFlight(quota.in_flight));
        }
        if self.tokens < 1.0 {
            return Err(OverQuota::Rate(quota.per_second, Duration::from_secs_f64((1.0 - self.tokens) / rate)));
        }
        self.tokens -= 1.0;
        self.in_flight += 1;
        Ok(())
    }

    /// Gives the place back.
    pub(crate) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: Quota = Quota { in_flight: 2, per_second: 10, burst: 3 };

    #[test]
    fn a_third_run_at_once_is_over_quota() {
        let now = Instant::now();
        let mut account = Account::new(&QUOTA, now);
        assert_eq!(account.begin(&QUOTA, now), Ok(()));
        assert_eq!(account.begin(&QUOTA, now), Ok(()));
        assert_eq!(account.begin(&QUOTA, now), Err(OverQuota::InFlight(2)));
        account.end();
        assert_eq!(account.begin(&QUOTA, now), Ok(()));
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let now = Instant::now();
        let mut account = Account::new(&QUOTA, now);
        for _ in 0..3 {
            assert_eq!(account.begin(&QUOTA, now), Ok(()));
            account.end();
        }
        assert!(matches!(account.begin(&QUOTA, now), Err(OverQuota::Rate(10, _))));
        assert_eq!(account.begin(&QUOTA, now + Duration::from_millis(101)), Ok(()));
    }

    proptest! {
        #[test]
        fn no_more_runs_begin_than_burst_and_rate_allow(steps in proptest::collection::vec(0_u64..200, 1..200)) {
            let start = Instant::now();
            let mut account = Account::new(&QUOTA, start);
            let (mut at, mut begun) = (0, 0_u64);
            for step in steps {
                at += step;
                if account.begin(&QUOTA, start + Duration::from_millis(at)).is_ok() {
                    begun += 1;
                    account.end();
                }
                prop_assert!(begun <= u64::from(QUOTA.burst) + at * u64::from(QUOTA.per_second) / 1000 + 1);
            }
        }
    }
}
