//! The steady load: clients of many tenants, and the answers that they get. Each client is a thread
//! with a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use enisle_api::client::blocking::{Connection, Response};
use serde_json::json;

use super::ground::{Ground, Lives, PATIENCE};
use super::oracle::{self, CPU_MS, Disturbed, Kind, LARGE, Tally};
use crate::Finding;

/// The pause of a client between two requests, in milliseconds, so that the machine is busy but not
/// overloaded.
const PAUSE_MS: std::ops::Range<u64> = 5..60;
/// The pause of a client after a request or a connection was refused.
const RETRY: Duration = Duration::from_millis(50);

/// How a tenant's clients and scripts behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Its scripts behave well.
    Good,
    /// Its scripts exceed limits.
    Bad,
    /// Its quota allows one run at a time, and it has several clients.
    Narrow,
    /// Its clients often close the connection before the answer.
    Leaving,
    /// An operator gives orders about the tenant.
    Ordered,
}

/// A tenant of the load.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) habit: Habit,
    /// How many expulsions may have taken effect so far.
    pub(crate) expulsions: AtomicU64,
    /// An expulsion may be in force.
    pub(crate) may_be_expelled: AtomicBool,
    /// The number of the expulsion that is certainly in force; 0 if there is none.
    pub(crate) is_expelled: AtomicU64,
}

/// What is known at one moment about a tenant's expulsion.
#[derive(Debug, Clone, Copy)]
struct Expelled {
    possible: bool,
    count: u64,
    certain: u64,
}

impl Tenant {
    fn expelled(&self) -> Expelled {
        Expelled {
            possible: self.may_be_expelled.load(Ordering::SeqCst),
            count: self.expulsions.load(Ordering::SeqCst),
            certain: self.is_expelled.load(Ordering::SeqCst),
        }
    }
}

/// For each habit: how many tenants have it, and how many clients each of these tenants has.
const TENANTS: &[(&str, Habit, usize, usize)] = &[
    ("good", Habit::Good, 6, 2),
    ("bad", Habit::Bad, 2, 1),
    ("narrow", Habit::Narrow, 1, 3),
    ("leaving", Habit::Leaving, 1, 2),
    ("ordered", Habit::Ordered, 3, 1),
];

/// What all threads of a run share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    ground: RwLock<Ground>,
    socket: PathBuf,
    pub(crate) lives: Arc<Lives>,
    pub(crate) tenants: Vec<Tenant>,
    /// Clients send requests.
    pub(crate) loaded: AtomicBool,
    disturbed: Mutex<Disturbed>,
    book: Mutex<Book>,
    findings: Mutex<Vec<Finding>>,
    tokens: AtomicU64,
    /// The machine's clock was moved.
    pub(crate) clock_moved: AtomicBool,
}

