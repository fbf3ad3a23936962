//! The configuration: every number has a range, and `--check-config` finds what a start would.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use enisle_tests::{PATIENCE, is_alive, programs};

use crate::ground::{folder, leashed, pings, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] =
    &[Case { id: "S19 numbers", title: "every number of the configuration, far too large and zero", run: numbers }];

/// Every key with a number, as the daemon itself prints them, with the heading that it is under.
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

/// What `--check-config` says, and then what a start does if it was content.
fn try_config(place: &Path, text: &str) -> Result<(), String> {
    let file = place.join("enisled.toml");
    fs::write(&file, text).map_err(|error| error.to_string())?;
    let check = Command::new(programs().join("enisled")).arg("--check-config").arg("--config").arg(&file).output();
    let check = check.map_err(|error| error.to_string())?;
    match check.status.code() {
        None => return Err("--check-config crashed".to_owned()),
        Some(0) => {}
        Some(_) => return Ok(()),
    }
    let socket = place.join("s");
    let _ = fs::remove_file(&socket);
    let mut daemon = leashed(place, &socket, 0o022).stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?;
    let pid = i32::try_from(daemon.id()).map_err(|error| error.to_string())?;
    wait(PATIENCE, || pings(&socket) || !is_alive(pid));
    let lives = is_alive(pid);
    let _ = daemon.kill();
    let status = daemon.wait().map_err(|error| error.to_string())?;
    let log = fs::read_to_string(place.join("log")).unwrap_or_default();
    let last = log.lines().last().unwrap_or_default().chars().take(160).collect::<String>();
    if lives { Ok(()) } else { Err(format!("--check-config was content, and the start ended: {status}, {last}")) }
}

fn numbers(_: Options) -> Result<String, String> {
    let place = folder();
    let keys = keys();
    if keys.len() < 30 {
        return Err(format!("only {} numbers were found in --print-config", keys.len()));
    }
    let mut failures = Vec::new();
    for (heading, key) in &keys {
        for value in ["9000000000000000000", "4294967295", "0", "-1", "nan", "inf", "1e300"] {
            if let Err(error) = try_config(place.path(), &format!("{heading}\n{key} = {value}\n")) {
                failures.push(format!("{} {key} = {value}: {error}", heading.replace('\n', " ")));
            }
        }
    }
    let said = format!("{} numbers, seven values each", keys.len());
    if failures.is_empty() { Ok(said) } else { Err(format!("{said}:\n    {}", failures.join("\n    "))) }
}
