//! `cargo xtask test`, which CI runs: style, every test, and that no release has attack natives.
//!
//! If this machine lacks something that a test needs, the test runs in the emulated machine
//! (`tests/vm`). No test may be skipped there. The closing table says what ran where, and how long
//! it took.

pub(crate) mod documents;
mod houses;
pub(crate) mod imports;
pub(crate) mod text;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use enisle_hardening::{Layer, Posture};

use crate::{cargo, check, check_watched, fuzz, output, target, v8, vm};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only the tests: no style checks and no release build.
    #[arg(long)]
    only_tests: bool,
    /// Run the slow checks too: ten thousand rounds and a minute of attacks, every posture, the
    /// archive's checksums and its probe.
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
        parts.run("text: width of comments, length of files", HERE, text::run);
        parts.run("documents: links, catalogues", HERE, documents::run);
        parts.run("known faults: they apply", HERE, fuzz::prove::apply_all);
        parts.run("documentation: rustdoc", HERE, || documentation(&archive));
        let skipped = if deny_is_installed() { "" } else { " (skipped: cargo-deny is not installed)" };
        parts.run(&format!("dependencies{skipped}"), HERE, || dependencies(&archive));
    }
    let programs = parts.run("build: programs and tests", HERE, || vm::Programs::build(&archive));
    // Without these programs every further part would test those of an earlier build.
    let Some(programs) = programs else { return parts.conclude() };
    parts.run("tests", HERE, || tests(&archive, &lacking));
    let skipped = if lacking.contains(&"root") { " (skipped: not root)" } else { "" };
    parts.run(&format!("attacks on the daemon{skipped}"), HERE, || attacks(&archive, &lacking, options.slow));
    parts.run("escape fuzzer, for seconds", HERE, fuzz::escape_smoke);
    if !options.only_tests {
        parts.run("no release has the attack harness's natives", HERE, || no_release_has_natives(&archive));
    }
    let lacks = lacking.join(", no ");
    if !harness_here {
        let what = format!("attack harness, jail, confinement (this machine has no {lacks})");
        parts.run(&what, EMULATED, || vm::escape(&programs));
    } else if !lacking.is_empty() {
        parts.run(&format!("jail, confinement (this machine has no {lacks})"), EMULATED, || vm::layers(&programs));
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
            "\nnot tested: that speculation is forced off, because this machine's processor lets no process choose"
        );
    }
    parts.conclude()
}

