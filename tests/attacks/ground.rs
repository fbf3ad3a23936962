//! What the attacks share: a daemon under a memory bound with peers of several uids (a [`Ground`]),
//! and measurements.

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
use std::sync::{Mutex, PoisonError};
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
/// A peer that may act for `good-*`: the attack must not affect it.
pub(crate) const VICTIM: u32 = 5002;
/// A user that no rule names.
pub(crate) const STRANGER: u32 = 5003;

/// A daemon that answers nothing for this long has stalled.
pub(crate) const STALLED: Duration = Duration::from_secs(5);
/// A request of the victim that takes longer than this counts as not served.
pub(crate) const UNSERVED: Duration = Duration::from_secs(15);

/// How long a request of the victim may take. Only the benchmark enforces the exact figure, because
/// other work may run beside a test.
pub(crate) fn served_within(bench: bool) -> Duration {
    Duration::from_secs(if bench { 1 } else { 2 })
}

impl Options {
    pub(crate) fn served_within(self) -> Duration {
        served_within(self.bench)
    }
}

/// How much the daemon may commit: well above every bound that it must keep.
const LEASH_MIB: u64 = 6144;

/// The rules of every daemon here. `share` is the attacker's `share_percent`, if it has one.
fn peers(share: Option<u32>) -> String {
    let share = share.map_or_else(String::new, |percent| format!("share_percent = {percent}\n"));
    format!(
        "[[peers]]\nuid = {ATTACKER}\ntenants = [\"acme-*\"]\n{share}\n[[peers]]\nuid = {VICTIM}\ntenants = [\"good-*\"]\n"
    )
}

/// Files of attacked daemons that were open to others.
static LEFT_OPEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// How many of their files and folders were examined.
static LOOKED_AT: AtomicUsize = AtomicUsize::new(0);

/// Examines a daemon's files, whatever the attack has done to them, before they are removed.
struct Keeps(PathBuf);

impl Drop for Keeps {
    fn drop(&mut self) {
        let state = self.0.join("state");
        // A link that an attack has put in place of the folder does not belong to the daemon.
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

/// How many files and folders of daemons were examined; an error if one was open to others.
pub(crate) fn nothing_left_open() -> Result<usize, String> {
    let open = LEFT_OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if open.is_empty() { Ok(LOOKED_AT.load(Ordering::Relaxed)) } else { Err(open.join(", ")) }
}

/// A daemon that is attacked.
pub(crate) struct Ground {
    /// The first field, so that its drop examines the folder before the daemon's drop removes it.
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

    /// A daemon with this configuration, the peers, and a limit on open files.
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

    /// Takes over a daemon that was started on the socket `s` of a folder.
    pub(crate) fn around(process: Child, folder: TempDir) -> Self {
        let daemon = Daemon::await_answer(process, folder);
        let peer = |uid| Peer::start(daemon.folder.path(), uid, &daemon.socket());
        let (attacker, victim, stranger, root) = (peer(ATTACKER), peer(VICTIM), peer(STRANGER), peer(0));
        // The socket's mode would keep the stranger out, so the mode is widened: the attacks test
        // the rules of `[[peers]]`.
        fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).expect("it is ours");
        Self { _keeps: Keeps(daemon.folder.path().to_owned()), daemon, attacker, victim, stranger, root }
    }

    pub(crate) fn gauge(&self) -> Gauge {
        Gauge(self.daemon.pid())
    }

    /// Fills the daemon's list of events with the longest events that a client can cause; returns
    /// the list's size in bytes.
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
            // The daemon keeps a limited number of events per second, and reports the surplus when
            // the second is over.
            wait(PATIENCE, || list() > bytes);
        }
        if given == ORDERS && bytes > ENOUGH {
            Ok(bytes)
        } else {
            Err(format!("{given} orders, {bytes} bytes of events"))
        }
    }

    /// The daemon's answer to root about a tenant.
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

/// The command that starts a daemon in `folder` on a socket, under the memory bound.
pub(crate) fn leashed(folder: &Path, socket: &Path, umask: u32) -> Command {
    let (leash, daemon) = (programs().join("leash"), programs().join("enisled"));
    let (most, umask) = (LEASH_MIB.to_string(), format!("{umask:o}"));
    let words = [leash.as_os_str(), OsStr::new(&most), OsStr::new(&umask), daemon.as_os_str()];
    Daemon::command_of(&words, folder, socket)
}

/// Whether a daemon answers on the socket. A connection alone proves too little: a daemon listens
/// before it has tried everything at which its start may fail.
pub(crate) fn pings(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let asked = send(&mut stream, "GET", "/_ping", &[]);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    asked.is_ok() && Answer::read(&mut stream).is_ok_and(|answer| answer.status == 200)
}

/// A process of one uid (the program `peer`), and the connections that it makes for the test.
pub(crate) struct Peer {
    uid: u32,
    process: Child,
    test: Mutex<UnixStream>,
}

impl Peer {
    fn start(folder: &Path, uid: u32, socket: &Path) -> Self {
        Self::call(folder, uid, "connect", socket)
    }

