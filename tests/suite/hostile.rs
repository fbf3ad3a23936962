//! Scripts that demand too much: each ends with its outcome, the worker survives if V8 permits it,
//! and neighbours in the same process always go on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use enisle_tests::{Daemon, SHARING, SetOnDrop};
use serde_json::{Value, json};

use self::Survives::{MayDie, Must};

/// A script, the outcomes that it may have, and what happens to its worker.
type Case = (&'static str, &'static [&'static str], Survives);

/// Whether a worker survives a script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survives {
    Must,
    /// The worker may end with the script: V8 does not interrupt every script in time, and aborts
    /// on some.
    MayDie,
}

const CPU: &[&str] = &["exceededCpu"];
const MEMORY: &[&str] = &["exceededMemory"];
const ERROR: &[&str] = &["exception"];
/// The outcome depends on which limit the script exceeds first on this machine.
const EITHER: &[&str] = &["exceededCpu", "exceededMemory", "exception"];

/// Runs every case for one tenant while another tenant, in the same process, runs without pause. No
/// run of the neighbour's may fail.
fn run_corpus(cpu_ms: u32, cases: &[Case]) {
    // The machine's speed must not decide the outcome, so only the limit that a corpus is about is
    // low. No cordon may decide it either: a tenant that moves gets another worker, and these tests
    // ask whether its worker survived.
    let unmoved = ["busy", "paging", "computeOnly"]
        .map(|signal| format!("[cordon.rules.signals.{signal}]\npoints = 0\nhalf_life_secs = 1\nmost = 0\n"));
    let limits = "[defaults.limits]\ncpu_ms = 60000\nwall_ms = 120000\n";
    let daemon = Daemon::start(&format!("{SHARING}{limits}{}", unmoved.concat()));
    assert_eq!(daemon.run("neighbour", "() => 1")["result"], 1);
    let (over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let run = daemon.run("neighbour", "() => 'still here'");
                assert_eq!(run["result"], "still here", "{run}");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        let guard = SetOnDrop(&over);
        let mut together = 0;
        for (code, outcomes, survives) in cases {
            assert_eq!(daemon.run("hostile", "() => 1")["outcome"], "ok");
            let before = daemon.worker_of("hostile");
            together += u32::from(daemon.home_of("neighbour") == Some(before));
            let limits = json!({ "cpuMs": cpu_ms, "wallMs": 120000, "memoryMb": 64 });
            let run = daemon.load("hostile", &json!({ "code": code, "limits": limits })).ok();
            let outcome = run["outcome"].as_str().unwrap_or_default();
            assert!(outcomes.contains(&outcome), "{code}: {run}");
            let next = daemon.run("hostile", "() => 'next'");
            assert_eq!(next["result"], "next", "after {code}: {next}");
            assert!(*survives == MayDie || daemon.worker_of("hostile") == before, "{code} took its worker with it");
        }
        drop(guard);
        assert!(together > 0, "the neighbour was never in the same process");
    });
    assert!(answered.load(Ordering::SeqCst) > 0);
}

