//! Places that are ready before a tenant needs one.

use std::collections::BTreeSet;

use enisle_tests::{Daemon, SHARING, is_alive, wait_until};
use nix::sys::signal::{Signal::SIGKILL, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The workers of that level that are nobody's and have a place that is ready.
fn on_standby(daemon: &Daemon, level: &str) -> BTreeSet<i64> {
    let workers = daemon.get("/v1/workers")["workers"].clone();
    let ready = |worker: &&Value| {
        worker["cordon"] == level && worker["tenants"] == json!([]) && worker["placesReady"].as_u64() > Some(0)
    };
    let workers = workers.as_array().expect("a list").iter().filter(ready);
    workers.map(|worker| worker["pid"].as_i64().expect("a process id")).collect()
}

/// Waits until exactly so many are on standby; returns them.
fn await_standby(daemon: &Daemon, level: &str, count: usize) -> BTreeSet<i64> {
    let mut found = BTreeSet::new();
    wait_until("workers on standby", || {
        found = on_standby(daemon, level);
        found.len() == count
    });
    found
}

#[test]
fn a_new_tenant_gets_a_worker_that_was_there_and_another_takes_its_place() {
    let daemon = Daemon::start("");
    let ready = await_standby(&daemon, "shared", 2);
    let info = daemon.get("/v1/info");
    assert!(info["counts"]["standby"].as_u64() >= Some(2), "{info}");
    assert_eq!(daemon.run("new", "() => 1")["result"], 1);
    assert!(ready.contains(&i64::from(daemon.worker_of("new"))), "{ready:?}");
    let taken = daemon.await_event("the worker is taken", |event| event["event"] == "workerTaken");
    assert_eq!(taken["pid"], daemon.worker_of("new"), "{taken}");
    wait_until("another on standby", || on_standby(&daemon, "shared").difference(&ready).next().is_some());
}

#[test]
fn a_tenant_that_is_moved_gets_a_worker_that_was_there() {
    let daemon = Daemon::start("");
    for level in ["solo", "sealed"] {
        let ready = await_standby(&daemon, level, 1);
        daemon.run("t", "() => 1");
        let order = json!({ "level": level, "reason": "a test" }).to_string();
        daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"]["cordon"] == level);
        assert!(ready.contains(&i64::from(daemon.worker_of("t"))), "{level}: {ready:?}");
    }
}

#[test]
fn a_worker_that_dies_on_standby_is_nobodys_doing_and_is_replaced() {
    let daemon = Daemon::start("");
    let ready = await_standby(&daemon, "shared", 2);
    let victim = i32::try_from(*ready.first().expect("one")).expect("a process id");
    kill(Pid::from_raw(victim), SIGKILL).expect("it is alive");
    wait_until("another on standby", || on_standby(&daemon, "shared").difference(&ready).next().is_some());
    assert!(!is_alive(victim));
    let died = daemon.await_event("the death", |event| event["event"] == "workerDied" && event["pid"] == victim);
    assert_eq!((&died["tenants"], &died["uid"]), (&json!([]), &json!(nix::unistd::geteuid().as_raw())), "{died}");
    assert_eq!(daemon.run("new", "() => 1")["result"], 1);
}

#[test]
fn standby_gives_way_to_tenants() {
    let daemon = Daemon::start("[workers]\nmax = 2\n");
    await_standby(&daemon, "shared", 2);
    std::thread::scope(|scope| {
        let wait = "() => new Promise((r) => setTimeout(() => r(1), 300))";
        let tenants = ["a", "b"].map(|tenant| scope.spawn(|| daemon.run(tenant, wait)));
        for tenant in tenants {
            assert_eq!(tenant.join().expect("it is answered")["result"], 1);
        }
    });
    // A tenant of another kind needs a worker of its own, and there are no more than two.
    let order = json!({ "level": "sealed", "reason": "a test" }).to_string();
    daemon.request("PUT", "/v1/tenants/c/cordon", order.as_bytes()).ok();
    assert_eq!(daemon.run("c", "() => 1")["cordon"], "sealed");
    assert!(daemon.get("/v1/workers")["workers"].as_array().expect("a list").len() <= 2);
}

#[test]
fn a_worker_with_unused_slots_has_one_that_is_ready() {
    let daemon = Daemon::start(SHARING);
    daemon.run("first", "() => 1");
    let of_first = |tenants: usize| {
        let workers = daemon.get("/v1/workers")["workers"].clone();
        let mut workers = workers.as_array().expect("a list").clone().into_iter();
        workers.any(|worker| {
            worker["pid"] == daemon.worker_of("first")
                && worker["placesReady"] == 1
                && worker["placesUsed"] == tenants
                && worker["tenants"].as_array().map(Vec::len) == Some(tenants)
        })
    };
    wait_until("a slot that is ready", || of_first(1));
    daemon.run("second", "() => 1");
    assert_eq!(daemon.worker_of("second"), daemon.worker_of("first"));
    wait_until("the next one", || of_first(2));
}

#[test]
fn without_standby_a_worker_is_started_for_its_tenant() {
    let daemon = Daemon::start("[workers]\nstandby = 0\n");
    assert_eq!(daemon.run("new", "() => 1")["result"], 1);
    assert_eq!(daemon.get("/v1/info")["counts"]["standby"], 0);
    assert!(daemon.events().iter().all(|event| event["event"] != "workerTaken"));
}
