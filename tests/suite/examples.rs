//! Runs the examples of the API (`examples/api`) with curl, Node.js and Python, against a real
//! daemon. Also runs the bare engine with which `cargo xtask bench load` compares the daemon.

use std::path::Path;
use std::process::Command;

use enisle_tests::{Daemon, has};

/// Runs an example with the daemon's socket, and returns what the example printed. Returns `None`
/// if the program `needs` is not installed, which [`has`] reports.
fn printed(daemon: &Daemon, program: &str, file: &str, needs: &str) -> Option<String> {
    let installed = Command::new(needs).arg("--version").output().is_ok_and(|out| out.status.success());
    if !has(needs, installed) {
        return None;
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/api").join(file);
    let out = Command::new(program).arg(&example).arg(daemon.socket()).output().expect("it is installed");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{file} ended with {}:\n{said}{complained}", out.status);
    Some(said.into_owned())
}

/// The first lines that the examples for Node.js and Python print.
const LINES: [&str; 4] = ["ok 42", "first: 1", "second: 2", "runs 3"];

#[test]
fn the_example_for_curl_shows_runs_usage_and_a_problem() {
    let daemon = Daemon::start("");
    let Some(said) = printed(&daemon, "sh", "curl.sh", "curl") else { return };
    let answers: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"))).collect();
    let [run, registered, first, second, tenant, problem] = &answers[..] else { panic!("six answers: {said}") };
    assert_eq!((&run["outcome"], &run["result"]), (&"ok".into(), &42.into()));
    assert_eq!((&registered["id"], &registered["version"]), (&"counter".into(), &1.into()));
    assert_eq!((&first["result"], &second["result"]), (&"first: 1".into(), &"second: 2".into()));
    assert_eq!(tenant["usage"]["runs"], 3);
    assert_eq!((&problem["status"], &problem["type"]), (&400.into(), &"urn:enisle:problem:bad-request".into()));
}

#[test]
fn the_example_for_node_shows_runs_usage_and_a_problem() {
    let daemon = Daemon::start("");
    let Some(said) = printed(&daemon, "node", "node.mjs", "node") else { return };
    shows_all(&said);
}

#[test]
fn the_example_for_python_shows_runs_usage_and_a_problem() {
    let daemon = Daemon::start("");
    let Some(said) = printed(&daemon, "python3", "python.py", "python3") else { return };
    shows_all(&said);
}

#[test]
fn the_bare_engine_that_the_benchmark_compares_with_runs() {
    let engine = enisle_tests::programs().join("raw-v8");
    let out = Command::new(engine).args(["export default () => 42", "3"]).output().expect("it is built");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "it ended with {}: {complained}", out.status);
    let turns = said.lines().map(|line| line.split(' ').map(|nanos| nanos.parse::<u64>().is_ok()).collect::<Vec<_>>());
    assert_eq!(turns.collect::<Vec<_>>(), vec![[true, true]; 3], "{said}");
}

#[track_caller]
fn shows_all(said: &str) {
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..4], LINES, "{said}");
    assert!(lines[4].starts_with("400 urn:enisle:problem:bad-request unknown field `cod`"), "{said}");
}
