//! A resting isolate: made from the snapshot, with its context, and entered only while a run is in
//! it.
//!
//! V8 keeps a stack of entered isolates for each thread. Resting isolates are not on that stack, so
//! isolates can be made and disposed of in any order. The next one is made before the last one is
//! disposed of, which keeps the cage's shared parts alive between runs.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use super::snapshot::RUNTIME_INDEX;
use crate::engine::memory::cage::Entered;
use crate::engine::natives::{callbacks, registry};
use crate::engine::{last_words, modules};

/// The bytes of the startup snapshot: mapped once per process, read-only, never unmapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot(pub(crate) &'static [u8]);

/// What the worker uses of the runtime in the snapshot.
pub(in crate::engine) struct Runtime {
    pub(in crate::engine) invoke: v8::Global<v8::Function>,
    pub(in crate::engine) fire_timer: v8::Global<v8::Function>,
    pub(in crate::engine) forget_timers: v8::Global<v8::Function>,
    pub(in crate::engine) describe: v8::Global<v8::Function>,
    pub(in crate::engine) worker_entrypoint: v8::Global<v8::Value>,
}

/// A resting isolate in the cage of the calling thread. It cannot outlive the cage.
pub(crate) struct Resting<'cage> {
    /// Dropped manually, because V8 requires that the isolate is entered exactly once at that
    /// moment.
    isolate: ManuallyDrop<v8::OwnedIsolate>,
    pub(in crate::engine) context: v8::Global<v8::Context>,
    pub(in crate::engine) runtime: Runtime,
    pub(crate) memory_mb: u32,
    _cage: PhantomData<&'cage Entered>,
}

impl fmt::Debug for Resting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resting").field("memory_mb", &self.memory_mb).finish_non_exhaustive()
    }
}

