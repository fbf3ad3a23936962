//! A worker's memory, by a script: all memory that a tenant's thread makes the process hold counts.
//!
//! At any time the process may hold `memoryMb` × 2 + 64 MiB more than before the attack; while
//! nothing runs, `memoryMb` + 16 MiB more. Both are measured from outside, in `/proc`.
//!
//! This file is long because every case is a script with a bound that it must keep, and all cases
//! are measured by the same gauge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::attack_worker;
use serde_json::{Value, json};

use crate::ground::{Gauge, Ground, wait};
use crate::pings::answering;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S4 heap", title: "one object, or many, over the heap's limit", run: |options| held(options, HEAP) },
    Case {
        id: "S4 native",
        title: "memory that V8 and ICU take outside the heap",
        run: |options| held(options, NATIVE),
    },
    Case {
        id: "S4 buffers",
        title: "buffers, their headers, and texts made from them",
        run: |options| held(options, BUFFERS),
    },
    Case { id: "S4 source", title: "what a parser keeps of a long source", run: sources },
    Case { id: "S4 lifted", title: "the same without the limit", run: lifted },
    Case { id: "S4 kept", title: "what stays between the runs of a script", run: kept },
    Case {
        id: "S4 locales",
        title: "date formats of three thousand locales, with V8's cache of them and without",
        run: locales,
    },
    Case { id: "S4 beside", title: "a run beside what a script keeps", run: beside },
    Case { id: "S4 large", title: "results and texts that are too long end the run and nothing else", run: large },
    Case { id: "S4 shelf", title: "kept scripts, together over the limit, with it and without", run: shelf },
    Case { id: "S4 company", title: "a neighbour in the process of all these", run: company },
    Case { id: "S4 garbage", title: "ICU's dead objects are collected before a run is ended for them", run: garbage },
];

/// Longer than any run here may take.
const PATIENCE: Duration = Duration::from_secs(60);

const HEAP: &[&str] = &[
    "s = '\\u1234'.repeat(5.3e8); s.charCodeAt(5); await later(); return s.length",
    "s = 'x'.repeat(5.3e8); /y$/.test(s); return s.length",
    "a = '\\u1234'.repeat(4.5e8); a.charCodeAt(5); b = '\\u1235'.repeat(4.5e8); b.charCodeAt(5); await later(); return 1",
    "a = []; for (;;) a.push({ a: 1 })",
    "a = []; for (;;) a.push('x'.repeat(1e6) + a.length, 'y'.repeat(3e5).split(''))",
    "a = new Array(3e7).fill(1.5); b = a.map((x) => x + 1); c = [...a, ...b]; await later(); return c.length",
    "m = new Map(); for (let i = 0; ; i++) m.set(i, i)",
    "o = {}; for (let i = 0; ; i++) o['key' + i] = i",
    "return JSON.parse('[' + '[],'.repeat(2e7) + '0]').length",
    "return JSON.stringify('\\u0001'.repeat(8e7)).length",
    "a = ['x'.repeat(1e8)]; for (;;) a.push(a.join('-'))",
    "n = 1n << 30n; for (;;) n *= n",
    "return 'ab'.repeat(6e7).replaceAll('a', '\\u1234\\u1234').length",
    "return Array.from({ length: 4e7 }, (_, i) => i).sort().length",
];

