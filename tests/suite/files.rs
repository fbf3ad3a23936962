//! What the daemon keeps, and who else gets at it: nobody. And whom the command line takes for the
//! daemon.

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

/// Somebody with no rights anywhere.
const STRANGER: u32 = 4_000_011;

fn root() -> bool {
    has("root", nix::unistd::geteuid().is_root())
}

fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("enisle-files-").tempdir().expect("a folder");
    set_mode(folder.path(), 0o755);
    fs::write(folder.path().join("enisled.toml"), SHARING).expect("a configuration");
    folder
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn give(path: &Path, uid: u32) {
    nix::unistd::chown(path, Some(nix::unistd::Uid::from_raw(uid)), None).expect("root may give it away");
}

/// A daemon under a umask that keeps nothing from anybody, with a socket in a folder that it makes
/// itself.
fn start_openly(folder: TempDir) -> Daemon {
    let daemon = programs().join("enisled");
    let words = ["sh", "-c", "umask 0; exec \"$0\" \"$@\""].map(OsStr::new);
    let words = [&words[..], &[daemon.as_os_str()]].concat();
    let process =
        Daemon::command_of(&words, folder.path(), &folder.path().join("run/s")).spawn().expect("enisled runs");
    // Where the tests look for a socket.
    let _ = symlink("run/s", folder.path().join("s"));
    Daemon::await_answer(process, folder)
}

/// Has a daemon start that is not to; what it said.
fn refusal(folder: &TempDir) -> String {
    let mut process = Daemon::command(folder.path(), &folder.path().join("run/s")).spawn().expect("enisled runs");
    let code = process.wait().expect("it is our child").code();
    let said = fs::read_to_string(folder.path().join("log")).expect("a log");
    assert_eq!(code, Some(1), "{said}");
    said
}

#[test]
fn a_start_that_its_state_folder_stops_names_the_folder_and_no_worker() {
    let folder = folder();
    fs::create_dir(folder.path().join("state")).expect("a folder");
    set_mode(&folder.path().join("state"), 0o700);
    fs::write(folder.path().join("state/tenants"), "").expect("it is ours");
    let said = refusal(&folder);
    assert!(said.contains("state/tenants cannot be used for the daemon's state"), "{said}");
    assert!(!said.contains("worker"), "{said}");
}

/// Everything below a folder, and the folder.
fn walk(path: &Path, found: &mut Vec<PathBuf>) {
    found.push(path.to_owned());
    if fs::symlink_metadata(path).expect("it is there").is_dir() {
        for entry in fs::read_dir(path).expect("it is a folder") {
            walk(&entry.expect("an entry").path(), found);
        }
    }
}

/// Nothing that the daemon has made gives others a right, but the socket, and its folder as root
/// makes it.
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
fn nothing_that_the_daemon_keeps_gives_others_a_right() {
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

    // What a start puts aside is no different.
    let folder = daemon.kill_hard();
    let log = folder.path().join("state/audit/audit.jsonl");
    let torn = fs::read_to_string(&log).expect("a log") + "{\"seq\":";
    fs::write(&log, torn).expect("it is ours");
    fs::write(folder.path().join("state/standings.redb"), "no database at all").expect("it is ours");
    fs::write(folder.path().join("state/tenants/u.json"), "no policy").expect("it is ours");
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
    assert!(daemon.log().contains("others had rights to what the daemon keeps"), "{}", daemon.log());
    assert_eq!(daemon.get("/v1/tenants/t")["cordon"]["level"], "solo", "and nothing is lost");
}

