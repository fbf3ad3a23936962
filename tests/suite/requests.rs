//! Bad input, rights, quotas, policies, events.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use enisle_tests::{Answer, Daemon, PATIENCE, SHARING, has, programs};
use serde_json::json;

const LOAD: &str = "/v1/tenants/t/load";

#[test]
fn bad_input_is_answered_with_what_was_wrong_and_harms_no_tenant() {
    let daemon = Daemon::start(SHARING);
    let pid = daemon.pid();
    for (method, path, body, status, word) in [
        ("POST", LOAD, &b"{"[..], 400, "EOF"),
        ("POST", LOAD, b"{\"code\": \"() => 1\", \"colour\": 1}", 400, "unknown field `colour`"),
        ("POST", LOAD, b"{\"mainModule\": \"x.js\", \"modules\": {}}", 400, "no such name"),
        ("POST", LOAD, b"{\"code\": \"\xff\"}", 400, "unicode"),
        (
            "POST",
            LOAD,
            b"{\"mainModule\": \"a\\u0000.js\", \"modules\": {\"a\\u0000.js\": \"\"}}",
            400,
            "control characters",
        ),
        ("POST", LOAD, b"{\"code\": \"() => 1\", \"env\": 3}", 400, "env must be an object"),
        ("POST", "/v1/tenants/..%2Fetc/load", b"{}", 400, "a tenant's name"),
        ("POST", "/v1/tenants/a%00b/load", b"{}", 400, "a tenant's name"),
        ("GET", "/v1/nothing", b"", 404, "no such resource"),
        ("DELETE", LOAD, b"", 405, "method"),
        ("GET", "/v1/tenants/unknown", b"", 404, "has run nothing"),
        ("GET", "/v1/events?folow=1", b"", 400, "folow"),
        ("PUT", "/v1/tenants/t", b"{\"limits\": {\"memoryMb\": 99999}}", 400, "memoryMb"),
        ("PUT", "/v1/tenants/t", b"{\"limit\": 1}", 400, "unknown field `limit`"),
    ] {
        let problem = daemon.request(method, path, body).problem(status);
        assert!(problem.contains(word), "{method} {path}: {problem}");
    }
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    assert_eq!(daemon.pid(), pid);
}

#[test]
fn code_of_64_mib_runs_and_a_byte_more_is_refused() {
    let daemon = Daemon::start(SHARING);
    let code = |bytes: usize| format!("{{\"code\": \"() => 1//{}\"}}", "x".repeat(bytes - 9));
    let most = 64 << 20;
    let run = daemon.request("POST", LOAD, code(most).as_bytes()).ok();
    assert_eq!(run["result"], 1, "{run}");
    let problem = daemon.request("POST", LOAD, code(most + 1).as_bytes()).problem(413);
    assert!(problem.contains("67108865 bytes") && problem.contains("67108864"), "{problem}");
    let problem = daemon.request("POST", LOAD, code(97 << 20).as_bytes()).problem(413);
    assert!(problem.contains("body is larger"), "{problem}");
}

#[test]
fn a_hundred_thousand_modules_are_refused() {
    let daemon = Daemon::start(SHARING);
    let modules: serde_json::Map<_, _> = (0..100_000).map(|n| (format!("{n}.js"), json!(""))).collect();
    let body = json!({ "mainModule": "0.js", "modules": modules }).to_string();
    assert!(daemon.request("POST", LOAD, body.as_bytes()).problem(413).contains("more than 10000 modules"));
}

#[test]
fn a_half_sent_body_and_a_client_that_never_reads_are_cut_off() {
    let daemon = Daemon::start(&format!("{SHARING}[api]\nread_secs = 1\nwrite_secs = 1\n"));
    let mut half = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    half.write_all(b"POST /v1/tenants/t/load HTTP/1.1\r\nhost: d\r\ncontent-length: 100\r\n\r\n{").expect("it reads");
    half.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let answer = Answer::read(&mut half).expect("an answer");
    assert!(answer.problem(408).contains("did not arrive"));

    let mut headless = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    headless.write_all(b"POST /v1/ten").expect("it reads");
    headless.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    headless.read_to_end(&mut Vec::new()).expect("the connection is closed");

    // The answers exceed the socket's buffer, and the client reads none of them. So the daemon
    // gives up writing.
    let mut deaf = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    let body = json!({ "code": "() => 'x'.repeat(1e6)" }).to_string();
    let request = format!("POST {LOAD} HTTP/1.1\r\nhost: d\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    deaf.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    while deaf.write_all(request.as_bytes()).is_ok() {}
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
}

#[test]
fn a_client_that_goes_away_cancels_its_run() {
    let daemon = Daemon::start(SHARING);
    let mut client = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    let body = json!({ "code": "() => new Promise((r) => setTimeout(r, 9000))" }).to_string();
    write!(client, "POST {LOAD} HTTP/1.1\r\nhost: d\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("it reads");
    daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 1 && tenant["resident"].is_object());
    drop(client);
    // The next run gets the thread at once. Its `wallMs` is far below the time that the first run
    // would have taken.
    daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 0);
    let run = daemon.load("t", &json!({ "code": "() => 1", "limits": { "wallMs": 3000 } })).ok();
    assert_eq!(run["result"], 1, "{run}");
}

