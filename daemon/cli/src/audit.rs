//! `enisle audit verify`: reads the audit log from its files, and compares its end with what the
//! daemon has written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use enisle_api::client::Client;
use enisle_api::types::audit::AuditHead;
use enisle_cordon::audit::{Head, Verifier};
use serde::Deserialize;
use serde_json::json;

use crate::Failure;
use crate::show;

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that no line was changed, removed or inserted. If the daemon that writes this
    /// log answers on the socket, also check that no line is missing at the end.
    Verify {
        /// The folder of the log. If it is left out, the folder of the daemon's log.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

pub(crate) async fn verify(folder: Option<PathBuf>, client: &Client, as_json: bool) -> Result<u8, Failure> {
    // The daemon is asked before the files are read: lines written meanwhile make the chain longer,
    // never shorter.
    let daemon = match (client.get("/v1/audit").await, &folder) {
        (Ok(daemon), _) => Some(daemon.read::<AuditHead>()?),
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error.into()),
    };
    let its_own = daemon.as_ref().map(|daemon| PathBuf::from(&daemon.folder));
    let folder = folder.or_else(|| its_own.clone()).unwrap_or_default();
    let chain = read(&folder)?;
    let known = daemon.filter(|_| its_own.as_deref().is_some_and(|own| same(own, &folder)));
    if let Some(known) = &known {
        compare(&Head { seq: known.seq, hash: known.hash.clone() }, &chain, &folder)?;
    }
    let Chain { verifier, files, .. } = &chain;
    let head = verifier.head().cloned().unwrap_or_default();
    if as_json {
        show::out(
            &json!({ "lines": verifier.lines(), "files": files, "seq": head.seq, "hash": head.hash, "compared": known.is_some() })
                .to_string(),
        );
        return Ok(0);
    }
    let files = if *files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    outln!("{} lines in {files} are whole, up to number {} ({})", verifier.lines(), head.seq, head.hash);
    if known.is_none() {
        outln!("this was not compared with a daemon that writes this log: lines may be missing at the end");
    }
    Ok(0)
}

fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Reads every file of the log, the oldest first and the current one last, which is the order of
/// their names.
fn read(folder: &Path) -> Result<Chain, Failure> {
    let failed =
        |path: &Path, error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", path.display()));
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    if let Some(quarantined) = names.iter().find(|name| name.contains(".broken-")) {
        return Err(Failure::Damaged(format!(
            "the daemon found {} broken and quarantined it: examine the file, then move it out of the folder",
            folder.join(quarantined).display()
        )));
    }
    names.retain(|name| name.starts_with("audit") && name.ends_with(".jsonl"));
    names.sort();
    let mut chain = Chain { files: names.len(), ..Chain::default() };
    for name in &names {
        let path = folder.join(name);
        // Bytes that are not text are not a valid line either, and the verifier reports them as
        // such.
        let bytes = fs::read(&path).map_err(|error| failed(&path, error))?;
        for line in String::from_utf8_lossy(&bytes).lines() {
            let read = chain.verifier.read(line);
            read.map_err(|broken| Failure::Damaged(format!("{}: {broken}", path.display())))?;
            if let Some(Head { seq, hash }) = chain.verifier.head() {
                chain.hashes.insert(*seq, hash.clone());
            }
            chain.note(line);
        }
    }
    chain.explain_beginning().map_err(|broken| Failure::Damaged(format!("{}: {broken}", folder.display())))?;
    if chain.files == 0 {
        return Err(Failure::Usage(format!("{} holds no audit log", folder.display())));
    }
    Ok(chain)
}

/// What was read.
#[derive(Debug, Default)]
struct Chain {
    verifier: Verifier,
    files: usize,
    /// The hash of each line, by its number.
    hashes: BTreeMap<u64, String>,
    /// The last lines of deleted files, according to the log itself.
    deleted: Vec<Head>,
    /// Whether the first line says that earlier lines could not be read.
    begins_anew: bool,
}

/// The part of a line that explains why other lines are absent.
#[derive(Deserialize)]
#[serde(tag = "decision", rename_all = "camelCase")]
enum Absence {
    Deleted {
        through: Option<Head>,
    },
    Broken {},
    #[serde(other)]
    None,
}

#[derive(Deserialize)]
struct Line {
    entry: Absence,
}

impl Chain {
    fn note(&mut self, line: &str) {
        match serde_json::from_str(line).map(|Line { entry }| entry) {
            Ok(Absence::Deleted { through }) => self.deleted.extend(through),
            Ok(Absence::Broken {}) if self.verifier.lines() == 1 => self.begins_anew = true,
            _ => {}
        }
    }

    /// If the first lines are missing, a later line must say so.
    fn explain_beginning(&self) -> Result<(), String> {
        match self.verifier.before() {
            Some(before) if before.seq > 0 && !self.begins_anew && !self.deleted.contains(before) => Err(format!(
                "the log begins with line {}, and no line says that those before it were deleted (audit.keep_mb): lines \
                 are missing at the beginning",
                before.seq + 1
            )),
            _ => Ok(()),
        }
    }
}

/// The last line that the daemon has written must be among the lines that were read.
fn compare(known: &Head, read: &Chain, folder: &Path) -> Result<(), Failure> {
    if known.seq == 0 || read.hashes.get(&known.seq) == Some(&known.hash) {
        return Ok(());
    }
    let last = read.verifier.head().map_or(0, |head| head.seq);
    Err(Failure::Damaged(match last < known.seq {
        true => format!(
            "{}: the last line is number {last}, and the daemon has written up to number {}: lines are missing at the end",
            folder.display(),
            known.seq
        ),
        false => format!("{}: line {} differs from the one that the daemon has written", folder.display(), known.seq),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, head: &mut Head, entries: &[serde_json::Value]) {
        let lines = entries.iter().map(|entry| {
            let (line, next) = enisle_cordon::audit::append(head, 1, entry).unwrap();
            *head = next;
            line + "\n"
        });
        fs::write(folder.join(name), lines.collect::<String>()).unwrap();
    }

    #[test]
    fn a_chain_may_begin_later_if_it_records_what_was_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut head, ordered) = (Head::default(), json!({ "decision": "ordered", "tenant": "t" }));
        write(folder.path(), "audit-000000000001.jsonl", &mut head, &[ordered.clone(), ordered.clone()]);
        let through = head.clone();
        write(folder.path(), "audit-000000000003.jsonl", &mut head, std::slice::from_ref(&ordered));
        let deleted = json!({ "decision": "deleted", "file": "audit-000000000001.jsonl", "through": through });
        write(folder.path(), "audit.jsonl", &mut head, &[deleted, ordered]);
        assert!(read(folder.path()).is_ok());
        fs::remove_file(folder.path().join("audit-000000000001.jsonl")).unwrap();
        assert!(read(folder.path()).is_ok());
        fs::remove_file(folder.path().join("audit-000000000003.jsonl")).unwrap();
        let Err(Failure::Damaged(broken)) = read(folder.path()) else { panic!("it was accepted") };
        assert!(broken.contains("begins with line 4"), "{broken}");
    }
}
