//! The worst body of the allowed size, for every field of every request.
//!
//! Nothing here is a list that must be kept. The calls are those of the API's description, the
//! fields from what the API answers to one that it does not know (`unknown field …, expected one
//! of …`), at every depth. The supervisor may then have twice the body and 64 MiB, and must be
//! back at its size of before within ten seconds, whatever the client does.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::io::{Read, Write as _};
use std::time::{Duration, Instant};

use enisle_tests::Answer;
use serde_json::Value;

use crate::ground::{Ground, Peer, UNSERVED, answered, probed, send, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S1 peer", title: "every field of every request, by a peer", run: |options| sweep(options, false) },
    Case {
        id: "S1 root",
        title: "every field of every request that no peer may make, by root",
        run: |options| sweep(options, true),
    },
    Case { id: "S1 largest", title: "the worst known bodies at full size, one at a time", run: largest },
    Case { id: "S1 together", title: "a peer's worst bodies, four at a time, waiting and hanging up", run: together },
    Case { id: "S1 turns", title: "large work of one uid, and a request of another's", run: turns },
    Case {
        id: "S1 dearest",
        title: "the dearest body that is accepted, and small requests of another uid",
        run: dearest,
    },
    Case { id: "S1 details", title: "errors that repeat what was sent are cut", run: details },
    Case { id: "S1 queries", title: "the worst query for every call", run: queries },
];

const MIB: usize = 1 << 20;
/// Most shapes: large enough that five times the body is told from two.
const USUAL: usize = 24 * MIB;
const LARGEST: usize = 90 * MIB;
/// A trace of the attack that may stay: names of tenants, an allocator's habits.
const STAYS_MIB: u64 = 16;
const BACK: Duration = Duration::from_secs(10);
/// A tree that has failed in one way so often has been shown to.
const ENOUGH: usize = 6;

/// A call of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    method: &'static str,
    path: &'static str,
}

/// Every call: those that the API is described with, which a test of the supervisor's holds its
/// router to.
fn calls() -> Vec<Call> {
    let calls = enisle_api::OPERATIONS.iter();
    calls.map(|operation| Call { method: operation.method.as_str(), path: operation.path }).collect()
}

impl Call {
    fn has_body(&self) -> bool {
        matches!(self.method, "PUT" | "POST" | "PATCH")
    }

    fn target(&self, tenant: &str) -> String {
        self.path.replace("{tenant}", tenant).replace("{id}", "s")
    }
}

impl Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// A place in a request: names from the outside to the inside. [`ANY`] is whatever name the client
/// chooses.
type Place = Vec<String>;
const ANY: &str = "a.js";
/// No field has it.
const UNKNOWN: &str = "\\u0000x";

/// What is known of one call's body.
struct Body {
    call: Call,
    /// Objects with the names of their fields, [`ANY`] alone for a map.
    objects: BTreeMap<Place, Vec<String>>,
    /// The largest body that is read.
    most: usize,
}

impl Body {
    /// Asks the API itself; `None` if the peer may not make this call.
    fn discover(call: Call, peer: &Peer, tenant: &str, most: usize) -> Option<Self> {
        let target = call.target(tenant);
        let ask = |place: &[String], value: &str| {
            let body = place.iter().rev().fold(value.to_owned(), |inner, name| format!("{{\"{name}\":{inner}}}"));
            peer.ask(call.method, &target, body.as_bytes()).expect("the daemon answers a small request")
        };
        let probe = format!("{{\"{UNKNOWN}\":1}}");
        if ask(&[], &probe).status == 403 {
            return None;
        }
        let mut objects = BTreeMap::new();
        let mut open = vec![Place::new()];
        while let Some(place) = open.pop() {
            let own = fields(&ask(&place, &probe));
            let below: Place = place.iter().cloned().chain([ANY.to_owned()]).collect();
            let fields = match own {
                Some(fields) => fields,
                // A map takes every name; what is below it is asked then.
                None if !place.is_empty() && place.last().is_some_and(|name| name != ANY) => {
                    match fields(&ask(&below, &probe)) {
                        Some(_) => vec![ANY.to_owned()],
                        None => continue,
                    }
                }
                None => continue,
            };
            for name in &fields {
                open.push(place.iter().cloned().chain([name.clone()]).collect());
            }
            objects.insert(place, fields);
        }
        // White space is a body that is read whole and holds nothing.
        let sizes = [most, 40 * MIB, USUAL, 17 * MIB, 9 * MIB, 4 * MIB, MIB, 64 << 10, 4096];
        let fits = |size: &usize| {
            let blank = vec![b' '; *size];
            peer.ask(call.method, &target, &blank).is_ok_and(|answer| answer.status != 413)
        };
        let most = sizes.into_iter().filter(|size| *size <= most).find(fits)?;
        Some(Self { call, objects, most })
    }

