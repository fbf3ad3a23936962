//! The time that a script sees: nothing that it can observe reveals how long something took.
//!
//! The attacks are stopwatches: start something, do X, start something else, and observe which of
//! the two completes first. For every pair tried, the order must be the same for every X. A worker
//! with the attack harness's natives can switch the defence off; then the same stopwatch works.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use enisle_tests::{Daemon, SHARING, SetOnDrop, UNTIMED_FLAGS, altered, attack_worker, programs};
use serde_json::{Value, json};

/// A configuration under which no tenant is moved because it computes, and no run comes near a
/// limit.
fn config(program: &std::path::Path) -> String {
    let unmoved = ["busy", "paging", "computeOnly"]
        .map(|signal| format!("[cordon.rules.signals.{signal}]\npoints = 0\nhalf_life_secs = 1\nmost = 0\n"));
    let limits = "[defaults.limits]\ncpu_ms = 60000\nwall_ms = 120000\ntimers = 10000\nlog_lines = 100000\nlog_bytes = 8000000\n";
    format!("{SHARING}program = {:?}\n{limits}{}", program.display().to_string(), unmoved.concat())
}

/// The work X to be timed: nothing, a long computation, or loads of cache lines that are cached or
/// evicted.
const X: &str = "
    const lines = new Uint8Array(1 << 14), others = new Uint8Array(1 << 22);
    globalThis.sink = 0;
    const touch = (bytes) => { let sum = 0; for (let i = 0; i < bytes.length; i += 64) sum += bytes[i]; sink += sum };
    const spin = (n) => { let x = sink & 1; for (let i = 0; i < n; i++) x = Math.imul(x, 31) + i | 0; sink = x & 1 };
    const KINDS = { nothing() {}, long() { spin(2e6) }, cached() { touch(lines); touch(lines) }, evicted() { touch(others); touch(lines) } };
    const X = KINDS[kind];
";

/// Everything that a script can wait for, by itself and in chains. Each waiter calls `say` at every
/// step, and `end` after the last step. Every step may take time as well.
const WAITERS: &str = "
    const waiters = {};
    for (const ms of [0, 1, 1.9, 2, 3, 3.000350, 3.9, 5, -1, NaN, 2 ** 32 + 2]) {
      waiters['timeout ' + ms] = (say, end) => setTimeout(() => { say(); end() }, ms);
    }
    for (const [ms, times] of [[1, 1], [1, 4], [2, 2], [2.5, 3]]) {
      waiters['interval ' + [ms, times]] = (say, end) => { let n = 0;
        const id = setInterval(() => { say(); if (++n === times) { clearInterval(id); end() } }, ms) };
    }
    for (const chain of [[1, 1], [1, 2], [2, 1], [1, 1, 1, 1], [3, 1]]) {
      waiters['chain ' + chain] = (say, end) => { const next = (i) => setTimeout(() => { say(); i + 1 < chain.length ? next(i + 1) : end() }, chain[i]); next(0) };
    }
    waiters['interval in a timeout'] = (say, end) => setTimeout(() => { let n = 0; const id = setInterval(() => { say(); if (++n === 2) { clearInterval(id); end() } }, 1) }, 1);
    waiters['timeouts of a timeout'] = (say, end) => setTimeout(() => { setTimeout(say, 2); setTimeout(() => { say(); }, 1); setTimeout(() => { say(); end() }, 3) }, 1);
    waiters['stops another'] = (say, end) => { const other = setTimeout(say, 3); setTimeout(() => { clearTimeout(other); say(); end() }, 2) };
    waiters['microtask'] = (say, end) => queueMicrotask(() => { say(); end() });
    waiters['promises'] = async (say, end) => { for (let i = 0; i < 4; i++) { await null; say() } end() };
    waiters['microtask of a timeout'] = (say, end) => setTimeout(() => queueMicrotask(() => { say(); end() }), 2);
    waiters['timeout of a microtask'] = (say, end) => queueMicrotask(() => setTimeout(() => { say(); end() }, 2));
    waiters['import'] = (say, end) => import('cloudflare:workers').then(() => { say(); end() });
    waiters['sleep, then import'] = async (say, end) => { await new Promise((r) => setTimeout(r, 1)); say(); await import('cloudflare:workers'); say(); end() };
    waiters['rejection'] = (say, end) => Promise.reject(1).catch(() => { say(); end() });
    waiters['async iteration'] = async (say, end) => { for await (const _ of [1, 2]) say(); end() };
    waiters['generator with sleeps'] = async (say, end) => { const g = (async function* () { for (let i = 0; i < 2; i++) { await new Promise((r) => setTimeout(r, 1)); yield i } })();
      for await (const _ of g) say(); end() };
    waiters['finalizers'] = (say, end) => { const registry = new FinalizationRegistry(say); for (let i = 0; i < 100; i++) registry.register({}, i);
      setTimeout(() => { registry.unregister({}); end() }, 4) };
    waiters['console'] = (say, end) => { console.log('line'); setTimeout(() => { say(); console.log('line'); end() }, 1) };
