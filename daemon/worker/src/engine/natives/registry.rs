//! The functions that the runtime calls, and V8's own questions to its embedder.
//!
//! A native reads all its arguments before it does anything, never calls back into the script, and never keeps a pointer
//! into V8's memory. None of them has more authority than the script: it can print, ask for a timer, and compute.

use enisle_wire::tenant::Level;
use v8::MapFnTo;

use super::run::RunState;
use super::{bounded_text, fill_random, quota};

/// A native with its name in the runtime.
macro_rules! natives {
    ($($name:literal => $function:ident),* $(,)?) => {
        /// The addresses of all natives: part of a snapshot, so the order is the same in every process of this build.
        pub(super) fn external_references() -> Vec<v8::ExternalReference> {
            let source = &raw const super::snapshot::RUNTIME_SOURCE;
            vec![
                $(v8::ExternalReference { function: edged::$function.map_fn_to() },)*
                v8::ExternalReference { pointer: source.cast_mut().cast() },
            ]
        }

        /// The object that the runtime is called with.
        pub(super) fn object<'s>(scope: &mut v8::PinScope<'s, '_>) -> Option<v8::Local<'s, v8::Object>> {
            let object = v8::Object::new(scope);
            $(
                let name = v8::String::new(scope, $name)?;
                let function = v8::Function::builder(edged::$function)
                    .constructor_behavior(v8::ConstructorBehavior::Throw)
                    .build(scope)?;
                object.set(scope, name.into(), function.into())?;
            )*
            Some(object)
        }

        /// The natives as V8 calls them: with a look at the thread's keys on either side.
        mod edged {
            use super::super::confinement::edge;

            $(
                pub(super) fn $function<'s>(
                    scope: &mut v8::PinScope<'s, '_>,
                    args: v8::FunctionCallbackArguments<'s>,
                    result: v8::ReturnValue<'s>,
                ) {
                    edge();
                    super::$function(scope, args, result);
                    edge();
                }
            )*
        }
    };
}

natives! {
    "print" => print,
    "timerStart" => timer_start,
    "timerAgain" => timer_again,
    "timerStop" => timer_stop,
    "microtask" => microtask,
    "encodeUtf8" => encode_utf8,
    "decodeUtf8" => decode_utf8,
    "latin1Bytes" => latin1_bytes,
    "latin1Text" => latin1_text,
    "random" => random,
}

fn throw_range_error(scope: &mut v8::PinScope<'_, '_>, text: &str) {
    if let Some(text) = v8::String::new(scope, text) {
        let error = v8::Exception::range_error(scope, text);
        scope.throw_exception(error);
    }
}

fn throw_type_error(scope: &mut v8::PinScope<'_, '_>, text: &str) {
    if let Some(text) = v8::String::new(scope, text) {
        let error = v8::Exception::type_error(scope, text);
        scope.throw_exception(error);
    }
}

fn print<'s>(scope: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, _: v8::ReturnValue<'s>) {
    let level = match args.get(0).uint32_value(scope) {
        Some(0) => Level::Debug,
        Some(2) => Level::Info,
        Some(3) => Level::Warn,
        Some(4) => Level::Error,
        _ => Level::Log,
    };
    let Ok(text) = args.get(1).try_cast::<v8::String>() else { return };
    let Some(room) = scope.get_slot_mut::<RunState>().and_then(|state| state.log.room()) else { return };
    let (text, whole) = bounded_text(scope, text, room);
    if let Some(state) = scope.get_slot_mut::<RunState>() {
        state.log.line(level, text, whole);
    }
}

/// A delay in whole milliseconds, as the runtime has truncated it.
fn delay_ms(scope: &mut v8::PinScope<'_, '_>, value: v8::Local<'_, v8::Value>) -> u32 {
    value.uint32_value(scope).unwrap_or(1)
}

