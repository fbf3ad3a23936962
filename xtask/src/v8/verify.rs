//! `cargo xtask v8 verify`: checks that the archive has the recorded checksums, links and runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::place::Archive;
use crate::{check, root};

pub(crate) fn verify(archive: &Archive) -> Result<()> {
    println!("checking {}", archive.dir.display());
    checksums(&archive.dir)?;
    // The check has a target folder of its own, so that the archive is really unpacked and linked
    // again.
    check(
        Command::new(env!("CARGO"))
            .current_dir(root())
            .args(["run", "--quiet", "--package", "enisle-worker", "--example", "v8_probe"])
            .args(["--target-dir", "target/v8-verify"])
            .env("RUSTY_V8_ARCHIVE", &archive.dir)
            .env("RUSTY_V8_ARCHIVE_SHA256", archive.sha256()),
    )
    .context("the archive does not link, or its probe does not run")
}

/// Compares the archive, its bindings and what they were made from with `SHA256SUMS`.
pub(super) fn checksums(dir: &Path) -> Result<()> {
    check(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(dir))
        .with_context(|| format!("{} differs from SHA256SUMS: see the lines above", dir.display()))
}
