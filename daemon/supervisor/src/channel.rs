//! Frames to and from a worker, as the supervisor sends and reads them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use enisle_hardening::fds;
use enisle_wire::control::ToWorker;
use enisle_wire::frame::{HEADER_BYTES, body_len};
use enisle_wire::{FrameError, MAX_TO_WORKER_BYTES, decode, encode};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Sends one frame on a control channel, with descriptors.
pub(crate) async fn send(
    control: &mut UnixStream,
    frame: &ToWorker,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let bytes = encode(frame, MAX_TO_WORKER_BYTES)?;
    let sent = if descriptors.is_empty() {
        0
    } else {
        control.async_io(Interest::WRITABLE, || fds::send_with(control.as_fd(), &bytes, descriptors)).await?
    };
    control.write_all(bytes.get(sent..).unwrap_or_default()).await?;
    Ok(())
}

/// Reads one frame; no descriptor can come with it, because none is received for.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    channel: &mut (impl AsyncReadExt + Unpin),
    cap: usize,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    closed(channel.read_exact(&mut header).await)?;
    let mut body = vec![0; body_len(header, cap)?];
    closed(channel.read_exact(&mut body).await)?;
    decode(&body)
}

fn closed<T>(result: io::Result<T>) -> Result<T, FrameError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => FrameError::Closed,
        _ => FrameError::Io(error),
    })
}
