//! What the tests share: a daemon for each test, a client for its socket, and a check of what the
//! machine offers.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod guards;
pub mod rig;
pub mod wait;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use enisle_api::client::blocking::{Connection, Response};
use serde_json::{Value, json};
use tempfile::{TempDir, TempPath};

pub use guards::SetOnDrop;
pub use wait::{PATIENCE, until as wait_until};

/// The environment variable that names the folder of the programs under test. It is set in the
/// emulated machine, where the programs cannot be built.
pub const PROGRAMS_VARIABLE: &str = "ENISLE_PROGRAMS";

/// An argument of the kernel in the emulated machine. It permits the test there to set the clock.
pub const OWN_CLOCK: &str = "enisle.clock=own";

/// The folder with `enisled`, `enisle-worker`, `enisle` and the programs of this crate. A test
/// process builds them once, unless [`PROGRAMS_VARIABLE`] names the folder.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(folder) = std::env::var_os(PROGRAMS_VARIABLE) {
            return PathBuf::from(folder);
        }
        // target/PROFILE/deps/suite-… → target/PROFILE
        let test = std::env::current_exe().expect("a test has a path");
        let dir = test.ancestors().nth(2).expect("tests live in target/PROFILE/deps").to_path_buf();
        let packages = ["enisle-worker", "enisle-supervisor", "enisle-cli", "enisle-tests"];
        let packages: Vec<_> = packages.iter().flat_map(|package| ["-p", package]).chain(["--bins"]).collect();
        build(&dir, &packages)
    })
}

/// Builds programs into a profile's folder, with that profile; returns the folder.
///
/// # Panics
/// The programs do not build.
pub fn build(dir: &Path, what: &[&str]) -> PathBuf {
    let target = dir.parent().expect("a profile is a folder in the target folder");
    let profile = dir.file_name().expect("a profile's folder has a name").to_string_lossy();
    // The profile whose folder is `debug` is called `dev`.
    let profile = if profile == "debug" { "dev" } else { &profile };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--profile", profile, "--target-dir"]).arg(target).args(what);
    assert!(cargo.status().expect("cargo runs").success(), "the programs under test do not build");
    dir.to_owned()
}

/// The flags in the worker's `engine/start.rs` that only decide when garbage is collected. A copy
/// of the worker may have other flags in their place ([`altered`]).
pub const UNTIMED_FLAGS: &str = "--no-incremental-marking --heap-growing-percent=50 --min-semi-space-size=1 \
                                 --max-semi-space-size=1 --no-scavenger-updates-allocation-limit";

/// Copies a program and replaces texts in the copy, each by another text, padded with spaces to the
/// same length. If one of V8's flags is replaced, the worker lacks the defence that the flag sets.
///
/// # Panics
/// A text is not in the program, or its replacement is longer.
pub fn altered(program: &Path, texts: &[(&str, &str)]) -> TempPath {
    let mut bytes = fs::read(program).expect("the program is built");
    for (text, other) in texts {
        let at: Vec<_> = memchr::memmem::find_iter(&bytes, text).collect();
        assert!(!at.is_empty(), "{text:?} is not in {}", program.display());
        let other = format!("{other:<width$}", width = text.len());
        assert_eq!(other.len(), text.len());
        for at in at {
            bytes[at..at + text.len()].copy_from_slice(other.as_bytes());
        }
    }
    let mut copy = tempfile::Builder::new().prefix("enisle-altered-").tempfile().expect("a file");
    copy.write_all(&bytes).expect("the copy is written");
    // The worker's uid must be able to read and execute the copy.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    copy.as_file().set_permissions(open).expect("the copy is ours");
    // The copy is closed, because a file that is open for writing cannot be executed (execve(2),
    // ETXTBSY).
    copy.into_temp_path()
}

