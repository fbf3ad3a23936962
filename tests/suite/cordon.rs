//! Cordons: which tenants are moved and why, what each level means, and that a move loses no run.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use enisle_tests::{Daemon, SHARING, SetOnDrop, is_alive, wait_until};
use serde_json::{Value, json};

/// V8 does not interrupt this call, so the supervisor ends the whole worker.
pub(crate) const HARD_KILL: &str = "() => Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)";
pub(crate) const SPIN: &str = "() => { for (;;); }";

pub(crate) fn order(daemon: &Daemon, tenant: &str, level: &str) -> Value {
    let body = json!({ "level": level, "reason": "a test" }).to_string();
    daemon.request("PUT", &format!("/v1/tenants/{tenant}/cordon"), body.as_bytes()).ok()
}

pub(crate) fn cordon_of(daemon: &Daemon, tenant: &str) -> Value {
    daemon.get(&format!("/v1/tenants/{tenant}"))["cordon"].clone()
}

pub(crate) fn lives(daemon: &Daemon, tenant: &str, level: &str) -> Value {
    daemon.wait_for(&format!("/v1/tenants/{tenant}"), |tenant| tenant["resident"]["cordon"] == level)
}

fn events(daemon: &Daemon, event: &str, tenant: &str) -> Vec<Value> {
    daemon.events().into_iter().filter(|known| known["event"] == event && known["tenant"] == tenant).collect()
}

#[test]
fn an_operator_moves_a_tenant_out_and_lets_it_in_again() {
    let daemon = Daemon::start(SHARING);
    daemon.run("neighbour", "() => 1");
    assert_eq!(daemon.run("t", "() => 1")["cordon"], "shared");
    let shared = daemon.worker_of("t");
    assert_eq!(order(&daemon, "t", "solo")["cordon"]["order"]["reason"], "a test");
    lives(&daemon, "t", "solo");
    assert_ne!(daemon.worker_of("t"), shared);
    assert!(is_alive(shared), "its neighbour still lives there");
    assert_eq!(daemon.run("t", "() => 2")["cordon"], "solo");
    let lifted = daemon.request("DELETE", "/v1/tenants/t/cordon?reason=fine", b"").ok();
    assert_eq!(lifted["cordon"]["level"], "shared");
    lives(&daemon, "t", "shared");
    assert_eq!(daemon.run("t", "() => 3")["cordon"], "shared");
    let history = cordon_of(&daemon, "t")["history"].clone();
    let steps: Vec<_> = history.as_array().expect("a list").iter().map(|past| past["to"].clone()).collect();
    assert_eq!(steps, ["solo", "shared"]);
}

