//! Reads frames from a tenant's thread as they arrive.

use enisle_wire::tenant::FromTenant;
use enisle_wire::{FrameError, MAX_FROM_TENANT_BYTES};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use crate::workers::channel::{read_body, read_len, skip};

/// A larger frame is announced, and charged, before it is read.
const LARGE_BYTES: usize = 64 << 10;

/// What arrives from a tenant's thread.
#[derive(Debug)]
pub(super) enum Heard {
    Frame(Result<FromTenant, FrameError>),
    /// A large frame that was not read yet: [`FrameReader::decide`] has it read or skipped.
    Large {
        bytes: usize,
        kind: Kind,
    },
}

/// What a large frame carries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Log,
    End,
    /// Something that may not be large.
    Other,
}

impl Kind {
    fn of(first: u8) -> Self {
        match first {
            FromTenant::LOG_TAG => Self::Log,
            FromTenant::DONE_TAG => Self::End,
            _ => Self::Other,
        }
    }
}

/// Frames as they arrive, read by a task of their own. So a wait for a frame can be cancelled
/// without losing a half-read frame.
#[derive(Debug)]
pub(super) struct FrameReader {
    pub(super) heard: mpsc::Receiver<Heard>,
    verdicts: mpsc::Sender<bool>,
}

impl FrameReader {
    pub(super) fn spawn(mut channel: OwnedReadHalf) -> Self {
        let (send, heard) = mpsc::channel(1);
        let (verdicts, mut decided) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let frame = match Self::read(&mut channel, &send, &mut decided).await {
                    Ok(None) => continue,
                    Ok(Some(frame)) => Ok(frame),
                    Err(error) => Err(error),
                };
                let last = frame.is_err();
                if send.send(Heard::Frame(frame)).await.is_err() || last {
                    return;
                }
            }
        });
        Self { heard, verdicts }
    }

    /// The next frame; `None` if it was skipped.
    async fn read(
        channel: &mut OwnedReadHalf,
        send: &mpsc::Sender<Heard>,
        decided: &mut mpsc::Receiver<bool>,
    ) -> Result<Option<FromTenant>, FrameError> {
        let bytes = read_len(channel, MAX_FROM_TENANT_BYTES).await?;
        if bytes <= LARGE_BYTES {
            return read_body(channel, Vec::new(), bytes).await.map(Some);
        }
        let first = channel.read_u8().await?;
        let large = Heard::Large { bytes, kind: Kind::of(first) };
        if send.send(large).await.is_err() {
            return Err(FrameError::Closed);
        }
        match decided.recv().await {
            Some(true) => read_body(channel, vec![first], bytes).await.map(Some),
            Some(false) => skip(channel, bytes - 1).await.map(|()| None),
            None => Err(FrameError::Closed),
        }
    }

    /// Has the announced large frame read or skipped.
    pub(super) async fn decide(&self, read: bool) {
        let _ = self.verdicts.send(read).await;
    }
}
