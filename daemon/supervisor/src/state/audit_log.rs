//! The audit log on the disk: a chain of lines (`enisle_cordon::audit`) in files that only grow.
//!
//! Lines are written in order, as many as wait with one wait for the disk. What a crash has left
//! half written at the end is cut off and kept beside it; anything else that does not fit was not
//! done by a crash, and the file is put aside as it is.
//!
//! All files together have a bound. Over it the oldest file that was put away is deleted, which is
//! a line of the chain like any other, with the number and hash of the last line that went; files
//! that were put aside go last. Where the bound is more than half of the filesystem, the oldest
//! file goes as well when that is nearly full. A larger one is filled by somebody else, who is to
//! delete nothing of the log that way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

use enisle_cordon::audit::{Head, Verifier, append};
use serde::Serialize;

use crate::clock;
use crate::files::{Folder, How, aside};
use crate::state::entry::Entry;
use crate::state::notes::Line;

/// A file of the audit log that is larger is put away under the number of its first line.
const ROTATE_BYTES: u64 = 8 << 20;
/// So much is written before the disk is waited for.
const SYNC_BYTES: usize = 1 << 20;
/// So much of a disk that the log fills stays free for standings, policies, and the next lines.
const SPARE_BYTES: u64 = 4 << 20;

/// What the log does on a filesystem of which it may have more than half.
#[derive(Debug, Clone, Copy)]
struct SmallDisk {
    /// A file is put away sooner, so that there is an old one to delete.
    rotate_bytes: u64,
    /// Old files go while less is free.
    spare_bytes: u64,
}

impl SmallDisk {
    /// Of some filesystems the size is not known, which is 0 then.
    fn of(disk_bytes: u64, keep_bytes: u64) -> Option<Self> {
        let is_small = (1..keep_bytes.saturating_mul(2)).contains(&disk_bytes);
        is_small.then(|| Self {
            rotate_bytes: ROTATE_BYTES.min(disk_bytes / 8),
            spare_bytes: SPARE_BYTES.min(disk_bytes / 4),
        })
    }
}

pub(crate) const CURRENT: &str = "audit.jsonl";

/// The log's present file.
pub(crate) struct Log {
    pub(crate) folder: Folder,
    file: File,
    bytes: u64,
    /// The number of the file's first line.
    first: u64,
    /// The most that all files may have together.
    keep_bytes: u64,
    small_disk: Option<SmallDisk>,
    pub(crate) head: Head,
}

impl Log {
    /// Goes on where the last line ends, which has to be the one that is `known`, if any is, or a later one. What is wrong with
    /// what is there goes to `complaints`.
    pub(crate) fn open(
        folder: Folder,
        known: Option<Head>,
        keep_bytes: u64,
        complaints: &mut Vec<String>,
    ) -> io::Result<Self> {
        let (mut head, mut first) = (last_put_away(&folder)?, None);
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
                let aside = aside(&folder, CURRENT)?;
                folder.rename(CURRENT, &aside)?;
                kept = format!("; the file is now {}", folder.path_of(&aside).display());
            }
            first = None;
            complaints.push(format!("the audit log is broken: {broken}{kept}"));
            // Numbers go on from what is known to have been written.
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
                "audit.keep_mb is more than half of the filesystem: old files of the audit log go when that is nearly full"
            );
        }
        let mut log = Self { folder, file, bytes, first, keep_bytes, small_disk, head };
        log.prune();
        Ok(log)
    }

    /// Writes lines, the first ones first, and moves those that are on the disk to `written`.
    /// After a failure the others are left, and the file is as it was without them.
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
                // Where there is no room for many there may be for the first.
                Err(_) if most > 0 && lines.len() > 1 => most = 0,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the first of these, up to `most` bytes and one line more, with one wait for the disk.
    /// Returns how many they were.
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
            // Half a line would swallow the next one.
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
        let mut away = format!("audit-{:012}.jsonl", self.first);
        if self.folder.has(&away)? {
            away = aside(&self.folder, &away)?;
        }
        self.folder.rename(CURRENT, &away)?;
        match self.folder.open(CURRENT, How::Append) {
            Ok(file) => self.file = file,
            Err(error) => {
                // Under its old name it is written on.
                self.folder.rename(&away, CURRENT)?;
                return Err(error);
            }
        }
        self.folder.sync()?;
        (self.bytes, self.first) = (0, self.head.seq + 1);
        Ok(())
    }

    /// That old files cannot be deleted keeps no line from being written.
    fn prune(&mut self) {
        if let Err(error) = self.delete_oldest() {
            tracing::error!(%error, folder = %self.folder.path().display(), "old files of the audit log cannot be deleted");
        }
    }

    /// Deletes the oldest files until the rest has no more bytes than it may, with room for the
    /// present file to grow, and something is left of a disk that the log fills. What is deleted is
    /// written down first.
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
            let through = if is_put_away(&file) { last_line(&self.folder, &file)? } else { None };
            self.write([Entry::Deleted { file: file.clone(), through }], 0)?;
            self.folder.remove(&file)?;
            if disk_is_full {
                tracing::warn!(file, bytes, "the disk is nearly full: the oldest file of the audit log was deleted");
            }
            present = present.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Every file but the present one, in the order in which they go, and its bytes. Names begin
    /// with the number of the first line; what was put aside goes last, by its age.
    fn old_files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for file in every_file(&self.folder)?.into_iter().filter(|file| file != CURRENT) {
            let Some(stat) = self.folder.find(&file)? else { continue };
            let aside = (!is_put_away(&file)).then_some((stat.st_mtime, stat.st_mtime_nsec));
            found.push((aside, file, u64::try_from(stat.st_size).unwrap_or_default()));
        }
        found.sort();
        Ok(found.into_iter().map(|(_, file, bytes)| (file, bytes)).collect())
    }
}

/// Whole lines, and what a crash has left behind them. A last line that lacks only its end was not yet believed by anybody.
fn split_torn(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.split_at(end)
}

/// Every file of the log's, those that were put aside too.
pub(crate) fn every_file(folder: &Folder) -> io::Result<Vec<String>> {
    let mut names = folder.names()?;
    names.retain(|name| name.starts_with("audit"));
    Ok(names)
}

/// Whether every file of the log is one that the daemon can open, without changing anything.
pub(crate) fn check(folder: &Folder) -> io::Result<()> {
    for file in every_file(folder)? {
        let how = if file == CURRENT { How::Change } else { How::Read };
        folder
            .check(&file, how)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.path_of(&file).display())))?;
    }
    Ok(())
}

/// Whether a file was put away when it was full. Their names are in the order of their lines.
fn is_put_away(name: &str) -> bool {
    name.starts_with("audit-") && name.ends_with(".jsonl")
}

/// The last line of the newest file that was put away. What is broken in it, `enisle audit verify` says; here it is only gone
/// on from.
fn last_put_away(folder: &Folder) -> io::Result<Head> {
    let Some(newest) = every_file(folder)?.into_iter().rfind(|name| is_put_away(name)) else {
        return Ok(Head::default());
    };
    Ok(last_line(folder, &newest)?.unwrap_or_default())
}

fn last_line(folder: &Folder, file: &str) -> io::Result<Option<Head>> {
    let mut verifier = Verifier::default();
    for line in String::from_utf8_lossy(&folder.read(file)?).lines() {
        // Behind a line that is broken the chain is gone on from where it is whole again.
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
    fn what_a_full_disk_does_not_take_is_left_and_written_later() {
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
