//! Cordons end to end, against tenants with native code: a tenant that probes is moved further out
//! each time, and a tenant whose neighbour makes it crash comes back into company.

use std::path::Path;
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, PATIENCE, wait};
use serde_json::{Value, json};

/// Suspicions last one second here, so that the test can observe their end. The budget of deaths is
/// switched off, because it would put the uid's tenants on probation.
fn config(worker: &Path) -> String {
    let worker = worker.display().to_string();
    format!(
        "[workers]\nprogram = {worker:?}\n[cordon.rules]\nsuspicion_secs = 1\nunexplained_secs = 1\n\
         [cordon.rules.deaths]\nbudget = 0\n"
    )
}

fn attack(daemon: &Daemon, tenant: &str, code: &str) -> Value {
    daemon.load(tenant, &json!({ "code": code, "props": { "attack": true } })).ok()
}

fn tenant(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/tenants/{name}"))
}

/// Waits until the tenant `name` has a home at `level`, or is expelled if that is the level.
/// Returns the time since `begun`.
fn until(daemon: &Daemon, name: &str, level: &str, begun: Instant) -> Duration {
    daemon.wait_for(&format!("/v1/tenants/{name}"), |tenant| {
        tenant["cordon"]["level"] == level && (level == "expelled" || tenant["resident"]["cordon"] == level)
    });
    begun.elapsed()
}

const SYSTEM_CALL: &str = "() => { attack.syscall(57n); return 'went on' }";
const ANOTHER_CAGE: &str = "() => { const mine = attack.self()[1] & ~4095n;
    for (const k of [-1n, 1n]) { const at = mine + k * 2n ** 41n + (1n << 40n); if (attack.probe(at) > 0) attack.read(at, 1n) }
    attack.syscall(57n); return 'went on' }";

/// A tenant that probes lives alone after the first time, is sealed after the second, and is
/// expelled after the third.
pub(crate) fn probes(worker: &Path) -> Result<String, String> {
    let mut slowest = Duration::ZERO;
    for code in [SYSTEM_CALL, ANOTHER_CAGE] {
        let daemon = Daemon::start(&config(worker));
        for name in ["neighbour", "prober"] {
            daemon.run(name, "() => 1");
        }
        if daemon.worker_of("neighbour") != daemon.worker_of("prober") {
            return Err("the tenants did not share a process".to_owned());
        }
        for level in ["solo", "sealed", "expelled"] {
            let begun = Instant::now();
            let run = attack(&daemon, "prober", code);
            if run["outcome"] != "violation" {
                return Err(format!("on its way to {level}: {run}"));
            }
            slowest = slowest.max(until(&daemon, "prober", level, begun));
        }
        let refused = daemon.load("prober", &json!({ "code": "() => 1" })).problem(403);
        if !refused.contains("--lift") {
            return Err(refused);
        }
        let neighbour = tenant(&daemon, "neighbour");
        let score = neighbour["cordon"]["score"].as_f64().unwrap_or(f64::MAX);
        if neighbour["cordon"]["level"] != "shared" || score >= 30.0 {
            return Err(format!("the neighbour was moved too: {neighbour}"));
        }
    }
    Ok(format!("solo, sealed, expelled; from the attack to a new home at most {} ms", slowest.as_millis()))
}

/// Overwrites the stacks of the caller's neighbours, which makes their next runs crash. Between two
/// tenants' slots there may be one that is on standby: then the next tenant to take it crashes.
const PUSH: &str = "() => { let written = 0; const mine = attack.self()[1] & ~4095n;
    for (const k of [-2n, -1n, 1n, 2n]) for (let at = mine + k * 2n ** 41n; attack.probe(at) === -1; at++) { attack.write(at, 0x41n); written++ }
    return written }";

/// An attacker makes its neighbour's thread crash, again and again. The neighbour's score must stay
/// below the threshold for `solo`. When the suspicion ends, the neighbour must be in company again.
pub(crate) fn pushes(worker: &Path) -> Result<String, String> {
    let daemon = Daemon::start(&config(worker));
    let (mut most, mut stumbles) = (0.0_f64, 0);
    for round in 0..3 {
        let pusher = format!("pusher-{round}");
        let pushed = wait::within(PATIENCE, || {
            for name in ["neighbour", &pusher] {
                daemon.run(name, "() => 1");
            }
            let together = daemon.home_of("neighbour").is_some_and(|home| daemon.home_of(&pusher) == Some(home));
            together && attack(&daemon, &pusher, PUSH)["result"].as_u64().is_some_and(|written| written > 0)
        });
        if !pushed {
            return Err(format!("round {round}: nothing was overwritten: {}", tenant(&daemon, &pusher)));
        }
        let run = daemon.run("neighbour", "() => 'still here'");
        if run["result"] != "still here" {
            return Err(format!("the neighbour's run failed: {run}"));
        }
        let cordon = &tenant(&daemon, "neighbour")["cordon"];
        let doubtful = |known: &Value| known["certain"] == false || known["signal"] == "unattributed";
        stumbles += usize::from(cordon["signals"].as_array().is_some_and(|signals| signals.iter().any(doubtful)));
        most = most.max(cordon["score"].as_f64().unwrap_or(f64::MAX));
    }
    let back = wait::within(PATIENCE, || {
        daemon.run("neighbour", "() => 1");
        tenant(&daemon, "neighbour")["resident"]["cordon"] == "shared"
    });
    match (stumbles, most < 60.0, back) {
        (0, ..) => Err("the neighbour never crashed, so nothing was tried".to_owned()),
        (_, false, _) => Err(format!("the neighbour's score reached {most}")),
        (.., false) => Err(format!("the neighbour is not in company again: {}", tenant(&daemon, "neighbour"))),
        _ => Ok(format!("on record in {stumbles} of 3 rounds; its score reached {most}, and it is back in company")),
    }
}
