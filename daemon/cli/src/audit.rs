//! `enisle audit verify`: reads the log of decisions from its files, and compares its end with what the daemon knows.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use enisle_cordon::audit::{Head, Verifier};
use serde_json::{Value, json};

use crate::Failure;
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that no line was changed, taken out or put in. With a daemon on the socket also that none is missing at the end.
    Verify {
        /// The folder of the log; the daemon's own if it is not given.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

pub(crate) async fn verify(folder: Option<PathBuf>, client: &Client, as_json: bool) -> Result<u8, Failure> {
    // Asked before the files are read: what is written meanwhile makes the chain longer, never shorter.
    let daemon = match (client.get("/v1/audit").await, &folder) {
        (Ok(daemon), _) => Some(daemon),
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error.into()),
    };
    let its_own = daemon.as_ref().and_then(|daemon| daemon["folder"].as_str()).map(PathBuf::from);
    let folder = folder.or_else(|| its_own.clone()).unwrap_or_default();
    let (verifier, files) = read(&folder)?;
    let known = daemon.filter(|_| its_own.as_deref().is_some_and(|own| same(own, &folder)));
    if let Some(known) = &known {
        compare(known, &verifier, &folder)?;
    }
    let head = verifier.head().cloned().unwrap_or_default();
    if as_json {
        outln!(
            "{}",
            json!({ "lines": verifier.lines(), "files": files, "seq": head.seq, "hash": head.hash, "compared": known.is_some() })
        );
        return Ok(0);
    }
    outln!("{} lines in {files} files are whole, up to number {} ({})", verifier.lines(), head.seq, head.hash);
    if known.is_none() {
        outln!("no daemon that writes there was asked: that no line is missing at the end is not known");
    }
    Ok(0)
}

fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Every file of the log, the oldest first; the present one is last, as its name is the first in no order.
fn read(folder: &Path) -> Result<(Verifier, usize), Failure> {
    let failed =
        |path: &Path, error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", path.display()));
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    if let Some(aside) = names.iter().find(|name| name.contains(".broken-")) {
        return Err(Failure::Broken(format!(
            "{} was found broken and put aside by the daemon; the log is whole only without it",
            folder.join(aside).display()
        )));
    }
    names.retain(|name| name.starts_with("audit") && name.ends_with(".jsonl"));
    names.sort_by_key(|name| (name == "audit.jsonl", name.clone()));
    let mut verifier = Verifier::default();
    for name in &names {
        let path = folder.join(name);
        for line in BufReader::new(File::open(&path).map_err(|error| failed(&path, error))?).lines() {
            let line = line.map_err(|error| failed(&path, error))?;
            verifier.read(&line).map_err(|broken| Failure::Broken(format!("{}: {broken}", path.display())))?;
        }
    }
    Ok((verifier, names.len()))
}

/// The daemon's last line has to be among those read.
fn compare(known: &Value, verifier: &Verifier, folder: &Path) -> Result<(), Failure> {
    let known =
        Head { seq: known["seq"].as_u64().unwrap_or(0), hash: known["hash"].as_str().unwrap_or_default().to_owned() };
    let found = verifier.head().cloned().unwrap_or_default();
    let whole = if found.seq == known.seq { found.hash == known.hash } else { found.seq > known.seq };
    if whole {
        return Ok(());
    }
    Err(Failure::Broken(format!(
        "{}: the last line is number {}, and the daemon has written up to number {}: lines are missing at the end",
        folder.display(),
        found.seq,
        known.seq
    )))
}
