//! A place on standby: a slot whose thread is locked down and verified, and has a warm isolate. It
//! is nobody's yet.
//!
//! Every home begins as one, whether it was made ahead or on demand, so there is one way in which a
//! thread comes to a tenant, and no tenant ever waits in a home that may not become ready.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use enisle_cordon::Signal;
use enisle_wire::FrameError;
use enisle_wire::control::{Admit, Slot};
use enisle_wire::tenant::{FromTenant, Session};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use crate::homes::frames::{FrameReader, Heard};
use crate::workers::birth::START_TIMEOUT;
use crate::workers::process::Worker;

/// A slot that is ready for a tenant, and the connection to its thread.
#[derive(Debug)]
pub(crate) struct Standby {
    pub(super) slot: Slot,
    pub(super) read: FrameReader,
    pub(super) write: OwnedWriteHalf,
    pub(super) session: Session,
    /// The CPU time that making it took, which the tenant that takes it is charged.
    pub(super) cpu_us: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPrepared {
    #[error("a channel for the tenant could not be made: {0}")]
    Channel(std::io::Error),
    #[error("the thread for the tenant did not become ready: {0}")]
    Thread(Failure),
}

/// Why a thread is not ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("it closed its channel")]
    Closed,
    #[error("it sent nothing for {} s", START_TIMEOUT.as_secs())]
    Silent,
    #[error("{0}")]
    Wrong(String),
}

/// How long after its thread's channel has closed a worker may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

impl Standby {
    /// Has a worker start a thread in an unused slot, and waits until the thread is ready and its
    /// filters are verified. A worker whose thread does not become ready is killed, unless it ends
    /// by itself: then its end says why.
    pub(super) async fn make(worker: &Arc<Worker>, slot: Slot, memory_mb: u32) -> Result<Self, NotPrepared> {
        let (ours, theirs) = StdUnixStream::pair().map_err(NotPrepared::Channel)?;
        ours.set_nonblocking(true).map_err(NotPrepared::Channel)?;
        let ours = UnixStream::from_std(ours).map_err(NotPrepared::Channel)?;
        worker.prepare(Admit { slot, memory_mb }, theirs.into());
        let (read, write) = ours.into_split();
        let (read, session) = (FrameReader::spawn(read), Session::default());
        let mut standby = Self { slot, read, write, session, cpu_us: 0 };
        match standby.first_word(worker).await {
            Ok(cpu_us) => Ok(Self { cpu_us, ..standby }),
            Err(why) => {
                let ends = why == Failure::Closed && tokio::time::timeout(ENDS_WITHIN, worker.death()).await.is_ok();
                if !ends {
                    worker.misbehaves(Signal::Protocol);
                    worker.kill(format!("the thread in slot {}: {why}", slot.0));
                    worker.death().await;
                }
                Err(NotPrepared::Thread(why))
            }
        }
    }

    /// The CPU time that the thread reports with its first frame, if that is in order.
    async fn first_word(&mut self, worker: &Worker) -> Result<u64, Failure> {
        let heard = tokio::time::timeout(START_TIMEOUT, self.read.heard.recv()).await;
        let frame = match heard.map_err(|_| Failure::Silent)? {
            Some(Heard::Frame(Ok(frame))) => frame,
            Some(Heard::Frame(Err(FrameError::Closed | FrameError::Io(_)))) | None => return Err(Failure::Closed),
            Some(Heard::Frame(Err(error))) => return Err(Failure::Wrong(error.to_string())),
            Some(Heard::Large { .. }) => return Err(Failure::Wrong("its first frame is a large one".to_owned())),
        };
        self.session.accept(&frame).map_err(|violation| Failure::Wrong(violation.to_string()))?;
        let FromTenant::Ready { cpu_us } = frame else {
            return Err(Failure::Wrong("its first frame is not Ready".to_owned()));
        };
        worker.check_confinement(self.slot).await.map_err(Failure::Wrong)?;
        Ok(cpu_us)
    }
}
