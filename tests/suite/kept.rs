//! Registered scripts, whose isolates are kept between runs.

use enisle_tests::{Daemon, SHARING, is_alive, wait_until};
use serde_json::{Value, json};

const COUNTER: &str = "let n = 0; export default () => ++n";

fn put(daemon: &Daemon, id: &str, script: &Value) -> u16 {
    daemon.request("PUT", &format!("/v1/tenants/t/scripts/{id}"), script.to_string().as_bytes()).status
}

fn run(daemon: &Daemon, id: &str, request: &Value) -> Value {
    daemon.request("POST", &format!("/v1/tenants/t/scripts/{id}/run"), request.to_string().as_bytes()).ok()
}

#[test]
fn an_isolate_stays_between_the_runs_of_its_script_and_of_no_other() {
    let daemon = Daemon::start(SHARING);
    assert_eq!(put(&daemon, "a", &json!({ "code": COUNTER })), 201);
    assert_eq!(put(&daemon, "b", &json!({ "code": COUNTER })), 201);
    let results: Vec<_> = (0..3).map(|_| run(&daemon, "a", &json!({}))["result"].clone()).collect();
    assert_eq!(results, [1, 2, 3]);
    assert_eq!(run(&daemon, "b", &json!({}))["result"], 1);
    assert_eq!(daemon.run("t", "() => typeof n")["result"], "undefined", "a load still gets a fresh isolate");
    assert_eq!(run(&daemon, "a", &json!({}))["result"], 4);
    let shown = daemon.get("/v1/tenants/t/scripts/a");
    assert_eq!((&shown["runs"], &shown["version"]), (&json!(4), &json!(1)));
}

#[test]
fn a_script_is_called_with_its_env_and_the_runs_arguments() {
    let daemon = Daemon::start(SHARING);
    let code = "export const other = { twice(x, env) { return x * env.factor } }; export default { run: (x) => [x] }";
    put(&daemon, "a", &json!({ "mainModule": "m.js", "modules": { "m.js": code }, "env": { "factor": 2 } }));
    let request = json!({ "entrypoint": "other", "method": "twice", "args": [21] });
    assert_eq!(run(&daemon, "a", &request)["result"], 42);
    assert_eq!(run(&daemon, "a", &json!({ "args": ["x"] }))["result"], json!(["x"]));
    let failed = run(&daemon, "a", &json!({ "entrypoint": "none" }));
    assert_eq!(failed["outcome"], "exception", "{failed}");
    assert_eq!(run(&daemon, "a", &request)["result"], 42, "an isolate survives an exception");
}

