//! Pure checks of the answers that clients got, and of the daemon's statements about itself.
//!
//! Clients count their answers by tenant and by the daemon's life ([`Tally`]). Each script logs the
//! *token* of its request, and most scripts return it. So an answer that belongs to another run is
//! noticed at once. The registered script numbers the runs of its isolate. So if a run begins
//! twice, the numbers in the answers have a gap.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The script that a client requests a run of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Returns its token.
    Returns,
    /// Returns its token after a timer.
    Waits,
    /// Throws its token.
    Throws,
    /// Returns its token and [`LARGE`] bytes more, so that the answer has many pieces.
    Large,
    /// The registered script, which returns its token and the number of the run in its isolate.
    Kept,
    /// The registered script, with an argument that makes it spin without end.
    KeptSpins,
    Spins,
    /// Spins in a builtin that V8 does not interrupt, so the supervisor ends the process.
    Stuck,
    /// Allocates more memory than its limit.
    Fills,
    /// Returns more output than its limit.
    Talks,
}

/// The length of a large result after its token, in bytes.
pub(crate) const LARGE: usize = 300_000;

/// The limit of CPU time for runs that are meant to exceed it, in milliseconds.
pub(crate) const CPU_MS: u32 = 60;
/// How much more CPU time such a run may have used when it ends. The promise is 100 ms on a quiet
/// machine. Here the thread that ends the run also waits for a processor.
const LATE_MS: f64 = 500.0;

impl Kind {
    /// How the run ends if nothing is disturbed.
    fn outcome(self) -> &'static str {
        match self {
            Self::Returns | Self::Waits | Self::Large | Self::Kept => "ok",
            Self::Throws => "exception",
            Self::KeptSpins | Self::Spins | Self::Stuck => "exceededCpu",
            Self::Fills => "exceededMemory",
            Self::Talks => "exceededOutput",
        }
    }
}

/// Which kinds of disturbance began in this round before an answer came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disturbed {
    pub(crate) at_all: bool,
    /// A process was stopped for a while, so a run may have exceeded its wall time.
    pub(crate) stopped: bool,
    /// Memory was taken away.
    pub(crate) starved: bool,
    /// Descriptors were taken away, so the daemon may close a connection before it reads a request.
    pub(crate) without_descriptors: bool,
}

/// A run that ended, as its answer describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub(crate) outcome: String,
    pub(crate) cpu_ms: f64,
    /// The least time that the run held its place: its wait for a home, and its last attempt.
    pub(crate) held_ms: f64,
    /// For a run of the registered script: its isolate, and its number there.
    pub(crate) kept: Option<(String, u64)>,
}

