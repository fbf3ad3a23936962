//! Which evidence of an attack survives whatever else happens, and what a peer may see.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use enisle_tests::{Answer, Daemon, SHARING, has, programs, wait_until};
use serde_json::{Value, json};

pub(crate) const STRANGER: u32 = 4_000_001;
pub(crate) const GUEST: u32 = 4_000_002;

/// A daemon that lets a guest act for some tenants; `None` if the test cannot become another user.
pub(crate) fn with_guest() -> Option<Daemon> {
    has("root", nix::unistd::geteuid().is_root()).then(|| {
        let daemon = Daemon::start(&format!("{SHARING}[[peers]]\nuid = {GUEST}\ntenants = [\"guest-*\"]\n"));
        // The socket's mode would keep other uids out, so the mode is widened: these tests are
        // about the rules of `[[peers]]`.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(daemon.socket(), open).expect("the socket is ours");
        // The build folder may be closed to other users, so the program is copied out of it.
        fs::copy(programs().join("relay"), daemon.folder.path().join("relay")).expect("the program is there");
        daemon
    })
}

fn request(method: &str, path: &str, body: &str, last: bool) -> String {
    let connection = if last { "close" } else { "keep-alive" };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: d\r\nconnection: {connection}");
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Sends requests as another user; returns everything that the daemon answers.
fn send_as(daemon: &Daemon, uid: u32, requests: &str) -> Vec<u8> {
    let mut peer = Command::new(daemon.folder.path().join("relay"));
    peer.arg(daemon.socket()).uid(uid).gid(uid).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut peer = peer.spawn().expect("the program runs");
    let mut input = peer.stdin.take().expect("it is a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(requests.as_bytes()));
        peer.wait_with_output().expect("it ends").stdout
    })
}

pub(crate) fn ask_as(daemon: &Daemon, uid: u32, method: &str, path: &str, body: &str) -> Answer {
    let answer = send_as(daemon, uid, &request(method, path, body, true));
    Answer::read(&mut answer.as_slice()).expect("an answer")
}

