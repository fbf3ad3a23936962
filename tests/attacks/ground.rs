//! Where attacks happen: a daemon on a leash, peers of several uids, and measurements.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_hardening::process::fds;
use enisle_tests::{Answer, Daemon, PATIENCE, SHARING, programs};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use enisle_tests::wait::within as wait;

use crate::Options;
use crate::files::walk;

/// A peer that may act for `acme-*`: it attacks.
pub(crate) const ATTACKER: u32 = 5001;
/// A peer that may act for `good-*`: it must not notice.
pub(crate) const VICTIM: u32 = 5002;
/// A user that no rule names.
pub(crate) const STRANGER: u32 = 5003;

/// Who answers nothing for so long has stalled.
pub(crate) const STALLED: Duration = Duration::from_secs(5);
/// A request of the victim's that takes longer is not served.
pub(crate) const UNSERVED: Duration = Duration::from_secs(15);

/// How long a request of the victim's may take. The exact figure is the benchmark's: beside a test
/// other work may run.
fn served_within(bench: bool) -> Duration {
    Duration::from_secs(if bench { 1 } else { 2 })
}

impl Options {
    pub(crate) fn served_within(self) -> Duration {
        served_within(self.bench)
    }
}

/// What the daemon may commit: well above every bound that it is held to.
const LEASH_MIB: u64 = 6144;

/// The rules of every daemon here. `share` is the attacker's `share_percent`, if it has one.
fn peers(share: Option<u32>) -> String {
    let share = share.map_or_else(String::new, |percent| format!("share_percent = {percent}\n"));
    format!(
        "[[peers]]\nuid = {ATTACKER}\ntenants = [\"acme-*\"]\n{share}\n[[peers]]\nuid = {VICTIM}\ntenants = [\"good-*\"]\n"
    )
}

/// What daemons that were attacked have left open to others.
static LEFT_OPEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Files and folders of theirs that were looked at.
static LOOKED_AT: AtomicUsize = AtomicUsize::new(0);

/// Looks at what a daemon has kept, whatever it went through, before it is removed.
struct Keeps(PathBuf);

impl Drop for Keeps {
    fn drop(&mut self) {
        let state = self.0.join("state");
        // One that an attack has put in its place is not the daemon's.
        let below = if state.is_symlink() { Vec::new() } else { walk(&state) };
        let kept = [vec![self.0.join("s.lock"), state], below].concat();
        for path in kept {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            LOOKED_AT.fetch_add(1, Ordering::Relaxed);
            if !found.is_symlink() && found.mode() & 0o077 != 0 {
                let mut open = LEFT_OPEN.lock().unwrap_or_else(PoisonError::into_inner);
                open.push(format!("{} {:o}", path.display(), found.mode() & 0o7777));
            }
        }
    }
}

/// How many files and folders of daemons were looked at, if none was open to others.
pub(crate) fn nothing_left_open() -> Result<usize, String> {
    let open = LEFT_OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if open.is_empty() { Ok(LOOKED_AT.load(Ordering::Relaxed)) } else { Err(open.join(", ")) }
}

/// A daemon that is attacked.
pub(crate) struct Ground {
    /// First, so that it looks before the folder goes.
    _keeps: Keeps,
    pub(crate) daemon: Daemon,
    pub(crate) attacker: Peer,
    pub(crate) victim: Peer,
    pub(crate) stranger: Peer,
    pub(crate) root: Peer,
}

impl Ground {
    /// A daemon with [`SHARING`] and further lines of configuration.
    pub(crate) fn start(config: &str) -> Self {
        Self::with(&format!("{SHARING}{config}"), None)
    }

    /// A daemon with exactly this configuration and the peers.
    pub(crate) fn with(config: &str, share: Option<u32>) -> Self {
        let folder = folder();
        fs::write(folder.path().join("enisled.toml"), format!("{config}\n{}", peers(share))).expect("it is ours");
        let process = leashed(folder.path(), &folder.path().join("s"), 0o022).spawn().expect("the leash runs");
        Self::around(process, folder)
    }

