//! `cargo xtask bench cordon`: how soon a misbehaving tenant lives alone, and what a move under
//! load costs.
//!
//! All figures are measured through the socket. A tenant lives alone when the daemon reports its
//! home at `solo`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::sample::{Sample, micros};
use crate::http::{Connection, Private};
use crate::{build_release, cargo, output, root, v8};

const CONFIG: &str = "[defaults.quota]\nper_second = 1000000\nburst = 1000000\n";
/// Clients of the tenant that is moved (the mover), and as many of its neighbours.
const CLIENTS: usize = 8;
const SOFT: Duration = Duration::from_secs(5);
const HARD: Duration = Duration::from_secs(1);

pub(crate) fn run(moves: usize) -> Result<()> {
    let archive = v8::find()?;
    let programs = build_release(&archive)?;
    let mut holds = true;
    println!("\n{:<66} {:>9} {:>9}", "from the first misbehaviour to a run in a home of its own", "ms", "at most");
    for (what, code, limits, most) in [
        ("spins, one run after another", "() => { for (;;); }", json!({}), SOFT),
        ("spins in one long run", "() => { for (;;); }", json!({ "cpuMs": 60_000, "wallMs": 60_000 }), SOFT),
        (
            "bombs memory",
            "() => { const a = []; for (let i = 0; ; i++) a.push({ i, s: 'x' + i }) }",
            json!({ "memoryMb": 128 }),
            SOFT,
        ),
        (
            "takes its process along: V8 does not interrupt it",
            "() => [].indexOf.call({ length: 2 ** 53 - 1 }, 1)",
            json!({ "cpuMs": 50 }),
            HARD,
        ),
        ("crashes V8: an array too long", "() => new Array(1e9).fill(0).length", json!({ "cpuMs": 60_000 }), HARD),
    ] {
        let took = misbehave(&programs, code, &limits, most == HARD)?;
        holds &= verdict(what, took, most);
    }
    let probes = probes(&archive)?;
    holds &= verdict("probes system calls and another cage: the slowest of three", probes, HARD);
    holds &= under_load(&programs, moves)?;
    ensure!(holds, "the figures do not hold");
    Ok(())
}

fn verdict(what: &str, took: Duration, most: Duration) -> bool {
    let holds = took <= most;
    let word = if holds { "holds" } else { "DOES NOT HOLD" };
    println!("{what:<66} {:>9} {:>9}   {word}", took.as_millis(), most.as_millis());
    holds
}

fn load(connection: &mut Connection, tenant: &str, code: &str, limits: &Value) -> Result<Value> {
    connection.load(tenant, json!({ "code": code, "limits": limits }).to_string().as_bytes())
}

/// One client misbehaves: once if the first run already gives a hard signal, otherwise without
/// pause. Another client polls where the tenant lives. Returns the time until it lives alone.
fn misbehave(programs: &Path, code: &str, limits: &Value, once: bool) -> Result<Duration> {
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    let policy = json!({ "limits": { "cpuMs": 60_000, "wallMs": 60_000, "memoryMb": 128 } }).to_string();
    connection.request("PUT", "/v1/tenants/t", policy.as_bytes())?;
    for tenant in ["neighbour", "t"] {
        load(&mut connection, tenant, "() => 1", &json!({}))?;
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (begun, daemon, over) = (Instant::now(), &daemon, &over);
        let client = scope.spawn(move || -> Result<Duration> {
            let mut connection = daemon.connect()?;
            while !over.load(Ordering::SeqCst) {
                let (status, _) = connection.request(
                    "POST",
                    "/v1/tenants/t/load",
                    json!({ "code": code, "limits": limits }).to_string().as_bytes(),
                )?;
                if once || status != 200 {
                    break;
                }
            }
            Ok(begun.elapsed())
        });
        // A hard signal exists only when the run has ended, so the time counts from there.
        let from =
            if once { begun + client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?? } else { begun };
        let alone = loop {
            let tenant = connection.get("/v1/tenants/t")?;
            if tenant["resident"]["cordon"] == "solo" {
                break Instant::now();
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "the tenant was never moved: {tenant}");
            std::thread::sleep(Duration::from_millis(2));
        };
        over.store(true, Ordering::SeqCst);
        // An order ends the runs that still spin.
        let order = json!({ "level": "expelled", "reason": "the measurement is over" }).to_string();
        if !once {
            connection.request("PUT", "/v1/tenants/t/cordon", order.as_bytes())?;
        }
        let neighbour = connection.get("/v1/tenants/neighbour")?;
        ensure!(neighbour["cordon"]["level"] == "shared", "the neighbour was moved: {neighbour}");
        Ok(alone.saturating_duration_since(from))
    })
}

