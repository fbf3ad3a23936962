//! `cargo xtask bench load`: what `load()` costs, compared with the bare engine and, if installed,
//! workerd's Worker Loader.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::sample::{Sample, micros, private_mib, verdict};
use super::workerd::Workerd;
use super::{Beside, clients};
use crate::http::{Connection, Private};
use crate::{build_release, output, v8};

/// The trivial script, the same in every row.
const SCRIPT: &str = "export default () => 42";
const TURNS: usize = 400;
const ROUNDS: usize = 5;
const CLIENTS: usize = 8;
/// How many tenants the clients use in turn.
const TENANTS: usize = 24;
/// The pause between two sequential runs: longer than it takes to dispose of an isolate and warm
/// the next one.
const PAUSE: Duration = Duration::from_millis(3);

pub(crate) fn run(beside: &Beside) -> Result<()> {
    let Beside { peers, against, seconds } = beside;
    let programs = build_release(&v8::find()?)?;
    let daemon = Private::start(&programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    let info = connection.get("/v1/info")?;
    println!("\n{}", info["posture"]["consequence"].as_str().unwrap_or("?"));
    println!("{CLIENTS} clients, {TENANTS} tenants, script: {SCRIPT}\n");
    println!("{:<58} {:>8} {:>8} {:>8}", "", "p50 µs", "p99 µs", "runs/s");

    // Rounds alternate between raw V8 and enisle: the speed of a shared machine drifts, and only
    // the ratio counts.
    let (mut raw, mut warm, mut back_to_back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.extend(raw_v8(&programs, TURNS / ROUNDS)?);
        warm.extend(sequential(&mut connection, Some(PAUSE))?);
        back_to_back.extend(sequential(&mut connection, None)?);
    }
    let (warm, back_to_back) = (Sample::new(warm), Sample::new(back_to_back));
    let raw_run = Sample::new(raw.iter().map(|turn| turn.0).collect());
    let raw_whole = Sample::new(raw.iter().map(|turn| turn.1).collect());
    row("raw V8: isolate + context + compile + run", &raw_run, None);
    row("raw V8: the same and dispose, one thread", &raw_whole, Some(1.0 / raw_whole.percentile(50).as_secs_f64()));
    row("load(), one client, tenant warm (a pause between runs)", &warm, None);
    row("load(), one client, back to back", &back_to_back, Some(1.0 / back_to_back.percentile(50).as_secs_f64()));
    let (many, rate) = loads(&daemon, *seconds)?;
    row(&format!("load(), {CLIENTS} clients, {TENANTS} tenants"), &many, Some(rate));

    let peer_rate = peers.as_deref().map(|peers| workerd(peers, *seconds)).transpose()?;
    println!();
    let warm = warm.percentile(50).as_secs_f64();
    println!("{:<58} {:>8.2}", "load(), tenant warm, p50 over raw V8's", warm / raw_run.percentile(50).as_secs_f64());
    match peer_rate {
        Some(peer_rate) => {
            let ratio = rate / peer_rate;
            verdict("runs a second over workerd's Worker Loader", ratio, "at least 7", ratio >= 7.0);
        }
        None => println!("workerd was not measured: npm install workerd in a folder, and --peers FOLDER"),
    }
    drop(connection);
    drop(daemon);
    if let Some(other) = against {
        compare(&programs, other, warm, *seconds)?;
    }
    memory(&programs)?;
    at_rest(&programs)?;
    hostile(&programs)
}

/// Measures the runs a second of all clients together. Each client takes turns among tenants of its
/// own, every eighth one.
fn loads(daemon: &Private, seconds: u64) -> Result<(Sample, f64)> {
    clients::throughput(CLIENTS, seconds, |client| {
        let mut connection = daemon.connect()?;
        let mut turn = client;
        Ok(Box::new(move || {
            turn += CLIENTS;
            connection.load(&format!("t{}", turn % TENANTS), &body()).map(drop)
        }))
    })
}

/// Compares these programs with those of another build, in turns: the bare engine, and the daemon
/// under load. `warm` is the time of a `load()` for a warm tenant.
fn compare(programs: &Path, other: &Path, warm: f64, seconds: u64) -> Result<()> {
    let (mut engine, mut daemons, mut latency) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let turn = |programs: &Path| -> Result<[f64; 2]> {
            let turns = raw_v8(programs, TURNS)?;
            let median = |durations| Sample::new(durations).percentile(50).as_secs_f64();
            Ok([median(turns.iter().map(|turn| turn.0).collect()), median(turns.iter().map(|turn| turn.1).collect())])
        };
        let load = |programs: &Path| -> Result<f64> { Ok(loads(&Private::start(programs, CONFIG)?, seconds)?.1) };
        let ([_, own], [run, whole]) = (turn(programs)?, turn(other)?);
        engine.push(own / whole);
        latency.push(warm / run);
        daemons.push(load(programs)? / load(other)?);
    }
    println!();
    for (what, mut ratios) in [
        ("load(), tenant warm, p50 over the other build's raw V8", latency),
        ("isolate, context, run, dispose over the other build's", engine),
        ("load()s a second over the other build's", daemons),
    ] {
        ratios.sort_by(f64::total_cmp);
        println!(
            "{what:<58} {:>8.2}   median of {ROUNDS} pairs of rounds",
            ratios.get(ROUNDS / 2).unwrap_or(&f64::NAN)
        );
    }
    Ok(())
}

