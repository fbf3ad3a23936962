//! What a run leaves behind: which tenant pays for its disposal, and which tenants wait for it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, SHARING, attack_worker, is_alive};
use serde_json::{Value, json};

use crate::ground::{Gauge, STALLED, send, wait};
use crate::pings::{Pings, probed_over};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case {
        id: "S14 usage",
        title: "runs that leave much behind: the CPU time charged is what the thread computed",
        run: usage,
    },
    Case { id: "S14 killed", title: "the CPU time of a run that ended its process", run: killed },
    Case { id: "S14 gone", title: "the CPU time of a run whose client has hung up", run: gone },
    Case { id: "S14 neighbour", title: "a neighbour in the process of runs that leave much behind", run: neighbour },
    Case { id: "S14 bill", title: "a tenant pays for moving out; without the charge it does not", run: bill },
    Case { id: "S14 bound", title: "moving out has a bound; without the bound, moving out goes on", run: bound },
];

/// What the runs leave behind: a name, and the code that leaves it.
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

/// A daemon that moves no tenant because of what the tenant computes or holds.
fn daemon(workers: &str) -> Daemon {
    daemon_with(workers, 256)
}

fn daemon_with(workers: &str, memory_mb: u32) -> Daemon {
    let unmoved = ["busy", "paging", "computeOnly", "resident"]
        .map(|signal| format!("[cordon.rules.signals.{signal}]\npoints = 0\nhalf_life_secs = 1\nmost = 0\n"));
    let limits = format!("[defaults.limits]\ncpu_ms = 60000\nwall_ms = 120000\nmemory_mb = {memory_mb}\n");
    let unexplained = "[cordon.rules.memory]\noutside_mb = 65536\n";
    Daemon::start(&format!("{SHARING}{workers}{limits}{unexplained}{}", unmoved.concat()))
}

/// Runs an attack during which the daemon must keep answering.
fn answering(
    daemon: &Daemon,
    options: Options,
    attack: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let (result, pings) = probed(daemon, attack)?;
    pings.beside(options, result)
}

fn probed<T>(daemon: &Daemon, attack: impl FnOnce() -> T) -> Result<(T, Pings), String> {
    let stream = UnixStream::connect(daemon.socket()).map_err(|error| error.to_string())?;
    Ok(probed_over(stream, Gauge::of(daemon.pid()), attack))
}

fn ms(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// The thread of the first tenant of a worker.
fn thread_of(worker: i32) -> Option<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{worker}/task")).ok()?.flatten().map(|thread| thread.path());
    let mut threads = threads.filter_map(|thread| Some((fs::read_to_string(thread.join("comm")).ok()?, thread)));
    threads.find(|(name, _)| name == "tenant-0\n").map(|(_, thread)| thread)
}

/// The CPU time of the first tenant's thread in ms, as reported by the kernel (sched-stats.rst).
fn computed(worker: i32) -> Option<f64> {
    computed_by(&thread_of(worker)?)
}

fn computed_by(thread: &Path) -> Option<f64> {
    let times = fs::read_to_string(thread.join("schedstat")).ok()?;
    let ns: u32 = (times.split(' ').next()?.parse::<u64>().ok()? / 1000).try_into().ok()?;
    Some(f64::from(ns) / 1000.0)
}

/// Waits until the tenant's thread has reported all its work. Returns the CPU time charged to the
/// tenant, and the time that the thread has computed.
fn settled(daemon: &Daemon, worker: i32) -> Result<(f64, f64), String> {
    let tenant = daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"]["warm"] == true);
    let computed = computed(worker).ok_or("the tenant's thread is gone")?;
    Ok((ms(&tenant["usage"]["cpuMs"]), computed))
}

fn usage(options: Options) -> Result<String, String> {
    let daemon = daemon("");
    answering(&daemon, options, || usage_on(&daemon))
}

