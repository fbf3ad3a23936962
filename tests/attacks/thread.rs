//! The supervisor's one thread: no client may make it do costly work for free.

use std::io::Write;
use std::time::Duration;

use enisle_tests::{Answer, programs};
use serde_json::json;

use crate::ground::{Ground, Peer, answered, folder, wait};
use crate::memory::largest_policy;
use crate::pings::probed;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S10 info", title: "/v1/info by a user without rights, with many tenants", run: info },
    Case { id: "S10 refused", title: "long bodies of a user without rights", run: refused },
    Case { id: "S10 lists", title: "lists of many tenants, by operators", run: lists },
    Case { id: "S10 events", title: "events, by operators that read fast, and by many that do not", run: events },
    Case { id: "S10 errors", title: "errors as long as a script can make them", run: errors },
    Case { id: "S16 workers", title: "compromised workers that flood their channels", run: workers },
    Case { id: "S16 room", title: "a worker's logs that find no memory", run: without_room },
    Case { id: "S10 open", title: "half of all connections, each with half a request", run: open },
    Case { id: "S10 writers", title: "policies, one at a time on each of many connections", run: writers },
    Case { id: "S10 half", title: "pipelined requests on half of all connections", run: half },
    Case { id: "S10 pipelined", title: "pipelined requests of clients that never read", run: pipelined },
];

