//! Everything that the daemon keeps is opened here, so that no other user can reach it.
//!
//! A folder is opened once, step by step from the root, and held by its descriptor ([`Folder`]).
//! Everything else happens below that descriptor, by name, so that exchanging a folder on the way
//! to it later changes nothing for the daemon. When the daemon starts, no other user may be able to
//! exchange such a folder. Each folder on the way must belong to root or to the daemon; other users
//! must not be able to write to it, unless its sticky bit keeps them from each other's files
//! (`/tmp`). Links on the way must be root's or the daemon's. The folder itself must not be a link,
//! and no other user may write to it at all.
//!
//! A file is never opened through a link either, and has the mode 0600. If a file of the daemon's
//! gives rights to other users (older versions created such files), the daemon takes the rights
//! away and logs that. A file of any other user but root is refused.
//!
//! The configuration is only read ([`read_settings`]). Any user may read that file, but only root
//! or the daemon may own or change the file, its folders and the links to it.
//!
//! The folder of the socket is the exception: other users may enter it, or they could not connect.
//! The lock file is closed to them, because a user who can open a file can lock it (flock(2)).

mod found;
mod way;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statvfs::fstatvfs;

use crate::clock;
use crate::files::found::{
    FOLDER, Others, bits, close_to_others, is_ours, judge, kind, link, look, not_a_file, not_ours, refused,
};
use crate::files::way::{Last, MOST_LINKS, Missing, STEP, check_room_for_names, make_at, step, walk};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// To read it; it must exist.
    Read,
    /// To change it; it must exist.
    Change,
    /// To read and change it; created if it does not exist.
    Keep,
    /// To append to it; created if it does not exist.
    Append,
    /// To write it; it must not exist.
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

/// How large a filesystem is, and how much of it the daemon may still use, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) of_all: u64,
    pub(crate) free: u64,
}

/// A folder in which the daemon keeps something. Names in it are plain names, never paths.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: OwnedFd,
    /// Where the folder was when it was opened, for messages.
    path: PathBuf,
}

impl Folder {
    /// Opens a folder, and creates it if it does not exist.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        Self::closed(walk(path, Missing::Make { others_enter: false }, Last::Kept)?, path)
    }

    /// Opens a folder without changing anything. `None` if it does not exist and can be created.
    pub(crate) fn look(path: &Path) -> io::Result<Option<Self>> {
        Ok(check_folder(path)?.map(|folder| Self { folder, path: path.to_owned() }))
    }

    /// Checks, without changing anything, that a file in this folder could be opened.
    pub(crate) fn check(&self, name: &str, how: How) -> io::Result<()> {
        check_open(&self.folder, OsStr::new(plain_name(name)?), how)
    }

    /// Opens a folder in this one, and creates it if it does not exist.
    pub(crate) fn make_below(&self, name: &str) -> io::Result<Self> {
        let plain = OsStr::new(plain_name(name)?);
        make_at(&self.folder, plain, false)?;
        match step(&self.folder, plain)? {
            (_, found) if kind(&found) == SFlag::S_IFLNK => Err(link()),
            (folder, _) => Self::closed(folder, &self.path_of(name)),
        }
    }

    fn closed(folder: OwnedFd, path: &Path) -> io::Result<Self> {
        let (folder, found, others) = look(folder)?;
        if others == Others::Read && is_ours(&found) {
            close_to_others(&folder, path, &found, 0o700)?;
        }
        Ok(Self { folder, path: path.to_owned() })
    }

    /// A second handle to the same folder.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { folder: self.folder.try_clone()?, path: self.path.clone() })
    }

    /// The size and the free space of the folder's filesystem.
    pub(crate) fn room(&self) -> io::Result<Room> {
        let found = fstatvfs(&self.folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Ok(Room { of_all: bytes(found.blocks()), free: bytes(found.blocks_available()) })
    }

    /// Where the folder was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in the folder: for messages, not to be opened.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file in this folder.
    pub(crate) fn open(&self, name: &str, how: How) -> io::Result<File> {
        below(&self.folder, &self.path_of(plain_name(name)?), how)
    }

    /// Reads a file in this folder.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name, How::Read)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What exists under that name, including a link; `None` if nothing does.
    pub(crate) fn find(&self, name: &str) -> io::Result<Option<FileStat>> {
        match fstatat(&self.folder, plain_name(name)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    pub(crate) fn has(&self, name: &str) -> io::Result<bool> {
        Ok(self.find(name)?.is_some())
    }

    /// Every name in this folder that is valid UTF-8, in order.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut open = Dir::from_fd(openat(&self.folder, ".", FOLDER, Mode::empty())?)?;
        let mut names = Vec::new();
        for entry in open.iter() {
            names
                .extend(entry?.file_name().to_str().ok().filter(|name| ![".", ".."].contains(name)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.folder, plain_name(from)?, &self.folder, plain_name(to)?)?)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.folder, plain_name(name)?, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Makes sure that everything created, renamed and removed in this folder is on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::from(self.folder.try_clone()?).sync_all()
    }
}

/// Opens the file that `path` names, below its folder, which is already open. This is the only
/// place where the daemon opens what it keeps.
pub(crate) fn below(folder: &OwnedFd, path: &Path, how: How) -> io::Result<File> {
    let name = path.file_name().ok_or_else(|| refused("it has no name".to_owned()))?;
    let (file, found, others) = open_file(folder, name, how)?;
    match others {
        Others::Nothing => {}
        // Root may make its own files readable, but a file that others can write is not trusted.
        Others::Read if !is_ours(&found) => {}
        Others::Read | Others::Write if is_ours(&found) => close_to_others(&file, path, &found, 0o600)?,
        _ => return Err(refused(format!("others may write to it (mode {:o})", bits(&found)))),
    }
    Ok(File::from(file))
}

fn open_file(folder: &OwnedFd, name: &OsStr, how: How) -> io::Result<(OwnedFd, FileStat, Others)> {
    let (file, found) = open_only(folder, name, how)?;
    let others = judge(&found)?;
    Ok((file, found, others))
}

/// Opens a file of any owner, and nothing but a regular file.
fn open_only(folder: &OwnedFd, name: &OsStr, how: How) -> io::Result<(OwnedFd, FileStat)> {
    // A pipe in the place of a file must not block the daemon.
    let flags = how.flags() | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| match errno {
        Errno::ELOOP => refused("it is a link, and the daemon follows no links".to_owned()),
        // The name is that of a folder, a socket, or a pipe without a reader.
        Errno::EISDIR | Errno::ENXIO => not_a_file(),
        errno => errno.into(),
    })?;
    let found = fstat(&file)?;
    if kind(&found) != SFlag::S_IFREG {
        return Err(not_a_file());
    }
    Ok((file, found))
}

/// Opens the folder of the socket, and creates it if it does not exist. If root creates it, others
/// may enter, because the group of the socket must be able to reach it. An existing folder keeps
/// its mode. It is refused if others may write to it, because they could replace the daemon's
/// socket, or create its lock file first.
pub(crate) fn make_socket_folder(path: &Path) -> io::Result<OwnedFd> {
    let others_enter = nix::unistd::geteuid().is_root();
    Ok(look(walk(path, Missing::Make { others_enter }, Last::Kept)?)?.0)
}

/// Opens a folder that exists and can be used, without changing anything. Returns `None` if it does
/// not exist and can be created.
pub(crate) fn check_folder(path: &Path) -> io::Result<Option<OwnedFd>> {
    match walk(path, Missing::Check, Last::Kept).and_then(look) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => {
            let folder = looked?.0;
            check_room_for_names(&folder, path)?;
            Ok(Some(folder))
        }
    }
}

