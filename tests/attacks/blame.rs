//! Neighbours in one process: a tenant that fills the memory that they share must not get a
//! neighbour blamed for that.
//!
//! A worker process is bounded as a whole (`RLIMIT_DATA`). The attacker takes memory until the
//! bound is near. Then its neighbour is refused memory and uses the null pointer nevertheless, as
//! ICU does. The tenants' own limits would stop the attacker long before that, so the attacker has
//! natives that bypass those limits (`enisle-worker-attack`). The neighbour has a native that reads
//! at an unmapped address.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::{attack_worker, is_alive};
use serde_json::{Value, json};

use crate::ground::{ATTACKER, Ground, Peer, wait};
use crate::pings::{Pings, answering, probed};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S5 island", title: "fill the bound from an island", run: |options| filled(options, &ISLAND) },
    Case {
        id: "S5 malloc",
        title: "fill the bound with memory that all tenants share",
        run: |options| filled(options, &MALLOC),
    },
    Case { id: "S5 last", title: "fill the bound to the last 64 KiB, where either may crash first", run: last },
    Case { id: "S5 crash", title: "a crash with plenty of room is blamed on its thread", run: crashed },
    Case { id: "S5 names", title: "a process ended with every request, under new names", run: new_names },
    Case { id: "S5 unexplained", title: "memory that no tenant explains", run: unexplained },
    Case { id: "S5 caches", title: "V8's cache filled slowly beside a busy neighbour", run: caches },
];

/// Long enough for any step here.
const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration with a bound of some 2.3 GiB for a worker, whose memory is measured as often as
/// the daemon allows.
/// Nothing is on standby: a thread that is made ready beside the tenants would fail first.
fn config(memory: &str) -> String {
    let worker = attack_worker().display().to_string();
    format!(
        "[workers]\nshare_without_keys = true\nstandby = 0\nmax_memory_mb = 16\nprogram = {worker:?}\n\
         [defaults.limits]\nmemory_mb = 16\ncpu_ms = 20000\nwall_ms = 60000\n\
         [cordon.rules.shape]\nwindow_ms = 100\n[cordon.rules.memory]\n{memory}\n{UNNOTICED}"
    )
}

/// Switches off the signals that would expose a tenant that takes memory quickly. The attack that
/// was found took memory slowly.
const UNNOTICED: &str = "[cordon.rules.signals]\n\
     busy = { points = 0, half_life_secs = 1, most = 0 }\n\
     paging = { points = 0, half_life_secs = 1, most = 0 }\n";

/// The native with which the attacker takes memory.
struct Way {
    take: &'static str,
    /// The smallest piece to take, in bytes. The neighbour's run asks for more than this.
    least: u64,
}

impl Way {
    /// Takes pieces, and halves their size at each refusal, until the bound is near.
    fn code(&self) -> String {
        let Self { take, least } = self;
        format!(
            "() => {{ let step = 2 ** 30; while (step >= {least}) if (!attack.{take}(BigInt(step))) step /= 2; return 1 }}"
        )
    }
}

const ISLAND: Way = Way { take: "hold", least: 16 << 20 };
const MALLOC: Way = Way { take: "leak", least: 16 << 20 };

/// Switches off the comparison of the memory that is held with the memory that is explained. That
/// comparison would move the attacker before there is a crash.
const LATE: &str = "outside_mb = 65536\n";

/// The victim's run. It behaves like a library that allocates memory and does not check the result.
const TRUSTING: &str = "() => { if (attack.leak(50_000_000n)) return 'got it'; return attack.read(8n, 1n) }";
/// The same crash without want of memory.
const STUMBLES: &str = "() => attack.read(8n, 1n)";

fn run(ground: &Ground, tenant: &str, code: &str) -> Value {
    run_as(&ground.root, tenant, code)
}

fn run_as(peer: &Peer, tenant: &str, code: &str) -> Value {
    let body = json!({ "code": code, "props": { "attack": true } }).to_string();
    let answer = peer.ask_within(PATIENCE, "POST", &format!("/v1/tenants/{tenant}/load"), &[body.as_bytes()]);
    answer.map_or(Value::Null, |answer| answer.json())
}