#[test]
fn spinning_in_every_form_ends_at_the_cpu_limit() {
    run_corpus(
        100,
        &[
            ("() => { for (;;); }", CPU, Must),
            ("() => { while (true) { try { for (;;); } catch {} finally { } } }", CPU, Must),
            ("async () => { for (;;) await null; }", CPU, Must),
            ("() => { (function f() { Promise.resolve().then(f) })(); return new Promise(() => {}) }", CPU, Must),
            ("() => { (function f() { queueMicrotask(f) })(); return new Promise(() => {}) }", CPU, Must),
            ("() => /^(a+)+$/.test('a'.repeat(50) + 'b')", CPU, Must),
            ("() => [3, 1, 2].sort(() => { for (;;); })", CPU, Must),
            ("() => ({ get x() { for (;;); } }).x", CPU, Must),
            ("() => new Proxy({}, { get() { for (;;); } }).x", CPU, Must),
            ("() => JSON.parse('[1, 2]', () => { for (;;); })", CPU, Must),
            ("() => JSON.stringify({ toJSON() { for (;;); } })", CPU, Must),
            ("() => ({ toJSON() { for (;;); } })", CPU, Must),
            ("() => ({ then() { for (;;); } })", CPU, Must),
            (
                "() => { throw { get message() { for (;;); }, get stack() { for (;;); } } }",
                &["exceededCpu", "exception"],
                Must,
            ),
            ("() => { throw Object.defineProperty(new Error(), 'stack', { get() { for (;;); } }) }", CPU, Must),
            ("() => { for (;;) try { (function f() { f() })() } catch {} }", CPU, Must),
            ("for (;;);", CPU, Must),
            ("await (async () => { for (;;) await 0 })(); export default 1", CPU, Must),
            ("function* g() { for (;;) yield }; for (const x of g());", CPU, Must),
            ("() => { setTimeout(() => { for (;;); }, 1); return new Promise(() => {}) }", CPU, Must),
            ("() => { const p = new Proxy(function () {}, { apply() { for (;;); } }); p() }", CPU, Must),
            ("() => { let b = 3n; for (;;) b = b * b % (2n ** 256n) + 1n }", CPU, Must),
            // With numbers of this length V8 takes some 40 ms to notice that the run must end, even
            // on an idle machine. After 50 ms the supervisor ends the process.
            ("() => { let b = 3n; for (;;) b = b * b % (2n ** 4096n) + 1n }", CPU, MayDie),
        ],
    );
}

#[test]
fn work_that_v8_does_not_interrupt_ends_nevertheless() {
    run_corpus(
        200,
        &[
            // V8 does not interrupt these scripts. The watchdog reports them, and the supervisor
            // ends the process.
            ("() => Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)", CPU, MayDie),
            ("() => Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1)", CPU, MayDie),
            ("() => { const a = new Float64Array(7e6); for (;;) a.sort() }", CPU, MayDie),
            ("() => { let x = 2n ** 30000000n; return (x * x).toString().length }", EITHER, MayDie),
            ("() => { const s = 'ab'.repeat(1e8); return s.replaceAll('a', 'bb').length }", EITHER, MayDie),
        ],
    );
}

#[test]
fn memory_in_every_form_ends_at_the_memory_limit() {
    run_corpus(
        10_000,
        &[
            ("() => { const a = []; for (;;) a.push(new Array(1000).fill(1)) }", MEMORY, Must),
            ("() => { const a = []; for (;;) a.push({ a }) }", MEMORY, Must),
            ("() => { const a = []; for (let i = 0; ; i++) a.push(() => i) }", MEMORY, Must),
            (
                "() => { let s = 'x'; const keep = []; for (let i = 0; ; i++) keep.push((s + i).repeat(1000).split('').join('-')) }",
                MEMORY,
                Must,
            ),
            ("() => { let o = {}; for (;;) o = { o } }", MEMORY, Must),
            // One string of a gigabyte: V8 admits the first large object of a young heap, whatever
            // its size.
            ("() => { const s = '\\u1234'.repeat(5.3e8); s.charCodeAt(5); return s.length }", MEMORY, MayDie),
            (
                "() => { try { new ArrayBuffer(6e7); new ArrayBuffer(6e7) } catch {} \
                 const s = '\\u1234'.repeat(5e7); return s.charCodeAt(5) }",
                MEMORY,
                Must,
            ),
            ("() => { const m = new Map(); for (let i = 0; ; i++) m.set(i, [i]) }", EITHER, MayDie),
            ("() => { const a = []; for (;;) a.push(new Uint8Array(1e6).fill(1)) }", ERROR, Must),
            ("() => { const a = []; for (;;) a.push(new ArrayBuffer(0, { maxByteLength: 1e6 })) }", ERROR, Must),
            ("() => new ArrayBuffer(2 ** 34)", ERROR, Must),
            ("() => new ArrayBuffer(8, { maxByteLength: 2 ** 34 })", ERROR, Must),
            (
                "() => { const a = new ArrayBuffer(8, { maxByteLength: 6e7 }); a.resize(6e7); return new ArrayBuffer(6e7) }",
                ERROR,
                Must,
            ),
            ("() => { const a = []; for (;;) a.push(a.at(-1)?.slice(0) ?? new ArrayBuffer(1e6)) }", ERROR, Must),
            ("() => { const a = []; for (;;) a.push(structuredClone(new Uint8Array(1e6))) }", ERROR, Must),
            ("() => { const a = []; for (;;) a.push(new TextEncoder().encode('x'.repeat(1e6))) }", ERROR, Must),
            ("() => 'x'.repeat(2 ** 30)", ERROR, Must),
            ("() => new Array(2 ** 32 - 2).join('x')", ERROR, Must),
            ("() => { for (;;) setTimeout(() => {}, 1e6) }", ERROR, Must),
            ("() => { for (;;) Promise.reject(1) }", EITHER, MayDie),
            (
                "() => { const a = [new Uint8Array(8)]; try { for (;;) a.push(new ArrayBuffer(1e5)) } catch {} ; return a[0].buffer.byteLength }",
                &["ok"],
                Must,
            ),
            // V8 aborts on these scripts. The run gets its outcome, and the neighbour's run is
            // restarted.
            ("() => 'x'.repeat(5e8).split('').length", EITHER, MayDie),
            ("() => new Array(1e9).fill(0).length", EITHER, MayDie),
        ],
    );
}