    /// The same with so many open files at the most.
    pub(crate) fn with_open_files(config: &str, most: u32) -> Self {
        let folder = folder();
        fs::write(folder.path().join("enisled.toml"), format!("{config}\n{}", peers(None))).expect("it is ours");
        let free = leashed(folder.path(), &folder.path().join("s"), 0o022);
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()]);
        limited.arg(free.get_program()).args(free.get_args()).env_remove("ENISLE_SOCKET").env("ENISLE_LOG", "info");
        let log = fs::File::options().append(true).open(folder.path().join("log")).expect("the command made it");
        Self::around(limited.stdin(Stdio::null()).stderr(log).spawn().expect("the leash runs"), folder)
    }

    /// A daemon with [`SHARING`] that is executed by another program.
    pub(crate) fn executed_by(program: &str) -> Self {
        let folder = folder();
        fs::write(folder.path().join("enisled.toml"), format!("{SHARING}\n{}", peers(None))).expect("it is ours");
        let inner = leashed(folder.path(), &folder.path().join("s"), 0o022);
        let mut outer = Command::new(programs().join(program));
        outer.arg(inner.get_program()).args(inner.get_args()).env_remove("ENISLE_SOCKET").env("ENISLE_LOG", "info");
        let log = fs::File::options().append(true).open(folder.path().join("log")).expect("the command made it");
        Self::around(outer.stdin(Stdio::null()).stderr(log).spawn().expect("the program runs"), folder)
    }

    /// Takes a daemon that was started on the socket `s` of a folder.
    pub(crate) fn around(process: Child, folder: TempDir) -> Self {
        let daemon = Daemon::await_answer(process, folder);
        let peer = |uid| Peer::start(daemon.folder.path(), uid, &daemon.socket());
        let (attacker, victim, stranger, root) = (peer(ATTACKER), peer(VICTIM), peer(STRANGER), peer(0));
        // The socket's mode keeps the stranger out by its group; here the policy is what is tested.
        fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).expect("it is ours");
        Self { _keeps: Keeps(daemon.folder.path().to_owned()), daemon, attacker, victim, stranger, root }
    }

    pub(crate) fn gauge(&self) -> Gauge {
        Gauge(self.daemon.pid())
    }

    /// Has the daemon remember events that are as long as a client can make them; how many bytes a
    /// list of them has.
    pub(crate) fn fill_events(&self) -> Result<usize, String> {
        const ORDERS: usize = 1100;
        const ENOUGH: usize = 4_000_000;
        let paths: Vec<_> = (0..ORDERS).map(|n| format!("/v1/tenants/acme-{n}/cordon")).collect();
        let list = || self.root.ask("GET", "/v1/events", b"").map_or(0, |answer| answer.body.len());
        let (mut given, mut bytes) = (0, 0);
        for round in 1..=4 {
            let order = json!({ "level": "solo", "reason": "\u{1}".repeat(660 - round) }).to_string();
            given = self.root.flood(20, "PUT", &paths, order.as_bytes(), 200);
            bytes = list();
            if given < ORDERS || bytes > ENOUGH {
                break;
            }
            // A second has room for so many; that there were more is told when it is over.
            wait(PATIENCE, || list() > bytes);
        }
        if given == ORDERS && bytes > ENOUGH {
            Ok(bytes)
        } else {
            Err(format!("{given} orders, {bytes} bytes of events"))
        }
    }

    /// What the daemon tells root of a tenant.
    pub(crate) fn tenant(&self, name: &str) -> Value {
        let asked = self.root.ask("GET", &format!("/v1/tenants/{name}"), b"");
        asked.ok().filter(|answer| answer.status == 200).map_or(Value::Null, |answer| answer.json())
    }
}

/// A folder for a daemon, which others may enter.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("enisle-attack-").tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

/// The command of a daemon in `folder` on a socket, on a leash.
pub(crate) fn leashed(folder: &Path, socket: &Path, umask: u32) -> Command {
    let (leash, daemon) = (programs().join("leash"), programs().join("enisled"));
    let (most, umask) = (LEASH_MIB.to_string(), format!("{umask:o}"));
    let words = [leash.as_os_str(), OsStr::new(&most), OsStr::new(&umask), daemon.as_os_str()];
    Daemon::command_of(&words, folder, socket)
}

/// Whether a daemon answers there: it listens before it has tried everything that may end it.
pub(crate) fn pings(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let asked = send(&mut stream, "GET", "/_ping", &[]);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    asked.is_ok() && Answer::read(&mut stream).is_ok_and(|answer| answer.status == 200)
}

/// Connections of one uid, made by a process of that uid.
pub(crate) struct Peer {
    uid: u32,
    process: Child,
    test: Mutex<UnixStream>,
}

impl Peer {
    fn start(folder: &Path, uid: u32, socket: &Path) -> Self {
        Self::call(folder, uid, "connect", socket)
    }

