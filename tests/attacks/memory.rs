//! The supervisor's memory: registered scripts, their runs, and answers that no client reads.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::ground::{Ground, answered, wait};
use crate::pings::probed;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S11 errors", title: "errors that no client reads", run: failing },
    Case { id: "S11 events", title: "events that no client reads, on all connections", run: events },
    Case { id: "S11 unanswered", title: "runs whose answers find no memory", run: unanswered },
    Case { id: "S2 sealed", title: "runs of a sealed tenant with a large env", run: sealed },
    Case { id: "S2 runs", title: "many simultaneous runs of a large registered script", run: runs },
    Case { id: "S2 abandoned", title: "runs of a large script whose clients have hung up", run: abandoned },
    Case { id: "S2 replaced", title: "versions of a script while runs of the old ones wait", run: replaced },
    Case { id: "S11 deaf", title: "answers that no client reads", run: |options| answers(options, false) },
    Case { id: "S11 slow", title: "answers that are read very slowly", run: |options| answers(options, true) },
    Case { id: "S12 modules", title: "scripts of ten thousand empty modules", run: modules },
    Case { id: "S12 env", title: "scripts that consist of limits and a name only", run: tiny },
    Case { id: "S12 policies", title: "as many of the largest policies as the daemon accepts", run: policies },
    Case { id: "S6a lived", title: "names that have run something and no longer have a home", run: lived },
    Case { id: "S6a memory", title: "as many names as there may be, each with a script and a signal", run: names },
];

const MIB: usize = 1 << 20;
const BACK: Duration = Duration::from_secs(10);

/// Registers a script that sleeps, with a text of this size as its second module.
fn register(ground: &Ground, tenant: &str, id: &str, bytes: usize) -> Result<(), String> {
    let source = "export default (ms)=>new Promise(r=>setTimeout(()=>r(1),ms))";
    let modules = json!({ "m.js": source, "t": { "text": "x".repeat(bytes) } });
    let body = json!({ "mainModule": "m.js", "modules": modules }).to_string();
    let path = format!("/v1/tenants/{tenant}/scripts/{id}?replace=1");
    ground.attacker.answered("PUT", &path, body.as_bytes()).map(drop)
}

fn begin(ground: &Ground, tenant: &str, ms: u64) -> Option<UnixStream> {
    let body = json!({ "args": [ms] }).to_string();
    ground.attacker.begin("POST", &format!("/v1/tenants/{tenant}/scripts/s/run"), body.as_bytes()).ok()
}

/// The daemon's size before anything was registered, with a worker in place.
fn before(ground: &Ground) -> Result<u64, String> {
    ground.attacker.served("acme-1", "()=>1")?;
    ground.victim.served("good-1", "()=>1")?;
    ground.gauge().quiet(BACK);
    ground.gauge().rss().ok_or_else(|| "the daemon died".to_owned())
}

/// The daemon's allowed size: its size before, the script as it is kept, the script once more while
/// it is sent, and the allowance for a request.
fn allowed(before: u64, bytes: usize) -> u64 {
    before + (2 * bytes / MIB) as u64 + 64
}

fn size(options: Options) -> usize {
    if options.slow || options.bench { 60 * MIB } else { 24 * MIB }
}

