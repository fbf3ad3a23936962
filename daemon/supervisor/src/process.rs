//! One worker process: started, verified from outside, spoken to on its control channel, and buried.
//!
//! ```text
//! start ─▶ (clone, exec, Start) ─▶ Ready? ─▶ verified? ─▶ living ─▶ dying ─▶ dead
//!             └─ refused, late, or not what it should be ─▶ killed before it has a tenant
//! ```
//! One task owns the process: only it writes to the control channel, kills, and collects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::Level;
use enisle_hardening::fault::{FAULT_EXIT, Fault, FaultPage};
use enisle_hardening::islands::Zone;
use enisle_hardening::jail::Plan;
use enisle_hardening::spawn::{self, Spawn, SpawnError, Started};
use enisle_hardening::tags::{self, Tags};
use enisle_hardening::verify::{self, Expected};
use enisle_hardening::{Layer, LayerSet, fds};
use enisle_wire::control::{
    Admit, FromWorker, GAVE_UP_EXIT, OUT_OF_MEMORY_EXIT, OverrunCause, Role, Session, Slot, Start, ToWorker,
};
use enisle_wire::frame::{HEADER_BYTES, body_len};
use enisle_wire::tenant::RunId;
use enisle_wire::{FrameError, MAX_FROM_WORKER_BYTES, MAX_TO_WORKER_BYTES, decode, encode};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::events::{Events, What};
use crate::policy::TenantName;
use crate::violation::{self, Attack};

/// From `exec` to `Ready`: the jail and V8 take some 20 ms; a machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// For as long the threads of a worker may be other than what was said of them, because one is just ending.
const CONFINEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a worker may print before the rest is dropped; V8's last words are a few lines.
const STDERR_LINES: usize = 6;
const STDERR_LINE_BYTES: u64 = 1024;

/// What every worker of this daemon has in common.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) program: File,
    pub(crate) layers: LayerSet,
    pub(crate) tenants_per_process: u32,
    pub(crate) data_bytes: u64,
    /// As root: the first uid of workers. Otherwise they keep the daemon's.
    pub(crate) uid_base: Option<u32>,
    next_id: AtomicU64,
    spawner: std::sync::mpsc::Sender<SpawnJob>,
}

type SpawnJob = Box<dyn FnOnce() + Send>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the worker's channels could not be made: {0}")]
    Channels(io::Error),
    #[error("the worker says: {0}")]
    Failed(String),
    #[error("the worker did not get ready: {0}")]
    NotReady(String),
    #[error("the worker is not what it should be: {}", .0.join("; "))]
    Rejected(Vec<String>),
}

impl Blueprint {
    pub(crate) fn new(
        program: File,
        layers: LayerSet,
        tenants: u32,
        data_bytes: u64,
        uid_base: u32,
    ) -> io::Result<Self> {
        // The kernel ties a worker's parent-death signal to the thread that cloned it, so that has to be a thread that
        // lives as long as the daemon.
        let (spawner, jobs) = std::sync::mpsc::channel::<SpawnJob>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || jobs.iter().for_each(|job| job()))?;
        let uid_base = nix::unistd::geteuid().is_root().then_some(uid_base);
        Ok(Self {
            program,
            layers,
            tenants_per_process: tenants,
            data_bytes,
            uid_base,
            next_id: AtomicU64::new(1),
            spawner,
        })
    }

    /// Tenants that a process of this level may ever hold.
    fn places(&self, level: Level) -> u32 {
        if level == Level::Solo { 1 } else { self.tenants_per_process }
    }

    /// The uid and gid that worker `id` has outside.
    fn ids(&self, id: u64) -> (u32, u32) {
        match self.uid_base {
            // Enough that no two live workers meet.
            Some(base) => {
                let uid = base.saturating_add(u32::try_from(id % 60_000).unwrap_or(0));
                (uid, uid)
            }
            None => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        }
    }

    async fn spawn(self: &Arc<Self>, id: u64, control: OwnedFd, stderr: OwnedFd) -> Result<Started, StartError> {
        let (send, receive) = tokio::sync::oneshot::channel();
        let this = Arc::clone(self);
        let job = Box::new(move || {
            let (uid, gid) = this.ids(id);
            let arguments = [c"enisle-worker".to_owned(), CString::new(id.to_string()).unwrap_or_default()];
            let namespaces = this.layers.has(Layer::Namespaces);
            let program = this.program.as_fd();
            let result = spawn::spawn(Spawn { program, arguments: &arguments, control, stderr, namespaces, uid, gid });
            let _ = send.send(result);
        });
        let gone = || StartError::NotReady("the spawner thread is gone".to_owned());
        self.spawner.send(job).map_err(|_| gone())?;
        Ok(receive.await.map_err(|_| gone())??)
    }
}

