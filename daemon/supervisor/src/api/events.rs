//! `GET /v1/events`: what happened, one JSON object a line; with `?follow=1` also what happens next.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::watch;

use super::peer::Peer;
use super::problem::Problem;
use crate::api::server::Endless;
use crate::daemon::Daemon;
use crate::events::{Cursor, Events, Read, What};

/// Events that one piece of an answer has.
const PIECE: usize = 128;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    #[serde(default)]
    follow: u8,
}

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    peer.operate(&daemon)?;
    let Query(wanted) =
        wanted.map_err(|error| Problem::bad_request(format!("{error}; the one parameter is follow=1")))?;
    let events = Arc::clone(&daemon.events);
    let next = events.follow();
    let until = (wanted.follow == 0).then(|| *next.borrow());
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    let body = Body::new(StreamBody::new(stream(Reader { events, cursor: Cursor::default(), next, until })));
    if wanted.follow == 0 {
        return Ok((kind, body).into_response());
    }
    Ok((Extension(Endless), kind, body).into_response())
}

struct Reader {
    events: Arc<Events>,
    cursor: Cursor,
    next: watch::Receiver<u64>,
    /// The last event that is wanted, by one that does not follow.
    until: Option<u64>,
}

/// A piece after the other, for a follower until the daemon ends. What was forgotten before it was
/// read is told with its number.
fn stream(reader: Reader) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        loop {
            if reader.until.is_some_and(|until| reader.cursor.seq >= until) {
                return None;
            }
            // What comes after this is told again.
            reader.next.mark_unchanged();
            let read = reader.events.read(&mut reader.cursor, PIECE);
            if !read.is_empty() {
                let is_last = |read: &Read| matches!(read, Read::Event(event) if matches!(event.what, What::Draining));
                let ends = reader.until.is_none() && read.iter().any(is_last);
                let piece: Vec<u8> = read.iter().flat_map(line).collect();
                return Some((Ok(Frame::data(piece.into())), (!ends).then_some(reader)));
            }
            reader.next.changed().await.ok()?;
        }
    })
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

    use super::*;
    use crate::api::described::reads_the_query_of;
    use crate::events::Class;

    #[test]
    fn the_query_is_as_it_is_described() {
        reads_the_query_of::<Wanted>("events");
    }

    #[test]
    fn what_was_missed_is_told_as_it_is_described() {
        for class in Class::ALL {
            let told = line(&Read::Missed(class, 3));
            let read: EventLine = serde_json::from_slice(&told).unwrap();
            assert!(matches!(read, EventLine::Missed(_)), "{read:?}");
            assert_eq!(serde_json::to_vec(&read).unwrap(), told.trim_ascii_end());
        }
    }
}
