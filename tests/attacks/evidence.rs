//! Events and logs: what an attack leaves behind must not be washed away.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::SHARING;
use serde_json::json;

use crate::ground::{Ground, folder, leashed, probed, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S9 denied", title: "sixty thousand denials over the evidence", run: denied },
    Case { id: "S9 ended", title: "runs that end badly over the evidence", run: ended },
    Case { id: "S9 moved", title: "tenants that come and go over the evidence", run: moved },
    Case { id: "S9 killed", title: "a peer that ends its own workers over another's evidence", run: killed },
    Case { id: "S6 events", title: "a peer's events over another's", run: events },
    Case { id: "S9 counted", title: "what is denied is still counted", run: counted },
    Case { id: "S13 pipe", title: "a standard error that nobody reads", run: pipe },
];

/// Leaves evidence, lets somebody flood, and looks for the evidence where operators look.
fn wash(options: Options, flood: impl Fn(&Ground) -> String) -> Result<String, String> {
    let ground = Ground::start("");
    let (flooded, pings) = probed(&ground, || {
        // The budget of the log is used up before.
        let first = flood(&ground);
        let order = br#"{"level":"sealed","reason":"EVIDENCE"}"#;
        ground.root.ask("PUT", "/v1/tenants/victim-x/cordon", order).expect("the daemon answers").ok();
        let policy = br#"{"owner":"EVIDENT"}"#;
        ground.root.ask("PUT", "/v1/tenants/victim-y", policy).expect("the daemon answers").ok();
        format!("{first}, then {}", flood(&ground))
    });
    let log = ground.daemon.log();
    let events = ground.daemon.events();
    let audit = audit(&ground);
    let told = |event: &str, tenant: &str| events.iter().any(|told| told["event"] == event && told["tenant"] == tenant);
    let mut lost = Vec::new();
    for (event, tenant) in [("cordoned", "victim-x"), ("policyChanged", "victim-y")] {
        for (place, there) in [
            ("the events", told(event, tenant)),
            ("the log", log.contains(tenant)),
            ("the audit log", audit.contains(tenant)),
        ] {
            if !there {
                lost.push(format!("{event} from {place}"));
            }
        }
    }
    let said = format!("{flooded}; {} events kept", events.len());
    let pings = pings.verdict(options.bench)?;
    if lost.is_empty() { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; lost: {}", lost.join(", "))) }
}

/// The text of the audit log; what was decided is in it a moment later.
fn audit(ground: &Ground) -> String {
    read_audit(ground, "victim-y")
}

/// The text of the audit log, once a name is in it.
fn read_audit(ground: &Ground, name: &str) -> String {
    let read = || {
        let files = fs::read_dir(ground.daemon.folder.path().join("state/audit")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect::<String>()
    };
    wait(Duration::from_secs(2), || read().contains(name));
    read()
}

fn denied(options: Options) -> Result<String, String> {
    wash(options, |ground| {
        let paths = vec!["/v1/workers".to_owned(); 30_000];
        format!("{} denials", ground.stranger.flood(3, "GET", &paths, b"", 403))
    })
}

fn ended(options: Options) -> Result<String, String> {
    wash(options, |ground| {
        let body = json!({ "code": "()=>{for(;;);}", "limits": { "cpuMs": 1 } }).to_string();
        let paths: Vec<_> = (0..1200).map(|n| format!("/v1/tenants/acme-{}/load", n % 4)).collect();
        format!("{} runs that ended", ground.attacker.flood(4, "POST", &paths, body.as_bytes(), 200))
    })
}

fn moved(options: Options) -> Result<String, String> {
    // Each is admitted and asks for a network, which raises the tenant's score.
    let next = std::cell::Cell::new(0);
    wash(options, |ground| {
        let body = br#"{"code":"1","globalOutbound":"x"}"#;
        let begin = next.replace(next.get() + 400);
        let paths: Vec<_> =
            (begin..begin + 400).flat_map(|n| std::iter::repeat_n(format!("/v1/tenants/acme-{n}/load"), 30)).collect();
        format!("{} requests for a network", ground.attacker.flood(4, "POST", &paths, body, 400))
    })
}

/// An operation of V8's that nothing interrupts: its process is ended for it.
const UNENDING: &str = r#"{"code":"()=>Array.prototype.indexOf.call({length:2**53-1},1)","limits":{"cpuMs":5}}"#;

/// Evidence of the first class that a peer can make more of at will: processes that are ended for
/// what its runs did. Another's must be where operators look, all the same.
fn killed(options: Options) -> Result<String, String> {
    let rounds = if options.slow { 40 } else { 2 };
    let ground = Ground::start("");
    let (ended, pings) = probed(&ground, || {
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
            event["event"] == "cordoned" && event["tenant"].as_str().is_some_and(|told| told.starts_with(tenant))
        };
        events.iter().filter(is).count()
    };
    wait(Duration::from_secs(3), || of("good-killed", &ground.daemon.events()) > 0);
    let (events, log) = (ground.daemon.events(), ground.daemon.log());
    let audit = read_audit(&ground, "good-killed");
    let in_log = log.lines().any(|line| line.contains("cordoned") && line.contains("good-killed"));
    let (own, attackers) = (of("good-killed", &events), of("acme-", &events));
    let said = format!(
        "{ended:?} processes ended; {attackers} of the attacker's events; of the victim's: events {own}, log {in_log}, \
         audit log {}",
        audit.contains("good-killed")
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let held = own > 0 && in_log && audit.contains("good-killed") && attackers >= 10;
    if held { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// In every second a peer makes as many different events as it can; another's are told all the
/// same. Without a part for each they are among the others.
fn events(options: Options) -> Result<String, String> {
    const RUNS: u64 = 8;
    /// Not a part of a second, so that runs come at all times of one.
    const PAUSE: Duration = Duration::from_millis(730);
    let body = br#"{"code":"()=>{for(;;);}","limits":{"cpuMs":1}}"#;
    let attempt = |share| {
        let ground = Ground::with(SHARING, share);
        let done = AtomicBool::new(false);
        let events = || ground.daemon.events();
        let told = || {
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
                wait(Duration::from_secs(3), || told() >= RUNS);
                done.store(true, Ordering::Relaxed);
                (told(), flood.join().unwrap_or(0))
            })
        });
        (result, pings)
    };
    let ((told, flooded), pings) = attempt(None);
    let said = format!("{told} of {RUNS} told beside {flooded} of the attacker's");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if told < RUNS {
        return Err(said);
    }
    match attempt(Some(100)) {
        ((told, _), _) if told < RUNS => Ok(format!("{said}; where it may have all places, {told}; {pings}")),
        _ => Err(format!("{said}, but also where the attacker may have all places: no attack")),
    }
}

/// Rare is not lost: what comes in masses is told with its number.
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
    let said = format!("{} of {DENIALS} denials told, in {events} events", total());
    if all && events < 100 { Ok(said) } else { Err(said) }
}

fn pipe(options: Options) -> Result<String, String> {
    let place = folder();
    fs::write(place.path().join("enisled.toml"), SHARING).map_err(|error| error.to_string())?;
    let mut command = leashed(place.path(), &place.path().join("s"), 0o022);
    let mut process = command.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let unread = process.stderr.take().ok_or("no pipe")?;
    // A page is full sooner than the 16 that a pipe has otherwise.
    nix::fcntl::fcntl(&unread, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).map_err(|error| error.to_string())?;
    let ground = Ground::around(process, place);
    let done = AtomicBool::new(false);
    let (sent, pings) = probed(&ground, || {
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
            // Lines of every kind, some of which are never counted together.
            let begun = Instant::now();
            let mut n = 0;
            while begun.elapsed() < Duration::from_secs(6) {
                n += 1;
                let order = format!("{{\"level\":\"solo\",\"reason\":\"{}\"}}", "x".repeat(900));
                let path = format!("/v1/tenants/t{n}/cordon");
                let limit = crate::ground::STALLED;
                if ground.root.ask_within(limit, "PUT", &path, &[order.as_bytes()]).is_err() {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            (flood.join().unwrap_or(0), n)
        })
    });
    let said = format!("{} denials and {} orders", sent.0, sent.1);
    drop(unread);
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    Ok(format!("{said}; {pings}"))
}
