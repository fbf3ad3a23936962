//! `GET /v1/events`: what happened, one JSON object a line; with `?follow=1` also new events as
//! they happen.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::watch;

use super::body::PATIENCE;
use super::peer::Operator;
use super::pieces::{PIECE_BYTES, Pace};
use super::problem::Problem;
use crate::api::server::Endless;
use crate::daemon::Daemon;
use crate::events::{Cursor, EventKind, Events, Read};
use crate::share::{Exhausted, Supply, charged};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    #[serde(default)]
    follow: u8,
}

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Operator(peer): Operator,
    wanted: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) =
        wanted.map_err(|error| Problem::bad_request(format!("{error}; the only parameter is follow=1")))?;
    let pace = Pace::of(peer.uid, &daemon);
    let mut reader = Reader::new(&daemon.events, wanted.follow != 0, daemon.supplies.bodies.clone(), peer.uid, pace);
    // If there is no memory for the first piece, the answer is an error.
    let first = reader.piece().await?;
    let rest =
        stream::try_unfold(reader, |mut reader| async { Ok(reader.piece().await?.map(|piece| (piece, reader))) });
    let body = Body::from_stream(stream::iter(first.map(Ok::<_, Exhausted>)).chain(rest));
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if wanted.follow == 0 {
        return Ok((kind, body).into_response());
    }
    Ok((Extension(Endless), kind, body).into_response())
}

/// Reads the events for one client.
struct Reader {
    events: Arc<Events>,
    cursor: Cursor,
    last: watch::Receiver<u64>,
    /// The number of the last event to send. For a client that follows, `None` until the daemon
    /// drains.
    until: Option<u64>,
    room: Supply,
    uid: u32,
    pace: Pace,
}

impl Reader {
    fn new(events: &Arc<Events>, follows: bool, room: Supply, uid: u32, pace: Pace) -> Self {
        let last = events.follow();
        let until = (!follows).then(|| *last.borrow());
        Self { events: Arc::clone(events), cursor: Cursor::default(), last, until, room, uid, pace }
    }

    /// The next events, a line each, as soon as there are any; `None` after the last one. A piece
    /// is charged until it is sent: a client that reads nothing stays charged for one piece, and
    /// gets no more.
    async fn piece(&mut self) -> Result<Option<Bytes>, Exhausted> {
        let seq = self.cursor.seq;
        if self.until.is_some_and(|until| seq >= until) || self.last.wait_for(|last| *last > seq).await.is_err() {
            return Ok(None);
        }
        let mut held = self.room.none(self.uid);
        held.grow_within(PIECE_BYTES as u64, PATIENCE).await?;
        let turn = self.pace.turn().await;
        let piece = self.lines();
        drop(turn);
        held.grow_within(piece.len().saturating_sub(PIECE_BYTES) as u64, PATIENCE).await?;
        Ok(Some(charged(piece, held)))
    }

    /// As many lines as fit a piece; a longer line is a piece of its own. If events were dropped
    /// before they were read, a line says how many.
    fn lines(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        loop {
            let mut after = self.cursor;
            let Some(read) = self.events.next(&mut after) else { return lines };
            let line = line(&read);
            if !lines.is_empty() && lines.len() + line.len() > PIECE_BYTES {
                return lines;
            }
            lines.extend(line);
            self.cursor = after;
            if matches!(read, Read::Event(event) if matches!(event.kind, EventKind::Draining)) {
                self.until.get_or_insert(after.seq);
                return lines;
            }
        }
    }
}

