//! The console of one run: lines up to its limits, sent on in batches.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use enisle_wire::limits::Limits;
use enisle_wire::tenant::{FromTenant, Level, LogLine};
use enisle_wire::{MAX_FROM_TENANT_BYTES, MAX_LOG_LINES, write_frame};

/// The console of one run: lines up to its limits, sent on in batches.
#[derive(Debug)]
pub(super) struct Log {
    channel: Arc<UnixStream>,
    /// Of the present turn, since the run began: a line says no more of the time than its script
    /// knows.
    pub(super) t_ms: u32,
    pending: Vec<LogLine>,
    pending_bytes: usize,
    bytes_left: usize,
    lines_left: u32,
    pub(super) truncated: bool,
}

/// Lines are sent on at the latest when this much waits.
const LOG_BATCH_BYTES: usize = 8 * 1024;

impl Log {
    pub(super) fn new(channel: Arc<UnixStream>, limits: &Limits) -> Self {
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

    /// Bytes that the next line may have; none when lines are only counted as dropped any more.
    pub(super) fn room(&mut self) -> Option<usize> {
        if self.bytes_left == 0 || self.lines_left == 0 {
            self.truncated = true;
            return None;
        }
        Some(self.bytes_left)
    }

    pub(super) fn line(&mut self, level: Level, text: String, whole: bool) {
        self.truncated |= !whole;
        self.bytes_left = if whole { self.bytes_left.saturating_sub(text.len()) } else { 0 };
        self.lines_left = self.lines_left.saturating_sub(1);
        self.pending_bytes += text.len();
        self.pending.push(LogLine { t_ms: self.t_ms, level, text });
        if self.pending_bytes >= LOG_BATCH_BYTES || self.pending.len() == MAX_LOG_LINES {
            self.flush();
        }
    }

    /// Sends on what waits.
    pub(super) fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.pending_bytes = 0;
            let batch = FromTenant::Log(std::mem::take(&mut self.pending));
            // A supervisor that is gone is noticed where the end of the run is written.
            let _ = write_frame(&mut &*self.channel, &batch, MAX_FROM_TENANT_BYTES);
        }
    }
}
