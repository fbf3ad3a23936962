//! Describes what a script has thrown, by the runtime's `describe`, with a stack that shows only
//! the tenant's own files.

use enisle_wire::MAX_ERROR_BYTES;
use enisle_wire::tenant::ScriptError;

use super::outcome::Ended;
use crate::engine::natives::runtime;
use crate::engine::values::bounded_text;
use crate::watchdog::Watched;

/// Describes what the script of one run has thrown.
pub(super) struct Describer<'a> {
    pub(super) watched: &'a Watched,
    pub(super) describe: v8::Global<v8::Function>,
}

impl Describer<'_> {
    /// Describes an exception. `position` is where it was thrown, for an error without a stack of
    /// its own.
    pub(super) fn failed(
        &self,
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

/// `file:line:column` of a compile error.
pub(super) fn position(scope: &v8::PinScope<'_, '_>, message: v8::Local<'_, v8::Message>) -> Option<String> {
    // An error of linking has no position.
    let file = message.get_script_resource_name(scope).filter(|name| name.is_string())?;
    let line = message.get_line_number(scope).unwrap_or(0);
    Some(format!("{}:{line}:{}", file.to_rust_string_lossy(scope), message.get_start_column().wrapping_add(1)))
}

/// A stack without the runtime's frames, and with the position of a compile error.
fn clean_stack(stack: &str, position: Option<&str>) -> String {
    let mut lines: Vec<_> = stack.lines().filter(|line| !is_of_runtime(line)).map(str::to_owned).collect();
    if let Some(position) = position
        && !lines.iter().any(|line| line.trim_start().starts_with("at "))
    {
        lines.push(format!("    at {position}"));
    }
    lines.join("\n")
}

/// Whether a line of a stack is a frame of the runtime: its position is
/// `enisle:runtime:LINE:COLUMN`, by itself or in parentheses at the end. Any other line with that
/// name in it, such as a message or a longer module name, is the tenant's.
fn is_of_runtime(line: &str) -> bool {
    let Some(frame) = line.trim_start().strip_prefix("at ") else { return false };
    let position = match frame.strip_suffix(')').and_then(|frame| frame.rsplit_once('(')) {
        Some((_, position)) => position,
        None => frame.strip_prefix("async ").unwrap_or(frame),
    };
    let numbers = position.strip_prefix(runtime::NAME).and_then(|rest| rest.strip_prefix(':'));
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
    fn a_tenants_own_mention_of_the_runtime_stays_in_its_stack() {
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
