//! Cases that the escape fuzzer found (`found/*.js`). Each is a row of the table: while the
//! attackers of a case run against a daemon, every invariant of the fuzzer (`fuzz/src/escape`) must
//! hold.
//!
//! The header of a case says which invariant the case broke when the fuzzer found it, and how.

use std::io::Write;
use std::process::{Command, Stdio};

/// The cases by name, with their text.
pub(crate) const FOUND: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/found.rs"));

/// Runs a case with the fuzzer. The error is the fuzzer's output.
pub(crate) fn holds(case: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut fuzzer = Command::new(enisle_tests::fuzzer());
    fuzzer.args(["escape", "--case", "-"]).env(enisle_tests::PROGRAMS_VARIABLE, enisle_tests::programs());
    let mut fuzzer = fuzzer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(text)?;
    fuzzer.stdin.take().ok_or("no standard input")?.write_all(case.as_bytes()).map_err(text)?;
    let ended = fuzzer.wait_with_output().map_err(text)?;
    let said = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    if ended.status.success() { Ok("every invariant".to_owned()) } else { Err(said) }
}
