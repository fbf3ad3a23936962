//! Files, locks and sockets: what other users of the machine can do to them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use enisle_tests::wait::PAUSE;
use enisle_tests::{PATIENCE, SHARING, is_alive, programs};
use serde_json::json;
use tempfile::TempDir;

use crate::ground::{ATTACKER, Ground, Peer, STRANGER, VICTIM, copied, folder, leashed, pings, wait};
use crate::pings::answering;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S7 spoofed", title: "a client is pointed to another user's socket", run: spoofed },
    Case { id: "S7 default", title: "the client's default folder, created first by another user", run: default_place },
    Case { id: "S7 link", title: "the daemon's socket behind another user's link", run: link },
    Case { id: "S8 locks", title: "locks that another user takes to keep the daemon down", run: locks },
    Case { id: "S15 modes", title: "no file is open to others, whatever the umask", run: modes },
    Case { id: "S15 planted", title: "a state folder where others may write", run: planted },
    Case { id: "S15 foreign", title: "a state folder that belongs to another user", run: foreign },
    Case {
        id: "S15 above",
        title: "a state folder inside a folder of another user, who could exchange it",
        run: above,
    },
    Case { id: "S15 exchanged", title: "a state folder that is exchanged while the daemon runs", run: exchanged },
];

const SECRET: &str = "MY_SECRET_TOKEN";

