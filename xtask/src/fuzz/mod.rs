//! `cargo xtask fuzz` and `cargo xtask chaos`: build the programs, and start `enisle-fuzz`.

mod coverage;
pub(crate) mod prove;

use std::ffi::OsString;

use anyhow::Result;
use clap::Subcommand;

use crate::{cargo, check, target, v8, vm};

#[derive(Debug, Subcommand)]
pub(crate) enum Fuzz {
    /// Fuzz the code that reads bytes of others; see `-- --help`.
    Parsers(Rest),
    /// Run every target of `parsers` over its corpus and a bounded number of new cases.
    Smoke,
    /// Measure which lines of the parsers the smoke test reaches, and fail below 90 per cent.
    Coverage,
    /// Fuzz the confinement of workers; see `-- --help`.
    Escape(Rest),
    /// Fuzz V8; see `-- --help`.
    Engine(Rest),
    /// Put each fault of `fuzz/known-bad` into a copy, and see how soon its fuzzer finds it.
    Prove(prove::Options),
}

/// Arguments of `enisle-fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(fuzz: Fuzz) -> Result<()> {
    match fuzz {
        Fuzz::Parsers(rest) => parsers(&rest.arguments),
        Fuzz::Smoke => parsers(&["--smoke".into()]),
        Fuzz::Coverage => coverage::run(),
        Fuzz::Escape(rest) => start("escape", &rest),
        Fuzz::Engine(rest) => start("engine", &rest),
        Fuzz::Prove(options) => prove::run(&options),
    }
}

pub(crate) fn chaos(rest: &Rest) -> Result<()> {
    start("chaos", rest)
}

/// The parsers need no other program, so none is built.
fn parsers(arguments: &[OsString]) -> Result<()> {
    let profile = ["--quiet", "--profile", "harness"];
    check(cargo(&v8::find()?).arg("build").args(profile).args(["-p", "enisle-fuzz", "--bin", "enisle-fuzz"]))?;
    check(std::process::Command::new(target().join("harness/enisle-fuzz")).arg("parsers").args(arguments))
}

/// Starts the fuzzer with the programs that were just built.
fn start(task: &str, rest: &Rest) -> Result<()> {
    let archive = v8::find()?;
    let profile = ["--quiet", "--profile", "harness"];
    check(cargo(&archive).arg("build").args(profile).args(["--workspace", "--bins"]))?;
    vm::build_attacker(&archive, &profile)?;
    let programs = target().join("harness");
    let mut fuzzer = std::process::Command::new(programs.join("enisle-fuzz"));
    fuzzer.arg(task).args(&rest.arguments).env(enisle_tests::PROGRAMS_VARIABLE, &programs);
    check(&mut fuzzer)
}