/// A worker that was started and says that it is ready; not yet verified.
struct Newborn {
    id: u64,
    plan: Plan,
    zone: Zone,
    faults: FaultPage,
    started: Started,
    control: UnixStream,
    session: Session,
    control_inode: u64,
    stderr_inode: u64,
}

impl Newborn {
    async fn start(
        blueprint: &Arc<Blueprint>,
        role: Role,
        places: u32,
        snapshot: Option<&OwnedFd>,
    ) -> Result<Self, StartError> {
        let faults = FaultPage::new().map_err(StartError::Channels)?;
        let zone = Zone::place(places as usize, random);
        let plan = Plan::for_tenants(blueprint.layers, blueprint.data_bytes, places);
        let id = blueprint.next_id.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = StdUnixStream::pair().map_err(StartError::Channels)?;
        let (stderr_read, stderr_write) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| StartError::Channels(error.into()))?;
        let inode = |fd: &OwnedFd| Ok::<_, io::Error>(File::from(fd.try_clone()?).metadata()?.ino());
        let theirs = OwnedFd::from(theirs);
        let control_inode = inode(&theirs).map_err(StartError::Channels)?;
        let stderr_inode = inode(&stderr_write).map_err(StartError::Channels)?;
        ours.set_nonblocking(true).map_err(StartError::Channels)?;
        let control = UnixStream::from_std(ours).map_err(StartError::Channels)?;
        let started = blueprint.spawn(id, theirs, stderr_write).await?;
        tokio::spawn(log_stderr(id, stderr_read));
        let start = Start {
            version: enisle_wire::VERSION,
            role,
            layers: blueprint.layers.bits(),
            data_bytes: blueprint.data_bytes,
            max_tenants: places,
            zone: zone.parts(),
        };
        let session = Session::new(role);
        let mut newborn = Self { id, plan, zone, faults, started, control, session, control_inode, stderr_inode };
        let descriptors: Vec<_> =
            std::iter::once(newborn.faults.descriptor()).chain(snapshot.map(AsFd::as_fd)).collect();
        send(&mut newborn.control, &ToWorker::Start(start), &descriptors)
            .await
            .map_err(|error| StartError::NotReady(error.to_string()))?;
        Ok(newborn)
    }

    /// The first frame that the worker says, if it comes in time and in order.
    async fn first_word(&mut self) -> Result<FromWorker, StartError> {
        let word =
            tokio::time::timeout(START_TIMEOUT, read_frame::<FromWorker>(&mut self.control, MAX_FROM_WORKER_BYTES))
                .await
                .map_err(|_| StartError::NotReady(format!("it said nothing for {} s", START_TIMEOUT.as_secs())))?;
        let word = match word {
            Ok(word) => word,
            Err(FrameError::Closed) => {
                return Err(StartError::NotReady(self.ended().await.unwrap_or_else(|| "it hung up".to_owned())));
            }
            Err(error) => return Err(StartError::NotReady(error.to_string())),
        };
        self.session.accept(&word).map_err(|violation| StartError::NotReady(violation.to_string()))?;
        match word {
            FromWorker::Failed(why) => Err(StartError::Failed(why)),
            word => Ok(word),
        }
    }

    /// How it ended, if it has ended by itself.
    async fn ended(&mut self) -> Option<String> {
        for _ in 0..100 {
            match self.started.try_collect() {
                Some(status) => return Some(Death::of(status, &self.faults).to_string()),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        None
    }
}

/// Has a jailed worker make the startup snapshot, and waits for its end.
pub(crate) async fn make_snapshot(blueprint: &Arc<Blueprint>) -> Result<Vec<u8>, StartError> {
    let mut maker = Newborn::start(blueprint, Role::Maker, 1, None).await?;
    match maker.first_word().await? {
        FromWorker::Snapshot(bytes) => Ok(bytes),
        _ => Err(StartError::NotReady("it made no snapshot".to_owned())),
    }
}

/// What the process's owner is told to do.
#[derive(Debug)]
enum Command {
    Admit { admit: Admit, channel: OwnedFd },
    Cancel { slot: Slot, run: RunId },
    Retire { slot: Slot },
    Kill(String),
}

/// A run that its worker could not end; the process was killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun {
    pub(crate) run: RunId,
    pub(crate) cause: OverrunCause,
}