/// Makes the daemon know many tenants; returns how many.
fn populate(ground: &Ground, count: usize) -> usize {
    let paths: Vec<_> = (0..count).map(|n| format!("/v1/tenants/acme-{n}/scripts/s")).collect();
    ground.root.flood(4, "PUT", &paths, br#"{"code":"1"}"#, 201)
}

const MANY: usize = 90_000;
const ASKED: usize = 2000;

fn info(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let known = populate(&ground, MANY);
    let ((refused, allowed), pings) = probed(&ground, || {
        let paths = vec!["/v1/info".to_owned(); ASKED];
        let refused = ground.stranger.flood(3, "GET", &paths, b"", 403);
        // A client that may ask for `/v1/info` must not be able to stall the others either.
        (refused, ground.attacker.flood(20, "GET", &paths, b"", 200))
    });
    let said = format!("{known} tenants; {refused} of {ASKED} refused to the stranger, {allowed} answered to the peer");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if refused == ASKED && allowed == ASKED { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {pings}")) }
}

/// Long bodies, in one piece and in chunks of one byte: how much of each the daemon reads, and
/// whether the client can still read the refusal.
fn refused(options: Options) -> Result<String, String> {
    // The most that a socket holds unread, beside the 64 KiB that the daemon reads.
    const MOST: usize = 1 << 20;
    const BODIES: usize = 50;
    let ground = Ground::start("");
    let mut said = Vec::new();
    for (framing, piece) in [("content-length: 90000000", "x"), ("transfer-encoding: chunked", "1\r\nx\r\n")] {
        let head = format!("POST /v1/tenants/good-1/load HTTP/1.1\r\nhost: d\r\n{framing}\r\n\r\n");
        let pieces = piece.repeat(8 << 10);
        let (sent, pings) = probed(&ground, || {
            let body = |_| {
                let mut stream = ground.stranger.connect()?;
                stream.write_all(head.as_bytes())?;
                let mut sent = 0;
                while sent <= MOST && stream.write_all(pieces.as_bytes()).is_ok() {
                    sent += pieces.len();
                }
                // A daemon that still reads the body has not answered.
                let taken = sent > MOST;
                let status = if taken { 0 } else { Answer::read(&mut stream)?.status };
                Ok((sent, status))
            };
            (0..BODIES).map(body).collect::<std::io::Result<Vec<_>>>()
        });
        let sent = sent.map_err(|error| format!("{framing}: {error}"))?;
        let most = sent.iter().map(|(sent, _)| *sent).max().unwrap_or_default();
        let refusals = sent.iter().filter(|(_, status)| *status == 403).count();
        let what = format!("{framing}: at most {} KiB sent, {refusals} of {BODIES} refused", most >> 10);
        let pings = pings.verdict(options.bench).map_err(|pings| format!("{what}; {pings}"))?;
        if refusals < BODIES {
            return Err(what);
        }
        said.push(format!("{what}; {pings}"));
    }
    Ok(said.join("; "))
}

/// Requests lists of tenants that have as much state as a tenant can have, and then each of those
/// tenants by itself.
fn lists(options: Options) -> Result<String, String> {
    // A page takes items until it has 128 KiB, so the last item may go beyond that.
    const PAGE: usize = 160 << 10;
    const AT_ONCE: usize = 6;
    let ground = Ground::start("");
    let known = populate(&ground, MANY);
    let ask = |method: &str, path: &str, body: &str| {
        let answer = ground.root.ask(method, path, body.as_bytes());
        answer.map_err(|error| format!("{method} {path}: {error}"))
    };
    let page = ask("GET", "/v1/tenants?limit=100", "")?.json();
    let names: Vec<_> =
        page["tenants"].as_array().into_iter().flatten().filter_map(|row| row["name"].as_str()).collect();
    let many = json!({ "secrets": vec!["s"; 16_000] }).to_string();
    let refused = ask("PUT", "/v1/tenants/acme-0", &many)?.status;
    let order = |level: &str| json!({ "level": level, "reason": "\u{1}".repeat(650) }).to_string();
    let (policy, solo, sealed) = (largest_policy(), order("solo"), order("sealed"));
    for name in &names {
        let (path, cordon) = (format!("/v1/tenants/{name}"), format!("/v1/tenants/{name}/cordon"));
        // The daemon remembers this many moves.
        let moves = [&solo, &sealed].into_iter().cycle().take(20).map(|order| ("PUT", &cordon, order.as_str()));
        for (method, path, body) in [("PUT", &path, policy.as_str())].into_iter().chain(moves) {
            let status = ask(method, path, body)?.status;
            if status != 200 {
                return Err(format!("{method} {path}: {status}"));
            }
        }
    }
    let gauge = ground.gauge();
    gauge.quiet(Duration::from_secs(10));
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let paths = |path: &str, count| vec![path.to_owned(); count];
    let own: Vec<_> = names.iter().map(|name| format!("/v1/tenants/{name}")).collect();
    let ((sizes, listed, shown), pings) = probed(&ground, || {
        let sizes = ["/v1/tenants", "/v1/workers", "/v1/info"].map(|path| {
            let size = ground.root.ask("GET", path, b"").map_or(0, |answer| answer.body.len());
            (size, path)
        });
        let listed = ground.root.flood(AT_ONCE, "GET", &paths("/v1/tenants?limit=100", 300), b"", 200);
        let shown = ground.root.flood(AT_ONCE, "GET", &own, b"", 200);
        (sizes, listed, shown + ground.attacker.flood(AT_ONCE, "GET", &own, b"", 200))
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let left = gauge.back_to(before + 16, Duration::from_secs(30));
    let (size, path) = sizes.into_iter().max().unwrap_or_default();
    let said = format!(
        "{known} tenants, {} with the largest policy; {path} has {size} bytes; {listed} lists and {shown} tenants shown; \
         peak {peak} MiB, {before} before, then {left:?}; a policy of 16,000 secrets: {refused}",
        names.len()
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let all = names.len() == 100 && listed == 300 && shown == 2 * names.len() && refused == 400;
    if all && size <= PAGE && peak <= before + 64 && left.is_ok() {
        return Ok(format!("{said}; {pings}"));
    }
    Err(format!("{said}; {pings}"))
}

/// Lists of the longest possible events, requested by clients that read as fast as the daemon
/// writes, and by many clients that read nothing.
fn events(options: Options) -> Result<String, String> {
    const FAST: usize = 8;
    const EACH: usize = 3;
    const UNREAD: usize = 500;
    const OPERATOR: u32 = 5009;
    let ground = Ground::start(&format!("[[peers]]\nuid = {OPERATOR}\ntenants = []\noperate = true\n"));
    let operator = Peer::call(ground.daemon.folder.path(), OPERATOR, "connect", &ground.daemon.socket());
    let list = ground.fill_events()?;
    let gauge = ground.gauge();
    gauge.quiet(Duration::from_secs(10));
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let ask = |end: &str| format!("GET /v1/events HTTP/1.1\r\nhost: d\r\n{end}\r\n");
    let requests = ask("").repeat(EACH - 1) + &ask("connection: close\r\n");
    let read_all = || {
        let mut stream = operator.connect()?;
        stream.write_all(requests.as_bytes())?;
        std::io::copy(&mut stream, &mut std::io::sink())
    };
    let (read, pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..FAST).map(|_| scope.spawn(read_all)).collect();
            readers.into_iter().map(|reader| reader.join().expect("it only reads").unwrap_or(0)).collect::<Vec<_>>()
        })
    });
    // The counts of surplus events replace other events, and have another length.
    let least = (EACH * list / 100 * 95) as u64;
    let whole = read.iter().filter(|read| **read >= least).count();
    let said = format!("{whole} of {FAST} clients have read {EACH} lists of {list} bytes each");
    let said = pings.beside(options, if whole == FAST { Ok(said) } else { Err(said) })?;
    let (begun, pings) = probed(&ground, || {
        let unread: Vec<_> = (0..UNREAD).filter_map(|_| operator.begin("GET", "/v1/events", b"").ok()).collect();
        wait(Duration::from_secs(20), || unread.iter().all(answered));
        gauge.quiet(Duration::from_secs(20));
        unread.iter().filter(|stream| answered(stream)).count()
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let said = format!("{said}; {begun} that read nothing, peak {peak} MiB, {before} before");
    pings.beside(options, if begun == UNREAD && peak <= before + 64 { Ok(said) } else { Err(said) })
}

/// A script that throws the longest possible error, in characters that take six bytes each.
fn errors(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let throws = "()=>{ const e = new Error('\\u0001'.repeat(900000)); e.stack = e.message; throw e }";
    let body = json!({ "code": throws }).to_string();
    let (answers, pings) = probed(&ground, || {
        let paths: Vec<_> = (0..24).map(|n| format!("/v1/tenants/acme-{}/load", n % 3)).collect();
        ground.attacker.flood(3, "POST", &paths, body.as_bytes(), 200)
    });
    let said = format!("{answers} of 24 errors answered");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if answers == 24 { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// Every connection that one uid may have, each with many pipelined requests.
fn half(options: Options) -> Result<String, String> {
    const CONNECTIONS: usize = 500;
    const EACH: usize = 30;
    let ground = Ground::start("");
    ground.attacker.served("acme-1", "()=>1")?;
    let mut said = Vec::new();
    for (method, path, body, status) in [
        ("GET", "/v1/tenants/acme-1", "", 200),
        ("GET", "/v1/info", "", 200),
        ("POST", "/v1/tenants/acme-1/load", "{}", 400),
    ] {
        let paths = vec![path.to_owned(); CONNECTIONS * EACH];
        let (answers, pings) = probed(&ground, || {
            let streams: Vec<_> = (0..CONNECTIONS).filter_map(|_| ground.attacker.connect().ok()).collect();
            let connected = streams.len();
            drop(streams);
            let answers = ground.attacker.flood(connected, method, &paths, body.as_bytes(), status);
            (connected, answers)
        });
        let (connected, answers) = answers;
        let what = format!("{path}: {answers} of {} answered on {connected} connections", paths.len());
        let pings = pings.verdict(options.bench).map_err(|pings| format!("{what}; {pings}"))?;
        // The quota admits only a limited number of runs.
        if connected < CONNECTIONS || (status == 200 && answers < paths.len() / 2) {
            return Err(what);
        }
        said.push(format!("{what}; {pings}"));
    }
    Ok(said.join("; "))
}

fn pipelined(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let request = b"GET /v1/version HTTP/1.1\r\nhost: d\r\n\r\n".repeat(1000);
    let (sent, pings) = probed(&ground, || {
        let streams: Vec<_> = (0..10).filter_map(|_| ground.attacker.connect().ok()).collect();
        let mut sent = 0;
        for mut stream in &streams {
            let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
            while stream.write_all(&request).is_ok() {
                sent += 1000;
            }
        }
        sent
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let said = format!("more than {sent} requests unread, peak {peak} MiB, {before} before");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if peak <= before + 64 { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {pings}")) }
}

/// Log lines that the daemon skips for want of memory count like lines that it reads, so a flood of
/// them ends just as soon.
fn without_room(options: Options) -> Result<String, String> {
    let place = folder();
    let rogue = place.path().join("rogue-tenant-logs-without-room");
    std::fs::copy(programs().join("rogue-worker"), &rogue).map_err(|error| error.to_string())?;
    let config = format!("[workers]\nprogram = {rogue:?}\nkeys = \"off\"\n[api]\nbody_mb = 16\nread_secs = 120\n");
    let ground = Ground::with(&config, None);
    // The attacker holds its half of the pool, except for less than a frame of log.
    let held = ground.attacker.unfinished(69, 60_000);
    let waiting = held.iter().filter(|stream| !answered(stream)).count();
    let (ran, pings) = probed(&ground, || ground.attacker.served("acme-1", "()=>1"));
    let said = format!("beside {waiting} bodies: {ran:?}");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let caught = ran.as_ref().is_err_and(|said| said.contains("violation") && said.contains("bytes of log"));
    if caught && waiting >= 60 { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// As many connections as one uid may have, none of which ever completes a request.
fn open(options: Options) -> Result<String, String> {
    const OPEN: usize = 508;
    let ground = Ground::start("");
    ground.victim.served("good-1", "()=>1")?;
    let ((held, served), pings) = probed(&ground, || {
        let held: Vec<_> = (0..OPEN)
            .filter_map(|_| {
                let mut stream = ground.attacker.connect().ok()?;
                stream.write_all(b"GET /_ping HTTP/1.1\r\nx:").ok()?;
                Some(stream)
            })
            .collect();
        // Sends one byte on each connection, again and again, while the victim asks for runs.
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            held.iter().for_each(|mut stream| drop(stream.write_all(b"x")));
            match ground.victim.served("good-1", "()=>1") {
                Ok(took) => longest = longest.max(took),
                Err(error) => return (held.len(), Err(error)),
            }
        }
        (held.iter().filter(|stream| !answered(stream)).count(), Ok(longest))
    });
    let said = format!("{held} connections open; the victim: {served:?}");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    if held == OPEN && in_time { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// A request that waits for the disk occupies a thread. There is a limited number of threads, and
/// parsing needs them too.
fn writers(options: Options) -> Result<String, String> {
    const CONNECTIONS: usize = 100;
    const POLICIES: usize = 1000;
    // The daemon may start this many threads for policies, for bodies, and for its own work.
    const MORE: u64 = 10;
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    let before = gauge.threads().ok_or("the daemon died")?;
    let body = [br#"{"code":"()=>1//"#, "x".repeat(40 << 10).as_bytes(), br#""}"#].concat();
    let ((put, most, served), pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let paths: Vec<_> = (0..POLICIES).map(|n| format!("/v1/tenants/acme-{n}")).collect();
            let put = scope.spawn(|| {
                let paths = paths;
                ground.root.flood(CONNECTIONS, "PUT", &paths, b"{}", 200)
            });
            let (mut most, mut served) = (0, Ok::<_, String>(Duration::ZERO));
            while !put.is_finished() && served.is_ok() {
                most = most.max(gauge.threads().unwrap_or_default());
                let took = ground.victim.answered("POST", "/v1/tenants/good-1/load", &body);
                served = served.and_then(|longest| Ok(longest.max(took?)));
            }
            (put.join().expect("it only asks"), most, served)
        })
    });
    let said = format!(
        "{put} of {POLICIES} written on {CONNECTIONS} connections, {most} threads, {before} before; the victim: {served:?}"
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    if put == POLICIES && most <= before + MORE && in_time { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// Native code in a worker can send what the worker's own code never would. Every such frame ends
/// the run as a violation, causes an event, and leaves the supervisor's thread running.
fn workers(options: Options) -> Result<String, String> {
    const TENANTS: usize = 12;
    let mut said = Vec::new();
    for how in [
        "says-ready-again",
        "logs-nothing",
        "logs-in-small-frames",
        "logs-too-many-lines",
        "has-a-long-error",
        "is-ready-at-length",
    ] {
        let place = folder();
        // The rogue's name tells it how to misbehave.
        let rogue = place.path().join(format!("rogue-tenant-{how}"));
        std::fs::copy(programs().join("rogue-worker"), &rogue).map_err(|error| error.to_string())?;
        let config = format!("[workers]\nprogram = {rogue:?}\nkeys = \"off\"\n");
        let ground = Ground::with(&config, None);
        let gauge = ground.gauge();
        let before = gauge.rss().ok_or("the daemon died")?;
        gauge.reset();
        let (caught, pings) = probed(&ground, || {
            std::thread::scope(|scope| {
                let run = |n: usize| ground.attacker.served(&format!("acme-{n}"), "()=>1");
                let runs: Vec<_> = (0..TENANTS).map(|n| scope.spawn(move || run(n))).collect();
                let answers = runs.into_iter().map(|run| run.join().expect("it only asks"));
                answers.filter(|answer| answer.as_ref().is_err_and(|said| said.contains("violation"))).count()
            })
        });
        let reports = || ground.daemon.events().iter().filter(|event| event["event"] == "protocolViolation").count();
        wait(Duration::from_secs(5), || reports() >= TENANTS);
        let peak = gauge.peak().ok_or("the daemon died")?;
        let pings = pings.verdict(options.bench).map_err(|pings| format!("{how}: {pings}"))?;
        let what = format!("{how}: {caught} of {TENANTS} runs, {} reported, peak {peak} MiB, {pings}", reports());
        // Each channel may hold one frame of the largest size.
        if caught < TENANTS || reports() < TENANTS || peak > before + 17 * TENANTS as u64 + 64 {
            return Err(what);
        }
        said.push(what);
    }
    Ok(said.join("; "))
}
