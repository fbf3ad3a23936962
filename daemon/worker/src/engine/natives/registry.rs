//! All natives by their names in the runtime.
//!
//! A native reads all its arguments before it does anything, never calls back into the script, and
//! never keeps a pointer into V8's memory. A native can print, request a timer or a microtask, get
//! random bytes and compute, and nothing else.

use v8::MapFnTo;

use super::runtime;

/// Takes the natives with their names in the runtime, and defines what V8 needs of them.
macro_rules! natives {
    ($($name:literal => $file:ident::$function:ident),* $(,)?) => {
        /// The addresses of all natives and of the runtime's source. A snapshot refers to them by
        /// their place in this list, so the order must be the same in every process of a build.
        pub(in crate::engine) fn external_references() -> Vec<v8::ExternalReference> {
            let source = &raw const runtime::SOURCE;
            vec![
                $(v8::ExternalReference { function: edged::$function.map_fn_to() },)*
                v8::ExternalReference { pointer: source.cast_mut().cast() },
            ]
        }

        /// The object that the runtime is called with.
        pub(in crate::engine) fn object<'s>(scope: &mut v8::PinScope<'s, '_>) -> Option<v8::Local<'s, v8::Object>> {
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

        /// The natives in the form that V8 calls, with a check of the thread's keys before and
        /// after.
        mod edged {
            use crate::engine::memory::confinement::edge;

            $(
                pub(super) fn $function<'s>(
                    scope: &mut v8::PinScope<'s, '_>,
                    args: v8::FunctionCallbackArguments<'s>,
                    result: v8::ReturnValue<'s>,
                ) {
                    edge();
                    crate::engine::natives::$file::$function(scope, args, result);
                    edge();
                }
            )*
        }
    };
}

natives! {
    "print" => console::print,
    "timerStart" => timers::timer_start,
    "timerAgain" => timers::timer_again,
    "timerStop" => timers::timer_stop,
    "microtask" => timers::microtask,
    "encodeUtf8" => text::encode_utf8,
    "decodeUtf8" => text::decode_utf8,
    "latin1Bytes" => text::latin1_bytes,
    "latin1Text" => text::latin1_text,
    "random" => crypto::random,
}
