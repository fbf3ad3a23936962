//! Long answers, written in pieces. hyper asks for piece after piece for as long as the socket
//! accepts them, so a client that reads fast would keep the thread to itself. Therefore pieces take
//! turns: other clients wait for one piece of a uid, however many answers that uid's clients read.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;

use crate::daemon::Daemon;
use crate::share::{Turn, Turns};

/// The size of a piece, and the most that is answered without turns.
pub(super) const PIECE_BYTES: usize = 16 << 10;

/// The turns in which pieces are written for a uid.
#[derive(Debug)]
pub(super) struct Pace {
    turns: Arc<Turns>,
    uid: u32,
}

impl Pace {
    pub(super) fn of(uid: u32, daemon: &Daemon) -> Self {
        Self { turns: Arc::clone(&daemon.pieces), uid }
    }

    /// Waits until all other tasks have had their turn since the uid's last piece was written. The
    /// turn ends when the returned value is dropped. A client that reads nothing takes no
    /// turn once its socket is full, because its connection then asks for no piece.
    pub(super) async fn turn(&self) -> Turn {
        let turn = self.turns.turn(self.uid).await;
        tokio::task::yield_now().await;
        turn
    }
}

/// A body of these pieces.
pub(super) fn body(pace: Pace, pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    Body::from_stream(stream::unfold((pace, pieces), |(pace, mut pieces)| async {
        let _turn = pace.turn().await;
        let piece = pieces.next()?;
        Some((Ok::<_, Infallible>(piece), (pace, pieces)))
    }))
}

/// A body from bytes that are complete. They stay charged until the last piece is dropped.
pub(super) fn whole(pace: Pace, bytes: Bytes) -> Body {
    if bytes.len() <= PIECE_BYTES { Body::from(bytes) } else { body(pace, cut(bytes)) }
}

fn cut(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    })
}

/// A pace that is shared with no other answer, for tests.
#[cfg(test)]
pub(super) fn unshared_pace() -> Pace {
    Pace { turns: Arc::new(Turns::new(1, 1)), uid: 7 }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_before_each_piece() {
        let all = Bytes::from((0..=255).cycle().take(3 * PIECE_BYTES + 1).collect::<Vec<u8>>());
        let mut body = whole(unshared_pace(), all.clone());
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
    async fn others_wait_for_one_piece_however_many_answers_a_uid_is_sent() {
        const ANSWERS: usize = 50;
        const PIECES: usize = 4;
        let turns = Arc::new(Turns::new(1, 1));
        let answer = || whole(Pace { turns: Arc::clone(&turns), uid: 7 }, vec![0; PIECES * PIECE_BYTES].into());
        let read: Vec<_> = (0..ANSWERS).map(|_| tokio::spawn(answer().collect())).collect();
        let mut rounds = 0;
        while !read.iter().all(tokio::task::JoinHandle::is_finished) {
            tokio::task::yield_now().await;
            rounds += 1;
        }
        assert!(rounds >= ANSWERS * PIECES, "{rounds} turns of others");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_gives_its_turn_back() {
        let turns = Arc::new(Turns::new(1, 1));
        let answer = || whole(Pace { turns: Arc::clone(&turns), uid: 7 }, vec![0; 2 * PIECE_BYTES].into());
        let mut gone = answer();
        assert!(gone.frame().now_or_never().is_none());
        drop(gone);
        assert_eq!(answer().collect().await.unwrap().to_bytes().len(), 2 * PIECE_BYTES);
    }

    #[tokio::test]
    async fn a_short_answer_is_written_at_once() {
        let mut body = whole(unshared_pace(), Bytes::from_static(b"{}"));
        assert_eq!(body.frame().now_or_never().unwrap().unwrap().unwrap().into_data().unwrap(), "{}");
    }
}