    /// Every place where a value can stand, the whole body included.
    fn places(&self) -> Vec<Place> {
        let inside = self.objects.iter().flat_map(|(place, fields)| {
            fields.iter().map(|name| place.iter().cloned().chain([name.clone()]).collect())
        });
        std::iter::once(Place::new()).chain(inside).collect()
    }

    /// What stands before and behind a value there, so that the request gets as far as it can.
    fn around(&self, place: &[String]) -> (String, String) {
        let Some(first) = place.first() else { return (String::new(), String::new()) };
        let top = self.objects.get(&Place::new()).map_or(&[][..], Vec::as_slice);
        let beside = |name: &str| top.iter().any(|field| field == name) && first != name;
        let mut before = "{".to_owned();
        match first.as_str() {
            "modules" => before.push_str("\"mainModule\":\"a.js\","),
            "mainModule" => before.push_str("\"modules\":{\"a.js\":\"\"},"),
            _ => {
                for (name, value) in [("code", "()=>1"), ("level", "solo"), ("reason", "x")] {
                    if beside(name) {
                        let _ = write!(before, "\"{name}\":\"{value}\",");
                    }
                }
            }
        }
        let _ = write!(before, "\"{first}\":");
        for name in place.get(1..).unwrap_or_default() {
            let _ = write!(before, "{{\"{name}\":");
        }
        (before, "}".repeat(place.len()))
    }
}