/// A living worker process, as the rest of the daemon holds it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) level: Level,
    pub(crate) started_at: Instant,
    pub(crate) v8: String,
    commands: mpsc::UnboundedSender<Command>,
    overruns: Mutex<HashMap<Slot, Overrun>>,
    /// Whose run ended the process, where that is known.
    culprit: OnceLock<Slot>,
    /// It never holds more than one tenant, so what happens to it is that tenant's doing.
    pub(crate) holds_one: bool,
    /// Which key each page of its islands should carry; none where the layer is off.
    tags: Option<Tags>,
    zone: Zone,
    /// Everybody who was ever admitted.
    tenants: Mutex<BTreeMap<Slot, TenantName>>,
    /// Those whose thread has said that it is ready, and has not ended.
    confined: Mutex<BTreeSet<Slot>>,
    thread_filter: bool,
    /// Why it died, once it has.
    died: watch::Receiver<Option<Death>>,
}

impl Worker {
    /// Starts a host and verifies it.
    pub(crate) async fn start(
        blueprint: &Arc<Blueprint>,
        level: Level,
        snapshot: &OwnedFd,
        events: &Arc<Events>,
    ) -> Result<Arc<Self>, StartError> {
        let mut newborn = Newborn::start(blueprint, Role::Host, blueprint.places(level), Some(snapshot)).await?;
        let FromWorker::Ready(ready) = newborn.first_word().await? else {
            return Err(StartError::NotReady("its first word was not Ready".to_owned()));
        };
        let mut findings = inspect(blueprint, &newborn);
        let zone = newborn.zone.clone();
        let tags = ready.keys.map(|keys| Tags { zone: zone.clone(), keys: keys.tenants, jit: keys.jit });
        if blueprint.layers.has(Layer::Keys) {
            findings.extend(untagged(newborn.started.pid, tags.as_ref()).map(|what| format!("keys: {what}")));
        }
        if !findings.is_empty() {
            let (worker, pid) = (newborn.id, newborn.started.pid.as_raw());
            events.tell(What::WorkerRejected { worker, pid, findings: findings.clone() });
            return Err(StartError::Rejected(findings));
        }
        let (commands, receive) = mpsc::unbounded_channel();
        let (death, died) = watch::channel(None);
        let worker = Arc::new(Self {
            id: newborn.id,
            pid: newborn.started.pid,
            level,
            started_at: Instant::now(),
            v8: ready.v8,
            commands,
            overruns: Mutex::default(),
            culprit: OnceLock::new(),
            holds_one: blueprint.places(level) == 1,
            tags,
            zone,
            tenants: Mutex::default(),
            confined: Mutex::default(),
            thread_filter: blueprint.layers.has(Layer::ThreadFilter),
            died,
        });
        events.tell(What::WorkerStarted { worker: worker.id, pid: worker.pid.as_raw(), level: level.as_str() });
        let owner = Owner {
            worker: Arc::clone(&worker),
            control: newborn.control,
            session: newborn.session,
            faults: newborn.faults,
            events: Arc::clone(events),
        };
        tokio::spawn(owner.own(newborn.started, receive, death));
        Ok(worker)
    }