/// Starts the client with a command that the victim would type.
fn client(place: &Path, arguments: &[&str]) -> Child {
    let (script, home) = (place.join("s.js"), place.join("home"));
    fs::write(&script, "(env) => env.key").expect("the folder is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let mut command = Command::new(copied(place, "enisle"));
    command.arg("run").arg(&script).args(["--env", &format!("key={SECRET}")]).args(arguments);
    command.uid(VICTIM).gid(VICTIM).current_dir("/").env_clear().env("HOME", home).env("TMPDIR", place);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client runs")
}

/// Receives what clients send to the attacker's socket, and answers each request with a forged
/// result.
fn hear(listener: &UnixListener, done: &AtomicBool) -> Vec<u8> {
    let mut heard = Vec::new();
    listener.set_nonblocking(true).expect("a socket");
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => forge(stream, &mut heard),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    heard
}

fn forge(mut stream: UnixStream, heard: &mut Vec<u8>) {
    let usage = json!({ "cpuMs": 1, "wallMs": 1, "startupUs": 1, "queuedUs": 1, "peakHeapBytes": 1 });
    let result = json!({ "id": "run_1", "outcome": "ok", "result": "forged", "logs": [], "truncated": false,
        "usage": usage, "cordon": "shared" })
    .to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{result}",
        result.len()
    );
    let mut piece = [0; 4096];
    while let Ok(got @ 1..) = stream.read(&mut piece) {
        heard.extend_from_slice(&piece[..got]);
        if heard.ends_with(b"}") {
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}

/// Runs the victim's client against a socket of the attacker.
fn spoof(place: &Path, socket: &Path, arguments: &[&str]) -> Result<String, String> {
    let attacker = Peer::call(place, ATTACKER, "listen", socket);
    let listener = attacker.listen().map_err(|error| error.to_string())?;
    let done = AtomicBool::new(false);
    let (heard, output): (Vec<u8>, Output) = std::thread::scope(|scope| {
        let hears = scope.spawn(|| hear(&listener, &done));
        let output = client(place, arguments).wait_with_output().expect("the client ends");
        done.store(true, Ordering::Relaxed);
        (hears.join().expect("it only reads"), output)
    });
    let words = [output.stdout, output.stderr].concat();
    let said = format!(
        "the attacker heard {} bytes; the client: {:?} {:?}",
        heard.len(),
        output.status.code(),
        String::from_utf8_lossy(&words).trim()
    );
    let secret = memchr::memmem::find(&heard, SECRET.as_bytes()).is_some();
    if secret || output.status.success() { Err(format!("{said}; it heard the secret: {secret}")) } else { Ok(said) }
}

fn spoofed(_: Options) -> Result<String, String> {
    let place = open_folder();
    let socket = place.path().join("open/spoofed");
    let said = spoof(place.path(), &socket, &["--socket", &socket.to_string_lossy()])?;
    // The same client trusts root's daemon.
    let ground = Ground::start(&format!("[[peers]]\nuid = {VICTIM}\ntenants = [\"default\"]\n"));
    let socket = ground.daemon.socket();
    let output = client(place.path(), &["--socket", &socket.to_string_lossy()])
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && printed.contains(SECRET) {
        return Ok(format!("{said}; with root's daemon it works"));
    }
    Err(format!("{said}; but the client refuses root's daemon as well: {output:?}"))
}

/// A folder that contains the folder `open`, where every user may create files, as in `/tmp`.
fn open_folder() -> TempDir {
    let place = folder();
    let open = place.path().join("open");
    fs::create_dir(&open).expect("it is ours");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("it is ours");
    fs::create_dir(place.path().join("home")).expect("it is ours");
    lchown(place.path().join("home"), Some(VICTIM), Some(VICTIM)).expect("root may");
    place
}

fn default_place(_: Options) -> Result<String, String> {
    let place = open_folder();
    let taken = place.path().join(format!("enisle-{VICTIM}"));
    fs::create_dir(&taken).map_err(|error| error.to_string())?;
    lchown(&taken, Some(ATTACKER), Some(ATTACKER)).map_err(|error| error.to_string())?;
    spoof(place.path(), &taken.join("enisled.sock"), &[])
}

/// Starts a daemon in a folder. If the daemon ends instead, its log is the error.
fn start(folder: &Path, socket: &Path) -> Result<Started, String> {
    fs::write(folder.join("enisled.toml"), SHARING).map_err(|error| error.to_string())?;
    let process = leashed(folder, socket, 0o022).spawn().map_err(|error| error.to_string())?;
    let started = Started(process);
    let pid = i32::try_from(started.0.id()).map_err(|error| error.to_string())?;
    wait(PATIENCE, || pings(socket) || !is_alive(pid));
    if is_alive(pid) { Ok(started) } else { Err(fs::read_to_string(folder.join("log")).unwrap_or_default()) }
}

/// A daemon that only has to start. It is killed when this value is dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refused(started: Result<Started, String>) -> Result<String, String> {
    match started {
        Ok(_) => Err("the daemon started".to_owned()),
        Err(said) => Ok(said.lines().last().unwrap_or_default().trim().to_owned()),
    }
}

fn link(_: Options) -> Result<String, String> {
    let place = folder();
    let (real, link) = (place.path().join("real"), place.path().join("link"));
    fs::create_dir(&real).map_err(|error| error.to_string())?;
    symlink(&real, &link).map_err(|error| error.to_string())?;
    lchown(&link, Some(ATTACKER), Some(ATTACKER)).map_err(|error| error.to_string())?;
    refused(start(place.path(), &link.join("s")))
}

fn locks(_: Options) -> Result<String, String> {
    let place = {
        let ground = Ground::start("");
        ground.victim.served("good-1", "()=>1")?;
        let Ground { daemon, .. } = ground;
        daemon.kill_hard()
    };
    let stranger = Peer::call(place.path(), STRANGER, "lock", place.path());
    let locked = stranger.lock().map_err(|error| error.to_string())?;
    match start(place.path(), &place.path().join("s")) {
        Ok(_) => Ok(format!("the other user locked {locked} files; the daemon starts")),
        Err(said) => Err(format!("the other user locked {locked} files; {}", said.trim())),
    }
}

/// Everything below a folder.
pub(crate) fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], walk(&path)].concat() } else { vec![path] })
        .collect()
}