/// The snapshot lacks something that this worker needs: it was made by another build.
#[derive(Debug, thiserror::Error)]
#[error("the startup snapshot lacks {0}: it was made by another build of the worker")]
pub(crate) struct SnapshotMismatch(&'static str);

impl<'cage> Resting<'cage> {
    /// Makes an isolate in the calling thread's cage. That takes one to two milliseconds, so the
    /// thread makes it ahead of the run.
    pub(crate) fn new(_: &'cage Entered, snapshot: Snapshot, memory_mb: u32) -> Result<Self, SnapshotMismatch> {
        let params = v8::CreateParams::default()
            .snapshot_blob(v8::StartupData::from(snapshot.0))
            .external_references(registry::external_references().into())
            .heap_limits(0, (memory_mb as usize) << 20)
            .allow_atomics_wait(false);
        let mut isolate = v8::Isolate::new(params);
        isolate.set_microtasks_policy(v8::MicrotasksPolicy::Explicit);
        // Without a listener V8 prints uncaught exceptions, to a standard output that a worker does
        // not have.
        isolate.add_message_listener(callbacks::uncaught);
        isolate.set_promise_reject_callback(callbacks::promise_rejected);
        isolate.set_host_import_module_dynamically_callback(modules::import_dynamically);
        isolate.set_allow_wasm_code_generation_callback(callbacks::allow_wasm);
        isolate.set_modify_code_generation_from_strings_callback(callbacks::no_code_from_strings);
        isolate.set_oom_error_handler(last_words::out_of_memory);
        let parts = {
            v8::scope!(let scope, &mut isolate);
            let context = v8::Context::new(scope, v8::ContextOptions::default());
            let scope = &mut v8::ContextScope::new(scope, context);
            runtime_of(scope).map(|runtime| (v8::Global::new(scope, context), runtime))
        };
        // SAFETY: `v8::Isolate::new` has entered it once, and no scope is open.
        unsafe { isolate.exit() };
        let isolate = ManuallyDrop::new(isolate);
        match parts {
            Ok((context, runtime)) => Ok(Self { isolate, context, runtime, memory_mb, _cage: PhantomData }),
            Err(mismatch) => {
                dispose(isolate);
                Err(mismatch)
            }
        }
    }

    /// Makes an isolate that has already run something, so that V8's preparations for the first
    /// compilation and call are done, and the pages that a run touches first are mapped. Fails if
    /// not even that code runs.
    pub(crate) fn warm(cage: &'cage Entered, snapshot: Snapshot, memory_mb: u32) -> Result<Self, SnapshotMismatch> {
        let mut isolate = Self::new(cage, snapshot, memory_mb)?;
        isolate.prime().ok_or(SnapshotMismatch("a runtime that runs"))?;
        Ok(isolate)
    }

    fn prime(&mut self) -> Option<()> {
        let (context, invoke) = (self.context.clone(), self.runtime.invoke.clone());
        self.entered(|isolate| {
            v8::scope!(let scope, isolate);
            let context = v8::Local::new(scope, &context);
            let scope = &mut v8::ContextScope::new(scope, context);
            let exports = evaluate(scope, "export default () => 0")?;
            let text = |text: &str| v8::String::new(scope, text).map(Into::into);
            let undefined = v8::undefined(scope).into();
            let arguments = [exports.into(), text("default")?, undefined, text("[0]")?, text("{}")?, text("{}")?];
            let invoke = v8::Local::new(scope, &invoke);
            invoke.call(scope, undefined, &arguments)?;
            scope.perform_microtask_checkpoint();
            Some(())
        })
    }

    /// Compiles and evaluates a module without imports, and calls its default export, without the
    /// limits and the channel of a run.
    pub(crate) fn call_default_export(&mut self, script: &str) -> Option<()> {
        let context = self.context.clone();
        self.entered(|isolate| {
            v8::scope!(let scope, isolate);
            let context = v8::Local::new(scope, &context);
            let scope = &mut v8::ContextScope::new(scope, context);
            let exports = evaluate(scope, script)?;
            let key = v8::String::new(scope, "default")?.into();
            let entry = exports.get(scope, key)?;
            let undefined = v8::undefined(scope).into();
            entry.try_cast::<v8::Function>().ok()?.call(scope, undefined, &[]).map(drop)
        })
    }

    /// Collects garbage. Returns how many bytes the heap takes afterwards.
    pub(super) fn collect(&mut self) -> usize {
        self.entered(|isolate| {
            isolate.memory_pressure_notification(v8::MemoryPressureLevel::Critical);
            isolate.get_heap_statistics().total_heap_size()
        })
    }

    /// Enters the isolate for the duration of `work`.
    pub(in crate::engine) fn entered<T>(&mut self, work: impl FnOnce(&mut v8::OwnedIsolate) -> T) -> T {
        // SAFETY: this thread made the isolate, and it is at rest; the exit below matches.
        unsafe { self.isolate.enter() };
        let result = work(&mut self.isolate);
        // SAFETY: `work` has closed its scopes when it returns; a panic in it ends the process.
        unsafe { self.isolate.exit() };
        result
    }
}

/// The exports of a module without imports.
fn evaluate<'s>(scope: &mut v8::PinScope<'s, '_>, source: &str) -> Option<v8::Local<'s, v8::Object>> {
    let (source, name) = (v8::String::new(scope, source)?, v8::String::new(scope, "main.js")?);
    let origin = v8::ScriptOrigin::new(scope, name.into(), 0, 0, false, 0, None, false, false, true, None);
    let mut source = v8::script_compiler::Source::new(source, Some(&origin));
    let module = v8::script_compiler::compile_module(scope, &mut source)?;
    module.instantiate_module(scope, modules::resolve)?;
    module.evaluate(scope)?;
    module.get_module_namespace().try_cast::<v8::Object>().ok()
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        // SAFETY: the isolate is taken once, here, and the field is not used again.
        dispose(ManuallyDrop::new(unsafe { ManuallyDrop::take(&mut self.isolate) }));
    }
}

fn dispose(isolate: ManuallyDrop<v8::OwnedIsolate>) {
    // SAFETY: the isolate is at rest, and its own Drop exits it again.
    unsafe { isolate.enter() };
    drop(ManuallyDrop::into_inner(isolate));
}

fn runtime_of(scope: &mut v8::PinScope<'_, '_>) -> Result<Runtime, SnapshotMismatch> {
    let api: v8::Local<'_, v8::Object> =
        scope.get_context_data_from_snapshot_once(RUNTIME_INDEX).map_err(|_| SnapshotMismatch("the runtime"))?;
    let value = |name: &'static str| {
        let key = v8::String::new(scope, name).ok_or(SnapshotMismatch(name))?;
        api.get(scope, key.into()).ok_or(SnapshotMismatch(name)).map(|value| (value, name))
    };
    let (invoke, fire_timer, forget_timers) = (value("invoke")?, value("fireTimer")?, value("forgetTimers")?);
    let (describe, worker_entrypoint) = (value("describe")?, value("WorkerEntrypoint")?);
    let function = |(value, name): (v8::Local<'_, v8::Value>, _)| {
        let function = value.try_cast::<v8::Function>().map_err(|_| SnapshotMismatch(name))?;
        Ok(v8::Global::new(scope, function))
    };
    Ok(Runtime {
        invoke: function(invoke)?,
        fire_timer: function(fire_timer)?,
        forget_timers: function(forget_timers)?,
        describe: function(describe)?,
        worker_entrypoint: v8::Global::new(scope, worker_entrypoint.0),
    })
}
