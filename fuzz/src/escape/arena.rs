//! A daemon with victims, with attackers that come and go, and with the threads that watch them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, wait};
use fastrand::Rng;
use serde_json::{Value, json};

use super::deeds::Deeds;
use super::grammar::Memory;
use super::ledger::{ATTACKER, Broken, Ledger, call_in};
use super::outside::Outside;
use super::program::{Op, Program};
use super::victims::{Answer, Client, Victim, Victims, leaked};
use super::{reach, stream};

/// The limits of an attacker's run. Programs are small, and some never end by themselves.
const LIMITS: Limits = Limits { cpu_ms: 100, wall_ms: 1500, memory_mb: 48, log_lines: 100 };
/// If a run uses more than this, its limit was not armed. Below this, a busy machine or V8 may be
/// late in ending the run, and a heap may be twice its limit if buffers count too.
const UNARMED: Limits = Limits { cpu_ms: 1100, wall_ms: 10_000, memory_mb: 128, log_lines: 110 };

impl Limits {
    /// The same limits, with longer times for a machine that is `times` slower.
    fn slower(&self, times: u32) -> Self {
        Self { cpu_ms: self.cpu_ms * times, wall_ms: self.wall_ms * times, ..*self }
    }
}

/// The longest run of a victim on a machine that is not slow.
const USUAL_MS: u128 = 40;

#[derive(Debug)]
struct Limits {
    cpu_ms: u32,
    wall_ms: u32,
    memory_mb: u32,
    log_lines: u32,
}

/// The pauses leave the processors to the attackers most of the time.
const BETWEEN_VISITS: Duration = Duration::from_millis(100);
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// How many of the last programs may have caused a finding.
const RECENT: usize = 24;

/// The counts of a run, which are printed after each round.
#[derive(Debug, Default)]
pub struct Counts {
    /// Runs of attackers whose process was alive afterwards, and runs that ended their process.
    pub alive: AtomicU64,
    pub ended: AtomicU64,
    pub visits: AtomicU64,
    /// Requests for runs that the daemon refused.
    pub refused: AtomicU64,
    pub deaths: AtomicU64,
    pub looks: AtomicU64,
    /// CPU time of the daemons and their workers, in milliseconds.
    pub computed_ms: AtomicU64,
}

