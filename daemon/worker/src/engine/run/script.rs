//! One run, from its frame to its end.
//!
//! ```text
//! compile main ─▶ link ─▶ evaluate ─▶ (wait) ─▶ call the entry point ─▶ (wait) ─▶ result as JSON
//!
//! (wait): drain microtasks; if the promise is still pending, sleep until the next timer is due, fire it, again
//! ```
//!
//! The watchdog may end a run at any point of this: every call into V8 can return "terminated", and the cause that the
//! watchdog noted decides the outcome.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enisle_wire::limits::{Limit, Limits};
use enisle_wire::tenant::{Advice, Code, Done, Env, Input, Level, Run, ScriptError, Usage};
use enisle_wire::{MAX_ERROR_BYTES, Outcome};

use super::clock::Clock;
use super::isolate::Resting;
use super::last_words::{HeapWatch, forget_last_words, near_heap_limit, remember_last_words};
use super::log::Log;
use super::modules::{self, Modules};
use super::snapshot::RUNTIME_NAME;
use super::timers::Timers;
use super::{bounded_text, confinement, quota};
use crate::watchdog::{Cause, Watched};

/// What natives and callbacks find in the isolate while a run is in it.
#[derive(Debug)]
pub(super) struct RunState {
    pub(super) log: Log,
    pub(super) timers: Timers,
    pub(super) modules: Modules,
    pub(super) rejections: Vec<(v8::Global<v8::Promise>, Option<v8::Global<v8::Value>>)>,
    pub(super) worker_entrypoint: v8::Global<v8::Value>,
    pub(super) watched: Arc<Watched>,
    /// What a microtask threw that nobody could catch: it ends the run, as what a timer throws does.
    pub(super) uncaught: Option<v8::Global<v8::Value>>,
    /// What was asked for in vain.
    pub(super) advice: Advice,
}

/// Why a run ended, as far as the script knows.
enum Ended {
    Result(String),
    Failed(ScriptError),
    TooLarge(usize),
    /// The watchdog's cause decides.
    Terminated,
}

/// What stays of a script whose isolate is kept: it has been evaluated, and is only called from then on.
#[derive(Debug)]
pub(crate) struct Evaluated {
    modules: Modules,
    exports: v8::Global<v8::Value>,
    /// Numbers of timers go on, so that an old one never names a new one.
    last_timer: u32,
    /// Heap, when the last run had ended.
    pub(super) heap_bytes: usize,
}

/// One run, without its code.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) run: Run,
    pub(crate) input: Input,
    pub(crate) env: Env,
}

/// What a run is a run of.
#[derive(Debug)]
pub(crate) enum Source {
    /// In a warm isolate that nothing has run in.
    Code(Code),
    /// In the isolate that it was evaluated in.
    Evaluated(Evaluated),
}

