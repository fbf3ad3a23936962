//! Who still listens to the threads of a process: whose doing its end was is judged when all that
//! they said has been heard.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Everybody who listens to a thread of one process.
#[derive(Debug, Default)]
pub(super) struct Listeners(Arc<watch::Sender<usize>>);

/// The right to listen to one thread. It is dropped when there is no more to hear.
#[derive(Debug)]
#[must_use]
pub(crate) struct Listener(Arc<watch::Sender<usize>>);

impl Listeners {
    pub(super) fn one_more(&self) -> Listener {
        self.0.send_modify(|count| *count += 1);
        Listener(Arc::clone(&self.0))
    }

    /// Waits until nobody listens any more, for `patience` at the most.
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
    async fn all_is_heard_when_the_last_one_has_stopped_listening() {
        let listeners = Listeners::default();
        let (one, other) = (listeners.one_more(), listeners.one_more());
        let mut all = pin!(listeners.have_heard_all(Duration::from_secs(3600)));
        drop(one);
        assert_eq!(look(&mut all), Poll::Pending);
        drop(other);
        all.await;
    }

    #[tokio::test]
    async fn one_that_never_stops_is_not_waited_for_for_ever() {
        let listeners = Listeners::default();
        let _one = listeners.one_more();
        listeners.have_heard_all(Duration::from_millis(1)).await;
    }

    /// Looks once whether it is over.
    fn look(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context)
    }
}