/// Checks, without changing anything, that [`below`] would open that file of a folder to change it.
/// A file that does not exist could be created.
pub(crate) fn check_file(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    check_open(folder, name, How::Change)
}

fn check_open(folder: &OwnedFd, name: &OsStr, how: How) -> io::Result<()> {
    match open_file(folder, name, how) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok((_, found, Others::Write)) if !is_ours(&found) => {
            Err(refused(format!("others may write to it (mode {:o})", bits(&found))))
        }
        opened => opened.map(drop),
    }
}

/// Reads a configuration file, which must be as trustworthy as what the daemon keeps. A link is
/// followed if only root and the daemon could exchange it.
pub(crate) fn read_settings(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    let roots = fstat(open("/", STEP, Mode::empty())?)?.st_uid;
    let mut path = std::path::absolute(path)?;
    for _ in 0..=MOST_LINKS {
        let (dir, name) = (parent(&path), path.file_name().ok_or_else(not_a_file)?);
        let folder = walk(&dir, Missing::Refuse, Last::OnTheWay)?;
        let (found_at, found) = step(&folder, name)?;
        if ![0, roots].contains(&found.st_uid) && !is_ours(&found) {
            return Err(not_ours(&found));
        }
        if kind(&found) != SFlag::S_IFLNK {
            return read_at_most(&folder, name, &found, most_bytes);
        }
        path = dir.join(readlinkat(&found_at, "")?);
    }
    Err(Errno::ELOOP.into())
}

/// Reads the file that was found, if it is still the same file. Its owner is trusted.
fn read_at_most(folder: &OwnedFd, name: &OsStr, found: &FileStat, most_bytes: u64) -> io::Result<Vec<u8>> {
    let (file, opened) = open_only(folder, name, How::Read)?;
    if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino) {
        return Err(refused("it was replaced while it was being opened".to_owned()));
    }
    if bits(&opened) & 0o022 != 0 {
        let mode = bits(&opened);
        return Err(refused(format!(
            "others may write to it (mode {mode:o}), so it cannot be trusted; check its contents, then `chmod go-w` it"
        )));
    }
    let mut bytes = Vec::new();
    File::from(file).take(most_bytes + 1).read_to_end(&mut bytes)?;
    let fits = bytes.len() as u64 <= most_bytes;
    if fits { Ok(bytes) } else { Err(io::Error::other(format!("it has more than {most_bytes} bytes"))) }
}

/// The folder that contains `path`; for a plain name, the current one.
pub(crate) fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned()
}