/// Executes one run. `arrived` is when all of it had been read. With its end comes what the next
/// run of the script can go on from, if this one asked for that and ended by itself.
pub(crate) fn execute(
    resting: &mut Resting<'_>,
    source: Source,
    Order { run, input, env }: Order,
    watched: &Arc<Watched>,
    channel: &Arc<UnixStream>,
    clock: &mut Clock,
    arrived: Instant,
) -> (Done, Option<Evaluated>) {
    let (id, limits, keeps) = (run.id, run.limits, run.keep.is_some());
    let begun = watched.clock().now();
    remember_last_words(channel, id);
    quota::set_limit((limits.memory_mb as usize) << 20);

    let entry = (run.entrypoint, run.method, input.args, env.json, input.props);
    let short = matches!(source, Source::Code(Code::Short(_)));
    clock.begin_run();
    let mut timers = Timers::new(limits.timers, clock.now_ms());
    let (modules, main, exports) = match source {
        Source::Evaluated(known) => {
            timers.go_on_from(known.last_timer);
            (known.modules, String::new(), Some(known.exports))
        }
        Source::Code(code) => {
            let (modules, main) = Modules::new(code);
            (modules, main, None)
        }
    };
    let state = RunState {
        log: Log::new(Arc::clone(channel), &limits),
        timers,
        modules,
        rejections: Vec::new(),
        worker_entrypoint: resting.runtime.worker_entrypoint.clone(),
        watched: Arc::clone(watched),
        uncaught: None,
        advice: Advice::default(),
    };
    let context = resting.context.clone();
    let invoke = resting.runtime.invoke.clone();
    let fire_timer = resting.runtime.fire_timer.clone();
    let forget_timers = resting.runtime.forget_timers.clone();
    let describe = resting.runtime.describe.clone();

    let (mut startup, mut exports_after, mut evaluated) = (Duration::ZERO, None, None);
    let (ended, heap, state) = resting.entered(|isolate| {
        isolate.set_slot(state);
        // SAFETY: the pointer is used only while the isolate lives, by the callback below.
        let watch = HeapWatch { watched, isolate: unsafe { isolate.as_raw_isolate_ptr() } };
        isolate.add_near_heap_limit_callback(near_heap_limit, std::ptr::from_ref(&watch).cast_mut().cast());
        let handle = isolate.thread_safe_handle();
        watched.arm(id, &limits, handle.clone());
        let _held = quota::hold(&handle);
        let ended = if quota::is_over() {
            // Its code and arguments alone are more.
            watched.end(Cause::Memory);
            Ended::Terminated
        } else {
            v8::scope!(let scope, isolate);
            let context = v8::Local::new(scope, &context);
            context.set_allow_generation_from_strings(run.allow_eval);
            let scope = &mut v8::ContextScope::new(scope, context);
            #[cfg(feature = "attack-natives")]
            super::attack::arm(scope, &entry.4, clock.epoch());
            let begun_ms = clock.now_ms();
            let mut script =
                Script { watched, clock, begun_ms, short, fire_timer, forget_timers, describe, invoke, exports };
            let output_cap = limits.output_bytes as usize;
            let ended = script.run(scope, &main, &entry, output_cap, || startup = arrived.elapsed());
            exports_after = script.exports;
            ended
        };
        let statistics = isolate.get_heap_statistics();
        let heap = statistics.total_heap_size();
        isolate.remove_near_heap_limit_callback(near_heap_limit, 0);
        (ended, heap, isolate.remove_slot::<RunState>())
    });
    let cause = watched.disarm();
    forget_last_words();

    let (outcome, result, error) = conclude(ended, cause, &limits);
    let (advice, truncated) = match state {
        Some(mut state) => {
            state.log.flush();
            let told = (state.advice, state.log.truncated);
            if let (true, None, Some(exports)) = (keeps, cause, exports_after) {
                let last_timer = state.timers.last();
                evaluated = Some(Evaluated { modules: state.modules, exports, last_timer, heap_bytes: heap });
            }
            told
        }
        None => (Advice::default(), true),
    };
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let usage = Usage {
        cpu_us: micros(watched.clock().now().saturating_sub(begun)),
        startup_us: micros(startup),
        peak_heap_bytes: (heap + quota::used_outside_heaps()) as u64,
        // How long it took as a whole is known when its end is said.
        wall_us: 0,
    };
    (Done { id, outcome, result, error, truncated, usage, advice }, evaluated)
}

