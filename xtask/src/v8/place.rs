//! Finding an archive: the environment, this checkout, a shared folder beside it, the cache.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::root;

/// The `v8` crate's version; `Cargo.toml` pins the same one, and a test compares them.
pub(crate) const VERSION: &str = "152.2.0";
/// The file names that the `v8` crate's build script looks for with the sandbox feature.
pub(crate) const ARCHIVE: &str = "librusty_v8_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.a.gz";
pub(crate) const BINDINGS: &str = "src_binding_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.rs";
pub(crate) const ARGS: &str = include_str!("../../../v8/args.gn");
pub(crate) const UNITY: &str = include_str!("../../../v8/unity.py");
pub(crate) const HOOKS: &str = include_str!("../../../v8/hooks.syms");

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

/// A hash of everything of ours that decides what the archive is.
fn inputs() -> Result<String> {
    let mut hash = Sha256::new();
    for part in patches()? {
        hash.update(format!("{}\0{}\0", part.name, part.text));
    }
    hash.update(format!("{VERSION}\0{ARGS}\0{UNITY}\0{HOOKS}"));
    Ok(hex(&hash.finalize())[..12].to_owned())
}

/// The link that `.cargo/config.toml` names, and what a build says while it is not there.
const LINK: &str = "there is no V8 archive yet; build one (about an hour, resumable) with: cargo xtask v8 build; or point at \
                    one with: cargo xtask v8 use DIR";

fn link() -> PathBuf {
    root().join(".v8").join(LINK)
}

/// A folder that holds an archive, and how it was found.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) dir: PathBuf,
    pub(crate) because: &'static str,
}

/// The folder that `cargo xtask v8 build` works in, keyed by all that decides the result.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(|| root().join("target"));
    Ok(base.join("enisle/v8").join(format!("{VERSION}-{}", inputs()?)))
}

/// Every place that is looked at, in order.
fn places() -> Vec<Archive> {
    let mut places = Vec::new();
    // Cargo sets the variable to this checkout's link when the user has not; only the user's own counts here.
    if let Some(dir) = env::var_os("RUSTY_V8_ARCHIVE").map(PathBuf::from)
        && dir != link()
    {
        places.push(Archive { dir, because: "RUSTY_V8_ARCHIVE" });
    }
    places.push(Archive { dir: link(), because: "cargo xtask v8 use" });
    places.push(Archive { dir: root().join("v8"), because: "the archive in this tree" });
    places.push(Archive { dir: root().join("../shared/v8"), because: "the shared folder beside this checkout" });
    if let Ok(cache) = cache_dir() {
        places.push(Archive { dir: cache.join("out"), because: "cargo xtask v8 build" });
    }
    places
}

fn holds_archive(dir: &Path) -> bool {
    dir.join(ARCHIVE).is_file() && dir.join(BINDINGS).is_file()
}

pub(crate) fn find() -> Option<Archive> {
    places().into_iter().find_map(|place| {
        let dir = place.dir.canonicalize().ok()?;
        holds_archive(&dir).then_some(Archive { dir, ..place })
    })
}

pub(crate) fn or_explain() -> Result<Archive> {
    find().with_context(|| {
        format!(
            "there is no V8 archive: enisle needs a V8 {VERSION} with its own patch, which nobody publishes.\n\
             Build one (about an hour on two cores, 10 GB of disk, resumable):  cargo xtask v8 build\n\
             Or point at one that you have:  cargo xtask v8 use DIR, or RUSTY_V8_ARCHIVE=DIR"
        )
    })
}

/// Links `dir` as this checkout's archive, which `.cargo/config.toml` names.
pub(crate) fn use_dir(dir: &Path) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("{} is not a folder that can be read", dir.display()))?;
    if !holds_archive(&dir) {
        bail!("{} does not hold both files of an archive: {ARCHIVE} and {BINDINGS}", dir.display());
    }
    let link = link();
    fs::create_dir_all(root().join(".v8"))?;
    match fs::symlink_metadata(&link) {
        Ok(found) if found.is_symlink() => fs::remove_file(&link)?,
        Ok(_) => bail!("{} is in the way and is not a link of ours; move it away first", link.display()),
        Err(_) => {}
    }
    symlink(&dir, &link).with_context(|| format!("linking {}", link.display()))?;
    println!("builds of this checkout now use {}", dir.display());
    Ok(())
}

pub(crate) fn status() -> Result<()> {
    println!("wanted   v8 {VERSION}, made from {}", inputs()?);
    for place in places() {
        let state = if holds_archive(&place.dir) { "present" } else { "absent " };
        let shown = if place.dir == link() { root().join(".v8") } else { place.dir };
        println!("{state}  {}  ({})", shown.display(), place.because);
    }
    let found = or_explain()?;
    println!("used     {}  ({})", found.dir.display(), found.because);
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
    fn every_part_of_the_patch_says_what_it_is_for() {
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
    fn the_link_is_the_one_that_the_cargo_configuration_names() {
        let config = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
        assert!(config.contains(&format!("\".v8/{LINK}\"")));
    }

    #[test]
    fn a_folder_without_an_archive_is_refused() {
        let error = use_dir(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("does not hold both files"), "{error}");
    }
}