fn usage_on(daemon: &Daemon) -> Result<String, String> {
    daemon.run("t", "() => 1");
    let worker = daemon.worker_of("t");
    let (mut said, mut failures) = (Vec::new(), Vec::new());
    for (what, code) in LEFT {
        let (charged_before, computed_before) = settled(daemon, worker)?;
        let run = daemon.run("t", &format!("() => {{ const a = globalThis.a = []; {code} }}"));
        let (charged, computed) = settled(daemon, worker)?;
        let (charged, computed) = (charged - charged_before, computed - computed_before);
        let of_run = ms(&run["usage"]["cpuMs"]);
        let line = format!("{what}: run {of_run:.0} ms, tenant {charged:.0}, thread {computed:.0}");
        // The thread computes for a moment after its report; the next run's report includes that.
        let close = |charged: f64| (charged - computed).abs() <= 0.03 * computed + 1.0;
        // A short run's answer does not wait for the disposal of its objects.
        let complete = close(of_run) || computed < 15.0;
        if run["outcome"] == "ok" && close(charged) && complete { said.push(line) } else { failures.push(line) }
    }
    // A kept isolate is not disposed of, so a run of the same code costs less there.
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

/// What ends the process after a computation: a name, the run's outcome, and the code.
const KILLERS: &[(&str, &str, &str)] = &[
    ("over its memory", "exceededMemory", "encodeURIComponent('\\ufdfa'.repeat(2e7))"),
    ("over its time", "exceededWall", "Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)"),
    ("a crash", "workerLost", "attack.read(8n, 1n)"),
    ("an attack", "violation", "attack.syscall(41n, 2n, 1n, 0n)"),
];
const COMPUTES: &str = "let x = 0; for (let i = 0; i < 1e8; i++) x = (x * 31 + i) | 0;";
const KILLED_WALL_MS: u32 = 5_000;

/// A run is charged even if its process ends with it. The answer and the tenant's usage must
/// contain at least 70 % of what the same computation costs by itself, and the answer no more than
/// the time that passed.
fn killed(options: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let daemon = daemon(&format!("program = {worker:?}\n"));
    answering(&daemon, options, || killed_on(&daemon))
}

fn killed_on(daemon: &Daemon) -> Result<String, String> {
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
        // A lost run is tried twice, and the answer contains the second attempt's usage.
        let attempts = if *outcome == "workerLost" { 2.0 } else { 1.0 };
        let held = charged >= 0.7 * costs && charged <= wall && total >= 0.7 * costs * attempts;
        if run["outcome"] != *outcome || is_alive(worker) || !held {
            return Err(format!("{line}: {run}"));
        }
        said.push(line);
    }
    let neighbour = ms(&daemon.get("/v1/tenants/neighbour")["usage"]["cpuMs"]);
    said.push(format!("the neighbour {neighbour:.0}"));
    Ok(said.join("; "))
}

/// If a client hangs up, its run ends, and the tenant is charged for what the run computed.
fn gone(options: Options) -> Result<String, String> {
    let daemon = daemon("");
    answering(&daemon, options, || gone_on(&daemon))
}

fn gone_on(daemon: &Daemon) -> Result<String, String> {
    daemon.run("t", "() => 1");
    let worker = daemon.worker_of("t");
    let (charged_before, computed_before) = settled(daemon, worker)?;
    let body = json!({ "code": "() => { for (;;); }" }).to_string();
    let mut client = UnixStream::connect(daemon.socket()).map_err(|error| error.to_string())?;
    send(&mut client, "POST", "/v1/tenants/t/load", &[body.as_bytes()]).map_err(|error| error.to_string())?;
    let has_computed = || computed(worker).is_some_and(|computed| computed >= computed_before + 100.0);
    if !wait(Duration::from_secs(30), has_computed) {
        return Err("the run did not begin".to_owned());
    }
    drop(client);
    daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 0);
    let (charged, computed) = settled(daemon, worker)?;
    let (charged, computed) = (charged - charged_before, computed - computed_before);
    let said = format!("tenant {charged:.0} ms, thread {computed:.0}");
    if (charged - computed).abs() <= 0.03 * computed + 1.0 { Ok(said) } else { Err(said) }
}

fn neighbour(options: Options) -> Result<String, String> {
    let daemon = daemon("");
    answering(&daemon, options, || neighbour_on(&daemon, options))
}

fn neighbour_on(daemon: &Daemon, options: Options) -> Result<String, String> {
    let mut said = Vec::new();
    for (what, code) in LEFT.iter().take(5) {
        let code = format!("() => {{ const a = globalThis.a = []; {code} }}");
        let (over, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let runs = AtomicUsize::new(0);
        let mut took = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    failed.fetch_or(daemon.run("t", &code)["outcome"] != "ok", Ordering::SeqCst);
                    runs.fetch_add(1, Ordering::SeqCst);
                }
            });
            let (mut took, begun) = (Vec::new(), Instant::now());
            let enough = |took: &[Duration]| {
                took.len() >= 200 && begun.elapsed() > Duration::from_secs(3) && runs.load(Ordering::SeqCst) >= 2
            };
            while !enough(&took) && !failed.load(Ordering::SeqCst) {
                let asked = Instant::now();
                failed.fetch_or(daemon.run("good", "() => 1")["result"] != 1, Ordering::SeqCst);
                took.push(asked.elapsed());
                wait(Duration::from_millis(5), || false);
            }
            over.store(true, Ordering::SeqCst);
            took
        });
        took.sort_unstable();
        let [p99, longest] = [took.len() * 99 / 100, took.len() - 1].map(|at| took[at].as_millis());
        let line = format!(
            "{what}: {} runs beside {}, p99 {p99} ms, max {longest} ms",
            took.len(),
            runs.load(Ordering::SeqCst)
        );
        let together = daemon.worker_of("t") == daemon.worker_of("good");
        let slow = if options.bench { p99 > 50 } else { longest > STALLED.as_millis() };
        if failed.load(Ordering::SeqCst) || slow || !together {
            return Err(format!("{line}{}", if together { "" } else { ", not in one process" }));
        }
        said.push(line);
    }
    Ok(said.join("; "))
}

/// A script whose isolate is kept, and which gathers buffers in every run.
const GATHERS: &str = "const a = []; export default (n) => { for (; n > 0; n--) a.push(new ArrayBuffer(1)); return 1 }";

