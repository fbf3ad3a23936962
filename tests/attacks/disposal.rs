//! What a run leaves behind: who pays for its disposal, and who waits for it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, SHARING, attack_worker, is_alive};
use serde_json::{Value, json};

use crate::ground::{STALLED, send, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case {
        id: "S14 usage",
        title: "runs that leave much behind: what is told is what the thread computed",
        run: usage,
    },
    Case { id: "S14 killed", title: "what a run computed that took its process along", run: killed },
    Case { id: "S14 gone", title: "what a run computed whose client has gone away", run: gone },
    Case { id: "S14 neighbour", title: "a neighbour in the process of runs that leave much behind", run: neighbour },
];

/// What is left.
const LEFT: &[(&str, &str)] = &[
    ("array buffers", "for (let i = 0; i < 400000; i++) a.push(new ArrayBuffer(100))"),
    ("one byte each", "for (let i = 0; i < 400000; i++) a.push(new ArrayBuffer(1))"),
    ("segments", "const g = new Intl.Segmenter(); for (let i = 0; i < 50000; i++) a.push(g.segment('abc'))"),
    (
        "finalizers",
        "const f = new FinalizationRegistry(() => {}); for (let i = 0; i < 300000; i++) { const o = {}; a.push(o); f.register(o, 1) }",
    ),
    ("date formats", "for (let i = 0; i < 500; i++) a.push(new Intl.DateTimeFormat('en'))"),
    ("objects", "for (let i = 0; i < 900000; i++) a.push({ i })"),
    (
        "regular expressions",
        "for (let i = 0; i < 30000; i++) { const r = new RegExp('a' + i); r.test('x'); a.push(r) }",
    ),
    ("little", "a.push(1)"),
];

/// Nobody is moved for what this computes.
fn daemon(workers: &str) -> Daemon {
    let unmoved = ["busy", "paging", "computeOnly", "resident"]
        .map(|signal| format!("[cordon.rules.signals.{signal}]\npoints = 0\nhalf_life_secs = 1\nmost = 0\n"));
    let limits = "[defaults.limits]\ncpu_ms = 60000\nwall_ms = 120000\nmemory_mb = 256\n";
    Daemon::start(&format!("{SHARING}{workers}{limits}{}", unmoved.concat()))
}

fn ms(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// What the one tenant's thread has computed, as the kernel has it (sched-stats.rst), in ms.
fn computed(worker: i32) -> Option<f64> {
    let thread = fs::read_dir(format!("/proc/{worker}/task"))
        .ok()?
        .flatten()
        .find(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("tenant-")))?;
    let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
    let ns: u32 = (times.split(' ').next()?.parse::<u64>().ok()? / 1000).try_into().ok()?;
    Some(f64::from(ns) / 1000.0)
}

/// Waits until the tenant's thread has told of all that it did; what is told of the tenant then,
/// and what the thread computed.
fn settled(daemon: &Daemon, worker: i32) -> Result<(f64, f64), String> {
    let tenant = daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"]["warm"] == true);
    let computed = computed(worker).ok_or("the tenant's thread is gone")?;
    Ok((ms(&tenant["usage"]["cpuMs"]), computed))
}

fn usage(_: Options) -> Result<String, String> {
    let daemon = daemon("");
    daemon.run("t", "() => 1");
    let worker = daemon.worker_of("t");
    let (mut said, mut failures) = (Vec::new(), Vec::new());
    for (what, code) in LEFT {
        let (told_before, computed_before) = settled(&daemon, worker)?;
        let run = daemon.run("t", &format!("() => {{ const a = globalThis.a = []; {code} }}"));
        let (told, computed) = settled(&daemon, worker)?;
        let (told, computed) = (told - told_before, computed - computed_before);
        let of_run = ms(&run["usage"]["cpuMs"]);
        let line = format!("{what}: run {of_run:.0} ms, tenant {told:.0}, thread {computed:.0}");
        // The thread goes on for a moment after it has told, and tells of that with the next run.
        let close = |told: f64| (told - computed).abs() <= 0.03 * computed + 1.0;
        // A short run's answer does not wait for what is left of it.
        let complete = close(of_run) || computed < 15.0;
        if run["outcome"] == "ok" && close(told) && complete { said.push(line) } else { failures.push(line) }
    }
    // In an isolate that stays nothing is disposed of: the same script is the cheaper by that.
    let source = format!("export default () => {{ const a = globalThis.a = []; {} }}", LEFT[0].1);
    daemon.request("PUT", "/v1/tenants/t/scripts/s", json!({ "code": source }).to_string().as_bytes());
    let stays = daemon.request("POST", "/v1/tenants/t/scripts/s/run", b"{}").ok();
    let goes = daemon.run("t", &format!("() => {{ const a = globalThis.a = []; {} }}", LEFT[0].1));
    let (stays, goes) = (ms(&stays["usage"]["cpuMs"]), ms(&goes["usage"]["cpuMs"]));
    let line = format!("array buffers that stay {stays:.0} ms, that go {goes:.0} ms");
    if goes > 1.2 * stays {
        said.push(line)
    } else {
        failures.push(line)
    }
    if failures.is_empty() { Ok(said.join("; ")) } else { Err(failures.join("; ")) }
}