#[test]
fn a_senseless_order_is_refused_with_a_hint_at_a_valid_one() {
    let daemon = Daemon::start(SHARING);
    let put = |body: &str| daemon.request("PUT", "/v1/tenants/t/cordon", body.as_bytes()).problem(400);
    assert!(put(r#"{"level": "shared", "reason": "x"}"#).contains("lift"));
    assert!(put(r#"{"level": "out", "reason": "x"}"#).contains("sealed"));
    assert!(put(r#"{"level": "solo", "reason": " "}"#).contains("audit log"));
    assert!(put(r#"{"level": "solo"}"#).contains("reason"));
    assert!(daemon.request("DELETE", "/v1/tenants/t/cordon?reason=x", b"").problem(404).contains("t"));
    daemon.run("t", "() => 1");
    assert!(daemon.request("DELETE", "/v1/tenants/t/cordon", b"").problem(400).contains("reason"));
}

#[test]
fn a_sealed_tenant_runs_without_a_compiler_without_secrets_and_with_less() {
    let daemon = Daemon::start(SHARING);
    let policy = json!({ "secrets": ["KEY"], "allowEval": true, "limits": { "memoryMb": 128, "cpuMs": 2000 } });
    daemon.request("PUT", "/v1/tenants/t", policy.to_string().as_bytes()).ok();
    let env = json!({ "KEY": "x", "word": "hi" });
    let names = json!({ "code": "(_, env) => Object.keys(env)", "args": [0], "env": env });
    assert_eq!(daemon.load("t", &names).ok()["result"], json!(["KEY", "word"]));
    order(&daemon, "t", "sealed");
    lives(&daemon, "t", "sealed");
    let run = daemon.load("t", &names).ok();
    assert_eq!((&run["result"], &run["cordon"]), (&json!(["word"]), &json!("sealed")), "{run}");
    // The language is complete, including regular expressions and large loops. Only the compiler is
    // missing.
    let work = "() => { let n = 0; for (let i = 0; i < 1e5; i++) n += /a+b/.test('aab') ? 1 : 0; return [n, typeof WebAssembly] }";
    let run = daemon.run("t", work);
    assert_eq!(run["result"], json!([100_000, "undefined"]), "{run}");
    let eval = daemon.run("t", "() => { try { return eval('1') } catch (error) { return error.name } }");
    assert_eq!(eval["result"], "EvalError", "{eval}");
    let spin = daemon.load("t", &json!({ "code": SPIN, "limits": { "cpuMs": 2000 } })).ok();
    assert!(spin["error"]["message"].as_str().is_some_and(|message| message.contains("250 ms")), "{spin}");
    assert_no_code(daemon.worker_of("t"));
    let ordinary = daemon.run("other", "() => 1");
    assert_eq!(ordinary["cordon"], "shared");
    assert!(makes_code(daemon.worker_of("other")), "an ordinary worker compiles, or this proves nothing");
}

/// Whether the process has executable memory that no file backs, as reported by the kernel.
fn makes_code(pid: i32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    maps.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].contains('x') && fields[4] == "0" && fields.get(5).is_none_or(|name| !name.starts_with("[v"))
    })
}

fn assert_no_code(pid: i32) {
    assert!(!makes_code(pid));
    // A sealed worker has one filter more than an ordinary worker.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    assert!(status.contains("Seccomp_filters:\t3"), "{status}");
}

#[test]
fn an_expelled_tenant_is_refused_and_the_problem_says_how_to_lift_it() {
    let daemon = Daemon::start(SHARING);
    daemon.run("neighbour", "() => 1");
    daemon.run("t", "() => 1");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            daemon.load("t", &json!({ "code": "() => new Promise((r) => setTimeout(r, 9000))" })).problem(403)
        });
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 1);
        order(&daemon, "t", "expelled");
        let problem = run.join().expect("the run is answered");
        assert!(problem.contains("a test") && problem.contains("enisle cordon t --lift"), "{problem}");
    });
    let answer = daemon.load("t", &json!({ "code": "() => 1" }));
    assert_eq!(answer.json()["type"], "urn:enisle:problem:expelled");
    assert_eq!(daemon.run("neighbour", "() => 2")["result"], 2, "its former neighbour still runs");
    daemon.request("DELETE", "/v1/tenants/t/cordon?reason=sorry", b"").ok();
    assert_eq!(daemon.run("t", "() => 3")["result"], 3);
}

