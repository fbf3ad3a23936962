//! Makes and maps the startup snapshot: a context with the runtime in it, as bytes that every
//! tenant's isolates start from.
//!
//! At every start of the supervisor, a jailed worker that holds no tenant makes the snapshot. So
//! the snapshot always fits the build that reads it, and no file must be trusted.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use memmap2::Mmap;

use crate::engine::memory::date_patterns;
use crate::engine::natives::{registry, runtime};

/// The index of the runtime's object in the context's data.
pub(super) const RUNTIME_INDEX: usize = 0;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("the runtime does not run: {0}")]
    Runtime(String),
    #[error("V8 made no snapshot")]
    Blob,
    #[error("V8's cache of date patterns was not found, and would have no bound")]
    DatePatterns,
}

/// Maps what [`make_for_hosts`] made, for the life of the process. Returns the snapshot.
pub(crate) fn map(descriptor: OwnedFd) -> io::Result<&'static [u8]> {
    let file = File::from(descriptor);
    // SAFETY: the supervisor has added the memfd's seals against writing and resizing before it
    // sent the descriptor, so the bytes never change under the map.
    let map = unsafe { Mmap::map(&file) }?;
    let map: &'static Mmap = Box::leak(Box::new(map));
    let (snapshot, cache) = map.split_last_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    date_patterns::know_cache(usize::from_ne_bytes(*cache));
    Ok(snapshot)
}

/// Makes the snapshot, followed by what a host must know of V8 and the maker has seen.
pub(crate) fn make_for_hosts() -> Result<Vec<u8>, SnapshotError> {
    let cache = date_patterns::cache().ok_or(SnapshotError::DatePatterns)?;
    let mut made = make()?;
    made.extend(cache.to_ne_bytes());
    Ok(made)
}

/// Makes the snapshot on the calling thread, in V8's default group, which no tenant uses.
pub(crate) fn make() -> Result<Vec<u8>, SnapshotError> {
    let mut isolate = v8::Isolate::snapshot_creator(Some(registry::external_references().into()), None);
    let made = {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let scope = &mut v8::ContextScope::new(scope, context);
        let made = install_runtime(scope);
        remove_globals(scope, context);
        scope.set_default_context(context);
        made
    };
    // The blob is made even after a failure, because a snapshot creator panics if it is dropped
    // without one.
    let blob = isolate.create_blob(v8::FunctionCodeHandling::Keep);
    made?;
    Ok(blob.ok_or(SnapshotError::Blob)?.to_vec())
}

/// Does once what a run does: V8 compiles a function when it is first called, and a snapshot keeps
/// the compiled code. Each run sets anew what the exercise changes in the runtime's own state.
const EXERCISE: &str = "(async (invoke, describe, WorkerEntrypoint) => {
    class Entry extends WorkerEntrypoint { run(x) { return { x, list: [1, 'a', null, true, undefined], env: this.env } } }
    const modules = [{ default: { async run() { console.log('a', 1, { b: [2] }); return { c: 3 } } } },
                     { default: () => 4 }, { default: Entry }, { default: async () => new Date(5) }];
    for (const module of modules) await invoke(module, 'default', undefined, '[1]', '{\"e\":1}', '{}');
    for (const wrong of [{ default: 1 }, {}, { default: () => 5n }, { default: { run() { throw new TypeError('x') } } }])
      await invoke(wrong, 'default', undefined, '[]', '{}', '{}').catch(describe);
    structuredClone({ a: [1, new Map(), new Set(), new Date(0)] });
    atob(btoa('exercise'));
    return 'done';
})";

fn exercise(scope: &mut v8::PinScope<'_, '_>, api: v8::Local<'_, v8::Object>) -> Option<()> {
    let source = v8::String::new(scope, EXERCISE)?;
    let function = v8::Script::compile(scope, source, None)?.run(scope)?.try_cast::<v8::Function>().ok()?;
    let mut arguments = Vec::new();
    for name in ["invoke", "describe", "WorkerEntrypoint"] {
        let name = v8::String::new(scope, name)?.into();
        arguments.push(api.get(scope, name)?);
    }
    let undefined = v8::undefined(scope).into();
    let promise = function.call(scope, undefined, &arguments)?.try_cast::<v8::Promise>().ok()?;
    scope.perform_microtask_checkpoint();
    (promise.state() == v8::PromiseState::Fulfilled).then_some(())
}

/// Globals of V8 that scripts do not get: a script never has a second thread to share memory with.
/// WebAssembly is not listed, because V8 does not set it up (`--no-expose-wasm`).
const NOT_FOR_TENANTS: &[&str] = &["SharedArrayBuffer", "Atomics"];

fn remove_globals(scope: &mut v8::PinScope<'_, '_>, context: v8::Local<'_, v8::Context>) {
    let global = context.global(scope);
    for name in NOT_FOR_TENANTS {
        if let Some(name) = v8::String::new(scope, name) {
            global.delete(scope, name.into());
        }
    }
}

fn install_runtime(scope: &mut v8::PinScope<'_, '_>) -> Result<(), SnapshotError> {
    v8::tc_scope!(let scope, scope);
    let api = (|| {
        let source = v8::String::new_from_onebyte_const(scope, &runtime::SOURCE)?;
        let name = v8::String::new(scope, runtime::NAME)?.into();
        let origin = v8::ScriptOrigin::new(scope, name, 0, 0, false, 0, None, false, false, false, None);
        let function =
            v8::Script::compile(scope, source, Some(&origin))?.run(scope)?.try_cast::<v8::Function>().ok()?;
        let natives = registry::object(scope)?;
        let undefined = v8::undefined(scope).into();
        function.call(scope, undefined, &[natives.into()])?.try_cast::<v8::Object>().ok()
    })();
    let Some(api) = api else {
        let why = scope.message().map(|message| {
            let line = message.get_line_number(scope).unwrap_or(0);
            format!("{} (line {line})", message.get(scope).to_rust_string_lossy(scope))
        });
        return Err(SnapshotError::Runtime(why.unwrap_or_else(|| "no message".to_owned())));
    };
    exercise(scope, api).ok_or_else(|| SnapshotError::Runtime("its exercise failed".to_owned()))?;
    let context = scope.get_current_context();
    let index = scope.add_context_data(context, api);
    debug_assert_eq!(index, RUNTIME_INDEX, "the first datum of a context has index 0");
    Ok(())
}