    /// A closed channel of commands means that the process is dead; its residents hear of that by themselves.
    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    pub(crate) fn admit(&self, tenant: &TenantName, admit: Admit, channel: OwnedFd) {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).insert(admit.slot, tenant.clone());
        self.command(Command::Admit { admit, channel });
    }

    pub(crate) fn cancel(&self, slot: Slot, run: RunId) {
        self.command(Command::Cancel { slot, run });
    }

    pub(crate) fn retire(&self, slot: Slot) {
        self.command(Command::Retire { slot });
    }

    pub(crate) fn kill(&self, why: impl Into<String>) {
        self.command(Command::Kill(why.into()));
    }

    pub(crate) fn overrun(&self, slot: Slot) -> Option<Overrun> {
        self.overruns.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.died.borrow().is_some()
    }

    /// Who lives, or lived, in that place.
    pub(crate) fn tenant_in(&self, slot: Slot) -> Option<TenantName> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).cloned()
    }

    /// A tenant's thread says for the first time that it is ready: it has to run under filters of its own, by the kernel's
    /// word. Threads come and go meanwhile, so what does not add up is looked at again for a while.
    pub(crate) async fn check_confinement(&self, slot: Slot) -> Result<(), String> {
        self.confined().insert(slot);
        if !self.thread_filter {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (found, said) = (verify::confined_threads(self.pid), self.confined().len());
            match found {
                Ok(found) if found >= said => return Ok(()),
                _ if self.is_dead() => return Err("it has died".to_owned()),
                _ if begun.elapsed() < CONFINEMENT_TIMEOUT => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(found) => {
                    return Err(format!("{said} tenants' threads say that they are confined, and {found} are"));
                }
                Err(error) => return Err(format!("its threads cannot be looked at: {error}")),
            }
        }
    }

    fn confined(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        self.confined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attack that a fault in this process was, if it was one.
    pub(crate) fn attack(&self, fault: &Fault) -> Option<Attack> {
        violation::attack(fault, &self.zone)
    }

    /// What the oracle finds: pages of its islands that do not carry the key that they should, in words. May take some 50 ms.
    pub(crate) fn mistagged(&self) -> Vec<String> {
        let Some(tags) = &self.tags else { return Vec::new() };
        // A process that cannot be looked at has ended, which is told elsewhere.
        tags::inspect_running(self.pid, tags).map(|seen| seen.findings()).unwrap_or_default()
    }

    /// A run of that place ended the process.
    pub(crate) fn blame(&self, slot: Slot) {
        let _ = self.culprit.set(slot);
    }

    /// The process ended, and it was that place's doing.
    pub(crate) fn blames(&self, slot: Slot) -> bool {
        self.culprit.get() == Some(&slot)
    }

    /// The process ended, and it was another tenant's doing.
    pub(crate) fn blames_another(&self, slot: Slot) -> bool {
        self.culprit.get().is_some_and(|culprit| *culprit != slot)
    }

    /// Waits for the death; says why.
    pub(crate) async fn death(&self) -> Death {
        let mut died = self.died.clone();
        match died.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Death::Unknown),
            Err(_) => Death::Unknown,
        }
    }
}

/// How a worker process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Death {
    /// We killed it, for this reason.
    Killed(String),
    /// Its filter did, for a system call that no worker makes, without a record of whose it was.
    Filter,
    /// A fault, as the worker recorded it.
    Fault(Fault),
    OutOfMemory,
    GaveUp,
    Exited(i32),
    Signaled(Signal),
    Unknown,
}

impl Death {
    fn of(status: WaitStatus, faults: &FaultPage) -> Self {
        match status {
            WaitStatus::Exited(_, OUT_OF_MEMORY_EXIT) => Self::OutOfMemory,
            WaitStatus::Exited(_, code @ FAULT_EXIT) => faults.read().map_or(Self::Exited(code), Self::Fault),
            WaitStatus::Exited(_, GAVE_UP_EXIT) => faults.read().map_or(Self::GaveUp, Self::Fault),
            WaitStatus::Exited(_, code) => Self::Exited(code),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Self::Filter,
            WaitStatus::Signaled(_, signal, _) => Self::Signaled(signal),
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Killed(why) => f.write_str(why),
            Self::Filter => f.write_str("its filter killed it for a forbidden system call (SIGSYS)"),
            Self::Fault(fault) => f.write_str(&violation::describe(fault)),
            Self::OutOfMemory => f.write_str("V8 ran out of memory"),
            Self::GaveUp => f.write_str("V8 gave up"),
            Self::Exited(code) => write!(f, "it exited with {code}"),
            Self::Signaled(signal) => write!(f, "it was ended by {signal}"),
            Self::Unknown => f.write_str("it was lost"),
        }
    }
}

