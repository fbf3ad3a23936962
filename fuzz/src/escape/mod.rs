//! The escape fuzzer: generated attackers against a real daemon.
//!
//! **Attacked** is the confinement of a worker whose tenants have the abilities of an attacker that
//! has broken V8 (`attack-natives`). A few tenants are victims: they plant secrets in every kind of
//! memory that a tenant has ([`victims`]). The other tenants are attackers: they run programs of a
//! grammar ([`grammar`]). A program has statements of the language, calls of functions that are
//! reached from the global object, raw system calls and bytes on channels. On a machine with
//! protection keys it also has loads, stores and attempts to open other keys. Several attackers
//! share a process with victims at a time. A program that showed something new is kept, and later
//! changed.
//!
//! **Oracles** watch from outside all the time. A finding begins with the name of its invariant:
//!
//! | invariant | says | module |
//! |---|---|---|
//! | `canaries` | no secret is changed or revealed; new memory is zero | [`victims`] |
//! | `reach` | no call that must trap returns, no memory becomes executable or shared | [`reach`] |
//! | `victims`, `answers` | victims are served, the daemon answers in time | [`victims`] |
//! | `limits` | every run ends within its limits, also in a kept isolate | [`arena`], [`ledger`] |
//! | `record` | each death of a process and each violation has evidence | [`ledger`] |
//! | `attribution`, `layer` | the evidence names the attacker and the right layer | [`ledger`] |
//! | `worker` | no worker is rejected, no record is broken | [`ledger`] |
//! | `files`, `descriptors`, `processes` | no file, descriptor or process is new | [`outside`] |
//! | `memory` | the supervisor stays within its bound | [`outside`] |
//! | `islands` | no secret is on another tenant's island | [`outside`] |
//! | `tags` | every page of a victim's island has the right key | [`outside`], [`ledger`] |
//!
//! Without keys, nothing stops a load or a store at another tenant's page. Nor does anything stop a
//! system call by which the kernel reads or writes such a page for its caller. On a machine without
//! keys the grammar therefore has none of these, and the run prints that.

pub mod arena;
pub mod case;
pub mod deeds;
pub mod grammar;
mod language;
pub mod ledger;
pub mod outside;
pub mod program;
pub mod reach;
mod stream;
pub mod victims;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use enisle_hardening::{Layer, Posture};
use fastrand::Rng;

use crate::Finding;
use crate::budget::{Budget, choices};
use arena::{Arena, Counts};
use case::Case;
use grammar::Memory;
use ledger::Broken;
use program::Program;

/// The options of `enisle-fuzz escape`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub budget: Budget,
    /// How many attackers run at a time.
    #[arg(long, default_value_t = 4)]
    pub attackers: usize,
    /// Read the generator's memory from this file, if it exists, and write it there after each
    /// round. To resume a run, give the same seed and file, and the round that the run printed.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Run only this case, and check that every invariant holds; `-` is standard input.
    #[arg(long)]
    pub case: Option<PathBuf>,
    /// Write a finding to this folder, as a case.
    #[arg(long, default_value = "tests/escape/found")]
    pub found: PathBuf,
}

/// How many tenants are attacked.
const VICTIMS: usize = 4;
/// The length of a round. Each round has a daemon of its own, so that it begins without the many
/// attackers that were found out in the previous round.
const ROUND: Duration = Duration::from_secs(60);
/// How often, and for how long, the programs of a finding run again at most, to make them fewer.
const MOST_TRIES: usize = 60;
const MOST_TIME: Duration = Duration::from_secs(180);

/// Runs until the time is over or something is found.
///
/// # Errors
/// Something was found, or nothing could be tried.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let (seed, mut round) = (options.budget.seed(), options.budget.from);
    let keys = Posture::probe().layers().has(Layer::Keys);
    if let Some(path) = &options.case {
        return run_case(path, keys, seed);
    }
    println!("escape: --seed {seed} --from {round}, {} attackers, {VICTIMS} victims", options.attackers);
    if !keys {
        println!(
            "escape: this machine has no protection keys: no loads, no stores, no other keys are tried (--vm has them)"
        );
    }
    let memory = Mutex::new(options.state.as_deref().map_or_else(|| Ok(Memory::default()), read_state)?);
    let (counts, begun, ends) = (Counts::default(), Instant::now(), options.budget.ends());
    while Instant::now() < ends {
        let mut rng = choices(seed, round);
        let arena = Arena::open(keys, VICTIMS, rng.u64(..)).map_err(|broken| finding(broken, seed))?;
        let until = ends.min(Instant::now() + ROUND);
        let found = arena.fight(options.attackers, until, &memory, &counts, &mut rng);
        print_counts(&counts, &memory, begun);
        if let Some(path) = &options.state {
            write_state(path, &memory)?;
        }
        if let Some((broken, programs)) = found {
            println!("escape: the daemon's last words:\n{}", arena.last_words());
            drop(arena);
            return Err(report(broken, &programs, keys, seed, &options.found).into());
        }
        round += 1;
    }
    println!("escape: no finding; go on with --seed {seed} --from {round}");
    Ok(())
}

