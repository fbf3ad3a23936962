//! Output for people and for machines. All output for people is escaped: a tenant's text must
//! neither drive the terminal nor be shown as something that it is not. Machines get the daemon's
//! bytes.

use std::io::{Write, stderr, stdout};
use std::os::fd::AsFd;

use enisle_api::client::{Body, ClientError};
use enisle_api::types::run::{Answer, LogLine, ScriptError};
use enisle_api::types::tenant::TenantRow;
use enisle_api::types::worker::Worker;
use serde::Serialize;
use serde_json::Value;
use unicode_width::UnicodeWidthChar;

/// Prints a line on standard output as it is. (`outln!` is for people.) If writing fails, for
/// example because the reader has gone away, the program ends quietly, as `cat` does.
pub(crate) fn out(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line on standard error. A closed standard error is ignored.
pub(crate) fn err(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// A line for people on standard output.
pub(crate) fn out_safe(text: &str) {
    out(&shown(text, columns(stdout())));
}

/// A line for people on standard error.
pub(crate) fn err_safe(text: &str) {
    err(&shown(text, columns(stderr())));
}

/// The text as [`safe`] gives it, folded on a terminal so that the terminal breaks no line.
fn shown(text: &str, columns: Option<usize>) -> String {
    let safe = safe(text);
    match columns {
        Some(columns) => folded(&safe, columns),
        None => safe,
    }
}

/// The daemon's answer, byte for byte.
pub(crate) fn json(body: &Body) -> Result<(), ClientError> {
    out(body.text()?);
    Ok(())
}

/// `text`, with every character escaped that is not shown as itself: control characters except line
/// ends and tabs, characters that are invisible or reorder their neighbours, and combining marks
/// piled up until they cover neighbouring lines. The escapes are those of JSON, so an escaped
/// result is still the same JSON.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut marks = 0;
    for c in text.chars() {
        marks = if c.width() == Some(0) { marks + 1 } else { 0 };
        if matches!(c, '\n' | '\t') || !(c.is_control() || is_format(c) || marks > MOST_MARKS) {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The most combining marks on one letter. No language writes as many.
const MOST_MARKS: usize = 6;

/// The width of a terminal; `None` if the stream is not a terminal.
fn columns(stream: impl AsFd) -> Option<usize> {
    // Only a terminal has a size (ioctl_tty(2)). A terminal that does not know its own is assumed
    // to have the usual width.
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(if size.ws_col == 0 { 80 } else { size.ws_col.into() })
}

/// Comes before the rest of a folded line, and before every further line of a script's text. Only
/// this client's own lines begin at the margin.
const INDENT: &str = "    ";

/// `text`, broken and indented where a terminal would break it and continue at the margin.
fn folded(text: &str, columns: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for c in text.chars() {
        let width = most_columns(c);
        if c == '\n' {
            at = 0;
        } else if at + width > columns && at > INDENT.len() {
            out.push('\n');
            out.push_str(INDENT);
            at = INDENT.len() + width;
        } else {
            at += width;
        }
        out.push(c);
    }
    out
}

/// The most columns that any terminal gives a character. A line that ends too early is harmless; a
/// line that the terminal breaks could pass for one of the client's.
fn most_columns(c: char) -> usize {
    match c {
        '\t' => 8,
        ' '..='~' => 1,
        _ => c.width_cjk().unwrap_or_default().max(1),
    }
}

/// The API's name for a level, a signal and the like.
pub(crate) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

/// A script's text with its further lines indented: at the margin they would pass for lines of the
/// client's own. The lines of a stack are indented already.
fn hanging(text: &str) -> String {
    let mut lines = text.split('\n');
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |shown, line| shown + if line.starts_with("    ") { "\n" } else { "\n    " } + line)
}

/// [`safe`] without line ends: each would begin a line that this program did not write.
pub(crate) fn one_line(text: &str) -> String {
    safe(text).replace('\n', "\\n")
}

/// Format characters (Unicode 17, general category Cf), separators of lines and paragraphs, and
/// blanks that are letters.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        // A blank that is a pattern of dots.
        | '\u{2800}'
        // Joiners and marks of direction; separators; embeddings, overrides and isolates; invisible
        // operators.
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        // Tags, and variants of glyphs: text that is carried along unseen.
        | '\u{e0000}'..='\u{e0fff}')
}

/// A run: its console on standard error, its result on standard output.
pub(crate) fn answer(answer: &Answer) {
    for LogLine { level, text, .. } in &answer.logs {
        errln!("[{}] {}", word(level), hanging(text));
    }
    if answer.truncated {
        errln!("(the log was cut: limits.logBytes, limits.logLines)");
    }
    if let Some(ScriptError { name, message, stack }) = &answer.error {
        let stack = stack.as_deref().filter(|stack| !stack.is_empty());
        let text = stack.map_or_else(|| format!("{name}: {message}"), str::to_owned);
        errln!("{}: {}", answer.outcome, hanging(&text));
    }
    if let Some(result) = &answer.result {
        outln!("{}", pretty(result.get()).as_deref().unwrap_or_else(|| result.get()));
    }
}

/// How many times as long as the result's text the indented result may be. Without a bound, a
/// deeply nested result would fill the terminal, or the disk, with blanks.
const MOST_INDENTED: usize = 8;
const SPARE_BYTES: usize = 4096;

/// JSON with line ends and indentation instead of its own blanks, and nothing else changed: no
/// number is rounded, no key is moved, and depth and escapes are kept. `None` if the result would
/// become much longer than `json`.
fn pretty(json: &str) -> Option<String> {
    let most = json.len().saturating_mul(MOST_INDENTED).saturating_add(SPARE_BYTES);
    let mut out = String::with_capacity(json.len());
    let mut depth = 0_usize;
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = json.chars().peekable();
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', 2 * depth));
    };
    while let Some(c) = rest.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            ' ' | '\t' | '\n' | '\r' => {}
            '{' | '[' => {
                out.push(c);
                while rest.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                match rest.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_string = c == '"';
                out.push(c);
            }
        }
        if out.len() > most {
            return None;
        }
    }
    Some(out)
}

