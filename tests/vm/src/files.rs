//! The files in the machine's memory, and the archive (cpio, `newc`) from which the kernel unpacks
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::NewcBuilder;

use crate::{VmError, file_error};

/// A statically linked busybox: the machine's shell and its everyday tools.
const BUSYBOX: &[&str] = &["/bin/busybox", "/usr/bin/busybox"];

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Where a file's content comes from.
#[derive(Debug, Clone)]
enum Content {
    Host(PathBuf),
    Text(String),
}

/// The machine's files, by their paths there. All of them belong to root and are executable; no
/// test needs narrower modes.
#[derive(Debug, Clone)]
pub struct Files(BTreeMap<PathBuf, Content>);

impl Files {
    /// A machine with busybox and nothing else.
    ///
    /// # Errors
    /// The host has no busybox.
    pub fn new() -> Result<Self, VmError> {
        let busybox = BUSYBOX.iter().map(PathBuf::from).find(|path| path.exists());
        let busybox = busybox.ok_or_else(|| VmError::Missing { what: "busybox".to_owned() })?;
        Ok(Self(BTreeMap::from([("/bin/busybox".into(), Content::Host(busybox))])))
    }

    /// Adds a program of the host and the libraries that it is linked with.
    ///
    /// # Errors
    /// The program is not there, or the host's `ldd` does not say what it needs.
    pub fn program(&mut self, host: impl AsRef<Path>, guest: &str) -> Result<(), VmError> {
        let host = host.as_ref();
        for library in libraries(host)? {
            self.0.insert(library.clone(), Content::Host(library));
        }
        self.0.insert(guest.into(), Content::Host(host.to_owned()));
        Ok(())
    }

    /// Adds a file with this text.
    pub fn text(&mut self, guest: &str, text: &str) {
        self.0.insert(guest.into(), Content::Text(text.to_owned()));
    }

    /// Writes the archive.
    pub(crate) fn write_to(&self, mut archive: impl Write) -> Result<(), VmError> {
        let folders: BTreeSet<_> = self.0.keys().flat_map(|path| path.ancestors().skip(1)).collect();
        for folder in folders.into_iter().filter(|folder| *folder != Path::new("/")) {
            put(&mut archive, folder, FOLDER, &mut io::empty(), 0).map_err(file_error(folder))?;
        }
        for (path, content) in &self.0 {
            match content {
                Content::Text(text) => {
                    let bytes = u32::try_from(text.len()).map_err(io::Error::other);
                    bytes.and_then(|bytes| put(&mut archive, path, PROGRAM, &mut text.as_bytes(), bytes))
                }
                Content::Host(host) => put_host_file(&mut archive, path, host),
            }
            .map_err(file_error(path))?;
        }
        cpio::newc::trailer(archive).map(drop).map_err(VmError::Archive)
    }
}

fn put_host_file(archive: &mut impl Write, path: &Path, host: &Path) -> io::Result<()> {
    let mut file = File::open(host)?;
    // The format has 32 bits for a size.
    let bytes = u32::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    put(archive, path, PROGRAM, &mut file, bytes)
}

fn put(archive: &mut impl Write, path: &Path, mode: u32, content: &mut impl io::Read, bytes: u32) -> io::Result<()> {
    let name = path.to_string_lossy();
    let mut entry = NewcBuilder::new(name.trim_start_matches('/')).mode(mode).nlink(1).write(archive, bytes);
    io::copy(content, &mut entry)?;
    entry.finish().map(drop)
}

/// The libraries that the host's loader would load for a program, each by the path at which the
/// loader finds it.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, VmError> {
    let failed = |why: String| VmError::Libraries { program: program.to_owned(), why };
    fs::metadata(program).map_err(file_error(program))?;
    let out = Command::new("ldd").arg(program).output().map_err(|error| failed(error.to_string()))?;
    let (listed, complaint) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        // A statically linked program needs no libraries.
        let is_static = complaint.contains("not a dynamic executable") || listed.contains("statically linked");
        return if is_static { Ok(Vec::new()) } else { Err(failed(complaint.into_owned())) };
    }
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        return Err(failed(line.trim().to_owned()));
    }
    // Lines are `name => /path (address)` or `/path (address)`; the kernel's vDSO has no path.
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_every_folder_before_its_contents() {
        let mut files = Files(BTreeMap::new());
        files.text("/vm/deep/er/file", "content");
        let mut archive = Vec::new();
        files.write_to(&mut archive).unwrap();
        let mut names = Vec::new();
        let mut rest = archive.as_slice();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(names, ["vm", "vm/deep", "vm/deep/er", "vm/deep/er/file"]);
    }

    #[test]
    fn a_program_brings_its_libraries_and_its_loader() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        let has = |part: &str| found.iter().any(|path| path.to_string_lossy().contains(part));
        assert!(has("libc.so") && has("ld-linux"), "{found:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = libraries(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