/// The worker with natives for attackers (`attack-natives`). It is built, unless
/// [`PROGRAMS_VARIABLE`] names a folder that contains it.
pub fn attack_worker() -> PathBuf {
    static WORKER: OnceLock<PathBuf> = OnceLock::new();
    let worker = WORKER.get_or_init(|| {
        let (dir, name) = (programs(), "enisle-worker-attack");
        if std::env::var_os(PROGRAMS_VARIABLE).is_some() && dir.join(name).exists() {
            return dir.join(name);
        }
        build(dir, &["-p", "enisle-worker", "--features", "attack-natives", "--bin", name]).join(name)
    });
    worker.clone()
}

/// The fuzzer, which also runs the cases that it found. It is built, unless [`PROGRAMS_VARIABLE`]
/// names a folder that contains it.
pub fn fuzzer() -> PathBuf {
    static FUZZER: OnceLock<PathBuf> = OnceLock::new();
    let fuzzer = FUZZER.get_or_init(|| {
        let (dir, name) = (programs(), "enisle-fuzz");
        if std::env::var_os(PROGRAMS_VARIABLE).is_some() && dir.join(name).exists() {
            return dir.join(name);
        }
        build(dir, &["-p", name, "--bins"]).join(name)
    });
    fuzzer.clone()
}

/// Returns `present`, which says whether this machine has a feature that a test needs (`pku`,
/// `userns`, `landlock`, `seccomp`, `root`, or a program such as `node`). If `present` is false,
/// this prints that the test is skipped. But if `ENISLE_ELSEWHERE` names the feature, it prints
/// that the test runs elsewhere, because the test command also runs the test in another machine.
///
/// # Panics
/// The machine lacks the feature, and `ENISLE_REQUIRE` names the feature.
pub fn has(feature: &str, present: bool) -> bool {
    let names = |variable| std::env::var(variable).unwrap_or_default().split(',').any(|name| name == feature);
    assert!(present || !names("ENISLE_REQUIRE"), "ENISLE_REQUIRE names {feature}, and this machine lacks it");
    match (present, names("ENISLE_ELSEWHERE")) {
        (true, _) => {}
        (false, true) => eprintln!("runs elsewhere: this machine has no {feature}"),
        (false, false) => eprintln!("skipped: this machine has no {feature}"),
    }
    present
}

/// A daemon on a socket of its own. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    pub folder: TempDir,
}

/// Lets tenants share a process even on a machine without keys. Most tests need that.
pub const SHARING: &str = "[workers]\nshare_without_keys = true\n";

impl Daemon {
    /// Starts a daemon and waits until it answers.
    pub fn start(config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("enisle-test-").tempdir().expect("a folder");
        Self::start_in(folder, config)
    }

    /// Starts a daemon in a folder that an earlier daemon may have used.
    pub fn start_in(folder: TempDir, config: &str) -> Self {
        // Other users may enter the folder, because some tests run a client as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).expect("the folder is ours");
        fs::write(folder.path().join("enisled.toml"), config).expect("the configuration is written");
        let process = Self::command(folder.path(), &folder.path().join("s")).spawn().expect("enisled runs");
        Self::await_answer(process, folder)
    }

    /// Waits until `process` answers. The process must be a daemon that was started on the socket
    /// `s` of `folder`.
    pub fn await_answer(process: Child, folder: TempDir) -> Self {
        let mut daemon = Self { process, folder };
        let answers = wait::within(PATIENCE, || {
            let ended = daemon.process.try_wait().expect("the daemon is our child");
            assert!(ended.is_none(), "enisled ended: {}", daemon.log());
            daemon.answers()
        });
        assert!(answers, "enisled does not answer: {}", daemon.log());
        daemon
    }

    /// The command that starts a daemon in `folder`, on `socket`.
    pub fn command(folder: &Path, socket: &Path) -> Command {
        Self::command_of(&[programs().join("enisled").as_os_str()], folder, socket)
    }

