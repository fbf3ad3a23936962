//! For unit tests: waiting with a deadline, and a thread that computes until it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::unistd::{Pid, gettid};

/// Nothing that a unit test waits for takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The time between two probes.
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until `probe` finds something.
///
/// # Panics
/// `probe` found nothing within [`PATIENCE`].
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        sleep(PAUSE);
    }
}

/// A thread that computes until this value is dropped, also if a panic drops it.
pub(crate) struct Busy {
    pub(crate) thread: Pid,
    done: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Busy {
    pub(crate) fn start(name: &str) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (send, receive) = mpsc::channel();
        let ends = Arc::clone(&done);
        let computes = move || {
            send.send(gettid()).unwrap();
            while !ends.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        let handle = Some(Builder::new().name(name.to_owned()).spawn(computes).unwrap());
        Self { thread: receive.recv().unwrap(), done, handle }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.handle.take().map(JoinHandle::join);
    }
}
