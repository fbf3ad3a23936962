//! The ledger records which tenant made which attacks, and checks the daemon's events against that.
//!
//! | invariant | broken by |
//! |---|---|
//! | `attribution` | evidence against a victim, against nobody, or against the wrong attacker |
//! | `layer` | evidence that names another layer than the one that stops the attack |
//! | `record` | a process that died, or a run that ended as a violation, without evidence |
//! | `limits` | a run that the supervisor had to end, because nothing in the worker did |
//! | `worker` | a worker that verification rejected, or a broken record of the daemon |
//! | `tags` | pages with a wrong key, which the daemon's own inspection found |

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::deeds::Deeds;

/// How long evidence may take after the death of a process or the end of a run.
const GRACE: Duration = Duration::from_secs(10);

/// An invariant that does not hold, and what was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub invariant: &'static str,
    pub said: String,
}

impl Broken {
    pub fn new(invariant: &'static str, said: impl Into<String>) -> Self {
        Self { invariant, said: said.into() }
    }
}

/// Evidence that must still come.
#[derive(Debug)]
struct Owed {
    since: Instant,
    worker: Option<u64>,
    /// The evidence must name an attacker among these tenants.
    tenants: Vec<String>,
    /// Instead of evidence, a decision about that attacker is enough.
    is_decision_enough: bool,
    what: String,
}

/// A part of the supervisor's reason for ending a process whose run did not end otherwise.
const NEVER_ENDED: &str = "neither ended nor was ended by its watchdog";

/// The attacks of all attackers, and the daemon's events about them.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By tenant, the attacks of all its programs.
    deeds: BTreeMap<String, Deeds>,
    /// By tenant, the attacks of its current program.
    current: BTreeMap<String, Deeds>,
    owed: Vec<Owed>,
    /// The workers and the tenants that evidence named, and the tenants that a decision named.
    workers: BTreeSet<u64>,
    accused: BTreeSet<String>,
    named: BTreeSet<String>,
    /// The tenants some of whose evidence is merged into an event with a `count`, which names only
    /// the first worker.
    merged: BTreeSet<String>,
    /// Tenants of processes that died without a record of the thread.
    unrecorded: BTreeSet<String>,
    died: BTreeMap<u64, usize>,
    deaths: u64,
    /// How many deaths left no record of the thread. After such a death a run may be lost (README).
    silent: u64,
    /// Some evidence was only counted or dropped, so missing evidence proves nothing.
    incomplete: bool,
}

/// The beginning of attackers' names. No victim's name begins like that.
pub const ATTACKER: &str = "attacker-";

fn is_attacker(tenant: &str) -> bool {
    tenant.starts_with(ATTACKER)
}

impl Ledger {
    /// Notes that a tenant is about to run a program with these deeds.
    pub fn will(&mut self, tenant: &str, deeds: Deeds) {
        self.current.insert(tenant.to_owned(), deeds.clone());
        self.deeds.entry(tenant.to_owned()).or_default().add(deeds);
    }

    /// Notes that a run of a tenant ended as a violation.
    pub fn ended_as_violation(&mut self, tenant: &str) {
        let what = format!("a run of {tenant} ended as a violation");
        self.owed.push(Owed {
            since: Instant::now(),
            worker: None,
            tenants: vec![tenant.to_owned()],
            is_decision_enough: false,
            what,
        });
    }

    #[must_use]
    pub fn deaths(&self) -> u64 {
        self.deaths
    }

    /// How many deaths left no record of the thread.
    #[must_use]
    pub fn silent(&self) -> u64 {
        self.silent
    }

