//! The timers of one run: when each is due, and in which order they fire. Their callbacks are in
//! the runtime (`runtime/timers.js`).
//!
//! **The order reveals nothing about the time.** If timers fired by the real clock, two of them
//! would be a stopwatch: start one, do something, start the other, and see which comes first. So
//! the order follows a clock of its own, which only timers move: it begins at 0, and while a
//! timer's callback runs it is at the moment for which that timer was set. A timer that the
//! callback starts is set for that moment plus its delay. Timers set for the same moment fire in
//! the order of their numbers. Nothing of this depends on how long anything took.
//!
//! A timer fires once the turn's clock ([`crate::engine::run::clock`]) has advanced by its delay,
//! and all timers before it have fired. So after a long turn, timers may be late by the length of
//! that turn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use enisle_wire::tenant::Advice;

use crate::engine::values::throw_range_error;

/// When a timer fires. The derived order is the order in which timers fire, because `number` is
/// unique among pending timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine) struct Due {
    /// The moment for which the timer is set, on the clock that only timers move.
    moment_ms: u64,
    number: u32,
    /// The earliest time at which it may fire, on the turn's clock.
    pub(in crate::engine) not_before_ms: u64,
}

/// The timers of one run.
#[derive(Debug, Default)]
pub(in crate::engine) struct Timers {
    queue: BinaryHeap<Reverse<Due>>,
    live: HashSet<u32>,
    last: u32,
    limit: usize,
    /// The moment for which the timer of this turn was set.
    moment_ms: u64,
    /// The turn's clock.
    now_ms: u64,
    /// Switches the defence off, for an attack that shows what it prevents.
    #[cfg(feature = "attack-natives")]
    pub(in crate::engine) moving_clock: Option<std::time::Instant>,
}

impl Timers {
    pub(in crate::engine) fn new(limit: u32, now_ms: u64) -> Self {
        Self { limit: limit as usize, now_ms, ..Self::default() }
    }

    /// Later timers get numbers above `last`.
    pub(in crate::engine) fn go_on_from(&mut self, last: u32) {
        self.last = last;
    }

    pub(in crate::engine) fn last(&self) -> u32 {
        self.last
    }

    /// Starts a timer and returns its number. `None` if the limit of pending timers is reached.
    pub(in crate::engine) fn start(&mut self, delay_ms: u32) -> Option<u32> {
        if self.live.len() >= self.limit {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        self.again(self.last, delay_ms);
        Some(self.last)
    }

    /// Starts the timer `number`, for the first time or again while it fires.
    pub(in crate::engine) fn again(&mut self, number: u32, delay_ms: u32) {
        let (moment_ms, now_ms) = self.present();
        let delay_ms = u64::from(delay_ms.max(1));
        let due = Due { moment_ms: moment_ms + delay_ms, number, not_before_ms: now_ms + delay_ms };
        self.live.insert(number);
        self.queue.push(Reverse(due));
        // Stopped timers stay queued until they are due. They are removed here, so that a loop of
        // starts and stops does not grow the queue.
        if self.queue.len() > 2 * self.live.len() + 64 {
            let live = &self.live;
            self.queue.retain(|Reverse(due)| live.contains(&due.number));
        }
    }

    /// The moments from which delays count: on the clock that only timers move, and on the turn's
    /// clock.
    fn present(&self) -> (u64, u64) {
        #[cfg(feature = "attack-natives")]
        if let Some(epoch) = self.moving_clock {
            let ms = u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
            return (ms, ms);
        }
        (self.moment_ms, self.now_ms)
    }

    pub(in crate::engine) fn stop(&mut self, number: u32) {
        self.live.remove(&number);
    }

    /// The next timer to fire.
    pub(in crate::engine) fn next(&mut self) -> Option<Due> {
        while let Some(Reverse(due)) = self.queue.peek() {
            if self.live.contains(&due.number) {
                return Some(*due);
            }
            self.queue.pop();
        }
        None
    }

    /// Takes the next timer, whose turn begins, and returns its number. The timer counts as stopped
    /// unless the runtime starts it again while it fires.
    pub(in crate::engine) fn fire(&mut self, now_ms: u64) -> Option<u32> {
        let due = self.next()?;
        self.queue.pop();
        self.live.remove(&due.number);
        (self.moment_ms, self.now_ms) = (due.moment_ms, now_ms);
        Some(due.number)
    }
}

/// A delay in whole milliseconds, truncated by the runtime.
fn delay_ms(scope: &mut v8::PinScope<'_, '_>, value: v8::Local<'_, v8::Value>) -> u32 {
    value.uint32_value(scope).unwrap_or(1)
}

pub(super) fn timer_start<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let delay_ms = delay_ms(scope, args.get(0));
    let Some(timers) = scope.get_slot_mut::<Timers>() else { return };
    let limit = timers.limit;
    match timers.start(delay_ms) {
        Some(number) => rv.set_uint32(number),
        None => {
            if let Some(advice) = scope.get_slot_mut::<Advice>() {
                advice.timers = advice.timers.saturating_add(1);
            }
            throw_range_error(scope, &format!("{limit} timers are pending, which is this run's limit (limits.timers)"))
        }
    }
}

