//! Chaos: a daemon under steady load, whose processes are killed, stopped and starved.
//!
//! Chaos attacks the daemon's bookkeeping, not the confinement of workers: places, shares, counts,
//! standings, the audit log, and the promise that the daemon recovers without an operator. A run of
//! this program has *rounds*. In each round, clients of many tenants ([`load`]) and an operator
//! ([`orders`]) send requests, while the disturbances of a *schedule* are carried out
//! ([`schedule`], [`disturb`]). The schedule is made from the seed before anything starts. Then all
//! disturbances are undone, the load stops, and the oracles compare ([`oracle`], [`quiet`],
//! [`shares`]):
//!
//! * `answer`: a request is answered within a minute, unless its daemon was ended. A run ends as
//!   its script makes it end, or in a way that a disturbance explains. Its result and log are its
//!   own.
//! * `kept`: the runs of an isolate are numbered without a gap. So each began once, and was
//!   answered.
//! * `counts`: the daemon's counts of runs, attempts and CPU time agree with its clients' counts.
//! * `places`: never more runs are in flight than the quota allows, and none after the load.
//! * `orders`: decisions that were confirmed hold, and decisions that were refused do not, also
//!   after restarts. `standings`: scores survive an orderly restart.
//! * `audit`: `enisle audit verify` finds nothing wrong.
//! * `recovery`: every tenant is served soon after the last disturbance. The daemon never ends by
//!   itself.
//! * `leak`, `share`: processes, descriptors, memory and connections are given back. A uid gets its
//!   share, and no more.
//! * `log`, `events`: the daemon wrote each line of its log itself. No event is evidence of an
//!   attack.
//!
//! The clock is moved only in the emulated machine. Without root, no disk is filled and no limit is
//! lowered. The program prints what it leaves out.

mod disturb;
mod ground;
mod load;
mod oracle;
mod orders;
mod quiet;
mod schedule;
mod shares;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;

use crate::Budget;
use disturb::Disturber;
use ground::Ground;
use load::{Client, World};
use orders::Orders;
use schedule::{Means, Schedule, Step};

/// The options of `enisle-fuzz chaos`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub budget: Budget,
    /// Carry out the schedule in this file, which an earlier run printed, instead of a new one.
    #[arg(long, value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Also move the machine's clock. Only in the emulated machine (`cargo xtask chaos --vm`).
    #[arg(long, hide = true)]
    pub clock: bool,
}

/// A round and its checks take some 20 s.
const ROUNDS_A_MINUTE: f64 = 3.0;

