//! Attacks the layers of the jail, except `speculation`, and the filters of the process, each layer
//! on and off.
//!
//! The test starts its own program again, as a worker would be started, with a single layer (and
//! the layers that this layer needs). It attacks what the layer protects: the attack must fail.
//! Then it repeats the attack without the layer: now the attack must succeed, or the first result
//! means nothing. Layers overlap on purpose, so each is tested by itself.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test runner of its own")]

mod attacker;
mod attacks;
mod cases;
mod workers;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use enisle_hardening::jail::{self, Plan};
use enisle_hardening::process::fds;
use enisle_hardening::{Layer, LayerSet, Posture, filter};

use attacker::{Verdict, prepare, try_attack};
use attacks::Target;
use cases::{CASES, Case, Takes};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let layers = |bits: &str| LayerSet::from_bits(bits.parse().unwrap_or(0));
    match words.as_slice() {
        [_, "attack", index, bits, name, folder] => {
            let target = Target { abstract_name: (*name).to_owned(), folder: PathBuf::from(folder) };
            attack(index.parse().unwrap_or(usize::MAX), layers(bits), &target)
        }
        [_, "wait", bits] => wait(layers(bits)),
        [_, "keyring"] => leave_keyring(),
        _ => run_all(),
    }
}

fn plan(layers: LayerSet) -> Plan {
    Plan { layers, data_bytes: 64 << 20, descriptors: 20, threads: 8 }
}

/// Enters the jail, reports that, and waits for a byte that never comes.
fn wait(layers: LayerSet) -> ExitCode {
    let Some(mut channel) = fds::control_channel() else { return ExitCode::FAILURE };
    if jail::enter(&plan(layers)).is_ok() && channel.write_all(&[0]).is_ok() {
        let _ = channel.read(&mut [0]);
    }
    ExitCode::SUCCESS
}

/// Enters the jail and attacks. Its answer begins with S if the attack succeeded, F if it failed,
/// and E if there was no attack, because the jail or a filter failed. The error follows as text.
fn attack(index: usize, layers: LayerSet, target: &Target) -> ExitCode {
    let (Some(case), Some(mut channel)) = (CASES.get(index), fds::control_channel()) else { return ExitCode::FAILURE };
    if let Err(error) = jail::enter(&plan(layers)) {
        let _ = write!(channel, "E{error}");
        return ExitCode::FAILURE;
    }
    let sealed = if layers.has(Layer::SealedFilter) { filter::seal() } else { Ok(()) };
    let filtered = if layers.has(Layer::Seccomp) { filter::install() } else { Ok(()) };
    if let Err(error) = sealed.and(filtered) {
        let _ = write!(channel, "E{error}");
        return ExitCode::FAILURE;
    }
    let said = match (case.attack)(target) {
        Ok(()) => "S".to_owned(),
        Err(error) => format!("F{error}"),
    };
    let _ = channel.write_all(said.as_bytes());
    ExitCode::SUCCESS
}