fn modes(_: Options) -> Result<String, String> {
    let mut looked = 0;
    for umask in [0o000, 0o022, 0o077] {
        let place = folder();
        fs::write(place.path().join("enisled.toml"), SHARING).map_err(|error| error.to_string())?;
        let made_by_test: Vec<_> = ["enisled.toml", "log"].map(|name| place.path().join(name)).to_vec();
        let process =
            leashed(place.path(), &place.path().join("s"), umask).spawn().map_err(|error| error.to_string())?;
        let daemon = enisle_tests::Daemon::await_answer(process, place);
        // Do what creates files: a policy, a run, an order.
        daemon.request("PUT", "/v1/tenants/t", br#"{"secrets":["key"]}"#).ok();
        daemon.run("t", "()=>1");
        let order = br#"{"level":"sealed","reason":"to be written down"}"#;
        daemon.request("PUT", "/v1/tenants/u/cordon", order).ok();
        enisle_tests::wait_until("the audit log", || daemon.get("/v1/audit")["seq"].as_u64() >= Some(1));
        let (socket, folder) = (daemon.socket(), daemon.kill_hard());
        let open: Vec<_> = walk(folder.path())
            .into_iter()
            .filter(|path| !made_by_test.contains(path))
            .inspect(|_| looked += 1)
            .filter_map(|path| {
                let found = fs::symlink_metadata(&path).ok()?;
                let mode = found.mode() & 0o777;
                let allowed = if found.file_type().is_socket() && path == socket { 0o660 } else { 0o700 };
                (mode & !allowed != 0).then(|| format!("{} {mode:o}", path.display()))
            })
            .collect();
        if !open.is_empty() {
            let relative = open.join(", ").replace(&*folder.path().to_string_lossy(), "");
            return Err(format!("umask {umask:03o}: {relative}"));
        }
    }
    if looked >= 12 {
        Ok(format!("{looked} files and folders"))
    } else {
        Err(format!("only {looked} files were found"))
    }
}

fn planted(_: Options) -> Result<String, String> {
    let place = folder();
    let tenants = place.path().join("state/tenants");
    fs::create_dir_all(&tenants).map_err(|error| error.to_string())?;
    fs::set_permissions(place.path().join("state"), fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
    refused(start(place.path(), &place.path().join("s")))
}

fn foreign(_: Options) -> Result<String, String> {
    let place = folder();
    let state = place.path().join("state");
    fs::create_dir(&state).map_err(|error| error.to_string())?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).map_err(|error| error.to_string())?;
    lchown(&state, Some(ATTACKER), Some(ATTACKER)).map_err(|error| error.to_string())?;
    refused(start(place.path(), &place.path().join("s")))
}

fn above(_: Options) -> Result<String, String> {
    let (place, elsewhere) = (folder(), folder());
    fs::create_dir(place.path().join("state")).map_err(|error| error.to_string())?;
    fs::set_permissions(place.path().join("state"), fs::Permissions::from_mode(0o700)).map_err(|e| e.to_string())?;
    lchown(place.path(), Some(ATTACKER), Some(ATTACKER)).map_err(|error| error.to_string())?;
    // `timeout` ends the daemon if it starts after all.
    let mut command = Command::new("timeout");
    command.arg("30").arg(programs().join("enisled"));
    command.arg("--socket").arg(elsewhere.path().join("s")).arg("--state-dir").arg(place.path().join("state"));
    let ended = command.env("ENISLE_LOG", "info").stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    let word = format!("belongs to uid {ATTACKER}, who could exchange it");
    if said.contains(&word) { Ok(said) } else { Err(said) }
}

/// Exchanges the state folder, as the owner of its parent folder could.
fn exchanged(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    answering(&ground, options, || exchanged_on(&ground))
}

fn exchanged_on(ground: &Ground) -> Result<String, String> {
    let place = ground.daemon.folder.path().to_owned();
    let (state, away, others) = (place.join("state"), place.join("away"), place.join("others"));
    for name in ["", "tenants", "audit"] {
        fs::create_dir(others.join(name)).map_err(|error| error.to_string())?;
    }
    let kept = others.join("tenants/acme-1.json");
    fs::write(&kept, "whole").map_err(|error| error.to_string())?;
    fs::rename(&state, &away).map_err(|error| error.to_string())?;
    symlink(&others, &state).map_err(|error| error.to_string())?;
    let put = |path: &str, body: &[u8]| ground.root.ask("PUT", path, body).map_or(0, |answer| answer.status);
    let order = br#"{"level":"sealed","reason":"to be written down"}"#;
    let statuses = [put("/v1/tenants/acme-1", br#"{"owner":"o"}"#), put("/v1/tenants/acme-1/cordon", order)];
    let written = || fs::read_to_string(away.join("audit/audit.jsonl")).is_ok_and(|log| log.contains("to be written"));
    let written = wait(PATIENCE, written) && away.join("tenants/acme-1.json").exists();
    let untouched = walk(&others).len() == 3 && fs::read_to_string(&kept).is_ok_and(|text| text == "whole");
    let said = format!("{statuses:?}; written to the original folder: {written}, nothing elsewhere: {untouched}");
    if statuses == [200, 200] && written && untouched { Ok(said) } else { Err(said) }
}