#[test]
fn a_tenant_moves_under_load_and_no_run_is_lost_or_run_twice() {
    let daemon = Daemon::start(&format!("{SHARING}[defaults.quota]\nper_second = 100000\nburst = 100000\n"));
    let (done, asked) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    for tenant in ["mover", "neighbour"] {
        daemon.run(tenant, "() => 1");
    }
    std::thread::scope(|scope| {
        for (tenant, asked) in ["mover", "neighbour"].iter().zip(&asked) {
            for _ in 0..4 {
                let (daemon, done) = (&daemon, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        let number = asked.fetch_add(1, Ordering::SeqCst);
                        let run = daemon.load(tenant, &json!({ "code": "(n) => n", "args": [number] })).ok();
                        assert_eq!((&run["outcome"], &run["result"]), (&json!("ok"), &json!(number)), "{run}");
                    }
                });
            }
        }
        let _guard = SetOnDrop(&done);
        for level in ["solo", "sealed"] {
            order(&daemon, "mover", level);
            lives(&daemon, "mover", level);
            let begun = asked[0].load(Ordering::SeqCst);
            wait_until("some runs", || asked[0].load(Ordering::SeqCst) > begun + 20);
        }
        daemon.request("DELETE", "/v1/tenants/mover/cordon?reason=x", b"").ok();
        lives(&daemon, "mover", "shared");
    });
    for (tenant, asked) in ["mover", "neighbour"].iter().zip(asked) {
        let usage = daemon.get(&format!("/v1/tenants/{tenant}"))["usage"].clone();
        // The workers received as many runs as the clients asked for, and as many runs ended.
        let asked = asked.into_inner() + 1;
        assert_eq!((usage["begun"].as_u64(), usage["runs"].as_u64()), (Some(asked), Some(asked)), "{tenant}: {usage}");
    }
    assert_eq!(events(&daemon, "rehomed", "mover").len(), 3);
    assert!(events(&daemon, "drained", "mover").iter().all(|drained| drained["fenced"] == false));
}

#[test]
fn a_run_that_does_not_end_in_time_begins_again_in_the_new_home() {
    let daemon = Daemon::start(&format!("{SHARING}[cordon]\ndrain_secs = 1\n"));
    let once = "() => new Promise((r) => setTimeout(() => r('done'), 4000))";
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", once));
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["usage"]["begun"] == 1);
        order(&daemon, "t", "solo");
        let run = run.join().expect("the run is answered");
        assert_eq!((&run["result"], &run["cordon"]), (&json!("done"), &json!("solo")), "{run}");
    });
    let usage = daemon.get("/v1/tenants/t")["usage"].clone();
    let counts = (usage["begun"].as_u64(), usage["runs"].as_u64(), usage["fenced"].as_u64());
    assert_eq!(counts, (Some(2), Some(1), Some(1)), "the run began twice, and only its second end counts");
    assert_eq!(events(&daemon, "fenced", "t").len(), 1);
}

#[test]
fn risky_tenants_are_refused_if_there_is_no_room_and_never_put_beside_others() {
    let daemon = Daemon::start(&format!("{SHARING}[cordon]\nmax_alone = 1\nqueue_secs = 1\n"));
    for tenant in ["a", "b", "c"] {
        daemon.run(tenant, "() => 1");
    }
    order(&daemon, "a", "solo");
    lives(&daemon, "a", "solo");
    std::thread::scope(|scope| {
        let waits = "() => new Promise((r) => setTimeout(() => r('done'), 6000))";
        let busy = scope.spawn(|| daemon.run("a", waits));
        daemon.wait_for("/v1/tenants/a", |tenant| tenant["inFlight"] == 1);
        order(&daemon, "b", "sealed");
        let reported = || !events(&daemon, "noRoom", "b").is_empty();
        wait_until("that room is lacking", reported);
        let problem = daemon.load("b", &json!({ "code": "() => 1" })).problem(503);
        assert!(problem.contains("cordon.max_alone"), "{problem}");
        assert_eq!(daemon.run("c", "() => 2")["cordon"], "shared");
        assert_eq!(busy.join().expect("the run is answered")["result"], "done");
    });
    // An idle tenant gives up its process for a tenant that has none.
    assert_eq!(daemon.run("b", "() => 3")["cordon"], "sealed");
    let workers = daemon.get("/v1/workers")["workers"].clone();
    let alone = workers.as_array().expect("a list").iter().filter(|worker| worker["cordon"] != "shared");
    assert!(alone.clone().count() <= 1 && alone.clone().all(|worker| worker["tenants"].as_array().unwrap().len() <= 1));
}

