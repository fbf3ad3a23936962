//! The audit log on disk: a chain of lines (`enisle_cordon::audit`) in files that only grow.
//!
//! Lines are written in order; those that wait are written together, with one sync for up to
//! [`SYNC_BYTES`]. A half line that a crash has left at the end is cut off and kept beside the log.
//! Any other mismatch was not caused by a crash, and the file is quarantined as it is.
//!
//! All files together have a bound. Above it the oldest rotated file is deleted, which is recorded
//! as a line of the chain, with the number and hash of the last line deleted; quarantined files are
//! deleted last. If the bound is more than half of the filesystem, the oldest file is also deleted
//! when the filesystem is nearly full. On a larger filesystem no file is deleted for that reason:
//! there, another user must have filled the filesystem, and no user may have lines of the log
//! deleted that way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

use enisle_cordon::audit::{Head, Verifier, append};
use serde::Serialize;

use crate::clock;
use crate::files::{Folder, How, quarantine_name};
use crate::state::entry::Entry;
use crate::state::notes::Line;

/// A file of the audit log that exceeds this is rotated. A rotated file is named by the number of
/// its first line.
const ROTATE_BYTES: u64 = 8 << 20;
/// How much is written before each sync.
const SYNC_BYTES: usize = 1 << 20;
/// How much of a small disk stays free for standings, policies, and the next lines.
const SPARE_BYTES: u64 = 4 << 20;

/// How the log behaves on a filesystem of which it may take more than half.
#[derive(Debug, Clone, Copy)]
struct SmallDisk {
    /// Files are rotated sooner, so that there is an old one to delete.
    rotate_bytes: u64,
    /// Old files are deleted while less than this is free.
    spare_bytes: u64,
}

impl SmallDisk {
    /// Some filesystems report no size (0); they are not treated as small.
    fn of(disk_bytes: u64, keep_bytes: u64) -> Option<Self> {
        let is_small = (1..keep_bytes.saturating_mul(2)).contains(&disk_bytes);
        is_small.then(|| Self {
            rotate_bytes: ROTATE_BYTES.min(disk_bytes / 8),
            spare_bytes: SPARE_BYTES.min(disk_bytes / 4),
        })
    }
}

pub(crate) const CURRENT: &str = "audit.jsonl";

/// The log's current file.
pub(crate) struct Log {
    pub(crate) folder: Folder,
    file: File,
    bytes: u64,
    /// The number of the file's first line.
    first: u64,
    /// The most bytes that all files may have together.
    keep_bytes: u64,
    small_disk: Option<SmallDisk>,
    pub(crate) head: Head,
}

impl Log {
    /// Continues after the last line of the log. If the database knows a line (`known`), the log
    /// must reach that line, and the line must have the same hash. Anything wrong with the existing
    /// files goes to `complaints`.
    pub(crate) fn open(
        folder: Folder,
        known: Option<Head>,
        keep_bytes: u64,
        complaints: &mut Vec<String>,
    ) -> io::Result<Self> {
        let (mut head, mut first) = (last_rotated(&folder)?, None);
        let bytes = if folder.has(CURRENT)? { folder.read(CURRENT)? } else { Vec::new() };
        let (whole, torn) = split_torn(&bytes);
        if !torn.is_empty() {
            let kept = format!("audit.torn-{}", clock::unix_ms());
            folder.open(&kept, How::New)?.write_all(torn)?;
            folder.open(CURRENT, How::Change)?.set_len(whole.len() as u64)?;
            complaints.push(format!(
                "the last line of the audit log was half written, as a crash leaves it; it is now {}",
                folder.path_of(&kept).display()
            ));
        }
        let mut verifier = Verifier::default();
        let broken = whole.split_inclusive(|byte| *byte == b'\n').find_map(|line| {
            let line = std::str::from_utf8(line).map(str::trim_end).map_err(|error| error.to_string());
            let read = line.and_then(|line| verifier.read(line).map_err(|broken| broken.to_string()));
            first = first.or_else(|| verifier.head().map(|head| head.seq));
            let other =
                |head: &&Head| known.as_ref().is_some_and(|known| head.seq == known.seq && head.hash != known.hash);
            let other =
                verifier.head().filter(other).map(|head| format!("line {} is not the one that was written", head.seq));
            read.err().or(other)
        });
        head = verifier.head().cloned().unwrap_or(head);
        let missing = known.as_ref().filter(|known| known.seq > head.seq).map(|known| {
            format!("it ends with line {}, and line {} was written: lines are missing at its end", head.seq, known.seq)
        });
        if let Some(broken) = broken.or(missing) {
            let mut kept = String::new();
            if folder.has(CURRENT)? {
                let quarantined = quarantine_name(&folder, CURRENT)?;
                folder.rename(CURRENT, &quarantined)?;
                kept = format!("; the file is now {}", folder.path_of(&quarantined).display());
            }
            first = None;
            complaints.push(format!("the audit log is broken: {broken}{kept}"));
            // Numbering continues after the last line that is known to have been written.
            head = known.filter(|known| known.seq >= head.seq).unwrap_or(head);
        }
        let first = first.unwrap_or(head.seq + 1);
        let file = folder.open(CURRENT, How::Append)?;
        let bytes = file.metadata()?.len();
        let disk_bytes = folder.room()?.of_all;
        let small_disk = SmallDisk::of(disk_bytes, keep_bytes);
        if small_disk.is_some() {
            tracing::warn!(
                folder = %folder.path().display(),
                filesystem_mb = disk_bytes >> 20,
                keep_mb = keep_bytes >> 20,
                "audit.keep_mb is more than half of the filesystem: old files of the audit log are deleted when it is nearly full"
            );
        }
        let mut log = Self { folder, file, bytes, first, keep_bytes, small_disk, head };
        log.prune();
        Ok(log)
    }