/// The process that both tenants live in.
fn shared(ground: &Ground) -> Result<i32, String> {
    for tenant in ["a", "b"] {
        run(ground, tenant, "() => 1");
    }
    let pid = |tenant: &str| ground.tenant(tenant)["resident"]["pid"].as_i64();
    match (pid("a"), pid("b")) {
        (Some(a), Some(b)) if a == b => i32::try_from(a).map_err(|error| error.to_string()),
        pids => Err(format!("the tenants do not share a process: {pids:?}")),
    }
}

/// A tenant's standing: its score, its cordon level, and whether it is suspected or kept apart.
fn standing(ground: &Ground, tenant: &str) -> Value {
    let cordon = &ground.tenant(tenant)["cordon"];
    let signals: Vec<_> = cordon["signals"].as_array().into_iter().flatten().map(|known| &known["signal"]).collect();
    json!({
        "level": cordon["level"],
        "score": cordon["score"].as_f64().unwrap_or_default().round(),
        "signals": signals,
        "suspected": !cordon["suspectedUntilUnixMs"].is_null(),
        "apart": cordon["keptApart"]["alone"],
    })
}

/// The result of one attack.
struct Outcome {
    before: Value,
    victim: Value,
    attacker: Value,
    served: Value,
    crash: Value,
}

fn attack(way: &Way, memory: &str) -> Result<(Outcome, Pings), String> {
    let ground = Ground::with(&config(memory), None);
    let (outcome, pings) = probed(&ground, || attack_on(&ground, way));
    Ok((outcome?, pings))
}

fn attack_on(ground: &Ground, way: &Way) -> Result<Outcome, String> {
    let pid = shared(ground)?;
    let before = standing(ground, "b");
    let taken = run(ground, "a", &way.code());
    if taken["outcome"] != "ok" || !is_alive(pid) {
        return Err(format!("the attacker could not take the memory: {taken}"));
    }
    // A process that grows fast is measured within one window.
    let looked_at = || {
        let workers = ground.daemon.get("/v1/workers");
        let bytes = |worker: &Value, key: &str| worker[key].as_u64().unwrap_or_default();
        let near = |worker: &Value| bytes(worker, "committedBytes") > bytes(worker, "boundBytes") / 100 * 95;
        workers["workers"].as_array().is_some_and(|workers| workers.iter().any(near))
    };
    if !wait(PATIENCE, looked_at) {
        let workers = ground.daemon.get("/v1/workers");
        return Err(format!(
            "the daemon did not notice that the bound is near: {workers}, {:?}",
            ground.daemon.events()
        ));
    }
    let served = run(ground, "b", TRUSTING);
    let crash = || ground.daemon.events().into_iter().find(|event| event["event"] == "crashed");
    if !wait(PATIENCE, || crash().is_some()) {
        return Err(format!("the victim did not crash: {served}"));
    }
    let crash = crash().unwrap_or_default();
    Ok(Outcome { before, victim: standing(ground, "b"), attacker: standing(ground, "a"), served, crash })
}

fn filled(options: Options, way: &Way) -> Result<String, String> {
    let (Outcome { before, victim, attacker, served, crash }, pings) = attack(way, LATE)?;
    let said = format!("the victim {before}, then {victim} and {}; the attacker {attacker}", served["outcome"]);
    let held = victim == before && served["result"] == "got it" && attacker["apart"] == true;
    if !held || crash["blame"] != "wantOfMemory" || crash["tenant"] != "b" {
        return Err(format!("{said}; {crash}; {served}"));
    }
    let said = pings.beside(options, Ok(said))?;
    let (off, _) = attack(way, &format!("{LATE}near_percent = 0\npressed_percent = 0"))?;
    let blamed = off.victim["suspected"] == true && off.victim["signals"].to_string().contains("crash");
    if !blamed || off.attacker["apart"] == true || off.attacker["level"] != "shared" {
        return Err(format!("{said}; without the rule the victim is {}, the attacker {}", off.victim, off.attacker));
    }
    Ok(format!("{said}; without the rule the victim is {} and the attacker {}", off.victim, off.attacker))
}

/// With no memory left, it is usually the attacker that crashes, while its thread makes its next
/// isolate. The victim may have to live alone for a while, if the process died before the daemon
/// saw which tenant held most.
fn last(options: Options) -> Result<String, String> {
    let mut said = Vec::new();
    for take in ["hold", "leak"] {
        let ground = Ground::with(&config(LATE), None);
        said.push(answering(&ground, options, || last_on(&ground, take))?);
    }
    Ok(said.join("; "))
}