fn line(read: &Read) -> Vec<u8> {
    let mut line = match read {
        Read::Event(event) => serde_json::to_vec(event).unwrap_or_default(),
        Read::Missed(class, count) => {
            format!(r#"{{"event":"missed","class":"{}","count":{count}}}"#, class.as_str()).into()
        }
    };
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use enisle_api::types::event::EventLine;
    use futures_util::FutureExt;

    use super::*;
    use crate::api::described::reads_the_query_of;
    use crate::api::pieces::unshared_pace;
    use crate::events::Class;
    use crate::share::Parts;

    const UID: u32 = 7;

    fn lifted(bytes: usize) -> EventKind {
        let (tenant, reason) = ("x".to_owned(), "\u{1}".repeat(bytes / 6));
        EventKind::Lifted { tenant, reason, by_uid: UID }
    }

    fn emitted(bytes: &[usize]) -> Arc<Events> {
        let events = Events::new(Vec::new(), None);
        for bytes in bytes {
            events.emit(lifted(*bytes));
            events.emit_counted();
        }
        Arc::new(events)
    }

    /// The next piece, if it waits for nothing but its turn.
    async fn at_once(reader: &mut Reader) -> Option<Bytes> {
        let mut piece = std::pin::pin!(reader.piece());
        for _ in 0..2 {
            if let Some(piece) = piece.as_mut().now_or_never() {
                return piece.unwrap();
            }
            tokio::task::yield_now().await;
        }
        piece.as_mut().now_or_never().and_then(Result::unwrap)
    }

    fn room(bytes: usize) -> Supply {
        Supply::new("bytes", bytes as u64, Parts::new(&[]))
    }

    #[tokio::test]
    async fn pieces_stay_short_and_no_event_is_left_out() {
        let lengths = [6000, 6000, 6000, 3 * PIECE_BYTES, 100, 6000, 6000];
        let room = room(1 << 20);
        let mut reader = Reader::new(&emitted(&lengths), false, room.clone(), UID, unshared_pace());
        let mut pieces = Vec::new();
        while let Some(piece) = reader.piece().await.unwrap() {
            assert_eq!(room.held_by(UID), piece.len() as u64);
            pieces.push(piece.to_vec());
        }
        let lines = |piece: &Vec<u8>| piece.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(pieces.iter().map(lines).collect::<Vec<_>>(), [2, 1, 1, 3]);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES || lines(piece) == 1));
        let numbers = pieces.concat();
        let numbers = numbers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let numbers = numbers.map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["seq"].as_u64());
        assert!(numbers.eq((1..=7).map(Some)));
    }

    #[tokio::test]
    async fn unread_pieces_are_charged_and_bounded_by_the_uids_part() {
        // The uid may have half of the supply.
        let (events, room) = (emitted(&[6000; 30]), room(8 * PIECE_BYTES));
        let readers = std::iter::repeat_with(|| Reader::new(&events, true, room.clone(), UID, unshared_pace()));
        let mut taken = Vec::new();
        for mut reader in readers.take(20) {
            taken.extend(at_once(&mut reader).await);
        }
        let held: usize = taken.iter().map(Bytes::len).sum();
        assert_eq!(room.held_by(UID), held as u64);
        assert!((3 * PIECE_BYTES + 1..=4 * PIECE_BYTES).contains(&held), "{held} bytes");
        drop(taken);
        assert_eq!(room.held_by(UID), 0);
    }

    #[tokio::test]
    async fn a_waiting_follower_holds_nothing_and_ends_with_the_daemons_last_event() {
        let (events, room) = (emitted(&[1]), room(1 << 20));
        let mut follower = Reader::new(&events, true, room.clone(), UID, unshared_pace());
        drop(follower.piece().await.unwrap().unwrap());
        assert!(at_once(&mut follower).await.is_none());
        assert_eq!(room.held_by(UID), 0);
        events.emit(EventKind::Draining);
        assert!(follower.piece().await.unwrap().is_some());
        assert!(follower.piece().await.unwrap().is_none());
    }

    #[test]
    fn the_query_is_the_documented_one() {
        reads_the_query_of::<EventsQuery>("events");
    }

    #[test]
    fn missed_events_are_reported_as_documented() {
        for class in Class::ALL {
            let written = line(&Read::Missed(class, 3));
            let read: EventLine = serde_json::from_slice(&written).unwrap();
            assert!(matches!(read, EventLine::Missed(_)), "{read:?}");
            assert_eq!(serde_json::to_vec(&read).unwrap(), written.trim_ascii_end());
        }
    }
}