    /// Writes lines in order, and moves those that are on disk to `written`. After a failure the
    /// other lines stay in `lines`, and the file has no part of them.
    pub(crate) fn append(&mut self, lines: &mut VecDeque<Line>, written: &mut Vec<Line>) -> io::Result<()> {
        if self.small_disk.is_some() {
            self.prune();
        }
        let mut most = SYNC_BYTES;
        while !lines.is_empty() {
            if self.bytes >= self.rotate_bytes() {
                self.rotate()?;
                self.prune();
            }
            match self.write(lines.iter().map(|line| &line.json), most) {
                Ok(count) => written.extend(lines.drain(..count)),
                // If many lines do not fit, the first one may.
                Err(_) if most > 0 && lines.len() > 1 => most = 0,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the first of these entries with one sync: up to `most` bytes and one more line.
    /// Returns how many were written.
    fn write<E: Serialize>(&mut self, entries: impl IntoIterator<Item = E>, most: usize) -> io::Result<usize> {
        let (mut text, mut head, mut count) = (String::new(), self.head.clone(), 0);
        for entry in entries {
            let (line, next) = append(&head, clock::unix_ms(), &entry)?;
            text.push_str(&line);
            text.push('\n');
            (head, count) = (next, count + 1);
            if text.len() > most || self.bytes + text.len() as u64 >= self.rotate_bytes() {
                break;
            }
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a line would corrupt the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        self.head = head;
        Ok(count)
    }

    fn rotate_bytes(&self) -> u64 {
        self.small_disk.map_or(ROTATE_BYTES, |disk| disk.rotate_bytes)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut rotated = format!("audit-{:012}.jsonl", self.first);
        if self.folder.has(&rotated)? {
            rotated = quarantine_name(&self.folder, &rotated)?;
        }
        self.folder.rename(CURRENT, &rotated)?;
        match self.folder.open(CURRENT, How::Append) {
            Ok(file) => self.file = file,
            Err(error) => {
                // Writing continues under the old name.
                self.folder.rename(&rotated, CURRENT)?;
                return Err(error);
            }
        }
        self.folder.sync()?;
        (self.bytes, self.first) = (0, self.head.seq + 1);
        Ok(())
    }

    /// Deletes old files if the log is over its bound. A failure is only logged, because it must
    /// not stop the log from being written.
    fn prune(&mut self) {
        if let Err(error) = self.delete_oldest() {
            tracing::error!(%error, folder = %self.folder.path().display(), "old files of the audit log cannot be deleted");
        }
    }

    /// Deletes the oldest files until the rest is within its bound, with room for the current file
    /// to grow, and a small disk has enough free space. Each deletion is recorded first.
    fn delete_oldest(&mut self) -> io::Result<()> {
        let old = self.old_files()?;
        let present: u64 = old.iter().map(|(_, bytes)| bytes).sum();
        let mut present = present.saturating_add(self.rotate_bytes().max(self.bytes));
        for (file, bytes) in old {
            let disk_is_full = match self.small_disk {
                Some(disk) => self.folder.room()?.free < disk.spare_bytes,
                None => false,
            };
            if present <= self.keep_bytes && !disk_is_full {
                break;
            }
            let through = if is_rotated(&file) { last_line(&self.folder, &file)? } else { None };
            self.write([Entry::Deleted { file: file.clone(), through }], 0)?;
            self.folder.remove(&file)?;
            if disk_is_full {
                tracing::warn!(file, bytes, "the disk is nearly full: the oldest file of the audit log was deleted");
            }
            present = present.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Every file but the current one with its size, in the order of deletion: rotated files by the
    /// number of their first line, which is in their name, then quarantined ones by age.
    fn old_files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for file in every_file(&self.folder)?.into_iter().filter(|file| file != CURRENT) {
            let Some(stat) = self.folder.find(&file)? else { continue };
            let quarantined = (!is_rotated(&file)).then_some((stat.st_mtime, stat.st_mtime_nsec));
            found.push((quarantined, file, u64::try_from(stat.st_size).unwrap_or_default()));
        }
        found.sort();
        Ok(found.into_iter().map(|(_, file, bytes)| (file, bytes)).collect())
    }
}

/// Whole lines, and what a crash has left after them. A last line without its line break was never
/// confirmed to a client.
fn split_torn(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.split_at(end)
}

/// Every file of the log, including quarantined ones.
pub(crate) fn every_file(folder: &Folder) -> io::Result<Vec<String>> {
    let mut names = folder.names()?;
    names.retain(|name| name.starts_with("audit"));
    Ok(names)
}

/// Checks, without changing anything, that the daemon can open every file of the log.
pub(crate) fn check(folder: &Folder) -> io::Result<()> {
    for file in every_file(folder)? {
        let how = if file == CURRENT { How::Change } else { How::Read };
        folder
            .check(&file, how)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.path_of(&file).display())))?;
    }
    Ok(())
}

/// Whether a file was rotated. The names of rotated files sort in the order of their lines.
fn is_rotated(name: &str) -> bool {
    name.starts_with("audit-") && name.ends_with(".jsonl")
}

/// The last line of the newest rotated file. `enisle audit verify` reports damage in that file;
/// here only the end of the chain is needed.
fn last_rotated(folder: &Folder) -> io::Result<Head> {
    let Some(newest) = every_file(folder)?.into_iter().rfind(|name| is_rotated(name)) else {
        return Ok(Head::default());
    };
    Ok(last_line(folder, &newest)?.unwrap_or_default())
}

fn last_line(folder: &Folder, file: &str) -> io::Result<Option<Head>> {
    let mut verifier = Verifier::default();
    for line in String::from_utf8_lossy(&folder.read(file)?).lines() {
        // After a broken line, the chain continues from the next line that is intact.
        let mut anew = Verifier::default();
        if verifier.read(line).is_err() && anew.read(line).is_ok() {
            verifier = anew;
        }
    }
    Ok(verifier.head().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Parts;
    use crate::state::notes::Notes;
    use std::fs;

    #[test]
    fn lines_that_a_full_disk_refuses_are_kept_and_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(Folder::make(dir.path()).unwrap(), None, 1 << 30, &mut Vec::new()).unwrap();
        let notes = Notes::new(Parts::halves(), 1 << 30);
        for n in 0..3 {
            notes.seen(None, &Entry::Broken { what: n.to_string() });
        }
        let (mut lines, mut written) = (notes.take(false).unwrap().lines, Vec::new());
        let disk = std::mem::replace(&mut log.file, File::options().write(true).open("/dev/full").unwrap());
        assert!(log.append(&mut lines, &mut written).is_err());
        assert_eq!((lines.len(), written.len(), log.head.seq), (3, 0, 0));
        log.file = disk;
        log.append(&mut lines, &mut written).unwrap();
        assert_eq!((lines.len(), written.len(), log.head.seq), (0, 3, 3));
        let mut verifier = Verifier::default();
        fs::read_to_string(dir.path().join(CURRENT)).unwrap().lines().for_each(|line| verifier.read(line).unwrap());
        assert_eq!(verifier.lines(), 3);
    }
}
