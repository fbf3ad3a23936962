//! `cargo xtask test`: style, every test, and that no release has the natives of the attack harness. What CI runs.
//!
//! A test that needs what this machine lacks runs in the emulated machine (`tests/vm`) instead,
//! where nothing may be skipped. The closing table says what ran where and how long it took.

mod houses;
pub(crate) mod imports;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use enisle_hardening::{Layer, Posture};

use crate::{cargo, check, target, v8, vm};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the tests, no style checks and no release build.
    #[arg(long)]
    only_tests: bool,
    /// Also the slow checks that CI runs nightly: ten thousand rounds and a minute of attacks,
    /// every posture, the archive's checksums and its probe.
    #[arg(long)]
    slow: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    vm::check_packages()?;
    let archive = v8::find()?;
    println!("V8: {} ({})", archive.dir.display(), archive.because);
    let lacking = lacking();
    let harness_here = !lacking.contains(&"pku") && !lacking.contains(&"userns");
    let mut parts = Parts::default();
    if !options.only_tests {
        parts.run("style: rustfmt, clippy", HERE, || style(&archive));
        parts.run("imports", HERE, imports::run);
    }
    let programs = parts.run("build: programs and tests", HERE, || vm::Programs::build(&archive));
    // Without them every further part would test what an earlier build has left.
    let Some(programs) = programs else { return parts.conclude() };
    parts.run("tests", HERE, || tests(&archive, &lacking));
    let skipped = if lacking.contains(&"root") { " (skipped: not root)" } else { "" };
    parts.run(&format!("attacks on the daemon{skipped}"), HERE, || attacks(&archive, &lacking, options.slow));
    if !options.only_tests {
        parts.run("no release has the attack harness's natives", HERE, || no_release_has_natives(&archive));
    }
    let lacks = lacking.join(", no ");
    if !harness_here {
        let what = format!("attack harness, jail, confinement (here is no {lacks})");
        parts.run(&what, EMULATED, || vm::escape(&programs));
    } else if !lacking.is_empty() {
        parts.run(&format!("jail, confinement (here is no {lacks})"), EMULATED, || vm::layers(&programs));
    }
    let choice = if options.slow { vm::matrix::Choice::All } else { vm::matrix::Choice::Short };
    parts.run("postures", EMULATED, || vm::matrix::run(&programs, choice));
    if options.slow {
        let place = if harness_here { HERE } else { EMULATED };
        parts.run("attack harness, ten thousand rounds", place, || {
            if harness_here { long_escape(&archive) } else { vm::long_escape(&programs) }
        });
        parts.run("V8 archive", HERE, || v8::run(v8::V8::Verify));
    }
    if !Posture::probe().layers().has(Layer::Speculation) {
        println!(
            "\nnot tested: that speculation is forced off, for this machine's processor gives no process a choice about it"
        );
    }
    parts.conclude()
}

