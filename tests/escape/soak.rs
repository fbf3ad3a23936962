//! The whole daemon under attack: eleven tenants work, and a twelfth attacks from the same process
//! without pause.
//!
//! Every attack ends the process, and the attacker lives alone afterwards. So each attack comes
//! from a new tenant. No run of another tenant may fail, every attack must end as a violation, and
//! no violation may be blamed on a tenant that did not attack.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, PATIENCE, SetOnDrop, wait};
use serde_json::{Value, json};

/// The attacks: to read, write, unmap or retag a neighbour's island, whose address follows from
/// that of the attacker's stack; to open every key; to send noise on the attacker's channel.
const ATTACKS: [&str; 6] = [
    "for (const at of near) attack.read(at, 1n)",
    "for (const at of near) attack.write(at, 1n)",
    "for (const at of near) attack.syscall(11n, at, 4096n)",
    "for (const at of near) attack.syscall(329n, at, 4096n, 3n, 0n)",
    "attack.wrpkru(0n); console.log('with every key')",
    "attack.syscall(44n, attack.self()[0], attack.self()[1], 64n, 0x4000n, 0n, 0n)",
];

const NEAR: &str = "const island = 2n ** 41n, mine = attack.self()[1] & ~4095n;
    // The slot before this one was taken earlier, so it has a tenant. 1 TiB after a neighbour's
    // stack is its sandbox, wherever the sandbox begins (`hardening::islands::zone`).
    const near = [-1n, 1n].map((k) => mine + k * island + (1n << 40n)).filter((at) => attack.probe(at) > 0);";

pub(crate) fn run(worker: &Path, seconds: u64) -> Result<String, String> {
    // All of these tenants belong to one uid, whose tenants would be on probation after two
    // attacks.
    let config = format!(
        "[workers]\nprogram = {:?}\n[defaults.quota]\nper_second = 1000000\nburst = 1000000\n\
         [cordon.rules.deaths]\nbudget = 0\n",
        worker.display().to_string()
    );
    let daemon = Daemon::start(&config);
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let names: Vec<_> = (0..11).map(|index| format!("worker-{index}")).collect();
    let (mut attacks, mut neighbours, mut unexpected) = (0_usize, 0, Vec::new());
    let failed = std::thread::scope(|scope| {
        let clients: Vec<_> = names
            .iter()
            .map(|name| {
                let (daemon, over, done) = (&daemon, &over, &done);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        let run =
                            daemon.run(name, "() => { let s = 0; for (let i = 0; i < 1e5; i++) s += i; return s }");
                        if run["outcome"] != "ok" || run["result"] != json!(4_999_950_000_u64) {
                            return Some(run);
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    None
                })
            })
            .collect();
        let guard = SetOnDrop(&over);
        let begun = Instant::now();
        // Each kind of attack runs at least once, however slow the machine is.
        let goes_on = |attacks: usize| begun.elapsed() < Duration::from_secs(seconds) || attacks < ATTACKS.len();
        while goes_on(attacks) && clients.iter().all(|client| !client.is_finished()) {
            let (tenant, kind) = (format!("attacker-{attacks}"), attacks % ATTACKS.len());
            let code = format!("() => {{ {NEAR} {}; return 'went on' }}", ATTACKS[kind]);
            neighbours += gathered(&daemon);
            let run = daemon.load(&tenant, &json!({ "code": code, "props": { "attack": true } })).ok();
            // Attacks run one after another, and an attacker lives alone after its attack. So no
            // attacker loses its worker to another one.
            if run["outcome"] != "violation" {
                unexpected.push(run);
            }
            attacks += 1;
        }
        drop(guard);
        clients.into_iter().filter_map(|client| client.join().expect("a client does not panic")).collect::<Vec<_>>()
    });
    if let Some(run) = failed.first() {
        return Err(format!("a run of a neighbour failed: {run}"));
    }
    if let Some(run) = unexpected.first() {
        return Err(format!("{} of {attacks} attacks did not end as violations: {run}", unexpected.len()));
    }
    // The supervisor puts an attacker into the fullest process.
    if neighbours < 3 * attacks {
        return Err(format!("{neighbours} neighbours in {attacks} attacks: the tenants did not share a process"));
    }
    let found = judge(&daemon.events(), attacks, done.load(Ordering::SeqCst))?;
    Ok(format!("{found}; {} neighbours on average when an attacker came", neighbours / attacks.max(1)))
}

/// How many tenants the fullest process must have before an attack. The attacker joins them there.
const NEIGHBOURS: usize = 6;

/// Waits until enough of the others are in one process again; returns how many.
fn gathered(daemon: &Daemon) -> usize {
    let mut most = 0;
    wait::within(PATIENCE, || {
        most = most_in_one(daemon);
        most >= NEIGHBOURS
    });
    most
}

/// The number of tenants in the fullest process at level `shared`.
fn most_in_one(daemon: &Daemon) -> usize {
    let workers = daemon.get("/v1/workers");
    let shared = workers["workers"].as_array().into_iter().flatten().filter(|worker| worker["cordon"] == "shared");
    shared.filter_map(|worker| worker["tenants"].as_array().map(Vec::len)).max().unwrap_or(0)
}

/// Judges the events: every violation must name an attacker. At least one attack must be reported
/// with its victim and address, at least one by the filter, and at least one by the protocol.
fn judge(events: &[Value], attacks: usize, done: u64) -> Result<String, String> {
    let violations: Vec<_> = events.iter().filter(|event| event["event"] == "violation").collect();
    let complete = |event: &&&Value| {
        event["layer"] == "keys"
            && event["victim"].is_string()
            && event["address"].as_str().is_some_and(|address| address.starts_with("0x"))
            && event["tenant"].as_str().is_some_and(|tenant| tenant.starts_with("attacker-"))
    };
    let named = violations.iter().filter(complete).count();
    let filtered = violations.iter().filter(|event| event["layer"] == "thread-filter").count();
    let wrong =
        violations.iter().find(|event| !event["tenant"].as_str().is_some_and(|tenant| tenant.starts_with("attacker-")));
    let protocol = events.iter().filter(|event| event["event"] == "protocolViolation").count();
    let retried = events.iter().filter(|event| event["event"] == "retried").count();
    match wrong {
        Some(wrong) => Err(format!("an attack was blamed on another tenant: {wrong}")),
        None if named == 0 || filtered == 0 || protocol == 0 => Err(format!(
            "of {attacks} attacks {named} were reported with their victim, {filtered} by the filter, {protocol} by protocol"
        )),
        None => Ok(format!(
            "{attacks} attacks, {done} runs of the others and none failed ({retried} restarted); \
             of the last events {named} name the victim, {filtered} the filter"
        )),
    }
}
