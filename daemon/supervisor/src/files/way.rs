//! The way to a folder: step by step from the root, where no other user could exchange anything.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use nix::unistd::{AccessFlags, faccessat};

use crate::files::found::{FOLDER, bits, is_ours, kind, link, refused};

/// What becomes of folders that do not exist.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Missing {
    Refuse,
    /// Fail with `NotFound` if the first missing folder could be created, with another error if
    /// not.
    Check,
    Make {
        others_enter: bool,
    },
}

/// What the last folder of the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// One that the daemon keeps something in: not a link, and checked by the caller that opens it.
    Kept,
    /// Like the folders before it.
    OnTheWay,
}

/// The kernel does not follow longer chains of links either (path_resolution(7)).
pub(crate) const MOST_LINKS: usize = 40;
/// Without read access, which other users' folders on the way need not grant.
pub(crate) const STEP: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Walks to a folder from the root, below one descriptor after another. Only root and the daemon
/// may be able to exchange anything on the way.
pub(crate) fn walk(path: &Path, missing: Missing, last: Last) -> io::Result<OwnedFd> {
    let (mut at, mut way) = (open("/", STEP, Mode::empty())?, PathBuf::new());
    let roots = fstat(&at)?.st_uid;
    let mut left = backwards(&std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = left.pop() {
        way.push(&name);
        let (next, found) = match (step(&at, &name), missing) {
            (Err(error), Missing::Make { others_enter }) if error.kind() == io::ErrorKind::NotFound => {
                make_at(&at, &name, others_enter)?;
                step(&at, &name)?
            }
            (Err(error), Missing::Check) if error.kind() == io::ErrorKind::NotFound => {
                way.pop();
                check_room_for_names(&at, &Path::new("/").join(&way))?;
                return Err(error);
            }
            (stepped, _) => stepped?,
        };
        let is_last = left.is_empty() && last == Last::Kept;
        match kind(&found) {
            SFlag::S_IFDIR => at = next,
            SFlag::S_IFLNK if is_last => return Err(link()),
            SFlag::S_IFLNK if links < MOST_LINKS => {
                links += 1;
                left.extend(backwards(Path::new(&readlinkat(&next, "")?)));
            }
            _ => return Err(Errno::ENOTDIR.into()),
        }
        if !is_last {
            check_way(&way, &found, roots)?;
        }
        if kind(&found) == SFlag::S_IFLNK {
            way.pop();
        }
    }
    Ok(at)
}

fn backwards(path: &Path) -> Vec<std::ffi::OsString> {
    path.components().rev().map(|component| component.as_os_str().to_owned()).collect()
}

pub(crate) fn step(at: &OwnedFd, name: &OsStr) -> io::Result<(OwnedFd, FileStat)> {
    let next = openat(at, name, STEP, Mode::empty())?;
    let found = fstat(&next)?;
    Ok((next, found))
}

/// Creates a folder. One that exists already is checked by the caller that opens it.
pub(crate) fn make_at(at: &OwnedFd, name: &OsStr, others_enter: bool) -> io::Result<()> {
    match mkdirat(at, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    if others_enter {
        fchmod(openat(at, name, FOLDER, Mode::empty())?, Mode::from_bits_truncate(0o755))?;
    }
    Ok(())
}

/// Checks that others cannot exchange what comes after this folder or link on the way. The owner of
/// `/` can exchange everything: root, or the uid that the kernel shows instead of root in a user
/// namespace that does not map root.
fn check_way(way: &Path, found: &FileStat, roots: u32) -> io::Result<()> {
    let way = way.display();
    if ![0, roots].contains(&found.st_uid) && !is_ours(found) {
        return Err(refused(format!("{way} on the way to it belongs to uid {}, who could exchange it", found.st_uid)));
    }
    // In a sticky folder like /tmp, users cannot remove or rename each other's files. A link has no
    // mode.
    let sticky = bits(found) & 0o1000 != 0;
    if kind(found) == SFlag::S_IFDIR && bits(found) & 0o022 != 0 && !sticky {
        return Err(refused(format!(
            "others may write to {way} on the way to it (mode {:o}), and could exchange it; `chmod go-w {way}`",
            bits(found)
        )));
    }
    Ok(())
}

/// Checks that the daemon can create something in a folder.
pub(crate) fn check_room_for_names(folder: &OwnedFd, path: &Path) -> io::Result<()> {
    let failed = |errno: Errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("nothing can be made in {}: {error}", path.display()))
    };
    // On these filesystems root has every right, and still nothing can be created.
    let kind = fstatfs(folder).map_err(failed)?.filesystem_type();
    if [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&kind) {
        return Err(failed(Errno::EPERM));
    }
    faccessat(folder, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(failed)
}