#[test]
fn a_place_where_others_may_write_is_refused_and_so_is_one_behind_a_link() {
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
fn a_planted_link_in_the_place_of_a_file_is_not_followed() {
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
fn what_belongs_to_somebody_else_is_refused() {
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
    // A policy of somebody else's is put aside, as one that cannot be read is.
    let planted = folder.path().join("state/tenants/evil.json");
    fs::write(&planted, r#"{"allow_eval": true, "trust": "trusted"}"#).expect("a file");
    give(&planted, STRANGER);
    let daemon = start_openly(folder);
    assert!(daemon.log().contains(&theirs) && !planted.exists(), "{}", daemon.log());
    assert_eq!(daemon.run("evil", "() => eval('1+1')")["outcome"], "exception");
}

#[test]
fn nobody_else_gets_at_a_lock() {
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
    assert!(takes(&own), "the stranger can lock what is the stranger's");
    for lock in ["run/s.lock", "state/lock", "state/standings.redb"] {
        assert!(folder.join(lock).exists() && !takes(&folder.join(lock)), "{lock}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `enisled --check-config` for what a start in that folder would use.
fn check(folder: &TempDir) -> Output {
    let mut command = Daemon::command(folder.path(), &folder.path().join("run/s"));
    command.arg("--check-config").stderr(Stdio::piped()).output().expect("enisled runs")
}

#[test]
fn checking_the_configuration_finds_what_a_start_would_refuse_and_takes_nothing() {
    let folder = folder();
    let written = |config: &str| {
        fs::write(folder.path().join("enisled.toml"), config).expect("a configuration");
        let checked = check(&folder);
        (checked.status.code(), text(&checked.stderr))
    };
    assert_eq!(written(SHARING), (Some(0), String::new()));
    for (config, word) in [
        ("required = [\"moat\"]", "moat"),
        ("[workers]\nprogram = \"/no/such/program\"", "/no/such/program"),
        ("[workers]\nprogram = \"/etc/passwd\"", "/etc/passwd"),
        (
            "[api]\nconnections = 9000000000000000000",
            "api.connections is 9000000000000000000; it must be between 1 and",
        ),
        ("[api]\nbody_mb = 9000000000000000000", "api.body_mb"),
        ("[cordon.rules]\nsolo = nan", "cordon.rules.solo"),
        ("[workers]\nmax_memory_mb = 64\n[defaults.limits]\nmemory_mb = 65", "memoryMb"),
        ("[cordon]\nv8_at_least = \"fifteen\"", "v8_at_least"),
        ("[[peers]]\nuid = 5\ntenants = [\"ac*me\"]", "ac*me"),
    ] {
        let (code, said) = written(config);
        assert!(code == Some(1) && said.contains(word), "{config}: {code:?} {said}");
        assert!(refusal(&folder).contains(word), "a start refuses it too: {config}");
    }
    assert!(!folder.path().join("state").exists() && !folder.path().join("run").exists());
    let daemon = Daemon::start_in(folder, SHARING);
    let mut beside = Daemon::command(daemon.folder.path(), &daemon.socket());
    assert!(beside.arg("--check-config").status().expect("enisled runs").success(), "also while a daemon runs");
}

#[test]
fn checking_the_configuration_finds_a_program_that_is_no_worker() {
    let folder = folder();
    fs::write(folder.path().join("enisled.toml"), "[workers]\nprogram = \"/bin/true\"").expect("a configuration");
    let said = text(&check(&folder).stderr);
    assert!(said.contains("the startup snapshot could not be made: the worker"), "{said}");
    assert!(!folder.path().join("run").exists());
    assert!(refusal(&folder).contains("the startup snapshot could not be made: the worker"));
}

/// Has a daemon start, or check its configuration, with a socket and a state folder elsewhere.
fn elsewhere(folder: &TempDir, socket: &Path, state: &Path, check: bool) -> (Option<i32>, String) {
    // Which ends it if it starts after all.
    let mut command = Command::new("timeout");
    command.arg("30").arg(programs().join("enisled")).arg("--config").arg(folder.path().join("enisled.toml"));
    command.arg("--socket").arg(socket).arg("--state-dir").arg(state).args(check.then_some("--check-config"));
    let ended = command.env_remove("ENISLE_SOCKET").stdin(Stdio::null()).output().expect("enisled runs");
    (ended.status.code(), text(&ended.stderr))
}

#[test]
fn a_check_and_a_start_refuse_the_same_places() {
    let folder = folder();
    let (own, file) = (folder.path().to_owned(), folder.path().join("file"));
    fs::write(&file, "").expect("a file");
    fs::create_dir(own.join("other")).expect("a folder");
    symlink("other", own.join("way")).expect("a link");
    for (socket, state, word) in [
        (own.join("run/s"), file.join("state"), "Not a directory"),
        (own.join("run/s"), PathBuf::from("/proc/enisle"), "/proc"),
        (own.join("run/s"), PathBuf::from("/sys/enisle/state"), "/sys"),
        (PathBuf::from("/proc/enisle/s"), own.join("state"), "/proc"),
        (own.join("state/lock"), own.join("state"), "would be in the way"),
        (own.join("state/standings.redb"), own.join("state"), "would be in the way"),
        (own.join("state/audit"), own.join("state"), "would be in the way"),
        (own.join("state/tenants/a.json"), own.join("state"), "would be in the way"),
        (own.join("way/state/audit"), own.join("other/state"), "would be in the way"),
    ] {
        for check in [true, false] {
            let (code, said) = elsewhere(&folder, &socket, &state, check);
            let place = (socket.display(), state.display());
            assert!(code == Some(1) && said.contains(word), "{place:?}, check {check}: {code:?} {said}");
        }
        assert!(!own.join("state").exists() && !own.join("other/state").exists(), "nothing was made");
    }
    let (code, said) = elsewhere(&folder, &own.join("state/s"), &own.join("state"), true);
    assert_eq!((code, said.as_str()), (Some(0), ""), "beside what it keeps there is room");
}

/// What an operator's copy, a crash or a hand has left among the files that the daemon keeps.
#[test]
fn what_is_among_the_policies_is_in_nobodys_way() {
    let folder = folder();
    let tenants = folder.path().join("state/tenants");
    for name in [".new/full", "a.broken/full", "b.json"] {
        fs::create_dir_all(tenants.join(name)).expect("a folder");
    }
    fs::write(tenants.join("a.json"), "no policy").expect("a file");
    nix::unistd::mkfifo(&tenants.join("c.json"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let checked = check(&folder);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let daemon = start_openly(folder);
    for tenant in ["a", "b", "c", "d"] {
        daemon.request("PUT", &format!("/v1/tenants/{tenant}"), b"{}").ok();
    }
    assert!(daemon.folder.path().join("state/tenants/a.broken/full").exists(), "what was there is still there");
}

/// What is in the way of a file or a socket of the daemon's.
#[test]
fn checking_the_configuration_finds_what_is_in_the_way() {
    let link = |path: &Path| symlink("/dev/null", path).expect("a link");
    let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let theirs = |path: &Path| {
        fs::write(path, "").expect("a file");
        give(path, STRANGER);
    };
    let directory = |path: &Path| fs::create_dir(path).expect("a folder");
    type Plant<'a> = &'a dyn Fn(&Path);
    let ways: [(Plant, &str); 4] = [
        (&link, "it is a link"),
        (&pipe, "it is not a file"),
        (&theirs, "it belongs to uid"),
        (&directory, "it is not a file"),
    ];
    let ways = &ways[..if nix::unistd::geteuid().is_root() { 4 } else { 2 }];
    let old = ["state/audit/audit-000000000001.jsonl", "state/audit/audit.jsonl.broken-1-0"];
    for place in ["state/lock", "state/standings.redb", "state/audit/audit.jsonl", "run/s.lock"].into_iter().chain(old)
    {
        for (plant, word) in ways {
            let folder = folder();
            let path = folder.path().join(place);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            plant(&path);
            let checked = check(&folder);
            let said = text(&checked.stderr);
            assert!(checked.status.code() == Some(1) && said.contains(place) && said.contains(word), "{place}: {said}");
            let said = refusal(&folder);
            assert!(said.contains(word), "a start refuses it too, {place}: {said}");
        }
    }
    let folder = folder();
    fs::create_dir_all(folder.path().join("run/s")).expect("a folder");
    assert!(text(&check(&folder).stderr).contains("it is not a socket"));
    assert!(refusal(&folder).contains("it is not a socket"));
}

#[test]
fn a_configuration_that_others_could_have_written_is_refused() {
    let path = |folder: &TempDir| folder.path().join("enisled.toml");
    let moved = |folder: &TempDir, to: &str| {
        let to = folder.path().join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::rename(path(folder), &to).expect("it is ours");
        symlink(&to, path(folder)).expect("a link");
    };
    type Change<'a> = &'a dyn Fn(&TempDir);
    let changes: [(Change, &str); 8] = [
        (&|folder| set_mode(&path(folder), 0o666), "others may write to it (mode 666)"),
        (&|folder| set_mode(&path(folder), 0o620), "others may write to it (mode 620)"),
        (&|folder| set_mode(folder.path(), 0o777), "on the way to it (mode 777)"),
        (
            &|folder| {
                moved(folder, "there/c");
                set_mode(&folder.path().join("there"), 0o777);
            },
            "on the way to it (mode 777)",
        ),
        (
            &|folder| {
                fs::remove_file(path(folder)).expect("it is ours");
                nix::unistd::mkfifo(&path(folder), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
            },
            "it is not a file",
        ),
        (&|folder| fs::write(path(folder), "#".repeat((1 << 20) + 1)).expect("it is ours"), "more than 1048576 bytes"),
        (&|folder| give(&path(folder), STRANGER), "it belongs to uid 4000011"),
        (
            &|folder| {
                moved(folder, "c");
                nix::unistd::fchownat(
                    nix::fcntl::AT_FDCWD,
                    &path(folder),
                    Some(nix::unistd::Uid::from_raw(STRANGER)),
                    None,
                    nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
                )
                .expect("root may");
            },
            "it belongs to uid 4000011",
        ),
    ];
    for (change, word) in &changes[..if root() { 8 } else { 6 }] {
        let folder = folder();
        change(&folder);
        let checked = check(&folder);
        let said = text(&checked.stderr);
        assert!(checked.status.code() == Some(1) && said.contains("enisled.toml cannot be read"), "{word}: {said}");
        assert!(said.contains(word), "{word}: {said}");
        assert!(refusal(&folder).contains(word), "a start refuses it too: {word}");
    }
    // What only the daemon's own user could have written is believed, behind a link as well.
    let folder = folder();
    moved(&folder, "there/c");
    set_mode(&folder.path().join("there/c"), 0o644);
    set_mode(folder.path(), 0o1777);
    let checked = check(&folder);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn a_stranger_who_was_there_first_is_told_nothing() {
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
            // It answers nothing, so it is ended when it has heard enough.
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
