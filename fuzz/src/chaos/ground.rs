//! The daemon that is disturbed: its folder, its programs, the filesystem of its state, and its
//! *lives*. A life is one process of the supervisor. The next life begins on the same state folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enisle_api::client::blocking::{Connection, Response};
use enisle_tests::wait::within;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longer than a start takes on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(30);
/// How long the daemon may take to end: for runs in flight, for last answers and for its workers.
const END: Duration = Duration::from_secs(30);
/// The size of the state folder's filesystem.
const DISK_MIB: u32 = 12;
/// The memory that the daemon may commit, so that a failure does not take down the machine.
const LEASH_MIB: u32 = 4096;

/// The rule of `[[peers]]` names the uid that all clients here connect as. That uid is often root,
/// and without a rule root would have no share that bounds it.
fn config(folder: &Path) -> String {
    format!(
        "[workers]\nshare_without_keys = true\nmax = {MOST_WORKERS}\nprogram = {:?}\n\
         [api]\nconnections = {CONNECTIONS}\nbody_mb = {BODY_MIB}\nscript_mb = {SCRIPT_MIB}\ndrain_secs = 3\n[audit]\nkeep_mb = 16\n\
         [cordon]\ndrain_secs = 1\nqueue_secs = 3\n\
         [cordon.rules]\nsuspicion_secs = 2\nunexplained_secs = 2\n\
         [cordon.rules.deaths]\nregain_secs = 2\n\
         [[peers]]\nuid = {}\ntenants = [\"*\"]\noperate = true\n",
        folder.join("programs/enisle-worker"),
        nix::unistd::geteuid(),
    )
}

/// The most worker processes that the daemon may have.
pub(crate) const MOST_WORKERS: usize = 36;
/// The most connections that the daemon may have.
pub(crate) const CONNECTIONS: usize = 128;
/// The most memory that the daemon may hold for requests and answers.
pub(crate) const BODY_MIB: usize = 32;
/// The most memory that the daemon may hold for scripts and policies.
pub(crate) const SCRIPT_MIB: usize = 2;

/// The daemon, its folder and its filesystem.
#[derive(Debug)]
pub(crate) struct Ground {
    folder: TempDir,
    disk: Option<Disk>,
    process: Option<Child>,
    lives: Arc<Lives>,
}

/// Which process of the supervisor is the current one.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    current: AtomicU64,
    /// The newest life that was ended on purpose or is about to be, or that refused to start.
    doomed: AtomicU64,
    /// The current life has not answered yet, and may still refuse to start.
    starting: AtomicBool,
}

impl Lives {
    /// The current life, counted from 1. A life begins only after the previous life has ended.
    pub(crate) fn current(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// Whether that life may break a connection without a fault of the daemon: it was ended on
    /// purpose or is about to be, or it may still refuse to start.
    pub(crate) fn is_doomed(&self, life: u64) -> bool {
        let starts = life == self.current() && self.starting.load(Ordering::SeqCst);
        starts || life <= self.doomed.load(Ordering::SeqCst)
    }
}

/// A filesystem for the state folder, in a mount namespace. One process holds the namespace, which
/// ends with that process.
#[derive(Debug)]
struct Disk {
    holder: Child,
}

impl Disk {
    fn mount(state: &Path) -> Result<Self> {
        let here = fs::metadata(state)?.dev();
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg(format!("mount -t tmpfs -o size={DISK_MIB}m,mode=0700 none \"$0\" && exec cat >/dev/null"));
        let disk = Self { holder: holder.arg(state).stdin(Stdio::piped()).spawn().context("unshare")? };
        let mounted = || fs::metadata(disk.path(state)).is_ok_and(|found| found.dev() != here);
        ensure!(within(START, mounted), "no tmpfs could be mounted on {}", state.display());
        Ok(disk)
    }