/// From how the script ended and what the watchdog says to the outcome, with a sentence that says what to do.
fn conclude(ended: Ended, cause: Option<Cause>, limits: &Limits) -> (Outcome, Option<String>, Option<ScriptError>) {
    let error = |name: &str, message: String| Some(ScriptError { name: name.to_owned(), message, stack: None });
    match (cause, ended) {
        (Some(Cause::Cpu), _) => {
            (Outcome::ExceededCpu, None, error("LimitError", Limit::CpuMs.exceeded(limits.cpu_ms)))
        }
        (Some(Cause::Wall), _) => {
            (Outcome::ExceededWall, None, error("LimitError", Limit::WallMs.exceeded(limits.wall_ms)))
        }
        (Some(Cause::Memory), _) => {
            (Outcome::ExceededMemory, None, error("LimitError", Limit::MemoryMb.exceeded(limits.memory_mb)))
        }
        (Some(Cause::Canceled), _) => (Outcome::Canceled, None, error("Canceled", "the run was canceled".to_owned())),
        (None, Ended::Result(json)) => (Outcome::Ok, Some(json), None),
        (None, Ended::Failed(failed)) => (Outcome::Exception, None, Some(failed.bounded())),
        (None, Ended::TooLarge(bytes)) => {
            let message = format!(
                "the result has at least {bytes} bytes, more than {} (limits.outputBytes)",
                limits.output_bytes
            );
            (Outcome::ExceededOutput, None, error("LimitError", message))
        }
        // V8 was told to end by nobody that we know of.
        (None, Ended::Terminated) => {
            (Outcome::InternalError, None, error("InternalError", "the run was ended without a cause".to_owned()))
        }
    }
}

/// Entry point, method, args, env, props.
type Entry = (String, Option<String>, String, String, String);

/// A script inside its isolate.
struct Script<'a> {
    watched: &'a Watched,
    clock: &'a mut Clock,
    /// What the clock said when the run began.
    begun_ms: u64,
    /// The code came as one file, which may be an expression.
    short: bool,
    fire_timer: v8::Global<v8::Function>,
    forget_timers: v8::Global<v8::Function>,
    describe: v8::Global<v8::Function>,
    invoke: v8::Global<v8::Function>,
    /// Of the main module, once it has been evaluated.
    exports: Option<v8::Global<v8::Value>>,
}