const NATIVE: &[&str] = &[
    "g = new Intl.Segmenter('en'); t = 'x'.repeat(4e6); a = []; for (;;) a.push(g.segment(t))",
    "g = new Intl.Segmenter('en'); t = 'éx'.repeat(1e6); a = []; for (;;) a.push(g.segment(t)[Symbol.iterator]())",
    "a = []; for (;;) a.push(new Intl.DateTimeFormat('en', { dateStyle: 'full', timeZone: 'Asia/Tokyo' }))",
    "a = []; for (;;) a.push(new Intl.NumberFormat('en', { style: 'currency', currency: 'EUR' }).format)",
    "a = []; for (;;) a.push(new Intl.PluralRules('ar'))",
    "a = []; for (;;) a.push(new Intl.RelativeTimeFormat('en'))",
    "a = []; for (;;) a.push(new Intl.Collator('de'))",
    "for (let n = 0; ; n += 86400000) new Intl.DateTimeFormat('en-u-ca-chinese').format(n)",
    "return 'ﷺ'.repeat(2e7).normalize('NFKC').length",
    "return 'ΐ'.repeat(5e7).toLocaleUpperCase('el').length",
    "a = []; for (let i = 0; ; i++) { const r = new RegExp('(?:a|b|c|d|e){1,500}x' + i); r.test('aaaa'); a.push(r) }",
    "return /^(.|\\n)*$/.test('x'.repeat(3e7))",
    "return new RegExp('(?:' + '(a|b)'.repeat(3000) + '){1,1000}').test('ab'.repeat(1e5))",
    "a = []; for (let i = 0; ; i++) a.push(Symbol('s' + i), new WeakRef({}), new FinalizationRegistry(() => {}))",
    "return structuredClone(Array.from({ length: 3e6 }, (_, i) => ({ i, s: 'x' + i }))).length",
];

const BUFFERS: &[&str] = &[
    "a = []; for (;;) a.push(new ArrayBuffer(1))",
    "a = []; for (;;) a.push(new ArrayBuffer(1, { maxByteLength: 65536 }))",
    "a = []; for (;;) a.push(new Uint8Array(1e6).fill(1))",
    "b = new Uint8Array(120 << 20).fill(97); d = new TextDecoder(); a = []; for (;;) a.push(d.decode(b))",
    "s = '\\u1234'.repeat(4e7); e = new TextEncoder(); a = []; for (;;) a.push(e.encode(s))",
    "b = new ArrayBuffer(60 << 20); for (;;) b = b.transfer(b.byteLength + 1)",
    "a = new Uint8Array(100 << 20).fill(1); b = Array.from(a); return b.length",
];

fn script(body: &str) -> String {
    format!(
        "async () => {{ const later = () => new Promise((done) => setTimeout(done, 300)); \
         let a, b, c, d, e, g, m, n, o, s, t; {body} }}"
    )
}

fn load(ground: &Ground, tenant: &str, request: &Value) -> Value {
    let body = request.to_string();
    let path = format!("/v1/tenants/{tenant}/load");
    let answer = ground.root.ask_within(PATIENCE, "POST", &path, &[body.as_bytes()]);
    answer.map_or(Value::Null, |answer| answer.json())
}

/// Runs `run`; returns by how many MiB the tenant's process grew at most.
fn growth<T>(ground: &Ground, tenant: &str, run: impl FnOnce() -> T) -> Result<(T, u64), String> {
    load(ground, tenant, &json!({ "code": "() => 1" }));
    let pid = ground.tenant(tenant)["resident"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let gauge = Gauge::of(pid.ok_or("the tenant lives nowhere")?);
    gauge.reset();
    let before = gauge.rss().ok_or("the process has gone")?;
    let done = AtomicBool::new(false);
    // The process may end with the run, so its peak is sampled continuously.
    let (result, peak) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = before;
            while !done.load(Ordering::Relaxed) {
                peak = gauge.peak().unwrap_or(peak).max(peak);
                std::thread::sleep(Duration::from_micros(500));
            }
            peak
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        (result, watch.join())
    });
    Ok((result, peak.map_err(|_| "the watch panicked")? - before))
}

const fn bound(memory_mb: u64) -> u64 {
    memory_mb * 2 + 64
}

fn held(options: Options, bodies: &[&str]) -> Result<String, String> {
    let ground = Ground::with("", None);
    answering(&ground, options, || held_on(&ground, bodies))
}

fn held_on(ground: &Ground, bodies: &[&str]) -> Result<String, String> {
    let mut worst = (0, "");
    for (number, body) in bodies.iter().enumerate() {
        for memory_mb in [16, 128] {
            let tenant = format!("acme-{number}-{memory_mb}");
            let request = json!({ "code": script(body), "limits": { "memoryMb": memory_mb } });
            let (answer, grown) = growth(ground, &tenant, || load(ground, &tenant, &request))?;
            if answer["outcome"].is_null() || grown > bound(memory_mb) {
                return Err(format!("{body}: {grown} MiB under memoryMb {memory_mb}: {answer}"));
            }
            if memory_mb == 128 && grown > worst.0 {
                worst = (grown, body);
            }
        }
    }
    Ok(format!("at most {} MiB under 128: {}", worst.0, worst.1))
}

