//! One run, from its frame to its end: it enters a resting isolate, is executed there, and leaves
//! it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enisle_wire::limits::Limits;
use enisle_wire::tenant::{Done, Env, Input, Run, RunId, Usage};

use super::clock::Clock;
use super::describe::Describer;
use super::event_loop::EventLoop;
use super::outcome::{Ended, conclude};
use super::script::{Entry, Script};
use super::state::{Begun, Left, Source, State};
use crate::engine::isolate::resting::Resting;
use crate::engine::isolate::shelf::Evaluated;
use crate::engine::last_words::{forget_last_words, remember_last_words};
use crate::engine::memory::heap_limit::{HeapWatch, look_at_memory, near_heap_limit};
use crate::engine::memory::{account, quota};
use crate::engine::natives::console::Log;
use crate::engine::natives::timers::Timers;
use crate::watchdog::{Cause, Watched};

/// One run, without its code.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) run: Run,
    pub(crate) input: Input,
    pub(crate) env: Env,
}

/// Executes one run. `arrived` is the moment at which the whole run had been read. Also returns the
/// state for the script's next run, if this run's isolate is to be kept and nothing ended the run.
pub(crate) fn execute(
    resting: &mut Resting<'_>,
    source: Source,
    Order { run, input, env }: Order,
    watched: &Arc<Watched>,
    channel: &Arc<UnixStream>,
    clock: &mut Clock,
    arrived: Instant,
) -> (Done, Option<Evaluated>) {
    let (id, limits) = (run.id, run.limits);
    let begun = watched.clock().now();
    remember_last_words(channel, id);
    quota::set_limit((limits.memory_mb as usize) << 20);
    clock.begin_run();
    let short = source.is_short();
    let log = Log::new(Arc::clone(channel), &limits);
    let timers = Timers::new(limits.timers, clock.now_ms());
    let Begun { state, main, exports } = source.begin(log, timers, &resting.runtime.worker_entrypoint);
    let entry =
        Entry { entrypoint: run.entrypoint, method: run.method, args: input.args, env: env.json, props: input.props };
    let events = EventLoop {
        describer: Describer { watched, describe: resting.runtime.describe.clone() },
        begun_ms: clock.now_ms(),
        clock,
        fire_timer: resting.runtime.fire_timer.clone(),
    };
    let context = resting.context.clone();
    let mut script = Script {
        events,
        main,
        short,
        entry,
        allow_eval: run.allow_eval,
        output_cap: limits.output_bytes as usize,
        invoke: resting.runtime.invoke.clone(),
        forget_timers: resting.runtime.forget_timers.clone(),
        exports,
        arrived,
        startup: Duration::ZERO,
    };
    let (ended, heap, state) = resting.entered(|isolate| {
        state.enter(isolate, watched);
        let ended = limited(isolate, watched, id, &limits, |isolate| in_context(isolate, &context, &mut script));
        (ended, isolate.get_heap_statistics().total_heap_size(), State::leave(isolate))
    });
    let cause = watched.disarm();
    forget_last_words();
    let (outcome, result, error) = conclude(ended, cause, &limits);
    let exports = script.exports.filter(|_| run.keep.is_some() && cause.is_none());
    let Left { advice, truncated, evaluated } = Left::of(state, exports, heap);
    let usage = Usage {
        cpu_us: micros(watched.clock().now().saturating_sub(begun)),
        startup_us: micros(script.startup),
        peak_heap_bytes: (heap + account::used_outside_heaps()) as u64,
        // Set when the end of the run is sent.
        wall_us: 0,
    };
    (Done { id, outcome, result, error, truncated, usage, advice }, evaluated)
}

fn in_context(isolate: &mut v8::OwnedIsolate, context: &v8::Global<v8::Context>, script: &mut Script<'_>) -> Ended {
    v8::scope!(let scope, isolate);
    let context = v8::Local::new(scope, context);
    context.set_allow_generation_from_strings(script.allow_eval);
    let scope = &mut v8::ContextScope::new(scope, context);
    #[cfg(feature = "attack-natives")]
    crate::engine::attack::arm(scope, &script.entry.props, script.events.clock.epoch());
    script.run(scope)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Does `work`, and meanwhile enforces the run's limits of time and memory.
fn limited(
    isolate: &mut v8::OwnedIsolate,
    watched: &Watched,
    id: RunId,
    limits: &Limits,
    work: impl FnOnce(&mut v8::OwnedIsolate) -> Ended,
) -> Ended {
    // SAFETY: the pointer is used only while the isolate lives, by the callback below.
    let watch = HeapWatch { watched, isolate: unsafe { isolate.as_raw_isolate_ptr() } };
    isolate.add_near_heap_limit_callback(near_heap_limit, std::ptr::from_ref(&watch).cast_mut().cast());
    let handle = isolate.thread_safe_handle();
    watched.arm(id, limits, handle.clone());
    let held = quota::hold(&handle, look_at_memory);
    let ended = if quota::is_over() {
        // The code and the arguments alone exceed the limit.
        watched.end(Cause::Memory);
        Ended::Terminated
    } else {
        work(isolate)
    };
    drop(held);
    isolate.remove_near_heap_limit_callback(near_heap_limit, 0);
    ended
}
