//! `cargo xtask bench keys`: the cost of keys and of the filters of tenants' threads. Both are on
//! and off in turn, in the same run.
//!
//! The benchmark compares two workers of twelve tenants each: one with every layer, the other
//! without keys and without the thread's own filter. It speaks to the workers directly, so that no
//! supervisor is measured. The workers take turns, because the speed of a shared machine drifts.
//! Each round of one worker is compared with a round of the other right before or after it, and the
//! median of all pairs counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enisle_hardening::filter::{Own, programs};
use enisle_hardening::islands::Zone;
use enisle_hardening::{Layer, Posture};
use enisle_tests::rig::{Ran, Rig, Workshop};
use serde_json::Value;

use crate::{build_release, v8};

/// The trivial script, the same in every row.
const SCRIPT: &str = "() => 42";
const TENANTS: u32 = 12;
/// Tenants with a run at the same time: two for each of the two processors that the figures are
/// for.
const AT_ONCE: usize = 4;
const ROUND: Duration = Duration::from_millis(500);

pub(crate) fn run(rounds: usize) -> Result<()> {
    let programs = build_release(&v8::find()?)?;
    let posture = Posture::probe();
    ensure!(posture.layers().has(Layer::Keys), "this machine has no protection keys");
    let workshop = Workshop::open(&programs.join("enisle-worker"), posture.layers().unsealed())?;
    let on = posture.layers().unsealed();
    let mut on = start(&workshop, on)?;
    let mut off = start(&workshop, posture.layers().unsealed().without(Layer::Keys).without(Layer::ThreadFilter))?;
    for rig in [&mut on, &mut off] {
        runs_a_second(rig)?;
    }
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for round in 0..rounds {
        // The two workers also take turns at being the first of a pair.
        let (with, without) = if round % 2 == 0 {
            let with = runs_a_second(&mut on)?;
            (with, runs_a_second(&mut off)?)
        } else {
            let without = runs_a_second(&mut off)?;
            (runs_a_second(&mut on)?, without)
        };
        rates[0].push(with);
        rates[1].push(without);
        ratios.push(with / without);
    }
    println!("\n{TENANTS} tenants in one worker, {AT_ONCE} runs at a time, script: {SCRIPT}\n");
    let [with, without] = rates.map(median);
    println!("runs a second, every layer (median)                  {with:>8.0}");
    println!("runs a second, no keys, no thread filter              {without:>8.0}");
    let cost = (1.0 - median(ratios)) * 100.0;
    let verdict = if cost <= 2.0 { "holds" } else { "DOES NOT HOLD" };
    println!("cost, median over {rounds} pairs of rounds             {cost:>8.2} %  at most 2: {verdict}");
    filters()?;
    ensure!(cost <= 2.0, "keys and filter cost more than they may");
    Ok(())
}

fn start(workshop: &Workshop, layers: enisle_hardening::LayerSet) -> Result<Rig> {
    let mut rig = workshop.start(layers, TENANTS)?;
    for _ in 0..TENANTS {
        rig.admit()?;
    }
    Ok(rig)
}

fn runs_a_second(rig: &mut Rig) -> Result<f64> {
    let (over, runs, begun) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    let failed = std::thread::scope(|scope| {
        let share = TENANTS as usize / AT_ONCE;
        let clients: Vec<_> = rig
            .tenants()
            .chunks_mut(share)
            .map(|tenants| {
                scope.spawn(|| {
                    // A client's tenants take turns, so that one of them always has a warm isolate.
                    while !over.load(Ordering::Relaxed) {
                        for tenant in tenants.iter_mut() {
                            if tenant.run(SCRIPT, &Value::Null) != Ran::Returned(42.into()) {
                                return true;
                            }
                            runs.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    false
                })
            })
            .collect();
        std::thread::sleep(ROUND);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().any(|client| client.join().unwrap_or(true))
    });
    ensure!(!failed, "a run failed");
    #[expect(clippy::cast_precision_loss, reason = "a count of some thousands")]
    Ok(runs.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the lengths of the filters of a tenant's thread.
fn filters() -> Result<()> {
    let zone = Zone::place(TENANTS as usize, || 0);
    let island = zone.island(5).ok_or_else(|| anyhow::anyhow!("no such island"))?;
    let (channel, _) = std::os::unix::net::UnixStream::pair()?;
    let own = Own { zone: &zone, island, keys: &[2, 1], channel: std::os::fd::AsFd::as_fd(&channel) };
    let lengths: Vec<_> = programs(&own)?.iter().map(|(name, program)| format!("{name} {}", program.len())).collect();
    println!("\nBPF instructions: {}; the kernel accepts at most 4096 in a program", lengths.join(", "));
    Ok(())
}
