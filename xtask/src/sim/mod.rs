//! `cargo xtask sim cordon`: ten thousand tenants over weeks of virtual time, judged by the engine
//! that the daemon uses.
//!
//! `behaviour` says what the tenants do, and names its assumptions. The engine's decisions are
//! compared with labels that the engine does not know. The second table shows what cordons cost
//! that come earlier, later, at once and never: how many processes run, and how long benign tenants
//! shared a process with a hostile tenant.

mod behaviour;
mod world;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use enisle_cordon::{Level, Rules};

use behaviour::{KINDS, Kind, Label};
use world::{Tenant, World};

#[derive(Debug, Subcommand)]
pub(crate) enum Sim {
    /// Measure detection, false positives, the time until a cordon, and processes.
    Cordon(Options),
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    #[arg(long, default_value_t = 4)]
    weeks: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Private memory of a worker with its first tenant, and of each further tenant, in MiB, as
/// `cargo xtask bench load` measured it.
const FIRST_MIB: f64 = 24.5;
const FURTHER_MIB: f64 = 2.2;

pub(crate) fn run(sim: &Sim) -> Result<()> {
    let Sim::Cordon(options) = sim;
    let begun = Instant::now();
    let rules = Rules::default();
    let mut world = World::new(options.tenants, &rules, options.seed);
    world.run(options.weeks * 7);
    println!(
        "{} tenants, {} weeks, seed {}: {} decisions, simulated in {:.1} s\n",
        world.tenants.len(),
        options.weeks,
        options.seed,
        world.tally.decisions,
        begun.elapsed().as_secs_f64()
    );
    by_kind(&world);
    let verdict = verdict(&world);
    curve(options);
    ensure!(verdict, "the figures do not hold");
    Ok(())
}

fn by_kind(world: &World<'_>) {
    println!(
        "{:<9} {:<26} {:>7} {:>7} {:>9} {:>7} {:>8} {:>8} {:>9} {:>11}",
        "label", "kind", "tenants", "acted", "cordoned", "sealed", "expelled", "median", "p99", "most score"
    );
    for kind in KINDS {
        let tenants: Vec<_> = world.tenants.iter().filter(|tenant| tenant.kind.name == kind.name).collect();
        let count = |wanted: &dyn Fn(&Tenant) -> bool| tenants.iter().filter(|tenant| wanted(tenant)).count();
        let acted = count(&|tenant| tenant.first_act.is_some());
        let mut delays: Vec<_> = tenants.iter().filter_map(|tenant| delay_secs(tenant)).collect();
        delays.sort_unstable();
        let score = tenants.iter().map(|tenant| tenant.most_score).fold(0.0, f64::max);
        println!(
            "{:<9} {:<26} {:>7} {:>7} {:>9} {:>7} {:>8} {:>8} {:>9} {score:>11.0}",
            format!("{:?}", kind.label).to_lowercase(),
            kind.name,
            tenants.len(),
            if kind.label == Label::Benign { "-".to_owned() } else { acted.to_string() },
            count(&|tenant| tenant.worst > Level::Shared),
            count(&|tenant| tenant.worst == Level::Sealed),
            count(&|tenant| tenant.worst == Level::Expelled),
            percentile(&delays, 50),
            percentile(&delays, 99),
        );
    }
    println!();
}

/// The time from a tenant's first act to its cordon.
fn delay_secs(tenant: &Tenant) -> Option<u64> {
    Some(tenant.cordoned?.since(tenant.first_act?) / 1000)
}

fn percentile(sorted: &[u64], percent: usize) -> String {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or_else(|| "-".to_owned(), |secs| format!("{secs} s"))
}

#[expect(clippy::cast_precision_loss, reason = "some thousand tenants and processes")]
fn verdict(world: &World<'_>) -> bool {
    let of = |label: Label| world.tenants.iter().filter(move |tenant| tenant.kind.label == label);
    let acted = of(Label::Hostile).filter(|tenant| tenant.first_act.is_some()).count();
    let found = of(Label::Hostile).filter(|tenant| tenant.cordoned.is_some()).count();
    let benign = of(Label::Benign).count();
    let wrong = of(Label::Benign).filter(|tenant| tenant.worst > Level::Shared).count();
    // How many of these tenants had ended a process by accident, and were alone for ten minutes.
    let accidents = of(Label::Benign).filter(|tenant| tenant.worst > Level::Shared && tenant.took).count();
    let slowest = |kinds: &[&str]| {
        let delays = world.tenants.iter().filter(|tenant| kinds.contains(&tenant.kind.name)).filter_map(delay_secs);
        delays.max().unwrap_or(0) as f64
    };
    let hard =
        slowest(&["probes system calls", "probes cages", "crashes V8", "forges frames", "hard kills and aborts"]);
    let soft = slowest(&["batch computing", "memory bombs", "Spectre, silent", "Spectre, behind messages"]);
    let detection = 100.0 * found as f64 / acted.max(1) as f64;
    let false_positives = 100.0 * wrong as f64 / benign.max(1) as f64;
    // The number of processes, divided by the number that would run if exactly the tenants that
    // deserve it lived alone.
    let ratio = |&(all, alone, deserving): &(usize, usize, usize)| all as f64 / (all - alone + deserving).max(1) as f64;
    let processes = world.tally.days.iter().map(ratio).fold(0.0, f64::max);
    let pushed = of(Label::Benign).map(|tenant| tenant.most_score).fold(0.0, f64::max);
    let mut holds = true;
    for (what, figure, wanted, met) in [
        ("hostile tenants cordoned, % of those that acted", detection, "at least 99", detection >= 99.0),
        ("benign tenants cordoned, %", false_positives, "at most 0.6", false_positives <= 0.6),
        ("slowest cordon after a hard signal, s", hard, "at most 1", hard <= 1.0),
        ("slowest cordon after computing or paging without end, s", soft, "at most 5", soft <= 5.0),
        ("processes over (deserving + shared), worst day", processes, "at most 1.2", processes <= 1.2),
    ] {
        println!("{what:<58} {figure:>8.2}   {wanted}: {}", if met { "holds" } else { "DOES NOT HOLD" });
        holds &= met;
    }
    println!("{:<58} {accidents:>8}", "of the benign ones: had ended a process by accident");
    let found =
        |kind: &Kind| world.tenants.iter().any(|tenant| tenant.kind.name == kind.name && tenant.cordoned.is_some());
    let missed: Vec<_> =
        KINDS.iter().filter(|kind| kind.label == Label::Hostile && !found(kind)).map(|kind| kind.name).collect();
    println!("{:<58} {:>8}", "hostile kinds that are not found", missed.join(", "));
    println!("{:<58} {pushed:>8.2}", "highest score of a benign tenant");
    holds
}

/// The price of cordons that come earlier or later, simulated with fewer tenants.
fn curve(options: &Options) {
    let tenants = options.tenants.min(3000);
    println!("\nthe price, with {tenants} tenants:");
    println!(
        "{:<36} {:>9} {:>7} {:>10} {:>20} {:>10}",
        "cordon", "processes", "alone", "MiB", "exposed hours/benign", "benign out"
    );
    let everyone_alone = tenants as f64;
    price("one process a tenant", everyone_alone, everyone_alone, tenants, 0.0, 0);
    for factor in [0.35, 0.5, 0.75, 1.0, 1.4] {
        let rules = Rules::default();
        let rules = Rules {
            watch: (rules.watch * factor).max(1.0),
            back_below: (rules.back_below * factor).min(rules.back_below),
            solo: rules.solo * factor,
            share_most: rules.share_most * factor,
            advisory_most: rules.advisory_most * factor.min(1.0),
            sealed: rules.sealed.max(rules.solo * factor + 6.0),
            ..rules
        };
        let mut world = World::new(tenants, &rules, options.seed);
        world.run(options.weeks * 7);
        let days = world.tally.days.len().max(1) as f64;
        let mean = |of: &dyn Fn(&(usize, usize, usize)) -> usize| {
            world.tally.days.iter().map(|day| of(day) as f64).sum::<f64>() / days
        };
        let benign = world.tenants.iter().filter(|tenant| tenant.kind.label == Label::Benign);
        let out = benign.clone().filter(|tenant| tenant.worst > Level::Shared).count();
        let exposed = world.tally.exposed_hours / benign.count().max(1) as f64;
        let name = format!("from a score of {:.0} on", rules.solo);
        price(&name, mean(&|day| day.0), mean(&|day| day.1), tenants, exposed, out);
    }
    // Without cordons no tenant leaves, so every benign tenant is beside hostile ones all the time.
    // This figure counts all hours, also those before the first hostile act.
    let hours = (options.weeks * 7 * 24) as f64;
    price("everyone in one process", 1.0, 0.0, tenants, hours, 0);
}

fn price(cordon: &str, processes: f64, alone: f64, tenants: usize, exposed: f64, out: usize) {
    let mib = processes * FIRST_MIB + (tenants as f64 - processes).max(0.0) * FURTHER_MIB;
    println!("{cordon:<36} {processes:>9.0} {alone:>7.0} {mib:>10.0} {exposed:>20.2} {out:>10}");
}