impl Script<'_> {
    fn run(
        &mut self,
        scope: &mut v8::PinScope<'_, '_>,
        main: &str,
        entry: &Entry,
        output_cap: usize,
        starting: impl FnOnce(),
    ) -> Ended {
        let exports = match &self.exports {
            Some(exports) => {
                let forget_timers = v8::Local::new(scope, &self.forget_timers);
                let undefined = v8::undefined(scope).into();
                if forget_timers.call(scope, undefined, &[]).is_none() {
                    return Ended::Terminated;
                }
                v8::Local::new(scope, exports)
            }
            None => match self.exports(scope, main) {
                Ok(exports) => exports,
                Err(ended) => return ended,
            },
        };
        self.exports = Some(v8::Global::new(scope, exports));
        starting();
        let promise = match self.call_entry(scope, exports, entry, output_cap) {
            Ok(promise) => promise,
            Err(ended) => return ended,
        };
        let value = match self.settled(scope, promise) {
            Ok(value) => value,
            Err(ended) => return ended,
        };
        let Ok(json) = value.try_cast::<v8::String>() else {
            // The runtime has stopped where it was too long.
            return match value.integer_value(scope).map(usize::try_from) {
                Some(Ok(bytes)) => Ended::TooLarge(bytes),
                _ => Ended::Terminated,
            };
        };
        let bytes = json.utf8_length(scope);
        if bytes > output_cap {
            return Ended::TooLarge(bytes);
        }
        Ended::Result(bounded_text(scope, json, output_cap).0)
    }

    /// The main module, evaluated once; what it exports.
    fn exports<'s>(&mut self, scope: &mut v8::PinScope<'s, '_>, main: &str) -> Result<v8::Local<'s, v8::Value>, Ended> {
        let first = self.linked(scope, main, 0);
        // The short form may be an expression: as a module it exports nothing, or does not even compile.
        let perhaps = match &first {
            Ok(module) => exports_nothing(scope, *module),
            Err(Ended::Failed(_)) => true,
            Err(_) => false,
        };
        let module = if self.short && perhaps { self.as_expression(scope, main, first)? } else { first? };
        let promise = {
            v8::tc_scope!(let caught, scope);
            match module.evaluate(caught).and_then(|value| value.try_cast::<v8::Promise>().ok()) {
                Some(promise) => promise,
                None => {
                    let exception = caught.exception();
                    caught.reset();
                    return Err(self.failed(caught, exception, None));
                }
            }
        };
        self.settled(scope, promise)?;
        Ok(module.get_module_namespace())
    }

    /// The short form as a module that exports the one expression that it is; if it is none, what it was `before`.
    fn as_expression<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        main: &str,
        before: Result<v8::Local<'s, v8::Module>, Ended>,
    ) -> Result<v8::Local<'s, v8::Module>, Ended> {
        let Some(state) = scope.get_slot_mut::<RunState>() else { return Err(Ended::Terminated) };
        let statement = state.modules.wrap_expression();
        match self.linked(scope, main, -1) {
            Err(Ended::Failed(_)) => {}
            other => return other,
        }
        if let (Some(statement), Some(state)) = (statement, scope.get_slot_mut::<RunState>()) {
            state.modules.unwrap_expression(statement);
        }
        before
    }

    /// A module compiled and linked to what it imports, not yet evaluated.
    fn linked<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        name: &str,
        line_offset: i32,
    ) -> Result<v8::Local<'s, v8::Module>, Ended> {
        v8::tc_scope!(let caught, scope);
        let linked = modules::compile(caught, name, line_offset)
            .and_then(|module| module.instantiate_module(caught, modules::resolve).map(|_| module));
        match linked {
            Some(module) => Ok(module),
            None => {
                let position = caught.message().and_then(|message| position(caught, message));
                let exception = caught.exception();
                caught.reset();
                Err(self.failed(caught, exception, position))
            }
        }
    }

    fn call_entry<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        exports: v8::Local<'s, v8::Value>,
        (entrypoint, method, args, env, props): &Entry,
        output_cap: usize,
    ) -> Result<v8::Local<'s, v8::Promise>, Ended> {
        v8::tc_scope!(let caught, scope);
        let called = (|| {
            let text = |text: &str| {
                Some(v8::String::new_from_utf8(caught, text.as_bytes(), v8::NewStringType::Normal)?.into())
            };
            let method = match method {
                Some(method) => text(method)?,
                None => v8::undefined(caught).into(),
            };
            let cap = v8::Number::new(caught, f64::from(u32::try_from(output_cap).unwrap_or(u32::MAX)));
            let arguments = [exports, text(entrypoint)?, method, text(args)?, text(env)?, text(props)?, cap.into()];
            let undefined = v8::undefined(caught).into();
            let invoke = v8::Local::new(caught, &self.invoke);
            invoke.call(caught, undefined, &arguments)?.try_cast::<v8::Promise>().ok()
        })();
        match called {
            Some(promise) => Ok(promise),
            None => {
                let exception = caught.exception();
                caught.reset();
                Err(self.failed(caught, exception, None))
            }
        }
    }

    /// Drives the event loop until `promise` is settled.
    fn settled<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        promise: v8::Local<'s, v8::Promise>,
    ) -> Result<v8::Local<'s, v8::Value>, Ended> {
        promise.mark_as_handled();
        loop {
            scope.perform_microtask_checkpoint();
            confinement::edge();
            if self.watched.cause().is_some() {
                return Err(Ended::Terminated);
            }
            if let Some(thrown) = scope.get_slot_mut::<RunState>().and_then(|state| state.uncaught.take()) {
                let thrown = v8::Local::new(scope, thrown);
                return Err(self.failed(scope, Some(thrown), None));
            }
            self.report_rejections(scope);
            match promise.state() {
                v8::PromiseState::Fulfilled => return Ok(promise.result(scope)),
                v8::PromiseState::Rejected => {
                    let reason = promise.result(scope);
                    return Err(self.failed(scope, Some(reason), None));
                }
                v8::PromiseState::Pending => self.turn(scope)?,
            }
        }
    }

    /// Waits for the next timer and fires it.
    fn turn(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Result<(), Ended> {
        let state = scope.get_slot_mut::<RunState>().ok_or(Ended::Terminated)?;
        state.log.flush();
        let Some(due) = state.timers.next() else {
            let message = "a promise that the run waits for never settled, and no timer is left that could settle it";
            return Err(Ended::Failed(ScriptError {
                name: "Error".to_owned(),
                message: message.to_owned(),
                stack: None,
            }));
        };
        // Timers that are due by the clock as it stands take no new look at it.
        if due.not_before_ms > self.clock.now_ms() {
            let (until, lag) = self.clock.wait_for(due.not_before_ms);
            if self.watched.sleep_until(until).is_some() {
                return Err(Ended::Terminated);
            }
            self.clock.look(lag);
            quota::begin_turn();
            state.log.t_ms = u32::try_from(self.clock.now_ms() - self.begun_ms).unwrap_or(u32::MAX);
        }
        if let Some(number) = state.timers.fire(self.clock.now_ms()) {
            v8::tc_scope!(let caught, scope);
            let fire = v8::Local::new(caught, &self.fire_timer);
            let undefined = v8::undefined(caught).into();
            let number = v8::Integer::new_from_unsigned(caught, number).into();
            // A callback that throws ends the run, as an uncaught exception does.
            if fire.call(caught, undefined, &[number]).is_none() {
                let exception = caught.exception();
                caught.reset();
                return Err(self.failed(caught, exception, None));
            }
        }
        Ok(())
    }

    /// Rejections that nobody has handled by the end of a turn become lines of the log.
    fn report_rejections(&mut self, scope: &mut v8::PinScope<'_, '_>) {
        let Some(state) = scope.get_slot_mut::<RunState>() else { return };
        for (_, reason) in std::mem::take(&mut state.rejections) {
            let reason = reason.map(|reason| v8::Local::new(scope, reason));
            let Ended::Failed(error) = self.failed(scope, reason, None) else { return };
            let text = format!("Uncaught (in promise) {}", error.stack.unwrap_or(error.message));
            if let Some(state) = scope.get_slot_mut::<RunState>()
                && let Some(room) = state.log.room()
            {
                let end = text.floor_char_boundary(room);
                let whole = end == text.len();
                state.log.line(Level::Error, text[..end].to_owned(), whole);
            }
        }
    }

    /// What was thrown, described by the runtime. `position` is where, for errors that have no stack of their own.
    fn failed(
        &mut self,
        scope: &mut v8::PinScope<'_, '_>,
        exception: Option<v8::Local<'_, v8::Value>>,
        position: Option<String>,
    ) -> Ended {
        if self.watched.cause().is_some() {
            return Ended::Terminated;
        }
        let Some(exception) = exception else { return Ended::Terminated };
        v8::tc_scope!(let caught, scope);
        let described = (|| {
            let describe = v8::Local::new(caught, &self.describe);
            let undefined = v8::undefined(caught).into();
            let parts = describe.call(caught, undefined, &[exception])?.try_cast::<v8::Array>().ok()?;
            let part = |index| {
                let text = parts.get_index(caught, index)?.try_cast::<v8::String>().ok()?;
                Some(bounded_text(caught, text, MAX_ERROR_BYTES).0)
            };
            Some((part(0)?, part(1)?, part(2)?))
        })();
        match described {
            Some((name, message, stack)) => {
                let stack = clean_stack(&stack, position.as_deref());
                Ended::Failed(ScriptError { name, message, stack: Some(stack) })
            }
            None if self.watched.cause().is_some() => Ended::Terminated,
            None => Ended::Failed(ScriptError {
                name: "Error".to_owned(),
                message: "the script threw something that cannot be described".to_owned(),
                stack: None,
            }),
        }
    }
}