/// Reads the answer to a run, which has status 200. An error says why the run must not have ended
/// like that.
pub(crate) fn answer(kind: Kind, token: &str, body: &[u8], disturbed: Disturbed) -> Result<Ended, String> {
    let answer: Value = serde_json::from_slice(body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let outcome = answer["outcome"].as_str().unwrap_or_default();
    let said = || {
        let text = answer.to_string();
        text.chars().take(600).collect::<String>()
    };
    let excused = match outcome {
        "workerLost" => disturbed.at_all,
        "exceededWall" => disturbed.stopped,
        "exceededMemory" => disturbed.starved,
        _ => false,
    };
    if outcome != kind.outcome() && !excused {
        return Err(format!("{kind:?} should end as {}: {}", kind.outcome(), said()));
    }
    let result = &answer["result"];
    let own = match (outcome, kind) {
        ("ok", Kind::Large) => {
            result.as_str().is_some_and(|text| text.len() == token.len() + LARGE && text.starts_with(token))
        }
        ("ok", Kind::Kept) => result["token"] == token,
        ("ok", _) => result == token,
        ("exception", _) => answer["error"]["message"] == token,
        _ => true,
    };
    if !own {
        return Err(format!("the answer to {token} is not its own: {}", said()));
    }
    let lines: Vec<_> = answer["logs"].as_array().into_iter().flatten().map(|line| &line["text"]).collect();
    if lines.iter().any(|text| *text != token) || (matches!(outcome, "ok" | "exception") && lines.len() != 1) {
        return Err(format!("the log of {token} is not one line of its own: {}", said()));
    }
    let usage = |name: &str| answer["usage"][name].as_f64().ok_or_else(|| format!("no usage.{name}: {}", said()));
    let cpu_ms = usage("cpuMs")?;
    // While the supervisor is stopped, it cannot end a process.
    if outcome == "exceededCpu" && !disturbed.stopped && cpu_ms > f64::from(CPU_MS) + LATE_MS {
        return Err(format!("{kind:?} may use {CPU_MS} ms: {}", said()));
    }
    let kept = (outcome == "ok" && kind == Kind::Kept)
        .then(|| Some((result["isolate"].as_str()?.to_owned(), result["number"].as_u64()?)));
    Ok(Ended {
        outcome: outcome.to_owned(),
        cpu_ms,
        held_ms: usage("wallMs")? + usage("queuedUs")? / 1000.0,
        kept: kept.flatten(),
    })
}

/// The answers that the clients of one tenant got in one life of the daemon.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) outcomes: BTreeMap<String, u64>,
    pub(crate) cpu_ms: f64,
    /// Requests whose client went away, or whose answer was lost. Their runs may have ended too.
    pub(crate) unheard: u64,
}

impl Tally {
    pub(crate) fn note(&mut self, ended: &Ended) {
        *self.outcomes.entry(ended.outcome.clone()).or_default() += 1;
        self.cpu_ms += ended.cpu_ms;
    }
}

/// How many more attempts of one tenant the events of one life explain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// Runs that were restarted after a death.
    pub(crate) retried: u64,
    /// Deaths of a worker in which the tenant lived. Each may have cost an attempt that was sent,
    /// but whose script had not begun.
    pub(crate) deaths: u64,
    /// Homes that were given up, fenced or replaced. Each may have cost such an attempt as well.
    pub(crate) left: u64,
}

/// How far two sums of milliseconds may differ, because each addend is rounded to three decimals.
const ROUNDING_MS: f64 = 1.0;

/// Compares the `usage` of a tenant at rest with the answers that its clients got in the same life.
/// `attempts` is `None` if the daemon has forgotten events.
pub(crate) fn usage(tally: &Tally, usage: &Value, attempts: Option<Attempts>) -> Result<(), String> {
    let count = |name: &str| usage[name].as_u64().unwrap_or_default();
    let said = || format!("usage {usage}, clients heard {tally:?}, events say {attempts:?}");
    let no_outcomes = serde_json::Map::new();
    let outcomes = usage["outcomes"].as_object().unwrap_or(&no_outcomes);
    let counted = |name: &str| outcomes.get(name).and_then(Value::as_u64).unwrap_or_default();
    let names: BTreeSet<&str> =
        tally.outcomes.keys().map(String::as_str).chain(outcomes.keys().map(String::as_str)).collect();
    let mut surplus = 0;
    for name in names {
        let heard = tally.outcomes.get(name).copied().unwrap_or_default();
        let more = counted(name).checked_sub(heard);
        surplus += more.ok_or_else(|| format!("fewer runs ended as {name} than clients heard of: {}", said()))?;
    }
    if surplus > tally.unheard {
        return Err(format!("{surplus} more runs ended than clients heard of: {}", said()));
    }
    let runs = count("runs");
    if runs != outcomes.values().filter_map(Value::as_u64).sum::<u64>() {
        return Err(format!("runs are not the sum of outcomes: {}", said()));
    }
    // A run that was never sent to a worker may end as workerLost without having begun.
    if count("begun") + counted("workerLost") < runs {
        return Err(format!("fewer runs began than ended: {}", said()));
    }
    if let Some(Attempts { retried, deaths, left }) = attempts
        && count("begun") > runs + tally.unheard + count("fenced") + retried + deaths + left
    {
        return Err(format!("more runs began than were asked for, lost and moved: {}", said()));
    }
    if usage["cpuMs"].as_f64().unwrap_or_default() + ROUNDING_MS < tally.cpu_ms {
        return Err(format!("less CPU time than the answers add up to: {}", said()));
    }
    Ok(())
}