/// The record of all answers that clients got.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By the daemon's life and the tenant's number.
    pub(crate) tallies: BTreeMap<(u64, usize), Tally>,
    /// For each isolate of a registered script, the numbers of its runs.
    pub(crate) kept: BTreeMap<String, BTreeSet<u64>>,
    /// How long runs of the narrow tenant held their places in this round, in milliseconds.
    pub(crate) narrow_held_ms: f64,
    /// How many answers there were by outcome, or by status if it was not 200.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, ground: Ground) -> Self {
        let tenant = |name: &str, habit, number| Tenant {
            name: format!("{name}-{number}"),
            habit,
            expulsions: AtomicU64::new(0),
            may_be_expelled: AtomicBool::new(false),
            is_expelled: AtomicU64::new(0),
        };
        let of = |(name, habit, count, _): &(&str, Habit, usize, usize)| {
            (0..*count).map(|number| tenant(name, *habit, number)).collect::<Vec<_>>()
        };
        Self {
            seed,
            socket: ground.socket(),
            lives: ground.lives(),
            ground: RwLock::new(ground),
            tenants: TENANTS.iter().flat_map(of).collect(),
            loaded: AtomicBool::new(false),
            disturbed: Mutex::default(),
            book: Mutex::default(),
            findings: Mutex::default(),
            tokens: AtomicU64::new(1),
            clock_moved: AtomicBool::new(false),
        }
    }

    /// For each client, the number of its tenant.
    pub(crate) fn clients(&self) -> Vec<usize> {
        let of = |(number, tenant): (usize, &Tenant)| {
            let clients = TENANTS.iter().find(|row| row.1 == tenant.habit).map_or(0, |row| row.3);
            vec![number; clients]
        };
        self.tenants.iter().enumerate().flat_map(of).collect()
    }

    pub(crate) fn ground(&self) -> RwLockReadGuard<'_, Ground> {
        self.ground.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ground_to_change(&self) -> RwLockWriteGuard<'_, Ground> {
        self.ground.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disturbed(&self) -> Disturbed {
        *self.disturbed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_disturbed(&self, change: impl FnOnce(&mut Disturbed)) {
        change(&mut self.disturbed.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn found(&self, what: &str, said: impl Into<String>) {
        let finding = Finding { what: what.to_owned(), seed: self.seed, said: said.into() };
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn token(&self) -> String {
        format!("token-{}", self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn has_moved_clock(&self) -> bool {
        self.clock_moved.load(Ordering::SeqCst)
    }

    fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::SeqCst)
    }
}

/// One client of one tenant.
#[derive(Debug)]
pub(crate) struct Client<'w> {
    world: &'w World,
    tenant: usize,
    random: fastrand::Rng,
    /// The connection, and the life of the daemon that it leads to.
    open: Option<(u64, Connection)>,
    /// The life in which the tenant's script was registered.
    registered: u64,
}

/// The result of a request.
#[derive(Debug)]
pub(crate) enum Heard {
    Answer {
        life: u64,
        answer: Response,
        disturbed: Disturbed,
    },
    /// The request may have been received, but no answer came from that life.
    Lost {
        life: u64,
    },
    /// The request was not sent.
    NotSent,
}

impl<'w> Client<'w> {
    pub(crate) fn new(world: &'w World, number: usize, tenant: usize) -> Self {
        let random = fastrand::Rng::with_seed(world.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { world, tenant, random, open: None, registered: 0 }
    }

    /// Sends requests until the load is over, one at a time.
    pub(crate) fn work(&mut self) {
        while self.world.is_loaded() {
            let kind = self.kind();
            if self.tenant().habit == Habit::Leaving && self.random.u32(0..3) > 0 {
                self.go_away();
            } else {
                self.run(kind);
            }
            // A place that was given back too early shows only if all clients want it all the time.
            if self.tenant().habit != Habit::Narrow {
                thread::sleep(Duration::from_millis(self.random.u64(PAUSE_MS)));
            }
        }
        self.open = None;
    }

    fn tenant(&self) -> &'w Tenant {
        &self.world.tenants[self.tenant]
    }

    fn kind(&mut self) -> Kind {
        let number = self.random.u32(0..100);
        match self.tenant().habit {
            Habit::Good => match number {
                0..30 => Kind::Returns,
                30..50 => Kind::Waits,
                50..60 => Kind::Throws,
                60..68 => Kind::Large,
                _ => Kind::Kept,
            },
            Habit::Bad => match number {
                0..25 => Kind::Spins,
                25..35 => Kind::Stuck,
                35..55 => Kind::Fills,
                55..70 => Kind::Talks,
                70..85 => Kind::KeptSpins,
                _ => Kind::Returns,
            },
            Habit::Narrow => Kind::Waits,
            Habit::Leaving => Kind::Returns,
            Habit::Ordered if number < 50 => Kind::Waits,
            Habit::Ordered => Kind::Returns,
        }
    }

    /// How long a script waits for its timer, in milliseconds. Some runs of ordered tenants take
    /// longer than `cordon.drain_secs`, so that their home is fenced if the tenant moves.
    fn wait_ms(&mut self) -> u64 {
        let range = match self.tenant().habit {
            Habit::Ordered => 20..2_500,
            Habit::Narrow => 200..500,
            Habit::Good | Habit::Bad | Habit::Leaving => 20..120,
        };
        self.random.u64(range)
    }

    /// Requests one run. Returns whether the request was served: the run ended, or was refused
    /// because the tenant is expelled.
    pub(crate) fn run(&mut self, kind: Kind) -> bool {
        if matches!(kind, Kind::Kept | Kind::KeptSpins) && !self.register() {
            return false;
        }
        let (token, wait_ms) = (self.world.token(), self.wait_ms());
        let (path, body) = request(&self.tenant().name, kind, &token, wait_ms);
        let before = self.tenant().expelled();
        let heard = self.ask("POST", &path, body.as_bytes());
        let after = self.tenant().expelled();
        let (life, answer, disturbed) = match heard {
            Heard::Answer { life, answer, disturbed } => (life, answer, disturbed),
            Heard::Lost { life } => {
                self.tally(life, |tally| tally.unheard += 1);
                return false;
            }
            Heard::NotSent => return false,
        };
        let text = || String::from_utf8_lossy(&answer.body).into_owned();
        if answer.status != 200 {
            *self.world.book().counts.entry(answer.status.to_string()).or_default() += 1;
        }
        match answer.status {
            200 if before.certain != 0 && before.certain == after.certain => {
                self.world
                    .found("orders", format!("a run of {} while it was expelled: {}", self.tenant().name, text()));
            }
            200 => self.ended(kind, &token, life, &answer.body, disturbed),
            403 if before.possible || after.possible || before.count != after.count => return true,
            429 if self.tenant().habit == Habit::Narrow => thread::sleep(RETRY),
            503 if disturbed.at_all || self.world.lives.is_doomed(life) => thread::sleep(RETRY),
            // The run ended, but the daemon had no memory for the answer.
            507 if disturbed.starved => self.tally(life, |tally| tally.unheard += 1),
            status => self.world.found("answer", format!("{kind:?} of {}: {status} {}", self.tenant().name, text())),
        }
        answer.status == 200
    }

    fn ended(&mut self, kind: Kind, token: &str, life: u64, body: &[u8], disturbed: Disturbed) {
        let ended = match oracle::answer(kind, token, body, disturbed) {
            Ok(ended) => ended,
            Err(said) => return self.world.found("answer", format!("{}: {said}", self.tenant().name)),
        };
        self.tally(life, |tally| tally.note(&ended));
        let mut book = self.world.book();
        *book.counts.entry(ended.outcome).or_default() += 1;
        if self.tenant().habit == Habit::Narrow {
            book.narrow_held_ms += ended.held_ms;
        }
        let Some((isolate, number)) = ended.kept else { return };
        if !book.kept.entry(isolate.clone()).or_default().insert(number) {
            self.world.found("kept", format!("two answers say that they are run {number} of isolate {isolate}"));
        }
    }

    fn tally(&self, life: u64, note: impl FnOnce(&mut Tally)) {
        note(self.world.book().tallies.entry((life, self.tenant)).or_default());
    }

    /// Registers the tenant's script, unless this client has done so in the life that its
    /// connection leads to. Returns whether the script is registered there.
    fn register(&mut self) -> bool {
        if !self.connect() {
            return false;
        }
        if self.open.as_ref().is_some_and(|(life, _)| *life == self.registered) {
            return true;
        }
        let path = format!("/v1/tenants/{}/scripts/kept", self.tenant().name);
        let body = json!({ "mainModule": "main.js", "modules": { "main.js": KEPT }, "limits": { "cpuMs": CPU_MS } });
        let heard = self.ask("PUT", &path, body.to_string().as_bytes());
        let Heard::Answer { life, answer, disturbed } = heard else { return false };
        match answer.status {
            200 | 201 => self.registered = life,
            503 if disturbed.at_all || self.world.lives.is_doomed(life) => thread::sleep(RETRY),
            status => {
                let text = String::from_utf8_lossy(&answer.body);
                self.world.found("answer", format!("registering: {status} {text}"));
            }
        }
        self.registered == life && self.open.as_ref().is_some_and(|(open, _)| *open == life)
    }

    /// Requests a run, and closes the connection before there can be an answer.
    fn go_away(&mut self) {
        let (token, wait_ms) = (self.world.token(), 300);
        let (path, body) = request(&self.tenant().name, Kind::Waits, &token, wait_ms);
        let life = self.world.lives.current();
        let Ok(mut stream) = UnixStream::connect(&self.world.socket) else { return thread::sleep(RETRY) };
        let head = format!("POST {path} HTTP/1.1\r\nhost: enisle\r\ncontent-length: {}\r\n\r\n", body.len());
        let sent = stream.set_write_timeout(Some(PATIENCE)).and_then(|()| stream.write_all((head + &body).as_bytes()));
        if sent.is_ok() {
            thread::sleep(Duration::from_millis(self.random.u64(0..150)));
        }
        // The request may have reached either of these two lives.
        for life in [life, self.world.lives.current()].into_iter().collect::<BTreeSet<_>>() {
            self.tally(life, |tally| tally.unheard += 1);
        }
    }

    /// Connects to the current life, if it listens and there is no connection yet.
    fn connect(&mut self) -> bool {
        if self.open.is_some() {
            return true;
        }
        let life = self.world.lives.current();
        // A life begins after the previous life has ended. So if the life is the same before and
        // after connecting, the connection leads to that life.
        match Connection::open(&self.world.socket, PATIENCE) {
            Ok(connection) if self.world.lives.current() == life => self.open = Some((life, connection)),
            _ => thread::sleep(RETRY),
        }
        self.open.is_some()
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Heard {
        if !self.connect() {
            return Heard::NotSent;
        }
        let Some((life, mut connection)) = self.open.take() else { return Heard::NotSent };
        let begun = Instant::now();
        match connection.request(method, path, body) {
            Ok(answer) => {
                if answer.status < 500 && !answer.head.to_ascii_lowercase().contains("connection: close") {
                    self.open = Some((life, connection));
                }
                Heard::Answer { life, answer, disturbed: self.world.disturbed() }
            }
            Err(error) => self.unanswered(life, path, &error, begun),
        }
    }

    fn unanswered(&self, life: u64, path: &str, error: &io::Error, begun: Instant) -> Heard {
        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            let secs = begun.elapsed().as_secs();
            self.world.found("answer", format!("no answer to {path} for {secs} s, in life {life}"));
        } else if !self.world.lives.is_doomed(life) && !self.world.disturbed().without_descriptors {
            self.world.found("answer", format!("the connection to a daemon that lives was closed: {path}: {error}"));
        }
        Heard::Lost { life }
    }
}

/// A module that numbers the runs of its isolate.
const KEPT: &str = "
    const isolate = crypto.randomUUID();
    let number = 0;
    export default { run(token, spins) {
        console.log(token);
        number += 1;
        while (spins);
        return { token, isolate, number };
    } }";

/// The path and the body of a run.
fn request(tenant: &str, kind: Kind, token: &str, wait_ms: u64) -> (String, String) {
    let load = |code: &str, limits| {
        let body = json!({ "code": code, "args": [token, wait_ms], "limits": limits });
        (format!("/v1/tenants/{tenant}/load"), body.to_string())
    };
    let kept =
        |spins: bool| (format!("/v1/tenants/{tenant}/scripts/kept/run"), json!({ "args": [token, spins] }).to_string());
    match kind {
        Kind::Kept => kept(false),
        Kind::KeptSpins => kept(true),
        Kind::Returns => load("token => { console.log(token); return token }", json!({})),
        Kind::Waits => load(
            "async (token, ms) => { console.log(token); await new Promise(done => setTimeout(done, ms)); return token }",
            json!({}),
        ),
        Kind::Throws => load("token => { console.log(token); throw new Error(token) }", json!({})),
        Kind::Large => {
            load(&format!("token => {{ console.log(token); return token + 'x'.repeat({LARGE}) }}"), json!({}))
        }
        Kind::Spins => load("token => { console.log(token); for (;;); }", json!({ "cpuMs": CPU_MS })),
        Kind::Stuck => load(
            "token => { console.log(token); Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1) }",
            json!({ "cpuMs": CPU_MS }),
        ),
        Kind::Fills => load(
            "token => { console.log(token); const all = []; for (;;) all.push(new Array(1000).fill(0)) }",
            json!({ "memoryMb": 16 }),
        ),
        Kind::Talks => load("token => { console.log(token); return 'x'.repeat(5000) }", json!({ "outputBytes": 1000 })),
    }
}