    /// Like [`Self::command`], with `words` in place of `enisled`: the path of another `enisled`,
    /// or a program and its arguments, with which the program executes an `enisled`.
    ///
    /// # Panics
    /// `words` is empty.
    pub fn command_of(words: &[&OsStr], folder: &Path, socket: &Path) -> Command {
        let log = fs::File::create(folder.join("log")).expect("a log file");
        let (program, rest) = words.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(rest).arg("--socket").arg(socket).arg("--state-dir").arg(folder.join("state"));
        command.arg("--config").arg(folder.join("enisled.toml"));
        command.env_remove("ENISLE_SOCKET").env("ENISLE_LOG", "info").stdin(Stdio::null()).stderr(log);
        command
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a pid")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        self.try_request("GET", "/_ping", b"").is_ok()
    }

    /// Kills the daemon without warning, and returns its folder.
    pub fn kill_hard(mut self) -> TempDir {
        self.process.kill().expect("the daemon is our child");
        self.process.wait().expect("the daemon is our child");
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"))
    }

    /// Asks the daemon to end, without waiting for its end.
    pub fn terminate(&self) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGTERM)
            .expect("the daemon is our child");
    }

    /// Waits until the daemon has ended; returns its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.process.wait().expect("the daemon is our child").code()
    }

    /// Sends one request and reads its answer.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.try_request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    fn try_request(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        Ok(Connection::open(&self.socket(), PATIENCE)?.last_request(method, path, body)?.into())
    }

    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, b"").json()
    }

    /// Sends a `load` for a tenant.
    pub fn load(&self, tenant: &str, request: &Value) -> Answer {
        self.request("POST", &format!("/v1/tenants/{tenant}/load"), request.to_string().as_bytes())
    }

    /// Runs one function expression for a tenant; returns the answer.
    pub fn run(&self, tenant: &str, code: &str) -> Value {
        self.load(tenant, &json!({ "code": code })).ok()
    }

    /// Waits until `ready` accepts the state at `path`; returns that state.
    pub fn wait_for(&self, path: &str, ready: impl Fn(&Value) -> bool) -> Value {
        let mut state = Value::Null;
        let came = wait::within(PATIENCE, || {
            state = self.get(path);
            ready(&state)
        });
        assert!(came, "{path} never reached the awaited state: {state}\n{}", self.log());
        state
    }

    /// Every event that the daemon lists.
    pub fn events(&self) -> Vec<Value> {
        let answer = self.request("GET", "/v1/events", b"");
        answer.body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// Waits for an event that `is_it` accepts. Common events are emitted only once a second.
    pub fn await_event(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait::found(PATIENCE, || self.events().into_iter().find(&is_it))
            .unwrap_or_else(|| panic!("no event reports {what}: {:?}", self.events()))
    }

    /// The pid of the worker where a tenant lives, if the tenant has a home at the moment.
    pub fn home_of(&self, tenant: &str) -> Option<i32> {
        let pid = self.get(&format!("/v1/tenants/{tenant}"))["resident"]["pid"].as_i64()?;
        i32::try_from(pid).ok()
    }

    /// The pid of the worker where a tenant lives.
    pub fn worker_of(&self, tenant: &str) -> i32 {
        self.home_of(tenant).unwrap_or_else(|| panic!("{tenant} has no home"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// An answer of the daemon.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads an answer to the end of the connection, for tests that write requests of their own.
    pub fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        Ok(Response::read_last(stream)?.into())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body as JSON, after an assertion that the status is 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The detail of a problem, after an assertion that it has this status.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.head.to_ascii_lowercase().contains("content-type: application/problem+json"), "{}", self.head);
        self.json()["detail"].as_str().expect("a problem has a detail").to_owned()
    }
}

impl From<Response> for Answer {
    fn from(Response { status, head, body }: Response) -> Self {
        Self { status, head, body }
    }
}

/// Whether a process is alive.
pub fn is_alive(pid: i32) -> bool {
    // A zombie has ended, and its parent has not collected it yet.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
