//! The configuration: every number has a range, and `--check-config` refuses what a start would
//! refuse.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use enisle_tests::{PATIENCE, is_alive, programs};

use crate::ground::{folder, leashed, pings, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[Case {
    id: "S19 numbers",
    title: "every number of the configuration, outside its range and at both ends",
    run: numbers,
}];

/// The heading and the key of every number that the daemon prints, and of `share_percent`.
fn keys() -> Vec<(String, String)> {
    let printed = Command::new(programs().join("enisled")).arg("--print-config").output().expect("it is built");
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let mut heading = String::new();
    let mut keys = Vec::new();
    for line in printed.lines() {
        if line.starts_with('[') {
            line.clone_into(&mut heading);
        } else if let Some((key, value)) = line.split_once(" = ")
            && value.parse::<f64>().is_ok()
        {
            keys.push((heading.clone(), key.to_owned()));
        }
    }
    keys.push(("[[peers]]\nuid = 5001".to_owned(), "share_percent".to_owned()));
    keys
}

/// Checks a configuration with `--check-config`; returns the refusal, if any.
fn check(place: &Path, text: &str) -> Result<(), String> {
    let file = place.join("enisled.toml");
    fs::write(&file, text).map_err(|error| error.to_string())?;
    let mut command = leashed(place, &place.join("s"), 0o022);
    let output = command.arg("--check-config").stderr(Stdio::piped()).output().map_err(|error| error.to_string())?;
    match output.status.code() {
        Some(0) => Ok(()),
        code => Err(format!("{code:?} {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Starts a daemon with the configuration that was checked last. The error is its last message.
fn live(place: &Path) -> Result<(), String> {
    let socket = place.join("s");
    let _ = fs::remove_file(&socket);
    let mut daemon = leashed(place, &socket, 0o022).stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?;
    let pid = i32::try_from(daemon.id()).map_err(|error| error.to_string())?;
    let lives = wait(PATIENCE, || pings(&socket) || !is_alive(pid)) && is_alive(pid);
    let _ = daemon.kill();
    let status = daemon.wait().map_err(|error| error.to_string())?;
    let log = fs::read_to_string(place.join("log")).unwrap_or_default();
    let last = log.lines().last().unwrap_or_default().chars().take(200).collect::<String>();
    if lives { Ok(()) } else { Err(format!("the start ended: {status}, {last}")) }
}

/// Numbers that must not only be within their own ranges, but also fit each other or the machine.
/// So the daemon may refuse an end of such a range.
const RELATED: [&str; 12] = [
    "watch",
    "solo",
    "sealed",
    "expelled",
    "back_below",
    "advisory_most",
    "share_most",
    "nuisance_most",
    "max_memory_mb",
    "memory_mb",
    "connections",
    // No peer may have a uid in the range that begins here.
    "uid_base",
];

/// The ends of a number's range, as the daemon states them when it refuses a value outside it.
fn ends(refusal: &str) -> Option<(&str, &str)> {
    let (_, said) = refusal.split_once("it must be between ")?;
    let (least, said) = said.split_once(" and ")?;
    Some((least, said.split_whitespace().next()?))
}

fn numbers(_: Options) -> Result<String, String> {
    let place = folder();
    let keys = keys();
    if keys.len() < 30 {
        return Err(format!("only {} numbers were found in --print-config", keys.len()));
    }
    let mut failures = Vec::new();
    let mut together = [String::new(), String::new()];
    for (heading, key) in &keys {
        let text = |value: &str| format!("{heading}\n{key} = {value}\n");
        let mut range = None;
        for value in ["9000000000000000000", "4294967295", "255", "-1", "nan", "inf", "1e300"] {
            match check(place.path(), &text(value)) {
                Err(said) if !said.starts_with("Some(1) ") => failures.push(format!("{key} = {value}: {said}")),
                // An error of the TOML parser shows the line that it cannot read, with the key.
                Err(said) if !said.contains(key) => failures.push(format!("{key} = {value} is not named: {said}")),
                Err(said) => {
                    range = range.or_else(|| ends(&said).map(|(least, most)| (least.to_owned(), most.to_owned())))
                }
                // This value is within the range of this key.
                Ok(()) => {}
            }
        }
        let Some((least, most)) = range else {
            failures.push(format!("{heading} {key}: no value was refused for its range"));
            continue;
        };
        for (end, together) in [least, most].iter().zip(&mut together) {
            match check(place.path(), &text(end)) {
                Ok(()) => {}
                Err(said) if RELATED.contains(&key.as_str()) && !said.contains("it must be between") => continue,
                Err(said) => failures.push(format!("{key} = {end}, an end of its range: {said}")),
            }
            // TOML allows each heading once, so a line goes under an existing heading.
            if !RELATED.contains(&key.as_str()) {
                let line = format!("{key} = {end}\n");
                match together.find(&format!("{heading}\n")) {
                    Some(at) => together.insert_str(at + heading.len() + 1, &line),
                    None => together.push_str(&format!("{heading}\n{line}")),
                }
            }
        }
    }
    for (text, name) in together.iter().zip(["least", "most"]) {
        let lived = check(place.path(), text).and_then(|()| live(place.path()));
        failures.extend(lived.err().map(|error| format!("everything at its {name}: {error}")));
    }
    let said = format!("{} numbers, seven values and both ends of the range each, and all ends together", keys.len());
    if failures.is_empty() { Ok(said) } else { Err(format!("{said}:\n    {}", failures.join("\n    "))) }
}