fn last_on(ground: &Ground, take: &'static str) -> Result<String, String> {
    shared(ground)?;
    let unmoved = |mut standing: Value| {
        standing["apart"].take();
        standing
    };
    let before = unmoved(standing(ground, "b"));
    run(ground, "a", &Way { take, least: 64 << 10 }.code());
    let served = run(ground, "b", TRUSTING);
    let crash = ground.daemon.await_event("a crash", |event| event["event"] == "crashed");
    let after = unmoved(standing(ground, "b"));
    let line = format!("{take}: {} of {}, the victim {after}", crash["blame"], crash["tenant"]);
    if served["result"] != "got it" || after != before || crash["blame"] != "wantOfMemory" {
        return Err(format!("{line}, before {before}; {served}; {:?}", ground.daemon.events()));
    }
    Ok(line)
}

/// A crash in a process with plenty of room is not excused as want of memory.
fn crashed(options: Options) -> Result<String, String> {
    let ground = Ground::with(&config(""), None);
    answering(&ground, options, || crashed_on(&ground))
}

fn crashed_on(ground: &Ground) -> Result<String, String> {
    shared(ground)?;
    run(ground, "b", STUMBLES);
    let suspected = wait(PATIENCE, || standing(ground, "b")["suspected"] == true);
    let (b, a) = (standing(ground, "b"), standing(ground, "a"));
    let said = format!("the tenant that crashes {b}, its neighbour {a}");
    let held = suspected && b["level"] == "solo" && a["level"] == "shared" && a["suspected"] == false;
    if held { Ok(said) } else { Err(format!("{said}; {:?}", ground.daemon.events())) }
}

/// How many names the attacking peer uses.
const NAMES: usize = 8;
/// How many runs the neighbour has before the attack under each name.
const RUNS_BETWEEN: usize = 50;
/// The latency that 99 of 100 of the neighbour's runs must not exceed.
const NEIGHBOUR: Duration = Duration::from_millis(50);

/// The damage that a peer did: each of its requests, under another name, ended a process.
struct Spree {
    /// How often a neighbour of the same uid lost its process.
    lost: usize,
    /// The latencies of its runs.
    took: Vec<Duration>,
    /// The cordon level of the neighbour now, and the level at which the last attacker began.
    homes: [Value; 2],
    /// The event `budgetUsedUp` about the peer's uid.
    reported: Value,
    info: Value,
}

fn spree(config_of_deaths: &str) -> Result<(Spree, Pings), String> {
    let ground = Ground::with(&format!("{}[cordon.rules.deaths]\n{config_of_deaths}", config("")), None);
    let (spree, pings) = probed(&ground, || spree_on(&ground));
    Ok((spree?, pings))
}