#[test]
fn nesting_in_every_form_is_an_error_of_the_script() {
    run_corpus(
        1000,
        &[
            ("() => { (function f() { f() })() }", ERROR, Must),
            ("() => { let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; return o }", ERROR, Must),
            (
                "() => { let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return structuredClone(o).length }",
                ERROR,
                Must,
            ),
            (
                "() => { let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return JSON.stringify(o).length }",
                &["ok", "exception"],
                Must,
            ),
            ("() => JSON.parse('['.repeat(1e5) + ']'.repeat(1e5)).length", &["ok", "exception"], Must),
            ("() => { let p = {}; for (let i = 0; i < 1e5; i++) p = new Proxy(p, {}); return p.x }", ERROR, Must),
            ("() => new RegExp('('.repeat(1e5) + ')'.repeat(1e5)).source.length", ERROR, Must),
            (
                "() => { let a = []; a[0] = a; return a.flat(Infinity).length }",
                &["exception", "exceededMemory", "exceededCpu"],
                Must,
            ),
            ("() => { const a = []; a.toString = () => `${a}`; return `${a}` }", ERROR, Must),
            ("() => { let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; console.log(o); return 1 }", &["ok"], Must),
        ],
    );
}

#[test]
fn successive_attackers_cost_an_innocent_tenant_nothing_but_time() {
    let daemon = Daemon::start(SHARING);
    let innocents = ["a", "b", "c", "d"];
    for name in innocents {
        assert_eq!(daemon.run(name, "() => 1")["result"], 1);
    }
    let together: std::collections::BTreeSet<_> = innocents.iter().map(|name| daemon.worker_of(name)).collect();
    assert_eq!(together.len(), 1, "the innocents share a process");
    std::thread::scope(|scope| {
        let daemon = &daemon;
        let runs = innocents.map(|name| {
            scope.spawn(move || daemon.run(name, "() => new Promise((r) => setTimeout(() => r('done'), 1500))"))
        });
        for attacker in 0..5 {
            // Each attacker ends its worker, because V8 does not interrupt this call.
            let code = "() => Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)";
            let run =
                daemon.load(&format!("attacker-{attacker}"), &json!({ "code": code, "limits": { "cpuMs": 20 } })).ok();
            assert_eq!(run["outcome"], "exceededCpu", "{run}");
        }
        for run in runs {
            let run = run.join().expect("the run is answered");
            assert_eq!(run["result"], "done", "{run}");
        }
    });
    assert!(daemon.events().iter().any(|event| event["event"] == "retried"), "no innocent run was lost");
    // A tenant that has ended a worker lives alone, even after a run that went well.
    assert_eq!(daemon.run("attacker-0", "() => 1")["cordon"], "solo");
    assert_eq!(daemon.run("attacker-0", "() => 1")["cordon"], "solo");
}