/// Checks the numbers of one isolate's runs, as the answers give them. Each run begins once, so no
/// number may be missing. (The clients of these tenants never go away before the answer.)
pub(crate) fn kept(isolate: &str, numbers: &BTreeSet<u64>) -> Result<(), String> {
    let missing: Vec<_> = (1..=numbers.last().copied().unwrap_or_default()).filter(|n| !numbers.contains(n)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("runs {missing:?} of isolate {isolate} began and have no answer"))
    }
}

/// At most `quota` runs are in flight at a time. So all runs together hold their places for at most
/// `quota` times the time that has passed.
pub(crate) fn places(quota: f64, held_ms: f64, passed_ms: f64) -> Result<(), String> {
    let most = quota * passed_ms;
    if held_ms <= most * 1.02 + 50.0 {
        Ok(())
    } else {
        Err(format!("runs held places for {held_ms:.0} ms in {passed_ms:.0} ms, with a quota of {quota}"))
    }
}

/// Events that no client here can cause.
const FORBIDDEN: &[&str] =
    &["violation", "protocolViolation", "mistagged", "recordBroken", "unexplainedMemory", "crashed"];

/// Whether an event may occur.
pub(crate) fn event(event: &Value, disturbed: Disturbed) -> Result<(), String> {
    let name = event["event"].as_str().unwrap_or_default();
    let excused = name == "crashed" && disturbed.starved;
    if FORBIDDEN.contains(&name) && !excused { Err(format!("no client can have caused this: {event}")) } else { Ok(()) }
}

/// Counts the events of one life that explain more attempts of a tenant; `None` if the daemon has
/// forgotten some events.
pub(crate) fn attempts(events: &[Value], tenant: &str) -> Option<Attempts> {
    let mut attempts = Attempts::default();
    for event in events {
        let count = event["count"].as_u64().unwrap_or(1);
        match event["event"].as_str().unwrap_or_default() {
            "missed" | "others" => return None,
            "retried" if event["tenant"] == tenant => attempts.retried += count,
            "retired" | "fenced" | "rehomed" if event["tenant"] == tenant => attempts.left += count,
            "workerDied" => {
                let here = event["tenants"].as_array().into_iter().flatten().any(|name| name == tenant);
                attempts.deaths += u64::from(here);
            }
            _ => {}
        }
    }
    Some(attempts)
}

/// Whether a line of the log is a whole line that the daemon wrote. Such a line begins with a time
/// and a level, and has no character that would move, colour, hide or reorder text.
pub(crate) fn log_line(line: &str) -> Result<(), String> {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut words = line.split_whitespace();
    let time = words.next().is_some_and(|word| word.len() > 20 && word.starts_with("20") && word.ends_with('Z'));
    let level = words.next().is_some_and(|word| ["ERROR", "WARN", "INFO", "DEBUG"].contains(&word));
    if time && level && !line.contains(hides) {
        Ok(())
    } else {
        Err(format!("not a line of the daemon's own: {line:?}"))
    }
}

