//! `cargo xtask bench start`: how long the first run of a tenant takes, beside a warm tenant's run
//! and beside other ways to run a script in a place of its own.
//!
//! Every row runs a script that does nothing but give a number, and its time is the whole time that
//! a client waits. Only the peers inside Node are timed there, without their pipe. The rows take
//! turns, round by round, because the speed of a shared machine drifts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Beside;
use super::clients::{self, Client};
use super::peers::{self, Peers};
use super::sample::{Sample, private_mib, verdict};
use crate::http::{Connection, Private};
use crate::{build_release, v8};

const CODE: &str = "() => 42";
const CONFIG: &str = "[defaults.quota]\nper_second = 1000000\nburst = 1000000\n";
/// Added to [`CONFIG`]: nothing is on standby.
const DRAINED: &str = "[workers]\nstandby = 0\n";
const ROUNDS: usize = 5;
/// How many runs of each row are timed in one round.
const TURNS: usize = 24;
/// A peer that starts a process for each run takes ten times as long and more.
const PEER_TURNS: usize = 8;
/// The pause between two runs of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// How many clients start new tenants back to back.
const CLIENTS: usize = 4;
/// How many new tenants come at once.
const BURST: usize = 50;

pub(crate) fn run(beside: &Beside) -> Result<()> {
    let programs = build_release(&v8::find()?)?;
    let mut others = Peers::start(beside.peers.as_deref())?;
    let against = beside.against.as_deref();
    let times = latencies(&programs, against, &mut others)?;
    rates(&programs, against, beside.seconds)?;
    burst(&programs)?;
    memory(&programs, &others)?;
    println!();
    let p50 = |what: &str| times.iter().find(|(name, _)| name == what).map(|(_, p50)| p50.as_secs_f64());
    if let (Some(new), Some(warm)) = (p50(NEW), p50(WARM)) {
        verdict("first run of a new tenant over a warm tenant's, p50", new / warm, "at most 1.5", new / warm <= 1.5);
        if let (Some(drained), Some(other)) = (p50(NEW_DRAINED), p50(NEW_OTHER)) {
            let ratio = drained / other;
            verdict("nothing on standby, over the other build's, p50", ratio, "at most 0.5", ratio <= 0.5);
        }
        if let Some(container) = p50(peers::RUNC_NODE) {
            let ratio = container / new;
            verdict("runc with Node over a new tenant, p50", ratio, "at least 50", ratio >= 50.0);
        }
    }
    Ok(())
}

const NEW: &str = "load(), a tenant never seen before";
const NEW_DRAINED: &str = "the same with nothing on standby";
const NEW_OTHER: &str = "the same, of the other build";
const WARM: &str = "load(), a warm tenant";
const REGISTERED: &str = "a registered script of a warm tenant";

/// Names of tenants that no run had before.
#[derive(Debug, Default)]
struct Names(usize);

impl Names {
    fn next(&mut self) -> String {
        self.0 += 1;
        format!("new-{}", self.0)
    }
}

fn body() -> Vec<u8> {
    json!({ "code": CODE }).to_string().into_bytes()
}

fn load(connection: &mut Connection, tenant: &str) -> Result<()> {
    let run = connection.load(tenant, &body())?;
    ensure!(run["result"] == 42, "{run}");
    Ok(())
}

/// Times one client, row by row and round by round. Returns the median of each row.
fn latencies(programs: &Path, against: Option<&Path>, others: &mut Peers) -> Result<Vec<(String, Duration)>> {
    let nothing_ready = format!("{CONFIG}{DRAINED}");
    let (daemon, drained) = (Private::start(programs, CONFIG)?, Private::start(programs, &nothing_ready)?);
    let others_daemon = against.map(|other| Private::start(other, &nothing_ready)).transpose()?;
    let (mut connection, mut cold) = (daemon.connect()?, drained.connect()?);
    let mut other = others_daemon.as_ref().map(Private::connect).transpose()?;
    let script = json!({ "code": CODE }).to_string();
    let (status, answer) = connection.request("PUT", "/v1/tenants/warm/scripts/s", script.as_bytes())?;
    ensure!(status < 300, "{status} {}", String::from_utf8_lossy(&answer));
    let mut rows: Vec<(String, Vec<Duration>)> = Vec::new();
    let mut names = Names::default();
    for _ in 0..ROUNDS {
        await_standby(&mut connection)?;
        let mut add = |what: &str, times: Vec<Duration>| match rows.iter_mut().find(|(name, _)| name == what) {
            Some((_, all)) => all.extend(times),
            None => rows.push((what.to_owned(), times)),
        };
        add(NEW, paused(TURNS, || load(&mut connection, &names.next()))?);
        add(NEW_DRAINED, paused(TURNS, || load(&mut cold, &names.next()))?);
        if let Some(connection) = &mut other {
            add(NEW_OTHER, paused(TURNS, || load(connection, &names.next()))?);
        }
        load(&mut connection, "warm")?;
        add(WARM, paused(TURNS, || load(&mut connection, "warm"))?);
        let mut registered = || {
            let (_, answer) = connection.request("POST", "/v1/tenants/warm/scripts/s/run", b"{}")?;
            let run: Value = serde_json::from_slice(&answer)?;
            ensure!(run["result"] == 42, "{run}");
            Ok(())
        };
        registered()?;
        add(REGISTERED, paused(TURNS, registered)?);
        for peer in others.each() {
            let turns = if peer.is_a_process_each() { PEER_TURNS } else { TURNS };
            let mut times = Vec::new();
            for _ in 0..turns {
                std::thread::sleep(PAUSE);
                times.push(peer.time()?);
            }
            add(peer.name, times);
        }
    }
    println!("\n{:<58} {:>8} {:>8} {:>8}", "one client, a pause after each run", "p50 ms", "p99 ms", "runs");
    let mut medians = Vec::new();
    for (what, times) in rows {
        let sample = Sample::new(times);
        println!(
            "{what:<58} {:>8} {:>8} {:>8}",
            millis(sample.percentile(50)),
            millis(sample.percentile(99)),
            sample.len()
        );
        medians.push((what, sample.percentile(50)));
    }
    Ok(medians)
}