/// The names in `unknown field …, expected one of …`.
fn fields(answer: &Answer) -> Option<Vec<String>> {
    let problem: Value = serde_json::from_slice(&answer.body).ok()?;
    let (_, known) = problem["detail"].as_str()?.split_once("unknown field")?.1.split_once("expected")?;
    Some(known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// A value of about that many bytes that costs whoever parses it more than it should.
struct Shape {
    name: &'static str,
    make: fn(usize) -> Vec<u8>,
}

const SHAPES: &[Shape] = &[
    Shape { name: "objects", make: |size| list(r#"{"a":0}"#, size) },
    Shape { name: "zeros", make: |size| list("0", size) },
    Shape { name: "strings", make: |size| list("\"\"", size) },
    Shape { name: "names", make: |size| named("\"\"", size) },
    Shape { name: "nested names", make: |size| named(r#"{"a":{}}"#, size) },
    Shape { name: "duplicates", make: |size| between("{", "\"a\":0,", "\"a\":0}", size) },
    Shape { name: "deep arrays", make: |size| [vec![b'['; size / 2], vec![b']'; size / 2]].concat() },
    Shape { name: "deep objects", make: |size| between("", "{\"a\":", "1", size) },
    Shape { name: "escapes", make: |size| between("\"", "\\n", "\"", size) },
    Shape { name: "control characters", make: |size| between("\"", "\\u0001", "\"", size) },
    Shape { name: "base64", make: |size| between("\"", "AAAA", "\"", size) },
    Shape { name: "number", make: |size| vec![b'1'; size] },
    Shape { name: "long name", make: |size| between("{\"", "\\u0001", "\":1}", size) },
    Shape { name: "blank", make: |size| [vec![b' '; size - 4], b"null".to_vec()].concat() },
];

fn between(before: &str, repeated: &str, behind: &str, size: usize) -> Vec<u8> {
    let times = size.saturating_sub(before.len() + behind.len()) / repeated.len();
    [before.as_bytes(), &repeated.as_bytes().repeat(times), behind.as_bytes()].concat()
}

fn list(item: &str, size: usize) -> Vec<u8> {
    between("[", &format!("{item},"), &format!("{item}]"), size)
}

/// An object with as many names as fit, none of them twice.
fn named(value: &str, size: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut object = b"{".to_vec();
    let mut number = 0_usize;
    while object.len() + value.len() + 9 < size {
        let letter = |place: u32| LETTERS[number / 64_usize.pow(place) % 64];
        object.push(b'"');
        object.extend([letter(0), letter(1), letter(2), letter(3)]);
        object.extend_from_slice(b"\":");
        object.extend_from_slice(value.as_bytes());
        object.push(b',');
        number += 1;
    }
    object.pop();
    object.push(b'}');
    object
}

/// What a client does once it has sent its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Waits,
    /// Having sent some more.
    HangsUp {
        behind: &'static [u8],
    },
    ReadsByteByByte,
}

/// Behind a byte that the daemon has no reason to read, it does not see the end of the connection.
const HANGS_UP: Client = Client::HangsUp { behind: b"G" };

/// Every shape at one size, made once.
struct Shapes {
    size: usize,
    made: Vec<(&'static str, Vec<u8>)>,
}

impl Shapes {
    fn of(size: usize) -> Self {
        Self { size, made: SHAPES.iter().map(|shape| (shape.name, (shape.make)(size))).collect() }
    }
}

/// What sends bodies, and what they came to.
struct Sweep<'a> {
    ground: Ground,
    config: &'a str,
    before: u64,
    root: bool,
    sent: usize,
    worst: (f64, String),
    failures: Vec<String>,
    /// Bodies after which the supervisor stayed larger.
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

    /// What a daemon has that has worked a little is what it is measured against.
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

    /// Sends one body, and holds the supervisor to what it may have for it; the MiB that it had.
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
            // What is registered stays, rightly.
            let _ = self.peer().ask("DELETE", &call.target(tenant), b"");
        }
        // A tree that never gives anything back has been shown to; the peaks are still to be seen.
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
            // The next one is measured on a daemon that has not suffered.
            self.ground = Ground::start(self.config);
            self.settle();
        }
        grown
    }

    /// The status, if the client wants to know.
    fn make(&self, call: &Call, tenant: &str, body: &[&[u8]], client: Client) -> String {
        let Ok(mut stream) = self.peer().connect() else { return "no connection".to_owned() };
        // A daemon that refuses early may stop reading.
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
            // The same code as for the peer, who has tried it already.
            continue;
        }
        let shapes = shapes.entry(body.most).or_insert_with(|| Shapes::of(body.most.saturating_sub(256)));
        for (index, place) in places.iter().enumerate() {
            let (before, behind) = body.around(place);
            // An attack costs a tenant its standing, and one that is expelled is refused unheard. A
            // script that is run has to be there, so its tenant is the one that has it.
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
            // Clients of the other kinds send what cost most; all of it, if there is time.
            costs.sort_by_key(|(cost, ..)| std::cmp::Reverse(*cost));
            let again = if options.slow { costs.len() } else { 1 };
            for (_, what, value) in costs.into_iter().take(again) {
                let pieces = [before.as_bytes(), value, behind.as_bytes()];
                for client in [HANGS_UP, Client::ReadsByteByByte] {
                    sweep.try_body(&what, &body.call, &tenant, &pieces, client);
                }
            }
            if sweep.failures.len() >= 4 * ENOUGH {
                return sweep.conclude("given up after so many failures");
            }
        }
    }
    // The fields were found, or the loops above have attacked nothing.
    let least = if root { 70 } else { 50 };
    if places_found < least {
        return Err(format!("only {places_found} places for a value were found, at least {least} are known"));
    }
    let place = if root { "root" } else { "a peer" };
    sweep.conclude(&format!("{place}, {places_found} places"))
}

/// Shapes that need the names of the fields: each field again and again, and a map of as many
/// objects as fit.
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

/// Bodies that have amplified before, on the call that has them.
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

/// A peer's bodies are bounded by its share, however many it sends at a time.
fn together(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    gauge.quiet(BACK);
    let before = gauge.rss().ok_or("the daemon died")?;
    // Half of the default pool of 256 MiB, which counts a body twice; and what a client may cost.
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

/// Large work is done one at a time, each uid in its turn: whoever comes later does not wait for
/// all that another uid has sent.
fn turns(options: Options) -> Result<String, String> {
    const BODIES: usize = 12;
    let ground = Ground::start("");
    ground.victim.served("good-1", "()=>1")?;
    let body = escapes(4 * MIB);
    let (mut before, mut after, mut served) = (0, 0, Ok(Duration::ZERO));
    std::thread::scope(|scope| {
        let begin = |number: usize| ground.attacker.begin("POST", &format!("/v1/tenants/acme-t{number}/load"), &body);
        let sent: Vec<_> = (0..BODIES).map(|number| scope.spawn(move || begin(number))).collect();
        let sent: Vec<_> = sent.into_iter().filter_map(|sent| sent.join().ok()?.ok()).collect();
        let told = || sent.iter().filter(|stream| answered(stream)).count();
        wait(UNSERVED, || told() > 0);
        before = told();
        // In the same lane: what is small has one of its own.
        served = ground.victim.answered("POST", "/v1/tenants/good-1/load", &escapes(2 * MIB));
        after = told();
    });
    let said = format!("{before} of {BODIES} answered when the victim asked, {after} when it was told ({served:?})");
    // One that is being worked at, one that has its turn already, and those that are on their way.
    let in_time = served.is_ok_and(|took| !options.bench || took <= options.served_within());
    if in_time && before < BODIES / 2 && after <= before + 4 { Ok(said) } else { Err(said) }
}

/// A request whose code is escapes of two characters: nothing that is accepted costs more.
fn escapes(size: usize) -> Vec<u8> {
    between(r#"{"code":"()=>1//"#, "\\n", "\"}", size)
}

/// While one uid's large body is worked at, another one's small requests do not wait for it.
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
    // It was accepted, and the work at it lasted.
    if in_time && sent.is_ok() && asked > 1 { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// Whatever an error repeats of a request, it is short.
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
    // Some would have been longer, or this has shown nothing.
    if cut > 0 { Ok(said) } else { Err(said) }
}

/// A query is part of the head, which is bounded; every parameter that a call knows, as long as it
/// may be.
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
                // A head that is too long is refused before it has been read.
                let _ = send(&mut stream, call.method, &target, &[b"{}"]);
                // Some follow for ever.
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
