//! Everything that the daemon keeps is opened here: for the daemon alone, and by nobody else's
//! hand.
//!
//! A folder is opened by descriptor and never through a link. It belongs to root or to the daemon,
//! and nobody else may write to it. A file is opened below that descriptor, never through a link
//! either, and has the mode 0600. What is the daemon's and gives others rights (an older version
//! made it so) is closed to them, which is reported; what is somebody else's is refused.
//!
//! The folder of the socket is the exception: others may enter it, or they could not connect. Its
//! lock file is closed to them all the same, because `flock` needs no more than an open descriptor.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_at_path, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// To be read; it has to exist.
    Read,
    /// To be changed; it has to exist.
    Change,
    /// To be read and changed; made if it does not exist.
    Keep,
    /// To be written at its end; made if it does not exist.
    Append,
    /// To be written; it must not exist.
    New,
}

impl How {
    fn flags(self) -> OFlag {
        match self {
            Self::Read => OFlag::O_RDONLY,
            Self::Change => OFlag::O_RDWR,
            Self::Keep => OFlag::O_RDWR | OFlag::O_CREAT,
            Self::Append => OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT,
            Self::New => OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
        }
    }
}

/// Opens a file of the daemon's; the folder that it is in is looked at first.
pub(crate) fn open(path: &Path, how: How) -> io::Result<File> {
    below(&folder(&parent(path))?, path, how)
}

/// Reads a file of the daemon's.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path, How::Read)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens the file that `path` names below its folder, which was opened before. The only place where
/// the daemon opens what it keeps.
pub(crate) fn below(folder: &OwnedFd, path: &Path, how: How) -> io::Result<File> {
    let name = path.file_name().ok_or_else(|| refused("it has no name".to_owned()))?;
    // A pipe in the place of a file must not keep the daemon waiting.
    let flags = how.flags() | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| match errno {
        Errno::ELOOP => refused("it is a link, and the daemon follows none".to_owned()),
        errno => errno.into(),
    })?;
    let found = fstat(&file)?;
    if kind(&found) != SFlag::S_IFREG {
        return Err(refused("it is not a file".to_owned()));
    }
    match judge(&found)? {
        Others::Nothing => {}
        // Root may show what is root's; but what others write is not to be believed.
        Others::Read if !is_ours(&found) => {}
        Others::Read | Others::Write if is_ours(&found) => close_to_others(&file, path, &found, 0o600)?,
        _ => return Err(refused(format!("others may write to it (mode {:o})", bits(&found)))),
    }
    Ok(File::from(file))
}

/// Opens a folder of what the daemon keeps.
pub(crate) fn folder(path: &Path) -> io::Result<OwnedFd> {
    let (folder, found, others) = look(path)?;
    if others == Others::Read && is_ours(&found) {
        close_to_others(&folder, path, &found, 0o700)?;
    }
    Ok(folder)
}

/// Opens a folder of what the daemon keeps, and makes it if it does not exist.
pub(crate) fn make_folder(path: &Path) -> io::Result<OwnedFd> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    folder(path)
}

/// Opens the folder of the socket, and makes it if it does not exist. What root makes, others may
/// enter: the group of the socket has to get to it. Others' rights to an existing one are left as
/// they are, unless they may write there: they could put a socket of theirs in the place of the
/// daemon's, or make its lock file first.
pub(crate) fn make_socket_folder(path: &Path) -> io::Result<OwnedFd> {
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if nix::unistd::geteuid().is_root() {
        missing.iter().try_for_each(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))?;
    }
    Ok(look(path)?.0)
}

/// Whether a folder can be used, without changing anything. One that does not exist can.
pub(crate) fn check_folder(path: &Path) -> io::Result<()> {
    match look(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        looked => looked.map(drop),
    }
}

/// Removes what a daemon that was killed has left of a file that it was writing.
pub(crate) fn remove_left_over(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The folder that `path` is in; a name alone is in the present one.
pub(crate) fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned()
}

/// What others than the owner may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Nothing,
    Read,
    Write,
}

/// Opens a folder and refuses one that somebody else owns or may write to.
fn look(path: &Path) -> io::Result<(OwnedFd, FileStat, Others)> {
    // Without a slash at the end, behind which a link would be followed.
    let path: PathBuf = path.components().collect();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = open_at_path(&path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ELOOP | Errno::ENOTDIR if path.is_symlink() => {
            refused("it is a link; name the folder itself".to_owned())
        }
        errno => errno.into(),
    })?;
    let found = fstat(&folder)?;
    let others = judge(&found)?;
    if others == Others::Write {
        return Err(refused(format!(
            "others may write to it (mode {:o}), so nothing in it can be believed; look at what is there, then `chmod go-w` it",
            bits(&found)
        )));
    }
    Ok((folder, found, others))
}