/// What is wrong with a worker, seen from outside.
fn inspect(blueprint: &Blueprint, newborn: &Newborn) -> Vec<String> {
    let (uid, gid) = blueprint.ids(newborn.id);
    let expected = Expected {
        plan: &newborn.plan,
        program: &blueprint.program,
        uid,
        gid,
        control_inode: newborn.control_inode,
        stderr_inode: newborn.stderr_inode,
    };
    match verify::verify(newborn.started.pid, &expected) {
        Ok(findings) => findings.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("it cannot be inspected: {error}")],
    }
}

/// What is wrong with the keys of a worker that should have some: every island has to be there, tagged with a key of its own.
fn untagged(pid: Pid, tags: Option<&Tags>) -> impl Iterator<Item = String> {
    let check = || {
        let Some(tags) = tags else { return vec!["it took none".to_owned()] };
        let (places, mut distinct) = (tags.zone.islands().count(), tags.keys.clone());
        distinct.extend([0, tags.jit]);
        distinct.sort_unstable();
        distinct.dedup();
        if tags.keys.len() != places || distinct.len() != places + 2 {
            return vec![format!("its keys {:?} are not one for each of {places} places", tags.keys)];
        }
        match tags::inspect(pid, tags) {
            // At the least every sandbox is mapped.
            Ok(seen) if seen.mappings < places => vec![format!("only {} mappings are on its islands", seen.mappings)],
            Ok(seen) => seen.findings(),
            Err(error) => vec![format!("its mappings cannot be read: {error}")],
        }
    };
    check().into_iter()
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator is ready long before a daemon starts; if it says nothing, the place is merely predictable.
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    u64::from_ne_bytes(bytes)
}

/// The task that owns a process.
struct Owner {
    worker: Arc<Worker>,
    control: UnixStream,
    session: Session,
    faults: FaultPage,
    events: Arc<Events>,
}

impl Owner {
    async fn own(
        mut self,
        mut started: Started,
        mut commands: mpsc::UnboundedReceiver<Command>,
        death: watch::Sender<Option<Death>>,
    ) {
        let why = match watch_process(&started) {
            Ok(pidfd) => {
                let killed = self.live(&pidfd, &mut commands).await;
                started.kill();
                let _ = pidfd.readable().await;
                let ended = started.collect().map_or(Death::Unknown, |status| Death::of(status, &self.faults));
                self.attribute(&ended);
                match (killed, ended) {
                    // It had ended by itself before it was killed.
                    (_, fault @ Death::Fault(_)) => fault,
                    (Some(why), _) => Death::Killed(why),
                    (None, ended) => ended,
                }
            }
            Err(error) => Death::Killed(format!("it cannot be watched: {error}")),
        };
        drop(started);
        // What its tenants' threads said last may still be unread, and says whose doing it was: every task that has
        // something to read runs before the death is told.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        death.send_replace(Some(why));
    }

    /// Puts a fault on the account of the tenant on whose thread it was, and tells of it.
    fn attribute(&self, ended: &Death) {
        let Death::Fault(fault) = ended else { return };
        let slot = fault.place.map(Slot);
        let tenant = slot.and_then(|slot| self.worker.tenant_in(slot));
        if let (Some(slot), Some(_)) = (slot, &tenant) {
            self.worker.blame(slot);
        }
        let (worker, pid) = (self.worker.id, self.worker.pid.as_raw());
        let (tenant, what) = (tenant.map(|tenant| tenant.to_string()), violation::describe(fault));
        let pc = format!("{:#x}", fault.pc);
        self.events.tell(match self.worker.attack(fault) {
            Some(Attack { layer, address, victim }) => {
                let address = address.map(|address| format!("{address:#x}"));
                let victim = victim.and_then(|slot| self.worker.tenant_in(slot)).map(|tenant| tenant.to_string());
                What::Violation { worker, pid, tenant, layer, what, address, victim, pc }
            }
            None => What::Crashed { worker, pid, tenant, what, pc },
        });
    }

