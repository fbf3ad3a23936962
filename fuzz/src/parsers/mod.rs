//! Fuzzes the code that reads bytes from others: frames, requests, files, the kernel's text. Pure
//! decisions of the daemon are fuzzed in the same way.
//!
//! The runner makes bytes: random ones, or changed copies of the target's corpus. A target makes a
//! case from the bytes, runs it and judges the result. A finding is minimised and written to the
//! corpus. Every later run, the smoke test too, begins with all cases of the corpus.
//!
//! | module | owns |
//! |---|---|
//! | [`targets`] | the targets and their oracles |
//! | [`runner`] | the loop: seeds, panics, minimising |
//! | [`corpus`] | the committed cases, and changes to them |
//! | `draw` | choices from bytes |

pub mod corpus;
mod draw;
pub mod runner;
pub mod targets;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;

use crate::{Budget, Finding};
use runner::Runner;
use targets::{TARGETS, Target};

/// The options of `enisle-fuzz parsers`.
#[derive(Debug, Args)]
pub struct Options {
    /// Run only this target.
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    #[command(flatten)]
    pub budget: Budget,
    /// Print the names of the targets and exit.
    #[arg(long)]
    pub list: bool,
    /// Run every target over its corpus and a fixed number of new cases, and exit.
    #[arg(long)]
    pub smoke: bool,
    /// Run one target on one file and exit.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub input: Option<std::path::PathBuf>,
}

/// The seed of every smoke test.
const SMOKE_SEED: u64 = 15;

/// Runs until the time is over or something is found.
///
/// # Errors
/// Something was found, or nothing could be tried.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if options.list {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    }
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| options.target.as_ref().is_none_or(|name| name == target.name)).collect();
    ensure!(!chosen.is_empty(), "there is no such target; --list names them");
    if let Some(path) = &options.input {
        let input = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        return chosen.into_iter().try_for_each(|target| {
            runner::case(target, &input).map_err(|said| anyhow::anyhow!("{}: {said}", target.name))
        });
    }
    runner::quietly(
        || {
            if options.smoke { chosen.into_iter().try_for_each(smoke) } else { fuzz(chosen, options.budget) }
        },
    )
}

/// Runs a target over its corpus and over the new cases of the smoke test.
///
/// # Errors
/// Something was found.
pub fn smoke(target: &'static Target) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut runner = Runner::new(target, SMOKE_SEED, 0)?;
    let repeated = runner.repeat()?;
    for _ in 0..target.smoke {
        runner.next()?;
    }
    println!("{:16} {repeated:3} repeated, {:5} new in {:.1?}", target.name, target.smoke, begun.elapsed());
    Ok(())
}

fn fuzz(targets: Vec<&'static Target>, budget: Budget) -> anyhow::Result<()> {
    let (seed, from, left) = (budget.seed(), budget.from, Duration::from_secs_f64(budget.minutes * 60.0));
    println!("--seed {seed} --from {from}");
    let mut round = Round::default();
    for target in targets {
        let runner = Runner::new(target, seed, from)?;
        runner.repeat()?;
        round.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).push_back((runner, left));
    }
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        (0..processors).for_each(|_| drop(scope.spawn(|| round.work())));
    });
    let found = round.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.map_or(Ok(()), |finding| Err(finding.into()))
}

/// How long a target runs before it is another one's turn: a defect is found soon, whichever target
/// finds it.
const TURN: Duration = Duration::from_secs(1);

/// Targets that run in turns, one on each processor at a time.
#[derive(Default)]
struct Round {
    /// The runs whose turn it is next, each with the time that it has left.
    waiting: Mutex<VecDeque<(Runner, Duration)>>,
    found: Mutex<Option<Finding>>,
}

impl Round {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Runner, Duration)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, Option<Finding>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives turns until no run is waiting, or something is found.
    fn work(&self) {
        while self.found().is_none() {
            let Some((mut runner, left)) = self.waiting().pop_front() else { return };
            let begun = Instant::now();
            while begun.elapsed() < TURN.min(left) {
                if let Err(finding) = runner.next() {
                    self.found().get_or_insert(finding);
                    return;
                }
            }
            match left.saturating_sub(begun.elapsed()) {
                Duration::ZERO => println!("{}", runner.done()),
                left => self.waiting().push_back((runner, left)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// This test runs one new case in this many, because debug builds are slow. `--smoke` runs all.
    const PART: u32 = 20;

    #[test]
    fn every_target_holds_on_its_corpus_and_on_new_cases() {
        let found = runner::quietly(|| {
            TARGETS.iter().try_for_each(|target| {
                let mut runner = Runner::new(target, SMOKE_SEED, 0)?;
                runner.repeat()?;
                (0..target.smoke.div_ceil(PART)).try_for_each(|_| Ok(runner.next()?))
            })
        });
        found.unwrap_or_else(|finding: anyhow::Error| panic!("{finding:#}"));
    }

    #[test]
    fn targets_corpora_and_programs_for_libfuzzer_have_the_same_names() {
        let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(names.len(), TARGETS.len());
        assert_eq!(corpus::names(), names);
        let manifest = include_str!("../../libfuzzer/Cargo.toml");
        let programs = manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
        assert_eq!(programs.map(str::to_owned).collect::<BTreeSet<_>>(), names);
    }
}
