//! `cargo xtask fuzz` and `cargo xtask chaos`: build the programs, and start `enisle-fuzz`.

use std::ffi::OsString;

use anyhow::Result;
use clap::Subcommand;

use crate::{cargo, check, root, target, v8, vm};

#[derive(Debug, Subcommand)]
pub(crate) enum Fuzz {
    /// Fuzz what reads bytes of others; see `-- --help`.
    Parsers(Rest),
    /// Fuzz the confinement of workers; `--vm` does so in the emulated machine, which has keys. See
    /// `-- --help`.
    Escape(Rest),
    /// Fuzz V8; see `-- --help`.
    Engine(Rest),
}

/// Arguments of `enisle-fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(fuzz: Fuzz) -> Result<()> {
    match fuzz {
        Fuzz::Parsers(rest) => start("parsers", &rest),
        Fuzz::Escape(rest) => escape(rest),
        Fuzz::Engine(rest) => start("engine", &rest),
    }
}

/// Findings become rows of `tests/escape`.
fn escape(mut rest: Rest) -> Result<()> {
    let before = rest.arguments.len();
    rest.arguments.retain(|argument| argument != "--vm");
    if rest.arguments.len() < before {
        return vm::fuzz("escape", &rest.arguments);
    }
    rest.arguments.extend(["--found".into(), root().join("tests/escape/found").into_os_string()]);
    start("escape", &rest)
}

/// Twenty seconds of the escape fuzzer, for the test command.
pub(crate) fn escape_smoke() -> Result<()> {
    escape(Rest { arguments: ["--minutes", "0.3"].map(OsString::from).to_vec() })
}

pub(crate) fn chaos(rest: &Rest) -> Result<()> {
    start("chaos", rest)
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