/// Enters the jail and reports the number of its session keyring.
fn leave_keyring() -> ExitCode {
    let Some(mut channel) = fds::control_channel() else { return ExitCode::FAILURE };
    match jail::enter(&plan(LayerSet::NONE)) {
        Ok(()) if channel.write_all(&workers::session_keyring().to_le_bytes()).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// How many cases passed, how many failed, and how many were skipped.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Prints the result of one case, and counts it.
    fn count(&mut self, label: &str, result: Said) {
        let (counter, text) = match result {
            Said::Passed(text) => (&mut self.passed, text),
            Said::Failed(why) if why.is_empty() => (&mut self.failed, "FAILED".to_owned()),
            Said::Failed(why) => (&mut self.failed, format!("FAILED: {why}")),
            Said::Skipped(why) => (&mut self.skipped, format!("skipped: {why}")),
        };
        *counter += 1;
        println!("{label}: {text}");
    }
}

/// The result of one case.
enum Said {
    Passed(String),
    Failed(String),
    Skipped(String),
}

impl Said {
    /// The result if this machine lacks something: a failure if the machine is required to have it.
    fn lacking(why: String, required: bool) -> Self {
        if required { Self::Failed(why) } else { Self::Skipped(why) }
    }

    fn of(holds: bool) -> Self {
        if holds { Self::Passed("yes".to_owned()) } else { Self::Failed(String::new()) }
    }
}

fn run_all() -> ExitCode {
    let posture = Posture::probe();
    // The folder is removed when this function returns or panics, with all that attackers wrote
    // there.
    let folder = tempfile::Builder::new().prefix("enisle-layers-").tempdir().expect("a folder");
    let target = prepare(&folder);
    let mut tally = Tally::default();
    for (index, case) in CASES.iter().enumerate() {
        let label = format!("{:<18} {}", case.layer, case.name);
        tally.count(&label, run_case(index, case, &posture, &target));
    }
    for (die, layer) in [(true, LayerSet::NONE.with(Layer::ParentDeath)), (false, LayerSet::NONE)] {
        let dies = workers::dies_with_its_parent(layer);
        let what = if die { "a worker ends with its parent" } else { "without it, a worker outlives its parent" };
        tally.count(&format!("{:<18} {what}", Layer::ParentDeath), Said::of(dies == die));
    }
    let no_keys = "this machine has no protection keys";
    for (who, what, holds, lacking) in [
        (
            "every worker",
            "has another session keyring than the daemon",
            workers::keys_are_left(),
            "this machine allows no session keyring",
        ),
        ("every worker", "yields memory and processors to the daemon", workers::steps_back(), ""),
        ("keys", "are as many in a second count as in the first", workers::counting_keys_gives_them_back(), no_keys),
        ("keys", "deliver a fault to the handler when they are closed", workers::keys_deliver_faults(), no_keys),
    ] {
        let said = holds.map_or_else(|| Said::Skipped(lacking.to_owned()), Said::of);
        tally.count(&format!("{who:<18} {what}"), said);
    }
    let Tally { passed, failed, skipped } = tally;
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the attack of a case with the layer and without the layer.
fn run_case(index: usize, case: &Case, posture: &Posture, target: &Target) -> Said {
    let missing = std::iter::once(&case.layer).chain(case.needs).find(|layer| !posture.layers().has(**layer));
    if let Some(layer) = missing {
        let name = if *layer == Layer::Namespaces || *layer == Layer::EmptyRoot { "userns" } else { layer.name() };
        return Said::lacking(format!("this machine has no {layer}"), is_required(name));
    }
    if let Some(why) = case.takes.lacking(posture) {
        return Said::lacking(why.to_owned(), case.takes == Takes::Keys && is_required("pku"));
    }
    let with: LayerSet = case.needs.iter().copied().chain([case.layer]).collect();
    let without: LayerSet = case.needs.iter().copied().collect();
    let (on, off) = (try_attack(index, with, target), try_attack(index, without, target));
    if case.takes == Takes::Scopes && !posture.landlock_scopes {
        let detail = posture.findings.iter().find(|finding| finding.layer == Layer::Landlock);
        return if detail.is_some_and(|finding| finding.detail.contains("without scopes")) {
            Said::Passed("not judged: Landlock has no scopes here, and the posture says so".to_owned())
        } else {
            Said::Failed("Landlock has no scopes here, and the posture does not say so".to_owned())
        };
    }
    if matches!(on, Verdict::Blocked(_)) && off == Verdict::Succeeded {
        Said::Passed("blocked with it, succeeds without it".to_owned())
    } else {
        Said::Failed(format!("with the layer {on:?}, without it {off:?}"))
    }
}

/// Whether this machine is required to have a feature, so that the feature's cases must not be
/// skipped.
fn is_required(feature: &str) -> bool {
    std::env::var("ENISLE_REQUIRE").unwrap_or_default().split(',').any(|word| word == feature)
}