";

/// Tries every ordered pair of waiters, with X between them or at every step of the first one.
/// Returns, for each pair, the order in which the steps of the two came.
const PAIRS: &str = "
    const came = {};
    for (const a in waiters) {
      await Promise.all(Object.keys(waiters).map((b) => new Promise((done) => {
        const order = []; let left = 2;
        const end = () => { if (--left === 0) { came[a + ' | ' + b] = order.join(''); done() } };
        waiters[a](() => { order.push('a'); if (where === 'inside') X() }, end);
        if (where === 'between') X();
        waiters[b](() => order.push('b'), end);
      })));
    }
    return came;
";

fn pairs(daemon: &Daemon, kind: &str, position: &str, moving: bool) -> Value {
    let thaw = if moving { "attack.thaw();" } else { "" };
    let code = format!("async (kind, where) => {{ {thaw}{X}{WAITERS}{PAIRS} }}");
    let request = json!({ "code": code, "args": [kind, position], "props": { "attack": true } });
    let run = daemon.load("t", &request).ok();
    assert_eq!(run["outcome"], "ok", "{run}");
    run["result"].clone()
}

/// The pairs whose steps came in another order than expected.
fn differ(expected: &Value, came: &Value) -> Vec<String> {
    let differ = expected.as_object().into_iter().flatten().filter(|(pair, order)| came[*pair] != **order);
    differ.map(|(pair, order)| format!("{pair}: {order}, {}", came[pair])).collect()
}

#[test]
fn no_order_of_two_events_reveals_how_long_something_took() {
    let daemon = Daemon::start(&config(&programs().join("enisle-worker")));
    for position in ["between", "inside"] {
        let expected = pairs(&daemon, "nothing", position, false);
        let number = expected.as_object().map_or(0, serde_json::Map::len);
        assert!(number > 900, "{number} pairs");
        for kind in ["long", "cached", "evicted"] {
            let differ = differ(&expected, &pairs(&daemon, kind, position, false));
            assert!(differ.is_empty(), "{kind} {position}: {} of {number} pairs, {:?}", differ.len(), differ.first());
        }
    }
}

/// Two timers as a stopwatch: the first one fires first if X takes longer than two milliseconds.
const STOPWATCH: &str = "async (kind, moving) => {
    const order = [];
    if (moving) attack.thaw();
    await new Promise((done) => { setTimeout(() => order.push('first'), 4); X(); setTimeout(() => { order.push('second'); setTimeout(done, 5) }, 2) });
    return order.join();
}";

#[test]
fn with_a_moving_clock_the_order_of_timers_reveals_the_time() {
    let daemon = Daemon::start(&config(&attack_worker()));
    let code = STOPWATCH.replacen('{', &format!("{{{X}"), 1);
    let order = |kind: &str, moving: bool| {
        let request = json!({ "code": code, "args": [kind, moving], "props": { "attack": true } });
        daemon.load("t", &request).ok()["result"].clone()
    };
    // The machine may be slow between the two timers; one success in ten shows that the
    // stopwatch works.
    assert!((0..10).any(|_| order("nothing", true) == "second,first"));
    assert_eq!(order("long", true), "first,second");
    assert_eq!((order("nothing", false), order("long", false)), (json!("second,first"), json!("second,first")));
    let [short, long] = ["nothing", "long"].map(|kind| pairs(&daemon, kind, "between", true));
    assert!(!differ(&short, &long).is_empty(), "the search finds the stopwatch when there is one");
}