/// Has the attack harness measure its figure, with the worker that has attack natives.
fn probes(archive: &v8::Archive) -> Result<Duration> {
    let file = root().join("target/cordons.json");
    let arguments = ["test", "--quiet", "-p", "enisle-tests", "--test", "escape", "--", "--only", "cordons", "--json"];
    let _ = output(cargo(archive).args(arguments).arg(&file))?;
    let rows: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let said = rows[0]["with"].as_str().context("the harness has a first row")?.to_owned();
    let ms = said.split_once("new home at most ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    Ok(Duration::from_millis(ms.with_context(|| format!("no figure in {said:?}"))?))
}

/// Eight clients run scripts of a tenant that is moved, eight others scripts of its neighbours.
/// Every answer must be right, and workers must get exactly as many runs as the clients asked for.
fn under_load(programs: &Path, moves: usize) -> Result<bool> {
    let daemon = Private::start(programs, CONFIG)?;
    let mut connection = daemon.connect()?;
    let names = ["mover", "beside-0", "beside-1", "beside-2", "beside-3"];
    for name in names {
        load(&mut connection, name, "() => 1", &json!({}))?;
    }
    let together: Vec<_> = names
        .iter()
        .map(|name| Ok(connection.get(&format!("/v1/tenants/{name}"))?["resident"]["pid"].clone()))
        .collect::<Result<_>>()?;
    ensure!(together.iter().all(|pid| *pid == together[0]), "the tenants do not begin in one process");
    let (asked, mover, beside) = while_moving(&daemon, &mut connection, moves)?;
    let (mut begun, mut ended, mut fenced) = (0, 0, 0);
    for name in names {
        let usage = connection.get(&format!("/v1/tenants/{name}"))?["usage"].clone();
        let number = |key: &str| usage[key].as_u64().unwrap_or(0);
        (begun, ended, fenced) = (begun + number("begun"), ended + number("runs"), fenced + number("fenced"));
    }
    let asked = asked + names.len() as u64;
    println!("\n{moves} moves under load, {CLIENTS} clients on the mover and {CLIENTS} on its neighbours:");
    for (who, durations) in [("the mover", mover), ("its neighbours", beside)] {
        let sample = Sample::new(durations);
        let (p50, p99, max) = (sample.percentile(50), sample.percentile(99), sample.max());
        println!(
            "{who:<66} {:>9} runs, p50 {} µs, p99 {} µs, worst {} µs",
            sample.len(),
            micros(p50),
            micros(p99),
            micros(max)
        );
    }
    let holds = begun == asked && ended == asked && fenced == 0;
    println!(
        "asked {asked}, begun {begun}, ended {ended}, ends discarded {fenced}; none failed, none run twice: {}",
        if holds { "holds" } else { "DOES NOT HOLD" }
    );
    Ok(holds)
}

/// Lets clients run scripts of the mover and of its neighbours until all moves are done. Returns
/// how many runs they asked for, and how long each run of the mover and of its neighbours took.
fn while_moving(
    daemon: &Private,
    connection: &mut Connection,
    moves: usize,
) -> Result<(u64, Vec<Duration>, Vec<Duration>)> {
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mover, beside) = std::thread::scope(|scope| -> Result<_> {
        let client = |name: String| {
            let (over, asked) = (&over, &asked);
            move || -> Result<Vec<Duration>> {
                let (mut connection, mut durations) = (daemon.connect()?, Vec::new());
                while !over.load(Ordering::Relaxed) {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    let begun = Instant::now();
                    let body = json!({ "code": "(n) => n", "args": [number] }).to_string();
                    let run = connection.load(&name, body.as_bytes())?;
                    ensure!(run["outcome"] == "ok" && run["result"] == number, "{run}");
                    durations.push(begun.elapsed());
                }
                Ok(durations)
            }
        };
        let movers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client("mover".to_owned()))).collect();
        let others: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(client(format!("beside-{}", number % 4)))).collect();
        let moved = move_about(connection, moves);
        over.store(true, Ordering::Relaxed);
        let collect =
            |clients: Vec<std::thread::ScopedJoinHandle<'_, Result<Vec<Duration>>>>| -> Result<Vec<Duration>> {
                let joined = clients
                    .into_iter()
                    .map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
                Ok(joined.collect::<Result<Vec<_>>>()?.concat())
            };
        let durations = (collect(movers)?, collect(others)?);
        moved?;
        Ok(durations)
    })?;
    Ok((asked.into_inner(), mover, beside))
}

/// Moves the tenant out, further out, and in again, each time after the last move is complete.
fn move_about(connection: &mut Connection, moves: usize) -> Result<()> {
    for (number, level) in ["solo", "sealed", "shared"].iter().cycle().take(moves).enumerate() {
        let (status, _) = if *level == "shared" {
            connection.request("DELETE", "/v1/tenants/mover/cordon?reason=bench", b"")?
        } else {
            let order = json!({ "level": level, "reason": "bench" }).to_string();
            connection.request("PUT", "/v1/tenants/mover/cordon", order.as_bytes())?
        };
        ensure!(status == 200, "move {number} was answered with {status}");
        let begun = Instant::now();
        while connection.get("/v1/tenants/mover")?["resident"]["cordon"] != **level {
            ensure!(begun.elapsed() < Duration::from_secs(30), "move {number} to {level} never happened");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}
