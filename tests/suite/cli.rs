//! The command line as a user types it.

use std::fs;
use std::process::{Command, Output, Stdio};

use enisle_tests::{Daemon, SHARING, programs};
use serde_json::Value;

fn enisle(daemon: &Daemon, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(programs().join("enisle"))
        .args(arguments)
        .env("ENISLE_SOCKET", daemon.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("enisle runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_file_runs_with_its_console_and_its_result() {
    let daemon = Daemon::start(SHARING);
    let file = daemon.folder.path().join("hello.js");
    fs::write(&file, "export default { run(name, env) { console.log('hello', name); return { n: env.n + 1 } } }")
        .expect("a script");
    let file = file.to_str().expect("a path");
    let out = enisle(&daemon, &["run", file, "--arg", "\"you\"", "--env", "n=1"], "");
    assert_eq!((out.status.code(), text(&out.stderr).trim()), (Some(0), "[log] hello you"));
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).expect("JSON"), serde_json::json!({ "n": 2 }));
    let json: Value =
        serde_json::from_slice(&enisle(&daemon, &["run", file, "--arg", "7", "--json"], "").stdout).expect("JSON");
    assert_eq!(json["logs"][0]["text"], "hello 7");
}

#[test]
fn the_outcome_decides_the_exit_code() {
    let daemon = Daemon::start(SHARING);
    for (request, code) in [
        (r#"{"code": "() => 1"}"#, 0),
        (r#"{"code": "() => { throw 1 }"}"#, 1),
        (r#"{"cod": "() => 1"}"#, 2),
        (r#"{"code": "() => { for (;;); }", "limits": {"cpuMs": 20}}"#, 4),
    ] {
        assert_eq!(enisle(&daemon, &["load", "-"], request).status.code(), Some(code), "{request}");
    }
    assert_eq!(enisle(&daemon, &["run"], "").status.code(), Some(2));
    assert_eq!(enisle(&daemon, &["run", "/no/such/file.js"], "").status.code(), Some(2));
    let nowhere = enisle(&daemon, &["--socket", "/no/such/socket", "ps"], "");
    assert!(nowhere.status.code() == Some(3) && text(&nowhere.stderr).contains("start one with `enisled`"));
}

#[test]
fn a_script_cannot_drive_the_terminal() {
    let daemon = Daemon::start(SHARING);
    let out =
        enisle(&daemon, &["load", "-"], r#"{"code": "() => { console.log('\u001b[2J'); return '\u001b]0;x\u0007' }"}"#);
    assert!(!out.stdout.contains(&0x1b) && !out.stderr.contains(&0x1b), "{out:?}");
}

#[test]
fn a_result_comes_through_whatever_it_is() {
    let daemon = Daemon::start(SHARING);
    let deep = r#"() => { let a = 'x'; for (let i = 0; i < 490; i++) a = [a]; return a }"#;
    let whole = format!("{}\"x\"{}", "[".repeat(490), "]".repeat(490));
    let numbers = r#"() => ({ z: 12345678901234567890, a: 1e300 })"#;
    for (code, result) in [
        (deep, whole.as_str()),
        (r"() => '\ud800'", r#""\ud800""#),
        (r"() => ({ '\udc00': 1 })", r#"{"\udc00":1}"#),
        (numbers, r#"{"z":12345678901234567000,"a":1e+300}"#),
    ] {
        let request = serde_json::json!({ "code": code }).to_string();
        let json = enisle(&daemon, &["load", "-", "--json"], &request);
        assert_eq!(json.status.code(), Some(0), "{code}: {}", text(&json.stderr));
        assert!(text(&json.stdout).contains(&format!("\"result\":{result},")), "{code}: {}", text(&json.stdout));
        let shown = enisle(&daemon, &["load", "-"], &request);
        assert_eq!(shown.status.code(), Some(0), "{code}: {}", text(&shown.stderr));
        let without_blanks: String = text(&shown.stdout).split_ascii_whitespace().collect();
        assert_eq!(without_blanks, result, "{code}");
    }
}

#[test]
fn no_text_of_a_script_changes_how_a_terminal_shows_the_rest() {
    let daemon = Daemon::start(SHARING);
    let marks = r"\u202e\u2066\u061c\u200f\u2028\ufeff\u{e0041}";
    let code =
        format!("() => {{ console.log('a{marks}'); const e = new Error('b{marks}'); e.name = 'c{marks}'; throw e }}");
    let thrown = enisle(&daemon, &["load", "-"], &serde_json::json!({ "code": code }).to_string());
    let returned = format!("() => ({{ 'd{marks}': 'e{marks}' }})");
    let returned = enisle(&daemon, &["load", "-"], &serde_json::json!({ "code": returned }).to_string());
    for (shown, letters) in [(text(&thrown.stderr), "abc"), (text(&returned.stdout), "de")] {
        assert!(shown.is_ascii(), "{shown}");
        for letter in letters.chars() {
            assert!(shown.contains(&format!("{letter}\\u202e\\u2066")), "{letter}: {shown}");
        }
    }
    // A program that reads the output as JSON still gets the same text.
    let result: Value = serde_json::from_slice(&returned.stdout).expect("JSON");
    let marks = "\u{202e}\u{2066}\u{61c}\u{200f}\u{2028}\u{feff}\u{e0041}";
    assert_eq!(result, serde_json::json!({ format!("d{marks}"): format!("e{marks}") }));
}

#[test]
fn the_state_of_the_daemon_can_be_looked_at() {
    let daemon = Daemon::start(SHARING);
    daemon.run("acme", "() => 1");
    assert!(text(&enisle(&daemon, &["ps"], "").stdout).contains("acme"));
    assert!(text(&enisle(&daemon, &["inspect", "acme"], "").stdout).contains("runs 1,"));
    enisle_tests::wait_until("the event", || text(&enisle(&daemon, &["events"], "").stdout).contains("admitted"));
    let doctor: Value = serde_json::from_slice(&enisle(&daemon, &["doctor", "--json"], "").stdout).expect("JSON");
    assert_eq!(doctor["layers"].as_array().map(Vec::len), Some(enisle_hardening::Layer::ALL.len()));
    assert!(text(&enisle(&daemon, &["completions", "bash"], "").stdout).contains("complete"));
}

#[test]
fn standalone_needs_no_daemon_and_leaves_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("s.js");
    fs::write(&file, "() => 6 * 7").expect("a script");
    let out = Command::new(programs().join("enisle"))
        .args(["run", "--standalone"])
        .arg(&file)
        .env("TMPDIR", folder.path())
        .env_remove("ENISLE_SOCKET")
        .output()
        .expect("enisle runs");
    assert_eq!((out.status.code(), text(&out.stdout).trim()), (Some(0), "42"), "{}", text(&out.stderr));
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["s.js"]);
}

#[test]
fn the_command_line_gives_and_lifts_an_order_and_verifies_the_audit_log() {
    let daemon = Daemon::start(SHARING);
    let socket = daemon.socket();
    let enisle = |arguments: &[&str]| {
        let out = Command::new(programs().join("enisle"))
            .args(arguments)
            .env("ENISLE_SOCKET", &socket)
            .output()
            .expect("enisle runs");
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code().unwrap_or(-1), said)
    };
    daemon.run("t", "() => 1");
    assert_eq!(enisle(&["cordon", "t", "sealed", "--reason", "looks & smells"]).0, 0);
    let (code, inspected) = enisle(&["inspect", "t"]);
    assert!(code == 0 && inspected.contains("t: sealed") && inspected.contains("looks & smells"), "{inspected}");
    assert_eq!(enisle(&["cordon", "t", "--lift", "--reason", "was fine & well"]).0, 0);
    assert!(enisle(&["inspect", "t"]).1.contains("lifted it: was fine & well"));
    assert_eq!(enisle(&["cordon", "t", "--reason", "x"]).0, 2, "neither a level nor --lift");
    assert_eq!(enisle(&["cordon", "t", "solo"]).0, 2, "no reason");
    assert_eq!(enisle(&["cordon", "t", "shared", "--reason", "x"]).0, 2);
    assert!(enisle(&["events"]).1.contains("cordoned"));
    // The log has the order and its end, each followed by the move that it caused.
    enisle_tests::wait_until("the audit log", || daemon.get("/v1/audit")["seq"] == 4);
    let (code, verified) = enisle(&["audit", "verify"]);
    assert!(code == 0 && verified.starts_with("4 lines in 1 file are whole"), "{verified}");

    let file = daemon.folder.path().join("state/audit/audit.jsonl");
    let lines = std::fs::read_to_string(&file).expect("a log");
    let shorter: Vec<_> = lines.lines().take(3).collect();
    std::fs::write(&file, shorter.join("\n") + "\n").expect("it is ours");
    let (code, verified) = enisle(&["audit", "verify"]);
    assert!(code == 1 && verified.contains("missing at the end"), "{verified}");
    std::fs::write(&file, lines.replace("looks", "seems")).expect("it is ours");
    let (code, verified) = enisle(&["audit", "verify", &file.parent().expect("a folder").to_string_lossy()]);
    assert!(code == 1 && verified.contains("line 1") && verified.contains("changed"), "{verified}");
}