#[test]
fn a_date_is_whole_never_goes_back_and_counts_every_delay() {
    let daemon = Daemon::start(&config(&programs().join("enisle-worker")));
    let code = "async () => {
        const wrong = [], start = Date.now(); let last = start;
        const look = (least, what) => { const now = Date.now();
            if (now % 1 || now < last || now - least < 0 || performance.now() % 1) wrong.push([what, least, last, now]); last = now; return now };
        for (let ms = 0; ms < 12; ms++) { const from = look(0, 'a'); await new Promise((done) => setTimeout(done, ms + 0.9)); look(from + Math.max(1, ms), 'timeout') }
        let tick = look(0, 'b');
        await new Promise((done) => { let n = 0; const id = setInterval(() => { tick = look(tick + 3, 'interval'); if (++n === 5) { clearInterval(id); done() } }, 3) });
        return [wrong, start, Date.now()] }";
    let mut last = 0;
    for _ in 0..20 {
        let result = daemon.run("t", code)["result"].clone();
        let (begun, ended) = (result[1].as_u64().unwrap_or(0), result[2].as_u64().unwrap_or(0));
        assert!(result[0] == json!([]) && begun >= last && ended >= begun + 80, "{last} {result}");
        last = ended;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    assert!(u128::from(last) <= since && since - u128::from(last) < 60_000, "{last} {since}");
}

#[test]
fn lines_of_the_log_carry_the_time_of_their_turn() {
    let daemon = Daemon::start(&config(&programs().join("enisle-worker")));
    let code = format!(
        "async (kind) => {{ {X} const begun = Date.now(), times = [];
            for (let i = 0; i < 5; i++) {{ for (let j = 0; j < 5; j++) {{ console.log('line'); times.push(Date.now() - begun); X() }} await new Promise((r) => setTimeout(r, 3)) }}
            return times }}"
    );
    let run = daemon.load("t", &json!({ "code": code, "args": ["long"] })).ok();
    let times: Vec<_> = run["logs"].as_array().into_iter().flatten().map(|line| line["tMs"].clone()).collect();
    assert_eq!(run["result"], json!(times), "{run}");
    assert_eq!(times.len(), 25);
}

/// In each of four rounds, finds the index of the allocation after which a script first sees that
/// garbage was collected. X has the same effect for every length, and takes longer for a greater
/// length.
const COLLECTIONS: &str = "async (length) => {
    const text = 'a'.repeat(4e6) + 'b'; text.indexOf('c');
    const X = () => { globalThis.found = text.indexOf('c', text.length - 1 - length) };
    const seen = [];
    for (let round = 0; round < 4; round++) {
        let held = []; const refs = [];
        for (let i = 0; i < 20000; i++) { const o = { i }; held.push(o); refs.push(new WeakRef(o)) }
        for (let i = 0; i < 40; i++) { const x = []; for (let j = 0; j < 20000; j++) x.push({ j }) }
        held = null;
        await new Promise((done) => setTimeout(done, 1));
        const kept = []; let first = -1;
        for (let i = 0; i < 20000 && first < 0; i++) {
            const x = []; for (let j = 0; j < 100; j++) x.push({ j });
            if (kept.push(x) > 6000) kept.length = 0;
            X();
            if (!refs[i].deref()) first = i;
        }
        seen.push(first);
        await new Promise((done) => setTimeout(done, 1));
    }
    return seen.join();
}";

fn collections(daemon: &Daemon, length: u32) -> Value {
    let run = daemon.load("t", &json!({ "code": COLLECTIONS, "args": [length] })).ok();
    assert_eq!(run["outcome"], "ok", "{run}");
    run["result"].clone()
}

#[test]
fn garbage_collections_reveal_nothing_about_the_time() {
    let worker = programs().join("enisle-worker");
    let daemon = Daemon::start(&config(&worker));
    // When a tenant runs for the first time, less code may be compiled than in its later runs.
    collections(&daemon, 0);
    let expected = collections(&daemon, 0);
    for length in [0, 1000, 100_000, 300_000, 0] {
        assert_eq!(collections(&daemon, length), expected, "{length}");
    }
    drop(daemon);
    // With V8's own schedule the result differs from run to run, because the schedule depends on
    // measured time.
    let own_schedule = altered(&worker, &[(UNTIMED_FLAGS, ""), ("--memory-saver-mode", "")]);
    let daemon = Daemon::start(&config(&own_schedule));
    let (mut seen, over) = (BTreeSet::new(), AtomicBool::new(false));
    let differs = std::thread::scope(|scope| {
        // On an otherwise idle machine the measured times may stay the same for a while.
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        let _over = SetOnDrop(&over);
        (0..40).any(|run| {
            seen.insert(collections(&daemon, run % 4 * 400_000).to_string());
            seen.len() > 1
        })
    });
    assert!(differs, "{seen:?}");
}