    /// Starts the program `peer` as this uid, with one of its calls.
    pub(crate) fn call(folder: &Path, uid: u32, call: &str, place: &Path) -> Self {
        // The build folder may be closed to other users.
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

    /// Asks the helper for its answer: a descriptor, or a number.
    fn hand_over(&self) -> io::Result<(u8, Option<OwnedFd>)> {
        let mut test = self.test.lock().expect("no thread panics while it holds the lock");
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

    /// Sends one request on a connection of its own, and reads the answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.ask_within(PATIENCE, method, path, &[body])
    }

    pub(crate) fn ask_within(&self, time: Duration, method: &str, path: &str, body: &[&[u8]]) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(time))?;
        stream.set_write_timeout(Some(time))?;
        // A daemon that refuses early may stop reading; only its answer counts.
        let _ = send(&mut stream, method, path, body);
        Answer::read(&mut stream)
    }

    /// Sends a request; the caller may read the answer, or not.
    pub(crate) fn begin(&self, method: &str, path: &str, body: &[u8]) -> io::Result<UnixStream> {
        let mut stream = self.connect()?;
        send(&mut stream, method, path, &[body])?;
        Ok(stream)
    }

    /// Sends bodies except for their last byte: the daemon holds what has arrived until it closes
    /// the connections.
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

    /// Runs a function expression for a tenant. Returns the time until the outcome was `ok`, or the
    /// failure.
    pub(crate) fn served(&self, tenant: &str, code: &str) -> Result<Duration, String> {
        let body = json!({ "code": code }).to_string();
        self.answered("POST", &format!("/v1/tenants/{tenant}/load"), body.as_bytes())
    }

    /// The time until a request had a good answer, or the failure.
    pub(crate) fn answered(&self, method: &str, path: &str, body: &[u8]) -> Result<Duration, String> {
        let begun = Instant::now();
        let answer = self.ask_within(UNSERVED, method, path, &[body]);
        let answer = answer.map_err(|error| format!("no answer after {:?} ({error})", begun.elapsed()))?;
        if begun.elapsed() > UNSERVED {
            return Err(format!("{} after {:?}", answer.status, begun.elapsed()));
        }
        good(&answer).map(|()| begun.elapsed())
    }

    /// Sends the same request for every path, pipelined over a few connections; returns how many
    /// answers had the given status.
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

pub(crate) fn head(method: &str, path: &str, bytes: usize, keep: bool) -> String {
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

/// Reads the answer to a request that began then. Returns the time until a good answer came, or
/// the failure.
pub(crate) fn good_answer(mut stream: UnixStream, begun: Instant) -> Result<Duration, String> {
    stream.set_read_timeout(Some(UNSERVED)).map_err(|error| error.to_string())?;
    let answer = Answer::read(&mut stream).map_err(|error| error.to_string())?;
    good(&answer).map(|()| begun.elapsed())
}

/// A good answer has a status of success, and the outcome `ok` if it has an outcome.
fn good(answer: &Answer) -> Result<(), String> {
    let text = String::from_utf8_lossy(&answer.body);
    let good = (200..300).contains(&answer.status) && (!text.contains("\"outcome\"") || text.contains("\"ok\""));
    let short: String = text.chars().take(240).collect();
    if good { Ok(()) } else { Err(format!("{} {short}", answer.status)) }
}

/// Whether the stream has something to read: an answer, or the end of the connection.
pub(crate) fn answered(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut look = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut look, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The memory and the CPU time of a process, as counted by the kernel (proc_pid_status(5)).
#[derive(Clone, Copy)]
pub(crate) struct Gauge(i32);

impl Gauge {
    /// The gauge of any process.
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

    /// Resident MiB; `None` if the process has ended.
    pub(crate) fn rss(self) -> Option<u64> {
        Some(self.field("VmRSS:")?.div_ceil(1024))
    }

    /// Resident KiB.
    pub(crate) fn rss_kib(self) -> Option<u64> {
        self.field("VmRSS:")
    }

    /// The peak in MiB since [`Gauge::reset`].
    pub(crate) fn peak(self) -> Option<u64> {
        Some(self.field("VmHWM:")?.div_ceil(1024))
    }

    /// Begins to measure a new peak.
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

    /// How long the process's first thread has waited for a processor (sched-stats.rst).
    pub(crate) fn waited(self) -> Duration {
        let times = fs::read_to_string(format!("/proc/{0}/task/{0}/schedstat", self.0)).unwrap_or_default();
        Duration::from_nanos(times.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default())
    }

    /// Waits until the process is idle, that is, until its work for clients that have gone is over.
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

    /// Waits until the process has at most `most` MiB; returns its last size.
    pub(crate) fn back_to(self, most: u64, patience: Duration) -> Result<u64, String> {
        wait(patience, || self.rss().is_none_or(|rss| rss <= most));
        match self.rss() {
            None => Err("the daemon died".to_owned()),
            Some(rss) if rss <= most => Ok(rss),
            Some(rss) => Err(format!("{rss} MiB after {} s, not {most}", patience.as_secs())),
        }
    }
}

/// A program of this build, copied to where every uid can execute it.
pub(crate) fn copied(folder: &Path, program: &str) -> PathBuf {
    let copy = folder.join(program);
    fs::copy(programs().join(program), &copy).expect("the program is built");
    copy
}
