//! Long answers, written in pieces: others have their turn before each piece, however fast the
//! client takes them. hyper asks for the next piece as long as it gets one and the socket takes it.

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt, stream};

/// A piece has so many bytes at the most, and is as long as a client is answered at once.
pub(super) const PIECE_BYTES: usize = 16 << 10;

/// A body of these pieces. An error cuts the connection off, so that no client takes what it has
/// for the whole.
pub(super) fn body<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Body
where
    E: std::error::Error + Send + Sync + 'static,
{
    Body::from_stream(pieces.then(|piece| async {
        tokio::task::yield_now().await;
        piece
    }))
}

/// A body of something that is whole already. What is charged for it is charged until the last
/// piece is gone.
pub(super) fn whole(bytes: Bytes) -> Body {
    if bytes.len() <= PIECE_BYTES {
        return Body::from(bytes);
    }
    body(stream::iter(cut(bytes).map(Ok::<_, std::convert::Infallible>)))
}

fn cut(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_before_each_piece() {
        let all = Bytes::from((0..=255).cycle().take(3 * PIECE_BYTES + 1).collect::<Vec<u8>>());
        let mut body = whole(all.clone());
        let mut read = Vec::new();
        for length in [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1] {
            let mut next = body.frame();
            assert!((&mut next).now_or_never().is_none());
            let piece = next.await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece.len(), length);
            read.push(piece);
        }
        assert!(body.frame().await.is_none());
        assert_eq!(read.concat(), all);
    }

    #[tokio::test]
    async fn what_is_short_is_written_at_once() {
        let mut body = whole(Bytes::from_static(b"{}"));
        assert_eq!(body.frame().now_or_never().unwrap().unwrap().unwrap().into_data().unwrap(), "{}");
    }
}