fn millis(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}

fn paused(turns: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(turns);
    for _ in 0..turns {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// New tenants back to back, and the rate of another build in turns.
fn rates(programs: &Path, against: Option<&Path>, seconds: u64) -> Result<()> {
    println!();
    let rate = |programs: &Path, config: &str| -> Result<f64> {
        let daemon = Private::start(programs, config)?;
        await_standby(&mut daemon.connect()?)?;
        let new = |client: usize| -> Result<Client<'_>> {
            let (mut connection, mut number) = (daemon.connect()?, 0);
            Ok(Box::new(move || {
                number += 1;
                load(&mut connection, &format!("new-{client}-{number}"))
            }))
        };
        Ok(clients::throughput(CLIENTS, seconds, new)?.1)
    };
    let what = format!("new tenants a second, {CLIENTS} clients back to back");
    let Some(other) = against else {
        println!("{what:<58} {:>8.0}", rate(programs, CONFIG)?);
        println!("{:<58} {:>8.0}", "the same with nothing on standby", rate(programs, &format!("{CONFIG}{DRAINED}"))?);
        return Ok(());
    };
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let (own, others) = (rate(programs, CONFIG)?, rate(other, CONFIG)?);
        println!("{what:<58} {own:>8.0}   {others:.0} of the other build");
        ratios.push(own / others);
    }
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
    verdict("new tenants a second over the other build's", ratio, "at least 3", ratio >= 3.0);
    Ok(())
}

/// Many new tenants at once, after the daemon has rested.
fn burst(programs: &Path) -> Result<()> {
    let mut slowest = Vec::new();
    for _ in 0..ROUNDS {
        let daemon = Private::start(programs, CONFIG)?;
        await_standby(&mut daemon.connect()?)?;
        let connections = (0..BURST).map(|_| daemon.connect()).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let clients: Vec<_> = connections
                .into_iter()
                .zip(0..)
                .map(|(mut connection, number)| scope.spawn(move || load(&mut connection, &format!("burst-{number}"))))
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
        })
        .context("no request of a burst may fail")?;
        slowest.push(begun.elapsed());
    }
    let median = Sample::new(slowest).percentile(50).as_secs_f64();
    println!();
    verdict(&format!("s until {BURST} new tenants at once are all answered"), median, "at most 1", median <= 1.0);
    Ok(())
}

/// What one more tenant, and one more worker on standby, hold.
fn memory(programs: &Path, others: &Peers) -> Result<()> {
    const TENANTS: u32 = 20;
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    await_standby(&mut connection)?;
    let standby = workers(&mut connection)?;
    let idle = standby.iter().map(|pid| private_mib(*pid)).sum::<Result<f64>>()?;
    #[expect(clippy::cast_precision_loss, reason = "a few processes")]
    let each = idle / standby.len() as f64;
    println!();
    verdict("MiB private of a worker on standby", each, "at most 12", each <= 12.0);
    load(&mut connection, "first")?;
    let held = |connection: &mut Connection| -> Result<f64> {
        await_standby(connection)?;
        workers(connection)?.iter().map(|pid| private_mib(*pid)).sum()
    };
    let before = held(&mut connection)?;
    for number in 0..TENANTS {
        load(&mut connection, &format!("more-{number}"))?;
    }
    let more = (held(&mut connection)? - before) / f64::from(TENANTS);
    println!("{:<58} {more:>8.2}", "MiB private for one more tenant");
    if let Some(mib) = others.runc_memory()? {
        println!("{:<58} {mib:>8.2}", "MiB private for one more Node in a container");
        verdict("that over one more tenant's memory", mib / more, "at least 5", mib / more >= 5.0);
    }
    Ok(())
}

fn workers(connection: &mut Connection) -> Result<Vec<u64>> {
    let workers = connection.get("/v1/workers")?;
    Ok(workers["workers"].as_array().into_iter().flatten().filter_map(|worker| worker["pid"].as_u64()).collect())
}

/// Waits until the daemon has as much on standby as it wants: the number has not changed for a
/// while. A build that has nothing on standby passes at once.
fn await_standby(connection: &mut Connection) -> Result<()> {
    const STEADY: Duration = Duration::from_millis(500);
    let (mut last, mut since) = (Value::Null, Instant::now());
    loop {
        let now = connection.get("/v1/info")?["counts"]["standby"].take();
        if now.is_null() || (now == last && since.elapsed() > STEADY) {
            return Ok(());
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
