//! The worst body of the allowed size, for every field of every request.
//!
//! No list of fields is maintained here. The calls are those of the API's description, and the
//! fields come from the API's own answers to an unknown field (`unknown field …, expected one of
//! …`), at every depth. For each body the supervisor may grow by twice the body's size and 64 MiB.
//! Within ten seconds it must be back within 16 MiB of its former size, whatever the client does.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::time::{Duration, Instant};

use enisle_tests::Answer;
use serde_json::Value;

use crate::ground::{Ground, Peer, UNSERVED, answered, good_answer, send, wait};
use crate::pings::probed;
use crate::shapes::{ANY, Body, Call, MIB, Place, SHAPES, USUAL, between, calls, escapes, fields, list, named};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S1 peer", title: "every field of every request, by a peer", run: |options| sweep(options, false) },
    Case {
        id: "S1 root",
        title: "every field of every request that no peer may make, by root",
        run: |options| sweep(options, true),
    },
    Case { id: "S1 largest", title: "the worst known bodies at full size, one after the other", run: largest },
    Case { id: "S1 together", title: "a peer's worst bodies, four at a time, waiting and hanging up", run: together },
    Case { id: "S1 turns", title: "large requests of one uid, and a request of another uid", run: turns },
    Case {
        id: "S1 dearest",
        title: "the most expensive body that is accepted, and small requests of another uid",
        run: dearest,
    },
    Case { id: "S1 details", title: "errors that repeat input are cut", run: details },
    Case { id: "S1 queries", title: "the worst query for every call", run: queries },
];

const LARGEST: usize = 90 * MIB;
/// The growth that may remain after an attack: names of tenants, and memory that the allocator
/// keeps.
const STAYS_MIB: u64 = 16;
const BACK: Duration = Duration::from_secs(10);
/// After the daemon has not returned memory this many times, the sweep no longer waits for that.
const ENOUGH: usize = 6;

/// What a client does after it has sent its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Waits,
    /// Sends these further bytes, and hangs up.
    HangsUp {
        behind: &'static [u8],
    },
    ReadsByteByByte,
}

/// An unread byte in the socket must not hide the end of the connection from the daemon.
const HANGS_UP: Client = Client::HangsUp { behind: b"G" };

/// Every shape at one size, built once.
struct Shapes {
    size: usize,
    made: Vec<(&'static str, Vec<u8>)>,
}

impl Shapes {
    fn of(size: usize) -> Self {
        Self { size, made: SHAPES.iter().map(|shape| (shape.name, (shape.make)(size))).collect() }
    }
}

/// Sends bodies, and collects their effects.
struct Sweep<'a> {
    ground: Ground,
    config: &'a str,
    before: u64,
    root: bool,
    sent: usize,
    worst: (f64, String),
    failures: Vec<String>,
    /// How many bodies left the supervisor larger.
    kept: usize,
    longest: Duration,
}

impl<'a> Sweep<'a> {
    fn start(config: &'a str, root: bool) -> Self {
        let mut sweep = Self {
            ground: Ground::start(config),
            config,
            before: 0,
            root,
            sent: 0,
            worst: (0.0, String::new()),
            failures: Vec::new(),
            kept: 0,
            longest: Duration::ZERO,
        };
        sweep.settle();
        sweep
    }

