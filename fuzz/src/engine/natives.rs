//! Calls of every function that a script finds, with arguments made from a seed.
//!
//! `js/natives.js` reads the functions from the global object, so that a new one is called without
//! being named here. It reports exceptions that are neither errors nor something that it passed in.
//! Everything else is judged from outside ([`super::host`]). Calls are decided by seed and number:
//! where a batch shows something, the single call is searched by halves.

use fastrand::Rng;
use serde_json::{Value, json};

use super::host::{Host, Tried};
use super::report::Report;

pub(super) const SCRIPT: &str = include_str!("js/natives.js");
/// Calls of one run.
const BATCH: u64 = 500;

/// A batch of calls in one run.
pub fn try_one(host: &mut Host, iteration: u64, rng: &mut Rng, report: &mut Report) {
    let seed = rng.u32(..);
    let allow_eval = rng.bool();
    let tried = calls(host, allow_eval, seed, 0, BATCH);
    let result = &tried.answer["result"];
    *report.tried.outcomes.entry(tried.outcome()).or_default() += 1;
    // A run that ended early has made fewer calls, and does not report how many.
    report.tried.calls += if tried.outcome() == "ok" { BATCH } else { 0 };
    report.tried.functions = report.tried.functions.max(result["functions"].as_u64().unwrap_or(0));
    let wrong = wrong(&tried);
    if wrong.is_empty() {
        return;
    }
    let (first, last) =
        shortest(BATCH, |first, last| !self::wrong(&calls(host, allow_eval, seed, first, last)).is_empty());
    let again = calls(host, allow_eval, seed, first, last);
    let seen = format!(
        "natives: {}\ncalls {first} to {last}, alone: {:?}\nallowEval {allow_eval}\n{}",
        wrong.join("; "),
        self::wrong(&again),
        again.answer["result"]["told"]
    );
    report.found("natives", iteration, &seen, &format!("// args: [{seed}, {first}, {last}]\n{SCRIPT}"));
}

fn calls(host: &mut Host, allow_eval: bool, seed: u32, first: u64, last: u64) -> Tried {
    host.allow_eval(allow_eval);
    host.run(&json!({ "code": SCRIPT, "args": [seed, first, last] }))
}

/// What is wrong around the run, and what the script says.
fn wrong(tried: &Tried) -> Vec<String> {
    let said = tried.answer["result"]["wrong"].as_array().into_iter().flatten();
    tried.wrong.iter().cloned().chain(said.filter_map(Value::as_str).map(str::to_owned)).collect()
}

/// The shortest range of calls at the end of the shortest beginning that shows what the whole range
/// does.
fn shortest(length: u64, mut shows: impl FnMut(u64, u64) -> bool) -> (u64, u64) {
    if !shows(0, length) {
        return (0, length);
    }
    let (mut low, mut last) = (0, length);
    while last - low > 1 {
        let half = low.midpoint(last);
        if shows(0, half) { last = half } else { low = half }
    }
    let (mut first, mut high) = (0, last);
    while high - first > 1 {
        let half = first.midpoint(high);
        if shows(half, last) { first = half } else { high = half }
    }
    (first, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_that_shows_it_is_found_alone_or_with_what_it_needs() {
        assert_eq!(shortest(200, |first, last| (first..last).contains(&77)), (77, 78));
        assert_eq!(shortest(200, |first, last| (first..last).contains(&3) && last > 120), (3, 121));
        assert_eq!(shortest(200, |_, _| false), (0, 200));
    }

    #[test]
    fn a_value_that_is_not_an_error_is_reported() {
        let tried = |wrong: Value| Tried { answer: json!({ "result": { "wrong": wrong } }), wrong: Vec::new() };
        assert_eq!(wrong(&tried(json!(["f threw object"]))), ["f threw object"]);
        assert!(wrong(&tried(json!([]))).is_empty());
        assert_eq!(wrong(&Tried { answer: Value::Null, wrong: vec!["outcome".to_owned()] }), ["outcome"]);
    }
}