/// Whether a linked module exports nothing. Names only: before evaluation there are no values to ask for.
fn exports_nothing(scope: &mut v8::PinScope<'_, '_>, module: v8::Local<'_, v8::Module>) -> bool {
    let names = v8::GetPropertyNamesArgs {
        property_filter: v8::PropertyFilter::SKIP_SYMBOLS,
        ..v8::GetPropertyNamesArgs::default()
    };
    let namespace = module.get_module_namespace().try_cast::<v8::Object>().ok();
    namespace
        .and_then(|namespace| namespace.get_own_property_names(scope, names))
        .is_some_and(|names| names.length() == 0)
}

/// `file:line:column` of a compile error.
fn position(scope: &v8::PinScope<'_, '_>, message: v8::Local<'_, v8::Message>) -> Option<String> {
    // Errors of linking have no position of their own.
    let file = message.get_script_resource_name(scope).filter(|name| name.is_string())?;
    let line = message.get_line_number(scope).unwrap_or(0);
    Some(format!("{}:{line}:{}", file.to_rust_string_lossy(scope), message.get_start_column().wrapping_add(1)))
}

/// A stack in the tenant's own files: without the runtime's frames, and with the position of a compile error.
fn clean_stack(stack: &str, position: Option<&str>) -> String {
    let mut lines: Vec<_> = stack.lines().filter(|line| !is_of_runtime(line)).map(str::to_owned).collect();
    if let Some(position) = position
        && !lines.iter().any(|line| line.trim_start().starts_with("at "))
    {
        lines.push(format!("    at {position}"));
    }
    lines.join("\n")
}