#[test]
fn an_innocent_run_is_not_refused_when_risky_tenants_have_no_room() {
    let daemon = Daemon::start(&format!("{SHARING}[cordon]\nmax_alone = 1\nqueue_secs = 1\n"));
    for tenant in ["a", "innocent", "killer-0", "killer-1", "killer-2"] {
        daemon.run(tenant, "() => 1");
    }
    order(&daemon, "a", "solo");
    lives(&daemon, "a", "solo");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| daemon.run("a", "() => new Promise((r) => setTimeout(() => r('done'), 8000))"));
        daemon.wait_for("/v1/tenants/a", |tenant| tenant["inFlight"] == 1);
        let innocent =
            scope.spawn(|| daemon.run("innocent", "() => new Promise((r) => setTimeout(() => r('done'), 1500))"));
        daemon.wait_for("/v1/tenants/innocent", |tenant| tenant["usage"]["begun"] == 2);
        for killer in 0..3 {
            daemon.load(&format!("killer-{killer}"), &json!({ "code": HARD_KILL, "limits": { "cpuMs": 20 } })).ok();
        }
        assert_eq!(innocent.join().expect("the run is answered")["result"], "done");
        assert!(!events(&daemon, "retried", "innocent").is_empty(), "its retry found room");
        assert_eq!(busy.join().expect("the run is answered")["result"], "done");
    });
}

#[test]
fn an_expelled_tenants_runs_end_also_in_a_home_that_it_is_leaving() {
    let daemon = Daemon::start(SHARING);
    let long = json!({ "code": "() => new Promise((r) => setTimeout(r, 9500))" });
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.load("t", &long));
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["usage"]["begun"] == 1);
        order(&daemon, "t", "solo");
        lives(&daemon, "t", "solo");
        assert!(events(&daemon, "drained", "t").is_empty(), "its run is still in the old home");
        order(&daemon, "t", "expelled");
        assert!(run.join().expect("the run is answered").problem(403).contains("expelled"));
    });
}

/// A configuration with one process, which is soon too old, and no room for another.
const OLD_AND_FULL: &str =
    "[workers]\nshare_without_keys = true\nmax = 1\nmax_age_secs = 2\n[defaults.limits]\nwall_ms = 60000\n";

fn lasting(ms: u32) -> Value {
    json!({ "code": format!("() => new Promise((r) => setTimeout(() => r('done'), {ms}))") })
}

/// Waits until the supervisor has found that the tenant's process is too old and that there is no
/// room for another home.
fn await_no_room(daemon: &Daemon, tenant: &str) {
    daemon.await_event("a move without room", |event| event["event"] == "noRoom" && event["tenant"] == tenant);
}

#[test]
fn a_tenant_that_must_be_further_out_leaves_an_old_process_though_there_is_no_room() {
    let daemon = Daemon::start(&format!("{OLD_AND_FULL}[cordon]\ndrain_secs = 1\nqueue_secs = 1\n"));
    std::thread::scope(|scope| {
        let [goes, stays] = ["goes", "stays"].map(|tenant| {
            let daemon = &daemon;
            scope.spawn(move || daemon.load(tenant, &lasting(20_000)))
        });
        ["goes", "stays"].iter().for_each(|tenant| await_no_room(&daemon, tenant));
        order(&daemon, "goes", "solo");
        // The old home is fenced after a second, and the run cannot begin again without room.
        goes.join().expect("the run is answered").problem(503);
        assert_eq!(events(&daemon, "fenced", "goes").len(), 1);
        assert_eq!(daemon.get("/v1/tenants/stays")["inFlight"], 1, "the neighbour's run goes on");
        order(&daemon, "stays", "expelled");
        stays.join().expect("the run is answered").problem(403);
    });
}

