//! Refuses to link a V8 archive, or bindings, that do not match `SHA256SUMS` in the same folder.
//! The checksums are compared before the first program is linked, and again whenever one of these
//! files changes. In programs this script also has the linker replace three functions of ICU by the
//! worker's own.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the names of the checked files begin: the archive, and its bindings.
const LINKED: [&str; 2] = ["librusty_v8_", "src_binding_"];

/// Functions of ICU that the worker's own replace in every program (`date_patterns.rs` and
/// `hooks.rs` in `src/engine/memory`). Unit tests are not programs: they call ICU's functions
/// directly, and never the worker's.
const WRAPPED: [&str; 3] = [
    "_ZN6icu_7824DateTimePatternGenerator14createInstanceERKNS_6LocaleER10UErrorCode",
    "_ZNK6icu_7824DateTimePatternGenerator5cloneEv",
    "_ZNK6icu_7813UnicodeString5cloneEv",
];

fn main() -> Result<(), Box<dyn Error>> {
    for name in WRAPPED {
        println!("cargo::rustc-link-arg-bins=-Wl,--wrap={name}");
    }
    println!("cargo::rerun-if-env-changed=RUSTY_V8_ARCHIVE");
    let folder = std::env::var_os("RUSTY_V8_ARCHIVE").map(PathBuf::from).unwrap_or_default();
    let sums = folder.join("SHA256SUMS");
    println!("cargo::rerun-if-changed={}", sums.display());
    let listed = std::fs::read_to_string(&sums).map_err(|error| {
        format!("{}: {error}; RUSTY_V8_ARCHIVE must name a folder with a V8 archive and its SHA256SUMS", sums.display())
    })?;
    let linked: Vec<_> = listed
        .lines()
        .filter(|line| line.split_once("  ").is_some_and(|(_, name)| LINKED.iter().any(|part| name.starts_with(part))))
        .collect();
    if linked.len() != LINKED.len() {
        return Err(format!("{} does not name the archive and its bindings", sums.display()).into());
    }
    for line in &linked {
        println!("cargo::rerun-if-changed={}", folder.join(line.split("  ").nth(1).unwrap_or_default()).display());
    }
    compare(&folder, &linked.join("\n"))
}

fn compare(folder: &Path, sums: &str) -> Result<(), Box<dyn Error>> {
    let mut check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "-"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .spawn()?;
    check.stdin.take().ok_or("a piped standard input")?.write_all(format!("{sums}\n").as_bytes())?;
    if check.wait()?.success() {
        return Ok(());
    }
    let what = folder.display();
    Err(format!(
        "the V8 archive in {what} does not match its SHA256SUMS; restore the files (git checkout -- v8), or build an archive \
         with: cargo xtask v8 build"
    )
    .into())
}