fn runs(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let (bytes, gauge) = (size(options), ground.gauge());
    let before = before(&ground)?;
    register(&ground, "acme-1", "s", bytes)?;
    gauge.quiet(BACK);
    gauge.reset();
    let (good, pings) = probed(&ground, || {
        let streams: Vec<_> = (0..64).filter_map(|_| begin(&ground, "acme-1", 100)).collect();
        let mut answers = streams.into_iter().map(|mut stream| enisle_tests::Answer::read(&mut stream));
        answers.by_ref().filter(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)).count()
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let allowed = allowed(before, bytes);
    let said = format!("{good} of 64 runs, peak {peak} MiB, {before} before, {allowed} allowed");
    let pings = pings.verdict(options.bench);
    if peak <= allowed && good > 0 { pings.map(|pings| format!("{said}; {pings}")) } else { Err(said) }
}

fn abandoned(options: Options) -> Result<String, String> {
    // The first run sleeps for longer than the whole case takes, so a run that waits for it does
    // not start during the case.
    const LONG_MS: u64 = 100_000;
    let ground = Ground::start("[defaults.limits]\nwall_ms = 120000\n");
    let (bytes, gauge) = (size(options), ground.gauge());
    let before = before(&ground)?;
    register(&ground, "acme-1", "s", bytes)?;
    gauge.quiet(BACK);
    gauge.reset();
    let in_flight = || ground.tenant("acme-1")["inFlight"].as_u64().unwrap_or_default();
    let ((sent, left), pings) = probed(&ground, || {
        let head = begin(&ground, "acme-1", LONG_MS);
        wait(BACK, || in_flight() == 1);
        let (mut sent, mut left) = (0, 0);
        for _ in 0..4 {
            let mut streams: Vec<_> = (0..30).filter_map(|_| begin(&ground, "acme-1", 1)).collect();
            // Bytes after a request must not hide the end of the connection.
            let behind = [&b""[..], b"G", b"GET /_ping HTTP/1.1\r\nhost: d\r\n\r\n"];
            for (stream, behind) in streams.iter_mut().zip(behind.iter().cycle()) {
                let _ = stream.write_all(behind);
            }
            // Each run waits for the end of the first one, or is refused.
            let waiting = || streams.iter().filter(|stream| !answered(stream)).count() as u64;
            wait(BACK, || in_flight() > waiting());
            gauge.quiet(Duration::from_secs(5));
            sent += streams.len();
            drop(streams);
            // Only the first run goes on.
            left += u64::from(!wait(BACK, || in_flight() <= 1)) * in_flight();
        }
        drop(head);
        (sent, left)
    });
    let idle = wait(BACK, || in_flight() == 0);
    let peak = gauge.peak().ok_or("the daemon died")?;
    let allowed = allowed(before, bytes);
    let back = gauge.back_to(before + (bytes / MIB) as u64 + 24, BACK);
    let said = format!("{sent} runs abandoned, peak {peak} MiB, {before} before, {allowed} allowed; then {back:?}");
    let pings = pings.verdict(options.bench);
    if !idle || left > 0 {
        return Err(format!("{said}; runs of clients that have gone are still in flight"));
    }
    if peak <= allowed && back.is_ok() { pings.map(|pings| format!("{said}; {pings}")) } else { Err(said) }
}

/// A replaced version stays in memory while runs of it wait, and counts against the pool.
fn replaced(_: Options) -> Result<String, String> {
    const BYTES: usize = 8 * MIB;
    let ground = Ground::start("[api]\nscript_mb = 64\n");
    let gauge = ground.gauge();
    let before = before(&ground)?;
    gauge.reset();
    let mut held = Vec::new();
    let mut versions = 0;
    for round in 0..40 {
        if register(&ground, "acme-1", "s", BYTES + round).is_err() {
            break;
        }
        versions += 1;
        held.extend(begin(&ground, "acme-1", 9000));
        wait(Duration::from_secs(2), || {
            ground.tenant("acme-1")["inFlight"].as_u64().unwrap_or_default() >= held.len() as u64
        });
    }
    let peak = gauge.peak().ok_or("the daemon died")?;
    // The bound allows for the pool for scripts, a request, and a frame in transit.
    let allowed = before + 64 + 3 * (BYTES / MIB) as u64 + 32;
    let said = format!("{versions} versions of 8 MiB, peak {peak} MiB, {before} before, {allowed} allowed");
    if peak <= allowed { Ok(said) } else { Err(said) }
}

/// Makes an answer of 2.6 MB: each control character takes six bytes in JSON.
const LOUD: &str =
    "()=>{ for(let i=0;i<250;i++) console.log('\\u0001'.repeat(1000)); return '\\u0001'.repeat(170000) }";

/// Makes an answer of 400 KB from an error that the worker reports in 64 KiB.
const FAILING: &str =
    "()=>{ const e = new Error('\\u0001'.repeat(32000)); e.stack = '\\u0001'.repeat(32000); throw e }";

/// An error is an answer too, and is charged like any other.
fn failing(_: Options) -> Result<String, String> {
    const POOL_MIB: u64 = 16;
    let ground = Ground::start(&format!("[api]\nbody_mb = {POOL_MIB}\nwrite_secs = 3\n"));
    let gauge = ground.gauge();
    let before = before(&ground)?;
    gauge.reset();
    let body = json!({ "code": FAILING }).to_string();
    let begin = |number: usize| {
        let path = format!("/v1/tenants/acme-{}/load", number % 4);
        ground.attacker.begin("POST", &path, body.as_bytes()).ok()
    };
    let held: Vec<_> = (0..400).filter_map(begin).collect();
    wait(Duration::from_secs(20), || held.iter().all(answered));
    let peak = gauge.peak().ok_or("the daemon died")?;
    let allowed = before + POOL_MIB + 24;
    let said = format!("{} errors of 400 KB unread, peak {peak} MiB, {before} before, {allowed} allowed", held.len());
    if peak <= allowed { Ok(said) } else { Err(said) }
}

/// Root takes all connections, because no share bounds root.
fn events(options: Options) -> Result<String, String> {
    const READERS: usize = 1000;
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.fill_events()?;
    gauge.quiet(BACK);
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let ((begun, peak), pings) = probed(&ground, || {
        let follow = |number: usize| format!("/v1/events?follow={}", number % 2);
        let held: Vec<_> =
            (0..READERS).filter_map(|number| ground.root.begin("GET", &follow(number), b"").ok()).collect();
        wait(Duration::from_secs(20), || held.iter().all(answered));
        gauge.quiet(Duration::from_secs(20));
        (held.iter().filter(|stream| answered(stream)).count(), gauge.peak())
    });
    let peak = peak.ok_or("the daemon died")?;
    let back = gauge.back_to(before + 24, Duration::from_secs(30));
    let allowed = before + 64;
    let said = format!(
        "{begun} readers of {READERS} answered, peak {peak} MiB, {before} before, {allowed} allowed; then {back:?}"
    );
    let held = begun == READERS && peak <= allowed && back.is_ok();
    pings.beside(options, if held { Ok(said) } else { Err(said) })
}

/// A discarded answer does not make its run free: the run is charged as if it had computed all the
/// time, up to its `cpuMs`.
fn unanswered(_: Options) -> Result<String, String> {
    const RESULT: usize = 900_000;
    let ground = Ground::start("[api]\nbody_mb = 16\nread_secs = 120\n");
    before(&ground)?;
    let cpu_ms = || ground.tenant("acme-1")["usage"]["cpuMs"].as_f64().unwrap_or_default();
    let had = cpu_ms();
    // The attacker holds its half except for one MiB, and a result is charged twice.
    let held = ground.attacker.unfinished(57, 64 << 10);
    let code = json!({ "code": format!("()=>'x'.repeat({RESULT})"), "limits": { "cpuMs": 700 } }).to_string();
    let run = || ground.attacker.ask("POST", "/v1/tenants/acme-1/load", code.as_bytes());
    let answer = run().map_err(|error| error.to_string())?;
    let tenant = ground.tenant("acme-1");
    let (status, outcomes, took) = (answer.status, tenant["usage"]["outcomes"].to_string(), cpu_ms() - had);
    let reported = || ground.daemon.events().iter().any(|event| event["outcome"] == "exceededOutput");
    let reported = wait(Duration::from_secs(5), reported);
    drop(held);
    wait(BACK, || ground.root.ask("GET", "/v1/info", b"").is_ok_and(|info| info.json()["counts"]["inFlight"] == 0));
    let after = run().map_err(|error| error.to_string())?.status;
    let said =
        format!("{status}, outcomes {outcomes}, {took:.0} ms of CPU charged, reported: {reported}; later {after}");
    // The charge also includes the isolates that the thread made after this run and after the run
    // before it, as far as their cost is known.
    let noted = outcomes.contains("\"exceededOutput\":1") && (699.0..750.0).contains(&took);
    if status == 507 && noted && reported && after == 200 { Ok(said) } else { Err(said) }
}

/// Each run of a sealed tenant gets an `env` of its own, without the tenant's secrets.
fn sealed(_: Options) -> Result<String, String> {
    const POOL_MIB: u64 = 32;
    let ground = Ground::start(&format!("[api]\nbody_mb = {POOL_MIB}\n"));
    let gauge = ground.gauge();
    before(&ground)?;
    let status_of =
        |answer: std::io::Result<enisle_tests::Answer>| answer.map(|answer| answer.status).unwrap_or_default();
    for number in 0..4 {
        let tenant = format!("acme-{number}");
        let policy = status_of(ground.root.ask("PUT", &format!("/v1/tenants/{tenant}"), br#"{"secrets":["KEY"]}"#));
        let order = br#"{"level":"sealed","reason":"a test"}"#;
        let ordered = status_of(ground.root.ask("PUT", &format!("/v1/tenants/{tenant}/cordon"), order));
        let code = "async()=>{ await new Promise(done => setTimeout(done, 4000)); return 1 }";
        let script = json!({ "code": code, "env": { "KEY": "x", "pad": "y".repeat(1_000_000) } }).to_string();
        let registered =
            status_of(ground.attacker.ask("PUT", &format!("/v1/tenants/{tenant}/scripts/s"), script.as_bytes()));
        if (policy, ordered, registered) != (200, 200, 201) {
            return Err(format!("{tenant}: {policy}, {ordered}, {registered}"));
        }
    }
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let begin = |number: usize| {
        ground.attacker.begin("POST", &format!("/v1/tenants/acme-{}/scripts/s/run", number % 4), b"{}").ok()
    };
    let held: Vec<_> = (0..200).filter_map(begin).collect();
    wait(Duration::from_secs(3), || held.iter().all(answered));
    let peak = gauge.peak().ok_or("the daemon died")?;
    let allowed = before + POOL_MIB + 24;
    let said = format!("{} runs with an env of 1 MB, peak {peak} MiB, {before} before, {allowed} allowed", held.len());
    if peak <= allowed { Ok(said) } else { Err(said) }
}

fn answers(options: Options, reading: bool) -> Result<String, String> {
    const WRITE_SECS: u64 = 3;
    let ground = Ground::start(&format!("[api]\nwrite_secs = {WRITE_SECS}\n"));
    let gauge = ground.gauge();
    let before = before(&ground)?;
    gauge.reset();
    let count = if options.slow { 700 } else { 250 };
    let body = json!({ "code": LOUD }).to_string();
    let ((served, held), pings) = probed(&ground, || {
        let begin = |number: usize| {
            let path = format!("/v1/tenants/acme-{}/load", number % 4);
            ground.attacker.begin("POST", &path, body.as_bytes()).ok()
        };
        let held: Vec<_> = (0..count).filter_map(begin).collect();
        // Each run has an answer, or waits for memory.
        wait(Duration::from_secs(20), || held.iter().all(answered));
        (ground.victim.served("good-1", LOUD), held)
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    // The bound allows for a peer's half of the pool, and for the requests themselves.
    let allowed = before + 128 + 64;
    // A client that reads a byte now and then must not keep its answer in memory forever.
    let begun = Instant::now();
    let mut streams = held;
    let limit = Duration::from_secs(2 * WRITE_SECS) + BACK;
    let back = loop {
        let rss = gauge.rss().ok_or("the daemon died")?;
        if rss <= before + 24 || begun.elapsed() > limit {
            break rss;
        }
        for stream in streams.iter_mut().filter(|_| reading) {
            let _ = stream.set_nonblocking(true);
            // The client must read a whole buffer of the socket before the daemon can write more.
            let _ = stream.read(&mut [0; 4096]);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = format!(
        "{count} answers of 2.6 MB, peak {peak} MiB, {before} before, {allowed} allowed; {back} MiB after {:.0} s; \
         the victim meanwhile: {served:?}",
        begun.elapsed().as_secs_f64()
    );
    let in_time = served.as_ref().is_ok_and(|took| *took <= options.served_within());
    let held = peak <= allowed && back <= before + 24 && in_time;
    let pings = pings.verdict(options.bench);
    if held { pings.map(|pings| format!("{said}; {pings}")) } else { Err(said) }
}

/// The charge for a script covers its real cost: the pool is full before the daemon has grown by
/// twice the size of the pool.
fn fill(options: Options, body: &[u8], most: usize, script_mb: u64) -> Result<String, String> {
    let ground = Ground::start(&format!("[api]\nscript_mb = {script_mb}\n"));
    let gauge = ground.gauge();
    let before = before(&ground)?;
    let path = |number| format!("/v1/tenants/acme-{}/scripts/s{}", number / 100, number % 100);
    let paths: Vec<_> = (0..most).map(path).collect();
    let (got, pings) = probed(&ground, || ground.attacker.flood(2, "PUT", &paths, body, 201));
    gauge.quiet(BACK);
    let after = gauge.rss().ok_or("the daemon died")?;
    // Tenants' names have a pool of their own, and the allocator keeps some memory.
    let allowed = before + 2 * script_mb + 8;
    let said = format!("{got} scripts in {script_mb} MiB, {after} MiB, {before} before, {allowed} allowed");
    let pings = pings.verdict(options.bench);
    if after <= allowed { pings.map(|pings| format!("{said}; {pings}")) } else { Err(said) }
}

/// The names in a policy stay in memory as long as the tenant exists.
fn policies(_: Options) -> Result<String, String> {
    const SCRIPT_MB: u64 = 4;
    const TRIED: usize = 400;
    let ground = Ground::start(&format!("[api]\nscript_mb = {SCRIPT_MB}\n"));
    let gauge = ground.gauge();
    let before = before(&ground)?;
    let policy = largest_policy();
    let put = |n| ground.root.ask("PUT", &format!("/v1/tenants/acme-{n}"), policy.as_bytes());
    let got = (0..TRIED).filter(|n| put(*n).is_ok_and(|answer| answer.status == 200)).count();
    gauge.quiet(BACK);
    // The allocator keeps some memory that the events and notes of these policies used.
    let allowed = before + 2 * SCRIPT_MB + 8;
    let left = gauge.back_to(allowed, BACK);
    let said = format!("{got} policies in {SCRIPT_MB} MiB: {left:?} MiB, {before} before, {allowed} allowed");
    // Another policy, without secrets, costs nothing.
    let plain = ground.root.ask("PUT", "/v1/tenants/acme-plain", b"{}").is_ok_and(|answer| answer.status == 200);
    if left.is_ok() && got > 10 && got < TRIED && plain { Ok(said) } else { Err(said) }
}

/// A policy with the most secrets. In JSON it is as long as the largest request may be, because
/// each character of a secret's name takes six bytes.
pub(crate) fn largest_policy() -> String {
    json!({ "secrets": vec!["\u{1}".repeat(107); 100] }).to_string()
}

/// Names that the daemon must remember, each with the most expensive state that needs no process.
fn names(options: Options) -> Result<String, String> {
    // All the names may leave the daemon at 100 MiB. A quarter of them may add a quarter of that.
    let names = if options.slow || options.bench { 100_000 } else { 25_000 };
    let ground = Ground::start("");
    let gauge = ground.gauge();
    let before = before(&ground)?;
    let allowed = if names == 100_000 { 100 } else { before + 24 };
    let paths = |end: &str| (0..names).map(|n| format!("/v1/tenants/acme-{n}/{end}")).collect::<Vec<_>>();
    let ((known, marked), pings) = probed(&ground, || {
        let known = ground.root.flood(4, "PUT", &paths("scripts/s"), br#"{"code":"1"}"#, 201);
        // A run that asks for the network is refused, which counts against its tenant.
        let marked = ground.root.flood(4, "POST", &paths("load"), br#"{"code":"1","globalOutbound":"x"}"#, 400);
        (known, marked)
    });
    // The daemon writes the standings of these names once more within ten seconds.
    gauge.quiet(BACK);
    let left = gauge.back_to(allowed, Duration::from_secs(30));
    let said = format!("{known} names, {marked} with a signal: {left:?} MiB, {before} before, {allowed} allowed");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    // The measurement itself takes two names.
    let all = known + 2 >= names && marked >= known;
    if all && left.is_ok() { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// A home's memory is freed with the home, even if its process dies. A name that has run something
/// leaves as much as a name that has run nothing, and the outcomes of its runs.
fn lived(options: Options) -> Result<String, String> {
    // With fewer names each name leaves more: 1,086 to 1,392 bytes in six runs, probably because of
    // the database's cache.
    let (names, most_bytes) = if options.slow || options.bench { (20_000, 1200) } else { (1500, 1600) };
    let ground = Ground::start("idle_secs = 0\n[cordon.rules]\nunexplained_secs = 0\n");
    let gauge = ground.gauge();
    let live = |kind: &str, names: usize| {
        let paths: Vec<_> = (0..names).map(|n| format!("/v1/tenants/acme-{kind}-{n}/load")).collect();
        let mut ran = 0;
        for paths in paths.chunks(60) {
            ran += ground.root.flood(8, "POST", paths, br#"{"code":"()=>1"}"#, 200);
            let workers = ground.daemon.get("/v1/workers");
            for worker in workers["workers"].as_array().into_iter().flatten() {
                let pid = worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
                // The worker may have ended by itself.
                let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
            }
        }
        gauge.quiet(BACK);
        ran
    };
    // Rings and caches are filled first.
    live("first", 2000);
    let before = gauge.rss_kib().ok_or("the daemon died")?;
    let ran = live("then", names);
    let bytes = || Some(gauge.rss_kib()?.saturating_sub(before) * 1024 / names as u64);
    // The daemon tidies up after these names within ten seconds.
    let small = wait(Duration::from_secs(30), || bytes().is_none_or(|bytes| bytes <= most_bytes));
    let bytes = bytes().ok_or("the daemon died")?;
    let said = format!("{ran} names, whose processes have died; {bytes} bytes of each stay, {most_bytes} allowed");
    if ran == names && small { Ok(said) } else { Err(said) }
}

fn modules(options: Options) -> Result<String, String> {
    const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let letter = |number: usize, place: u32| char::from(LETTERS[number / 26_usize.pow(place) % 26]);
    let mut body = r#"{"mainModule":"m.js","modules":{"m.js":"export default ()=>1""#.to_owned();
    for n in 0..9_999 {
        body.extend([',', '"', letter(n, 0), letter(n, 1), letter(n, 2)]);
        body.push_str("\":{\"text\":\"\"}");
    }
    body.push_str("}}");
    fill(options, body.as_bytes(), 300, 8)
}

fn tiny(options: Options) -> Result<String, String> {
    fill(options, br#"{"code":"1","env":{},"limits":{"cpuMs":1}}"#, 100_000, 4)
}
