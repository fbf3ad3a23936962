//! Decides how many places are made ready before a tenant needs one.
//!
//! A new tenant that finds a place on standby waits for nothing but its run. Making a place takes
//! some 15 ms of a processor, or 40, so places are made ahead: at least a fixed number, and more
//! while tenants arrive fast. What is no longer wanted is ended: standby costs memory.

use std::time::Duration;

use crate::time::Time;

/// The weight of an arrival halves in this time.
const HALF_LIFE_MS: u64 = 5_000;
/// The stock lasts this long at the present rate of arrivals, so that tenants which arrive together
/// once a second find places too.
const LASTS_SECS: f64 = 1.0;
/// A decayed sum below this counts as none: a single arrival is forgotten after five seconds.
const FORGOTTEN: f64 = 0.5;

/// How fast new tenants have arrived: a sum of arrivals, each of which decays.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Arrivals {
    sum: f64,
    at: Time,
}

#[expect(clippy::cast_precision_loss, reason = "times and counts are small")]
impl Arrivals {
    fn sum_at(self, now: Time) -> f64 {
        let sum = self.sum * (-(now.since(self.at) as f64) / HALF_LIFE_MS as f64).exp2();
        if sum < FORGOTTEN { 0.0 } else { sum }
    }

    /// A tenant took a place, or found none.
    pub fn note(&mut self, now: Time) {
        *self = Self { sum: self.sum_at(now) + 1.0, at: now };
    }

    /// How many arrive in a second, by those of the last seconds.
    #[must_use]
    pub fn per_second(self, now: Time) -> f64 {
        // At a steady rate the sum is the rate times the mean life of a weight.
        self.sum_at(now) * std::f64::consts::LN_2 * 1000.0 / HALF_LIFE_MS as f64
    }

    /// Whether the last one arrived at most that long ago.
    #[must_use]
    pub fn last_within(self, span: Duration, now: Time) -> bool {
        self.sum > 0.0 && u128::from(now.since(self.at)) <= span.as_millis()
    }

    /// Whether some arrived so recently that the stock may still be larger than the least.
    #[must_use]
    pub fn are_remembered(self, now: Time) -> bool {
        self.sum_at(now) > 0.0
    }
}

/// How many places are on standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// While nobody arrives.
    pub least: usize,
    /// However many arrive.
    pub most: usize,
}

/// How many places to have on standby now.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is a small positive number")]
pub fn wanted(arrivals: Arrivals, now: Time, stock: Stock) -> usize {
    let more = (arrivals.per_second(now) * LASTS_SECS).ceil() as usize;
    stock.least.saturating_add(more).min(stock.most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STOCK: Stock = Stock { least: 2, most: 16 };

    /// Tenants that arrive at these times take places. Whenever there are fewer than wanted, one
    /// maker makes the next, in `make_ms`, but not just after a tenant has come. Returns how many
    /// tenants found none, and the largest stock.
    fn simulated(arrivals: &[u64], make_ms: u64) -> (usize, usize) {
        let (mut rate, mut ready, mut making) = (Arrivals::default(), STOCK.least, None);
        let (mut missed, mut largest, mut at) = (0, ready, 0);
        for ms in 0..=arrivals.last().copied().unwrap_or(0) {
            if making == Some(ms) {
                (ready, making) = (ready + 1, None);
            }
            while arrivals.get(at) == Some(&ms) {
                rate.note(Time(ms));
                missed += usize::from(ready == 0);
                ready = ready.saturating_sub(1);
                at += 1;
            }
            let waits = ready > 0 && rate.last_within(Duration::from_millis(5), Time(ms));
            if making.is_none() && ready < wanted(rate, Time(ms), STOCK) && !waits {
                making = Some(ms + make_ms);
            }
            largest = largest.max(ready);
        }
        (missed, largest)
    }

    #[test]
    fn nobody_who_comes_every_now_and_then_finds_no_place() {
        let now_and_then: Vec<_> = (1..200).map(|n| n * 40).collect();
        assert_eq!(simulated(&now_and_then, 20).0, 0);
    }

    #[test]
    fn only_the_last_arrival_is_recent() {
        let (mut rate, span) = (Arrivals::default(), Duration::from_millis(5));
        assert!(!rate.last_within(span, Time(0)), "nobody has come yet");
        rate.note(Time(100));
        rate.note(Time(200));
        assert!(rate.last_within(span, Time(205)));
        assert!(!rate.last_within(span, Time(206)));
    }

    #[test]
    fn the_stock_grows_with_the_rate_and_falls_back_to_the_least() {
        let mut rate = Arrivals::default();
        assert_eq!(wanted(rate, Time(0), STOCK), 2);
        for n in 0..400 {
            rate.note(Time(n * 100));
        }
        let now = Time(400 * 100);
        assert!((9.0..11.0).contains(&rate.per_second(now)), "{}", rate.per_second(now));
        assert_eq!(wanted(rate, now, STOCK), 12);
        assert!(rate.are_remembered(now));
        let later = now.plus(60_000);
        assert!(!rate.are_remembered(later));
        assert_eq!(wanted(rate, later, STOCK), 2);
    }

    proptest! {
        #[test]
        fn the_stock_stays_within_its_bounds(gaps in prop::collection::vec(0_u64..200, 1..100), make_ms in 1_u64..100) {
            let arrivals: Vec<_> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let (_, largest) = simulated(&arrivals, make_ms);
            prop_assert!(largest <= STOCK.most);
        }

        /// The stock covers a second burst like the first.
        #[test]
        fn bursts_that_come_again_find_places(size in 1_usize..8, pause_ms in 300_u64..1000) {
            let bursts: Vec<_> = (0..20).flat_map(|n| vec![1000 + n * pause_ms; size]).collect();
            let (missed, _) = simulated(&bursts, 20);
            // Those of the first bursts may wait; later ones do not.
            prop_assert!(missed <= 3 * size, "{missed} of {}", bursts.len());
        }
    }
}