fn spree_on(ground: &Ground) -> Result<Spree, String> {
    let (other, peer) = (&ground.victim, &ground.attacker);
    run_as(other, "good-1", "() => 1");
    let pid = |tenant: &str| ground.tenant(tenant)["resident"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let others = pid("good-1").ok_or("another uid's tenant lives nowhere")?;
    let (mut lost, mut took, mut began) = (0, Vec::new(), Value::Null);
    for name in 0..NAMES {
        for _ in 0..RUNS_BETWEEN {
            let begun = Instant::now();
            let answer = run_as(peer, "acme-good", "() => 1");
            took.push(begun.elapsed());
            if answer["outcome"] != "ok" {
                return Err(format!("the neighbour's run: {answer}"));
            }
        }
        let home = pid("acme-good").ok_or("the neighbour lives nowhere")?;
        let bad = format!("acme-{name}");
        began = run_as(peer, &bad, "() => 1")["cordon"].clone();
        run_as(peer, &bad, STUMBLES);
        lost += usize::from(!is_alive(home));
    }
    took.sort_unstable();
    if !is_alive(others) {
        return Err("a tenant of another uid lost its process".to_owned());
    }
    let reported = ground.daemon.events().into_iter().find(|event| event["event"] == "budgetUsedUp");
    let info = ground.daemon.get("/v1/info")["deaths"]["heldAgainst"][0].clone();
    let good = run_as(peer, "acme-good", "() => 1")["cordon"].clone();
    Ok(Spree { lost, took, homes: [good, began], reported: reported.unwrap_or_default(), info })
}

/// A peer ends a process with every request, under ever new names. A neighbour of the same uid
/// loses its process as often as the budget allows; without a budget, with every request.
fn new_names(options: Options) -> Result<String, String> {
    let (Spree { lost, took, homes, reported, info }, pings) = spree("budget = 2\n")?;
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    let said = format!(
        "the neighbour lost its process {lost} times of {NAMES}; {} of its runs: p50 {:.1?}, p99 {:.1?}, max {:.1?}; {info}",
        took.len(),
        at(50),
        at(99),
        took.last().copied().unwrap_or_default(),
    );
    let shown =
        info["uid"] == ATTACKER && info["usedUp"] == true && reported["uid"] == ATTACKER && reported["deaths"] == 2;
    if lost != 2 || homes != ["solo", "solo"] || !shown || (options.bench && at(99) > NEIGHBOUR) {
        return Err(format!("{said}; homes {homes:?}; reported {reported}"));
    }
    let said = pings.beside(options, Ok(said))?;
    let (off, _) = spree("budget = 0\n")?;
    if off.lost != NAMES || off.homes[1] != "shared" || !off.reported.is_null() {
        return Err(format!("{said}; without a budget {} times of {NAMES}, homes {:?}", off.lost, off.homes));
    }
    Ok(format!("{said}; without a budget {} times", off.lost))
}

/// A process that holds more memory than its tenants explain is emptied before any tenant is
/// refused memory. The tenant that holds most leaves first, and lives alone.
fn unexplained(options: Options) -> Result<String, String> {
    let leak = "() => attack.leak(300_000_000n)";
    let attempt = |memory: &str, done: &dyn Fn(&Ground) -> bool, patience: Duration| {
        let ground = Ground::with(&config(memory), None);
        let pid = shared(&ground)?;
        let before = standing(&ground, "b");
        let (came, pings) = probed(&ground, || {
            run(&ground, "a", leak);
            wait(patience, || done(&ground))
        });
        let reported = ground.daemon.events().into_iter().find(|event| event["event"] == "unexplainedMemory");
        let homes = ["a", "b"].map(|tenant| run(&ground, tenant, "() => 2")["cordon"].clone());
        Ok::<_, String>((came, reported, homes, before == standing(&ground, "b"), is_alive(pid), pings))
    };
    let gone = |ground: &Ground| {
        let apart = ground.tenant("a")["cordon"]["keptApart"]["alone"] == true;
        let workers = ground.daemon.get("/v1/workers");
        apart
            && !workers["workers"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|worker| worker["tenants"].as_array().is_some_and(|tenants| tenants.len() == 2))
    };
    let (came, reported, homes, same, _, pings) = attempt("outside_mb = 64\noutside_tenant_mb = 16", &gone, PATIENCE)?;
    let said = format!("reported {}; then they live {homes:?}", reported.clone().unwrap_or_default());
    let named = reported.as_ref().is_some_and(|reported| reported["tenant"] == "a");
    if !came || !named || !same || homes != ["solo", "shared"] {
        return Err(said);
    }
    let said = pings.beside(options, Ok(said))?;
    let looked_at = |ground: &Ground| ground.tenant("a")["cordon"]["keptApart"]["alone"] == true;
    let (came, reported, homes, _, alive, _) = attempt("outside_mb = 4096", &looked_at, Duration::from_secs(3))?;
    if came || reported.is_some() || !alive || homes != ["shared", "shared"] {
        return Err(format!("{said}; but under a bound that the process does not reach {reported:?}, {homes:?}"));
    }
    Ok(format!("{said}; under a bound that the process does not reach, nothing happens"))
}

/// A plain script that leaves an entry for each locale in V8's original cache of date patterns. The
/// entries stay in the process.
const FILL: &str = "(from, to, numbers) => {
    const letters = [...'abcdefghijklmnopqrstuvwxyz'], pairs = letters.flatMap((a) => letters.map((b) => a + b));
    const calendars = ['chinese', 'hebrew', 'islamic', 'japanese', 'persian', 'buddhist', 'indian', 'coptic'];
    for (const locale of Intl.DateTimeFormat.supportedLocalesOf(pairs).slice(from, to))
        for (const calendar of calendars)
            new Intl.DateTimeFormat(`${locale}-u-nu-${numbers}-ca-${calendar}`, { dateStyle: 'full' }).format(0);
    return 1 }";
