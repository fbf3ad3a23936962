//! Counts the tasks that still read from the threads of a process. The end of the process is judged
//! after they have read everything that the threads sent, or after a bounded wait for that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// All tasks that read from a thread of one process.
#[derive(Debug, Default)]
pub(super) struct Listeners(Arc<watch::Sender<usize>>);

/// Held while a task reads from one thread; dropped when nothing more can arrive.
#[derive(Debug)]
#[must_use]
pub(crate) struct Listener(Arc<watch::Sender<usize>>);

impl Listeners {
    pub(super) fn one_more(&self) -> Listener {
        self.0.send_modify(|count| *count += 1);
        Listener(Arc::clone(&self.0))
    }

    /// Waits until no task listens any more, for at most `patience`.
    pub(super) async fn have_heard_all(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.0.subscribe().wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn the_wait_ends_when_the_last_listener_is_dropped() {
        let listeners = Listeners::default();
        let (one, other) = (listeners.one_more(), listeners.one_more());
        let mut all = pin!(listeners.have_heard_all(Duration::from_secs(3600)));
        drop(one);
        assert_eq!(poll_once(&mut all), Poll::Pending);
        drop(other);
        all.await;
    }

    #[tokio::test]
    async fn the_wait_for_a_listener_that_is_never_dropped_ends() {
        let listeners = Listeners::default();
        let _one = listeners.one_more();
        listeners.have_heard_all(Duration::from_millis(1)).await;
    }

    /// Polls once.
    fn poll_once(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context)
    }
}