pub(crate) fn workers(workers: &[Worker]) {
    outln!("{:>4} {:>8} {:<7} {:>9} {:>7} {:>5}  TENANTS", "ID", "PID", "CORDON", "RSS MiB", "AGE s", "READY");
    for Worker { id, pid, cordon, tenants, rss_bytes, age_ms, places_ready, .. } in workers {
        let (rss, age) = (rss_bytes.unwrap_or_default() >> 20, age_ms / 1000);
        let who = if tenants.is_empty() { "(standby)".to_owned() } else { tenants.join(" ") };
        outln!("{id:>4} {pid:>8} {cordon:<7} {rss:>9} {age:>7} {places_ready:>5}  {who}");
    }
}

pub(crate) fn tenants(tenants: &[TenantRow]) {
    outln!("{:<32} {:<8} {:>6} {:>9} {:>9} {:>12}", "TENANT", "CORDON", "SCORE", "IN FLIGHT", "RUNS", "CPU ms");
    for TenantRow { name, in_flight, cordon, usage, .. } in tenants {
        let (level, score, runs, cpu) = (cordon.level, cordon.score, usage.runs, usage.cpu_ms);
        outln!("{name:<32} {level:<8} {score:>6?} {in_flight:>9} {runs:>9} {cpu:>12?}");
    }
}