/// The slow attacks, on a machine that has keys.
fn long_escape(archive: &v8::Archive) -> Result<()> {
    let escape = ["test", "--profile", "harness", "-p", "enisle-tests", "--test", "escape", "--"];
    let mut command = cargo(archive);
    command.args(escape).args(["--rounds", "10000", "--soak", "60"]).env("ENISLE_REQUIRE", "pku,userns");
    check_watched(command.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

const HERE: &str = "this machine";
const EMULATED: &str = "emulated machine";

/// The parts of the test command, each with its time and its error. If a part fails, the next one
/// runs all the same.
#[derive(Debug, Default)]
struct Parts(Vec<(String, &'static str, Duration, Result<()>)>);

impl Parts {
    fn run<T>(&mut self, what: &str, place: &'static str, part: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n=== {what} ({place})");
        let begun = Instant::now();
        let result = part();
        let (value, verdict) = match result {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => {
                println!("error: {error:#}");
                (None, Err(error))
            }
        };
        self.0.push((what.to_owned(), place, begun.elapsed(), verdict));
        value
    }

    /// Prints the errors again, for a reader who has only the end of a long log. Then prints the
    /// table.
    fn conclude(self) -> Result<()> {
        for (what, place, _, verdict) in &self.0 {
            if let Err(error) = verdict {
                println!("\n=== what failed: {what} ({place})\n{error:#}");
            }
        }
        let width = self.0.iter().map(|(what, ..)| what.len()).max().unwrap_or(0);
        println!("\n{:<width$}  {:<16}  {:>6}", "part", "where", "s");
        for (what, place, took, verdict) in &self.0 {
            let verdict = if verdict.is_ok() { "passed" } else { "FAILED" };
            println!("{what:<width$}  {place:<16}  {:>6}  {verdict}", took.as_secs());
        }
        let total: Duration = self.0.iter().map(|(_, _, took, _)| *took).sum();
        println!("{:<width$}  {:<16}  {:>6}", "all", "", total.as_secs());
        let failed = self.0.iter().filter(|(.., verdict)| verdict.is_err()).count();
        println!("\n{} passed, {failed} failed", self.0.len() - failed);
        ensure!(failed == 0, "{failed} of {} parts failed", self.0.len());
        Ok(())
    }
}

fn style(archive: &v8::Archive) -> Result<()> {
    let (wanted, compiler) = (env!("CARGO_PKG_RUST_VERSION"), output(Command::new("rustc").arg("--version"))?);
    if !compiler.starts_with(&format!("rustc {wanted}.")) {
        println!("note: the style is that of Rust {wanted}; this is {}", compiler.trim());
    }
    check(cargo(archive).args(["fmt", "--all", "--check"]))?;
    check(cargo(archive).args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Checks that every link in a doc comment leads somewhere. The documentation includes private
/// items, so that links to them lead somewhere too.
fn documentation(archive: &v8::Archive) -> Result<()> {
    let mut doc = cargo(archive);
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    check(doc.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]))
}

fn deny_is_installed() -> bool {
    Command::new("cargo-deny").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Checks what `deny.toml` says of dependencies, except for advisories, whose database is on the
/// network.
fn dependencies(archive: &v8::Archive) -> Result<()> {
    if !deny_is_installed() {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    check(cargo(archive).args(["deny", "--workspace", "--locked", "check", "bans", "licenses", "sources"]))
}

/// The features that some tests need and this machine lacks. These tests run in the emulated
/// machine.
fn lacking() -> Vec<&'static str> {
    let posture = Posture::probe();
    let has = |feature: &str| match feature {
        "root" => nix::unistd::geteuid().is_root(),
        "pku" => posture.layers().has(Layer::Keys),
        "userns" => posture.layers().has(Layer::Namespaces) && posture.layers().has(Layer::EmptyRoot),
        // Landlock counts only with its scopes.
        "landlock" => posture.landlock_scopes,
        layer => layer.parse().is_ok_and(|layer: Layer| posture.layers().has(layer)),
    };
    vm::FEATURES.iter().copied().filter(|feature| !has(feature)).collect()
}

/// Runs every test, with the programs that were just built. Every feature that this machine has is
/// required, so that no test is skipped unnoticed.
fn tests(archive: &v8::Archive, lacking: &[&str]) -> Result<()> {
    let here = vm::FEATURES.iter().copied().filter(|feature| !lacking.contains(feature));
    let of_the_caller = std::env::var("ENISLE_REQUIRE").unwrap_or_default();
    let required: Vec<_> = here.chain(["emulator"]).chain(of_the_caller.split(',')).collect();
    let mut tests = cargo(archive);
    tests.args(["test", "--profile", "harness", "--workspace", "--no-fail-fast"]);
    // The attacks on the daemon are a part of their own: each of them takes the whole machine.
    let elsewhere: Vec<_> = lacking.iter().copied().chain(["attacks"]).collect();
    tests.env("ENISLE_REQUIRE", required.join(",")).env("ENISLE_ELSEWHERE", elsewhere.join(","));
    check_watched(tests.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

/// Runs the attacks of clients and other users on the daemon. Only root can act as other users.
/// Without root the part reports that it was skipped.
fn attacks(archive: &v8::Archive, lacking: &[&str], slow: bool) -> Result<()> {
    let mut attacks = cargo(archive);
    attacks.args(["test", "--profile", "harness", "-p", "enisle-tests", "--test", "attacks", "--"]);
    attacks.args(slow.then_some("--slow"));
    if !lacking.contains(&"root") {
        attacks.env("ENISLE_REQUIRE", "root");
    }
    check_watched(attacks.env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}

/// Part of two symbols that a worker has only with the natives of the attack harness.
const NATIVE: &[u8] = b"attack_probe_";

/// A release does not build with the natives, and has none of their symbols. The harness's worker
/// must have these symbols, or the search would prove nothing.
fn no_release_has_natives(archive: &v8::Archive) -> Result<()> {
    let worker = ["build", "--quiet", "--release", "-p", "enisle-worker", "--bin"];
    check(cargo(archive).args(worker).arg("enisle-worker"))?;
    let refused =
        cargo(archive).args(worker).args(["enisle-worker-attack", "--features", "attack-natives"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("compile_error!(\"attack-natives"),
        "a release with attack-natives must be refused:\n{said}"
    );
    let holds_natives = |program: &str| -> Result<bool> {
        let bytes = fs::read(target().join(program)).with_context(|| format!("reading {program}"))?;
        Ok(bytes.windows(NATIVE.len()).any(|window| window == NATIVE))
    };
    ensure!(holds_natives("harness/enisle-worker-attack")?, "the search finds no natives in the harness's worker");
    ensure!(!holds_natives("release/enisle-worker")?, "the release has attack natives");
    println!("ok  no release has the natives of the attack harness");
    Ok(())
}
