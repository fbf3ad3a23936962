//! A script inside its isolate: from its modules to its result.
//!
//! ```text
//! compile main ─▶ link ─▶ evaluate ─▶ (wait) ─▶ call the entry point ─▶ (wait) ─▶ result as JSON
//! ```
//!
//! (wait) is the event loop ([`super::event_loop`]). The watchdog may end a run at any of these
//! steps: every call into V8 can return "terminated", and the cause that was noted decides the
//! outcome.

use std::time::{Duration, Instant};

use super::describe;
use super::event_loop::EventLoop;
use super::outcome::Ended;
use crate::engine::modules::{self, Modules};
use crate::engine::values::bounded_text;

/// The entry point and its arguments.
pub(super) struct Entry {
    pub(super) entrypoint: String,
    pub(super) method: Option<String>,
    /// These three are JSON.
    pub(super) args: String,
    pub(super) env: String,
    pub(super) props: String,
}

/// A script inside its isolate.
pub(super) struct Script<'a> {
    pub(super) events: EventLoop<'a>,
    /// The name of the main module.
    pub(super) main: String,
    /// Whether the code came as one file, which may be an expression.
    pub(super) short: bool,
    pub(super) entry: Entry,
    /// Whether the script may make code from strings.
    pub(super) allow_eval: bool,
    pub(super) output_cap: usize,
    pub(super) invoke: v8::Global<v8::Function>,
    pub(super) forget_timers: v8::Global<v8::Function>,
    /// The exports of the main module, once it has been evaluated.
    pub(super) exports: Option<v8::Global<v8::Value>>,
    /// When the whole run had been read.
    pub(super) arrived: Instant,
    /// The time from `arrived` to the call of the entry point; zero before that call.
    pub(super) startup: Duration,
}

impl Script<'_> {
    pub(super) fn run(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Ended {
        self.value(scope).unwrap_or_else(|ended| ended)
    }

    fn value(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Result<Ended, Ended> {
        let exports = match &self.exports {
            Some(exports) => {
                let forget_timers = v8::Local::new(scope, &self.forget_timers);
                let undefined = v8::undefined(scope).into();
                forget_timers.call(scope, undefined, &[]).ok_or(Ended::Terminated)?;
                v8::Local::new(scope, exports)
            }
            None => self.exports(scope)?,
        };
        self.exports = Some(v8::Global::new(scope, exports));
        self.startup = self.arrived.elapsed();
        let promise = self.call_entry(scope, exports)?;
        let value = self.events.settled(scope, promise)?;
        let Ok(json) = value.try_cast::<v8::String>() else {
            // The runtime found that the result is too long, and gave a number of bytes instead.
            return match value.integer_value(scope).map(usize::try_from) {
                Some(Ok(bytes)) => Ok(Ended::TooLarge(bytes)),
                _ => Ok(Ended::Terminated),
            };
        };
        let bytes = json.utf8_length(scope);
        if bytes > self.output_cap {
            return Ok(Ended::TooLarge(bytes));
        }
        Ok(Ended::Result(bounded_text(scope, json, self.output_cap).0))
    }

    /// The exports of the main module, which is evaluated once.
    fn exports<'s>(&mut self, scope: &mut v8::PinScope<'s, '_>) -> Result<v8::Local<'s, v8::Value>, Ended> {
        let first = self.linked(scope, 0);
        // The one file may be an expression: as a module it exports nothing, or does not even
        // compile.
        let perhaps = match &first {
            Ok(module) => exports_nothing(scope, *module),
            Err(Ended::Failed(_)) => true,
            Err(_) => false,
        };
        let module = if self.short && perhaps { self.as_expression(scope, first)? } else { first? };
        let promise = {
            v8::tc_scope!(let caught, scope);
            match module.evaluate(caught).and_then(|value| value.try_cast::<v8::Promise>().ok()) {
                Some(promise) => promise,
                None => {
                    let exception = caught.exception();
                    caught.reset();
                    return Err(self.events.describer.failed(caught, exception, None));
                }
            }
        };
        self.events.settled(scope, promise)?;
        Ok(module.get_module_namespace())
    }

    /// The one file, compiled as an expression, in a module that exports its value. If the file is
    /// not an expression, returns `before`.
    fn as_expression<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        before: Result<v8::Local<'s, v8::Module>, Ended>,
    ) -> Result<v8::Local<'s, v8::Module>, Ended> {
        let Some(modules) = scope.get_slot_mut::<Modules>() else { return Err(Ended::Terminated) };
        let statement = modules.wrap_expression();
        match self.linked(scope, -1) {
            Err(Ended::Failed(_)) => {}
            other => return other,
        }
        if let (Some(statement), Some(modules)) = (statement, scope.get_slot_mut::<Modules>()) {
            modules.unwrap_expression(statement);
        }
        before
    }

    /// The main module, compiled and linked to its imports, but not evaluated.
    fn linked<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        line_offset: i32,
    ) -> Result<v8::Local<'s, v8::Module>, Ended> {
        v8::tc_scope!(let caught, scope);
        let linked = modules::compile(caught, &self.main, line_offset)
            .and_then(|module| module.instantiate_module(caught, modules::resolve).map(|_| module));
        match linked {
            Some(module) => Ok(module),
            None => {
                let position = caught.message().and_then(|message| describe::position(caught, message));
                let exception = caught.exception();
                caught.reset();
                Err(self.events.describer.failed(caught, exception, position))
            }
        }
    }

    fn call_entry<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        exports: v8::Local<'s, v8::Value>,
    ) -> Result<v8::Local<'s, v8::Promise>, Ended> {
        let Entry { entrypoint, method, args, env, props } = &self.entry;
        v8::tc_scope!(let caught, scope);
        let called = (|| {
            let text = |text: &str| {
                Some(v8::String::new_from_utf8(caught, text.as_bytes(), v8::NewStringType::Normal)?.into())
            };
            let method = match method {
                Some(method) => text(method)?,
                None => v8::undefined(caught).into(),
            };
            let cap = v8::Number::new(caught, f64::from(u32::try_from(self.output_cap).unwrap_or(u32::MAX)));
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
                Err(self.events.describer.failed(caught, exception, None))
            }
        }
    }
}

/// Whether a linked module exports nothing. Checks names only: before evaluation there are no
/// values.
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
