//! V8's own questions to its embedder, and what it tells us of.

use enisle_wire::tenant::Advice;

use crate::engine::memory::confinement;

/// What a run has thrown that nobody has caught, by now.
#[derive(Debug, Default)]
pub(in crate::engine) struct Failures {
    pub(in crate::engine) rejections: Vec<(v8::Global<v8::Promise>, Option<v8::Global<v8::Value>>)>,
    /// What a microtask threw that nobody could catch: it ends the run, as what a timer throws
    /// does.
    pub(in crate::engine) uncaught: Option<v8::Global<v8::Value>>,
}

const MAX_REJECTIONS: usize = 100;

/// V8 tells of a rejection that nobody handles, and again if somebody does later.
pub(in crate::engine) unsafe extern "C" fn promise_rejected(message: v8::PromiseRejectMessage<'_>) {
    confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `message`.
    v8::callback_scope!(unsafe scope, &message);
    v8::scope!(let scope, scope);
    let promise = v8::Global::new(scope, message.get_promise());
    let value = message.get_value().map(|value| v8::Global::new(scope, value));
    let Some(failures) = scope.get_slot_mut::<Failures>() else { return };
    match message.get_event() {
        // Handles lie outside the heap limit, so their number is bounded; nobody reads a thousand
        // of the same warning.
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

/// V8 tells of an exception that nothing on the stack could catch: one that a microtask threw.
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

/// Whether code of WebAssembly may be made: in builds for attacks alone. In all others V8 does not
/// even set its global up (`--no-expose-wasm`), and this stands behind that.
pub(in crate::engine) unsafe extern "C" fn allow_wasm(
    _: v8::Local<'_, v8::Context>,
    _: v8::Local<'_, v8::String>,
) -> bool {
    confinement::edge();
    cfg!(feature = "attack-natives")
}

/// Code from strings, in a context that does not allow it: refused, and counted.
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