/// Sources whose syntax trees take many times the size of the source.
fn sources(options: Options) -> Result<String, String> {
    let ground = Ground::with("", None);
    answering(&ground, options, || sources_on(&ground))
}

fn sources_on(ground: &Ground) -> Result<String, String> {
    let mut worst = 0;
    for (number, (part, times)) in [("[1],", 8_000_000), ("{a:1},", 5_000_000), ("x=>x,", 4_000_000)].iter().enumerate()
    {
        let tenant = format!("acme-{number}");
        let request = json!({ "code": format!("export default () => 1; const x = [{}]", part.repeat(*times)) });
        let (answer, grown) = growth(ground, &tenant, || load(ground, &tenant, &request))?;
        if answer["outcome"].is_null() || grown > bound(128) {
            return Err(format!("{times} times {part}: {grown} MiB: {answer}"));
        }
        worst = worst.max(grown);
    }
    Ok(format!("at most {worst} MiB under 128"))
}

/// The control: a run with the harness's natives is not limited, and takes more than 512 MiB.
fn lifted(options: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let ground = Ground::with(&format!("[workers]\nprogram = {worker:?}\n"), None);
    answering(&ground, options, || lifted_on(&ground))
}

fn lifted_on(ground: &Ground) -> Result<String, String> {
    let mut figures = Vec::new();
    for (number, body) in [HEAP[0], NATIVE[0]].iter().enumerate() {
        let limits = json!({ "memoryMb": 16, "cpuMs": 5000 });
        let request = |attack| json!({ "code": script(body), "props": { "attack": attack }, "limits": limits });
        let [on, off] = [false, true].map(|attack| {
            let tenant = format!("acme-{number}-{attack}");
            growth(ground, &tenant, || load(ground, &tenant, &request(attack)))
        });
        let ((_, on), (_, off)) = (on?, off?);
        if on > bound(16) || off < 512 {
            return Err(format!("{body}: {on} MiB with the limit, {off} MiB without it"));
        }
        figures.push(format!("{on} and {off} MiB"));
    }
    Ok(figures.join(", "))
}

const SCRIPTS: &[&str] = &[
    "let keep; export default () => { if (!keep) { keep = '\\u1234'.repeat(5.3e8); keep.charCodeAt(5) } return 1 }",
    "const keep = []; const t = 'x'.repeat(4e6); const g = new Intl.Segmenter('en'); \
     export default () => { for (let i = 0; i < 5; i++) keep.push(g.segment(t)); return 1 }",
    "const keep = []; export default () => { for (let i = 0; i < 1000; i++) keep.push(new Intl.DateTimeFormat('en-US', \
     { dateStyle: 'full', timeZone: 'Asia/Tokyo' })); return 1 }",
    "const keep = []; export default () => { for (let i = 0; i < 2e5; i++) keep.push({ i }); return 1 }",
    "const keep = []; export default () => { for (let i = 0; i < 50000; i++) keep.push(new ArrayBuffer(10)); return 1 }",
    "export default () => { const all = []; for (let i = 0; i < 1e6; i++) all.push({ i }); return 1 }",
    // Strings of four characters become internalized names, for which V8 has a table outside its
    // heap.
    "const keep = []; let n = 0; const letters = (x) => String.fromCharCode(161 + x % 90, 161 + (x / 90 | 0) % 90, \
     161 + (x / 8100 | 0) % 90, 161 + (x / 729000 | 0) % 90); export default () => { for (let i = 0; i < 20; i++) \
     keep.push(JSON.parse(JSON.stringify(Array.from({ length: 2e4 }, () => letters(n++))))); return 1 }",
    // This script leaves dead native memory first, and then a heap that is nearly full.
    "const g = new Intl.Segmenter('en'); let junk, heap, n = 0; const fill = (count) => { const t = 'x'.repeat(25000); \
     const all = []; for (let i = 0; i < count; i++) all.push(g.segment(t)); return all }; export default () => { n++; \
     if (n === 1) junk = fill(1900); if (n === 2) { junk = null; fill(300) } \
     if (n === 3) { heap = 'x'.repeat(105 << 20); heap.charCodeAt(5) } return 1 }",
];