    /// A process of that uid for one of the calls of `peer`.
    pub(crate) fn call(folder: &Path, uid: u32, call: &str, place: &Path) -> Self {
        // The folder that it was built in may be closed to others.
        let program = folder.join("peer");
        if !program.exists() {
            fs::copy(programs().join("peer"), &program).expect("the program is built");
        }
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_read_timeout(Some(UNSERVED)).expect("a timeout");
        // The socket's group may connect.
        let gid = fs::metadata(place).map_or(uid, |found| found.gid());
        let mut command = Command::new(program);
        command.arg(call).arg(place).uid(uid).gid(gid).current_dir("/").stdin(OwnedFd::from(theirs));
        Self { uid, process: command.spawn().expect("the helper runs"), test: Mutex::new(ours) }
    }

    /// Asks the helper for a descriptor; a number if that is what it has.
    fn hand_over(&self) -> io::Result<(u8, Option<OwnedFd>)> {
        let mut test = self.test.lock().expect("nobody panics with it");
        test.write_all(&[0])?;
        let mut byte = [0];
        match fds::receive(test.as_fd(), &mut byte)? {
            (1, mut descriptors) => Ok((byte[0], descriptors.pop())),
            _ => Err(io::Error::other(format!("the helper of uid {} has ended", self.uid))),
        }
    }

    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let (_, socket) = self.hand_over()?;
        let stream = UnixStream::from(socket.ok_or_else(|| io::Error::other("no connection"))?);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let (_, socket) = self.hand_over()?;
        Ok(UnixListener::from(socket.ok_or_else(|| io::Error::other("no socket"))?))
    }

    /// How many files the helper has locked.
    pub(crate) fn lock(&self) -> io::Result<u8> {
        Ok(self.hand_over()?.0)
    }

    /// One request on a connection of its own, one answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.ask_within(PATIENCE, method, path, &[body])
    }

    pub(crate) fn ask_within(&self, time: Duration, method: &str, path: &str, body: &[&[u8]]) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(time))?;
        stream.set_write_timeout(Some(time))?;
        // A daemon that refuses early may stop reading; its answer is what counts.
        let _ = send(&mut stream, method, path, body);
        Answer::read(&mut stream)
    }

    /// Sends a request and leaves the answer to be read, or not.
    pub(crate) fn begin(&self, method: &str, path: &str, body: &[u8]) -> io::Result<UnixStream> {
        let mut stream = self.connect()?;
        send(&mut stream, method, path, &[body])?;
        Ok(stream)
    }

    /// Sends bodies up to the last byte: what has arrived of them is held until they are cut off.
    pub(crate) fn unfinished(&self, how_many: usize, bytes: usize) -> Vec<UnixStream> {
        let body = vec![b' '; bytes];
        let send = |number| {
            let mut stream = self.connect().ok()?;
            let head = head("POST", &format!("/v1/tenants/acme-h{number}/load"), bytes + 1, false);
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok()?;
            Some(stream)
        };
        (0..how_many).filter_map(send).collect()
    }

    /// Runs a function expression for a tenant: how long it took to be `ok`, or what became of it.
    pub(crate) fn served(&self, tenant: &str, code: &str) -> Result<Duration, String> {
        let body = json!({ "code": code }).to_string();
        self.answered("POST", &format!("/v1/tenants/{tenant}/load"), body.as_bytes())
    }

    /// How long it took until a request had a good answer, or what became of it.
    pub(crate) fn answered(&self, method: &str, path: &str, body: &[u8]) -> Result<Duration, String> {
        let begun = Instant::now();
        let answer = self.ask_within(UNSERVED, method, path, &[body]);
        let answer = answer.map_err(|error| format!("no answer after {:?} ({error})", begun.elapsed()))?;
        if begun.elapsed() > UNSERVED {
            return Err(format!("{} after {:?}", answer.status, begun.elapsed()));
        }
        let text = String::from_utf8_lossy(&answer.body);
        let good = (200..300).contains(&answer.status) && (!text.contains("\"outcome\"") || text.contains("\"ok\""));
        let short: String = text.chars().take(240).collect();
        if good { Ok(begun.elapsed()) } else { Err(format!("{} {short}", answer.status)) }
    }

    /// Sends the same request for every path, many at a time on a few connections; how many of the
    /// answers had that status.
    pub(crate) fn flood(&self, streams: usize, method: &str, paths: &[String], body: &[u8], status: u16) -> usize {
        let wanted = format!("HTTP/1.1 {status}");
        std::thread::scope(|scope| {
            let parts: Vec<_> = paths.chunks(paths.len().div_ceil(streams).max(1)).collect();
            let threads: Vec<_> = parts
                .into_iter()
                .map(|part| {
                    let wanted = &wanted;
                    scope.spawn(move || self.flood_one(method, part, body, wanted).unwrap_or(0))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        })
    }

    fn flood_one(&self, method: &str, paths: &[String], body: &[u8], wanted: &str) -> io::Result<usize> {
        let mut stream = self.connect()?;
        let mut good = 0;
        for batch in paths.chunks(50) {
            let mut requests = Vec::new();
            for path in batch {
                requests.extend_from_slice(head(method, path, body.len(), true).as_bytes());
                requests.extend_from_slice(body);
            }
            stream.write_all(&requests)?;
            let (mut unread, mut answers) = (Vec::new(), 0);
            while answers < batch.len() {
                let mut piece = [0; 1 << 16];
                let got = stream.read(&mut piece)?;
                if got == 0 {
                    return Ok(good);
                }
                unread.extend_from_slice(&piece[..got]);
                answers = memchr::memmem::find_iter(&unread, b"HTTP/1.1 ").count();
            }
            good += memchr::memmem::find_iter(&unread, wanted.as_bytes()).count();
        }
        Ok(good)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn head(method: &str, path: &str, bytes: usize, keep: bool) -> String {
    let close = if keep { "" } else { "connection: close\r\n" };
    format!("{method} {path} HTTP/1.1\r\nhost: d\r\n{close}content-length: {bytes}\r\n\r\n")
}

/// Sends a request whose body is in pieces.
pub(crate) fn send(stream: &mut UnixStream, method: &str, path: &str, body: &[&[u8]]) -> io::Result<()> {
    let bytes = body.iter().map(|piece| piece.len()).sum();
    stream.write_all(head(method, path, bytes, false).as_bytes())?;
    let mut pieces: Vec<_> = body.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut pieces = pieces.as_mut_slice();
    while !pieces.is_empty() {
        match stream.write_vectored(pieces)? {
            0 if pieces.iter().all(|piece| piece.is_empty()) => break,
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut pieces, written),
        }
    }
    Ok(())
}

/// Whether something can be read: an answer, or the end of the connection.
pub(crate) fn answered(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut look = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut look, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The memory and the CPU time of a process, as the kernel counts them (proc_pid_status(5)).
#[derive(Clone, Copy)]
pub(crate) struct Gauge(i32);

impl Gauge {
    /// Of a worker.
    pub(crate) fn of(pid: i32) -> Self {
        Self(pid)
    }

    fn field(self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(0)?.parse().ok()
    }

    pub(crate) fn threads(self) -> Option<u64> {
        self.field("Threads:")
    }

    /// MiB that are in memory; `None` if the process has ended.
    pub(crate) fn rss(self) -> Option<u64> {
        Some(self.field("VmRSS:")?.div_ceil(1024))
    }

    /// KiB that are in memory.
    pub(crate) fn rss_kib(self) -> Option<u64> {
        self.field("VmRSS:")
    }

    /// The most MiB since [`Gauge::reset`].
    pub(crate) fn peak(self) -> Option<u64> {
        Some(self.field("VmHWM:")?.div_ceil(1024))
    }

    /// Begins a new peak.
    pub(crate) fn reset(self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.0), "5");
    }

    fn cpu_ns(self) -> u64 {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.0)) else { return 0 };
        let times = threads.flatten().filter_map(|thread| {
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
        });
        times.sum()
    }

    /// How long its first thread has waited for a processor (sched-stats.rst).
    fn waited(self) -> Duration {
        let times = fs::read_to_string(format!("/proc/{0}/task/{0}/schedstat", self.0)).unwrap_or_default();
        Duration::from_nanos(times.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default())
    }

    /// Waits until the process is idle: work for clients that have gone is over.
    pub(crate) fn quiet(self, patience: Duration) -> bool {
        const WINDOW: Duration = Duration::from_millis(25);
        let begun = Instant::now();
        while begun.elapsed() < patience {
            let before = self.cpu_ns();
            std::thread::sleep(WINDOW);
            if self.cpu_ns().saturating_sub(before) < 3_000_000 {
                return true;
            }
        }
        false
    }

    /// Waits until the process has at most that many MiB; what it had last.
    pub(crate) fn back_to(self, most: u64, patience: Duration) -> Result<u64, String> {
        wait(patience, || self.rss().is_none_or(|rss| rss <= most));
        match self.rss() {
            None => Err("the daemon died".to_owned()),
            Some(rss) if rss <= most => Ok(rss),
            Some(rss) => Err(format!("{rss} MiB after {} s, not {most}", patience.as_secs())),
        }
    }
}