/// What was observed while a tenant moved out of a process where a neighbour stays.
struct Move {
    daemon: Daemon,
    /// The process where the tenant lived.
    worker: i32,
    /// The CPU time in ms that its thread there used after the order to leave, as far as observed.
    leaving: f64,
    /// The CPU time in ms that its thread there used in total.
    computed: f64,
    /// The latencies of pings during the move.
    pings: Pings,
}

fn move_out(lifted: Option<&str>, runs: u32, buffers: u32) -> Result<Move, String> {
    let worker = attack_worker().display().to_string();
    let daemon = daemon_with(&format!("max_memory_mb = 1024\nprogram = {worker:?}\n"), 1024);
    let limits = json!({ "cpuMs": 1000 });
    let code = format!("() => attack.{}()", lifted.unwrap_or("self"));
    daemon.load("t", &json!({ "code": code, "props": { "attack": true }, "limits": limits })).ok();
    daemon.run("good", "() => 1");
    let worker = daemon.worker_of("t");
    if daemon.worker_of("good") != worker {
        return Err("the tenants do not share a process".to_owned());
    }
    let script = json!({ "code": GATHERS, "limits": limits }).to_string();
    daemon.request("PUT", "/v1/tenants/t/scripts/s", script.as_bytes());
    for _ in 0..runs {
        let body = json!({ "args": [buffers] }).to_string();
        let run = daemon.request("POST", "/v1/tenants/t/scripts/s/run", body.as_bytes()).ok();
        if run["outcome"] != "ok" {
            return Err(run.to_string());
        }
    }
    let thread = thread_of(worker).ok_or("the tenant's thread is gone")?;
    let (_, before) = settled(&daemon, worker)?;
    let leave = || {
        let order = json!({ "level": "solo", "reason": "a test" }).to_string();
        daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
        let mut computed = before;
        let begun = Instant::now();
        while let Some(now) = computed_by(&thread) {
            computed = now;
            if begun.elapsed() > STALLED * 6 {
                return Err(format!("the tenant has not left after {:?}", begun.elapsed()));
            }
        }
        // When this run is answered, the daemon has also learnt that the tenant's thread has ended.
        let good = daemon.run("good", "() => 1");
        if good["result"] == 1 { Ok(computed) } else { Err(good.to_string()) }
    };
    let (computed, pings) = probed(&daemon, leave)?;
    let computed = computed?;
    Ok(Move { daemon, worker, leaving: computed - before, computed, pings })
}

/// The CPU time charged to the tenant, and the CPU time that its threads used in both homes.
fn charged(moved: &Move) -> Result<(f64, f64), String> {
    let now = moved.daemon.worker_of("t");
    let (charged, there) = settled(&moved.daemon, now)?;
    Ok((charged, moved.computed + there))
}

fn bill(options: Options) -> Result<String, String> {
    let mut said = Vec::new();
    for lifted in [None, Some("unbilled")] {
        let moved = move_out(lifted, 1, 300_000)?;
        let (charged, computed) = charged(&moved)?;
        let line = format!("charged {charged:.0} of {computed:.0} ms, {:.0} of them for moving out", moved.leaving);
        // The thread may compute for a moment after it was last observed.
        let held = (charged - computed).abs() <= 0.1 * moved.leaving;
        let escaped = charged < computed - 0.9 * moved.leaving;
        if moved.leaving < 100.0 || !(if lifted.is_none() { held } else { escaped }) {
            return Err(format!("{line}, with {lifted:?}"));
        }
        said.push(moved.pings.beside(options, Ok(line))?);
    }
    Ok(format!("{}; without the charge {}", said[0], said[1]))
}

/// How many ms the thread may compute while it moves out.
const BOUND_MS: f64 = 1000.0;

fn bound(options: Options) -> Result<String, String> {
    let on = move_out(None, 6, 250_000)?;
    let died = on.daemon.await_event("the end of the worker", |event| event["event"] == "workerDied");
    let signals = on.daemon.get("/v1/tenants/t")["cordon"]["signals"].to_string();
    let (charged, computed) = charged(&on)?;
    let said = format!("ended after {:.0} ms, {died}; charged {charged:.0} of {computed:.0} ms; {signals}", on.leaving);
    let ended = on.leaving < BOUND_MS * 1.5 && !is_alive(on.worker) && died["reason"].to_string().contains("disposing");
    // A thread also uses CPU time while its process ends, after the thread's last report.
    if !ended || !signals.contains("hardKill") || charged < computed - 0.3 * BOUND_MS {
        return Err(said);
    }
    let said = on.pings.beside(options, Ok(said))?;
    let off = move_out(Some("unbounded"), 6, 250_000)?;
    let without = format!("moving out goes on for {:.0} ms", off.leaving);
    if off.leaving > BOUND_MS * 1.5 && is_alive(off.worker) && off.daemon.worker_of("good") == off.worker {
        Ok(format!("{said}; without the bound {without}"))
    } else {
        Err(format!("{said}; without the bound {without}, {:?}", off.daemon.events()))
    }
}