/// Prints one event: the JSON itself, or its parts in a row.
pub(crate) fn event(text: &str, as_json: bool) {
    if as_json {
        return out(text);
    }
    let Ok(Value::Object(mut event)) = serde_json::from_str(text) else {
        outln!("{}", one_line(text));
        return;
    };
    let seq = event.remove("seq").unwrap_or_default();
    event.remove("unixMs");
    let name = event.remove("event").unwrap_or_default();
    let parts: Vec<_> = event
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    outln!("{seq:>6} {:<18} {}", name.as_str().unwrap_or_default(), one_line(&parts.join(" ")));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with this outcome, and the fields that follow it.
    fn answer_of(outcome: &str) -> String {
        let usage = r#"{"cpuMs":1.5,"wallMs":2,"startupUs":0,"queuedUs":0,"peakHeapBytes":0}"#;
        format!(r#"{{"id":"r","outcome":{outcome},"logs":[],"truncated":false,"usage":{usage},"cordon":"solo"}}"#)
    }

    #[test]
    fn a_script_cannot_drive_the_terminal() {
        assert_eq!(safe("a\u{1b}[31mb\n\u{7}\r\u{9b}"), "a\\u001b[31mb\n\\u0007\\u000d\\u009b");
        assert_eq!(one_line("a\nb"), "a\\nb");
    }

    #[test]
    fn no_character_that_is_not_shown_as_itself_reaches_the_terminal() {
        let bidirectional = ['\u{200e}', '\u{200f}', '\u{61c}'].into_iter();
        let bidirectional = bidirectional.chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
        for c in bidirectional.chain(['\u{feff}', '\u{2028}', '\u{2029}', '\u{ad}', '\u{200b}', '\u{e0041}']) {
            let shown = safe(&c.to_string());
            assert!(shown.is_ascii(), "{shown}");
            // A reader of JSON still gets the same text.
            assert_eq!(serde_json::from_str::<String>(&format!("\"{shown}\"")).unwrap(), c.to_string());
        }
        let ordinary = "Grüße, 你好, עברית, \u{1f600} \t\n";
        assert_eq!(safe(ordinary), ordinary);
    }

    #[test]
    fn invisible_characters_are_shown_as_escapes() {
        for hidden in ['\u{fe00}', '\u{fe0f}', '\u{2800}'] {
            assert_eq!(safe(&hidden.to_string()), format!("\\u{:04x}", u32::from(hidden)));
        }
        for mark in ['\u{300}', '\u{e47}', '\u{20dd}'] {
            let shown = safe(&format!("a{}b", mark.to_string().repeat(3000)));
            assert_eq!(shown.chars().filter(|c| *c == mark).count(), MOST_MARKS);
            assert!(shown.ends_with(&format!("\\u{:04x}b", u32::from(mark))));
        }
        let accents = "e\u{301}\u{323}".repeat(100);
        assert_eq!(safe(&accents), accents);
    }

    #[test]
    fn no_text_of_a_script_reaches_the_margin_of_a_terminal() {
        let says = "enisle: the daemon says 200";
        for (blank, columns) in
            [(" ", 80), (" ", 7), ("\t", 80), ("\u{3000}", 80), ("\u{a0}", 81), ("ä", 80), ("\u{300}", 80)]
        {
            for before in 0..200 {
                let line = format!("[log] {}", hanging(&format!("{}{says}", blank.repeat(before))));
                let shown = shown(&line, Some(columns));
                let mut lines = shown.lines();
                let first = lines.next().unwrap();
                assert!(first.starts_with("[log] "), "{shown}");
                assert!(lines.clone().all(|line| line.starts_with(INDENT)), "{shown}");
                // The terminal does not break any of these lines either.
                let widest = |line: &str| line.chars().map(most_columns).sum::<usize>();
                assert!([first].into_iter().chain(lines).all(|line| widest(line) <= columns.max(12)), "{shown}");
                assert_eq!(shown.replace(&format!("\n{INDENT}"), ""), safe(&line));
            }
        }
    }

    #[test]
    fn text_is_folded_only_if_it_is_wider_than_a_terminal() {
        let text = format!("{}\n{}", "x".repeat(80), "y".repeat(80));
        assert_eq!(shown(&text, Some(80)), text);
        assert_eq!(shown(&text, None), text);
        assert_eq!(shown(&text, Some(79)), format!("{}\n    x\n{}\n    y", "x".repeat(79), "y".repeat(79)));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(columns(&file), None);
    }

    #[test]
    fn a_result_is_indented_and_otherwise_unchanged() {
        let (result, indented) = (
            r#"{"z":1.10,"a":[1e999,{},[ ],"\ud800\"{[:,"],"a":null}"#,
            "{\n  \"z\": 1.10,\n  \"a\": [\n    1e999,\n    {},\n    [],\n    \"\\ud800\\\"{[:,\"\n  ],\n  \"a\": null\n}",
        );
        assert_eq!(pretty(result).as_deref(), Some(indented));
        for plain in ["1", "null", "\"a: b\"", "[]"] {
            assert_eq!(pretty(plain).as_deref(), Some(plain));
        }
    }

    #[test]
    fn a_deep_result_is_shown_and_one_that_would_fill_the_disk_is_not_indented() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        let wide = format!("{}{}1{}", "[".repeat(400), "1,".repeat(100_000), "]".repeat(400));
        for result in [&deep, &wide] {
            let answer: Answer = serde_json::from_str(&answer_of(&format!(r#""ok","result":{result}"#))).unwrap();
            assert_eq!(answer.result.unwrap().get(), result);
        }
        assert_eq!(pretty(&wide), None);
    }

    #[test]
    fn a_result_of_null_is_a_result() {
        let read = |parts| serde_json::from_str::<Answer>(&answer_of(parts)).unwrap().result;
        let read = |parts| read(parts).map(|result| result.get().to_owned());
        assert_eq!(read(r#""ok","result":null"#).as_deref(), Some("null"));
        assert_eq!(read(r#""exception""#), None);
        assert_eq!(read(r#""ok","result":"\ud800""#).as_deref(), Some(r#""\ud800""#));
    }
}
