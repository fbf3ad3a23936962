//! Which archive a build uses (the one in this tree, unless `RUSTY_V8_ARCHIVE` names another), and
//! what that archive is made from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache_dir, root};

/// The version of the `v8` crate. `Cargo.toml` pins the same version, and a test compares the two.
pub(crate) const VERSION: &str = "152.2.0";
/// The file names that the `v8` crate's build script looks for with the sandbox feature.
pub(crate) const ARCHIVE: &str = "librusty_v8_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.a.gz";
pub(crate) const BINDINGS: &str = "src_binding_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.rs";
const ARGS: &str = include_str!("../../../v8/args.gn");
const DCHECKS: &str = include_str!("../../../v8/dchecks.gn");
pub(crate) const UNITY: &str = include_str!("../../../v8/unity.py");
pub(crate) const HOOKS: &str = include_str!("../../../v8/hooks.syms");

/// Which of the two archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The archive in this tree.
    Release,
    /// An archive in which V8 checks its own assumptions (DCHECK) and ends the process if one is
    /// wrong. It is slow, for tests only, and never in this tree.
    Dchecks,
}

impl Kind {
    /// The arguments of `gn gen`.
    pub(crate) fn args(self) -> String {
        match self {
            Self::Release => ARGS.to_owned(),
            Self::Dchecks => format!("{ARGS}{DCHECKS}"),
        }
    }
}

/// One part of the patch: the name of its file and its text.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The patch as a series, in the order in which its parts are applied: every file of `v8/patches`.
pub(crate) fn patches() -> Result<Vec<Part>> {
    let folder = root().join("v8/patches");
    let mut parts = Vec::new();
    for file in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            parts.push(Part { name, text: fs::read_to_string(&path)? });
        }
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parts)
}

/// A hash of everything in this tree that decides what the archive is.
fn inputs(kind: Kind) -> Result<String> {
    let mut hash = Sha256::new();
    for part in patches()? {
        hash.update(format!("{}\0{}\0", part.name, part.text));
    }
    hash.update(format!("{VERSION}\0{}\0{UNITY}\0{HOOKS}", kind.args()));
    Ok(hex(&hash.finalize())[..12].to_owned())
}

/// A folder that holds an archive, and how it was found.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) dir: PathBuf,
    pub(crate) because: &'static str,
}

/// The folder where `cargo xtask v8 build` works. Its name depends on all that decides the result.
pub(crate) fn build_dir(kind: Kind) -> Result<PathBuf> {
    let name = match kind {
        Kind::Release => VERSION.to_owned(),
        Kind::Dchecks => format!("{VERSION}-dchecks"),
    };
    Ok(cache_dir().join("v8").join(format!("{name}-{}", inputs(kind)?)))
}

/// The folder of the archive in this tree.
fn own() -> PathBuf {
    root().join("v8")
}

fn holds_archive(dir: &Path) -> bool {
    dir.join(ARCHIVE).is_file() && dir.join(BINDINGS).is_file()
}

impl Archive {
    /// The archive's checksum; empty if no checksum is beside the archive. The `v8` crate's build
    /// script refuses an archive with another checksum.
    pub(crate) fn sha256(&self) -> String {
        let sums = fs::read_to_string(self.dir.join("SHA256SUMS")).unwrap_or_default();
        let line = sums.lines().find_map(|line| line.strip_suffix(ARCHIVE));
        line.map_or_else(String::new, |sum| sum.trim_end().to_owned())
    }
}

/// The archive that a build uses.
pub(crate) fn find() -> Result<Archive> {
    // Cargo sets the variable to this tree's folder when the user has not (`.cargo/config.toml`).
    let named = env::var_os("RUSTY_V8_ARCHIVE").map(PathBuf::from).filter(|dir| *dir != own());
    let archive = match named {
        Some(dir) => Archive { dir, because: "RUSTY_V8_ARCHIVE" },
        None => Archive { dir: own(), because: "this tree" },
    };
    if !holds_archive(&archive.dir) {
        bail!(
            "{} ({}) does not hold both files of an archive: {ARCHIVE} and {BINDINGS}",
            archive.dir.display(),
            archive.because
        );
    }
    Ok(archive)
}

pub(crate) fn status() -> Result<()> {
    println!("wanted   v8 {VERSION}, made from {}", inputs(Kind::Release)?);
    let found = find()?;
    println!("used     {}  ({})", found.dir.display(), found.because);
    for (kind, label) in [(Kind::Release, "built   "), (Kind::Dchecks, "dchecks ")] {
        let built = build_dir(kind)?.join("out");
        if holds_archive(&built) {
            println!("{label} {}  (use it: RUSTY_V8_ARCHIVE={0})", built.display());
        }
    }
    Ok(())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_the_workspace_pins() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("v8 = {{ version = \"={VERSION}\"")));
    }

    #[test]
    fn a_build_with_dchecks_has_a_folder_of_its_own() {
        assert_ne!(build_dir(Kind::Release).unwrap(), build_dir(Kind::Dchecks).unwrap());
        assert!(Kind::Dchecks.args().starts_with(&Kind::Release.args()));
        assert!(!Kind::Release.args().contains("dcheck"));
    }

    #[test]
    fn every_part_of_the_patch_states_its_purpose() {
        let parts = patches().unwrap();
        assert!(!parts.is_empty());
        for part in parts {
            let (head, _) = part.text.split_once("\n--- ").unwrap();
            for heading in ["Does:", "Safe:", "Gains:", "Test:", "Needs:"] {
                assert!(head.contains(heading), "{} has no {heading}", part.name);
            }
        }
    }

    #[test]
    fn the_archive_in_the_tree_was_made_from_the_patches_in_the_tree() {
        super::super::verify::checksums(&own()).unwrap();
    }

    #[test]
    fn a_build_takes_the_archive_in_the_tree_unless_the_user_names_another() {
        let config = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
        assert!(config.contains("RUSTY_V8_ARCHIVE = { value = \"v8\", relative = true }"));
        let sum = Archive { dir: own(), because: "a test" }.sha256();
        assert_eq!(sum.len(), 64);
        assert!(config.contains(&format!("RUSTY_V8_ARCHIVE_SHA256 = \"{sum}\"")), "the archive's checksum is {sum}");
        assert!(holds_archive(&own()));
        assert!(!holds_archive(Path::new("/proc")));
    }
}
