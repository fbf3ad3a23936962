//! Calls of every function that a script finds, with arguments made from a seed.
//!
//! The script `js/natives.js` finds the functions from the global object, so that a new function is
//! called without being named here. It reports exceptions that are neither errors nor values that
//! it passed in. Everything else is judged from outside ([`super::host`]). A call depends only on
//! the seed and on its own number. So if a batch shows something wrong, a binary search finds the
//! call.

use fastrand::Rng;
use serde_json::{Value, json};

use super::host::{Host, Tried};
use super::report::Report;

pub(super) const SCRIPT: &str = include_str!("js/natives.js");
/// How many calls one run makes.
const BATCH: u64 = 500;

/// Tries one batch of calls in one run.
pub fn try_one(host: &mut Host, iteration: u64, rng: &mut Rng, report: &mut Report) {
    let seed = rng.u32(..);
    let allow_eval = rng.bool();
    let tried = calls(host, allow_eval, seed, 0, BATCH);
    let result = &tried.answer["result"];
    *report.tried.outcomes.entry(tried.outcome()).or_default() += 1;
    // A run that ended early has made fewer calls, and its answer does not say how many.
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

/// What [`Host::run`] found wrong, and what the script itself reports.
fn wrong(tried: &Tried) -> Vec<String> {
    let said = tried.answer["result"]["wrong"].as_array().into_iter().flatten();
    tried.wrong.iter().cloned().chain(said.filter_map(Value::as_str).map(str::to_owned)).collect()
}

/// A short range of calls that still shows what is wrong. First the last call that is needed is
/// searched, with all calls before it, and then the first.
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
