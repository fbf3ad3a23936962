//! Events and logs: an attacker must not be able to wash away the evidence of its attack.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::{SHARING, programs};
use serde_json::{Value, json};

use crate::ground::{Ground, Peer, folder, leashed, wait};
use crate::pings::probed;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S9 denied", title: "denials, to wash away evidence", run: denied },
    Case { id: "S9 ended", title: "runs that end badly, to wash away evidence", run: ended },
    Case { id: "S9 networks", title: "requests for a network by many tenants, to wash away evidence", run: networks },
    Case { id: "S9 orders", title: "an operator's orders, to wash away evidence", run: orders },
    Case { id: "S9 policies", title: "an operator's policies, to wash away evidence", run: policies },
    Case {
        id: "S9 turned",
        title: "an operator that fills the audit log until its oldest files are deleted",
        run: turned,
    },
    Case { id: "S12 restarted", title: "an operator's policies across restarts", run: restarted },
    Case {
        id: "S9 killed",
        title: "a peer that ends its own workers, to wash away another peer's evidence",
        run: killed,
    },
    Case { id: "S6 events", title: "a peer's events against another peer's", run: events },
    Case { id: "S9 counted", title: "denials are merged into few events, and all are counted", run: counted },
    Case { id: "S13 pipe", title: "a standard error that no process reads", run: pipe },
];

/// A peer that may give orders and set policies. It is one operator of several, and must not be
/// able to wash anything away.
const OPERATOR: u32 = 5009;
const OPERATOR_RULE: &str = "[[peers]]\nuid = 5009\ntenants = [\"ops-*\"]\noperate = true\n";

fn operator(ground: &Ground) -> Peer {
    Peer::call(ground.daemon.folder.path(), OPERATOR, "connect", &ground.daemon.socket())
}

/// An operation that V8 does not interrupt, so the supervisor ends its process.
const UNENDING: &str = r#"{"code":"()=>Array.prototype.indexOf.call({length:2**53-1},1)","limits":{"cpuMs":5}}"#;

/// The evidence left during a flood: root's orders, each with the move that follows; policies; and
/// moves that the daemon makes because the victim's runs end processes.
const ORDERS: usize = 20;
const POLICIES: usize = 1200;
const KILLS: usize = 3;