#[test]
fn a_flood_of_denials_erases_nothing_and_is_counted() {
    const DENIALS: u64 = 20_000;
    let Some(daemon) = with_guest() else { return };
    let order = json!({ "level": "sealed", "reason": "EVIDENCE" }).to_string();
    daemon.request("PUT", "/v1/tenants/victim/cordon", order.as_bytes()).ok();
    daemon.request("PUT", "/v1/tenants/victim", b"{}").ok();
    let flood: String = (1..=DENIALS).map(|n| request("GET", "/v1/workers", "", n == DENIALS)).collect();
    let answers = send_as(&daemon, STRANGER, &flood);
    assert_eq!(String::from_utf8_lossy(&answers).matches("HTTP/1.1 403").count() as u64, DENIALS);
    let counted = || {
        let denials = daemon.events().into_iter().filter(|event| event["event"] == "denied");
        denials.map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    wait_until("that every denial is counted", || counted() == DENIALS);
    let events = daemon.events();
    for kind in ["ordered", "cordoned", "policyChanged"] {
        let count = events.iter().filter(|event| event["event"] == kind && event["tenant"] == "victim").count();
        assert_eq!(count, 1, "{kind}: {events:?}");
    }
    let log = daemon.log();
    assert!(log.contains("EVIDENCE") && log.contains("policyChanged"), "{log}");
}

#[test]
fn an_unread_log_stops_nothing_and_lost_lines_are_counted() {
    let folder = tempfile::Builder::new().prefix("enisle-test-").tempdir().expect("a folder");
    fs::write(folder.path().join("enisled.toml"), SHARING).expect("a configuration");
    let mut command = Daemon::command(folder.path(), &folder.path().join("s"));
    let mut process = command.env("ENISLE_LOG", "debug").stderr(Stdio::piped()).spawn().expect("enisled runs");
    let log = process.stderr.take().expect("it is a pipe");
    let daemon = Daemon::await_answer(process, folder);
    // Each request causes a line of the log.
    for _ in 0..15_000 {
        let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        let _ = stream.write_all(b"nonsense\r\n\r\n");
        assert!(Answer::read(&mut stream).is_ok_and(|answer| answer.status == 400));
    }
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    let mut lines = BufReader::new(log).lines().map_while(Result::ok);
    let lost = lines.find_map(|line| line.rsplit_once("lost=")?.1.parse::<u64>().ok());
    assert!(lost.is_some_and(|lost| lost > 0), "{lost:?}");
}

#[test]
fn a_peer_sees_what_it_needs_of_its_own_tenant_and_a_stranger_sees_nothing() {
    let Some(daemon) = with_guest() else { return };
    let load = json!({ "code": "() => 1" }).to_string();
    let own = |body: &str| ask_as(&daemon, GUEST, "POST", "/v1/tenants/guest-1/load", body);
    let (first, second) = (own(&load).ok(), own(&load).ok());
    for key in ["cpuMs", "wallMs"] {
        assert!(first["usage"][key].is_u64(), "{first}");
    }
    assert!(first["usage"]["startupUs"].as_u64().is_some_and(|us| us % 1000 == 0), "{first}");
    let number = |run: &Value| {
        let digits = run["id"].as_str().and_then(|id| id.strip_prefix("run_")).filter(|digits| digits.len() == 32);
        digits.and_then(|digits| u128::from_str_radix(digits, 16).ok()).expect("a run has an id of 128 bits")
    };
    // Two random numbers of 128 bits differ in some 64 bits, two consecutive numbers in a few.
    assert!((number(&first) ^ number(&second)).count_ones() > 20, "{first} {second}");
    let tenant = ask_as(&daemon, GUEST, "GET", "/v1/tenants/guest-1", "").ok();
    let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<BTreeSet<_>>());
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
    assert_eq!(keys(&tenant), names(&["name", "policy", "inFlight", "cordon", "usage"]), "{tenant}");
    assert_eq!(keys(&tenant["cordon"]), names(&["level", "sinceUnixMs"]), "{tenant}");
    assert!(tenant["usage"]["cpuMs"].is_u64() && tenant["usage"]["runs"] == 2, "{tenant}");
    assert!(daemon.get("/v1/tenants/guest-1")["cordon"]["thresholds"].is_object(), "operators see everything");
    let info = ask_as(&daemon, GUEST, "GET", "/v1/info", "").ok();
    assert_eq!(keys(&info), names(&["defaults", "outcomes", "uptimeMs", "draining"]), "{info}");
    for path in ["/v1/info", "/v1/version", "/v1/tenants", "/v1/tenants/guest-1"] {
        ask_as(&daemon, STRANGER, "GET", path, "").problem(403);
    }
    let order = json!({ "level": "expelled", "reason": "SECRET REASON" }).to_string();
    daemon.request("PUT", "/v1/tenants/guest-1/cordon", order.as_bytes()).ok();
    let problem = own(&load).problem(403);
    assert!(problem.contains("expelled") && !problem.contains("SECRET"), "{problem}");
    assert!(daemon.load("guest-1", &json!({ "code": "() => 1" })).problem(403).contains("SECRET REASON"));
}

#[test]
fn lists_come_in_pages_and_the_command_line_shows_them_all() {
    let daemon = Daemon::start(SHARING);
    let names: Vec<_> = (0..120).map(|n| format!("t{n:03}")).collect();
    for name in &names {
        daemon.request("PUT", &format!("/v1/tenants/{name}"), b"{}").ok();
    }
    let (mut seen, mut path) = (Vec::new(), "/v1/tenants?limit=50".to_owned());
    loop {
        let page = daemon.get(&path);
        let tenants = page["tenants"].as_array().expect("a list");
        assert!((1..=50).contains(&tenants.len()), "{}", tenants.len());
        seen.extend(tenants.iter().map(|tenant| tenant["name"].as_str().expect("a name").to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/tenants?limit=50&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, names);
    for limit in ["0", "101", "x"] {
        daemon.request("GET", &format!("/v1/tenants?limit={limit}"), b"").problem(400);
    }
    daemon.run("t000", "() => 1");
    let workers = daemon.get("/v1/workers")["workers"].clone();
    let inhabited = |worker: &&Value| worker["tenants"] != json!([]);
    assert_eq!(workers.as_array().map(|workers| workers.iter().filter(inhabited).count()), Some(1), "{workers}");
    let shown = Command::new(programs().join("enisle")).arg("tenants").env("ENISLE_SOCKET", daemon.socket()).output();
    let shown = String::from_utf8_lossy(&shown.expect("enisle runs").stdout).into_owned();
    assert!(names.iter().all(|name| shown.contains(name.as_str())), "{shown}");
}
