//! Fuzzes V8: generated scripts in several modes of V8, calls of every function that a script
//! finds, and maps of modules.
//!
//! | part | what is tried | oracle |
//! |---|---|---|
//! | [`differential`] | programs of [`grammar`], or of a corpus, then mutated | all modes agree |
//! | [`natives`] | every function that the global object leads to | [`host`], and exceptions |
//! | [`modules`] | modules that import each other by generated names | [`host`] |
//!
//! Modes of V8 agree if they compute the same result ([`judge`]), and if no process dies without a
//! limit that explains the death. [`host`] is a daemon: the run must end with a documented outcome,
//! and the next runs of the tenant and of its neighbour must be right. A native may throw only an
//! error, or a value that the script gave it.
//!
//! An iteration depends only on the seed and on its own number. So `--from` resumes a run, and
//! with `--count 1` it repeats one iteration.

mod differential;
mod engines;
mod grammar;
mod host;
mod judge;
mod minimise;
mod modules;
mod natives;
mod program;
mod report;
#[cfg(test)]
mod tests;
mod tree;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};

use crate::budget::{Budget, choices};
use differential::Differential;
use host::Host;
use report::{MOST_FINDINGS, Report};

/// The options of `enisle-fuzz engine`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub budget: Budget,
    /// Run at most this many iterations.
    #[arg(long)]
    pub count: Option<u64>,
    /// Run only this part.
    #[arg(long)]
    pub only: Option<Part>,
    /// Write findings to this folder.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/findings"))]
    pub findings: PathBuf,
}

/// A part of the fuzzer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Programs,
    Natives,
    Modules,
}

impl Part {
    /// The part that an iteration belongs to.
    fn of(iteration: u64) -> Self {
        match iteration % 20 {
            7 => Self::Natives,
            17 => Self::Modules,
            _ => Self::Programs,
        }
    }
}

/// Runs until the time or the iterations are over, or until there are [`MOST_FINDINGS`] findings.
///
/// # Errors
/// Something was found, or nothing could be tried.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let report = fuzz(options)?;
    match report.findings.len() {
        0 => Ok(()),
        found => {
            anyhow::bail!("{found} findings (seed {}), each with a file in {}", report.seed, options.findings.display())
        }
    }
}

fn fuzz(options: &Options) -> anyhow::Result<Report> {
    let (seed, from, end) = (options.budget.seed(), options.budget.from, options.budget.ends());
    let mut report = Report::new(seed, &options.findings);
    println!("seed {seed}, from iteration {from}");
    let worker = enisle_tests::programs().join("enisle-worker");
    let (mut differential, mut host) = (None, None);
    let mut iteration = from;
    let last = options.count.map_or(u64::MAX, |count| from.saturating_add(count));
    while iteration < last && Instant::now() < end && report.findings.len() < MOST_FINDINGS {
        let part = Part::of(iteration);
        if options.only.is_none_or(|only| only == part) {
            let rng = &mut choices(seed, iteration);
            match part {
                Part::Programs => {
                    let differential = match &mut differential {
                        Some(known) => known,
                        none => none.insert(Differential::new(&worker)?),
                    };
                    differential.try_one(iteration, rng, &mut report)?;
                }
                Part::Natives => in_host(&mut host, iteration, &mut report, |host, report| {
                    natives::try_one(host, iteration, rng, report);
                }),
                Part::Modules => in_host(&mut host, iteration, &mut report, |host, report| {
                    modules::try_one(host, iteration, rng, report);
                }),
            }
        }
        report.at(iteration);
        iteration += 1;
    }
    report.print(iteration);
    Ok(report)
}

/// Runs `tries` with the daemon, and starts a daemon if there is none. A daemon that does not
/// answer is a finding; the next call then starts another daemon.
fn in_host(host: &mut Option<Host>, iteration: u64, report: &mut Report, tries: impl FnOnce(&mut Host, &mut Report)) {
    let tried = catch_unwind(AssertUnwindSafe(|| tries(host.get_or_insert_with(Host::start), report)));
    if tried.is_err() {
        *host = None;
        report.found("daemon", iteration, "the daemon ended or does not answer: see the output above", "");
    }
}
