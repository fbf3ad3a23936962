//! `cargo xtask fuzz` and `cargo xtask chaos`: build the programs, and start `enisle-fuzz`.

mod coverage;
pub(crate) mod prove;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Subcommand;
use enisle_vm::{Files, Guest, Machine};

use crate::{cargo, check, root, target, v8, vm};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct Options {
    /// Run a bounded part of every fuzzer, which takes a minute or two.
    #[arg(long)]
    smoke: bool,
    #[command(subcommand)]
    fuzz: Option<Fuzz>,
}

#[derive(Debug, Subcommand)]
enum Fuzz {
    /// Fuzz the code that reads bytes from outside; see `-- --help`.
    Parsers(Rest),
    /// Measure which lines of the parsers the smoke test reaches, and fail below 90 per cent.
    Coverage,
    /// Fuzz the confinement of workers. With `--vm` this runs in the emulated machine, which has
    /// keys. See `-- --help`.
    Escape(Rest),
    /// Fuzz V8; see `-- --help`.
    Engine(Rest),
    /// Put each fault of `fuzz/known-bad` into a copy of the checkout, and measure how soon the
    /// fuzzer for it finds it.
    Prove(prove::Options),
}

/// Arguments of `enisle-fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(options: Options) -> Result<()> {
    let Some(fuzz) = options.fuzz else { return smoke() };
    match fuzz {
        Fuzz::Parsers(rest) => parsers(&rest.arguments),
        Fuzz::Coverage => coverage::run(),
        Fuzz::Escape(rest) => escape(rest),
        Fuzz::Engine(rest) => start("engine", &rest),
        Fuzz::Prove(options) => prove::run(&options),
    }
}

/// Starts the escape fuzzer, with `--vm` in the emulated machine. On this machine the fuzzer writes
/// findings to `tests/escape/found`, where each becomes a row of the attack harness.
fn escape(mut rest: Rest) -> Result<()> {
    let before = rest.arguments.len();
    rest.arguments.retain(|argument| argument != "--vm");
    if rest.arguments.len() < before {
        return vm::fuzz("escape", &rest.arguments);
    }
    rest.arguments.extend(["--found".into(), root().join("tests/escape/found").into_os_string()]);
    start("escape", &rest)
}

/// A bounded part of every fuzzer.
fn smoke() -> Result<()> {
    let rest = |arguments: &[&str]| Rest { arguments: arguments.iter().map(OsString::from).collect() };
    parsers(&rest(&["--smoke"]).arguments)?;
    escape_smoke()?;
    start("engine", &rest(&["--minutes", "0.3"]))?;
    chaos(&rest(&["--minutes", "0.3"]))
}

/// Some twenty seconds of the escape fuzzer, for the test command.
pub(crate) fn escape_smoke() -> Result<()> {
    escape(Rest { arguments: ["--minutes", "0.3"].map(OsString::from).to_vec() })
}

/// Starts chaos. With `--vm` as the first argument, chaos runs in the emulated machine and also
/// moves the clock there.
pub(crate) fn chaos(rest: &Rest) -> Result<()> {
    match rest.arguments.split_first() {
        Some((first, arguments)) if first == "--vm" => chaos_in_machine(arguments),
        _ => start("chaos", rest),
    }
}

/// What chaos needs besides the programs under test.
const TOOLS: &[&str] = &["/usr/bin/prlimit", "/usr/bin/unshare", "/usr/bin/nsenter"];
const CHAOS: &[&str] = &["enisled", "enisle-worker", "enisle", "leash", "enisle-fuzz"];

fn chaos_in_machine(arguments: &[OsString]) -> Result<()> {
    vm::check_packages()?;
    let programs = build()?;
    let mut files = Files::new()?;
    for tool in TOOLS {
        files.program(tool, tool)?;
    }
    for name in CHAOS {
        files.program(programs.join(name), &format!("{}/{name}", vm::FOLDER))?;
    }
    let arguments: Vec<_> = arguments.iter().map(|argument| vm::quoted(&argument.to_string_lossy())).collect();
    let command = vm::shell(&format!("enisle-fuzz chaos --clock {}", arguments.join(" ")));
    let machine = Machine::with_files(&vm::newer_kernel()?, &files, Guest::default(), &command);
    let machine = machine.kernel_argument(enisle_tests::OWN_CLOCK).memory_mib(vm::MEMORY_MIB);
    let report = machine.time_limit(vm::HARNESS_LIMIT).run(|line| println!("{line}"))?;
    ensure!(report.status == 0, "chaos ended with status {} in the emulated machine", report.status);
    Ok(())
}

/// The parsers need no other program, so none is built.
fn parsers(arguments: &[OsString]) -> Result<()> {
    let profile = ["--quiet", "--profile", "harness"];
    check(cargo(&v8::find()?).arg("build").args(profile).args(["-p", "enisle-fuzz", "--bin", "enisle-fuzz"]))?;
    check(std::process::Command::new(target().join("harness/enisle-fuzz")).arg("parsers").args(arguments))
}

/// Starts the fuzzer with the programs that were just built.
fn start(task: &str, rest: &Rest) -> Result<()> {
    let programs = build()?;
    let mut fuzzer = std::process::Command::new(programs.join("enisle-fuzz"));
    fuzzer.arg(task).args(&rest.arguments).env(enisle_tests::PROGRAMS_VARIABLE, &programs);
    check(&mut fuzzer)
}

/// Builds the programs under test and the fuzzer; returns their folder.
fn build() -> Result<PathBuf> {
    let archive = v8::find()?;
    let profile = ["--quiet", "--profile", "harness"];
    check(cargo(&archive).arg("build").args(profile).args(["--workspace", "--bins"]))?;
    vm::build_attacker(&archive, &profile)?;
    Ok(target().join("harness"))
}