/// Makes formatters for ten locales. ICU caches what it loads for a locale under the locale's full
/// name (`key`), for all threads of a process.
const FORMATTERS: &str = "
    const letters = [...'abcdefghijklmnopqrstuvwxyz'], pairs = letters.flatMap((a) => letters.map((b) => a + b));
    const keys = Intl.DateTimeFormat.supportedLocalesOf(pairs).slice(0, 10).map((locale) => `${locale}-u-ca-hebrew-nu-${numbers}`);
    const make = (key) => { const made = new Intl.DateTimeFormat(key, { dateStyle: 'full' }); made.format(0); return made };
";

/// Returns how much memory these formatters take from a script, to about a KiB. The script finds
/// out by trying which allocations are refused.
const MEMORY_TAKEN: &str = "
    await new Promise((done) => setTimeout(done, 1));
    const decoder = new TextDecoder('utf-8', { fatal: true }), bad = new Uint8Array(4 << 20).fill(255), held = [];
    let reserve = new ArrayBuffer(3 << 20);
    for (let size = 64 << 20; size >= 1 << 18; size /= 2) for (;;) { try { held.push(new ArrayBuffer(size)) } catch { break } }
    reserve.transfer(0);
    const fits = (bytes) => { try { decoder.decode(bad.subarray(0, bytes)) } catch (e) { return !(e instanceof RangeError) } };
    const left = () => { let [low, high] = [0, bad.length]; while (high - low > 1024) { const half = (low + high) >> 1; if (fits(half)) low = half; else high = half } return low };
    const before = left();
    for (const key of keys) held.push(make(key));
    return before - left();
";

/// The memory that tenant `a` sees its formatters take: for locales that its neighbour `b` has used
/// before, and for other locales.
fn seen_of_caches(daemon: &Daemon, exactly: bool, numbers: [&str; 2]) -> [Value; 2] {
    let run = |tenant: &str, code: String, numbers: &str| {
        let request = json!({ "code": code, "args": [numbers], "props": { "attack": exactly } });
        let run = daemon.load(tenant, &request).ok();
        assert_eq!(run["outcome"], "ok", "{run}");
        run["result"].clone()
    };
    let pid = |tenant: &str| daemon.get(&format!("/v1/tenants/{tenant}"))["resident"]["pid"].clone();
    let fill = format!("(numbers) => {{ {FORMATTERS} keys.forEach(make); return 1 }}");
    let account = if exactly { "attack.account(128);" } else { "" };
    let look = format!("async (numbers) => {{ {account} {FORMATTERS} {MEMORY_TAKEN} }}");
    // A tenant's first formatter also makes objects that stay with the tenant.
    let _ = ["a", "b"].map(|tenant| run(tenant, fill.clone(), "latn"));
    let [known, new] = numbers;
    run("b", fill, known);
    assert_eq!(pid("a"), pid("b"));
    [known, new].map(|numbers| run("a", look.clone(), numbers))
}

#[test]
fn the_memory_that_a_script_sees_does_not_reveal_what_a_neighbour_has_cached() {
    let daemon = Daemon::start(&config(&programs().join("enisle-worker")));
    for numbers in [["arab", "beng"], ["deva", "thai"], ["tibt", "mymr"]] {
        let [known, new] = seen_of_caches(&daemon, false, numbers);
        assert_eq!(known, new, "{numbers:?}");
    }
    drop(daemon);
    let daemon = Daemon::start(&config(&attack_worker()));
    let [known, new] = seen_of_caches(&daemon, true, ["arab", "beng"]).map(|seen| seen.as_i64().unwrap_or(-1));
    // The exact account counts pages, and a formatter whose locale is cached already may need no
    // new page.
    assert!(known >= 0 && new > (known * 3 / 2).max(64 << 10), "with the exact account: {known}, {new}");
}