/// Some computing, and what takes the process along then.
const KILLERS: &[(&str, &str, &str)] = &[
    (
        "over its memory",
        "exceededMemory",
        "const g = new Intl.Segmenter(), t = 'x'.repeat(4e6), a = []; for (;;) a.push(g.segment(t))",
    ),
    ("over its time", "exceededWall", "Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)"),
    ("a crash", "workerLost", "attack.read(8n, 1n)"),
    ("an attack", "violation", "attack.syscall(41n, 2n, 1n, 0n)"),
];
const COMPUTES: &str = "let x = 0; for (let i = 0; i < 1e8; i++) x = (x * 31 + i) | 0;";
const KILLED_WALL_MS: u32 = 5_000;

/// What a run used is charged also if its process ends with it: what the same computing costs where
/// nothing follows is in the answer and in the tenant's usage, and no more than time passed.
fn killed(_: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let daemon = daemon(&format!("program = {worker:?}\n"));
    daemon.run("neighbour", "() => 1");
    let mut said = Vec::new();
    for (number, (what, outcome, killer)) in KILLERS.iter().enumerate() {
        let tenant = format!("t{number}");
        let load = |code: &str, attack: bool| {
            let limits = json!({ "cpuMs": 60000, "wallMs": KILLED_WALL_MS, "memoryMb": 64 });
            daemon.load(&tenant, &json!({ "code": code, "props": { "attack": attack }, "limits": limits })).ok()
        };
        let costs = ms(&load(&format!("() => {{ {COMPUTES} }}"), false)["usage"]["cpuMs"]);
        let worker = daemon.worker_of(&tenant);
        let of_tenant = || ms(&daemon.get(&format!("/v1/tenants/{tenant}"))["usage"]["cpuMs"]);
        let before = of_tenant();
        let run = load(&format!("() => {{ {COMPUTES} {killer} }}"), killer.starts_with("attack"));
        let (charged, wall, total) = (ms(&run["usage"]["cpuMs"]), ms(&run["usage"]["wallMs"]), of_tenant() - before);
        let line = format!("{what}: {costs:.0} ms, run {charged:.0} of {wall:.0} ms, tenant {total:.0}");
        // One that is lost is tried twice, and the answer has what the second attempt used.
        let attempts = if *outcome == "workerLost" { 2.0 } else { 1.0 };
        let held = charged >= 0.7 * costs && charged <= wall && total >= 0.7 * costs * attempts;
        if run["outcome"] != *outcome || is_alive(worker) || !held {
            return Err(format!("{line}: {run}"));
        }
        said.push(line);
    }
    let neighbour = ms(&daemon.get("/v1/tenants/neighbour")["usage"]["cpuMs"]);
    said.push(format!("their neighbour {neighbour:.0}"));
    Ok(said.join("; "))
}

/// A client that hangs up ends its run, and does not get for nothing what it computed.
fn gone(_: Options) -> Result<String, String> {
    let daemon = daemon("");
    daemon.run("t", "() => 1");
    let worker = daemon.worker_of("t");
    let (told_before, computed_before) = settled(&daemon, worker)?;
    let body = json!({ "code": "() => { for (;;); }" }).to_string();
    let mut client = UnixStream::connect(daemon.socket()).map_err(|error| error.to_string())?;
    send(&mut client, "POST", "/v1/tenants/t/load", &[body.as_bytes()]).map_err(|error| error.to_string())?;
    let has_computed = || computed(worker).is_some_and(|computed| computed >= computed_before + 100.0);
    if !wait(Duration::from_secs(30), has_computed) {
        return Err("the run did not begin".to_owned());
    }
    drop(client);
    daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 0);
    let (told, computed) = settled(&daemon, worker)?;
    let (told, computed) = (told - told_before, computed - computed_before);
    let said = format!("tenant {told:.0} ms, thread {computed:.0}");
    if (told - computed).abs() <= 0.03 * computed + 1.0 { Ok(said) } else { Err(said) }
}

fn neighbour(options: Options) -> Result<String, String> {
    let daemon = daemon("");
    let mut said = Vec::new();
    for (what, code) in LEFT.iter().take(5) {
        let code = format!("() => {{ const a = globalThis.a = []; {code} }}");
        let (over, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (runs, mut took) = std::thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                let mut runs = 0;
                while !over.load(Ordering::SeqCst) {
                    failed.fetch_or(daemon.run("t", &code)["outcome"] != "ok", Ordering::SeqCst);
                    runs += 1;
                }
                runs
            });
            let (mut took, begun) = (Vec::new(), Instant::now());
            let enough = |took: &[Duration]| took.len() >= 200 && begun.elapsed() > Duration::from_secs(3);
            while !enough(&took) && !failed.load(Ordering::SeqCst) {
                let asked = Instant::now();
                failed.fetch_or(daemon.run("good", "() => 1")["result"] != 1, Ordering::SeqCst);
                took.push(asked.elapsed());
                wait(Duration::from_millis(5), || false);
            }
            over.store(true, Ordering::SeqCst);
            (attacker.join().unwrap_or(0), took)
        });
        took.sort_unstable();
        let [p99, longest] = [took.len() * 99 / 100, took.len() - 1].map(|at| took[at].as_millis());
        let line = format!("{what}: {} runs beside {runs}, p99 {p99} ms, max {longest} ms", took.len());
        let together = daemon.worker_of("t") == daemon.worker_of("good");
        let slow = if options.bench { p99 > 50 } else { longest > STALLED.as_millis() };
        if failed.load(Ordering::SeqCst) || slow || !together || runs < 2 {
            return Err(format!("{line}{}", if together { "" } else { ", not in one process" }));
        }
        said.push(line);
    }
    Ok(said.join("; "))
}
