//! `cargo xtask`: what a newcomer and CI run. Needs no V8 itself, so that it can say how to get one.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

mod v8;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure enisle")]
enum Task {
    /// The V8 archive: where it is, building it, checking it.
    #[command(subcommand)]
    V8(v8::V8),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::V8(command) => v8::run(command),
    }
}

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Runs a command to its end; a failure names it.
fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

/// Runs a command and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    if !out.status.success() {
        bail!("{} failed: {}\n{}", command.get_program().display(), out.status, String::from_utf8_lossy(&out.stderr));
    }
    String::from_utf8(out.stdout).context("the command's output is not UTF-8")
}