    /// The path outside the namespace that leads to this path inside the namespace.
    fn path(&self, path: &Path) -> PathBuf {
        let root = Path::new("/proc").join(self.holder.id().to_string()).join("root");
        root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Ground {
    pub(crate) fn make() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("enisle-chaos-").tempdir()?;
        let path = folder.path();
        // Open to all users, because each worker executes the program as a uid of its own.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        fs::DirBuilder::new().mode(0o755).create(path.join("programs"))?;
        fs::DirBuilder::new().mode(0o700).create(path.join("state"))?;
        fs::write(path.join("enisled.toml"), config(path))?;
        let disk = nix::unistd::geteuid().is_root().then(|| Disk::mount(&path.join("state"))).transpose()?;
        let ground = Self { folder, disk, process: None, lives: Arc::default() };
        ground.replace_worker()?;
        Ok(ground)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn worker_program(&self) -> PathBuf {
        self.folder.path().join("programs/enisle-worker")
    }

    pub(crate) fn lives(&self) -> Arc<Lives> {
        Arc::clone(&self.lives)
    }

    pub(crate) fn life(&self) -> u64 {
        self.lives.current()
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        i32::try_from(self.process.as_ref()?.id()).ok()
    }

    /// The log of that life.
    pub(crate) fn log(&self, life: u64) -> String {
        String::from_utf8_lossy(&fs::read(self.log_of(life)).unwrap_or_default()).into_owned()
    }

    fn log_of(&self, life: u64) -> PathBuf {
        self.folder.path().join(format!("log-{life}"))
    }

    fn command(&self, words: &[&str], program: &str) -> Command {
        let leash = enisle_tests::programs().join("leash");
        let mut command = match &self.disk {
            None => Command::new(&leash),
            Some(disk) => {
                let mut inside = Command::new("nsenter");
                inside.args(["--mount", "--target", &disk.holder.id().to_string(), "--"]).arg(&leash);
                inside
            }
        };
        command.arg(LEASH_MIB.to_string()).arg("022").arg(enisle_tests::programs().join(program)).args(words);
        command.arg("--socket").arg(self.socket()).env_remove("ENISLE_SOCKET").stdin(Stdio::null());
        command
    }

    /// Starts the next life. Returns true when the daemon answers, and false if it has ended by
    /// itself.
    pub(crate) fn try_start(&mut self) -> Result<bool> {
        let life = self.life() + 1;
        let path = self.folder.path();
        let mut command = self.command(&[], "enisled");
        command.arg("--state-dir").arg(path.join("state")).arg("--config").arg(path.join("enisled.toml"));
        command.env("ENISLE_LOG", "info").stdout(Stdio::null()).stderr(File::create(self.log_of(life))?);
        self.lives.starting.store(true, Ordering::SeqCst);
        self.lives.current.store(life, Ordering::SeqCst);
        self.process = Some(command.spawn().context("enisled does not run")?);
        let mut ended = None;
        let answers = within(START, || {
            ended = self.ended();
            ended.is_some() || self.ask("HEAD", "/_ping", b"").is_ok()
        });
        ensure!(answers, "enisled does not answer {} s after its start:\n{}", START.as_secs(), self.log(life));
        if ended.is_some() {
            self.lives.doomed.store(life, Ordering::SeqCst);
            self.process = None;
        }
        self.lives.starting.store(false, Ordering::SeqCst);
        Ok(ended.is_none())
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        if self.try_start()? { Ok(()) } else { bail!("enisled does not start:\n{}", self.log(self.life())) }
    }

    /// How the daemon ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.try_wait().ok().flatten()
    }

    /// Ends the current life with a signal, and waits until the process has ended.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.lives.doomed.store(self.life(), Ordering::SeqCst);
        let mut process = self.process.take().context("there is no daemon")?;
        let pid = Pid::from_raw(i32::try_from(process.id())?);
        kill(pid, signal)?;
        // SIGTERM does not end a stopped process until SIGCONT continues it.
        kill(pid, Signal::SIGCONT)?;
        let mut status = None;
        let ended = within(END, || {
            status = process.try_wait().ok().flatten();
            status.is_some()
        });
        if !ended {
            let _ = process.kill();
            let _ = process.wait();
        }
        status.with_context(|| format!("enisled has not ended {} s after {signal}", END.as_secs()))
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        Connection::open(&self.socket(), PATIENCE)?.last_request(method, path, body)
    }

    /// The JSON of an answer, whose status must be 200.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let answer = self.ask("GET", path, b"").with_context(|| format!("GET {path}"))?;
        ensure!(answer.status == 200, "GET {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Runs `enisle audit verify`. The inner result is what it printed: `Ok` if it found nothing
    /// wrong.
    pub(crate) fn verify_audit(&self) -> Result<Result<String, String>> {
        let out = self.command(&[], "enisle").args(["audit", "verify"]).output()?;
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).trim().to_owned();
        Ok(if out.status.success() { Ok(said) } else { Err(said) })
    }

    /// The worker processes, by pid.
    pub(crate) fn workers(&self) -> Vec<i32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let mut workers = children(pid);
        workers.retain(|child| is_worker(*child));
        workers.sort_unstable();
        workers
    }

    /// How many child processes of the daemon have ended and were not collected.
    pub(crate) fn zombies(&self) -> usize {
        let stat = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        self.pid().map_or(0, |pid| children(pid).iter().filter(|child| stat(child).contains(") Z ")).count())
    }

    /// The worker program that the daemon has open, even if another file has replaced it at its
    /// path.
    pub(crate) fn held_program(&self) -> Option<PathBuf> {
        let program = self.worker_program();
        let program = program.to_string_lossy();
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid()?)).ok()?;
        let leads_there = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().starts_with(&*program));
        open.flatten().map(|entry| entry.path()).find(leads_there)
    }

    /// Puts a fresh copy of the worker program at its path, atomically.
    pub(crate) fn replace_worker(&self) -> Result<()> {
        let fresh = self.folder.path().join("programs/fresh");
        fs::copy(enisle_tests::programs().join("enisle-worker"), &fresh).context("copying the worker program")?;
        Ok(fs::rename(fresh, self.worker_program())?)
    }

    /// Puts a file that is not a program at the worker program's path.
    pub(crate) fn break_worker(&self) -> Result<()> {
        let fresh = self.folder.path().join("programs/fresh");
        fs::write(&fresh, "not a program\n")?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        Ok(fs::rename(fresh, self.worker_program())?)
    }

    /// Uses up all free space on the state folder's filesystem.
    pub(crate) fn fill_disk(&self) -> Result<()> {
        let mut filler = File::create(self.filler().context("the state folder has no filesystem of its own")?)?;
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        Ok(())
    }

    pub(crate) fn free_disk(&self) {
        if let Some(filler) = self.filler() {
            let _ = fs::remove_file(filler);
        }
    }

    fn filler(&self) -> Option<PathBuf> {
        Some(self.disk.as_ref()?.path(&self.folder.path().join("state/filler")))
    }

    /// Keeps the folder, so that it can be examined after the run. Returns its path.
    pub(crate) fn keep(&mut self) -> PathBuf {
        if let Some(disk) = &self.disk {
            let state = self.folder.path().join("state");
            let _ = Command::new("cp").arg("-r").arg(disk.path(&state)).arg(self.folder.path().join("kept")).status();
        }
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// How long a client waits for an answer. A longer wait is a finding.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The child processes of a process, whichever of its threads started them.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    of.flat_map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Whether a process is a worker. The daemon's other children examine a database.
pub(crate) fn is_worker(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"enisle-worker"))
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The number in the row `name` of a process's `status`.
pub(crate) fn status_of(pid: i32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