fn timer_start<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let delay_ms = delay_ms(scope, args.get(0));
    let Some(state) = scope.get_slot_mut::<RunState>() else { return };
    let limit = state.timers.limit();
    match state.timers.start(delay_ms) {
        Some(number) => rv.set_uint32(number),
        None => {
            state.advice.timers = state.advice.timers.saturating_add(1);
            throw_range_error(scope, &format!("{limit} timers are pending, which is this run's limit (limits.timers)"))
        }
    }
}

fn timer_again<'s>(scope: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, _: v8::ReturnValue<'s>) {
    let (number, delay_ms) = (args.get(0).uint32_value(scope), delay_ms(scope, args.get(1)));
    if let (Some(number), Some(state)) = (number, scope.get_slot_mut::<RunState>()) {
        state.timers.again(number, delay_ms);
    }
}

fn timer_stop<'s>(scope: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, _: v8::ReturnValue<'s>) {
    let number = args.get(0).uint32_value(scope);
    if let (Some(number), Some(state)) = (number, scope.get_slot_mut::<RunState>()) {
        state.timers.stop(number);
    }
}

fn microtask<'s>(scope: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, _: v8::ReturnValue<'s>) {
    if let Ok(function) = args.get(0).try_cast::<v8::Function>() {
        scope.enqueue_microtask(function);
    }
}

fn encode_utf8<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(text) = args.get(0).try_cast::<v8::String>() else { return };
    let length = text.utf8_length(scope);
    fill_buffer(scope, length, &mut rv, |scope, bytes| {
        text.write_utf8_v2(scope, bytes, v8::WriteFlags::kReplaceInvalidUtf8, None);
    });
}

fn decode_utf8<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let (fatal, keep_bom) = (args.get(1).is_true(), args.get(2).is_true());
    let Some(bytes) = bytes_of(scope, view) else { return };
    if fatal && std::str::from_utf8(&bytes).is_err() {
        return throw_type_error(scope, "the bytes are not UTF-8");
    }
    let text = if keep_bom { &bytes[..] } else { bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes) };
    // Each byte is a UTF-16 unit at the most.
    if !text.is_ascii() && text.len() > quota::left() / 2 {
        return throw_range_error(scope, "the text does not fit the run's memory beside its bytes (limits.memoryMb)");
    }
    match v8::String::new_from_utf8(scope, text, v8::NewStringType::Normal) {
        Some(text) => rv.set(text.into()),
        None => throw_range_error(scope, "the text is longer than a string can be"),
    }
}

/// The characters of a text as bytes; `undefined` if one is over U+00FF.
fn latin1_bytes<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(text) = args.get(0).try_cast::<v8::String>() else { return };
    if !text.contains_only_onebyte() {
        return;
    }
    fill_buffer(scope, text.length(), &mut rv, |scope, bytes| {
        text.write_one_byte_v2(scope, 0, bytes, v8::WriteFlags::empty());
    });
}

/// The reverse.
fn latin1_text<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let Some(bytes) = bytes_of(scope, view) else { return };
    match v8::String::new_from_one_byte(scope, &bytes, v8::NewStringType::Normal) {
        Some(text) => rv.set(text.into()),
        None => throw_range_error(scope, "the text is longer than a string can be"),
    }
}

/// Returns a new `Uint8Array` of so many bytes, which `fill` writes.
fn fill_buffer<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    length: usize,
    rv: &mut v8::ReturnValue<'s>,
    fill: impl FnOnce(&v8::Isolate, &mut [u8]),
) {
    // V8 ends the process if a buffer that the host makes is refused, so the question comes first.
    if !quota::has_room(length) {
        return throw_range_error(scope, "the bytes do not fit the run's memory (limits.memoryMb)");
    }
    let store = v8::ArrayBuffer::new_backing_store(scope, length).make_shared();
    if let Some(start) = store.data() {
        // SAFETY: the store has so many bytes, and no script has it yet.
        fill(scope, unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), length) });
    }
    let buffer = v8::ArrayBuffer::with_backing_store(scope, &store);
    if let Some(view) = v8::Uint8Array::new(scope, buffer, 0, length) {
        rv.set(view.into());
    }
}

