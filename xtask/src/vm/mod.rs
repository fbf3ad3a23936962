//! `cargo xtask vm`: the emulated machine (`tests/vm`) with the programs of this checkout in it.

pub(crate) mod matrix;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use enisle_vm::{Files, Guest, Kernel, Machine};

use crate::{cache_dir, cargo, check, debian, keep_last, output, target, v8};

#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Run the attack harness in the emulated machine, and the tests that need what this machine
    /// may lack.
    Escape {
        /// Arguments of the harness, such as `--only M14`. With arguments, the other tests are left
        /// out.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the daemon on machines of every posture, and print the table.
    Matrix {
        /// Only the postures that the test command tries.
        #[arg(long, conflicts_with = "only")]
        short: bool,
        /// Only the postures whose names contain this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Run a command in the emulated machine, with the programs of this checkout in its PATH.
    Run {
        /// A command for busybox's shell.
        command: String,
        /// Added to the kernel's command line.
        #[arg(long)]
        kernel_argument: Vec<String>,
    },
}

pub(crate) fn run(command: Vm) -> Result<()> {
    check_packages()?;
    let programs = Programs::build(&v8::find()?)?;
    match command {
        Vm::Escape { arguments } if arguments.is_empty() => escape(&programs),
        Vm::Escape { arguments } => {
            if arguments.iter().any(|argument| argument == "--json") {
                bail!(
                    "--json works only where the harness runs natively: files in the emulated machine are lost with it"
                );
            }
            let quoted: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
            in_machine(&programs, &format!("escape {}", quoted.join(" ")))
        }
        Vm::Matrix { short: true, .. } => matrix::run(&programs, matrix::Choice::Short),
        Vm::Matrix { only: Some(only), .. } => matrix::run(&programs, matrix::Choice::Named(&only)),
        Vm::Matrix { .. } => matrix::run(&programs, matrix::Choice::All),
        Vm::Run { command, kernel_argument } => {
            let machine = Machine::with_files(&newer_kernel()?, &programs.files()?, Guest::default(), &shell(&command));
            let machine = kernel_argument.iter().fold(machine, |machine, argument| machine.kernel_argument(argument));
            let report = machine.time_limit(HARNESS_LIMIT).memory_mib(MEMORY_MIB).run(|line| println!("{line}"))?;
            ensure!(report.status == 0, "the command ended with status {}", report.status);
            Ok(())
        }
    }
}

/// The argument, quoted as one word for the shell.
pub(crate) fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', "'\\''"))
}

/// The harness needs minutes on a fast host; a slow one has an hour.
pub(crate) const HARNESS_LIMIT: Duration = Duration::from_secs(60 * 60);
pub(crate) const MEMORY_MIB: u32 = 4096;

/// The features that the emulated machine has and this machine may lack, as named in
/// `ENISLE_REQUIRE`. In the emulated machine no test may be skipped.
pub(crate) const FEATURES: &[&str] = &["pku", "userns", "landlock", "seccomp", "root", "deny-write-execute"];

/// Every layer of the jail by itself, what the kernel and the supervisor report of a worker, and
/// the tests that need root.
const LAYERS: &str = "layers && suite --nocapture confinement:: requests::a_peer_without_rights";

/// Runs what [`layers`] runs, and the attack catalogue.
pub(crate) fn escape(programs: &Programs) -> Result<()> {
    in_machine(programs, &format!("{LAYERS} && escape"))
}

/// Runs the attack catalogue with many more rounds and a minute of attacks.
pub(crate) fn long_escape(programs: &Programs) -> Result<()> {
    in_machine(programs, "escape --rounds 10000 --soak 60")
}

/// Runs the tests of layers that even a machine with protection keys may lack, because its kernel
/// is old or its user is not root.
pub(crate) fn layers(programs: &Programs) -> Result<()> {
    in_machine(programs, LAYERS)
}

/// Runs a fuzzer. It prints its findings on the console, because files in the emulated machine are
/// lost with the machine.
pub(crate) fn fuzz(task: &str, arguments: &[OsString]) -> Result<()> {
    check_packages()?;
    let programs = Programs::build_without_tests(&v8::find()?)?;
    let arguments: Vec<_> = arguments.iter().map(|argument| quoted(&argument.to_string_lossy())).collect();
    in_machine(&programs, &format!("enisle-fuzz {task} {}", arguments.join(" ")))
}

fn in_machine(programs: &Programs, command: &str) -> Result<()> {
    let command = format!("export ENISLE_REQUIRE={}\n{}", FEATURES.join(","), shell(command));
    let kernel = newer_kernel()?;
    println!("the emulated machine boots Linux {}", kernel.release);
    let report = Machine::with_files(&kernel, &programs.files()?, Guest::default(), &command)
        .memory_mib(MEMORY_MIB)
        .time_limit(HARNESS_LIMIT)
        .run(|line| println!("{line}"))?;
    println!("the emulated machine took {} s", report.elapsed.as_secs());
    let mut last = VecDeque::new();
    report.output.lines().for_each(|line| keep_last(&mut last, line.to_owned()));
    let last = last.make_contiguous().join("\n");
    ensure!(report.status == 0, "a check failed in the emulated machine; its last lines were\n{last}");
    complete(&report.output)
}

/// Checks that no test was skipped, and that no filter of tests matched nothing.
fn complete(output: &str) -> Result<()> {
    let missed: Vec<_> =
        output.lines().filter(|line| line.contains("skipped:") || *line == "running 0 tests").collect();
    ensure!(missed.is_empty(), "the emulated machine skipped checks:\n{}", missed.join("\n"));
    Ok(())
}

