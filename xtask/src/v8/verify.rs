//! `cargo xtask v8 verify`: are these the bytes that were made, and do they link and run?

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::place::{ARCHIVE, Archive, BINDINGS, hex};
use crate::{check, root};

pub(crate) fn verify(archive: &Archive) -> Result<()> {
    println!("checking {}", archive.dir.display());
    let sums = fs::read_to_string(archive.dir.join("SHA256SUMS"))
        .with_context(|| format!("{} has no SHA256SUMS", archive.dir.display()))?;
    for name in [ARCHIVE, BINDINGS] {
        let wanted = sums
            .lines()
            .find_map(|line| line.strip_suffix(name).map(str::trim))
            .with_context(|| format!("SHA256SUMS does not name {name}"))?;
        let bytes = fs::read(archive.dir.join(name)).with_context(|| format!("reading {name}"))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != wanted {
            bail!("{name} is not the file that was made: its SHA-256 is {found}, SHA256SUMS says {wanted}");
        }
        println!("ok  {name}");
    }
    // A target folder of its own, so that the archive is really unpacked and linked again.
    check(
        Command::new(env!("CARGO"))
            .current_dir(root())
            .args(["run", "--quiet", "--package", "enisle-worker", "--example", "v8_probe"])
            .args(["--target-dir", "target/v8-verify"])
            .env("RUSTY_V8_ARCHIVE", &archive.dir),
    )
    .context("the archive does not link, or its probe does not run")
}