/// A copy of what is in a view; an exception is pending if there is no room for it.
fn bytes_of(scope: &mut v8::PinScope<'_, '_>, view: v8::Local<'_, v8::Uint8Array>) -> Option<Vec<u8>> {
    if !quota::has_room(view.byte_length()) {
        throw_range_error(scope, "the bytes do not fit the run's memory twice (limits.memoryMb)");
        return None;
    }
    let mut bytes = vec![0; view.byte_length()];
    let copied = view.copy_contents(&mut bytes);
    bytes.truncate(copied);
    Some(bytes)
}

fn random<'s>(scope: &mut v8::PinScope<'s, '_>, args: v8::FunctionCallbackArguments<'s>, _: v8::ReturnValue<'s>) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let (offset, length) = (view.byte_offset(), view.byte_length());
    let Some(store) = view.buffer(scope).map(|buffer| buffer.get_backing_store()) else { return };
    let mut bytes = vec![0; length];
    if !fill_random(&mut bytes) {
        return throw_type_error(scope, "the kernel gave no random bytes");
    }
    // The store is only as long as it is now: a buffer that was shrunk meanwhile takes fewer bytes.
    store.iter().skip(offset).zip(bytes).for_each(|(place, byte)| place.set(byte));
}

const MAX_REJECTIONS: usize = 100;

/// V8 tells of a rejection that nobody handles, and again if somebody does later.
pub(super) unsafe extern "C" fn promise_rejected(message: v8::PromiseRejectMessage<'_>) {
    super::confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `message`.
    v8::callback_scope!(unsafe scope, &message);
    v8::scope!(let scope, scope);
    let promise = v8::Global::new(scope, message.get_promise());
    let value = message.get_value().map(|value| v8::Global::new(scope, value));
    let Some(state) = scope.get_slot_mut::<RunState>() else { return };
    match message.get_event() {
        // Handles lie outside the heap limit, so their number is bounded; nobody reads a thousand of the same warning.
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler if state.rejections.len() < MAX_REJECTIONS => {
            state.rejections.push((promise, value));
        }
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler => {}
        v8::PromiseRejectEvent::PromiseHandlerAddedAfterReject => {
            state.rejections.retain(|(known, _)| *known != promise)
        }
        v8::PromiseRejectEvent::PromiseRejectAfterResolved | v8::PromiseRejectEvent::PromiseResolveAfterResolved => {}
    }
}

/// V8 tells of an exception that nothing on the stack could catch: one that a microtask threw.
pub(super) unsafe extern "C" fn uncaught(message: v8::Local<'_, v8::Message>, exception: v8::Local<'_, v8::Value>) {
    super::confinement::edge();
    // SAFETY: V8 calls this on the thread that has entered the isolate of `message`.
    v8::callback_scope!(unsafe scope, message);
    let exception = v8::Global::new(scope, exception);
    if let Some(state) = scope.get_slot_mut::<RunState>() {
        state.uncaught.get_or_insert(exception);
    }
}

/// Whether code of WebAssembly may be made: in builds for attacks alone. In all others V8 does not
/// even set its global up (`--no-expose-wasm`), and this stands behind that.
pub(super) unsafe extern "C" fn allow_wasm(_: v8::Local<'_, v8::Context>, _: v8::Local<'_, v8::String>) -> bool {
    super::confinement::edge();
    cfg!(feature = "attack-natives")
}

/// Code from strings, in a context that does not allow it: refused, and counted.
pub(super) fn no_code_from_strings<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _: v8::Local<'s, v8::Value>,
    _: bool,
) -> v8::ModifyCodeGenerationFromStringsResult<'s> {
    super::confinement::edge();
    if let Some(state) = scope.get_slot_mut::<RunState>() {
        state.advice.code = state.advice.code.saturating_add(1);
    }
    v8::ModifyCodeGenerationFromStringsResult { codegen_allowed: false, modified_source: None }
}