/// These scripts come from open issues of isolated-vm. The comments give the issues' numbers.
#[test]
fn what_broke_isolated_vm_does_not_break_enisle() {
    run_corpus(
        2000,
        &[
            ("() => [...'.'.repeat(1e9)]", ERROR, Must),           // #107
            ("() => [...'.'.repeat(5e8)].length", EITHER, MayDie), // #107, at the longest string that V8 makes
            ("() => { const a = []; for (;;) a.push(new Array(1e6)) }", EITHER, Must), // #527: below the limit, then over it
            ("() => { let b = 10n ** 1000000n; for (;;) b = b * 10n ** 1000000n }", EITHER, MayDie), // #202
            ("() => { const s = []; for (;;) s.push('x'.repeat(1e5) + Math.random()).toString() }", EITHER, Must), // #460
            (
                "() => { let o = {}; const top = o; for (let i = 0; i < 1e6; i++) o = o.o = {}; return top }",
                EITHER,
                Must,
            ), // #296
        ],
    );
}

#[test]
fn output_and_logs_are_cut_at_their_limits() {
    let daemon = Daemon::start(SHARING);
    let run = |code: &str, limits: Value| daemon.load("t", &json!({ "code": code, "limits": limits })).ok();
    let long = run("() => 'x'.repeat(1000)", json!({ "outputBytes": 1000 }));
    assert!(
        long["outcome"] == "exceededOutput"
            && long["error"]["message"].as_str().is_some_and(|m| m.contains("1002 bytes")),
        "{long}"
    );
    let flood =
        run("() => { for (let i = 0; i < 1e5; i++) console.log('line', i); return 'done' }", json!({ "logLines": 7 }));
    assert_eq!(
        (&flood["result"], flood["logs"].as_array().map(Vec::len), &flood["truncated"]),
        (&json!("done"), Some(7), &json!(true))
    );
    let wide =
        run("() => { console.log('y'.repeat(5e7)); console.log('z') }", json!({ "logBytes": 100, "cpuMs": 1000 }));
    assert_eq!(
        (wide["logs"][0]["text"].as_str().map(str::len), &wide["truncated"]),
        (Some(100), &json!(true)),
        "{wide}"
    );
    let code = run("() => 1", json!({}));
    assert_eq!(code["outcome"], "ok");
    let problem = daemon.load("t", &json!({ "code": "() => 12345", "limits": { "codeBytes": 10 } })).problem(413);
    assert!(problem.contains("limits.codeBytes"), "{problem}");
    let waits = run("() => new Promise((r) => setTimeout(r, 60000))", json!({ "wallMs": 50 }));
    assert_eq!(waits["outcome"], "exceededWall", "{waits}");
    let timers = run(
        "() => { const ids = []; for (let i = 0; i < 4; i++) ids.push(setTimeout(() => {}, 1e6)); }",
        json!({ "timers": 3 }),
    );
    assert!(timers["error"]["message"].as_str().is_some_and(|m| m.contains("limits.timers")), "{timers}");
}

#[test]
fn with_a_higher_limit_the_same_script_goes_on() {
    // Each script ends at the low limit and not at the high one, so only the limit ends it.
    let daemon = Daemon::start(SHARING);
    let run = |code: &str, limits: Value| {
        daemon.load("t", &json!({ "code": code, "limits": limits })).ok()["outcome"].clone()
    };
    let spin = "() => { let n = 0; for (let i = 0; i < 2e8; i++) n += i; return n }";
    assert_eq!(
        (run(spin, json!({ "cpuMs": 5 })), run(spin, json!({ "cpuMs": 1000 }))),
        (json!("exceededCpu"), json!("ok"))
    );
    let heap =
        "() => { const a = []; for (let i = 0; i < 40; i++) a.push(new Array(131072).fill(i)); return a.length }";
    assert_eq!(
        (run(heap, json!({ "memoryMb": 8 })), run(heap, json!({ "memoryMb": 128 }))),
        (json!("exceededMemory"), json!("ok"))
    );
    let buffer = "() => new Uint8Array(5e7).length";
    assert_eq!(
        (run(buffer, json!({ "memoryMb": 32 })), run(buffer, json!({ "memoryMb": 64 }))),
        (json!("exception"), json!("ok"))
    );
}