/// A ping is due this often.
const BEAT: Duration = Duration::from_millis(10);

/// What pings took that are due on a fixed beat, each from when it was due. Those that are due
/// while one is on its way are answered with it, as other clients' would be: a stall is as many
/// late pings as were due in it, and one that ends with the attack is no less.
#[derive(Default)]
pub(crate) struct Pings {
    took: Vec<Duration>,
    /// How late the probe was by itself at the most, with no ping on its way: other work kept it
    /// from running. The beat goes on from there, for that was not the daemon's doing.
    late: Duration,
    /// What the daemon's thread waited for a processor, all in all.
    waited: Duration,
    failed: Option<String>,
}

impl Pings {
    fn collect(&mut self, stream: &mut UnixStream, stop: &OnceLock<Instant>) -> io::Result<()> {
        let mut due = Instant::now();
        let over = |due| stop.get().is_some_and(|stop| due >= *stop);
        while !over(due) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let late = due.elapsed();
            self.late = self.late.max(late);
            due += late;
            ping(stream)?;
            let answered = Instant::now();
            while due <= answered && !over(due) {
                self.took.push(answered - due);
                due += BEAT;
            }
        }
        Ok(())
    }
}

fn ping(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(head("HEAD", "/_ping", 0, true).as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 512];
        match stream.read(&mut piece)? {
            0 => return Err(io::Error::other("the daemon closed the connection")),
            got => answer.extend_from_slice(&piece[..got]),
        }
    }
    Ok(())
}

