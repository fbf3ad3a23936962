//! Bodies: those of requests, read within a cap and a time and charged to who sends them as they
//! arrive; and those of answers that the daemon writes itself.

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
/// What is read of a body of a uid that no rule names, which is refused whatever it is.
const MAX_STRANGERS_BYTES: usize = 64 << 10;
/// What a frame of a body costs that is only a few bytes.
const FRAME_BYTES: usize = 1 << 10;
/// What takes longer than this is done off the thread that serves connections.
const INLINE_BYTES: usize = PIECE_BYTES;
/// A body is charged for itself, and for what is made of it.
const CHARGED_TIMES: u64 = 2;
/// So long a body waits for room.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A whole body, within its cap, and what is held for it.
pub(super) struct RawBody {
    pub(super) bytes: Vec<u8>,
    pub(super) held: Held,
}

/// Reads a body that has to be whole within the configured time, and no larger than `cap`. What is
/// left of one that is refused is read all the same, and forgotten: a connection that is closed
/// with unread bytes is reset, and a client whose connection is reset may never read why.
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
            "the body is larger than {most} bytes, which is half of what uid {uid} may hold of api.body_mb; an operator \
             raises that, or grants a larger part with [[peers]] share_percent"
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

/// Reads on without keeping anything, within reason.
pub(super) async fn discard(body: Body, uid: u32, daemon: &Daemon) {
    let most = if (Peer { uid }).may_ask(&daemon.config.peers) { MAX_BODY_BYTES } else { MAX_STRANGERS_BYTES };
    let patience = Duration::from_secs(daemon.config.api.read_secs);
    let _ = tokio::time::timeout(patience, discard_up_to(most, body)).await;
}

/// A frame, which may be a chunk of one byte, counts as [`FRAME_BYTES`] at the least.
async fn discard_up_to(most: usize, mut body: Body) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len).max(FRAME_BYTES));
        if left == 0 {
            return;
        }
    }
}

/// Works on so many bytes of a uid's: at once if they are few, off the thread that serves
/// connections if they are not, each uid in its turn, little beside much. What the work holds it
/// holds until it has ended, whether the client still waits or not.
pub(super) async fn work<T: Send + 'static>(
    bytes: usize,
    uid: u32,
    daemon: &Daemon,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let interrupted = || Problem::internal("parsing was interrupted");
    let turn = daemon.work.turn(uid, bytes).await;
    let worked = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(worked).await.map_err(|_| interrupted())?
}

/// An answer of JSON that has so many bytes or a few more: written at once if they are few, and off
/// the thread that serves connections if they are not. Those are sent in pieces, and charged until
/// the client has taken them.
pub(super) async fn tell(
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

    /// How many frames of that length are read of a body without an end.
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
    async fn of_a_refused_body_no_more_is_read_than_allowed_however_small_its_chunks_are() {
        assert_eq!(read_of(MAX_STRANGERS_BYTES, 16 << 10).await, 4);
        assert_eq!(read_of(MAX_STRANGERS_BYTES, 1).await, 64);
        assert_eq!(read_of(MAX_BODY_BYTES, 1 << 20).await, 96);
    }
}