/// Carries out the rounds of the schedule, until something is found.
///
/// # Errors
/// Something was found, or the daemon could not be started or disturbed.
pub fn run(options: &Options) -> Result<()> {
    let (seed, from) = (options.budget.seed(), usize::try_from(options.budget.from)?);
    if options.clock {
        let of_the_kernel = fs::read_to_string("/proc/cmdline")?;
        anyhow::ensure!(of_the_kernel.contains(enisle_tests::OWN_CLOCK), "this machine's clock is not ours to move");
    }
    let means = Means { root: nix::unistd::geteuid().is_root(), clock: options.clock };
    let schedule = match &options.schedule {
        Some(file) => Schedule::parse(&fs::read_to_string(file).with_context(|| format!("{}", file.display()))?)?,
        None => Schedule::draw(seed, from.saturating_add(rounds(options.budget.minutes)), means),
    };
    println!("chaos: --seed {seed}, rounds {from} to {}", schedule.rounds.len());
    if !means.root {
        println!("not root: disks are not filled, and no limit is lowered");
    }
    if !means.clock {
        println!("the clock is not moved: it is this machine's own (--vm moves it)");
    }
    print!("{}", schedule.text());
    let begun = Instant::now();
    let mut ground = Ground::make()?;
    ground.start()?;
    let world = World::new(seed, ground);
    let ended = all_rounds(&world, &schedule, from);
    let findings = world.findings();
    if let Err(error) = &ended {
        println!("{error:#}");
    }
    if findings.is_empty() && ended.is_ok() {
        let (counts, secs) = (&world.book().counts, begun.elapsed().as_secs());
        println!("nothing found in {secs} s; runs by outcome or status: {counts:?}");
        return Ok(());
    }
    println!("the state and the logs are kept in {}", world.ground_to_change().keep().display());
    for finding in &findings {
        println!("{finding}");
    }
    bail!("{} findings after {} s", findings.len(), begun.elapsed().as_secs())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of minutes is small")]
fn rounds(minutes: f64) -> usize {
    (minutes * ROUNDS_A_MINUTE).round().max(1.0) as usize
}

fn all_rounds(world: &World, schedule: &Schedule, from: usize) -> Result<()> {
    let (mut orders, mut disturber) = (Orders::default(), Disturber::new(world));
    let narrow = world.tenants.iter().find(|tenant| tenant.habit == load::Habit::Narrow).context("no narrow tenant")?;
    let set = world.ground().ask("PUT", &format!("/v1/tenants/{}", narrow.name), br#"{"quota": {"inFlight": 1}}"#)?;
    anyhow::ensure!(set.status == 200, "the quota could not be set: {}", set.status);
    for (number, steps) in schedule.rounds.iter().enumerate().skip(from) {
        round(world, &mut orders, &mut disturber, number, steps)?;
        if !world.findings().is_empty() {
            break;
        }
    }
    Ok(())
}

/// One round: load with disturbances, then checks at rest. Two rounds of three end with a restart.
fn round(
    world: &World,
    orders: &mut Orders,
    disturber: &mut Disturber<'_>,
    number: usize,
    steps: &[Step],
) -> Result<()> {
    let begun = Instant::now();
    world.book().narrow_held_ms = 0.0;
    world.loaded.store(true, Ordering::SeqCst);
    let clients = world.clients();
    let first = number * (clients.len() + 1);
    let carried_out = thread::scope(|scope| {
        for (client, tenant) in clients.iter().enumerate() {
            scope.spawn(move || Client::new(world, first + client, *tenant).work());
        }
        let operator = Client::new(world, first + clients.len(), 0);
        let mut random = fastrand::Rng::with_seed(world.seed ^ number as u64);
        let orders = &mut *orders;
        scope.spawn(move || orders.give(world, operator, &mut random));
        let carried_out = disturber.carry_out(steps);
        world.loaded.store(false, Ordering::SeqCst);
        carried_out
    });
    carried_out?;
    let (held_ms, passed) = (world.book().narrow_held_ms, begun.elapsed());
    if let Err(said) = oracle::places(1.0, held_ms, passed.as_secs_f64() * 1000.0) {
        world.found("places", said);
    }
    if !world.findings().is_empty() {
        return Ok(());
    }
    let recovery = quiet::check(world, orders)?;
    println!("round {number}: {} steps, recovered in {} ms", steps.len(), recovery.as_millis());
    let ends = match number % 3 {
        1 => Some(Signal::SIGTERM),
        2 => Some(Signal::SIGKILL),
        _ => None,
    };
    if let Some(signal) = ends.filter(|_| world.findings().is_empty()) {
        restart(world, orders, disturber, signal)?;
    }
    Ok(())
}

/// Restarts a daemon that is at rest, and checks that it has forgotten nothing.
fn restart(world: &World, orders: &mut Orders, disturber: &mut Disturber<'_>, signal: Signal) -> Result<()> {
    let scores = quiet::scores(world)?;
    disturber.restart(signal)?;
    // If the clock jumps forward, points decay as if that time had passed.
    if signal == Signal::SIGTERM && !world.has_moved_clock() {
        quiet::compare_scores(world, &scores)?;
    }
    quiet::check(world, orders).map(|_: Duration| ())
}
