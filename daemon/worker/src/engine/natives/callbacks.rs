//! V8's callbacks to its embedder: permissions, and exceptions that a script did not handle.

use enisle_wire::tenant::Advice;

use crate::engine::memory::confinement;

/// What a run has thrown and not caught so far.
#[derive(Debug, Default)]
pub(in crate::engine) struct Failures {
    pub(in crate::engine) rejections: Vec<(v8::Global<v8::Promise>, Option<v8::Global<v8::Value>>)>,
    /// Thrown by a microtask, where nothing could catch it. It ends the run, as an exception in a
    /// timer's callback does.
    pub(in crate::engine) uncaught: Option<v8::Global<v8::Value>>,
}

const MAX_REJECTIONS: usize = 100;

/// V8 reports a rejection without a handler, and again if a handler is added later.
pub(in crate::engine) unsafe extern "C" fn promise_rejected(message: v8::PromiseRejectMessage<'_>) {
    confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `message`.
    v8::callback_scope!(unsafe scope, &message);
    v8::scope!(let scope, scope);
    let promise = v8::Global::new(scope, message.get_promise());
    let value = message.get_value().map(|value| v8::Global::new(scope, value));
    let Some(failures) = scope.get_slot_mut::<Failures>() else { return };
    match message.get_event() {
        // Handles do not count against the heap limit, so their number is bounded. A thousand
        // identical warnings would be of no use either.
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler if failures.rejections.len() < MAX_REJECTIONS => {
            failures.rejections.push((promise, value));
        }
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler => {}
        v8::PromiseRejectEvent::PromiseHandlerAddedAfterReject => {
            failures.rejections.retain(|(known, _)| *known != promise)
        }
        v8::PromiseRejectEvent::PromiseRejectAfterResolved | v8::PromiseRejectEvent::PromiseResolveAfterResolved => {}
    }
}

/// V8 reports an exception that nothing on the stack could catch: one that a microtask threw.
pub(in crate::engine) unsafe extern "C" fn uncaught(
    message: v8::Local<'_, v8::Message>,
    exception: v8::Local<'_, v8::Value>,
) {
    confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `message`.
    v8::callback_scope!(unsafe scope, message);
    let exception = v8::Global::new(scope, exception);
    if let Some(failures) = scope.get_slot_mut::<Failures>() {
        failures.uncaught.get_or_insert(exception);
    }
}

/// Whether WebAssembly code may be made: only in the attack harness's build. In other builds V8
/// does not even set up the global `WebAssembly` (`--no-expose-wasm`), and this callback is the
/// second barrier.
pub(in crate::engine) unsafe extern "C" fn allow_wasm(
    _: v8::Local<'_, v8::Context>,
    _: v8::Local<'_, v8::String>,
) -> bool {
    confinement::edge();
    cfg!(feature = "attack-natives")
}

/// Called when a script makes code from a string in a context that does not allow it. Refuses, and
/// counts the attempt.
pub(in crate::engine) fn no_code_from_strings<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _: v8::Local<'s, v8::Value>,
    _: bool,
) -> v8::ModifyCodeGenerationFromStringsResult<'s> {
    confinement::edge();
    if let Some(advice) = scope.get_slot_mut::<Advice>() {
        advice.code = advice.code.saturating_add(1);
    }
    v8::ModifyCodeGenerationFromStringsResult { codegen_allowed: false, modified_source: None }
}