/// Compares what a process holds for a tenant at rest after three light runs with what it holds
/// after many runs that each filled the heap.
fn at_rest(programs: &Path) -> Result<()> {
    const RUNS: usize = 200;
    const FILL: &str =
        "() => { const kept = []; for (let i = 0; i < 11; i++) kept.push(new Array(600000).fill(i)); return 1 }";
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    let mut after = |code: &str, runs: usize| -> Result<f64> {
        let request = json!({ "code": code, "limits": { "memoryMb": 64 } }).to_string();
        for _ in 0..runs {
            let run = connection.load("rest", request.as_bytes())?;
            ensure!(run["outcome"] == "ok", "{run}");
        }
        let workers = await_warm(&mut connection)?;
        // A tenant is idle once it has run nothing for a while: only then is its free memory given
        // back.
        std::thread::sleep(IDLE);
        workers.iter().map(|pid| private_mib(*pid)).sum()
    };
    let light = after(SCRIPT, 3)?;
    let heavy = after(FILL, RUNS)?;
    println!();
    let what = format!("MiB private more at rest after {RUNS} runs that filled 64 MiB");
    verdict(&what, heavy - light, "at most 2", heavy - light <= 2.0);
    Ok(())
}

/// Tenants share processes even on a machine without keys, so that the memory of a tenant is
/// measured as it is with keys.
const CONFIG: &str = "[workers]\nshare_without_keys = true\n[defaults.quota]\nper_second = 1000000\nburst = 1000000\n";

fn body() -> Vec<u8> {
    json!({ "code": SCRIPT }).to_string().into_bytes()
}

fn row(what: &str, sample: &Sample, rate: Option<f64>) {
    let rate = rate.map_or_else(String::new, |rate| format!("{rate:.0}"));
    println!("{what:<58} {:>8} {:>8} {rate:>8}", micros(sample.percentile(50)), micros(sample.percentile(99)));
}

/// Runs the script in the bare engine. Returns for each turn the time of the run, and the time with
/// disposal.
fn raw_v8(programs: &Path, turns: usize) -> Result<Vec<(Duration, Duration)>> {
    let printed = output(Command::new(programs.join("raw-v8")).arg(SCRIPT).arg(turns.to_string()))?;
    let nanos = |text: &str| text.parse().map(Duration::from_nanos);
    printed
        .lines()
        .map(|line| {
            let (run, whole) = line.split_once(' ').context("each line must have two numbers")?;
            Ok((nanos(run)?, nanos(whole)?))
        })
        .collect()
}

/// Times the runs of one client in one round.
fn sequential(connection: &mut Connection, pause: Option<Duration>) -> Result<Vec<Duration>> {
    let mut durations = Vec::with_capacity(TURNS / ROUNDS);
    for turn in 0..TURNS / ROUNDS + 10 {
        std::thread::sleep(pause.unwrap_or_default());
        let begun = Instant::now();
        let run = connection.load("sequential", &body())?;
        // The first runs find the daemon cold, or still busy with what came before.
        if turn >= 10 {
            durations.push(begun.elapsed());
        }
        ensure!(run["result"] == 42, "{run}");
    }
    Ok(durations)
}