/// Whose it is, and what others may do with it.
fn judge(found: &FileStat) -> io::Result<Others> {
    if found.st_uid != 0 && !is_ours(found) {
        let us = nix::unistd::geteuid();
        return Err(refused(format!("it belongs to uid {}, and the daemon runs as uid {us}", found.st_uid)));
    }
    Ok(match bits(found) {
        mode if mode & 0o022 != 0 => Others::Write,
        mode if mode & 0o077 != 0 => Others::Read,
        _ => Others::Nothing,
    })
}

fn is_ours(found: &FileStat) -> bool {
    found.st_uid == nix::unistd::geteuid().as_raw()
}

fn bits(found: &FileStat) -> u32 {
    found.st_mode & 0o7777
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn close_to_others(what: impl AsFd, path: &Path, found: &FileStat, mode: u32) -> io::Result<()> {
    fchmod(what, Mode::from_bits_truncate(mode))?;
    tracing::warn!(
        path = %path.display(),
        mode = %format!("{:o}", bits(found)),
        now = %format!("{mode:o}"),
        "others had rights to what the daemon keeps, and have none now"
    );
    Ok(())
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_is_the_daemons_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (name, how) in [("keep", How::Keep), ("append", How::Append), ("new", How::New)] {
            let path = dir.path().join(name);
            open(&path, how).unwrap().write_all(b"x").unwrap();
            assert_eq!((mode(&path), read(&path).unwrap()), (0o600, b"x".to_vec()), "{name}");
        }
        assert_eq!(open(&dir.path().join("new"), How::New).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for how in [How::Read, How::Change] {
            assert_eq!(open(&dir.path().join("none"), how).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        make_folder(&dir.path().join("a/b")).unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&dir.path().join("a/b"))), (0o700, 0o700));
    }

    #[test]
    fn a_link_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "whole").unwrap();
        symlink(&target, &link).unwrap();
        symlink(dir.path().join("nothing"), dir.path().join("dangling")).unwrap();
        for how in [How::Read, How::Change, How::Keep, How::Append] {
            assert!(open(&link, how).unwrap_err().to_string().contains("it is a link"), "{how:?}");
        }
        assert!(open(&link, How::New).is_err());
        assert!(open(&dir.path().join("dangling"), How::Keep).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "whole");

        fs::create_dir(dir.path().join("folder")).unwrap();
        let link = dir.path().join("way");
        symlink(dir.path().join("folder"), &link).unwrap();
        for way in [link.clone(), link.join(""), link.join(".")] {
            assert!(make_folder(&way).unwrap_err().to_string().contains("it is a link"), "{}", way.display());
            assert!(make_socket_folder(&way).is_err());
        }
        assert!(open(&link.join("x"), How::Keep).is_err());
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for how in [How::Read, How::Keep, How::Append] {
            assert!(open(&pipe, how).is_err(), "{how:?}");
        }
        assert!(open(dir.path(), How::Read).is_err());
    }

    #[test]
    fn what_is_ours_and_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder_path, file) = (dir.path().join("state"), dir.path().join("state/file"));
        fs::create_dir(&folder_path).unwrap();
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o666);
        set_mode(&folder_path, 0o755);
        open(&file, How::Read).unwrap();
        assert_eq!((mode(&folder_path), mode(&file)), (0o700, 0o600));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        for open_to_others in [0o777, 0o1777, 0o770, 0o702] {
            set_mode(&path, open_to_others);
            let refusal = make_folder(&path).unwrap_err().to_string();
            assert!(refusal.contains("others may write") && refusal.contains("chmod go-w"), "{refusal}");
            assert!(open(&path.join("file"), How::Keep).is_err());
            assert!(make_socket_folder(&path).is_err() && check_folder(&path).is_err());
            assert_eq!(mode(&path), open_to_others);
        }
        set_mode(&path, 0o755);
        assert!(check_folder(&path).is_ok() && make_socket_folder(&path).is_ok());
        assert_eq!(mode(&path), 0o755, "others may enter the folder of the socket");
    }
}