/// A daemon with its watchers.
#[derive(Debug)]
pub struct Arena {
    daemon: Daemon,
    keys: bool,
    /// How many times slower than most this machine is. The emulated machine is slower.
    slow: u32,
    victims: Victims,
    ledger: Mutex<Ledger>,
    outside: Outside,
    recent: Mutex<VecDeque<Program>>,
    names: AtomicU64,
    /// How many rounds of visits to all victims have ended.
    rounds: AtomicU64,
    broken: Mutex<Option<(Broken, Vec<Program>)>>,
    over: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(worker: &Path) -> String {
    // Tenants share processes even without keys. Suspicion ends soon, so that victims come back
    // into company. All tenants belong to one uid, so its budget of deaths is turned off: otherwise
    // all would be on probation. An attacker lives in company until it is found out, then alone,
    // then sealed.
    format!(
        "[workers]\nprogram = {:?}\nshare_without_keys = true\n[defaults.quota]\nper_second = 1000000\n\
         burst = 1000000\n[cordon.rules]\nsuspicion_secs = 20\nunexplained_secs = 1\n\
         [cordon.rules.deaths]\nbudget = 0\n[defaults.limits]\ncpu_ms = 60000\nwall_ms = 120000\n",
        worker.display().to_string()
    )
}

impl Arena {
    /// Starts a daemon, and visits every victim once.
    ///
    /// # Errors
    /// A victim is not served, although nothing has attacked it yet.
    pub fn open(keys: bool, victims: usize, seed: u64) -> Result<Self, Broken> {
        let daemon = Daemon::start(&config(&enisle_tests::attack_worker()));
        let mut rng = Rng::with_seed(seed);
        let victims = Victims::new(victims, &mut rng);
        let mut client = Client::new(&daemon.socket());
        let mut took = Duration::ZERO;
        for index in (0..victims.all().len()).chain([0]) {
            let begun = Instant::now();
            victims.visit(&mut client, index, &mut rng, || false)?;
            took = begun.elapsed();
        }
        // The time of the last visit counts, because that victim's script was registered before.
        let slow = u32::try_from(took.as_millis() / USUAL_MS).unwrap_or(1).clamp(1, 8);
        let outside = Outside::new(daemon.pid(), daemon.folder.path());
        Ok(Self {
            daemon,
            keys,
            slow,
            victims,
            ledger: Mutex::default(),
            outside,
            recent: Mutex::default(),
            names: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            broken: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// Lets attackers run until `until`, or until an invariant breaks. Returns the broken
    /// invariant, and the programs that may have broken it.
    pub fn fight(
        &self,
        attackers: usize,
        until: Instant,
        memory: &Mutex<Memory>,
        counts: &Counts,
        rng: &mut Rng,
    ) -> Option<(Broken, Vec<Program>)> {
        let follower = self.follow().ok()?;
        std::thread::scope(|scope| {
            scope.spawn(|| self.keep_ledger(&follower, memory));
            let visits = scope.spawn({
                let mut rng = rng.fork();
                move || self.visit_in_turn(counts, &mut rng)
            });
            scope.spawn(|| self.look_in_turn(counts));
            let attackers: Vec<_> = (0..attackers)
                .map(|_| {
                    let mut rng = rng.fork();
                    scope.spawn(move || self.attack_in_turn(memory, counts, &mut rng))
                })
                .collect();
            wait::within(until.saturating_duration_since(Instant::now()), || self.is_over());
            self.over.store(true, Ordering::SeqCst);
            attackers.into_iter().for_each(|thread| drop(thread.join()));
            drop(visits.join());
            self.settle(counts, rng);
            let _ = follower.shutdown(Shutdown::Both);
        });
        let computed = Duration::from_secs_f64(self.outside.computed());
        counts.computed_ms.fetch_add(u64::try_from(computed.as_millis()).unwrap_or(0), Ordering::Relaxed);
        counts.deaths.fetch_add(locked(&self.ledger).deaths(), Ordering::Relaxed);
        locked(&self.broken).take()
    }

    /// Runs these programs one after the other, each as a new attacker. Visits all victims after
    /// each program, and examines everything at the end.
    pub fn replay(&self, programs: &[Program], counts: &Counts, rng: &mut Rng) -> Option<Broken> {
        let (follower, memory) = (self.follow().ok()?, Mutex::default());
        std::thread::scope(|scope| {
            scope.spawn(|| self.keep_ledger(&follower, &memory));
            let mut client = Client::new(&self.daemon.socket());
            for program in programs {
                if self.is_over() {
                    break;
                }
                let name = self.new_name();
                let _ = self.attack(&mut client, &name, program, &memory, counts, rng);
                self.visit_all(&mut client, counts, rng);
            }
            self.settle(counts, rng);
            let _ = follower.shutdown(Shutdown::Both);
        });
        locked(&self.broken).take().map(|(broken, _)| broken)
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = self.daemon.log();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().map(|line| line.chars().take(400).collect::<String>()).collect::<Vec<_>>().join("\n")
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn new_name(&self) -> String {
        format!("{ATTACKER}{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends the fight. Only the first broken invariant is kept.
    fn breaks(&self, broken: Broken) {
        let recent = locked(&self.recent).iter().cloned().collect();
        locked(&self.broken).get_or_insert((broken, recent));
        self.over.store(true, Ordering::SeqCst);
    }

    /// Visits all victims, waits until all evidence has come, and looks at everything once more.
    fn settle(&self, counts: &Counts, rng: &mut Rng) {
        let mut client = Client::new(&self.daemon.socket());
        self.visit_all(&mut client, counts, rng);
        wait::within(wait::PATIENCE, || {
            let mut ledger = locked(&self.ledger);
            let overdue = ledger.overdue(Instant::now());
            let is_settled = ledger.is_settled();
            drop(ledger);
            let is_broken = !overdue.is_empty();
            overdue.into_iter().for_each(|broken| self.breaks(broken));
            is_settled || is_broken
        });
        self.look(&mut client, counts);
    }

    fn follow(&self) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.daemon.socket())?;
        stream.write_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nhost: enisle\r\n\r\n")?;
        Ok(stream)
    }

    /// Enters every event into the ledger, until the stream of events ends.
    fn keep_ledger(&self, stream: &UnixStream, memory: &Mutex<Memory>) {
        let _ = stream::events(&mut BufReader::new(stream), |event| {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            let shown = format!("event {} {} {} {}", text("event"), text("layer"), text("to"), text("blame"));
            locked(memory).saw(shown);
            let broken = locked(&self.ledger).event(event);
            broken.into_iter().for_each(|broken| self.breaks(broken));
        });
    }

    fn visit_in_turn(&self, counts: &Counts, rng: &mut Rng) {
        let mut client = Client::new(&self.daemon.socket());
        while !self.is_over() {
            self.visit_all(&mut client, counts, rng);
            wait::within(BETWEEN_VISITS, || self.is_over());
        }
    }

    fn visit_all(&self, client: &mut Client, counts: &Counts, rng: &mut Rng) {
        for index in 0..self.victims.all().len() {
            let may_be_lost = || locked(&self.ledger).silent() > 0;
            counts.visits.fetch_add(1, Ordering::Relaxed);
            if let Err(broken) = self.victims.visit(client, index, rng, may_be_lost) {
                return self.breaks(broken);
            }
        }
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }

    fn look_in_turn(&self, counts: &Counts) {
        let mut client = Client::new(&self.daemon.socket());
        while !self.is_over() {
            self.look(&mut client, counts);
            let overdue = locked(&self.ledger).overdue(Instant::now());
            overdue.into_iter().for_each(|broken| self.breaks(broken));
            wait::within(BETWEEN_LOOKS, || self.is_over());
        }
    }

    fn look(&self, client: &mut Client, counts: &Counts) {
        counts.looks.fetch_add(1, Ordering::Relaxed);
        let homes = match self.homes(client) {
            Ok(homes) => homes,
            Err(broken) => return self.breaks(broken),
        };
        let mut broken = self.outside.look();
        broken.extend(self.outside.look_at_memory(
            &homes,
            &self.victims.islands(),
            self.rounds.load(Ordering::SeqCst),
            self.keys,
        ));
        broken.into_iter().for_each(|broken| self.breaks(broken));
    }

    /// The processes that have victims, each with its victims.
    fn homes(&self, client: &mut Client) -> Result<BTreeMap<i32, Vec<Victim>>, Broken> {
        let victims = self.victims.all();
        let listed = client.request("GET", "/v1/workers", &Value::Null)?.json();
        let mut homes: BTreeMap<i32, Vec<Victim>> = BTreeMap::new();
        for worker in listed["workers"].as_array().into_iter().flatten() {
            let Some(pid) = worker["pid"].as_i64().and_then(|pid| pid.try_into().ok()) else { continue };
            let names = worker["tenants"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let here = names.filter_map(|name| victims.iter().find(|victim| victim.name == name).cloned());
            homes.entry(pid).or_default().extend(here);
        }
        homes.retain(|_, victims| !victims.is_empty());
        Ok(homes)
    }

    fn attack_in_turn(&self, memory: &Mutex<Memory>, counts: &Counts, rng: &mut Rng) {
        let (grammar, mut client) = (super::grammar::Grammar { keys: self.keys }, Client::new(&self.daemon.socket()));
        let mut name = self.new_name();
        while !self.is_over() {
            let program = grammar.program(&locked(memory), rng);
            let goes_on = self.attack(&mut client, &name, &program, memory, counts, rng);
            // An attacker that is found out goes on, alone and then sealed, until it is refused.
            if !goes_on || rng.u8(..100) == 0 {
                name = self.new_name();
            }
        }
    }

    /// Runs a program as this tenant. Returns whether the tenant should go on.
    fn attack(
        &self,
        client: &mut Client,
        name: &str,
        program: &Program,
        memory: &Mutex<Memory>,
        counts: &Counts,
        rng: &mut Rng,
    ) -> bool {
        locked(&self.ledger).will(name, Deeds::of(program));
        let mut recent = locked(&self.recent);
        recent.push_back(program.clone());
        let surplus = recent.len().saturating_sub(RECENT);
        recent.drain(..surplus);
        drop(recent);
        let (mut goes_on, attacks) = (true, Deeds::of(program).attacks());
        for answer in self.runs_of(client, name, program) {
            let judged = answer.and_then(|answer| judged(&answer, self.slow, attacks).map(|()| answer));
            match judged {
                Err(broken) => self.breaks(broken),
                Ok(answer) => goes_on &= self.learn(name, program, &answer, memory, counts, rng),
            }
        }
        goes_on
    }

    /// The answers to a program's runs.
    fn runs_of(&self, client: &mut Client, name: &str, program: &Program) -> Vec<Result<Answer, Broken>> {
        let limits = LIMITS.slower(self.slow);
        let limits = json!({
            "cpuMs": limits.cpu_ms, "wallMs": limits.wall_ms, "memoryMb": limits.memory_mb, "logLines": limits.log_lines,
        });
        // The natives lift the limit of memory, so only a program that uses natives gets them.
        let props = json!({ "attack": Deeds::of(program).attacks() });
        let call = json!({ "args": [self.victims.scene(self.keys)], "props": props });
        let with = |mut fields: Value| {
            if let (Some(fields), Some(call)) = (fields.as_object_mut(), call.as_object()) {
                fields.extend(call.clone());
            }
            fields
        };
        let code = program.script();
        if program.kept_runs == 0 {
            let load = with(json!({ "code": code, "limits": limits }));
            return vec![client.request("POST", &format!("/v1/tenants/{name}/load"), &load)];
        }
        let script = format!("/v1/tenants/{name}/scripts/a");
        let register = json!({ "code": code, "limits": limits });
        if let Err(broken) = client.request("PUT", &format!("{script}?replace=1"), &register) {
            return vec![Err(broken)];
        }
        (0..program.kept_runs).map(|_| client.request("POST", &format!("{script}/run"), &with(json!({})))).collect()
    }

    /// Remembers the results of a program. Returns whether its tenant should go on.
    fn learn(
        &self,
        name: &str,
        program: &Program,
        answer: &Answer,
        memory: &Mutex<Memory>,
        counts: &Counts,
        rng: &mut Rng,
    ) -> bool {
        let (found, mut memory) = (answer.json(), locked(memory));
        if answer.status != 200 {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            memory.saw(format!("answer {}", answer.status));
            return false;
        }
        let outcome = found["outcome"].as_str().unwrap_or_default();
        let message = found["error"]["message"].as_str().unwrap_or_default();
        let mut is_new = memory.saw(format!("outcome {outcome} {} {}", found["cordon"], call_in(message).is_some()));
        for line in found["result"]["out"].as_array().into_iter().flatten() {
            let op = line[0].as_u64().and_then(|at| program.ops.get(usize::try_from(at).ok()?));
            if let Some(op) = op {
                let result = line[1].as_str().unwrap_or_default();
                is_new |= memory.returned(op, result);
                reach::returned(op, result).into_iter().for_each(|broken| self.breaks(broken));
            }
        }
        let has_ended = ["violation", "workerLost"].contains(&outcome);
        if has_ended {
            counts.ended.fetch_add(1, Ordering::Relaxed);
            let guilty = |op: &&Op| call_in(message).is_some_and(|call| Deeds::of_op(op).has_call(call));
            if let Some(op) = program.ops.iter().rev().find(guilty).or_else(|| program.ops.last()) {
                memory.ended(op);
                is_new |= memory.saw(format!("{} ended", op.class()));
            }
        } else {
            counts.alive.fetch_add(1, Ordering::Relaxed);
        }
        if is_new {
            memory.keep(program.clone(), rng);
        }
        drop(memory);
        if outcome == "violation" {
            locked(&self.ledger).ended_as_violation(name);
        }
        true
    }
}

/// Checks that an attacker may get such an answer. With natives (`attacks`), the limit of memory is
/// not checked, because natives lift it.
fn judged(answer: &Answer, slow: u32, attacks: bool) -> Result<(), Broken> {
    if let Some(broken) = leaked(&answer.body) {
        return Err(broken);
    }
    let found = answer.json();
    let outcome = found["outcome"].as_str().unwrap_or_default();
    let known = [200, 403, 404, 429, 503].contains(&answer.status);
    if !known || outcome == "internalError" {
        return Err(Broken::new("answers", format!("{} {}", answer.status, answer.text())));
    }
    let used = |key: &str| found["usage"][key].as_f64().unwrap_or(0.0);
    let lines = found["logs"].as_array().map_or(0, Vec::len);
    let unarmed = UNARMED.slower(slow);
    let is_over = used("cpuMs") > f64::from(unarmed.cpu_ms)
        || used("wallMs") > f64::from(unarmed.wall_ms)
        || !attacks && used("peakHeapBytes") > f64::from(unarmed.memory_mb << 20)
        || lines > UNARMED.log_lines as usize;
    if is_over {
        let said = format!("{lines} lines; a run with {LIMITS:?} used {}, {outcome}", found["usage"]);
        return Err(Broken::new("limits", said));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer { status, body: body.to_string().into_bytes(), took: Duration::ZERO }
    }

    #[test]
    fn an_answer_that_no_attacker_may_get_is_a_finding() {
        let invariant = |answer: Answer| judged(&answer, 1, false).err().map(|broken| broken.invariant);
        assert_eq!(invariant(answer(200, &json!({ "outcome": "violation", "usage": { "cpuMs": 3.5 } }))), None);
        assert_eq!(invariant(answer(200, &json!({ "outcome": "internalError" }))), Some("answers"));
        assert_eq!(invariant(answer(500, &json!({}))), Some("answers"));
        assert_eq!(invariant(answer(200, &json!({ "outcome": "ok", "usage": { "cpuMs": 1400.0 } }))), Some("limits"));
        let held = answer(200, &json!({ "outcome": "ok", "usage": { "peakHeapBytes": 300 << 20 } }));
        assert_eq!((judged(&held, 1, true), invariant(held)), (Ok(()), Some("limits")));
        let leak = json!({ "outcome": "ok", "result": "canary-00" });
        assert_eq!(invariant(answer(200, &leak)), Some("canaries"));
    }
}
