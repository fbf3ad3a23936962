//! Fuzz what reads bytes of others: frames, requests, files, the kernel's text, data.
//!
//! A target makes its own case from bytes and judges it; the runner makes the bytes: from a seed,
//! or from the target's corpus by changing what is there. Whatever has been found is minimised and
//! written to the corpus, from which every later run begins, and which the smoke test repeats.
//!
//! | module | owns |
//! |---|---|
//! | [`targets`] | the targets and their oracles |
//! | [`runner`] | the loop: seeds, panics, minimising |
//! | [`corpus`] | the committed cases, and changes of them |
//! | `draw` | choices from bytes |

pub mod corpus;
mod draw;
pub mod runner;
pub mod targets;

use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;

use crate::Budget;
use runner::Runner;
use targets::{TARGETS, Target};

/// What to fuzz, for how long and from which seed.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this target.
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    #[command(flatten)]
    pub budget: Budget,
    /// Name the targets and exit.
    #[arg(long)]
    pub list: bool,
    /// Run every target over its corpus and a bounded number of cases, and exit.
    #[arg(long)]
    pub smoke: bool,
    /// Run one target on one file and exit.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub input: Option<std::path::PathBuf>,
}

/// Where the smoke test begins, always.
const SMOKE_SEED: u64 = 15;

/// Runs until the time is over or something is found.
///
/// # Errors
/// What was found, or why nothing could be tried.
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
    runner::quietly(|| {
        chosen.into_iter().try_for_each(|target| if options.smoke { smoke(target) } else { fuzz(target, options) })
    })
}

/// A target over its corpus and its share of the smoke test.
///
/// # Errors
/// What was found.
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

fn fuzz(target: &'static Target, options: &Options) -> anyhow::Result<()> {
    let (seed, from) = (options.budget.seed(), options.budget.from);
    println!("{}: --seed {seed} --from {from}", target.name);
    let mut runner = Runner::new(target, seed, from)?;
    runner.repeat()?;
    let until = options.budget.ends();
    while Instant::now() < until {
        runner.next()?;
    }
    println!("{}: {} cases; go on with --seed {seed} --from {}", target.name, runner.at - from, runner.at);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// As many cases as a debug build does in a few seconds; the harness profile does all.
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
    fn every_target_has_a_corpus_and_a_program_for_libfuzzer_and_no_other_has() {
        let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(names.len(), TARGETS.len());
        assert_eq!(corpus::names(), names);
        let manifest = include_str!("../../libfuzzer/Cargo.toml");
        let programs = manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
        assert_eq!(programs.map(str::to_owned).collect::<BTreeSet<_>>(), names);
    }
}