/// Floods the daemon before the first piece of evidence is left, and until the last one is. All the
/// evidence must then be where operators look: in the audit log, whose chain must be whole. The
/// moves that follow from root's orders must also be among the listed events and in the daemon's
/// own log.
fn wash(options: Options, config: &str, flood: impl Fn(&Ground) -> usize + Sync) -> Result<String, String> {
    let ground = Ground::start(config);
    let done = AtomicBool::new(false);
    let ((flooded, left), pings) = probed(&ground, || {
        // The first flood uses up the log's budget.
        let first = flood(&ground);
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| {
                let mut flooded = first;
                while !done.load(Ordering::Relaxed) {
                    flooded += flood(&ground);
                }
                flooded
            });
            let left = leave(&ground);
            done.store(true, Ordering::Relaxed);
            (flooding.join().unwrap_or(0), left)
        })
    });
    left?;
    let missing = || missing(&read_audit(&ground));
    wait(Duration::from_secs(10), || missing().is_empty());
    let (mut lost, log, events) = (missing(), ground.daemon.log(), ground.daemon.events());
    let listed =
        |event: &str, tenant: &str| events.iter().any(|listed| listed["event"] == event && listed["tenant"] == tenant);
    for n in 0..ORDERS {
        let tenant = format!("victim-x{n}");
        for (place, there) in [("the events", listed("cordoned", &tenant)), ("the log", log.contains(&tenant))] {
            if !there {
                lost.push(format!("cordoned {tenant} from {place}"));
            }
        }
    }
    let never_kept =
        ground.root.ask("GET", "/v1/audit", b"").map_or(Value::Null, |answer| answer.json())["lost"].clone();
    if never_kept != 0 {
        lost.push(format!("{never_kept} lines, as reported by the daemon itself"));
    }
    let mut verify = Command::new(programs().join("enisle"));
    let verified = verify.args(["audit", "verify"]).env("ENISLE_SOCKET", ground.daemon.socket()).output();
    let verified = verified.map_err(|error| error.to_string())?;
    if !verified.status.success() {
        lost.push(format!("the chain: {}", String::from_utf8_lossy(&verified.stderr)));
    }
    let said = format!(
        "a flood of {flooded} against {} pieces of evidence; {} events kept",
        2 * ORDERS + POLICIES + KILLS,
        events.len()
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if flooded == 0 {
        return Err("no flood".to_owned());
    }
    let count = lost.len();
    lost.truncate(5);
    if count == 0 { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {count} lost: {}", lost.join(", "))) }
}

/// Leaves the evidence that the flood is to wash away.
fn leave(ground: &Ground) -> Result<(), String> {
    for n in 0..ORDERS {
        let order = format!(r#"{{"level":"sealed","reason":"EVIDENCE {n}"}}"#);
        ground.root.answered("PUT", &format!("/v1/tenants/victim-x{n}/cordon"), order.as_bytes())?;
    }
    let paths: Vec<_> = (0..POLICIES).map(|n| format!("/v1/tenants/victim-y{n}")).collect();
    let set = ground.root.flood(8, "PUT", &paths, br#"{"owner":"EVIDENT"}"#, 200);
    for n in 0..KILLS {
        let path = format!("/v1/tenants/good-z{n}/load");
        let run = ground.victim.ask("POST", &path, UNENDING.as_bytes()).map_err(|error| error.to_string())?;
        if run.status != 200 {
            return Err(format!("a run of the victim's ended with {}", run.status));
        }
    }
    if set == POLICIES { Ok(()) } else { Err(format!("{set} of {POLICIES} policies were set")) }
}

/// The evidence that is not in the audit log.
fn missing(audit: &str) -> Vec<String> {
    let lines = audit.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: BTreeSet<_> = lines
        .filter_map(|line| {
            let entry = &line["entry"];
            // The owner that a policy sets; nothing for other lines.
            let owner = entry["policy"]["owner"].as_str().unwrap_or_default();
            Some(format!("{} {} {owner}", entry["decision"].as_str()?, entry["tenant"].as_str()?))
        })
        .collect();
    let orders = (0..ORDERS).flat_map(|n| ["ordered", "moved"].map(|decision| format!("{decision} victim-x{n} ")));
    let policies = (0..POLICIES).map(|n| format!("policyChanged victim-y{n} EVIDENT"));
    let kills = (0..KILLS).map(|n| format!("moved good-z{n} "));
    orders.chain(policies).chain(kills).filter(|line| !lines.contains(line)).collect()
}

/// The text of the audit log.
fn read_audit(ground: &Ground) -> String {
    let files = fs::read_dir(ground.daemon.folder.path().join("state/audit")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect()
}

fn denied(options: Options) -> Result<String, String> {
    wash(options, "", |ground| {
        let paths = vec!["/v1/workers".to_owned(); 10_000];
        ground.stranger.flood(3, "GET", &paths, b"", 403)
    })
}

fn ended(options: Options) -> Result<String, String> {
    wash(options, "", |ground| {
        let body = json!({ "code": "()=>{for(;;);}", "limits": { "cpuMs": 1 } }).to_string();
        let paths: Vec<_> = (0..1200).map(|n| format!("/v1/tenants/acme-{}/load", n % 4)).collect();
        ground.attacker.flood(4, "POST", &paths, body.as_bytes(), 200)
    })
}

fn networks(options: Options) -> Result<String, String> {
    // Each request asks for a network. It is answered with 400, and raises its tenant's score. The
    // tenant gets no home, so no event `admitted` follows.
    let next = AtomicUsize::new(0);
    wash(options, "", |ground| {
        let body = br#"{"code":"1","globalOutbound":"x"}"#;
        let begin = next.fetch_add(400, Ordering::Relaxed);
        let paths: Vec<_> =
            (begin..begin + 400).flat_map(|n| std::iter::repeat_n(format!("/v1/tenants/acme-{n}/load"), 30)).collect();
        ground.attacker.flood(4, "POST", &paths, body, 400)
    })
}

/// Orders with the longest reasons. Each causes two lines of the audit log.
fn orders(options: Options) -> Result<String, String> {
    let reason = "x".repeat(1000);
    let bodies = ["solo", "sealed"].map(|level| json!({ "level": level, "reason": reason }).to_string());
    wash(options, OPERATOR_RULE, |ground| {
        let operator = operator(ground);
        let paths: Vec<_> = (0..1000).map(|n| format!("/v1/tenants/ops-{}/cordon", n % 8)).collect();
        bodies.iter().map(|body| operator.flood(8, "PUT", &paths, body.as_bytes(), 200)).sum()
    })
}

/// Policies of different tenants: each is a separate piece of evidence.
fn policies(options: Options) -> Result<String, String> {
    wash(options, OPERATOR_RULE, |ground| {
        let paths: Vec<_> = (0..2000).map(|n| format!("/v1/tenants/ops-{n}")).collect();
        operator(ground).flood(8, "PUT", &paths, br#"{"owner":"o"}"#, 200)
    })
}

/// A full log loses its oldest files. An operator's share of the log is used up before the log is
/// full. Root can fill the log, because no share bounds root.
fn turned(_: Options) -> Result<String, String> {
    const FILLS: usize = 1500;
    let config = format!("[audit]\nkeep_mb = 16\n{OPERATOR_RULE}");
    let secrets: Vec<_> = (0..100).map(|n| format!("{n:0>128}")).collect();
    let policy = json!({ "secrets": secrets }).to_string();
    let attempt = |peer: fn(&Ground) -> Peer| {
        let ground = Ground::start(&config);
        let order = br#"{"level":"sealed","reason":"EVIDENCE"}"#;
        ground.root.answered("PUT", "/v1/tenants/victim-x/cordon", order)?;
        let peer = peer(&ground);
        let set = |_: &usize| peer.answered("PUT", "/v1/tenants/ops-1", policy.as_bytes()).is_ok();
        let filled = (0..FILLS).filter(set).count();
        Ok::<_, String>((filled, read_audit(&ground).contains("victim-x")))
    };
    let (filled, there) = attempt(operator)?;
    let said = format!("an operator set {filled} of {FILLS} large policies");
    if !there || filled == 0 {
        return Err(format!("{said}, and the evidence is {}", if there { "there" } else { "gone" }));
    }
    match attempt(|ground| Peer::call(ground.daemon.folder.path(), 0, "connect", &ground.daemon.socket()))? {
        (FILLS, false) => Ok(format!("{said}; root set all, and the log lost the evidence")),
        (filled, there) => {
            Err(format!("{said}, but root set {filled}, and the evidence was there: {there}; no attack"))
        }
    }
}

/// The names in policies occupy the daemon's memory. An operator that has used up its share can set
/// no more policies after a restart. It could if the daemon forgot at the restart who had set them.
fn restarted(_: Options) -> Result<String, String> {
    const MORE: usize = 20;
    let config = format!("[api]\nscript_mb = 1\n{OPERATOR_RULE}");
    let secrets: Vec<_> = (0..100).map(|n| format!("{n:0>128}")).collect();
    let policy = json!({ "secrets": secrets }).to_string();
    let set = |peer: &Peer, numbers: std::ops::Range<usize>| {
        let status = |n: usize| {
            let path = format!("/v1/tenants/ops-{n}");
            peer.ask("PUT", &path, policy.as_bytes()).map_or(0, |answer| answer.status)
        };
        numbers.map(status).filter(|status| *status == 200).count()
    };
    let ground = Ground::start(&config);
    let before = set(&operator(&ground), 0..100);
    let Ground { daemon, .. } = ground;
    let place = daemon.kill_hard();
    let process = leashed(place.path(), &place.path().join("s"), 0o022).spawn().map_err(|error| error.to_string())?;
    let ground = Ground::around(process, place);
    let after = set(&operator(&ground), 100..100 + MORE);
    let roots = ground.root.ask("PUT", "/v1/tenants/ops-r", policy.as_bytes()).map_or(0, |answer| answer.status);
    let said = format!(
        "{before} of 100 policies were set, {after} of {MORE} more after a restart; root's next one was answered {roots}"
    );
    if (1..100).contains(&before) && after == 0 && roots == 200 { Ok(said) } else { Err(said) }
}

/// Events of class *evidence* that a peer causes at will: its runs end processes. Another peer's
/// evidence must nevertheless be where operators look.
fn killed(options: Options) -> Result<String, String> {
    let rounds = if options.slow { 40 } else { 2 };
    let ground = Ground::start("");
    let ((before, victim, after), pings) = probed(&ground, || {
        let flood = |round: usize| {
            let paths: Vec<_> = (0..10).map(|n| format!("/v1/tenants/acme-{round}-{n}/load")).collect();
            ground.attacker.flood(4, "POST", &paths, UNENDING.as_bytes(), 200)
        };
        let before = (0..rounds).map(flood).sum::<usize>();
        let victim = ground.victim.ask("POST", "/v1/tenants/good-killed/load", UNENDING.as_bytes());
        let victim = victim.is_ok_and(|answer| answer.status == 200);
        let after = (rounds..2 * rounds).map(flood).sum::<usize>();
        (before, victim, after)
    });
    let of = |tenant: &str, events: &[serde_json::Value]| {
        let is = |event: &&serde_json::Value| {
            event["event"] == "cordoned" && event["tenant"].as_str().is_some_and(|listed| listed.starts_with(tenant))
        };
        events.iter().filter(is).count()
    };
    wait(Duration::from_secs(3), || of("good-killed", &ground.daemon.events()) > 0);
    let (events, log) = (ground.daemon.events(), ground.daemon.log());
    wait(Duration::from_secs(2), || read_audit(&ground).contains("good-killed"));
    let audit = read_audit(&ground);
    let in_log = log.lines().any(|line| line.contains("cordoned") && line.contains("good-killed"));
    let (own, attackers) = (of("good-killed", &events), of("acme-", &events));
    let said = format!(
        "{before} runs of the attacker's were answered, then the victim's ({victim}), then {after} more; {attackers} of \
         the attacker's events; of the victim's: events {own}, log {in_log}, audit log {}",
        audit.contains("good-killed")
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let held = own > 0 && in_log && audit.contains("good-killed") && attackers >= 10;
    if held { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// In every second a peer causes as many different events as it can. Another peer's events are
/// listed nevertheless. Without shares they are among the surplus that is only counted.
fn events(options: Options) -> Result<String, String> {
    const RUNS: u64 = 8;
    /// Not a divisor of a second, so that the runs fall at different moments of it.
    const PAUSE: Duration = Duration::from_millis(730);
    let body = br#"{"code":"()=>{for(;;);}","limits":{"cpuMs":1}}"#;
    let attempt = |share| {
        let ground = Ground::with(SHARING, share);
        let done = AtomicBool::new(false);
        let events = || ground.daemon.events();
        let listed = || {
            let events = events();
            let own = events.iter().filter(|event| event["event"] == "runEnded" && event["tenant"] == "good-1");
            own.map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
        };
        let (result, pings) = probed(&ground, || {
            std::thread::scope(|scope| {
                let flood = scope.spawn(|| {
                    let paths: Vec<_> = (0..200).map(|n| format!("/v1/tenants/acme-{n}/load")).collect();
                    let mut ended = 0;
                    while !done.load(Ordering::Relaxed) {
                        ended += ground.attacker.flood(4, "POST", &paths, body, 200);
                    }
                    ended
                });
                wait(Duration::from_secs(20), || events().iter().any(|event| event["event"] == "others"));
                for _ in 0..RUNS {
                    std::thread::sleep(PAUSE);
                    let _ = ground.victim.ask("POST", "/v1/tenants/good-1/load", body);
                }
                wait(Duration::from_secs(3), || listed() >= RUNS);
                done.store(true, Ordering::Relaxed);
                (listed(), flood.join().unwrap_or(0))
            })
        });
        (result, pings)
    };
    let ((listed, flooded), pings) = attempt(None);
    let said = format!("{listed} of {RUNS} listed beside {flooded} of the attacker's");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if listed < RUNS {
        return Err(said);
    }
    match attempt(Some(100)) {
        ((listed, _), _) if listed < RUNS => Ok(format!("{said}; with all places for the attacker, {listed}; {pings}")),
        _ => Err(format!("{said}, but all were listed even when the attacker had all places: no attack")),
    }
}

/// Frequent events are not lost: they are listed with their count.
fn counted(_: Options) -> Result<String, String> {
    const DENIALS: usize = 5000;
    let ground = Ground::start("");
    let paths = vec!["/v1/workers".to_owned(); DENIALS];
    ground.stranger.flood(3, "GET", &paths, b"", 403);
    let total = || {
        let events = ground.daemon.events();
        let denied = events.iter().filter(|event| event["event"] == "denied");
        denied.map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    let all = wait(Duration::from_secs(5), || total() >= DENIALS as u64);
    let events = ground.daemon.events().iter().filter(|event| event["event"] == "denied").count();
    let said = format!("{} of {DENIALS} denials counted, in {events} events", total());
    if all && events < 100 { Ok(said) } else { Err(said) }
}

fn pipe(options: Options) -> Result<String, String> {
    let place = folder();
    fs::write(place.path().join("enisled.toml"), SHARING).map_err(|error| error.to_string())?;
    let mut command = leashed(place.path(), &place.path().join("s"), 0o022);
    let mut process = command.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let unread = process.stderr.take().ok_or("no pipe")?;
    // One page fills sooner than the 16 pages of a default pipe.
    nix::fcntl::fcntl(&unread, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).map_err(|error| error.to_string())?;
    let ground = Ground::around(process, place);
    let done = AtomicBool::new(false);
    let order = json!({ "level": "solo", "reason": "x".repeat(900) }).to_string();
    let orders = |round: usize| {
        let paths: Vec<_> = (0..400).map(|n| format!("/v1/tenants/t{round}-{n}/cordon")).collect();
        ground.root.flood(8, "PUT", &paths, order.as_bytes(), 200)
    };
    let ((denials, given), pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                let paths = vec!["/v1/workers".to_owned(); 50];
                while !done.load(Ordering::Relaxed) {
                    let got = ground.stranger.flood(1, "GET", &paths, b"", 403);
                    if got == 0 {
                        break;
                    }
                    sent += got;
                }
                sent
            });
            let begun = Instant::now();
            let mut given = orders(0);
            while !waits_to_write(&ground) && begun.elapsed() < Duration::from_secs(60) {
                given += orders(given);
            }
            // Orders are given once more, now that the pipe is full.
            given += orders(usize::MAX);
            done.store(true, Ordering::Relaxed);
            (flood.join().unwrap_or(0), given)
        })
    });
    let said = format!("{denials} denials and {given} orders");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if denials == 0 || given < 800 || !waits_to_write(&ground) {
        return Err(format!("{said}, and the pipe was never full: no attack"));
    }
    drop(unread);
    Ok(format!("{said}, and the log waited for its reader; {pings}"))
}

/// Whether a thread of the daemon waits to write to standard error: system call 1 (`write`) on
/// descriptor 2 (proc(5), `syscall`).
fn waits_to_write(ground: &Ground) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", ground.daemon.pid()));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .any(|thread| fs::read_to_string(thread.path().join("syscall")).is_ok_and(|call| call.starts_with("1 0x2 ")))
}
