//! No other uid can read, change or lock the daemon's files, and the command line does not accept a
//! stranger's process as the daemon.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use enisle_tests::{Daemon, SHARING, has, programs, wait_until};
use serde_json::json;
use tempfile::TempDir;

/// A uid that has no rights to anything here.
pub(crate) const STRANGER: u32 = 4_000_011;

pub(crate) fn root() -> bool {
    has("root", nix::unistd::geteuid().is_root())
}

pub(crate) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("enisle-files-").tempdir().expect("a folder");
    set_mode(folder.path(), 0o755);
    fs::write(folder.path().join("enisled.toml"), SHARING).expect("a configuration");
    folder
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

pub(crate) fn give(path: &Path, uid: u32) {
    nix::unistd::chown(path, Some(nix::unistd::Uid::from_raw(uid)), None).expect("root may give it away");
}

/// Starts a daemon under umask 0, with a socket in a folder that the daemon creates.
fn start_openly(folder: TempDir) -> Daemon {
    let daemon = programs().join("enisled");
    let words = ["sh", "-c", "umask 0; exec \"$0\" \"$@\""].map(OsStr::new);
    let words = [&words[..], &[daemon.as_os_str()]].concat();
    let process =
        Daemon::command_of(&words, folder.path(), &folder.path().join("run/s")).spawn().expect("enisled runs");
    // The tests look for the socket at this path.
    let _ = symlink("run/s", folder.path().join("s"));
    Daemon::await_answer(process, folder)
}

/// Starts a daemon that must refuse to start; returns its messages.
pub(crate) fn refusal(folder: &TempDir) -> String {
    let mut process = Daemon::command(folder.path(), &folder.path().join("run/s")).spawn().expect("enisled runs");
    let code = process.wait().expect("it is our child").code();
    let said = fs::read_to_string(folder.path().join("log")).expect("a log");
    assert_eq!(code, Some(1), "{said}");
    said
}

#[test]
fn a_start_that_fails_on_its_state_folder_names_the_folder_and_no_worker() {
    let folder = folder();
    fs::create_dir(folder.path().join("state")).expect("a folder");
    set_mode(&folder.path().join("state"), 0o700);
    fs::write(folder.path().join("state/tenants"), "").expect("it is ours");
    let said = refusal(&folder);
    assert!(said.contains("state/tenants cannot be used for the daemon's state"), "{said}");
    assert!(!said.contains("worker"), "{said}");
}

/// Collects a folder and everything below it.
fn walk(path: &Path, found: &mut Vec<PathBuf>) {
    found.push(path.to_owned());
    if fs::symlink_metadata(path).expect("it is there").is_dir() {
        for entry in fs::read_dir(path).expect("it is a folder") {
            walk(&entry.expect("an entry").path(), found);
        }
    }
}

/// Asserts that others have no right to anything that the daemon has created, except the socket
/// and, if root created it, the socket's folder.
fn assert_closed(folder: &Path) {
    let mut found = Vec::new();
    walk(&folder.join("state"), &mut found);
    walk(&folder.join("run"), &mut found);
    let run_mode = if nix::unistd::geteuid().is_root() { 0o755 } else { 0o700 };
    for path in &found {
        let kind = fs::symlink_metadata(path).expect("it is there");
        let allowed = match () {
            () if kind.file_type().is_socket() => 0o660,
            () if *path == folder.join("run") => run_mode,
            () if kind.is_dir() => 0o700,
            () => 0o600,
        };
        assert_eq!(kind.mode() & 0o7777, allowed, "{}: {:o}", path.display(), kind.mode());
    }
    for name in ["state/lock", "state/standings.redb", "state/audit/audit.jsonl", "state/tenants/t.json", "run/s.lock"]
    {
        assert!(found.contains(&folder.join(name)), "{name} is not among {found:?}");
    }
}

