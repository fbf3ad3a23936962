//! The event loop of one run.
//!
//! ```text
//! drain microtasks ─▶ settled? ─▶ the value, or the reason of the rejection
//!        ▲               └─ no: sleep until the next timer is due ─▶ fire it ─┐
//!        └────────────────────────────────────────────────────────────────────┘
//! ```

use enisle_wire::tenant::{Level, ScriptError};

use super::clock::Clock;
use super::describe::Describer;
use super::outcome::Ended;
use crate::engine::memory::{confinement, quota};
use crate::engine::natives::callbacks::Failures;
use crate::engine::natives::console::Log;
use crate::engine::natives::timers::Timers;

/// The event loop, and what its turns need.
pub(super) struct EventLoop<'a> {
    pub(super) describer: Describer<'a>,
    pub(super) clock: &'a mut Clock,
    /// The clock's time when the run began.
    pub(super) begun_ms: u64,
    pub(super) fire_timer: v8::Global<v8::Function>,
}

impl EventLoop<'_> {
    /// Drives the event loop until `promise` is settled.
    pub(super) fn settled<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        promise: v8::Local<'s, v8::Promise>,
    ) -> Result<v8::Local<'s, v8::Value>, Ended> {
        promise.mark_as_handled();
        loop {
            scope.perform_microtask_checkpoint();
            confinement::edge();
            if self.describer.watched.cause().is_some() {
                return Err(Ended::Terminated);
            }
            if let Some(thrown) = scope.get_slot_mut::<Failures>().and_then(|failures| failures.uncaught.take()) {
                let thrown = v8::Local::new(scope, thrown);
                return Err(self.describer.failed(scope, Some(thrown), None));
            }
            self.report_rejections(scope);
            match promise.state() {
                v8::PromiseState::Fulfilled => return Ok(promise.result(scope)),
                v8::PromiseState::Rejected => {
                    let reason = promise.result(scope);
                    return Err(self.describer.failed(scope, Some(reason), None));
                }
                v8::PromiseState::Pending => self.turn(scope)?,
            }
        }
    }

    /// Waits for the next timer and fires it.
    fn turn(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Result<(), Ended> {
        scope.get_slot_mut::<Log>().ok_or(Ended::Terminated)?.flush();
        let timers = scope.get_slot_mut::<Timers>().ok_or(Ended::Terminated)?;
        let Some(due) = timers.next() else {
            let message = "a promise that the run waits for never settled, and no timer is left that could settle it";
            return Err(Ended::Failed(ScriptError {
                name: "Error".to_owned(),
                message: message.to_owned(),
                stack: None,
            }));
        };
        // If the timer is due already, the clock is not read again.
        if due.not_before_ms > self.clock.now_ms() {
            let (until, lag) = self.clock.wait_for(due.not_before_ms);
            if self.describer.watched.sleep_until(until).is_some() {
                return Err(Ended::Terminated);
            }
            self.clock.look(lag);
            quota::begin_turn();
            if let Some(log) = scope.get_slot_mut::<Log>() {
                log.t_ms = u32::try_from(self.clock.now_ms() - self.begun_ms).unwrap_or(u32::MAX);
            }
        }
        let now_ms = self.clock.now_ms();
        if let Some(number) = scope.get_slot_mut::<Timers>().and_then(|timers| timers.fire(now_ms)) {
            v8::tc_scope!(let caught, scope);
            let fire = v8::Local::new(caught, &self.fire_timer);
            let undefined = v8::undefined(caught).into();
            let number = v8::Integer::new_from_unsigned(caught, number).into();
            // A callback that throws ends the run, like an uncaught exception.
            if fire.call(caught, undefined, &[number]).is_none() {
                let exception = caught.exception();
                caught.reset();
                return Err(self.describer.failed(caught, exception, None));
            }
        }
        Ok(())
    }

    /// Writes to the log the rejections that are unhandled at the end of a turn.
    fn report_rejections(&self, scope: &mut v8::PinScope<'_, '_>) {
        let Some(failures) = scope.get_slot_mut::<Failures>() else { return };
        for (_, reason) in std::mem::take(&mut failures.rejections) {
            let reason = reason.map(|reason| v8::Local::new(scope, reason));
            let Ended::Failed(error) = self.describer.failed(scope, reason, None) else { return };
            let text = format!("Uncaught (in promise) {}", error.stack.unwrap_or(error.message));
            if let Some(log) = scope.get_slot_mut::<Log>()
                && let Some(room) = log.room()
            {
                let end = text.floor_char_boundary(room);
                let whole = end == text.len();
                log.line(Level::Error, text[..end].to_owned(), whole);
            }
        }
    }
}