/// The slow attacks, on a machine that has keys.
fn long_escape(archive: &v8::Archive) -> Result<()> {
    let escape = ["test", "--profile", "harness", "-p", "enisle-tests", "--test", "escape", "--"];
    let mut command = cargo(archive);
    command.args(escape).args(["--rounds", "10000", "--soak", "60"]).env("ENISLE_REQUIRE", "pku,userns");
    check(command.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

const HERE: &str = "this machine";
const EMULATED: &str = "emulated machine";

/// The parts of the test command, each with its verdict and its time. One that fails does not keep
/// the next from running.
#[derive(Debug, Default)]
struct Parts(Vec<(String, &'static str, Duration, bool)>);

impl Parts {
    fn run<T>(&mut self, what: &str, place: &'static str, part: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n=== {what} ({place})");
        let begun = Instant::now();
        let result = part();
        if let Err(error) = &result {
            println!("error: {error:#}");
        }
        self.0.push((what.to_owned(), place, begun.elapsed(), result.is_ok()));
        result.ok()
    }

    fn conclude(self) -> Result<()> {
        let width = self.0.iter().map(|(what, ..)| what.len()).max().unwrap_or(0);
        println!("\n{:<width$}  {:<16}  {:>6}", "part", "where", "s");
        for (what, place, took, passed) in &self.0 {
            let verdict = if *passed { "passed" } else { "FAILED" };
            println!("{what:<width$}  {place:<16}  {:>6}  {verdict}", took.as_secs());
        }
        let total: Duration = self.0.iter().map(|(_, _, took, _)| *took).sum();
        println!("{:<width$}  {:<16}  {:>6}", "all", "", total.as_secs());
        let failed = self.0.iter().filter(|(.., passed)| !passed).count();
        println!("\n{} passed, {failed} failed", self.0.len() - failed);
        ensure!(failed == 0, "{failed} of {} parts failed", self.0.len());
        Ok(())
    }
}

fn style(archive: &v8::Archive) -> Result<()> {
    check(cargo(archive).args(["fmt", "--all", "--check"]))?;
    check(cargo(archive).args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// What this machine lacks of what tests need: those tests run in the emulated machine.
fn lacking() -> Vec<&'static str> {
    let posture = Posture::probe();
    let has = |feature: &str| match feature {
        "root" => nix::unistd::geteuid().is_root(),
        "pku" => posture.layers().has(Layer::Keys),
        "userns" => posture.layers().has(Layer::Namespaces) && posture.layers().has(Layer::EmptyRoot),
        // With its scopes.
        "landlock" => posture.landlock_scopes,
        layer => layer.parse().is_ok_and(|layer: Layer| posture.layers().has(layer)),
    };
    vm::FEATURES.iter().copied().filter(|feature| !has(feature)).collect()
}

/// Every test, with the programs that were just built. What this machine has is required, so
/// nothing is skipped unseen.
fn tests(archive: &v8::Archive, lacking: &[&str]) -> Result<()> {
    let here = vm::FEATURES.iter().copied().filter(|feature| !lacking.contains(feature));
    let required: Vec<_> = here.chain(["emulator"]).collect();
    let mut tests = cargo(archive);
    tests.args(["test", "--profile", "harness", "--workspace", "--no-fail-fast"]);
    // The attacks on the daemon are a part by themselves: each of them takes the whole machine.
    let elsewhere: Vec<_> = lacking.iter().copied().chain(["attacks"]).collect();
    tests.env("ENISLE_REQUIRE", required.join(",")).env("ENISLE_ELSEWHERE", elsewhere.join(","));
    check(tests.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

/// What clients and other users can do to the daemon. Without root there is nobody else to be: then
/// the part says that it was skipped.
fn attacks(archive: &v8::Archive, lacking: &[&str], slow: bool) -> Result<()> {
    let mut attacks = cargo(archive);
    attacks.args(["test", "--profile", "harness", "-p", "enisle-tests", "--test", "attacks", "--"]);
    attacks.args(slow.then_some("--slow"));
    if !lacking.contains(&"root") {
        attacks.env("ENISLE_REQUIRE", "root");
    }
    check(attacks.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

/// What every native of the attack harness has in its name.
const NATIVE: &[u8] = b"attack_probe_";

/// The release does not build with the natives, and without them has none of their symbols; the harness's worker has them,
/// or the search would prove nothing.
fn no_release_has_natives(archive: &v8::Archive) -> Result<()> {
    let worker = ["build", "--quiet", "--release", "-p", "enisle-worker", "--bin"];
    check(cargo(archive).args(worker).arg("enisle-worker"))?;
    let refused =
        cargo(archive).args(worker).args(["enisle-worker-attack", "--features", "attack-natives"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("no release can have it"),
        "a release with attack-natives has to be refused:\n{said}"
    );
    let holds_natives = |program: &str| -> Result<bool> {
        let bytes = fs::read(target().join(program)).with_context(|| format!("reading {program}"))?;
        Ok(bytes.windows(NATIVE.len()).any(|window| window == NATIVE))
    };
    ensure!(holds_natives("harness/enisle-worker-attack")?, "the harness's worker has no natives that could be found");
    ensure!(!holds_natives("release/enisle-worker")?, "the release has natives to attack it with");
    println!("ok  no release has the natives of the attack harness");
    Ok(())
}
