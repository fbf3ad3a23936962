//! What exists under a name: its owner, and what others may do with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};

pub(crate) const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What users other than the owner may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    Nothing,
    Read,
    Write,
}

/// Checks a folder, and refuses one that another user owns or may write to.
pub(crate) fn look(folder: OwnedFd) -> io::Result<(OwnedFd, FileStat, Others)> {
    let folder = openat(folder, ".", FOLDER, Mode::empty())?;
    let found = fstat(&folder)?;
    let others = judge(&found)?;
    if others == Others::Write {
        return Err(refused(format!(
            "others may write to it (mode {:o}), so nothing in it can be trusted; check what is there, then `chmod go-w` it",
            bits(&found)
        )));
    }
    Ok((folder, found, others))
}

/// Checks the owner, and returns what others may do.
pub(crate) fn judge(found: &FileStat) -> io::Result<Others> {
    if found.st_uid != 0 && !is_ours(found) {
        return Err(not_ours(found));
    }
    Ok(match bits(found) {
        mode if mode & 0o022 != 0 => Others::Write,
        mode if mode & 0o077 != 0 => Others::Read,
        _ => Others::Nothing,
    })
}

pub(crate) fn is_ours(found: &FileStat) -> bool {
    found.st_uid == nix::unistd::geteuid().as_raw()
}

pub(crate) fn bits(found: &FileStat) -> u32 {
    found.st_mode & 0o7777
}

pub(crate) fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

pub(crate) fn close_to_others(what: impl AsFd, path: &Path, found: &FileStat, mode: u32) -> io::Result<()> {
    fchmod(what, Mode::from_bits_truncate(mode))?;
    tracing::warn!(
        path = %path.display(),
        mode = %format!("{:o}", bits(found)),
        now = %format!("{mode:o}"),
        "other users had rights to what the daemon keeps; they were removed"
    );
    Ok(())
}

pub(crate) fn not_ours(found: &FileStat) -> io::Error {
    let us = nix::unistd::geteuid();
    refused(format!("it belongs to uid {}, but the daemon runs as uid {us}", found.st_uid))
}

pub(crate) fn link() -> io::Error {
    refused("it is a link; name the folder itself".to_owned())
}

pub(crate) fn not_a_file() -> io::Error {
    refused("it is not a file".to_owned())
}

pub(crate) fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}
