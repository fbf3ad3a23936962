//! Tests the oracles with engines that are wrong on purpose, and runs a bounded part of everything.

use enisle_api::client::blocking::Connection;
use enisle_tests::{PATIENCE, wait_until};
use fastrand::Rng;
use nix::sys::signal::{Signal::SIGKILL, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::differential::in_all;
use super::engines::{ALWAYS, Engine, IN_TURN, Mode, Node, Outcome, SPARED};
use super::host::Host;
use super::judge::{Verdict, judge};
use super::minimise::minimise;
use super::program::Program;
use super::report::Report;
use super::{Options, fuzz, host, in_host, natives, tree};
use crate::Budget;

const PRODUCTION: Mode = ALWAYS[0];

fn engine(name: &'static str, flags: &'static str) -> Engine {
    let worker = enisle_tests::programs().join("enisle-worker");
    Engine::new(Mode { name, flags, sealed: false }, &worker).expect("the worker starts")
}

/// The outcome of one program in one engine.
fn outcome(engine: &mut Engine, text: &str) -> Outcome {
    in_all(&mut [engine], text).expect("it runs").remove(0).1
}

/// The first of a thousand programs for which these engines get this verdict, made small.
fn found(engines: &mut [&mut Engine], wanted: &Verdict) -> Option<Program> {
    let mut shows = |program: &Program| {
        let outcomes = in_all(engines, &program.text()).expect("the engines run");
        judge(&outcomes) == *wanted
    };
    let program = (0..1000).map(|seed| Program::make(&mut Rng::with_seed(seed))).find(&mut shows)?;
    Some(minimise(&program, 300, shows))
}

#[test]
fn an_engine_with_a_builtin_that_differs_is_found_with_a_small_program() {
    // In this engine, a regular expression does not compile if two of its groups share a name.
    let mut wrong = engine("wrong", "--no-js-regexp-duplicate-named-groups");
    let least = found(&mut [&mut engine("production", ""), &mut wrong], &Verdict::Differed).expect("it differs");
    assert!(tree::size(&least.statements) <= 3, "{}", tree::text(&least.statements));
    assert!(tree::text(&least.statements).contains("(?<h>a)|(?<h>b)"), "{}", tree::text(&least.statements));
    let mut right = engine("right", "--no-scavenger-updates-allocation-limit");
    let agreed = in_all(&mut [&mut engine("production", ""), &mut right], &least.text()).expect("both run");
    assert_eq!(judge(&agreed), Verdict::Agreed);
}

#[test]
fn an_engine_that_crashes_is_found_and_the_next_program_runs() {
    // This engine ends its process if a program exhausts the stack.
    let mut wrong = engine("wrong", "--correctness-fuzzer-suppressions");
    let deep = Program::of("f0 = function (p) {\nreturn f0(p + 1) + 1;\n};\nout(f0(1));");
    let outcomes = in_all(&mut [&mut engine("production", ""), &mut wrong], &deep.text()).expect("both run");
    assert_eq!((&outcomes[0].1, judge(&outcomes)), (&Outcome::InDoubt, Verdict::Died), "{outcomes:?}");
    let next = outcome(&mut wrong, &Program::of("out(1);").text());
    assert!(matches!(&next, Outcome::Computed(text) if text.contains("1\\n0\\n-0\\n1.5")), "{next:?}");
}

#[test]
fn a_run_over_its_limits_is_not_taken_for_a_crash() {
    let mut production = engine("production", "");
    for (program, limit) in
        [("for (;;) {\nn0++;\n}", "exceededCpu"), ("for (;;) {\na0.push([a0.length]);\n}", "exceeded")]
    {
        let outcome = outcome(&mut production, &Program::of(program).text());
        assert!(matches!(&outcome, Outcome::Limited(which) if which.starts_with(limit)), "{outcome:?}");
    }
}

#[test]
fn a_mode_that_compiles_early_has_compiled_what_production_still_interprets() {
    // Bits 4 to 6 of the status say: optimised, by Maglev, by Turbofan (V8's runtime.h).
    let program = "() => { const f = (p) => p * 2; let n = 0; for (let k = 0; k < 90; k++) n += f(k); return %GetOptimizationStatus(f) & 0x70; }";
    for (flags, is_compiled) in [("--allow-natives-syntax", false), ("--allow-natives-syntax --jit-fuzzing", true)] {
        let outcome = outcome(&mut engine("early", flags), program);
        let Outcome::Computed(status) = &outcome else { panic!("{outcome:?}") };
        assert_eq!(status != "0", is_compiled, "{flags}: {status}");
    }
    assert!(ALWAYS[2].flags.contains("--jit-fuzzing"));
}

#[test]
fn a_function_that_no_list_names_is_called_and_what_it_throws_is_reported() {
    let mut production = engine(PRODUCTION.name, PRODUCTION.flags);
    let said = |seed: u32, production: &mut Engine| {
        let added = "globalThis.added = function () { throw Object.create(null) };";
        let script = format!("async () => {{ {added} return (await ({})({seed}, 0, 100)).wrong }}", natives::SCRIPT);
        outcome(production, &script)
    };
    let expected = Outcome::Computed("[\"globalThis.added threw object\"]".to_owned());
    assert!((0..100).any(|seed| said(seed, &mut production) == expected));
}

#[test]
fn natives_that_attack_are_found_by_how_their_runs_end() {
    let worker = enisle_tests::attack_worker();
    let config = format!("{}program = {worker:?}\n", host::CONFIG);
    let mut host = Host::start_with(&config, json!({ "attack": true }));
    let findings = tempfile::tempdir().expect("a folder");
    let mut report = Report::new(1, findings.path());
    let iterations = (0..200).take_while(|iteration| {
        natives::try_one(&mut host, *iteration, &mut Rng::with_seed(*iteration), &mut report);
        report.findings.is_empty()
    });
    assert!(iterations.count() < 200, "{}", report.tried);
    let said = &report.findings[0].said;
    assert!(["violation", "workerLost", "died"].iter().any(|word| said.contains(word)), "{said}");
}

#[test]
fn a_daemon_that_ends_is_a_finding_and_another_one_is_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut report = Report::new(1, folder.path());
    let mut host = None;
    in_host(&mut host, 1, &mut report, |host, _| {
        host.kill();
        host.run(&json!({ "code": "() => 1" }));
    });
    assert_eq!(report.findings.len(), 1);
    in_host(&mut host, 2, &mut report, |host, _| {
        let tried = host.run(&json!({ "code": "() => 1" }));
        assert_eq!((tried.outcome(), tried.wrong), ("ok".to_owned(), Vec::new()));
    });
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
}