/// Enough runs to fill the limit, for the scripts that gather most (some 28 MiB in a run).
const fn runs(memory_mb: u64) -> u64 {
    10 + memory_mb / 25
}

/// Scripts that gather memory, run after run.
fn kept(options: Options) -> Result<String, String> {
    let ground = Ground::with("[workers]\nmax_memory_mb = 512\n[defaults.limits]\nmemory_mb = 512\n", None);
    answering(&ground, options, || kept_on(&ground, options))
}

fn kept_on(ground: &Ground, options: Options) -> Result<String, String> {
    let limits = if options.slow { &[8, 32, 128, 512][..] } else { &[8, 128] };
    let mut worst = vec![(0, 0); limits.len()];
    for (number, code) in SCRIPTS.iter().enumerate() {
        for (&memory_mb, (most, at_rest)) in limits.iter().zip(&mut worst) {
            let tenant = format!("acme-{number}-{memory_mb}");
            let path = format!("/v1/tenants/{tenant}/scripts/s");
            let script = json!({ "code": code, "limits": { "memoryMb": memory_mb } }).to_string();
            ground.root.ask("PUT", &path, script.as_bytes()).map_err(|error| error.to_string())?;
            let limit = bound(memory_mb);
            let (rested, grown) = growth(ground, &tenant, || rests_after_runs(ground, &tenant, memory_mb))?;
            let rest = rested.map_err(|error| format!("{code} under {memory_mb}: {error}"))?;
            if grown > limit {
                return Err(format!("{code}: {grown} MiB under memoryMb {memory_mb}"));
            }
            (*most, *at_rest) = (grown.max(*most), rest.max(*at_rest));
        }
    }
    let worst = limits.iter().zip(worst);
    let figures = worst.map(|(limit, (most, rest))| format!("at most {most} MiB under {limit}, {rest} MiB at rest"));
    Ok(figures.collect::<Vec<_>>().join("; "))
}