    /// Enters an event. Returns the invariants that the event breaks.
    pub fn event(&mut self, event: &Value) -> Vec<Broken> {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let tenant = event["tenant"].as_str();
        match text("event") {
            "violation" => self.violation(event, tenant),
            "crashed" => self.crashed(event, tenant),
            "protocolViolation" => {
                self.noted(event, tenant);
                let did = tenant.and_then(|tenant| self.deeds.get(tenant)).is_some_and(Deeds::attacks);
                broken_unless(did, "attribution", || format!("no program did that: {event}"))
            }
            "cordoned" | "keptApart" => {
                self.named.extend(tenant.map(str::to_owned));
                let to = text("to");
                let is_victim = tenant.is_some_and(|tenant| !is_attacker(tenant));
                let holds = !(is_victim && ["sealed", "expelled"].contains(&to));
                broken_unless(holds, "attribution", || format!("a victim was moved out: {event}"))
            }
            "unexplainedMemory" => {
                let holds = tenant.is_none_or(is_attacker);
                broken_unless(holds, "attribution", || format!("a victim holds more than it may: {event}"))
            }
            "mistagged" => vec![Broken::new("tags", event.to_string())],
            "workerRejected" | "recordBroken" => vec![Broken::new("worker", event.to_string())],
            "workerDied" => {
                self.died(event);
                Vec::new()
            }
            // The supervisor ended the process because of this run. That is right only if natives
            // of the program may have kept the run from ending.
            "retried" if text("reason").starts_with(text("run")) && text("reason").contains(NEVER_ENDED) => {
                let current = tenant.and_then(|tenant| self.current.get(tenant));
                let may = current.is_some_and(Deeds::attacks);
                broken_unless(may, "limits", || format!("a limit was not armed: {event}"))
            }
            "missed" | "others" => {
                self.incomplete |= text("class") != "common";
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn noted(&mut self, event: &Value, tenant: Option<&str>) {
        self.workers.extend(event["worker"].as_u64());
        self.merged.extend(tenant.filter(|_| event["count"].as_u64() > Some(1)).map(str::to_owned));
        self.accused.extend(tenant.map(str::to_owned));
    }

    fn violation(&mut self, event: &Value, tenant: Option<&str>) -> Vec<Broken> {
        self.noted(event, tenant);
        let Some(deeds) = tenant.filter(|tenant| is_attacker(tenant)).and_then(|tenant| self.deeds.get(tenant)) else {
            return vec![Broken::new("attribution", format!("a violation is not blamed on an attacker: {event}"))];
        };
        let (layer, what) = (event["layer"].as_str().unwrap_or_default(), event["what"].as_str().unwrap_or_default());
        let (expected, did) = match call_in(what) {
            Some(call) => (&["thread-filter"][..], deeds.has_call(call)),
            None => (&["keys", "v8-sandbox"][..], deeds.attacks()),
        };
        let mut broken =
            broken_unless(did, "attribution", || format!("no program of that attacker's did that: {event}"));
        broken.extend(broken_unless(expected.contains(&layer), "layer", || format!("not by {expected:?}: {event}")));
        broken
    }

    fn crashed(&mut self, event: &Value, tenant: Option<&str>) -> Vec<Broken> {
        self.noted(event, tenant);
        let blamed = ["certain", "inCompany"].iter().any(|blame| event["blame"] == *blame);
        let holds = !blamed || tenant.is_some_and(is_attacker);
        broken_unless(holds, "attribution", || format!("a crash is blamed on a victim: {event}"))
    }

    fn died(&mut self, event: &Value) {
        self.deaths += 1;
        let worker = event["worker"].as_u64();
        let tenants: Vec<_> = event["tenants"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        let reason = event["reason"].as_str().unwrap_or_default();
        let is_silent = ["SIGSYS", "exited with", "was ended by", "was lost"].iter().any(|word| reason.contains(word));
        self.silent += u64::from(is_silent);
        self.unrecorded.extend(tenants.iter().filter(|_| is_silent).cloned());
        if let Some(worker) = worker {
            self.died.insert(worker, tenants.len());
        }
        // The death of a process without tenants needs no evidence.
        if !tenants.is_empty() {
            let what = format!("a process died without evidence: {event}");
            // A fault that the handler recorded must lead to evidence. Another death may lead only
            // to a decision.
            let is_decision_enough = !reason.contains("its thread");
            self.owed.push(Owed { since: Instant::now(), worker, tenants, is_decision_enough, what });
        }
    }

    /// Whether all evidence has come.
    pub fn is_settled(&mut self) -> bool {
        let (workers, accused, named) = (&self.workers, &self.accused, &self.named);
        let (unrecorded, merged) = (&self.unrecorded, &self.merged);
        self.owed.retain(|owed| {
            let is_known = |tenant: &String| {
                accused.contains(tenant)
                    || named.contains(tenant) && (owed.is_decision_enough || unrecorded.contains(tenant))
            };
            let is_named = match owed.worker {
                Some(worker) if workers.contains(&worker) => true,
                Some(_) if !owed.is_decision_enough => owed.tenants.iter().any(|tenant| merged.contains(tenant)),
                _ => owed.tenants.iter().any(|tenant| is_attacker(tenant) && is_known(tenant)),
            };
            !is_named
        });
        self.owed.is_empty()
    }

    /// The evidence that has not come in time, as broken invariants.
    pub fn overdue(&mut self, now: Instant) -> Vec<Broken> {
        if self.is_settled() || self.incomplete {
            return Vec::new();
        }
        let (late, open) = std::mem::take(&mut self.owed)
            .into_iter()
            .partition(|owed| now.saturating_duration_since(owed.since) > GRACE);
        self.owed = open;
        let late: Vec<Owed> = late;
        late.into_iter().map(|owed| Broken::new("record", owed.what)).collect()
    }
}

fn broken_unless(holds: bool, invariant: &'static str, said: impl FnOnce() -> String) -> Vec<Broken> {
    if holds { Vec::new() } else { vec![Broken::new(invariant, said())] }
}

/// The number of the system call that a description of a fault names.
#[must_use]
pub fn call_in(text: &str) -> Option<u32> {
    let (_, after) = text.split_once("system call ")?;
    let end = after.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(after.len());
    // The kernel reports the number as an int, so a number with its highest bit set is negative.
    after.strip_prefix('-').map_or_else(
        || after.get(..end)?.parse().ok(),
        |digits| {
            let end = digits.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(digits.len());
            digits.get(..end)?.parse::<i32>().ok().map(|number| number.wrapping_neg().cast_unsigned())
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::program::{Arg, Op, Program};
    use super::*;

    const A: &str = "attacker-1";

    /// A ledger in which an attacker made system call 57.
    fn ledger() -> Ledger {
        let op = Op::Call { number: 57, args: vec![Arg::Word(0)] };
        let mut ledger = Ledger::default();
        ledger.will(A, Deeds::of(&Program { ops: vec![op], kept_runs: 0 }));
        ledger.will("attacker-2", Deeds::default());
        ledger
    }

    fn refused(tenant: &Value, layer: &str, call: u32) -> Value {
        let what = format!("its thread made system call {call}, which the filter refuses");
        json!({ "event": "violation", "worker": 1, "tenant": tenant, "layer": layer, "what": what })
    }

    fn broken(event: &Value) -> Vec<&'static str> {
        ledger().event(event).into_iter().map(|broken| broken.invariant).collect()
    }

    #[test]
    fn evidence_against_the_attacker_that_did_it_breaks_nothing() {
        assert_eq!(broken(&refused(&json!(A), "thread-filter", 57)), [""; 0]);
    }

    #[test]
    fn evidence_against_a_victim_a_bystander_or_nobody_is_a_finding() {
        for tenant in [json!("victim-1"), json!("attacker-2"), json!(null)] {
            assert_eq!(broken(&refused(&tenant, "thread-filter", 57)), ["attribution"], "{tenant}");
        }
        assert_eq!(broken(&refused(&json!(A), "thread-filter", 58)), ["attribution"]);
        let crash = |tenant, blame| json!({ "event": "crashed", "worker": 1, "tenant": tenant, "blame": blame });
        assert_eq!(broken(&crash("victim-1", "inCompany")), ["attribution"]);
        assert_eq!(broken(&crash("victim-1", "wantOfMemory")), [""; 0]);
        assert_eq!(broken(&json!({ "event": "protocolViolation", "tenant": "victim-1" })), ["attribution"]);
        assert_eq!(broken(&json!({ "event": "cordoned", "tenant": "victim-1", "to": "sealed" })), ["attribution"]);
    }

    #[test]
    fn evidence_by_another_layer_is_a_finding() {
        assert_eq!(broken(&refused(&json!(A), "seccomp", 57)), ["layer"]);
    }

    #[test]
    fn pages_with_wrong_keys_and_wrong_workers_are_findings() {
        assert_eq!(broken(&json!({ "event": "mistagged", "findings": [] })), ["tags"]);
        assert_eq!(broken(&json!({ "event": "workerRejected", "findings": [] })), ["worker"]);
    }

    #[test]
    fn a_death_without_evidence_is_a_finding_when_its_time_is_over() {
        let died = json!({ "event": "workerDied", "worker": 1, "tenants": [A, "victim-1"], "reason": "x" });
        let later = Instant::now() + GRACE * 2;
        let mut without = ledger();
        without.event(&died);
        assert_eq!((without.overdue(Instant::now()).len(), without.overdue(later).len()), (0, 1));
        let fault =
            json!({ "event": "workerDied", "worker": 2, "tenants": [A], "reason": "its thread made system call 57" });
        let cordoned = json!({ "event": "cordoned", "tenant": A, "to": "solo" });
        let mut decided = ledger();
        decided.event(&died);
        decided.event(&cordoned);
        assert!(decided.is_settled(), "a death without a record has consequences only");
        decided.event(&fault);
        assert!(!decided.is_settled(), "a recorded fault is an event");
        let mut merged = refused(&json!(A), "thread-filter", 57);
        decided.event(&merged);
        assert!(!decided.is_settled(), "that event names another worker");
        merged["count"] = json!(2);
        decided.event(&merged);
        assert!(decided.is_settled(), "that event stands for another one, too");
        let mut with = ledger();
        with.event(&died);
        with.event(&refused(&json!(A), "thread-filter", 57));
        assert!(with.is_settled() && with.overdue(later).is_empty());
    }

    #[test]
    fn a_run_that_only_the_supervisor_could_end_is_a_finding() {
        let retried = |tenant: &str, run: &str| {
            let reason = format!("run_1 {NEVER_ENDED}");
            broken(&json!({ "event": "retried", "tenant": tenant, "run": run, "reason": reason }))
        };
        assert_eq!(retried("attacker-2", "run_1"), ["limits"], "it has no natives");
        assert_eq!(retried(A, "run_1"), [""; 0], "its thread may be gone");
        assert_eq!(retried("attacker-2", "run_2"), [""; 0], "it was another's run");
    }

    #[test]
    fn a_run_that_ended_as_a_violation_needs_evidence_too() {
        let mut ledger = ledger();
        ledger.ended_as_violation(A);
        assert!(!ledger.is_settled());
        ledger.event(&refused(&json!(A), "thread-filter", 57));
        assert!(ledger.is_settled());
        ledger.ended_as_violation("attacker-2");
        ledger.event(&json!({ "event": "cordoned", "tenant": "attacker-2", "to": "sealed" }));
        assert!(!ledger.is_settled(), "a decision is not evidence");
        let reason = "its filter killed it for a forbidden system call (SIGSYS)";
        ledger.event(&json!({ "event": "workerDied", "worker": 3, "tenants": ["attacker-2"], "reason": reason }));
        assert!(ledger.is_settled(), "the kernel kills without a record for a call of the 32-bit table");
    }

    #[test]
    fn the_call_is_read_from_a_description() {
        assert_eq!(call_in("its thread made system call 57, which"), Some(57));
        assert_eq!(call_in("its thread made system call -1, which"), Some(u32::MAX));
        assert_eq!(call_in("V8 gave up"), None);
    }
}
