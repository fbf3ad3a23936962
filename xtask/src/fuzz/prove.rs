//! `cargo xtask fuzz prove`: checks that each fuzzer finds the faults that it exists for.
//!
//! Every patch in `fuzz/known-bad` puts one fault into a copy of the checkout. Its head names the
//! fuzzer that must find the fault (`Found-By`), and the features that the machine must have
//! (`Needs`). No generator and no oracle uses these patches.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{check, output, root, target, v8};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only the faults whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// How long a fuzzer may take to find one fault, in minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u32,
}

/// One patch of `fuzz/known-bad`.
struct Fault {
    name: String,
    patch: PathBuf,
    what: String,
    /// The task of `enisle-fuzz` that must find the fault.
    found_by: String,
    needs_keys: bool,
}

impl Fault {
    fn read(patch: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let head = text.split("diff --git").next().unwrap_or_default();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim());
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let found_by = field("Found-By:").with_context(|| format!("{name} does not say which fuzzer finds it"))?;
        let what = head.lines().next().unwrap_or_default().to_owned();
        Ok(Self { what, found_by: found_by.to_owned(), needs_keys: field("Needs:") == Some("keys"), name, patch })
    }
}

/// Every fault, sorted by name.
fn faults() -> Result<Vec<Fault>> {
    let mut patches: Vec<_> = fs::read_dir(root().join("fuzz/known-bad"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    patches.sort();
    patches.into_iter().map(Fault::read).collect()
}

/// Checks that every patch still applies to this checkout.
pub(crate) fn apply_all() -> Result<()> {
    let faults = faults()?;
    for Fault { name, patch, .. } in &faults {
        let mut apply = Command::new("git");
        check(apply.args(["apply", "--check"]).arg(patch).current_dir(root()))
            .with_context(|| format!("{name} does not apply any more: renew it"))?;
    }
    println!("ok  all {} patches of fuzz/known-bad apply", faults.len());
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted = |fault: &Fault| options.only.as_ref().is_none_or(|only| fault.name.contains(only.as_str()));
    let faults: Vec<_> = faults()?.into_iter().filter(wanted).collect();
    ensure!(!faults.is_empty(), "no fault has that name");
    let copy = Copy::make()?;
    let keys = enisle_hardening::Posture::probe().layers().has(enisle_hardening::Layer::Keys);
    println!("| fault | what | fuzzer | found after | by |\n|---|---|---|---|---|");
    let mut missed = Vec::new();
    for fault in &faults {
        let emulated = fault.needs_keys && !keys;
        let Fault { name, what, found_by, .. } = fault;
        match copy.with(fault, || copy.fuzz(fault, options.minutes, emulated))? {
            Some((after, finding)) => println!("| {name} | {what} | {found_by} | {} s | {finding} |", after.as_secs()),
            None => {
                println!("| {name} | {what} | {found_by} | **not found** in {} min | |", options.minutes);
                missed.push(name.as_str());
            }
        }
    }
    println!("\n{} passed, {} failed", faults.len() - missed.len(), missed.len());
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

/// A copy of the checkout, made anew each time, with a target folder of its own, which is kept.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn make() -> Result<Self> {
        let folder = target().join("known-bad");
        let copy = Self { tree: folder.join("tree"), target: folder.join("target") };
        if copy.tree.exists() {
            fs::remove_dir_all(&copy.tree)?;
        }
        fs::create_dir_all(&copy.tree)?;
        // Every file gets a new time (`tar -m`), so Cargo builds again what an earlier command
        // built with a fault.
        let mut list =
            Command::new("git").args(["ls-files", "-z"]).current_dir(root()).stdout(Stdio::piped()).spawn()?;
        let names = list.stdout.take().context("git has no standard output")?;
        let mut pack = Command::new("tar");
        pack.args(["--null", "--files-from=-", "-cf", "-"]).current_dir(root()).stdin(names).stdout(Stdio::piped());
        let mut pack = pack.spawn()?;
        let files = pack.stdout.take().context("tar has no standard output")?;
        check(Command::new("tar").args(["-xmf", "-"]).current_dir(&copy.tree).stdin(files))?;
        ensure!(list.wait()?.success() && pack.wait()?.success(), "the checkout could not be copied");
        Ok(copy)
    }

    /// Does `work` while the fault is in the copy.
    fn with<T>(&self, fault: &Fault, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let apply = |reverse: bool| {
            let mut apply = Command::new("git");
            apply.arg("apply").args(reverse.then_some("--reverse")).arg(&fault.patch);
            // The copy may lie inside another repository, which git must not look for.
            check(
                apply.current_dir(&self.tree).env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree)),
            )
            .with_context(|| format!("{} does not apply any more: renew it", fault.name))
        };
        apply(false)?;
        let result = work();
        apply(true)?;
        result
    }

    fn cargo(&self, archive: &v8::Archive) -> Command {
        let mut cargo = crate::cargo(archive);
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Builds the copy and starts the fuzzer. Returns how long the fuzzer took and what it found.
    fn fuzz(&self, fault: &Fault, minutes: u32, emulated: bool) -> Result<Option<(Duration, String)>> {
        let archive = v8::find()?;
        let profile = ["--quiet", "--profile", "harness"];
        let build = |what: &[&str]| check(self.cargo(&archive).arg("build").args(profile).args(what));
        let programs = self.target.join("harness");
        let mut limit = f64::from(minutes);
        if fault.found_by == "parsers" {
            build(&["-p", "enisle-fuzz", "--bin", "enisle-fuzz"])?;
            // `--minutes` is the time of each target, and each processor runs one target at a time.
            let targets = output(Command::new(programs.join("enisle-fuzz")).args(["parsers", "--list"]))?;
            let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
            limit *= f64::from(u32::try_from(processors)?) / f64::from(u32::try_from(targets.lines().count().max(1))?);
        } else {
            build(&["--workspace", "--bins"])?;
            build(&["-p", "enisle-worker", "--features", "attack-natives", "--bin", "enisle-worker-attack"])?;
        }
        let limit = limit.to_string();
        let mut fuzzer = if emulated {
            let mut fuzzer = self.cargo(&archive);
            fuzzer.args(["xtask", "fuzz", &fault.found_by, "--vm", "--minutes", &limit]);
            fuzzer
        } else {
            let mut fuzzer = Command::new(programs.join("enisle-fuzz"));
            fuzzer.args([&fault.found_by, "--minutes", &limit]);
            fuzzer
        };
        let said = self.target.join(format!("{}.log", fault.name));
        fuzzer.current_dir(&self.tree).env(enisle_tests::PROGRAMS_VARIABLE, &programs);
        fuzzer.stdout(File::create(&said)?).stderr(File::options().append(true).open(&said)?);
        let begun = Instant::now();
        let status = fuzzer.status().context("starting the fuzzer")?;
        let after = begun.elapsed();
        match (status.success(), finding(&said)?) {
            (true, None) => Ok(None),
            (false, Some(finding)) => Ok(Some((after, finding))),
            (_, finding) => bail!("{}: the fuzzer ended with {status} and {finding:?}: {}", fault.name, said.display()),
        }
    }
}

/// The first finding that a fuzzer printed.
fn finding(said: &Path) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(&fs::read(said)?).into_owned();
    let finding = text.lines().find_map(|line| line.split_once("finding: ").map(|(_, finding)| finding));
    Ok(finding.map(|finding| finding.chars().take(120).collect::<String>().replace('|', "/")))
}