    /// Lets the daemon work a little. Later sizes are compared with the daemon's size after that.
    fn settle(&mut self) {
        let ground = &self.ground;
        let registered = ground.root.ask("PUT", "/v1/tenants/acme-b/scripts/s", br#"{"code":"()=>1"}"#);
        assert_eq!(registered.expect("the daemon answers").status, 201);
        let body = [br#"{"code":"()=>1","args":["#, "0,".repeat(MIB).as_bytes(), b"0]}"].concat();
        ground.root.ask("POST", "/v1/tenants/acme-b/load", &body).expect("the daemon answers").ok();
        ground.gauge().quiet(BACK);
        self.before = ground.gauge().rss().expect("the daemon runs");
    }

    fn peer(&self) -> &Peer {
        if self.root { &self.ground.root } else { &self.ground.attacker }
    }

    /// Sends one body, and checks the supervisor's growth against its bound; returns the growth in
    /// MiB.
    fn try_body(&mut self, what: &str, call: &Call, tenant: &str, body: &[&[u8]], client: Client) -> u64 {
        let size: usize = body.iter().map(|piece| piece.len()).sum();
        let allowed = self.before + (2 * size / MIB) as u64 + 64;
        let gauge = self.ground.gauge();
        gauge.reset();
        let begun = Instant::now();
        let status = self.make(call, tenant, body, client);
        self.longest = self.longest.max(begun.elapsed());
        let quiet = client == Client::Waits || gauge.quiet(BACK);
        let peak = gauge.peak();
        if call.method == "PUT" && call.path.contains("{id}") {
            // A registered script would stay in memory by design, so it is deleted.
            let _ = self.peer().ask("DELETE", &call.target(tenant), b"");
        }
        // A daemon that never returns memory has been caught by now; the peaks are still of
        // interest.
        let patience = if self.kept < ENOUGH { BACK } else { Duration::ZERO };
        let back = gauge.back_to(self.before + STAYS_MIB, patience);
        self.sent += 1;
        let grown = peak.unwrap_or_default().saturating_sub(self.before);
        #[expect(clippy::cast_precision_loss, reason = "a ratio to look at")]
        let times = grown as f64 * MIB as f64 / size.max(MIB) as f64;
        if times > self.worst.0 {
            self.worst = (times, format!("{call} {what}"));
        }
        self.kept += usize::from(back.is_err());
        let fault = match (peak, &back) {
            (None, _) => Some("the daemon died".to_owned()),
            (Some(peak), _) if peak > allowed => {
                Some(format!("{peak} MiB at the peak, {allowed} allowed, {} before; then {back:?}", self.before))
            }
            (_, Err(error)) if self.kept <= ENOUGH => Some(error.clone()),
            _ if !quiet => Some("still at work after 10 s".to_owned()),
            _ => None,
        };
        if let Some(fault) = fault {
            let size = size / MIB;
            self.failures.push(format!("{call} {what} ({size} MiB, client {client:?}, {status}): {fault}"));
        }
        if back.is_err() || peak.is_none() {
            // The next body needs a fresh daemon.
            self.ground = Ground::start(self.config);
            self.settle();
        }
        grown
    }

    /// Sends a request; returns its status if the client waits for one.
    fn make(&self, call: &Call, tenant: &str, body: &[&[u8]], client: Client) -> String {
        let Ok(mut stream) = self.peer().connect() else { return "no connection".to_owned() };
        // Sending may fail: a daemon that refuses a request early may stop reading it.
        let _ = send(&mut stream, call.method, &call.target(tenant), body);
        match client {
            Client::HangsUp { behind } => {
                let _ = stream.write_all(behind);
                "not read".to_owned()
            }
            Client::Waits => {
                Answer::read(&mut stream).map_or_else(|e| e.to_string(), |answer| answer.status.to_string())
            }
            Client::ReadsByteByByte => {
                for _ in 0..20 {
                    if !matches!(stream.read(&mut [0]), Ok(1)) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                "read in part".to_owned()
            }
        }
    }

    fn conclude(self, what: &str) -> Result<String, String> {
        let (times, which) = &self.worst;
        let said = format!(
            "{what}: {} bodies, at most {times:.1} times the body ({which}), the longest answer {:.1} s",
            self.sent,
            self.longest.as_secs_f64()
        );
        let failures = self.failures;
        if failures.is_empty() { Ok(said) } else { Err(format!("{said}\n    {}", failures.join("\n    "))) }
    }
}

fn sweep(options: Options, root: bool) -> Result<String, String> {
    let mut sweep = Sweep::start("", root);
    let size = match (options.slow, root) {
        (true, _) => LARGEST,
        (false, true) => USUAL / 2,
        (false, false) => USUAL,
    };
    let mut shapes = BTreeMap::new();
    let mut places_found = 0;
    for (number, call) in calls().into_iter().filter(Call::has_body).enumerate() {
        let Some(body) = Body::discover(call, sweep.peer(), "acme-b", size) else { continue };
        let places = body.places();
        places_found += places.len();
        let own = sweep.ground.attacker.ask(body.call.method, &body.call.target("acme-b"), b"{}");
        if root && !options.slow && own.is_ok_and(|answer| answer.status != 403) {
            // The peer has sent these bodies already, and the daemon treats root's in the same way.
            continue;
        }
        let shapes = shapes.entry(body.most).or_insert_with(|| Shapes::of(body.most.saturating_sub(256)));
        for (index, place) in places.iter().enumerate() {
            let (before, behind) = body.around(place);
            // An attack costs a tenant its standing, and an expelled tenant is refused before its
            // body is parsed, so each place in a body is tried with a tenant of its own. Calls that
            // run a script need a tenant with a script, so they all use the same tenant.
            let tenant =
                if body.call.path.ends_with("/run") { "acme-b".to_owned() } else { format!("acme-{number}-{index}") };
            let where_to = if place.is_empty() { "body".to_owned() } else { place.join(".") };
            let own = own_shapes(&body, place, shapes.size);
            let mut costs: Vec<_> = own
                .iter()
                .chain(&shapes.made)
                .map(|(shape, value)| {
                    let what = format!("{where_to} = {shape}");
                    let pieces = [before.as_bytes(), value, behind.as_bytes()];
                    let cost = sweep.try_body(&what, &body.call, &tenant, &pieces, Client::Waits);
                    (cost, what, value)
                })
                .collect();
            // The other kinds of client send only the body that cost most, or all bodies with
            // `--slow`.
            costs.sort_by_key(|(cost, ..)| std::cmp::Reverse(*cost));
            let again = if options.slow { costs.len() } else { 1 };
            for (_, what, value) in costs.into_iter().take(again) {
                let pieces = [before.as_bytes(), value, behind.as_bytes()];
                for client in [HANGS_UP, Client::ReadsByteByByte] {
                    sweep.try_body(&what, &body.call, &tenant, &pieces, client);
                }
            }
            if sweep.failures.len() >= 4 * ENOUGH {
                return sweep.conclude("stopped after too many failures");
            }
        }
    }
    // Without fields the loops above would have attacked nothing.
    let least = if root { 70 } else { 50 };
    if places_found < least {
        return Err(format!("only {places_found} places for a value were found, at least {least} are known"));
    }
    let place = if root { "root" } else { "a peer" };
    sweep.conclude(&format!("{place}, {places_found} places"))
}

/// Shapes built from the names of the fields: each field repeated, and a map with as many objects
/// as fit.
fn own_shapes(body: &Body, place: &Place, size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let Some(fields) = body.objects.get(place) else { return Vec::new() };
    let again = fields.iter().filter(|name| *name != ANY).map(|name| {
        let pair = format!("\"{name}\":null");
        ("the same field again", between("{", &format!("{pair},"), &format!("{pair}}}"), size))
    });
    let below: Place = place.iter().cloned().chain([ANY.to_owned()]).collect();
    let inner = body.objects.get(&below).into_iter().flatten();
    let many = inner.map(|name| ("many objects", named(&format!("{{\"{name}\":\"\"}}"), size)));
    again.chain(many).collect()
}

/// Bodies that once cost many times their size in memory. The names say in which field.
fn worst(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let around = |before: &str, value: Vec<u8>| [before.as_bytes(), &value, b"}"].concat();
    let code = "{\"code\":\"1\",";
    vec![
        ("globalOutbound = objects", around(&format!("{code}\"globalOutbound\":"), list(r#"{"a":0}"#, size))),
        ("globalOutbound = zeros", around(&format!("{code}\"globalOutbound\":"), list("0", size))),
        ("modules = names", around("{\"mainModule\":\"m\",\"modules\":", named("\"\"", size))),
        ("modules = texts", around("{\"mainModule\":\"m\",\"modules\":", named(r#"{"text":""}"#, size))),
        ("mainModule = control characters", {
            let name = between("\"", "\\u0001", "\"", size);
            around("{\"modules\":{\"a.js\":\"\"},\"mainModule\":", name)
        }),
        ("env = names", around(&format!("{code}\"env\":"), named("\"\"", size))),
    ]
}

fn largest(_: Options) -> Result<String, String> {
    let mut sweep = Sweep::start("", true);
    let calls = calls();
    let call = calls.iter().find(|call| call.path.ends_with("/load")).ok_or("no load")?;
    for (number, (what, body)) in worst(LARGEST).into_iter().enumerate() {
        for client in [Client::Waits, Client::HangsUp { behind: b"" }, HANGS_UP] {
            sweep.try_body(what, call, &format!("acme-l{number}"), &[&body], client);
        }
    }
    sweep.conclude("root, 90 MiB")
}

/// A peer's share bounds its bodies, however many it sends at a time.
fn together(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    gauge.quiet(BACK);
    let before = gauge.rss().ok_or("the daemon died")?;
    // The bound allows for half of the default pool of 256 MiB, and as much again for the work on
    // bodies. The pool charges a body twice.
    let allowed = before + 128 + 128;
    gauge.reset();
    let size = if options.slow { 48 * MIB } else { USUAL };
    let bodies = worst(size);
    let (served, pings) = probed(&ground, || {
        let attack = |number: usize, waits: bool| {
            let (_, body) = &bodies[number % bodies.len()];
            let target = format!("/v1/tenants/acme-t{number}/load");
            if let Ok(mut stream) = ground.attacker.begin("POST", &target, body) {
                let _ = if waits { stream.read_to_end(&mut Vec::new()) } else { Ok(0) };
            }
        };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || (0..6).for_each(|round| attack(round * 4 + thread, round % 2 == 0)));
            }
            let mut longest = Duration::ZERO;
            for _ in 0..4 {
                let body = [br#"{"code":"()=>1//"#, "x".repeat(MIB).as_bytes(), br#""}"#].concat();
                longest = longest.max(ground.victim.answered("POST", "/v1/tenants/good-1/load", &body)?);
            }
            Ok::<_, String>(longest)
        })
    });
    gauge.quiet(BACK);
    let peak = gauge.peak().ok_or("the daemon died")?;
    let back = gauge.back_to(before + STAYS_MIB, BACK);
    let said = format!(
        "peak {peak} MiB ({allowed} allowed, {before} before), then {back:?}; the victim {served:?}; {}",
        pings.verdict(options.bench).unwrap_or_else(|error| error)
    );
    let in_time = served.as_ref().is_ok_and(|took| *took <= options.served_within());
    let held = peak <= allowed && back.is_ok() && in_time && pings.verdict(options.bench).is_ok();
    if held { Ok(said) } else { Err(said) }
}

/// Large work is done one request at a time, and uids take turns: a later uid does not wait for
/// everything that another uid has sent.
fn turns(options: Options) -> Result<String, String> {
    const BODIES: usize = 12;
    let ground = Ground::start("");
    ground.victim.served("good-1", "()=>1")?;
    // The victim's request is just large enough for the lane of the attacker's bodies.
    let (body, victims) = (escapes(4 * MIB), escapes(MIB + 1024));
    let (mut before, mut after, mut served) = (0, 0, Err(String::new()));
    std::thread::scope(|scope| {
        let begin = |number: usize| ground.attacker.begin("POST", &format!("/v1/tenants/acme-t{number}/load"), &body);
        let sent: Vec<_> = (0..BODIES).map(|number| scope.spawn(move || begin(number))).collect();
        let sent: Vec<_> = sent.into_iter().filter_map(|sent| sent.join().ok()?.ok()).collect();
        let answers = || sent.iter().filter(|stream| answered(stream)).count();
        wait(UNSERVED, || answers() > 0);
        // The victim's turn can come once its whole request has been sent.
        let begun = Instant::now();
        let asked = ground.victim.begin("PUT", "/v1/tenants/good-1/scripts/s", &victims);
        before = answers();
        served = asked.map_err(|error| error.to_string()).and_then(|stream| good_answer(stream, begun));
        after = answers();
    });
    let said = format!("{before} of {BODIES} answered when the victim had asked, {after} at its answer ({served:?})");
    // At most four more answers may come first: of the body in progress, of the one whose turn has
    // come, and those in flight. Nothing of the victim's runs, which would take time beside this.
    let in_time = served.is_ok_and(|took| !options.bench || took <= options.served_within());
    if in_time && before < BODIES / 2 && after <= before + 4 { Ok(said) } else { Err(said) }
}

/// While the daemon works on one uid's large body, another uid's small requests do not wait for it.
fn dearest(options: Options) -> Result<String, String> {
    const SMALL_BYTES: usize = 40 << 10;
    let ground = Ground::start("");
    ground.victim.served("good-1", "()=>1")?;
    ground.attacker.served("acme-1", "()=>1")?;
    let large = escapes(if options.bench { 60 * MIB } else { USUAL });
    let small = between(r#"{"code":"()=>1//"#, "x", "\"}", SMALL_BYTES);
    let ((sent, asked, served), pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let send = || ground.attacker.answered("POST", "/v1/tenants/acme-1/load", &large);
            let sent = scope.spawn(send);
            let (mut asked, mut served) = (0, Ok::<_, String>(Duration::ZERO));
            while !sent.is_finished() && served.is_ok() {
                let took = ground.victim.answered("POST", "/v1/tenants/good-1/load", &small);
                served = served.and_then(|longest| Ok(longest.max(took?)));
                asked += 1;
            }
            (sent.join().expect("it only asks"), asked, served)
        })
    });
    let said = format!("{} MiB: {sent:?}; meanwhile {asked} times 40 KiB: {served:?}", large.len() / MIB);
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    // The body must have been accepted, and the work on it must have outlasted a small request.
    if in_time && sent.is_ok() && asked > 1 { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// An error that repeats a part of a request is short, however long that part is.
fn details(_: Options) -> Result<String, String> {
    const MOST: usize = 2048 + '…'.len_utf8();
    let ground = Ground::start("");
    let long = "\u{e9}".repeat(7000);
    let name = "n".repeat(7000);
    let known = "x".repeat(1500);
    let load = "/v1/tenants/acme-1/load".to_owned();
    let mut requests = Vec::new();
    for value in [&long, &name, &known] {
        for field in ["entrypoint", "method", "mainModule", "code", "args", "env", "limits", "globalOutbound"] {
            requests.push(("POST", load.clone(), format!("{{\"code\":\"1\",\"{field}\":\"{value}\"}}")));
        }
        requests.push(("POST", load.clone(), format!("{{\"{value}\":1}}")));
        requests.push(("POST", load.clone(), format!("{{\"code\":\"1\",\"limits\":{{\"{value}\":1}}}}")));
        requests.push(("POST", load.clone(), format!("{{\"mainModule\":\"{value}\",\"modules\":{{\"{value}\":3}}}}")));
        requests.push((
            "POST",
            load.clone(),
            format!("{{\"mainModule\":\"{value}\",\"modules\":{{\"{value}.x\":\"\"}}}}"),
        ));
        requests.push(("PUT", "/v1/tenants/acme-1".to_owned(), format!("{{\"{value}\":1}}")));
        requests.push(("PUT", "/v1/tenants/acme-1".to_owned(), format!("{{\"trust\":\"{value}\"}}")));
        let order = format!("{{\"level\":\"{}\",\"reason\":\"x\"}}", &value[..1500]);
        requests.push(("PUT", "/v1/tenants/acme-1/cordon".to_owned(), order));
    }
    for value in [&name, &known] {
        requests.push(("GET", format!("/v1/tenants/{value}"), String::new()));
        requests.push(("GET", format!("/v1/tenants/acme-1/scripts/{value}"), String::new()));
        requests.push(("PUT", format!("/v1/tenants/acme-1/scripts/{value}"), "{}".to_owned()));
        requests.push(("GET", format!("/v1/events?{value}=1"), String::new()));
        requests.push(("GET", format!("/v1/tenants?limit={value}"), String::new()));
        requests.push(("GET", format!("/v1/workers?after={value}"), String::new()));
        requests.push(("DELETE", format!("/v1/tenants/acme-1/cordon?{value}=1"), String::new()));
    }
    let (mut longest, mut cut) = (0, 0);
    for (method, path, body) in &requests {
        let answer =
            ground.root.ask(method, path, body.as_bytes()).map_err(|error| format!("{method} {path}: {error}"))?;
        if answer.status < 400 {
            continue;
        }
        let problem: Value =
            serde_json::from_slice(&answer.body).map_err(|error| format!("{method} {path}: {error}"))?;
        let detail = problem["detail"].as_str().unwrap_or_default();
        longest = longest.max(detail.len());
        cut += usize::from(detail.ends_with('…'));
        if detail.len() > MOST {
            return Err(format!("{method} {path:.60}: {} bytes of detail", detail.len()));
        }
    }
    let said = format!("{} requests, at most {longest} bytes of detail, {cut} cut", requests.len());
    // Some details must have been cut, or the test has shown nothing.
    if cut > 0 { Ok(said) } else { Err(said) }
}

/// A query is part of the head, whose length is bounded. Tries every parameter of every call at the
/// greatest length.
fn queries(_: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    gauge.quiet(BACK);
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let mut sent = 0;
    for call in calls() {
        let target = call.target("acme-q");
        let unknown = ground.root.ask(call.method, &format!("{target}?%00x=1"), b"{}").map_err(|e| e.to_string())?;
        let names = fields(&unknown).unwrap_or_default();
        for name in names.iter().map(String::as_str).chain(["x"]) {
            for value in ["%01".repeat(20_000), "a&a=".repeat(15_000), "1".repeat(60_000)] {
                let target = format!("{target}?{name}={value}");
                let mut stream = ground.root.connect().map_err(|error| error.to_string())?;
                // The daemon may refuse an overlong head before it has read all of it.
                let _ = send(&mut stream, call.method, &target, &[b"{}"]);
                // Only the first bytes are read, because an answer that follows events never ends.
                let first = stream.read(&mut [0; 64]).map_err(|error| format!("{call}: {error}"))?;
                if first == 0 {
                    return Err(format!("{call}?{name}: closed without an answer"));
                }
                sent += 1;
            }
        }
    }
    let peak = gauge.peak().ok_or("the daemon died")?;
    let said = format!("{sent} queries, peak {peak} MiB, {before} before");
    if peak <= before + 64 { Ok(said) } else { Err(said) }
}