#[test]
fn a_name_keeps_its_content_until_it_is_replaced() {
    let daemon = Daemon::start(SHARING);
    let (one, two) = (json!({ "code": COUNTER }), json!({ "code": "export default () => 'two'" }));
    assert_eq!((put(&daemon, "a", &one), put(&daemon, "a", &one)), (201, 200));
    assert_eq!(run(&daemon, "a", &json!({}))["result"], 1);
    let conflict = daemon.request("PUT", "/v1/tenants/t/scripts/a", two.to_string().as_bytes()).problem(409);
    assert!(conflict.contains("replace=1"), "{conflict}");
    assert_eq!(put(&daemon, "a?replace=1", &two), 201);
    assert_eq!(run(&daemon, "a", &json!({}))["result"], "two");
    assert_eq!(daemon.request("DELETE", "/v1/tenants/t/scripts/a", b"").status, 204);
    let gone = daemon.request("POST", "/v1/tenants/t/scripts/a/run", b"{}").problem(404);
    assert!(gone.contains("register it"), "{gone}");
    for (body, word) in [("{}", "no script"), (r#"{"code": "1", "args": []}"#, "args")] {
        let problem = daemon.request("PUT", "/v1/tenants/t/scripts/b", body.as_bytes()).problem(400);
        assert!(problem.contains(word), "{body}: {problem}");
    }
}

#[test]
fn a_run_over_its_limits_costs_the_isolate_but_not_the_script() {
    let daemon = Daemon::start(SHARING);
    let code = "let n = 0; export default (spin) => { n++; while (spin); return n }";
    put(&daemon, "a", &json!({ "code": code, "limits": { "cpuMs": 50 } }));
    assert_eq!(run(&daemon, "a", &json!({ "args": [false] }))["result"], 1);
    assert_eq!(run(&daemon, "a", &json!({ "args": [true] }))["outcome"], "exceededCpu");
    assert_eq!(run(&daemon, "a", &json!({ "args": [false] }))["result"], 1, "the isolate is new");
}

#[test]
fn many_scripts_stay_within_the_tenants_memory() {
    let daemon = Daemon::start(SHARING);
    let code = "const keep = []; let n = 0; export default () => { keep.push(new Array(1 << 20).fill(n)); return ++n }";
    let limits = json!({ "memoryMb": 64 });
    for id in 0..12 {
        put(&daemon, &format!("s{id}"), &json!({ "code": code, "limits": limits }));
        assert_eq!(run(&daemon, &format!("s{id}"), &json!({}))["result"], 1);
    }
    assert_eq!(run(&daemon, "s11", &json!({}))["result"], 2, "the last isolate is kept");
    assert_eq!(run(&daemon, "s0", &json!({}))["result"], 1, "the first isolate was disposed of");
}

#[test]
fn a_script_is_evaluated_anew_in_its_tenants_new_home() {
    let daemon = Daemon::start(SHARING);
    put(&daemon, "a", &json!({ "code": COUNTER, "env": { "x": 1 } }));
    daemon.run("neighbour", "() => 1");
    assert_eq!((1..=2).map(|_| run(&daemon, "a", &json!({}))["result"].clone()).collect::<Vec<_>>(), [1, 2]);
    for level in ["solo", "sealed"] {
        let order = json!({ "level": level, "reason": "a test" }).to_string();
        daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"]["cordon"] == level);
        let moved = run(&daemon, "a", &json!({}));
        assert_eq!((&moved["result"], &moved["cordon"]), (&json!(1), &json!(level)), "{moved}");
        assert_eq!(run(&daemon, "a", &json!({}))["result"], 2, "the isolate is kept in the new home");
    }
    let worker = daemon.worker_of("t");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL).expect("it lives");
    wait_until("the end of the worker", || !is_alive(worker));
    assert_eq!(run(&daemon, "a", &json!({}))["result"], 1, "the isolate is new after its home was lost");
}

#[test]
fn timers_of_an_earlier_run_do_not_fire_in_a_later_one() {
    let daemon = Daemon::start(SHARING);
    let code = "let fired = 0; let old; export default () => { clearTimeout(old); old = setTimeout(() => fired++, 20);
        return new Promise((r) => setTimeout(() => r(fired), 1)) }";
    put(&daemon, "a", &json!({ "code": code }));
    assert_eq!((0..4).map(|_| run(&daemon, "a", &json!({}))["result"].clone()).collect::<Vec<_>>(), [0, 0, 0, 0]);
}

#[test]
fn a_deleted_script_returns_its_memory_and_kept_scripts_leave_room() {
    let daemon = Daemon::start(SHARING);
    let code = "const keep = []; export default (mb) => { keep.push(new Uint8Array(mb << 20)); return keep.length }";
    put(&daemon, "a", &json!({ "code": code }));
    assert_eq!(run(&daemon, "a", &json!({ "args": [50] }))["result"], 1);
    let load = json!({ "code": "(mb) => new Uint8Array(mb << 20).length >> 20", "args": [70] });
    assert_eq!(daemon.load("t", &load).ok()["result"], 70, "half of 128 MiB is left for a run");
    assert_eq!(run(&daemon, "a", &json!({ "args": [50] }))["result"], 2, "the script was kept");
    // The script's isolate now keeps more than half, and is disposed of when a load needs room.
    assert_eq!(daemon.load("t", &load).ok()["result"], 70);
    assert_eq!(run(&daemon, "a", &json!({ "args": [50] }))["result"], 1);
    assert_eq!(daemon.request("DELETE", "/v1/tenants/t/scripts/a", b"").status, 204);
    let all = json!({ "code": "(mb) => new Uint8Array(mb << 20).length >> 20", "args": [120] });
    assert_eq!(daemon.load("t", &all).ok()["result"], 120, "a deleted script keeps no memory");
}