/// Whether a line of a stack is a frame of the runtime's: its position is
/// `enisle:runtime:LINE:COLUMN`, by itself or in parentheses at the end. What else has that name in
/// it, a message or a longer name of a module, is the tenant's.
fn is_of_runtime(line: &str) -> bool {
    let Some(frame) = line.trim_start().strip_prefix("at ") else { return false };
    let position = match frame.strip_suffix(')').and_then(|frame| frame.rsplit_once('(')) {
        Some((_, position)) => position,
        None => frame.strip_prefix("async ").unwrap_or(frame),
    };
    let numbers = position.strip_prefix(RUNTIME_NAME).and_then(|rest| rest.strip_prefix(':'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once(':'))
        .is_some_and(|(line, column)| is_number(line) && is_number(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_does_not_show_in_a_stack() {
        let stack = "Error: x\n    at run (main.js:1:2)\n    at invoke (enisle:runtime:3:4)";
        assert_eq!(clean_stack(stack, None), "Error: x\n    at run (main.js:1:2)");
        for frame in
            ["    at enisle:runtime:3:4", "    at async enisle:runtime:3:4", "    at async f (enisle:runtime:3:4)"]
        {
            assert_eq!(clean_stack(&format!("Error: x\n{frame}"), None), "Error: x");
        }
    }

    #[test]
    fn what_a_tenant_says_about_the_runtime_stays_in_its_stack() {
        for stack in [
            "Error: enisle:runtime is not my module",
            "Error: see\nenisle:runtime:3:4",
            "Error: x\n    at f (my-enisle:runtime:1:2)",
            "Error: x\n    at f (enisle:runtime.js:1:2)",
            "Error: x\n    at enisle:runtime (main.js:1:2)",
            "Error: x\n    at f (enisle:runtime:1:1) (main.js:1:2)",
            "Error: x\n    at f (a (enisle:runtime:1:1):3:4)",
        ] {
            assert_eq!(clean_stack(stack, None), stack);
        }
    }

    #[test]
    fn a_compile_error_gets_its_position() {
        assert_eq!(clean_stack("SyntaxError: bad", Some("a.js:2:3")), "SyntaxError: bad\n    at a.js:2:3");
    }
}
