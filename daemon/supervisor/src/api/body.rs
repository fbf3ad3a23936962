//! Bodies of requests, which are read within a cap and a time and charged to their sender as they
//! arrive; and bodies of answers that the daemon writes itself.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use super::peer::Peer;
use super::pieces::{self, PIECE_BYTES, Pace};
use super::problem::Problem;
use crate::config::Api;
use crate::daemon::Daemon;
use crate::share::{Held, Supply, charged};

/// 64 MiB of modules as JSON: escapes lengthen source somewhat, base64 lengthens data by a third.
pub(super) const MAX_BODY_BYTES: usize = 96 << 20;
/// How much is read of a body from a uid that no rule names. Such a body is refused in any case.
const MAX_STRANGERS_BYTES: usize = 64 << 10;
/// The least that a frame of a body counts as, however short it is.
const FRAME_BYTES: usize = 1 << 10;
/// Longer bodies are handled off the thread that serves connections.
const INLINE_BYTES: usize = PIECE_BYTES;
/// A body is charged twice: for itself, and for what is made of it.
const CHARGED_TIMES: u64 = 2;
/// How long a body waits for memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A whole body within its cap, and the memory charged for it.
pub(super) struct RawBody {
    pub(super) bytes: Vec<u8>,
    pub(super) held: Held,
}

/// Reads a body, which must be complete within the configured time and no larger than `cap`. The
/// rest of a refused body is read and dropped: closing a connection with unread bytes resets it,
/// and the client might then never read the reason.
pub(super) async fn read_body(mut body: Body, cap: usize, uid: u32, daemon: &Daemon) -> Result<RawBody, Problem> {
    let Api { read_secs, .. } = daemon.config.api;
    let patience = Duration::from_secs(read_secs);
    let collected = tokio::time::timeout(patience, collect(&mut body, cap, uid, &daemon.supplies.bodies)).await;
    match collected {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(problem)) => {
            discard(body, uid, daemon).await;
            Err(problem)
        }
        Err(_) => Err(Problem::too_slow(format!("the body did not arrive within {read_secs} s"))),
    }
}

async fn collect(body: &mut Body, cap: usize, uid: u32, bodies: &Supply) -> Result<RawBody, Problem> {
    let most = usize::try_from(bodies.most_ever(uid) / CHARGED_TIMES).unwrap_or(usize::MAX);
    let check = |bytes: u64| match bytes {
        _ if bytes > cap as u64 => Err(Problem::too_large(format!("the body is larger than {cap} bytes"))),
        _ if bytes > most as u64 => Err(Problem::too_large(format!(
            "the body is larger than {most} bytes, half of what uid {uid} may hold of api.body_mb; an operator can \
             raise api.body_mb, or grant a larger part with [[peers]] share_percent"
        ))),
        _ => Ok(()),
    };
    check(body.size_hint().lower())?;
    let mut read = RawBody { bytes: Vec::new(), held: bodies.none(uid) };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request(format!("the body ended early: {error}")))?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        check((read.bytes.len() + data.len()) as u64)?;
        read.held.grow_within(CHARGED_TIMES * data.len() as u64, PATIENCE).await?;
        read.bytes.extend_from_slice(data);
    }
    Ok(read)
}

/// Reads the rest of a refused body without keeping anything, up to a bound.
pub(super) async fn discard(body: Body, uid: u32, daemon: &Daemon) {
    let most = if (Peer { uid }).may_ask(&daemon.config.peers) { MAX_BODY_BYTES } else { MAX_STRANGERS_BYTES };
    let patience = Duration::from_secs(daemon.config.api.read_secs);
    let _ = tokio::time::timeout(patience, discard_up_to(most, body)).await;
}

/// A frame, which may be a chunk of one byte, counts as at least [`FRAME_BYTES`].
async fn discard_up_to(most: usize, mut body: Body) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len).max(FRAME_BYTES));
        if left == 0 {
            return;
        }
    }
}

/// Does work on this many bytes for a uid. Short work is done at once. Other work is done off the
/// thread that serves connections, where each uid has its turn and short work does not wait for
/// long work. The work stays charged until it has ended, whether or not the client still waits.
pub(super) async fn work<T: Send + 'static>(
    bytes: usize,
    uid: u32,
    daemon: &Daemon,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let interrupted = || Problem::internal("the work on the body was interrupted");
    let turn = daemon.work.turn(uid, bytes).await;
    let worked = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(worked).await.map_err(|_| interrupted())?
}

/// A JSON answer of about this many bytes. A short one is written at once. A long one is written
/// off the thread that serves connections, sent in pieces, and charged until the client has read
/// it.
pub(super) async fn respond(
    bytes: usize,
    uid: u32,
    daemon: &Daemon,
    write: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Result<Response, Problem> {
    let mut held = daemon.supplies.bodies.none(uid);
    if bytes > INLINE_BYTES {
        held.grow_within(bytes as u64, PATIENCE).await?;
    }
    let body = work(bytes, uid, daemon, move || Ok(charged(write(), held))).await?;
    let mut response = Response::new(pieces::whole(Pace::of(uid, daemon), body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// How many frames of this length are read of an endless body.
    async fn read_of(most: usize, length: usize) -> usize {
        let frames = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&frames);
        let endless = futures_util::stream::repeat_with(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from(vec![b'x'; length]))
        });
        discard_up_to(most, Body::from_stream(endless)).await;
        frames.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_refused_body_is_read_up_to_its_bound_however_small_its_chunks_are() {
        assert_eq!(read_of(MAX_STRANGERS_BYTES, 16 << 10).await, 4);
        assert_eq!(read_of(MAX_STRANGERS_BYTES, 1).await, 64);
        assert_eq!(read_of(MAX_BODY_BYTES, 1 << 20).await, 96);
    }
}
