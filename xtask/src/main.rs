//! `cargo xtask`: what a newcomer and CI run. It does not link V8, so that it can build V8.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

mod bench;
mod debian;
mod demo;
mod fuzz;
mod generate;
mod http;
mod sim;
mod test;
mod v8;
mod vm;

use std::collections::VecDeque;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure enisle")]
enum Task {
    /// Build everything, and run the scripts in `examples/` on a private daemon.
    Demo,
    /// Check the style and run every test.
    Test(test::Options),
    /// Check which part of a program imports which.
    Imports,
    /// Check the width of comments and the length of files.
    Text,
    /// Check links in documents, and the catalogues of attacks and signals.
    Documents,
    /// Renew the files that come from the code: the OpenAPI document, and SPECIFICATION's table of
    /// limits.
    Generate,
    /// Run a benchmark.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Fuzz the code that reads bytes from outside, the confinement of workers, or V8.
    Fuzz(fuzz::Options),
    /// Disturb a daemon under load; see `-- --help`.
    Chaos(fuzz::Rest),
    /// Simulate weeks of many tenants in seconds, with the engine that decides about cordons.
    #[command(subcommand)]
    Sim(sim::Sim),
    /// Show, build or check the V8 archive.
    #[command(subcommand)]
    V8(v8::V8),
    /// Run the attack harness or a command in the emulated machine, or the daemon on machines of
    /// every posture.
    #[command(subcommand)]
    Vm(vm::Vm),
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The message has the error and its causes. A backtrace of this tool would not help.
            println!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo => demo::run(),
        Task::Test(options) => test::run(&options),
        Task::Imports => test::imports::run(),
        Task::Text => test::text::run(),
        Task::Documents => test::documents::run(),
        Task::Generate => generate::run(),
        Task::Bench(bench) => bench::run(bench),
        Task::Fuzz(options) => fuzz::run(options),
        Task::Chaos(rest) => fuzz::chaos(&rest),
        Task::Sim(sim) => sim::run(&sim),
        Task::V8(command) => v8::run(command),
        Task::Vm(command) => vm::run(command),
    }
}

/// The folder of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where Cargo puts what it builds.
fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The folder for files that are made or downloaded once and outlive a checkout.
fn cache_dir() -> PathBuf {
    let own = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    own.or_else(home).unwrap_or_else(|| root().join("target")).join("enisle")
}

/// Cargo in this checkout, with the given V8 archive.
fn cargo(archive: &v8::Archive) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).env("RUSTY_V8_ARCHIVE", &archive.dir).env("RUSTY_V8_ARCHIVE_SHA256", archive.sha256());
    cargo
}

/// Builds the release and returns the folder with its programs.
fn build_release(archive: &v8::Archive) -> Result<PathBuf> {
    println!("building the release (V8 from {}, {})", archive.dir.display(), archive.because);
    // If the fuzzer were built too, the supervisor would get a feature that only the fuzzer needs.
    let programs = ["--workspace", "--exclude", "enisle-fuzz", "--bins", "--examples"];
    check(cargo(archive).args(["build", "--release", "--quiet"]).args(programs))?;
    Ok(target().join("release"))
}

/// Runs a command to its end. If it fails, the error names it.
fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

/// How many of a command's last lines its error repeats.
const LAST_LINES: usize = 60;

/// Like [`check`], for a command that prints much. The error ends with the command's last lines.
fn check_watched(command: &mut Command) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("running {}", command.get_program().display()))?;
    // `command` keeps the writing ends open. They must be closed, or reading would never end.
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let mut last = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        keep_last(&mut last, line);
    }
    let status = child.wait()?;
    if !status.success() {
        let last = last.make_contiguous().join("\n");
        bail!("{} failed: {status}; its last lines were\n{last}", command.get_program().display());
    }
    Ok(())
}

/// Adds a line, and forgets the oldest one if there are too many.
fn keep_last(lines: &mut VecDeque<String>, line: String) {
    if lines.len() == LAST_LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// Runs a command and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    if !out.status.success() {
        bail!("{} failed: {}\n{}", command.get_program().display(), out.status, String::from_utf8_lossy(&out.stderr));
    }
    String::from_utf8(out.stdout).context("the command's output is not UTF-8")
}
