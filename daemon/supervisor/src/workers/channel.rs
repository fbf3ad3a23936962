//! Sending frames to a worker, and reading frames from it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use enisle_hardening::process::fds;
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

/// Reads one frame. No descriptor can arrive with it: without a control buffer, the kernel discards
/// descriptors.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    channel: &mut (impl AsyncReadExt + Unpin),
    cap: usize,
) -> Result<T, FrameError> {
    let len = read_len(channel, cap).await?;
    read_body(channel, Vec::new(), len).await
}

/// Reads the length of the next frame.
pub(crate) async fn read_len(channel: &mut (impl AsyncReadExt + Unpin), cap: usize) -> Result<usize, FrameError> {
    let mut header = [0; HEADER_BYTES];
    closed(channel.read_exact(&mut header).await)?;
    body_len(header, cap)
}

/// Reads and decodes the rest of a frame of `len` bytes, whose `beginning` has been read.
pub(crate) async fn read_body<T: DeserializeOwned>(
    channel: &mut (impl AsyncReadExt + Unpin),
    beginning: Vec<u8>,
    len: usize,
) -> Result<T, FrameError> {
    let mut body = beginning;
    let begun = body.len().min(len);
    body.resize(len, 0);
    closed(channel.read_exact(body.get_mut(begun..).unwrap_or_default()).await)?;
    decode(&body)
}

/// Reads and discards `len` bytes.
pub(crate) async fn skip(channel: &mut (impl AsyncReadExt + Unpin), len: usize) -> Result<(), FrameError> {
    let skipped = tokio::io::copy(&mut channel.take(len as u64), &mut tokio::io::sink()).await?;
    if skipped == len as u64 { Ok(()) } else { Err(FrameError::Closed) }
}

fn closed<T>(result: io::Result<T>) -> Result<T, FrameError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => FrameError::Closed,
        _ => FrameError::Io(error),
    })
}