    /// Until the process ends by itself (`None`) or is to be killed (with the reason).
    async fn live(
        &mut self,
        pidfd: &AsyncFd<OwnedFd>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<String> {
        let (mut reader, mut unread) = ([0; 4096], Vec::new());
        loop {
            tokio::select! {
                _ = pidfd.readable() => return None,
                command = commands.recv() => {
                    if let Err(why) = self.obey(command?).await {
                        return Some(why);
                    }
                }
                got = self.control.read(&mut reader) => {
                    match got {
                        // The end of the channel: the process is ending too; wait for that.
                        Ok(0) | Err(_) => {
                            let _ = tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await;
                            return None;
                        }
                        Ok(got) => unread.extend(reader.iter().take(got)),
                    }
                    if let Err(what) = self.hear(&mut unread) {
                        let (worker, pid) = (self.worker.id, self.worker.pid.as_raw());
                        self.events.tell(What::ProtocolViolation { worker, pid, what: what.clone() });
                        return Some(format!("it broke the protocol: {what}"));
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), String> {
        let (frame, channel) = match command {
            Command::Kill(why) => return Err(why),
            Command::Cancel { slot, run } => (ToWorker::Cancel { slot, run }, None),
            Command::Retire { slot } => (ToWorker::Retire { slot }, None),
            Command::Admit { admit, channel } => {
                self.session.admit(admit.slot);
                (ToWorker::Admit(admit), Some(channel))
            }
        };
        let sent = tokio::time::timeout(
            START_TIMEOUT,
            send(&mut self.control, &frame, &channel.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
        )
        .await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("its control channel failed: {error}")),
            Err(_) => Err("it does not read its control channel".to_owned()),
        }
    }

    /// Every whole frame in `unread`.
    fn hear(&mut self, unread: &mut Vec<u8>) -> Result<(), String> {
        while let Some(header) = unread.first_chunk::<HEADER_BYTES>() {
            let end = HEADER_BYTES + body_len(*header, MAX_TO_WORKER_BYTES).map_err(|error| error.to_string())?;
            let Some(body) = unread.get(HEADER_BYTES..end) else { break };
            let frame: FromWorker = decode(body).map_err(|error| error.to_string())?;
            unread.drain(..end);
            self.session.accept(&frame).map_err(|violation| violation.to_string())?;
            if let FromWorker::Retired { slot } = &frame {
                self.worker.confined().remove(slot);
            }
            if let FromWorker::Overrun { slot, run, cause } = frame {
                self.worker.blame(slot);
                self.worker
                    .overruns
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(slot, Overrun { run, cause });
                // Ends this process by itself: the one way to stop code that V8 does not interrupt.
                self.worker.kill(format!("{run} did not end when it was told to ({cause:?})"));
            }
        }
        Ok(())
    }
}

/// A descriptor that is readable once the process has ended.
fn watch_process(started: &Started) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = started.pidfd().try_clone_to_owned()?;
    #[expect(deprecated, reason = "its unsoundness needs a type that lies about its descriptor; OwnedFd does not")]
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

async fn send(control: &mut UnixStream, frame: &ToWorker, descriptors: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
    let bytes = encode(frame, MAX_TO_WORKER_BYTES)?;
    let sent = if descriptors.is_empty() {
        0
    } else {
        control.async_io(Interest::WRITABLE, || fds::send_with(control.as_fd(), &bytes, descriptors)).await?
    };
    control.write_all(bytes.get(sent..).unwrap_or_default()).await?;
    Ok(())
}

/// Reads one frame; no descriptor can come with it, because none is received for.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    channel: &mut (impl AsyncReadExt + Unpin),
    cap: usize,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    closed(channel.read_exact(&mut header).await)?;
    let mut body = vec![0; body_len(header, cap)?];
    closed(channel.read_exact(&mut body).await)?;
    decode(&body)
}

fn closed<T>(result: io::Result<T>) -> Result<T, FrameError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => FrameError::Closed,
        _ => FrameError::Io(error),
    })
}

/// Passes on how what a worker prints begins: V8's last words, bounded and escaped. What follows are addresses, which help
/// nobody and are dropped.
async fn log_stderr(worker: u64, pipe: OwnedFd) {
    let Ok(pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe) else { return };
    let mut lines = BufReader::new(pipe);
    for _ in 0..STDERR_LINES {
        let mut line = Vec::new();
        match (&mut lines).take(STDERR_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim().escape_debug().to_string();
                if !text.is_empty() {
                    tracing::warn!(worker, text, "a worker printed");
                }
            }
        }
    }
    // Keep the pipe drained, or the worker would block on it.
    let _ = tokio::io::copy(&mut lines, &mut tokio::io::sink()).await;
}
