//! Signals: what counts against a tenant, how much, and that its neighbours stay where they are.

use std::sync::atomic::{AtomicBool, Ordering};

use enisle_tests::{Daemon, SHARING, SetOnDrop, wait_until};
use serde_json::json;

use crate::cordon::{HARD_KILL, SPIN, cordon_of, lives, order};

#[test]
fn a_spinner_is_alone_after_some_seconds_and_its_score_says_why() {
    let daemon = Daemon::start(SHARING);
    daemon.run("neighbour", "() => 1");
    daemon.run("t", "() => 1");
    let shared = daemon.worker_of("t");
    // A run counts against its tenant while it goes on, so one run is enough.
    let spin = json!({ "code": SPIN, "limits": { "cpuMs": 60000, "wallMs": 60000 } });
    let policy = json!({ "limits": { "cpuMs": 60000, "wallMs": 60000 } }).to_string();
    daemon.request("PUT", "/v1/tenants/t", policy.as_bytes()).ok();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.load("t", &spin));
        let cordon = daemon.wait_for("/v1/tenants/t", |tenant| tenant["cordon"]["level"] == "solo")["cordon"].clone();
        let busy = cordon["signals"].as_array().expect("a list").iter().find(|known| known["signal"] == "busy");
        let busy = busy.unwrap_or_else(|| panic!("{cordon}"));
        assert_eq!((&busy["source"], &busy["certain"]), (&json!("kernel"), &json!(true)));
        lives(&daemon, "t", "solo");
        order(&daemon, "t", "expelled");
        run.join().expect("the run is answered").problem(403);
    });
    assert_eq!(daemon.worker_of("neighbour"), shared, "the neighbour has not moved");
    assert!(cordon_of(&daemon, "neighbour")["score"].as_f64().is_some_and(|score| score < 30.0));
}

#[test]
fn a_memory_bomb_is_alone_after_some_seconds() {
    let daemon = Daemon::start(SHARING);
    daemon.run("neighbour", "() => 1");
    daemon.run("t", "() => 1");
    let bomb = "() => { const a = []; for (let i = 0; ; i++) a.push({ i, s: 'x' + i }) }";
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let run = daemon.load("t", &json!({ "code": bomb, "limits": { "memoryMb": 64 } })).ok();
                assert!(run["outcome"].as_str().is_some_and(|outcome| outcome.starts_with("exceeded")), "{run}");
            }
        });
        let _guard = SetOnDrop(&done);
        lives(&daemon, "t", "solo");
    });
    assert_eq!(cordon_of(&daemon, "neighbour")["level"], "shared");
}

#[test]
fn a_tenant_that_ends_its_worker_is_suspected_in_company_and_judged_alone() {
    let daemon = Daemon::start(SHARING);
    daemon.run("neighbour", "() => 1");
    daemon.run("t", "() => 1");
    let hard_kill = json!({ "code": HARD_KILL, "limits": { "cpuMs": 20 } });
    assert_eq!(daemon.load("t", &hard_kill).ok()["outcome"], "exceededCpu");
    let cordon = cordon_of(&daemon, "t");
    assert_eq!((&cordon["level"], &cordon["signals"][0]["certain"]), (&json!("solo"), &json!(false)), "{cordon}");
    assert!(cordon["score"].as_f64().is_some_and(|score| score < 60.0) && cordon["suspectedUntilUnixMs"].is_u64());
    for _ in 0..2 {
        assert_eq!(daemon.load("t", &hard_kill).ok()["cordon"], "solo");
    }
    let cordon = cordon_of(&daemon, "t");
    assert!(cordon["score"].as_f64().is_some_and(|score| (60.0..90.0).contains(&score)), "{cordon}");
    assert_eq!(cordon["level"], "solo", "a nuisance is never sealed");
    assert_eq!(daemon.run("neighbour", "() => 2")["cordon"], "shared");
}

#[test]
fn what_a_worker_reports_counts_a_little_and_moves_no_tenant() {
    let daemon = Daemon::start(SHARING);
    for _ in 0..20 {
        daemon.run("t", "() => import('node:fs')");
        daemon.run("t", "() => eval('1')");
    }
    let cordon = cordon_of(&daemon, "t");
    let signals: Vec<_> =
        cordon["signals"].as_array().expect("a list").iter().map(|known| known["signal"].clone()).collect();
    assert!(signals.contains(&json!("deniedImport")) && signals.contains(&json!("deniedCode")), "{cordon}");
    assert!(cordon["score"].as_f64().is_some_and(|score| score > 10.0 && score < 30.0), "{cordon}");
    assert_eq!(cordon["level"], "shared");
}

