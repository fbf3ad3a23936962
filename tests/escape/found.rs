//! Cases that the escape fuzzer found (`found/*.js`), each a row: while the attackers of a case run
//! against a daemon, every invariant of the fuzzer must hold (`fuzz/src/escape`).
//!
//! The header of a case says which invariant did not hold when it was found, and what was seen.

use std::io::Write;
use std::process::{Command, Stdio};

/// The cases by name, with their text.
pub(crate) const FOUND: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/found.rs"));

/// Runs a case; an error is what the fuzzer says of it.
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