/// The same load on workerd, in requests a second.
fn workerd(peers: &Path, seconds: u64) -> Result<f64> {
    let workerd = Workerd::start(peers)?;
    let (sample, rate) = clients::throughput(CLIENTS, seconds, |_| {
        let mut connection = workerd.connect()?;
        Ok(Box::new(move || connection.request("GET", "/", b"").map(drop)))
    })?;
    row(&format!("workerd Worker Loader, {CLIENTS} clients"), &sample, Some(rate));
    Ok(rate)
}

/// How long a tenant must have run nothing before it is measured as idle.
const IDLE: Duration = Duration::from_secs(2);

/// Private memory of all workers with 1, 10, 50 and 100 idle tenants, each with a warm isolate.
fn memory(programs: &Path) -> Result<()> {
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    let mut points: Vec<(usize, f64)> = Vec::new();
    let mut admitted = 0;
    println!("\n{:<58} {:>8} {:>8} {:>8}", "idle tenants, each with a warm isolate", "tenants", "MiB", "workers");
    for tenants in [1, 10, 50, 100] {
        while admitted < tenants {
            connection.load(&format!("m{admitted}"), &body())?;
            admitted += 1;
        }
        let workers = await_warm(&mut connection)?;
        let private: f64 = workers.iter().map(|pid| private_mib(*pid)).sum::<Result<f64>>()?;
        println!("{:<58} {tenants:>8} {private:>8.1} {:>8}", "private memory of all workers", workers.len());
        points.push((tenants, private));
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    #[expect(clippy::cast_precision_loss, reason = "a hundred tenants")]
    let extra = (last.1 - first.1) / (last.0 - first.0) as f64;
    verdict("MiB private per extra idle tenant, processes included", extra, "at most 2.1", extra <= 2.1);
    Ok(())
}

/// Waits until every tenant is warm, and returns the workers' pids.
fn await_warm(connection: &mut Connection) -> Result<Vec<u64>> {
    loop {
        let tenants = connection.get("/v1/tenants")?;
        if tenants["tenants"].as_array().into_iter().flatten().all(|tenant| tenant["resident"]["warm"] == true) {
            let workers = connection.get("/v1/workers")?;
            return Ok(workers["workers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|worker| worker["tenants"].as_array().is_some_and(|tenants| !tenants.is_empty()))
                .filter_map(|worker| worker["pid"].as_u64())
                .collect());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Hostile scripts: how long after its limit each one ended.
fn hostile(programs: &Path) -> Result<()> {
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    println!(
        "\n{:<58} {:>8} {:>8} {:>8}",
        "hostile scripts: ms from the limit to the answer", "limit", "worst", "runs"
    );
    for (what, code, limit) in [
        ("a loop", "() => { for (;;); }", "cpuMs"),
        ("microtasks", "async () => { for (;;) await 0 }", "cpuMs"),
        ("a regular expression", "() => /^(a+)+$/.test('a'.repeat(50) + 'b')", "cpuMs"),
        ("a comparison in sort", "() => [2, 1].sort(() => { for (;;); })", "cpuMs"),
        ("an array method that V8 does not interrupt", "() => [].indexOf.call({ length: 2 ** 53 - 1 }, 1)", "cpuMs"),
        ("a promise that never settles", "() => new Promise((r) => setTimeout(r, 1e6))", "wallMs"),
    ] {
        let mut late = Vec::new();
        for _ in 0..5 {
            connection.load("hostile", &body())?;
            std::thread::sleep(PAUSE);
            let request = json!({ "code": code, "limits": { limit: 100 } }).to_string();
            let begun = Instant::now();
            let run: Value = connection.load("hostile", request.as_bytes())?;
            ensure!(run["outcome"].as_str().is_some_and(|outcome| outcome.starts_with("exceeded")), "{code}: {run}");
            late.push(begun.elapsed().saturating_sub(Duration::from_millis(100)));
        }
        let late = Sample::new(late);
        let worst = late.max().as_secs_f64() * 1e3;
        let holds = if worst <= 100.0 { "" } else { "   over limit + 100 ms" };
        println!("{what:<58} {:>8} {worst:>8.0} {:>8}{holds}", 100, late.len());
    }
    Ok(())
}