/// Runs a script several times. After each run the process must shrink until it holds at most the
/// limit and 16 MiB more than before the first run. Returns the greatest growth at rest.
fn rests_after_runs(ground: &Ground, tenant: &str, memory_mb: u64) -> Result<u64, String> {
    let gauge = || ground.tenant(tenant)["resident"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let before = gauge().and_then(|pid| Gauge::of(pid).rss()).ok_or("the tenant lives nowhere")?;
    let mut most = 0;
    for _ in 0..runs(memory_mb) {
        let path = format!("/v1/tenants/{tenant}/scripts/s/run");
        let answer = ground.root.ask_within(PATIENCE, "POST", &path, &[b"{}"]).map_err(|error| error.to_string())?;
        let outcome = answer.json()["outcome"].clone();
        if outcome != "ok" && outcome != "exceededMemory" && outcome != "exceededCpu" {
            return Err(format!("{}", answer.json()));
        }
        let rss = || gauge().and_then(|pid| Gauge::of(pid).rss()).map_or(0, |rss| rss.saturating_sub(before));
        if !wait(Duration::from_secs(10), || rss() <= memory_mb + 16) {
            return Err(format!("{} MiB at rest", rss()));
        }
        most = most.max(rss());
    }
    Ok(most)
}

/// Texts of growing length, of which every second one dies before the next length: no hole is large
/// enough for the next texts.
const HOLES: &str = "async () => { const g = new Intl.Segmenter('en'); const all = globalThis.all = []; let live = [], \
    used = 0; const h = 'x'.repeat(100 << 20); h.charCodeAt(5); all.push(h); \
    for (const size of [15000, 31000, 63000, 127000]) { const t = 'x'.repeat(size / 2 - 40); \
    const count = Math.floor((100 * 1048576 - used) / (size + 2600)); for (let i = 0; i < count; i++) \
    live.push(g.segment(t)); used += count * (size + 2600); if (size < 127000) { live = live.filter((_, i) => i % 2); \
    used /= 2 } } all.push(live); await new Promise((done) => setTimeout(done, 300)); return 1 }";

/// A run with a heap and buffers, or with native memory full of holes, while another script's
/// isolate is kept. The run's account includes the heaps of kept isolates.
fn beside(_: Options) -> Result<String, String> {
    const KEEPS: &str = "let k; export default () => { k ??= 'y'.repeat(110 << 20); k.charCodeAt(5); return 1 }";
    const FILLS_BOTH: &str = "async () => { const h = globalThis.h = 'x'.repeat(110 << 20); h.charCodeAt(5); \
        const b = globalThis.b = new Uint8Array(120 << 20).fill(1); \
        await new Promise((done) => setTimeout(done, 300)); return b.length }";
    let ground = Ground::with("", None);
    let mut figures = Vec::new();
    for (number, code) in [FILLS_BOTH, HOLES].iter().enumerate() {
        let tenant = format!("acme-{number}");
        let path = format!("/v1/tenants/{tenant}/scripts/s");
        let script = json!({ "code": KEEPS }).to_string();
        ground.root.ask("PUT", &path, script.as_bytes()).map_err(|error| error.to_string())?;
        let run = || {
            let path = format!("{path}/run");
            let kept = ground.root.ask_within(PATIENCE, "POST", &path, &[b"{}"]).map(|answer| answer.json());
            (kept.unwrap_or_default(), load(&ground, &tenant, &json!({ "code": code })))
        };
        let ((kept, answer), grown) = growth(&ground, &tenant, run)?;
        if kept["outcome"] != "ok" || answer["outcome"].is_null() || grown > bound(128) {
            return Err(format!("{code}: {grown} MiB: {kept}, {answer}"));
        }
        figures.push(format!("{grown} MiB"));
    }
    Ok(figures.join(", "))
}

/// Makes date formats for three thousand pairs of a locale and a kind of digits.
const LOCALES: &str = "async () => { const letters = 'abcdefghijklmnopqrstuvwxyz'.split(''); \
    const names = letters.flatMap((a) => letters.map((b) => a + b)); let asked = 0; \
    const known = Intl.DateTimeFormat.supportedLocalesOf(names).slice(0, 60); \
    for (const digits of Intl.supportedValuesOf('numberingSystem').slice(0, 50)) for (const locale of known) \
    { new Intl.DateTimeFormat(`${locale}-u-nu-${digits}`); asked++ } return asked }";

/// A run that asks for many locales goes on under a small limit. V8's original cache would hold all
/// of them.
fn locales(options: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let limits = "[defaults.limits]\ncpu_ms = 30000\nwall_ms = 60000\n";
    let ground = Ground::with(&format!("[workers]\nprogram = {worker:?}\n{limits}"), None);
    answering(&ground, options, || locales_on(&ground))
}

fn locales_on(ground: &Ground) -> Result<String, String> {
    const MEMORY_MB: u64 = 16;
    let held = |attack: bool| {
        let tenant = format!("acme-{attack}");
        let request = json!({ "code": LOCALES, "limits": { "memoryMb": MEMORY_MB }, "props": { "attack": attack } });
        let (answer, grown) = growth(ground, &tenant, || load(ground, &tenant, &request))?;
        if answer["outcome"] == "ok" && answer["result"] == 3000 { Ok(grown) } else { Err(answer.to_string()) }
    };
    let (on, off) = (held(false)?, held(true)?);
    let said = format!("{on} MiB under {MEMORY_MB}, {off} MiB where V8 keeps its own");
    if on <= 2 * MEMORY_MB && off > 100 { Ok(said) } else { Err(said) }
}

/// A value that V8 could not build is refused before V8 tries, so the process goes on.
fn large(_: Options) -> Result<String, String> {
    let ground = Ground::with("", None);
    let pid = |tenant: &str| ground.tenant(tenant)["resident"]["pid"].clone();
    for (number, (code, memory_mb, outcome)) in [
        ("() => '\\u1234'.repeat(4.5e7)", 128, "exceededOutput"),
        ("() => ({ a: ['\\u1234'.repeat(2e7), '\\u1234'.repeat(2.5e7)] })", 128, "exceededOutput"),
        ("() => new TextDecoder().decode(new Uint8Array(60 << 20).fill(200))", 128, "exception"),
        ("() => '\u{fdfa}'.repeat(2e7).normalize('NFKC').length", 128, "exceededMemory"),
        ("() => { for (;;) try { '\u{fdfa}'.repeat(2e6).normalize('NFKC') } catch {} }", 8, "exceededMemory"),
        (
            "() => new Intl.Collator('th').compare('\u{e40}'.repeat(2e6), '\u{e40}'.repeat(2e6) + 1)",
            8,
            "exceededMemory",
        ),
        ("() => (2n ** (1n << 29n)).toString().length", 8, "exceededMemory"),
    ]
    .iter()
    .enumerate()
    {
        let tenant = format!("acme-{number}");
        load(&ground, &tenant, &json!({ "code": "() => 1" }));
        let before = pid(&tenant);
        let answer = load(&ground, &tenant, &json!({ "code": code, "limits": { "memoryMb": memory_mb } }));
        if answer["outcome"] != *outcome || pid(&tenant) != before {
            return Err(format!("{code}: {answer}, its process was {before} and is {}", pid(&tenant)));
        }
    }
    Ok("each run ended by itself".to_owned())
}

/// Some 30 MiB of heap, which the isolate keeps.
const FILLS: &str =
    "let a; export default () => { a ??= Array.from({ length: 1e6 }, (_, i) => ({ i })); return a.length }";

/// As many scripts of one tenant as may be kept, each well within the limit. A run with the
/// harness's natives has no limit, so its isolate is kept however much the tenant holds.
fn shelf(options: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let ground = Ground::with(&format!("[workers]\nprogram = {worker:?}\n"), None);
    answering(&ground, options, || shelf_on(&ground))
}

fn shelf_on(ground: &Ground) -> Result<String, String> {
    const MEMORY_MB: u64 = 64;
    let rests = |attack: bool| {
        let tenant = format!("acme-{attack}");
        load(ground, &tenant, &json!({ "code": "() => 1" }));
        let pid = ground.tenant(&tenant)["resident"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let gauge = Gauge::of(pid.ok_or("the tenant lives nowhere")?);
        let before = gauge.rss().ok_or("the process has gone")?;
        for number in 0..8 {
            let path = format!("/v1/tenants/{tenant}/scripts/s{number}");
            let script = json!({ "code": FILLS, "limits": { "memoryMb": MEMORY_MB } }).to_string();
            ground.root.ask("PUT", &path, script.as_bytes()).map_err(|error| error.to_string())?;
            let run = json!({ "props": { "attack": attack } }).to_string();
            let answer = ground.root.ask_within(PATIENCE, "POST", &format!("{path}/run"), &[run.as_bytes()]);
            let answer = answer.map_err(|error| error.to_string())?.json();
            if answer["outcome"] != "ok" {
                return Err(answer.to_string());
            }
        }
        if !wait(PATIENCE, || ground.tenant(&tenant)["resident"]["warm"] == true) {
            return Err("the tenant does not come to rest".to_owned());
        }
        Ok(gauge.rss().ok_or("the process has gone")?.saturating_sub(before))
    };
    let (on, off) = (rests(false)?, rests(true)?);
    let said = format!("{on} MiB at rest, {off} MiB without the limit");
    if on <= MEMORY_MB + 16 && off > 2 * MEMORY_MB { Ok(said) } else { Err(said) }
}

/// The latency that 99 of 100 of the neighbour's runs must not exceed.
const NEIGHBOUR: Duration = Duration::from_millis(50);

/// How many programs run beside one neighbour: a process has a dozen slots, and uses none twice.
const PROGRAMS: usize = 8;

/// All programs above run, under new names, in the process of a neighbour that has short runs. The
/// neighbour must be served, and must be neither blamed nor cordoned.
fn company(options: Options) -> Result<String, String> {
    let bodies: Vec<_> = HEAP.iter().chain(NATIVE).chain(BUFFERS).collect();
    let mut waits = Vec::new();
    let mut left = bodies.as_slice();
    while let Some(next) = left.first() {
        let (ran, took) = in_company(left)?;
        left = left.get(ran..).filter(|_| ran > 0).ok_or_else(|| format!("not in company: {next}"))?;
        waits.extend(took);
    }
    waits.sort_unstable();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied().unwrap_or_default();
    let figures = format!(
        "{} runs of the neighbour: p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        waits.len(),
        at(50),
        at(99),
        waits.last().copied().unwrap_or_default()
    );
    if options.bench && at(99) > NEIGHBOUR { Err(figures) } else { Ok(figures) }
}

/// Runs up to [`PROGRAMS`] of these programs beside the neighbour, and stops early if a program's
/// tenant does not move into the neighbour's process. Returns how many ran, and the latencies of
/// the neighbour's runs.
fn in_company(programs: &[&&str]) -> Result<(usize, Vec<Duration>), String> {
    // All tenants here belong to one uid. With a budget of deaths, the later ones would live alone.
    let ground = Ground::start("[cordon.rules.deaths]\nbudget = 0\n");
    load(&ground, "good-1", &json!({ "code": "() => 1" }));
    let before = ground.tenant("good-1")["cordon"]["score"].clone();
    let done = AtomicBool::new(false);
    let waits = std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut waits = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = load(&ground, "good-1", &json!({ "code": "() => 1" }));
                waits.push(begun.elapsed());
                if answer["outcome"] != "ok" {
                    return Err(format!("the neighbour's run: {answer}"));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(waits)
        });
        let ran = programs.iter().take(PROGRAMS).enumerate().take_while(|(number, body)| {
            let tenant = format!("acme-{number}");
            let together = moves_in_with(&ground, &tenant, "good-1");
            if together {
                load(&ground, &tenant, &json!({ "code": script(body), "limits": { "memoryMb": 64 } }));
            }
            together
        });
        let ran = ran.count();
        done.store(true, Ordering::Relaxed);
        let waits = neighbour.join().map_err(|_| "the neighbour panicked".to_owned())??;
        Ok::<_, String>((ran, waits))
    })?;
    let cordon = ground.tenant("good-1")["cordon"].clone();
    if cordon["level"] != "shared" || cordon["score"] != before || !cordon["suspectedUntilUnixMs"].is_null() {
        return Err(format!("the neighbour's score was {before} and is {cordon}"));
    }
    Ok(waits)
}