/// Checks that a name is not a path to somewhere else.
fn plain_name(name: &str) -> io::Result<&str> {
    let is_plain = Path::new(name).file_name().is_some_and(|last| last == name);
    if is_plain { Ok(name) } else { Err(refused(format!("{name:?} is not the name of a file"))) }
}

/// A name for quarantined data that does not exist in the folder yet.
pub(crate) fn quarantine_name(folder: &Folder, name: &str) -> io::Result<String> {
    let mut number = 0_u32;
    loop {
        let free = format!("{name}.broken-{}-{number}", clock::unix_ms());
        if !folder.has(&free)? {
            return Ok(free);
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn open(path: &Path, how: How) -> io::Result<File> {
        Folder::make(&parent(path))?.open(path.file_name().unwrap().to_str().unwrap(), how)
    }

    fn read(path: &Path) -> io::Result<Vec<u8>> {
        Folder::make(&parent(path))?.read(path.file_name().unwrap().to_str().unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_that_are_created_are_closed_to_all_other_users() {
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
        Folder::make(&dir.path().join("a/b")).unwrap();
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
            assert!(Folder::make(&way).unwrap_err().to_string().contains("it is a link"), "{}", way.display());
            assert!(make_socket_folder(&way).is_err());
        }
        assert!(open(&link.join("x"), How::Keep).is_err());
    }

    #[test]
    fn what_is_not_a_file_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for how in [How::Read, How::Keep, How::Append] {
            assert!(open(&pipe, how).is_err(), "{how:?}");
        }
        assert!(open(dir.path(), How::Read).is_err());
    }

    #[test]
    fn files_of_ours_that_are_open_to_others_are_closed_to_them() {
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
    fn a_path_that_others_could_exchange_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (way, state) = (dir.path().join("way"), dir.path().join("way/a/state"));
        fs::create_dir(&way).unwrap();
        for open_to_others in [0o777, 0o720, 0o702] {
            set_mode(&way, open_to_others);
            let refusals = [Folder::make(&state).map(drop), make_socket_folder(&state).map(drop)];
            for refusal in refusals.map(|made| made.unwrap_err().to_string()) {
                assert!(refusal.contains("on the way to it") && refusal.contains("chmod go-w"), "{refusal}");
            }
            assert!(check_folder(&state).is_err() && !way.join("a").exists());
        }
        // With the sticky bit, others may write, because they cannot rename each other's files.
        set_mode(&way, 0o1777);
        assert!(check_folder(&state).unwrap().is_none());
        Folder::make(&state).unwrap();
        assert_eq!((mode(&way.join("a")), mode(&state)), (0o700, 0o700));
        set_mode(&way, 0o777);
        assert!(check_folder(&state).is_err() && Folder::make(&state).is_err());
    }

    #[test]
    fn a_link_on_the_way_is_followed_and_its_target_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (there, way) = (dir.path().join("there"), dir.path().join("way"));
        fs::create_dir(&there).unwrap();
        for target in [
            there.clone(),
            PathBuf::from("there"),
            PathBuf::from("../").join(dir.path().file_name().unwrap()).join("there"),
        ] {
            symlink(target, &way).unwrap();
            Folder::make(&way.join("state")).unwrap();
            assert!(there.join("state").is_dir());
            fs::remove_dir(there.join("state")).unwrap();
            fs::remove_file(&way).unwrap();
        }
        symlink(&there, &way).unwrap();
        set_mode(&there, 0o777);
        assert!(Folder::make(&way.join("state")).unwrap_err().to_string().contains("on the way to it"));
        symlink("circle", dir.path().join("circle")).unwrap();
        assert!(Folder::make(&dir.path().join("circle/state")).is_err());
    }

    #[test]
    fn a_folder_exchanged_later_is_still_the_one_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away, others) = (dir.path().join("state"), dir.path().join("away"), dir.path().join("others"));
        fs::create_dir(&others).unwrap();
        fs::write(others.join("kept"), "whole").unwrap();
        let folder = Folder::make(&path).unwrap();
        fs::rename(&path, &away).unwrap();
        symlink(&others, &path).unwrap();
        assert!(!folder.has("kept").unwrap());
        folder.open("kept", How::Keep).unwrap().write_all(b"new").unwrap();
        folder.make_below("below").unwrap().open("file", How::New).unwrap();
        assert_eq!(folder.names().unwrap(), ["below", "kept"]);
        folder.rename("kept", "moved").unwrap();
        folder.remove("moved").unwrap();
        assert!(away.join("below/file").exists() && !away.join("moved").exists());
        assert_eq!(fs::read_dir(&others).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(others.join("kept")).unwrap(), "whole");
        for name in ["../others/kept", "/kept", "..", ".", "", "below/file"] {
            assert!(folder.open(name, How::Keep).is_err(), "{name:?}");
            assert!(folder.has(name).is_err() && folder.remove(name).is_err() && folder.rename("below", name).is_err());
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused_and_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        for open_to_others in [0o777, 0o1777, 0o770, 0o702] {
            set_mode(&path, open_to_others);
            let refusal = Folder::make(&path).unwrap_err().to_string();
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
