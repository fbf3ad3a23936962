//! The daemon's own log on standard error. A separate thread writes it, so that logging never
//! blocks.
//!
//! The queue of lines is bounded. A line beyond the bound is dropped and counted, and the count is
//! logged once lines can be written again. Ordinary lines may use only a quarter of the queue, so
//! there is room for evidence and errors however many ordinary lines there are.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The target of lines that ordinary lines must not crowd out.
pub(crate) const EVIDENCE: &str = "enisled::evidence";

const MOST_BYTES: usize = 4 << 20;
const MOST_ORDINARY_BYTES: usize = 1 << 20;
/// What a queued line takes beside its text.
const LINE_BYTES: usize = 64;
/// How often lost lines are reported while others wait, and how long the daemon waits for the log
/// when it ends.
const PAUSE: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    Flush(mpsc::Sender<()>),
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    lost: AtomicU64,
}

/// The queue that lines are put into.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    messages: mpsc::Sender<Message>,
    waiting: Arc<Waiting>,
}

/// Starts logging, at the levels that `ENISLE_LOG` sets.
pub(crate) fn start() -> io::Result<Log> {
    let log = start_on(io::stderr())?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("ENISLE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(log.clone())
        .init();
    Ok(log)
}

fn start_on(out: impl Write + Send + 'static) -> io::Result<Log> {
    let (messages, receive) = mpsc::channel();
    let log = Log { messages, waiting: Arc::default() };
    let waiting = Arc::clone(&log.waiting);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write(out, &receive, &waiting))?;
    Ok(log)
}

impl Log {
    /// Waits until all queued lines are written, for at most a second.
    pub(crate) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if self.messages.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(PAUSE);
        }
    }

    fn line(&self, text: &[u8], most: usize) {
        let bytes = text.len() + LINE_BYTES;
        let room = self.waiting.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            waiting.checked_add(bytes).filter(|waiting| *waiting <= most)
        });
        if room.is_err() || self.messages.send(Message::Line(text.to_vec())).is_err() {
            self.waiting.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(mut out: impl Write, messages: &mpsc::Receiver<Message>, waiting: &Waiting) {
    let mut reported: Option<Instant> = None;
    while let Ok(message) = messages.recv() {
        let text = match message {
            Message::Line(text) => text,
            Message::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if out.write_all(&text).is_err() {
            waiting.lost.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = text.len() + LINE_BYTES;
        let left = waiting.bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if left == 0 || reported.is_none_or(|last| last.elapsed() >= PAUSE) {
            let lost = waiting.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                reported = Some(Instant::now());
                if out.write_all(lost_line(lost).as_bytes()).is_err() {
                    waiting.lost.fetch_add(lost, Ordering::Relaxed);
                }
            }
        }
    }
}

fn lost_line(lost: u64) -> String {
    let mut line = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut line));
    line + &format!(
        "  WARN enisled::logging: lines of the log were lost because they were not read in time lost={lost}\n"
    )
}

/// The line with every character visible and in its place: whatever reorders or hides text, or
/// ends a line where others do not, is escaped as JSON does, so that an event stays valid JSON.
/// (`char::escape_debug` escapes what Unicode calls format, separator, unassigned or combining.)
fn legible(text: &[u8]) -> Cow<'_, [u8]> {
    if text.is_ascii() {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    for c in String::from_utf8_lossy(text).chars() {
        let blank = matches!(c, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
        if c.is_ascii() || !(blank || c.escape_debug().len() > 1) {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out.into_bytes().into()
}

/// One line on its way to the queue.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    log: &'a Log,
    most: usize,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.log.line(&legible(text), self.most);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, most: MOST_ORDINARY_BYTES }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Line<'a> {
        let matters = line.target() == EVIDENCE || *line.level() == Level::ERROR;
        Line { log: self, most: if matters { MOST_BYTES } else { MOST_ORDINARY_BYTES } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn logging_never_waits_for_a_reader_and_reports_lost_lines() {
        let (mut read, write) = io::pipe().unwrap();
        let log = start_on(write).unwrap();
        for n in 0..100_000 {
            log.line(format!("ordinary {n}\n").as_bytes(), MOST_ORDINARY_BYTES);
        }
        log.line(b"evidence\n", MOST_BYTES);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            read.read_to_string(&mut text).map(|_| text)
        });
        drop(log);
        let text = reader.join().unwrap().unwrap();
        let lost = text.lines().filter_map(|line| line.rsplit_once("lost=")?.1.parse::<u64>().ok()).sum::<u64>();
        assert!(lost > 0 && text.contains("\nevidence\n"));
        assert_eq!(text.matches("ordinary").count() as u64 + lost, 100_000);
    }

    #[test]
    fn text_that_would_reorder_or_hide_others_is_escaped_and_stays_json() {
        let said = r#"{"reason":"Grüße, 東京\n"}"#;
        assert_eq!(legible(said.as_bytes()), said.as_bytes());
        let hidden = "\u{202e}\u{2066}\u{61c}\u{200f}\u{2028}\u{feff}\u{ad}\u{85}\u{3164}\u{e0041}";
        let line = serde_json::to_string(hidden).unwrap();
        let shown = legible(line.as_bytes());
        assert!(shown.is_ascii() && serde_json::from_slice::<String>(&shown).unwrap() == hidden, "{shown:?}");
    }

    #[test]
    fn queued_lines_are_written_before_the_end() {
        let (mut read, write) = io::pipe().unwrap();
        let log = start_on(write).unwrap();
        log.line(b"the end\n", MOST_BYTES);
        log.flush();
        drop(log);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the end\n");
    }
}