#[test]
fn a_tenant_that_gets_secrets_leaves_an_old_process_though_there_is_no_room() {
    let daemon = Daemon::start(&format!("{OLD_AND_FULL}[cordon]\ndrain_secs = 1\nqueue_secs = 1\n"));
    std::thread::scope(|scope| {
        let [goes, stays] = ["goes", "stays"].map(|tenant| {
            let daemon = &daemon;
            scope.spawn(move || daemon.load(tenant, &lasting(20_000)))
        });
        ["goes", "stays"].iter().for_each(|tenant| await_no_room(&daemon, tenant));
        let policy = json!({ "owner": "acme", "secrets": ["KEY"] }).to_string();
        daemon.request("PUT", "/v1/tenants/goes", policy.as_bytes()).ok();
        goes.join().expect("the run is answered").problem(503);
        assert_eq!(events(&daemon, "fenced", "goes").len(), 1);
        order(&daemon, "stays", "expelled");
        stays.join().expect("the run is answered").problem(403);
    });
}

#[test]
fn a_tenant_is_expelled_from_an_old_process_though_there_is_no_room() {
    let daemon = Daemon::start(&format!("{OLD_AND_FULL}[cordon]\nqueue_secs = 60\n"));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.load("t", &lasting(20_000)));
        await_no_room(&daemon, "t");
        let waits = scope.spawn(|| daemon.load("t", &lasting(1)));
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 2);
        order(&daemon, "t", "expelled");
        for run in [run, waits] {
            assert!(run.join().expect("the run is answered").problem(403).contains("expelled"));
        }
    });
}

#[test]
fn runs_of_a_tenant_whose_process_is_old_wait_for_room_no_longer_than_queue_secs() {
    let daemon = Daemon::start(&format!("{OLD_AND_FULL}[cordon]\nqueue_secs = 1\n"));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.load("t", &lasting(20_000)));
        await_no_room(&daemon, "t");
        assert!(daemon.load("t", &lasting(1)).problem(503).contains("workers.max"));
        assert_eq!(daemon.get("/v1/tenants/t")["inFlight"], 1, "the run in the old process goes on");
        order(&daemon, "t", "expelled");
        run.join().expect("the run is answered").problem(403);
    });
}

#[test]
fn runs_of_a_tenant_whose_process_is_old_wait_for_its_last_run_there() {
    let daemon = Daemon::start(&format!("{OLD_AND_FULL}[cordon]\nqueue_secs = 60\n"));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.load("t", &lasting(8000)).ok());
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["usage"]["begun"] == 1);
        let first = daemon.worker_of("t");
        await_no_room(&daemon, "t");
        assert_eq!(daemon.load("t", &lasting(1)).ok()["result"], "done");
        assert_eq!(run.join().expect("the run is answered")["result"], "done");
        assert!(!is_alive(first), "only one process exists at a time");
    });
    assert!(events(&daemon, "fenced", "t").is_empty());
}

#[test]
fn a_tenants_standing_survives_a_killed_daemon() {
    let daemon = Daemon::start(SHARING);
    daemon.run("t", "() => 1");
    order(&daemon, "t", "sealed");
    order(&daemon, "u", "expelled");
    lives(&daemon, "t", "sealed");
    let written = |daemon: &Daemon| daemon.get("/v1/audit")["seq"].as_u64().is_some_and(|seq| seq >= 4);
    wait_until("the audit log", || written(&daemon));
    let folder = daemon.kill_hard();
    let daemon = Daemon::start_in(folder, SHARING);
    assert_eq!(daemon.run("t", "() => 2")["cordon"], "sealed");
    assert!(daemon.load("u", &json!({ "code": "() => 1" })).problem(403).contains("expelled"));
}