#[test]
fn others_have_no_right_to_any_file_that_the_daemon_keeps() {
    let daemon = start_openly(folder());
    let policy = json!({ "limits": { "cpuMs": 500 }, "owner": "o", "secrets": ["key"] }).to_string();
    for _ in 0..2 {
        daemon.request("PUT", "/v1/tenants/t", policy.as_bytes()).ok();
    }
    let script = json!({ "code": "() => 1" }).to_string();
    daemon.request("PUT", "/v1/tenants/t/scripts/a", script.as_bytes());
    daemon.request("POST", "/v1/tenants/t/scripts/a/run", b"{}").ok();
    let order = json!({ "level": "solo", "reason": "a test" }).to_string();
    daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
    wait_until("the audit log", || daemon.get("/v1/audit")["seq"].as_u64() >= Some(2));
    assert_closed(daemon.folder.path());

    // The same holds for quarantined files.
    let folder = daemon.kill_hard();
    let log = folder.path().join("state/audit/audit.jsonl");
    let torn = fs::read_to_string(&log).expect("a log") + "{\"seq\":";
    fs::write(&log, torn).expect("it is ours");
    fs::write(folder.path().join("state/standings.redb"), "not a database").expect("it is ours");
    fs::write(folder.path().join("state/tenants/u.json"), "not a policy").expect("it is ours");
    set_mode(&folder.path().join("state/tenants/u.json"), 0o600);
    let daemon = start_openly(folder);
    wait_until("the audit log", || daemon.get("/v1/audit")["seq"].as_u64() >= Some(4));
    assert_closed(daemon.folder.path());
}

#[test]
fn what_an_older_version_left_open_is_closed_and_reported() {
    let daemon = start_openly(folder());
    daemon.request("PUT", "/v1/tenants/t", b"{}").ok();
    let order = json!({ "level": "solo", "reason": "a test" }).to_string();
    daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
    wait_until("the audit log", || daemon.get("/v1/audit")["seq"].as_u64() >= Some(2));
    let folder = daemon.kill_hard();
    let mut found = Vec::new();
    walk(&folder.path().join("state"), &mut found);
    for path in &found {
        set_mode(path, if path.is_dir() { 0o755 } else { 0o644 });
    }
    let daemon = start_openly(folder);
    assert_closed(daemon.folder.path());
    assert!(daemon.log().contains("other users had rights to what the daemon keeps"), "{}", daemon.log());
    assert_eq!(daemon.get("/v1/tenants/t")["cordon"]["level"], "solo", "the tenant's standing is kept");
}

#[test]
fn a_folder_that_others_may_write_to_is_refused_and_so_is_one_behind_a_link() {
    for place in ["state", "state/tenants", "state/audit", "run"] {
        let folder = folder();
        let path = folder.path().join(place);
        fs::create_dir_all(&path).expect("a folder");
        set_mode(&path, 0o777);
        let said = refusal(&folder);
        assert!(said.contains(place) && said.contains("others may write to it (mode 777)"), "{place}: {said}");
        let checked = check(&folder);
        assert!(!checked.status.success() && text(&checked.stderr).contains(place), "{place}: {checked:?}");

        fs::remove_dir(&path).expect("it is empty");
        fs::create_dir(folder.path().join("elsewhere")).expect("a folder");
        symlink(folder.path().join("elsewhere"), &path).expect("a link");
        let said = refusal(&folder);
        assert!(said.contains(place) && said.contains("it is a link"), "{place}: {said}");
        assert_eq!(fs::read_dir(folder.path().join("elsewhere")).expect("a folder").count(), 0, "{place}");
    }
}

