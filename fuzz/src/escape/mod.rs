//! The escape fuzzer: generated attackers against a real daemon.
//!
//! **Attacked** is the confinement of a worker whose tenants have the abilities of an attacker that
//! has broken V8 (`attack-natives`). A few tenants are victims: they plant secrets wherever a
//! tenant's memory is ([`victims`]). The others run programs of a grammar ([`grammar`]): statements
//! of the language, every function that is reached from the global object, raw system calls, bytes
//! on channels, and where there are protection keys loads, stores and other keys. Several attackers
//! share a process with the victims at a time. What returned something new is kept and changed.
//!
//! **Oracles** look from outside and all the time, and each has a name that a finding begins with:
//!
//! | invariant | says | module |
//! |---|---|---|
//! | `canaries` | no secret is changed or told; new memory is zero | [`victims`] |
//! | `reach` | no call that must trap returns, no memory becomes executable or shared | [`reach`] |
//! | `victims`, `answers` | victims are served, the daemon answers in time | [`victims`] |
//! | `limits` | a run ends within its limits, whoever calls it again | [`arena`], [`ledger`] |
//! | `record`, `worker` | a process that ended is on record | [`ledger`] |
//! | `attribution`, `layer` | against who did it, by the layer in the way | [`ledger`] |
//! | `files`, `descriptors`, `processes`, `memory` | nothing new, nothing grown | [`outside`] |
//! | `islands`, `tags` | secrets and keys are on their islands | [`outside`] |
//!
//! Without keys nothing stops a load or a store at another tenant's page, nor the kernel where it
//! reads or writes for its caller. There the grammar has none of these, and the run says so.

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

/// How long, from which seed, and what.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub budget: Budget,
    /// Attackers at a time.
    #[arg(long, default_value_t = 4)]
    pub attackers: usize,
    /// The generator's memory is read from this file, if it exists, and written to it after each
    /// round. A run resumes with the same seed, the same file and the round that it prints.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Run this case instead, and check that every invariant holds; `-` is standard input.
    #[arg(long)]
    pub case: Option<PathBuf>,
    /// Where a finding is written, as a case.
    #[arg(long, default_value = "tests/escape/found")]
    pub found: PathBuf,
}

/// Tenants to be attacked.
const VICTIMS: usize = 4;
/// The length of a round. Each has a daemon of its own, so that it begins without the many tenants
/// that were found out in the one before.
const ROUND: Duration = Duration::from_secs(60);
/// How often, and for how long, a finding is run again to make it smaller.
const MOST_TRIES: usize = 60;
const MOST_TIME: Duration = Duration::from_secs(180);

/// Runs until the time is over or something is found.
///
/// # Errors
/// What was found, or why nothing could be tried.
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

/// The generator's memory as an earlier run left it; an empty one if there was none.
fn read_state(path: &Path) -> anyhow::Result<Memory> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not a state", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Replaces the file at once: a run that is killed leaves the state of its last whole round.
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

/// Runs programs in a daemon of their own.
fn again(programs: &[Program], keys: bool, seed: u64) -> Option<Broken> {
    match Arena::open(keys, VICTIMS, seed) {
        Ok(arena) => arena.replay(programs, &Counts::default(), &mut Rng::with_seed(seed)),
        Err(broken) => Some(broken),
    }
}

/// Makes a finding small, writes it down, and says where.
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
    // The emulated machine's files are lost with it.
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