/// The command, with the programs in its PATH.
pub(crate) fn shell(command: &str) -> String {
    format!(
        "set -o pipefail\ncd /tmp\nexport {}={FOLDER} PATH=$PATH:{FOLDER}\n{command}",
        enisle_tests::PROGRAMS_VARIABLE
    )
}

/// Where the programs are in the machine.
pub(crate) const FOLDER: &str = "/enisle";
const PROGRAMS: &[&str] =
    &["enisle", "enisled", "enisle-worker", "rogue-worker", "without-userns", "posture", "enisle-fuzz"];
const ATTACKER: &str = "enisle-worker-attack";
const TESTS: &[&str] = &["escape", "suite", "layers"];

/// Checks for what the tests need besides the compiler: the emulated machine's parts, and what
/// makes an image for it.
pub(crate) fn check_packages() -> Result<()> {
    let missing = debian::missing(&[enisle_vm::PACKAGES, &["e2fsprogs"]].concat());
    if !missing.is_empty() {
        bail!("these packages are missing; install them first:\n  sudo apt-get install {}", missing.join(" "));
    }
    Ok(())
}

/// The programs and tests of this checkout, built with the profile `harness`.
#[derive(Debug)]
pub(crate) struct Programs {
    by_name: BTreeMap<String, PathBuf>,
}

impl Programs {
    pub(crate) fn build(archive: &v8::Archive) -> Result<Self> {
        let Self { mut by_name } = Self::build_without_tests(archive)?;
        let profile = ["--quiet", "--profile", "harness"];
        let tests = ["--workspace", "--no-run", "--message-format", "json"];
        let built = output(cargo(archive).arg("test").args(profile).args(tests))?;
        for line in built.lines() {
            let message: serde_json::Value = serde_json::from_str(line).context("reading Cargo's JSON")?;
            let name = message["target"]["name"].as_str().filter(|name| TESTS.contains(name));
            if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
                by_name.insert(name.to_owned(), PathBuf::from(path));
            }
        }
        let expected = PROGRAMS.len() + TESTS.len() + 1;
        ensure!(by_name.len() == expected, "cargo did not say where it put the tests: {by_name:?}");
        Ok(Self { by_name })
    }

    fn build_without_tests(archive: &v8::Archive) -> Result<Self> {
        println!("building the programs for the emulated machine");
        let profile = ["--quiet", "--profile", "harness"];
        check(cargo(archive).arg("build").args(profile).args(["--workspace", "--bins"]))?;
        build_attacker(archive, &profile)?;
        let folder = target().join("harness");
        let by_name = PROGRAMS.iter().chain([&ATTACKER]).map(|name| ((*name).to_owned(), folder.join(name))).collect();
        Ok(Self { by_name })
    }

    /// The files of a machine that has all of them.
    fn files(&self) -> Result<Files> {
        let mut files = Files::new()?;
        // `layers` makes a program of the host setuid and executes it.
        files.program("/usr/bin/id", "/usr/bin/id")?;
        for (name, path) in &self.by_name {
            files.program(path, &format!("{FOLDER}/{name}"))?;
        }
        Ok(files)
    }
}

/// Builds the worker with attack natives, which no release can have.
pub(crate) fn build_attacker(archive: &v8::Archive, profile: &[&str]) -> Result<()> {
    let worker = ["-p", "enisle-worker", "--features", "attack-natives", "--bin", ATTACKER];
    check(cargo(archive).arg("build").args(profile).args(worker))
}

/// The Debian release whose kernel has what this machine's own may lack: PR_SET_MDWE and Landlock's
/// scopes.
const NEWER_SUITE: &str = "trixie";

/// The kernel of [`NEWER_SUITE`], which is downloaded once.
pub(crate) fn newer_kernel() -> Result<Kernel> {
    let boot = cache_dir().join(format!("kernel-{NEWER_SUITE}"));
    if let Ok(kernel) = Kernel::newest_in(&boot) {
        return Ok(kernel);
    }
    fs::create_dir_all(cache_dir())?;
    // The download is moved into place as a whole, so that several of these commands may run at the
    // same time.
    let folder = tempfile::Builder::new().prefix("kernel-").tempdir_in(cache_dir())?;
    println!("fetching the kernel of Debian's {NEWER_SUITE} (100 MB, once)");
    let suite = debian::Suite::open(NEWER_SUITE, &folder.path().join("apt"))?;
    let package = suite.dependencies("linux-image-amd64")?;
    let package = package.iter().find(|name| name.starts_with("linux-image-")).context("Debian has no kernel")?;
    let debs = suite.download(&[package])?;
    let deb = debs.iter().find(|deb| deb.to_string_lossy().contains("linux-image-")).context("no kernel came")?;
    unpack_boot(deb, folder.path())?;
    if let Err(error) = fs::rename(folder.path().join("boot"), &boot)
        && !boot.exists()
    {
        return Err(error).with_context(|| format!("moving the kernel to {}", boot.display()));
    }
    Ok(Kernel::newest_in(&boot)?)
}

/// Unpacks the kernel without its modules, which the machine does not need.
fn unpack_boot(deb: &Path, folder: &Path) -> Result<()> {
    let mut unpack =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(std::process::Stdio::piped()).spawn()?;
    let archive = unpack.stdout.take().context("dpkg-deb has no standard output")?;
    check(Command::new("tar").arg("-x").arg("-C").arg(folder).arg("./boot").stdin(archive))?;
    ensure!(unpack.wait()?.success(), "{} could not be unpacked", deb.display());
    Ok(())
}