#[test]
fn a_planted_link_in_place_of_a_file_is_not_followed() {
    for place in ["state/lock", "state/standings.redb", "state/audit/audit.jsonl", "run/s.lock"] {
        let folder = folder();
        let (path, victim) = (folder.path().join(place), folder.path().join("victim"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&victim, "whole").expect("a file");
        symlink(&victim, &path).expect("a link");
        let said = refusal(&folder);
        assert!(said.contains("it is a link"), "{place}: {said}");
        assert_eq!(fs::read_to_string(&victim).expect("a file"), "whole", "{place}");
    }
}

#[test]
fn what_belongs_to_another_uid_is_refused() {
    if !root() {
        return;
    }
    let daemon = start_openly(folder());
    daemon.request("PUT", "/v1/tenants/t", b"{}").ok();
    let order = json!({ "level": "solo", "reason": "a test" }).to_string();
    daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
    wait_until("the audit log", || daemon.get("/v1/audit")["seq"].as_u64() >= Some(2));
    let folder = daemon.kill_hard();
    let theirs = format!("it belongs to uid {STRANGER}");
    for place in [
        "state",
        "state/tenants",
        "state/audit",
        "state/lock",
        "state/standings.redb",
        "state/audit/audit.jsonl",
        "run",
        "run/s.lock",
    ] {
        let path = folder.path().join(place);
        give(&path, STRANGER);
        let said = refusal(&folder);
        assert!(said.contains(&theirs), "{place}: {said}");
        give(&path, 0);
    }
    // A policy that belongs to another uid is quarantined, like an unreadable policy.
    let planted = folder.path().join("state/tenants/evil.json");
    fs::write(&planted, r#"{"allow_eval": true, "trust": "trusted"}"#).expect("a file");
    give(&planted, STRANGER);
    let daemon = start_openly(folder);
    assert!(daemon.log().contains(&theirs) && !planted.exists(), "{}", daemon.log());
    assert_eq!(daemon.run("evil", "() => eval('1+1')")["outcome"], "exception");
}

#[test]
fn another_uid_cannot_take_a_lock() {
    if !root() {
        return;
    }
    let daemon = start_openly(folder());
    let folder = daemon.folder.path();
    let own = folder.join("of-the-stranger");
    fs::write(&own, "").expect("a file");
    give(&own, STRANGER);
    let takes = |path: &Path| {
        let out =
            Command::new("flock").arg("-n").arg(path).arg("true").uid(STRANGER).gid(STRANGER).current_dir("/").output();
        out.expect("flock is there").status.success()
    };
    assert!(takes(&own), "the stranger can lock a file of its own");
    for lock in ["run/s.lock", "state/lock", "state/standings.redb"] {
        assert!(folder.join(lock).exists() && !takes(&folder.join(lock)), "{lock}");
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `enisled --check-config` with the arguments with which a daemon starts in that folder.
pub(crate) fn check(folder: &TempDir) -> Output {
    let mut command = Daemon::command(folder.path(), &folder.path().join("run/s"));
    command.arg("--check-config").stderr(Stdio::piped()).output().expect("enisled runs")
}

/// Stray files are files that an operator, a crash or an editor has left among the daemon's files.
#[test]
fn stray_files_among_the_policies_block_nothing() {
    let folder = folder();
    let tenants = folder.path().join("state/tenants");
    for name in [".new/full", "a.broken/full", "b.json"] {
        fs::create_dir_all(tenants.join(name)).expect("a folder");
    }
    fs::write(tenants.join("a.json"), "not a policy").expect("a file");
    nix::unistd::mkfifo(&tenants.join("c.json"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let checked = check(&folder);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let daemon = start_openly(folder);
    for tenant in ["a", "b", "c", "d"] {
        daemon.request("PUT", &format!("/v1/tenants/{tenant}"), b"{}").ok();
    }
    assert!(daemon.folder.path().join("state/tenants/a.broken/full").exists(), "the stray folder is still there");
}

#[test]
fn a_client_sends_nothing_to_a_stranger_that_listens_first() {
    if !root() {
        return;
    }
    let folder = folder();
    let (place, victim) = (folder.path().join("theirs"), STRANGER + 1);
    fs::create_dir(&place).expect("a folder");
    give(&place, STRANGER);
    for program in ["false-daemon", "enisle"] {
        fs::copy(programs().join(program), folder.path().join(program)).expect("the program is built");
    }
    let script = folder.path().join("s.js");
    fs::write(&script, "() => 1").expect("a script");
    let socket = place.join("s");
    for named in [false, true] {
        let _ = fs::remove_file(&socket);
        let mut theirs = Command::new(folder.path().join("false-daemon"))
            .arg(&socket)
            .uid(STRANGER)
            .gid(STRANGER)
            .current_dir("/")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut heard = BufReader::new(theirs.stdout.take().expect("a pipe"));
        heard.read_line(&mut String::new()).expect("it listens");
        set_mode(&socket, 0o666);
        let mut client = Command::new(folder.path().join("enisle"));
        client.arg("run").arg(&script).args(["--env", "key=MY_SECRET_TOKEN"]).env("ENISLE_SOCKET", &socket);
        client.uid(victim).gid(victim).current_dir("/").stdout(Stdio::piped()).stderr(Stdio::piped());
        if named {
            client.args(["--daemon-uid", &STRANGER.to_string()]);
        }
        let client = client.spawn().expect("enisle runs");
        let mut sent = String::new();
        if named {
            // The false daemon never answers, so it is killed once the request has arrived.
            heard.read_line(&mut sent).expect("a request");
            theirs.kill().expect("it is our child");
        } else {
            heard.read_to_string(&mut sent).expect("the end");
        }
        theirs.wait().expect("it is our child");
        let out = client.wait_with_output().expect("it ends");
        let said = text(&out.stderr);
        if named {
            assert!(sent.starts_with("POST /v1/tenants/default/load"), "{sent}");
        } else {
            assert_eq!((out.status.code(), sent.as_str()), (Some(3), ""), "{said}");
            assert!(said.contains(&format!("has uid {STRANGER}")) && said.contains("nothing was sent"), "{said}");
        }
    }
}
