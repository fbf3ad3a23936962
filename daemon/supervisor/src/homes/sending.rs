//! A run on its way to the worker.

use axum::body::Bytes;

/// A run's parts on their way to the worker.
pub(super) struct Sending {
    parts: std::vec::IntoIter<Bytes>,
    /// What is left of the part that is being sent.
    pub(super) present: Bytes,
    code: Bytes,
    pub(super) begun: bool,
}

/// Parts that have less together are sent as one: each by itself would wake the worker up.
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

    /// The worker has all that was sent, and needs the code too.
    pub(super) fn add_code(&mut self) {
        self.present = std::mem::take(&mut self.code);
    }
}
