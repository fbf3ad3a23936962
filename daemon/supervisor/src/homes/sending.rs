//! A run on its way to the worker.

use axum::body::Bytes;

/// The parts of a run that are still to be sent.
pub(super) struct Sending {
    parts: std::vec::IntoIter<Bytes>,
    /// The rest of the part that is being sent.
    pub(super) present: Bytes,
    code: Bytes,
    /// Some of the run has been sent.
    pub(super) begun: bool,
}

/// If the parts together have at most this size, they are sent as one: each send wakes the worker.
const TOGETHER_BYTES: usize = 16 << 10;

impl Sending {
    pub(super) fn new(mut parts: Vec<Bytes>, code: Bytes) -> Self {
        if parts.iter().map(Bytes::len).sum::<usize>() <= TOGETHER_BYTES {
            parts = vec![parts.concat().into()];
        }
        let mut parts = parts.into_iter();
        Self { present: parts.next().unwrap_or_default(), parts, code, begun: false }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.begun |= bytes > 0;
        let _ = self.present.split_to(bytes.min(self.present.len()));
        if self.present.is_empty() {
            self.present = self.parts.next().unwrap_or_default();
        }
    }

    /// Sends the code next. The worker has all other parts, and has asked for it.
    pub(super) fn add_code(&mut self) {
        self.present = std::mem::take(&mut self.code);
    }
}
