//! The console of one run: lines up to the run's limits, sent in batches. `runtime/console.js`
//! formats the lines.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use enisle_wire::limits::Limits;
use enisle_wire::tenant::{FromTenant, Level, LogLine};
use enisle_wire::{MAX_FROM_TENANT_BYTES, MAX_LOG_LINES, write_frame};

use crate::engine::values::bounded_text;

/// The lines that wait to be sent, and how many more the run may print.
#[derive(Debug)]
pub(in crate::engine) struct Log {
    channel: Arc<UnixStream>,
    /// The time from the start of the run to the current turn: a line reveals no more of the time
    /// than the script can see.
    pub(in crate::engine) t_ms: u32,
    pending: Vec<LogLine>,
    pending_bytes: usize,
    bytes_left: usize,
    lines_left: u32,
    pub(in crate::engine) truncated: bool,
}

/// Lines are sent at the latest when this many bytes wait.
const LOG_BATCH_BYTES: usize = 8 * 1024;

impl Log {
    pub(in crate::engine) fn new(channel: Arc<UnixStream>, limits: &Limits) -> Self {
        Self {
            channel,
            t_ms: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            bytes_left: limits.log_bytes as usize,
            lines_left: limits.log_lines,
            truncated: false,
        }
    }

    /// How many bytes the next line may have. `None` if a limit is used up: then the line is
    /// dropped, and the log is marked as truncated.
    pub(in crate::engine) fn room(&mut self) -> Option<usize> {
        if self.bytes_left == 0 || self.lines_left == 0 {
            self.truncated = true;
            return None;
        }
        Some(self.bytes_left)
    }

    pub(in crate::engine) fn line(&mut self, level: Level, text: String, whole: bool) {
        self.truncated |= !whole;
        self.bytes_left = if whole { self.bytes_left.saturating_sub(text.len()) } else { 0 };
        self.lines_left = self.lines_left.saturating_sub(1);
        self.pending_bytes += text.len();
        self.pending.push(LogLine { t_ms: self.t_ms, level, text });
        if self.pending_bytes >= LOG_BATCH_BYTES || self.pending.len() == MAX_LOG_LINES {
            self.flush();
        }
    }

    /// Sends the lines that wait.
    pub(in crate::engine) fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.pending_bytes = 0;
            let batch = FromTenant::Log(std::mem::take(&mut self.pending));
            // An error means that the supervisor is gone, and sending the end of the run fails for
            // the same reason.
            let _ = write_frame(&mut &*self.channel, &batch, MAX_FROM_TENANT_BYTES);
        }
    }
}

/// `print(level, text)`.
pub(super) fn print<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    _: v8::ReturnValue<'s>,
) {
    let level = match args.get(0).uint32_value(scope) {
        Some(0) => Level::Debug,
        Some(2) => Level::Info,
        Some(3) => Level::Warn,
        Some(4) => Level::Error,
        _ => Level::Log,
    };
    let Ok(text) = args.get(1).try_cast::<v8::String>() else { return };
    let Some(room) = scope.get_slot_mut::<Log>().and_then(Log::room) else { return };
    let (text, whole) = bounded_text(scope, text, room);
    if let Some(log) = scope.get_slot_mut::<Log>() {
        log.line(level, text, whole);
    }
}