pub(super) fn timer_again<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    _: v8::ReturnValue<'s>,
) {
    let (number, delay_ms) = (args.get(0).uint32_value(scope), delay_ms(scope, args.get(1)));
    if let (Some(number), Some(timers)) = (number, scope.get_slot_mut::<Timers>()) {
        timers.again(number, delay_ms);
    }
}

pub(super) fn timer_stop<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    _: v8::ReturnValue<'s>,
) {
    let number = args.get(0).uint32_value(scope);
    if let (Some(number), Some(timers)) = (number, scope.get_slot_mut::<Timers>()) {
        timers.stop(number);
    }
}

pub(super) fn microtask<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    _: v8::ReturnValue<'s>,
) {
    if let Ok(function) = args.get(0).try_cast::<v8::Function>() {
        scope.enqueue_microtask(function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fires the next timer as early as allowed; returns the clock at that moment, and the timer's
    /// number.
    fn fire(timers: &mut Timers) -> Option<(u64, u32)> {
        let due = timers.next()?;
        let now_ms = due.not_before_ms.max(timers.now_ms);
        timers.fire(now_ms).map(|number| (now_ms, number))
    }

    #[test]
    fn timers_fire_in_order_and_stopped_ones_never() {
        let mut timers = Timers::new(10, 100);
        let late = timers.start(60).unwrap();
        let early = timers.start(0).unwrap();
        let stopped = timers.start(1).unwrap();
        let same = timers.start(1).unwrap();
        timers.stop(stopped);
        let order: Vec<_> = std::iter::from_fn(|| fire(&mut timers)).collect();
        assert_eq!(order, [(101, early), (101, same), (160, late)]);
    }

    #[test]
    fn the_order_does_not_depend_on_how_late_a_turn_is() {
        let orders = [0, 1, 2, 3, 7, 1000].map(|late_ms| {
            let mut timers = Timers::new(10, 0);
            let (chain, other) = (timers.start(1).unwrap(), timers.start(4).unwrap());
            let mut order = Vec::new();
            while let Some(due) = timers.next() {
                let now_ms = due.not_before_ms.max(timers.now_ms) + late_ms;
                let number = timers.fire(now_ms).unwrap();
                order.push(number);
                if number == chain && order.len() < 6 {
                    timers.again(chain, 1);
                }
                assert!(now_ms >= due.not_before_ms, "{due:?}");
            }
            assert!(order.contains(&other));
            order
        });
        assert!(orders.iter().all(|order| *order == orders[0]), "{orders:?}");
    }

    #[test]
    fn a_timer_never_fires_before_its_delay_has_passed() {
        let mut timers = Timers::new(10, 0);
        timers.start(5).unwrap();
        // The first timer fires 95 ms late. The next delay counts from then.
        assert_eq!(timers.fire(100), Some(1));
        timers.start(5).unwrap();
        assert_eq!(timers.next().unwrap().not_before_ms, 105);
    }

    #[test]
    fn the_limit_counts_pending_timers_only() {
        let mut timers = Timers::new(1, 0);
        let first = timers.start(1).unwrap();
        assert_eq!(timers.start(1), None);
        timers.stop(first);
        assert!(timers.start(1).is_some());
    }

    #[test]
    fn starting_and_stopping_does_not_grow_the_queue() {
        let mut timers = Timers::new(1, 0);
        for _ in 0..10_000 {
            let number = timers.start(u32::MAX).unwrap();
            timers.stop(number);
        }
        assert!(timers.queue.len() < 100);
    }
}
