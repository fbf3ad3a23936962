//! Cleanup that must happen when a test ends, even if the test fails.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when this value is dropped, also by a panic. If threads run until the flag is set,
/// a scope that joins them does not wait forever after a failed assertion.
#[derive(Debug)]
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
