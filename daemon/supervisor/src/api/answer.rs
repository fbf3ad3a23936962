//! The answer to a run, written piece by piece as the client reads it. The answer is held once, as
//! the worker sent it, and charged until its last byte has been sent.

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use enisle_wire::Outcome;
use enisle_wire::tenant::{Level, LogLine, ScriptError};
use serde::Serialize;
use serde_json::value::RawValue;

use super::peer::Peer;
use super::pieces::{self, PIECE_BYTES, Pace};
use super::tenants::micros_as_ms;
use crate::daemon::Daemon;
use crate::runs::run::Report;
use crate::share::Held;

/// What precedes the result.
#[derive(Debug, Serialize)]
struct Head {
    id: String,
    outcome: Outcome,
}

/// What follows the log.
#[derive(Debug, Serialize)]
struct Tail {
    truncated: bool,
    usage: Usage,
    cordon: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    cpu_ms: Millis,
    wall_ms: Millis,
    startup_us: u64,
    queued_us: u64,
    peak_heap_bytes: u64,
}

/// Milliseconds. Operators get three decimals, other peers whole milliseconds.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Millis {
    Whole(u64),
    Exact(f64),
}

/// The answer to a run, as a response. Peers that do not operate the daemon get whole milliseconds,
/// because finer numbers would be a clock for attacks on other tenants.
pub(super) fn answer(report: Report, peer: Peer, daemon: &Daemon) -> Response {
    let mut pieces = Pieces::new(report, peer.operates(daemon));
    let first = pieces.by_ref().next().unwrap_or_default();
    let body = match pieces.by_ref().next() {
        None => Body::from(first),
        second => {
            let all = [Some(first), second].into_iter().flatten().chain(pieces);
            pieces::body(Pace::of(peer.uid, daemon), all)
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer as JSON, in pieces of [`PIECE_BYTES`] to twice that; the last piece may be shorter.
pub(crate) struct Pieces {
    /// Written and not yet sent.
    written: Vec<u8>,
    next: Part,
    result: Bytes,
    error: Option<ScriptError>,
    logs: std::vec::IntoIter<LogLine>,
    tail: Tail,
    /// The memory charged for the log. The result holds the same charge.
    _held: Option<Arc<Held>>,
}

/// The part that is written next.
enum Part {
    /// The result, from this byte on.
    Result(usize),
    Error,
    Message(ScriptError),
    Stack(Option<String>),
    FirstLine,
    NextLine,
    /// A text from this byte on, and the part after it.
    Text(String, usize, Box<Part>),
    End,
}

impl Pieces {
    pub(crate) fn new(Report { id, finished, level }: Report, operates: bool) -> Self {
        let ms = |us: u64| if operates { Millis::Exact(micros_as_ms(us)) } else { Millis::Whole(us / 1000) };
        let us = |us: u64| if operates { us } else { us / 1000 * 1000 };
        let held = finished.held.map(Arc::new);
        let result = finished.result.map(|json| owned(json, held.clone())).unwrap_or_default();
        let usage = Usage {
            cpu_ms: ms(finished.usage.cpu_us),
            wall_ms: ms(finished.usage.wall_us),
            startup_us: us(finished.usage.startup_us),
            queued_us: us(u64::try_from(finished.queued.as_micros()).unwrap_or(u64::MAX)),
            // The exact number would reveal what a neighbour has made ICU load.
            peak_heap_bytes: match finished.usage.peak_heap_bytes {
                bytes if operates => bytes,
                bytes => bytes.saturating_add((1 << 20) - 1) >> 20 << 20,
            },
        };
        let tail = Tail { truncated: finished.truncated, usage, cordon: level.as_str() };
        let logs = finished.logs.into_iter();
        let mut pieces =
            Self { written: Vec::new(), next: Part::Error, result, error: finished.error, logs, tail, _held: held };
        pieces.write(&Head { id: id.to_string(), outcome: finished.outcome });
        pieces.written.pop();
        if !pieces.result.is_empty() {
            pieces.written.extend_from_slice(b",\"result\":");
            pieces.next = Part::Result(0);
        }
        pieces
    }

    fn write(&mut self, value: &impl Serialize) {
        // Writing to a vector cannot fail, and neither can serialising these types.
        let _ = serde_json::to_writer(&mut self.written, value);
    }

    /// Writes the next part. Returns false when there is none.
    fn go_on(&mut self) -> bool {
        self.next = match std::mem::replace(&mut self.next, Part::End) {
            Part::Result(from) => {
                let to = self.result.len().min(from + PIECE_BYTES);
                self.written.extend_from_slice(self.result.get(from..to).unwrap_or_default());
                if to < self.result.len() {
                    Part::Result(to)
                } else {
                    self.result = Bytes::new();
                    Part::Error
                }
            }
            Part::Error => match self.error.take() {
                None => self.begin_log(),
                Some(error) => {
                    self.written.extend_from_slice(b",\"error\":{\"name\":\"");
                    let name = error.name.clone();
                    Part::Text(name, 0, Box::new(Part::Message(error)))
                }
            },
            Part::Message(error) => {
                self.written.extend_from_slice(b",\"message\":\"");
                Part::Text(error.message, 0, Box::new(Part::Stack(error.stack)))
            }
            Part::Stack(Some(stack)) => {
                self.written.extend_from_slice(b",\"stack\":\"");
                Part::Text(stack, 0, Box::new(Part::Stack(None)))
            }
            Part::Stack(None) => {
                self.written.push(b'}');
                self.begin_log()
            }
            Part::FirstLine => self.begin_line(),
            Part::NextLine => {
                self.written.push(b'}');
                if self.logs.len() > 0 {
                    self.written.push(b',');
                }
                self.begin_line()
            }
            Part::Text(text, from, then) => {
                let piece = text_piece(&text, from);
                let to = piece.end;
                // The string is serialised in quotes; only what is between the quotes is written.
                let quoted = serde_json::to_vec(text.get(piece).unwrap_or_default()).unwrap_or_default();
                self.written.extend(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default());
                if to < text.len() {
                    Part::Text(text, to, then)
                } else {
                    self.written.push(b'"');
                    *then
                }
            }
            Part::End => return false,
        };
        true
    }

    fn begin_log(&mut self) -> Part {
        self.written.extend_from_slice(b",\"logs\":[");
        Part::FirstLine
    }

    fn begin_line(&mut self) -> Part {
        let Some(line) = self.logs.next() else {
            self.end_log();
            return Part::End;
        };
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Beginning {
            t_ms: u32,
            level: Level,
        }
        self.write(&Beginning { t_ms: line.t_ms, level: line.level });
        self.written.pop();
        self.written.extend_from_slice(b",\"text\":\"");
        Part::Text(line.text, 0, Box::new(Part::NextLine))
    }

    fn end_log(&mut self) {
        self.written.extend_from_slice(b"],");
        let tail = serde_json::to_vec(&self.tail).unwrap_or_default();
        self.written.extend(tail.get(1..).unwrap_or_default());
    }
}

/// The range of the next piece of a text from this byte on. It ends at a character boundary.
fn text_piece(text: &str, from: usize) -> Range<usize> {
    // A byte of text is at most six bytes of JSON.
    from..text.floor_char_boundary(text.len().min(from + PIECE_BYTES / 6))
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.written.len() < PIECE_BYTES && self.go_on() {}
        (!self.written.is_empty()).then(|| std::mem::take(&mut self.written).into())
    }
}

/// The text of a result, with the charge that is held for it.
fn owned(json: Box<RawValue>, held: Option<Arc<Held>>) -> Bytes {
    struct Owned {
        json: Box<str>,
        _held: Option<Arc<Held>>,
    }

    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            self.json.as_bytes()
        }
    }

    Bytes::from_owner(Owned { json: json.into(), _held: held })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use enisle_wire::tenant::{Advice, RunId, Usage};
    use serde_json::{Value, json};

    use super::*;
    use crate::homes::exchange::Finished;

    fn report(result: Option<&str>, lines: &[String]) -> Report {
        let line = |text: &String| LogLine { t_ms: 7, level: Level::Warn, text: text.clone() };
        let error = ScriptError { name: "E".to_owned(), message: "\"m\"".repeat(20_000), stack: Some("s".to_owned()) };
        let finished = Finished {
            outcome: if result.is_some() { Outcome::Ok } else { Outcome::Exception },
            result: result.map(|text| RawValue::from_string(text.to_owned()).unwrap()),
            error: result.is_none().then_some(error),
            logs: lines.iter().map(line).collect(),
            truncated: false,
            usage: Usage { cpu_us: 1500, ..Usage::default() },
            queued: Duration::from_micros(3),
            advice: Advice::default(),
            held: None,
        };
        Report { id: RunId(5), finished, level: enisle_cordon::Level::Shared }
    }

    #[test]
    fn a_peer_that_does_not_operate_the_daemon_gets_whole_milliseconds() {
        let pieces: Vec<Bytes> = Pieces::new(report(Some("1"), &[]), false).collect();
        let read: Value = serde_json::from_slice(&pieces.concat()).unwrap();
        let expected = json!({"cpuMs": 1, "wallMs": 0, "startupUs": 0, "queuedUs": 0, "peakHeapBytes": 0});
        assert_eq!(read["usage"], expected);
    }

    #[test]
    fn the_pieces_of_a_short_or_long_answer_are_the_described_json() {
        let long = "ä\u{1}\"\u{1f600}".repeat(20_000);
        let result = serde_json::to_string(&long).unwrap();
        for (result, lines) in [
            (Some("42"), vec![]),
            (None, vec![String::new(), "x".to_owned()]),
            (Some(result.as_str()), vec![long.clone(), String::new(), long.clone()]),
        ] {
            let pieces: Vec<Bytes> = Pieces::new(report(result, &lines), true).collect();
            assert!(pieces.iter().all(|piece| piece.len() < 3 * PIECE_BYTES));
            let bytes = pieces.concat();
            // The described type is serialised to exactly these bytes.
            let described: enisle_api::types::run::Answer = serde_json::from_slice(&bytes).unwrap();
            assert!(serde_json::to_vec(&described).unwrap() == bytes, "{described:?}");
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            let logs: Vec<_> = lines.iter().map(|text| json!({"tMs": 7, "level": "warn", "text": text})).collect();
            let mut expected = json!({
                "id": "run_00000000000000000000000000000005", "outcome": if result.is_some() { "ok" } else { "exception" }, "logs": logs,
                "truncated": false, "cordon": "shared",
                "usage": {"cpuMs": 1.5, "wallMs": 0.0, "startupUs": 0, "queuedUs": 3, "peakHeapBytes": 0},
            });
            match result {
                Some(result) => expected["result"] = serde_json::from_str(result).unwrap(),
                None => expected["error"] = json!({"name": "E", "message": "\"m\"".repeat(20_000), "stack": "s"}),
            }
            assert_eq!(read, expected);
        }
    }
}