#[test]
fn over_its_quota_a_tenant_learns_when_to_retry() {
    let daemon = Daemon::start(SHARING);
    daemon.request("PUT", "/v1/tenants/t", br#"{"quota": {"inFlight": 1, "perSecond": 1, "burst": 2}}"#).ok();
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    let over = daemon.load("t", &json!({ "code": "() => 1" }));
    assert!(over.problem(429).contains("perSecond"));
    assert!(over.head.to_ascii_lowercase().contains("retry-after: "), "{}", over.head);
    assert_eq!(daemon.run("other", "() => 1")["result"], 1);
}

#[test]
fn a_policy_applies_at_once_and_after_a_restart() {
    let daemon = Daemon::start(SHARING);
    let put =
        daemon.request("PUT", "/v1/tenants/t", br#"{"limits": {"cpuMs": 50, "wallMs": 5000, "memoryMb": 32}}"#).ok();
    assert_eq!(put["policy"]["limits"]["cpuMs"], 50);
    let run = daemon.load("t", &json!({ "code": "() => { for (;;); }", "limits": { "cpuMs": 4000 } })).ok();
    assert!(
        run["outcome"] == "exceededCpu" && run["error"]["message"].as_str().is_some_and(|m| m.contains(" 50 ms")),
        "{run}"
    );
    let daemon = Daemon::start_in(daemon.kill_hard(), SHARING);
    assert_eq!(daemon.get("/v1/tenants/t")["policy"]["limits"]["memoryMb"], 32);
}

#[test]
fn events_list_what_happened_and_a_follower_receives_new_ones() {
    let daemon = Daemon::start(SHARING);
    let mut follower = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    follower.write_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nhost: d\r\n\r\n").expect("it reads");
    follower.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    daemon.run("t", "() => 1");
    let mut heard = String::new();
    while !heard.contains("\"admitted\"") {
        let mut piece = [0; 4096];
        let got = follower.read(&mut piece).expect("events come");
        heard.push_str(&String::from_utf8_lossy(&piece[..got]));
    }
    let events = daemon.events();
    let sequence: Vec<_> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(sequence.iter().copied().eq(1..=sequence.len() as u64), "{sequence:?}");
    assert!(events.iter().any(|event| event["event"] == "workerStarted" && event["pid"].as_i64().is_some()));
}

#[test]
fn the_daemon_describes_itself() {
    let daemon = Daemon::start(SHARING);
    let ping = daemon.request("HEAD", "/_ping", b"");
    assert!(ping.status == 200 && ping.head.to_ascii_lowercase().contains("api-version: 1"), "{}", ping.head);
    daemon.run("t", "() => 1");
    assert!(daemon.get("/v1/version")["v8"].as_str().is_some_and(|v8| v8.starts_with("15.2.124")));
    let info = daemon.get("/v1/info");
    assert!(
        info["posture"]["layers"]
            .as_array()
            .is_some_and(|layers| layers.iter().any(|l| l["layer"] == "seccomp" && l["on"] == true))
    );
    let count = |what: &str| info["counts"][what].as_u64().expect("a count");
    assert_eq!((count("workers") - count("standby"), count("residents")), (1, 1), "{info}");
    let workers = daemon.get("/v1/workers")["workers"].clone();
    let of_t = workers.as_array().and_then(|workers| workers.iter().find(|worker| worker["tenants"] == json!(["t"])));
    assert!(of_t.is_some_and(|worker| worker["rssBytes"].as_u64().is_some_and(|rss| rss > 1 << 20)), "{workers}");
}

#[test]
fn a_peer_without_rights_is_refused_and_one_with_them_is_not() {
    if !has("root", nix::unistd::geteuid().is_root()) {
        return;
    }
    const STRANGER: u32 = 4_000_001;
    const GUEST: u32 = 4_000_002;
    let daemon = Daemon::start(&format!("{SHARING}[[peers]]\nuid = {GUEST}\ntenants = [\"guest-*\"]\n"));
    // The socket's mode would keep other uids out, so the mode is widened: this test is about the
    // rules of `[[peers]]`.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(daemon.socket(), open).expect("the socket is ours");
    let script = daemon.folder.path().join("s.js");
    std::fs::write(&script, "() => 1").expect("a script");
    let run = |uid: u32, arguments: &[&str]| {
        // The build folder may be closed to other users, so the program is copied out of it.
        let program = daemon.folder.path().join("enisle");
        std::fs::copy(programs().join("enisle"), &program).expect("the program is there");
        let out = Command::new(program)
            .args(arguments)
            .arg("--socket")
            .arg(daemon.socket())
            .uid(uid)
            .gid(uid)
            .current_dir("/")
            .output();
        let out = out.expect("enisle runs");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let script = script.to_str().expect("a path");
    let (code, said) = run(STRANGER, &["run", script]);
    assert!(
        code == Some(3) && said.contains("may not act for tenant default") && said.contains("[[peers]]"),
        "{code:?} {said}"
    );
    assert_eq!(run(GUEST, &["run", "--tenant", "guest-1", script]).0, Some(0));
    assert_eq!(run(GUEST, &["run", "--tenant", "host", script]).0, Some(3));
    assert_eq!(run(GUEST, &["ps"]).0, Some(3));
    let denied = daemon.await_event("the denial", |event| event["event"] == "denied" && event["uid"] == STRANGER);
    assert_eq!(denied["what"], "act for tenant default", "{denied}");
}