#[test]
fn a_death_that_a_restart_hides_is_found() {
    let mut host = Host::start();
    host.run(&json!({ "code": "() => 1" }));
    let (path, socket) = (format!("/v1/tenants/{}", host.tenant()), host.daemon.socket());
    let pid = Pid::from_raw(host.daemon.worker_of(&host.tenant()));
    let is_running = || {
        let connection = Connection::open(&socket, PATIENCE).expect("it listens");
        let answer = connection.last_request("GET", &path, b"").expect("it answers");
        serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok_and(|tenant| tenant["inFlight"] == 1)
    };
    let tried = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the run", is_running);
            kill(pid, SIGKILL).expect("it can be killed");
        });
        host.run(&json!({ "code": "() => new Promise((done) => setTimeout(done, 500))" }))
    });
    assert_eq!(tried.outcome(), "ok");
    assert!(tried.wrong.iter().any(|wrong| wrong.contains("workerDied")), "{:?}", tried.wrong);
}

#[test]
fn node_computes_the_same_where_it_is_installed() {
    let both = Node::both();
    if !enisle_tests::has("node", both.is_some()) {
        return;
    }
    let (mut nodes, _) = both.expect("it is installed");
    let mut production = engine(PRODUCTION.name, PRODUCTION.flags);
    for program in ["out(1 / 3);\nout(\"\\ud800\");", "throw 1;", "syntax error"] {
        let text = Program::of(program).text();
        let ours = outcome(&mut production, &text);
        for node in &mut nodes {
            assert_eq!(node.run(&text).expect("it runs"), ours, "{}: {program}", node.name);
        }
    }
}

#[test]
fn every_flag_of_a_mode_is_one_of_v8s() {
    // V8 ignores a flag that it does not know.
    let worker = std::fs::read(enisle_tests::programs().join("enisle-worker")).expect("it is built");
    let known = |flag: &str| {
        let name = flag.trim_start_matches("--").split('=').next().unwrap_or_default().replace('-', "_");
        let name = name.strip_prefix("no_").unwrap_or(&name);
        memchr::memmem::find(&worker, format!("\0{name}\0").as_bytes()).is_some()
    };
    let modes = ALWAYS.iter().chain(&IN_TURN).flat_map(|mode| mode.flags.split_whitespace());
    let unknown: Vec<_> = modes.chain(SPARED.split_whitespace()).filter(|flag| !known(flag)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(!known("--no-such-flag"));
}

#[test]
fn forty_iterations_of_everything_find_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let findings = folder.path().to_owned();
    let budget = Budget { minutes: 5.0, seed: Some(15), from: 0 };
    let options = Options { budget, count: Some(40), only: None, findings };
    let report = fuzz(&options).expect("the engines start");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let tried = &report.tried;
    assert_eq!((tried.programs, tried.module_maps), (36, 2), "{tried}");
    assert!(tried.agreed * 10 >= tried.programs * 9, "{tried}");
    assert!(tried.functions > 600 && tried.calls > 0, "{tried}");
}