#[test]
fn a_broken_database_is_reported_and_quarantined() {
    let daemon = Daemon::start(SHARING);
    order(&daemon, "t", "sealed");
    let folder = daemon.kill_hard();
    let path = folder.path().join("state/standings.redb");
    let mut bytes = fs::read(&path).expect("the database is there");
    // The header stays intact, so the file is still recognised as a database.
    bytes.iter_mut().skip(64).for_each(|byte| *byte = 0xa5);
    fs::write(&path, &bytes).expect("it is ours");
    let daemon = Daemon::start_in(folder, SHARING);
    let broken: Vec<_> = daemon.events().into_iter().filter(|event| event["event"] == "recordBroken").collect();
    assert!(broken.len() == 1 && broken[0]["what"].as_str().is_some_and(|what| what.contains("standings.redb.broken")));
    let names = fs::read_dir(daemon.folder.path().join("state")).expect("a folder");
    let names: BTreeSet<_> = names.map(|entry| entry.expect("an entry").file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("standings.redb.broken")), "{names:?}");
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
}

#[test]
fn tenants_with_secrets_and_tenants_of_other_trust_live_apart() {
    let daemon = Daemon::start(SHARING);
    for (tenant, policy) in [
        ("plain", json!({})),
        ("other", json!({})),
        ("acme-1", json!({ "owner": "acme", "secrets": ["KEY"] })),
        ("acme-2", json!({ "owner": "acme" })),
        ("known", json!({ "trust": "trusted" })),
    ] {
        daemon.request("PUT", &format!("/v1/tenants/{tenant}"), policy.to_string().as_bytes()).ok();
        assert_eq!(daemon.run(tenant, "() => 1")["cordon"], "shared");
    }
    let home = |tenant: &str| daemon.worker_of(tenant);
    assert_eq!(home("plain"), home("other"));
    assert!(home("acme-1") != home("plain") && home("known") != home("plain") && home("known") != home("acme-1"));
    // `acme-2` has no secrets, so it may live beside `plain`, and beside `acme-1`, which has the
    // same owner.
    assert!([home("plain"), home("acme-1")].contains(&home("acme-2")));
}

#[test]
fn a_tenant_that_gets_secrets_does_not_stay_beside_others() {
    let daemon = Daemon::start(SHARING);
    for tenant in ["plain", "holder"] {
        daemon.run(tenant, "() => 1");
    }
    let shared = daemon.worker_of("plain");
    assert_eq!(daemon.worker_of("holder"), shared);
    let policy = json!({ "owner": "acme", "secrets": ["KEY"] }).to_string();
    daemon.request("PUT", "/v1/tenants/holder", policy.as_bytes()).ok();
    wait_until("that they live apart", || match (daemon.home_of("plain"), daemon.home_of("holder")) {
        (Some(plain), Some(holder)) => plain != holder,
        _ => false,
    });
    assert_eq!(daemon.run("holder", "() => 2")["cordon"], "shared");
}

#[test]
fn a_tenant_with_secrets_is_not_put_beside_others_even_when_there_is_no_room() {
    let daemon = Daemon::start("[workers]\nshare_without_keys = true\nmax = 1\n");
    for tenant in ["plain", "holder"] {
        daemon.run(tenant, "() => 1");
    }
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| daemon.run("plain", "() => new Promise((r) => setTimeout(() => r('done'), 3000))"));
        daemon.wait_for("/v1/tenants/plain", |tenant| tenant["inFlight"] == 1);
        let policy = json!({ "owner": "acme", "secrets": ["KEY"] }).to_string();
        daemon.request("PUT", "/v1/tenants/holder", policy.as_bytes()).ok();
        let refused =
            daemon.load("holder", &json!({ "code": "(_, env) => env.KEY", "env": { "KEY": "x" } })).problem(503);
        assert!(refused.contains("workers.max"), "{refused}");
        assert_eq!(busy.join().expect("the run is answered")["result"], "done");
    });
    daemon.wait_for("/v1/tenants/plain", |tenant| tenant["resident"]["warm"] == true);
    assert_eq!(daemon.run("holder", "() => 'alone now'")["result"], "alone now");
}