#[test]
fn memory_that_no_limit_explains_is_noticed_while_a_run_goes_on() {
    let rules = "[cordon.rules.shape]\nresident_times = 0.1\nresident_spare_mb = 16\n";
    let daemon = Daemon::start(&format!("{SHARING}{rules}"));
    let holds = "() => { const a = new Uint8Array(6e7).fill(1); return new Promise((r) => setTimeout(() => r(a.length), 8000)) }";
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", holds));
        scope.spawn(|| daemon.run("modest", "() => new Promise((r) => setTimeout(r, 8000))"));
        daemon.wait_for("/v1/tenants/t", |tenant| {
            let signals = tenant["cordon"]["signals"].as_array();
            signals.is_some_and(|signals| signals.iter().any(|known| known["signal"] == "resident"))
        });
        let modest = cordon_of(&daemon, "modest").to_string();
        assert!(!modest.contains("resident"), "{modest}");
        assert_eq!(run.join().expect("the run is answered")["result"], 60_000_000);
    });
}

#[test]
fn messages_at_regular_times_and_floods_of_messages_are_noticed() {
    let daemon = Daemon::start(SHARING);
    let signals = |tenant: &str| cordon_of(&daemon, tenant)["signals"].to_string();
    let ticks =
        "async () => { for (let i = 0; i < 900; i++) { console.log(i); await new Promise((r) => setTimeout(r, 5)) } }";
    let floods = "async () => { for (let i = 0; i < 100; i++) { console.log('x'.repeat(7e4)); await new Promise((r) => setTimeout(r, 5)) } }";
    let limits = json!({ "logLines": 1000, "logBytes": 8 << 20 });
    let policy = json!({ "limits": limits }).to_string();
    for tenant in ["ticks", "floods"] {
        daemon.request("PUT", &format!("/v1/tenants/{tenant}"), policy.as_bytes()).ok();
    }
    // Other tests use the processors too, and a delayed message breaks the rhythm. So the script
    // runs as often as necessary.
    wait_until("the rhythm to be seen", || {
        daemon.load("ticks", &json!({ "code": ticks, "limits": limits })).ok();
        signals("ticks").contains("remoteTiming")
    });
    wait_until("the flood to be seen", || {
        daemon.load("floods", &json!({ "code": floods, "limits": limits })).ok();
        signals("floods").contains("logFlood")
    });
}

#[test]
fn a_request_for_a_network_is_denied_and_counted() {
    let daemon = Daemon::start(SHARING);
    let problem = daemon.load("t", &json!({ "code": "() => 1", "globalOutbound": {} })).problem(400);
    assert!(problem.contains("no network"), "{problem}");
    assert!(cordon_of(&daemon, "t")["signals"].to_string().contains("deniedEgress"));
}

#[test]
fn an_outdated_engine_counts_against_tenants_that_are_not_trusted() {
    let signals = |daemon: &Daemon, tenant: &str| {
        daemon.run(tenant, "() => 1");
        cordon_of(daemon, tenant)["signals"].to_string()
    };
    let daemon = Daemon::start(&format!("{SHARING}[cordon]\nv8_at_least = \"999.1\"\n"));
    daemon.request("PUT", "/v1/tenants/known", br#"{"trust": "trusted"}"#).ok();
    daemon.request("PUT", "/v1/tenants/unknown", br#"{"trust": "untrusted"}"#).ok();
    assert!(signals(&daemon, "t").contains("outdatedEngine"));
    assert!(!signals(&daemon, "known").contains("outdatedEngine"));
    let unknown = signals(&daemon, "unknown");
    assert!(unknown.contains("untrusted") && unknown.contains("new"), "{unknown}");
    assert_eq!(cordon_of(&daemon, "unknown")["level"], "shared", "a tenant's traits by themselves never move it");
    let daemon = Daemon::start(&format!("{SHARING}[cordon]\nv8_at_least = \"1.0\"\n"));
    assert!(!signals(&daemon, "t").contains("outdatedEngine"));
}
