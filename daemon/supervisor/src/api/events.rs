//! `GET /v1/events`: what happened, one JSON object a line; with `?follow=1` also what happens next.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::peer::Peer;
use super::problem::Problem;
use crate::daemon::Daemon;
use crate::events::{Event, What};
use crate::server::Endless;

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
    let (past, next) = daemon.events.follow();
    let past: Vec<u8> = past.iter().flat_map(line).collect();
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if wanted.follow == 0 {
        return Ok((kind, past).into_response());
    }
    let body = Body::new(StreamBody::new(stream(Some((Some(Bytes::from(past)), next)))));
    Ok((Extension(Endless), kind, body).into_response())
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

type Follower = Option<(Option<Bytes>, tokio::sync::broadcast::Receiver<Event>)>;

/// The past as one piece, then an event a piece, until the daemon ends. A follower that is too slow is told how many
/// events it missed.
fn stream(begin: Follower) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> {
    futures_util::stream::unfold(begin, |follower| async move {
        let (past, mut next) = follower?;
        let (piece, last) = match past {
            Some(past) if !past.is_empty() => (past, false),
            _ => match next.recv().await {
                Ok(event) => (line(&event).into(), matches!(event.what, What::Draining)),
                Err(RecvError::Lagged(missed)) => {
                    (format!("{{\"event\":\"missed\",\"count\":{missed}}}\n").into(), false)
                }
                Err(RecvError::Closed) => return None,
            },
        };
        Some((Ok(Frame::data(piece)), (!last).then_some((None, next))))
    })
}