/// A text from a client. If the daemon logged it unescaped, it would forge a line, clear the screen
/// and reorder text.
pub(crate) const HOSTILE: &str = "a\n2026-01-01T00:00:00.000000Z ERROR forged\r\u{1b}[2J\u{202e}\u{2066}";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CALM: Disturbed = Disturbed { at_all: false, stopped: false, starved: false, without_descriptors: false };
    const STOPPED: Disturbed = Disturbed { at_all: true, stopped: true, ..CALM };

    fn said(outcome: &str, result: &Value, log: &[&str]) -> Vec<u8> {
        using(1.5, outcome, result, log)
    }

    fn using(cpu_ms: f64, outcome: &str, result: &Value, log: &[&str]) -> Vec<u8> {
        let logs: Vec<_> = log.iter().map(|text| json!({ "tMs": 0, "level": "log", "text": text })).collect();
        let usage = json!({ "cpuMs": cpu_ms, "wallMs": 2.0, "queuedUs": 500 });
        let error = json!({ "name": "Error", "message": result });
        json!({ "outcome": outcome, "result": result, "error": error, "logs": logs, "usage": usage })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn an_answer_of_its_own_is_accepted() {
        let ended = answer(Kind::Returns, "t1", &said("ok", &json!("t1"), &["t1"]), CALM).unwrap();
        assert_eq!((ended.outcome.as_str(), ended.cpu_ms, ended.held_ms), ("ok", 1.5, 2.5));
        assert!(answer(Kind::Throws, "t1", &said("exception", &json!("t1"), &["t1"]), CALM).is_ok());
        let kept = json!({ "token": "t1", "isolate": "i", "number": 3 });
        let ended = answer(Kind::Kept, "t1", &said("ok", &kept, &["t1"]), CALM).unwrap();
        assert_eq!(ended.kept, Some(("i".to_owned(), 3)));
    }

    #[test]
    fn an_answer_of_another_run_is_found_by_its_result_or_its_log() {
        for (kind, result, log) in [
            (Kind::Returns, json!("t2"), "t1"),
            (Kind::Returns, json!("t1"), "t2"),
            (Kind::Kept, json!({ "token": "t2" }), "t1"),
            (Kind::Large, json!("t1"), "t1"),
        ] {
            assert!(answer(kind, "t1", &said("ok", &result, &[log]), STOPPED).is_err(), "{kind:?} {result} {log}");
        }
        assert!(answer(Kind::Throws, "t1", &said("exception", &json!("t2"), &["t1"]), CALM).is_err());
        assert!(answer(Kind::Returns, "t1", &said("ok", &json!("t1"), &["t1", "t1"]), CALM).is_err());
        assert!(answer(Kind::Returns, "t1", &said("ok", &json!("t1"), &[]), CALM).is_err());
    }

    #[test]
    fn an_outcome_needs_a_disturbance_that_explains_it() {
        let outcome = |outcome: &str, disturbed| answer(Kind::Waits, "t", &said(outcome, &json!("t"), &[]), disturbed);
        let starved = Disturbed { starved: true, ..STOPPED };
        assert!(outcome("workerLost", CALM).is_err() && outcome("workerLost", STOPPED).is_ok());
        assert!(outcome("exceededWall", CALM).is_err() && outcome("exceededWall", STOPPED).is_ok());
        assert!(outcome("exceededMemory", STOPPED).is_err() && outcome("exceededMemory", starved).is_ok());
        for never in ["canceled", "internalError", "violation", "exceededCpu", ""] {
            assert!(outcome(never, starved).is_err(), "{never}");
        }
        assert!(answer(Kind::Spins, "t", &said("ok", &json!("t"), &["t"]), starved).is_err());
    }

    #[test]
    fn a_run_that_goes_on_long_after_its_limit_is_found() {
        let spun = |cpu_ms| answer(Kind::KeptSpins, "t", &using(cpu_ms, "exceededCpu", &Value::Null, &["t"]), CALM);
        assert!(spun(70.0).is_ok() && spun(570.0).is_err());
    }

    fn tally(ok: u64, unheard: u64) -> Tally {
        Tally { outcomes: [("ok".to_owned(), ok)].into(), cpu_ms: 10.0, unheard }
    }

    fn usage_of(ok: u64, begun: u64, cpu_ms: f64) -> Value {
        json!({ "runs": ok, "begun": begun, "fenced": 0, "cpuMs": cpu_ms, "outcomes": { "ok": ok } })
    }

    #[test]
    fn counts_agree_exactly_if_every_answer_was_heard() {
        let none = Some(Attempts::default());
        assert_eq!(usage(&tally(5, 0), &usage_of(5, 5, 10.0), none), Ok(()));
        for (said, word) in [
            (usage_of(4, 4, 10.0), "fewer runs ended"),
            (usage_of(6, 6, 10.0), "more runs ended"),
            (usage_of(5, 4, 10.0), "fewer runs began"),
            (usage_of(5, 6, 10.0), "more runs began"),
            (usage_of(5, 5, 8.0), "less CPU"),
        ] {
            let error = usage(&tally(5, 0), &said, none).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let mut wrong_sum = usage_of(5, 5, 10.0);
        wrong_sum["runs"] = json!(6);
        assert!(usage(&tally(5, 0), &wrong_sum, none).unwrap_err().contains("sum"));
    }

    #[test]
    fn unheard_and_restarted_runs_explain_their_own_number_and_no_more() {
        let none = Some(Attempts::default());
        assert_eq!(usage(&tally(5, 1), &usage_of(6, 6, 10.0), none), Ok(()));
        assert!(usage(&tally(5, 1), &usage_of(7, 7, 10.0), none).is_err());
        let one = Some(Attempts { retried: 1, ..Attempts::default() });
        assert_eq!(usage(&tally(5, 0), &usage_of(5, 6, 10.0), one), Ok(()));
        assert!(usage(&tally(5, 0), &usage_of(5, 7, 10.0), one).is_err());
        assert_eq!(usage(&tally(5, 0), &usage_of(5, 70, 10.0), None), Ok(()));
    }

    #[test]
    fn a_missing_number_of_a_kept_script_shows_a_run_that_began_twice() {
        assert_eq!(kept("i", &[1, 2, 3].into()), Ok(()));
        assert_eq!(kept("i", &BTreeSet::new()), Ok(()));
        assert!(kept("i", &[1, 3].into()).unwrap_err().contains("[2]"));
        assert!(kept("i", &[2].into()).unwrap_err().contains("[1]"));
    }

    #[test]
    fn places_that_are_given_back_early_add_up_to_more_than_the_time() {
        assert_eq!(places(1.0, 990.0, 1000.0), Ok(()));
        assert!(places(1.0, 1900.0, 1000.0).is_err());
        assert_eq!(places(2.0, 1900.0, 1000.0), Ok(()));
    }

    #[test]
    fn events_say_how_many_attempts_there_may_have_been() {
        let events = [
            json!({ "event": "retried", "tenant": "a" }),
            json!({ "event": "retried", "tenant": "b" }),
            json!({ "event": "workerDied", "tenants": ["a", "b"] }),
            json!({ "event": "retired", "tenant": "a", "count": 3 }),
        ];
        assert_eq!(attempts(&events, "a"), Some(Attempts { retried: 1, deaths: 1, left: 3 }));
        assert_eq!(attempts(&[json!({ "event": "missed", "count": 2 })], "a"), None);
    }

    #[test]
    fn evidence_that_no_client_can_have_caused_is_found() {
        assert!(event(&json!({ "event": "protocolViolation" }), STOPPED).is_err());
        assert!(event(&json!({ "event": "crashed" }), STOPPED).is_err());
        assert!(event(&json!({ "event": "crashed" }), Disturbed { starved: true, ..STOPPED }).is_ok());
        assert!(event(&json!({ "event": "workerDied" }), CALM).is_ok());
    }

    #[test]
    fn a_forged_or_unescaped_line_of_the_log_is_found() {
        let good = "2026-11-27T20:00:00.000000Z  INFO enisled: ordered reason=\"a\\nb\"";
        assert_eq!(log_line(good), Ok(()));
        for bad in [
            "forged",
            "",
            "2026-11-27T20:00:00.000000Z forged",
            &format!("{good}\u{1b}[2J"),
            &format!("{good}\u{202e}"),
        ] {
            assert!(log_line(bad).is_err(), "{bad:?}");
        }
        let raw = format!("2026-11-27T20:00:00.000000Z  INFO enisled: ordered reason={HOSTILE}");
        assert!(raw.lines().any(|line| log_line(line).is_err()));
    }
}