/// The generator's memory that an earlier run has written; an empty memory if there is no file.
fn read_state(path: &Path) -> anyhow::Result<Memory> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not a state", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Replaces the file atomically, so that a run which is killed leaves the state of its last whole
/// round.
fn write_state(path: &Path, memory: &Mutex<Memory>) -> anyhow::Result<()> {
    let text = serde_json::to_vec(&*memory.lock().unwrap_or_else(PoisonError::into_inner))?;
    let new = path.with_extension("new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("writing {}", path.display()))
}

fn finding(broken: Broken, seed: u64) -> Finding {
    Finding { what: format!("escape {}", broken.invariant), seed, said: broken.said }
}

fn run_case(path: &Path, keys: bool, seed: u64) -> anyhow::Result<()> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        fs::read_to_string(path)?
    };
    match again(&Case::read(&text)?.programs, keys, seed) {
        Some(broken) => Err(finding(broken, seed).into()),
        None => Ok(()),
    }
}

/// Runs programs with a daemon of their own.
fn again(programs: &[Program], keys: bool, seed: u64) -> Option<Broken> {
    match Arena::open(keys, VICTIMS, seed) {
        Ok(arena) => arena.replay(programs, &Counts::default(), &mut Rng::with_seed(seed)),
        Err(broken) => Some(broken),
    }
}

/// Makes a finding small, writes it to a file and prints the path.
fn report(broken: Broken, programs: &[Program], keys: bool, seed: u64, folder: &Path) -> Finding {
    println!("escape: {} does not hold: {}", broken.invariant, broken.said);
    println!("escape: running its last {} programs again, to make them fewer", programs.len());
    let begun = Instant::now();
    let small = case::minimised(programs, MOST_TRIES, |candidate| {
        begun.elapsed() < MOST_TIME
            && again(candidate, keys, seed).is_some_and(|other| other.invariant == broken.invariant)
    });
    let case = Case { programs: small };
    match case.write(folder, &broken, seed) {
        Ok(path) => println!("escape: the case is {}", path.display()),
        Err(error) => println!("escape: the case could not be written to {}: {error}", folder.display()),
    }
    // Printed too, because the files of the emulated machine are lost when it ends.
    if case.programs.len() == 1 {
        println!("{}", case.text(&broken, seed));
    }
    finding(broken, seed)
}

fn print_counts(counts: &Counts, memory: &Mutex<Memory>, begun: Instant) {
    let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs().max(1);
    let number = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let (alive, ended) = (number(&counts.alive), number(&counts.ended));
    let (kinds, fatal) = memory.kinds();
    println!(
        "escape: {seconds} s: {alive} programs left their process alive ({} a second), {ended} ended it ({:.1} a second); \
         {} processes died, {} runs of victims, {} looks, {} requests refused; coverage {}, {} programs kept, \
         {kinds} kinds of attack of which {fatal} always ended the process; the daemon and its workers computed for {} s",
        alive / seconds,
        f64::from(u32::try_from(ended).unwrap_or(u32::MAX)) / f64::from(u32::try_from(seconds).unwrap_or(1)),
        number(&counts.deaths),
        number(&counts.visits),
        number(&counts.looks),
        number(&counts.refused),
        memory.coverage(),
        memory.programs_kept(),
        number(&counts.computed_ms) / 1000,
    );
}

#[cfg(test)]
mod tests {
    use super::grammar::Grammar;
    use super::*;

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        let (folder, mut rng, mut memory) = (tempfile::tempdir().unwrap(), Rng::with_seed(15), Memory::default());
        for _ in 0..200 {
            let program = Grammar { keys: true }.program(&memory, &mut rng);
            for op in &program.ops {
                memory.returned(op, "0");
            }
            program.ops.iter().take(1).for_each(|op| memory.ended(op));
            memory.keep(program, &mut rng);
        }
        let (path, memory) = (folder.path().join("state"), Mutex::new(memory));
        assert_eq!(read_state(&path).unwrap(), Memory::default());
        write_state(&path, &memory).unwrap();
        assert_eq!(read_state(&path).unwrap(), memory.into_inner().unwrap());
        fs::write(&path, "{").unwrap();
        assert!(read_state(&path).unwrap_err().to_string().ends_with("is not a state"));
    }
}