/// Has the pings stop, also where the attack panics.
struct Stop<'a>(&'a OnceLock<Instant>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let _ = self.0.set(Instant::now());
    }
}

/// Does something while the victim asks for pings.
pub(crate) fn probed<T>(ground: &Ground, attack: impl FnOnce() -> T) -> (T, Pings) {
    let stream = ground.victim.connect().expect("the victim may connect before the attack");
    probed_over(stream, ground.gauge(), attack)
}

/// The same on a connection to any daemon.
pub(crate) fn probed_over<T>(mut stream: UnixStream, daemon: Gauge, attack: impl FnOnce() -> T) -> (T, Pings) {
    let (stop, mut pings) = (OnceLock::new(), Pings::default());
    stream.set_read_timeout(Some(STALLED)).expect("a timeout");
    let waited = daemon.waited();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| pings.failed = pings.collect(&mut stream, &stop).err().map(|error| error.to_string()));
        let _stop = Stop(&stop);
        attack()
    });
    pings.waited = daemon.waited().saturating_sub(waited);
    (result, pings)
}

/// An attack through which the daemon has to answer as well: what came of it, with the figures.
pub(crate) fn answering(
    ground: &Ground,
    options: Options,
    attack: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let (result, pings) = probed(ground, attack);
    pings.beside(options, result)
}

impl Pings {
    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// What they took but for one in a hundred, and for one of fewer.
    fn all_but_one_in_a_hundred(&self) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.truncate(sorted.len() - (sorted.len() / 100).max(1).min(sorted.len()));
        sorted.last().copied().unwrap_or_default()
    }

    /// Both the figures and what came of an attack, if both hold.
    pub(crate) fn beside(&self, options: Options, result: Result<String, String>) -> Result<String, String> {
        match (result, self.verdict(options.bench)) {
            (Ok(said), Ok(pings)) => Ok(format!("{said}; {pings}")),
            (Ok(said) | Err(said), Ok(pings) | Err(pings)) => Err(format!("{said}; {pings}")),
        }
    }

    /// The latencies in words, or in what way the daemon has stalled. The exact figure is the
    /// benchmark's: beside a test other work may run.
    pub(crate) fn verdict(&self, bench: bool) -> Result<String, String> {
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let (p50, p99, most) = (self.at(50), self.all_but_one_in_a_hundred(), self.at(100));
        let said = format!(
            "{} pings: p50 {}, p99 {}, max {} ms (for want of a processor the probe was {} ms late, and the daemon {})",
            self.took.len(),
            ms(p50),
            ms(p99),
            ms(most),
            ms(self.late),
            ms(self.waited)
        );
        match &self.failed {
            Some(error) => Err(format!("a ping failed after {said}: {error}")),
            None if p99 > Duration::from_millis(if bench { 100 } else { 250 }) => Err(said),
            None if most > served_within(bench) => Err(said),
            None => Ok(said),
        }
    }
}

/// A program of this build, where every uid can execute it.
pub(crate) fn copied(folder: &Path, program: &str) -> PathBuf {
    let copy = folder.join(program);
    fs::copy(programs().join(program), &copy).expect("the program is built");
    copy
}