const NUMBERS: [&str; 12] =
    ["arab", "beng", "deva", "thai", "tibt", "mymr", "gujr", "guru", "khmr", "knda", "laoo", "mlym"];

/// The neighbour's run. It fills its heap a little, and so causes more page faults than an
/// attacker's run.
const BUSY: &str = "() => { const a = []; for (let i = 0; i < 30000; i++) a.push({ i }); return a.length }";

/// The page faults of every tenant's thread, by slot, as counted by the kernel.
fn page_faults(pid: i32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        Some((name.strip_prefix("tenant-")?.to_owned(), rest.split_whitespace().nth(7)?.parse().ok()?))
    };
    threads.filter_map(read).collect()
}

/// Tenants that fill caches slowly are found by their accounts. The page faults of the threads
/// would point to the neighbour. The runs here use V8's original cache, because the worker's own
/// cache holds too little to be noticed (S4 locales).
fn caches(_: Options) -> Result<String, String> {
    let worker = attack_worker().display().to_string();
    let config = format!(
        "[workers]\nshare_without_keys = true\nprogram = {worker:?}\n[cordon.rules.memory]\noutside_mb = 64\noutside_tenant_mb = 16\n{UNNOTICED}"
    );
    let ground = Ground::with(&config, None);
    let pid_of = |tenant: &str| ground.tenant(tenant)["resident"]["pid"].as_i64();
    run(&ground, "b", "() => 1");
    let attackers = ["a-1", "a-2"];
    attackers.iter().for_each(|tenant| drop(run(&ground, tenant, "() => 1")));
    let pid = pid_of("b").ok_or("the neighbour lives nowhere")?;
    if attackers.iter().any(|tenant| pid_of(tenant) != Some(pid)) {
        return Err("the tenants do not share a process".to_owned());
    }
    let pid = i32::try_from(pid).map_err(|error| error.to_string())?;
    let before = standing(&ground, "b");
    let reported = || ground.daemon.events().into_iter().find(|event| event["event"] == "unexplainedMemory");
    let (done, mut counts) = (AtomicBool::new(false), BTreeMap::new());
    let served = std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let answer = run(&ground, "b", BUSY);
                if answer["outcome"] != "ok" {
                    return Err(format!("the neighbour's run: {answer}"));
                }
            }
            Ok(())
        });
        let chunks = NUMBERS.iter().flat_map(|numbers| (0..120).step_by(10).map(move |from| (numbers, from)));
        for ((numbers, from), tenant) in chunks.zip(attackers.iter().cycle()) {
            let props = json!({ "attack": true });
            let request = json!({ "code": FILL, "args": [from, from + 10, numbers], "props": props }).to_string();
            let _ = ground.root.ask("POST", &format!("/v1/tenants/{tenant}/load"), request.as_bytes());
            if reported().is_some() {
                break;
            }
            counts = page_faults(pid);
        }
        // The neighbour leaves last, and without blame: the process still holds the memory of the
        // caches.
        let left = wait(PATIENCE, || pid_of("b").is_some_and(|now| now != i64::from(pid)));
        done.store(true, Ordering::Relaxed);
        neighbour.join().map_err(|_| "the neighbour panicked".to_owned())?.map(|()| left)
    })?;
    let events = ground.daemon.events();
    let apart: Vec<_> =
        events.iter().filter(|event| event["event"] == "keptApart").map(|event| &event["tenant"]).collect();
    let first = reported().ok_or_else(|| format!("the daemon did not notice the memory: {counts:?}, {events:?}"))?;
    let after = standing(&ground, "b");
    let said =
        format!("reported {first}; kept apart {apart:?}; the neighbour {before}, then {after}; page faults {counts:?}");
    let busiest = counts.iter().max_by_key(|(_, faults)| **faults).map(|(slot, _)| slot.as_str());
    let attacker = |tenant: &Value| attackers.iter().any(|name| tenant == name);
    if !served
        || busiest != Some("0")
        || !attacker(&first["tenant"])
        || !apart.iter().all(|tenant| attacker(tenant))
        || after != before
    {
        return Err(said);
    }
    Ok(said)
}
