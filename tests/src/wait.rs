//! Waits with a deadline: checks a condition every few milliseconds.
//!
//! A test shares the processors with the daemon that it waits for, so it sleeps between two checks.

use std::thread;
use std::time::{Duration, Instant};

/// Nothing that a test waits for takes this long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The time between two checks.
pub const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `done` returns true.
///
/// # Panics
/// `done` was still false after [`PATIENCE`].
pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(within(PATIENCE, done), "{what} did not happen");
}

/// Waits until `done` returns true, for at most `patience`; returns whether it did.
pub fn within(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    found(patience, || done().then_some(())).is_some()
}

/// Waits until `look` finds something, for at most `patience`. The last check is at the deadline.
pub fn found<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let found = look();
        if found.is_some() || left.is_zero() {
            return found;
        }
        thread::sleep(PAUSE.min(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_in_vain_ends_with_a_check_at_the_deadline() {
        let (mut looks, begun) = (0, Instant::now());
        assert!(!within(PAUSE * 4, || {
            looks += 1;
            false
        }));
        assert!(begun.elapsed() >= PAUSE * 4);
        assert!((2..=6).contains(&looks), "{looks} looks");
    }

    #[test]
    fn a_wait_for_what_is_already_true_ends_before_the_deadline() {
        let begun = Instant::now();
        assert_eq!(found(PATIENCE, || Some(7)), Some(7));
        assert!(begun.elapsed() < PATIENCE);
        assert!(within(Duration::ZERO, || true));
    }
}