/// Admits a new tenant; returns whether it moved into the neighbour's process.
fn moves_in_with(ground: &Ground, tenant: &str, neighbour: &str) -> bool {
    let home = |name: &str| ground.tenant(name)["resident"]["pid"].as_i64();
    load(ground, tenant, &json!({ "code": "() => 1" }));
    // The last program may have ended the neighbour's process. Then the neighbour gets a new home.
    wait(COMPANY, || home(neighbour).is_some()) && home(tenant) == home(neighbour)
}

/// How long the neighbour may be without a home.
const COMPANY: Duration = Duration::from_secs(10);

/// Runs that leave much garbage are not ended: the garbage costs them nothing but time.
fn garbage(options: Options) -> Result<String, String> {
    // The limits of the tenant bound the limits of its runs, so the tenant's are raised.
    let ground = Ground::with("[defaults.limits]\ncpu_ms = 20000\nwall_ms = 60000\n", None);
    answering(&ground, options, || garbage_on(&ground))
}

fn garbage_on(ground: &Ground) -> Result<String, String> {
    for (number, body) in [
        "for (let i = 0; i < 5000; i++) new Intl.DateTimeFormat('en-US', { dateStyle: 'medium', timeZone: 'UTC' }).format(i)",
        "for (let i = 0; i < 20000; i++) new Intl.PluralRules('ar').select(i)",
        "t = 'hello world '.repeat(1e3); g = new Intl.Segmenter(); for (let i = 0; i < 500; i++) [...g.segment(t)]",
        "for (let i = 0; i < 500000; i++) new ArrayBuffer(10)",
    ]
    .iter()
    .enumerate()
    {
        let limits = json!({ "memoryMb": 48, "cpuMs": 20000, "wallMs": 60000 });
        let tenant = format!("acme-{number}");
        let request = json!({ "code": script(&format!("{body}; return 1")), "limits": limits });
        let (answer, grown) = growth(ground, &tenant, || load(ground, &tenant, &request))?;
        if answer["outcome"] != "ok" || grown > bound(48) {
            return Err(format!("{body}: {grown} MiB: {answer}"));
        }
    }
    Ok("all runs ended by themselves".to_owned())
}
