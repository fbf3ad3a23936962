//! A worker before it has a tenant: started from the blueprint, and given its role.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enisle_cordon::{Level, MAX_TENANTS_PER_PROCESS};
use enisle_hardening::fault::FaultPage;
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::keys;
use enisle_hardening::jail::Plan;
use enisle_hardening::process::spawn::{self, Spawn, SpawnError, Started};
use enisle_hardening::{Layer, LayerSet};
use enisle_wire::FrameError;
use enisle_wire::control::{FromWorker, Role, Session, Start, ToWorker};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;

use crate::workers::channel::{read_frame, send};
use crate::workers::death::Death;

/// `doctor` and placement must agree on the number of keys.
const _: () = assert!(keys::PROCESSOR_KEYS - keys::RESERVED_KEYS == MAX_TENANTS_PER_PROCESS);

/// How long a start may take, from `exec` to `Ready`. The jail and V8 take some 10 to 40 ms, but
/// the machine may be busy.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How many lines a worker may print before the rest is dropped; V8's last words are a few lines.
const STDERR_LINES: usize = 6;
const STDERR_LINE_BYTES: u64 = 1024;

/// What all workers of this daemon have in common.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) program: File,
    /// The layers of workers that are not sealed.
    pub(crate) layers: LayerSet,
    /// The layers of sealed workers.
    pub(crate) sealing: LayerSet,
    pub(crate) tenants_per_process: u32,
    pub(crate) memory: Memory,
    /// The first uid of workers; `None` if the daemon is not root: then workers keep its uid.
    pub(crate) uid_base: Option<u32>,
    next_id: AtomicU64,
    spawner: std::sync::mpsc::Sender<SpawnJob>,
}

type SpawnJob = Box<dyn FnOnce() + Send>;

/// How much private memory a worker may commit (`RLIMIT_DATA`), in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// For V8 itself, and for one largest allocation before a run ends as `exceededMemory`.
    pub(crate) base_mb: u64,
    /// The most that a policy may grant a tenant, and a sealed tenant's limit. Each counts twice,
    /// for the tenant's heap and for its buffers.
    pub(crate) tenant_mb: u64,
    pub(crate) sealed_mb: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the worker's channels could not be made: {0}")]
    Channels(io::Error),
    #[error("the worker reports: {0}")]
    Failed(String),
    #[error("the worker did not become ready: {0}")]
    NotReady(String),
    #[error("the worker failed verification: {}", .0.join("; "))]
    Rejected(Vec<String>),
}

impl Blueprint {
    pub(crate) fn new(
        program: File,
        layers: LayerSet,
        tenants: u32,
        memory: Memory,
        uid_base: u32,
    ) -> io::Result<Self> {
        let (layers, sealing) = (layers.unsealed(), layers);
        // The kernel ties a worker's parent-death signal to the thread that cloned it, so this
        // thread must live as long as the daemon.
        let (spawner, jobs) = std::sync::mpsc::channel::<SpawnJob>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || jobs.iter().for_each(|job| job()))?;
        let uid_base = nix::unistd::geteuid().is_root().then_some(uid_base);
        Ok(Self {
            program,
            layers,
            sealing,
            tenants_per_process: tenants,
            memory,
            uid_base,
            next_id: AtomicU64::new(1),
            spawner,
        })
    }

    /// How many tenants a process of this level may ever hold.
    pub(crate) fn slots(&self, level: Level) -> u32 {
        if level.is_alone() { 1 } else { self.tenants_per_process }
    }

    /// How many bytes a worker of this level may commit.
    pub(crate) fn data_bytes(&self, level: Level) -> u64 {
        let Memory { base_mb, tenant_mb, sealed_mb } = self.memory;
        let each = if level == Level::Sealed { sealed_mb } else { tenant_mb };
        (base_mb + u64::from(self.slots(level)) * 2 * each) << 20
    }

    /// The layers of a worker of this level.
    pub(crate) fn layers_of(&self, level: Level) -> LayerSet {
        if level == Level::Sealed { self.sealing } else { self.layers }
    }

    /// The uid and gid of worker `id` outside its user namespace.
    pub(crate) fn ids(&self, id: u64) -> (u32, u32) {
        match self.uid_base {
            // There are enough uids that no two live workers have the same.
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

/// A worker that was started and told its role; neither ready nor verified yet.
pub(crate) struct Newborn {
    pub(crate) id: u64,
    pub(crate) plan: Plan,
    pub(crate) zone: Zone,
    pub(crate) faults: FaultPage,
    pub(crate) started: Started,
    pub(crate) control: UnixStream,
    pub(crate) session: Session,
    pub(crate) control_inode: u64,
    pub(crate) stderr_inode: u64,
}

impl Newborn {
    pub(crate) async fn start(
        blueprint: &Arc<Blueprint>,
        role: Role,
        level: Level,
        snapshot: Option<&OwnedFd>,
    ) -> Result<Self, StartError> {
        let slots = if role == Role::Maker { 1 } else { blueprint.slots(level) };
        let layers = blueprint.layers_of(level);
        let faults = FaultPage::new().map_err(StartError::Channels)?;
        let zone = Zone::place(slots as usize, random);
        let plan = Plan::for_tenants(layers, blueprint.data_bytes(level), slots);
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
            layers: layers.bits(),
            data_bytes: blueprint.data_bytes(level),
            max_tenants: slots,
            jitless: level == Level::Sealed,
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

    /// The worker's first frame, if it arrives in time and in order.
    pub(crate) async fn first_word(&mut self) -> Result<FromWorker, StartError> {
        let word =
            tokio::time::timeout(START_TIMEOUT, read_frame::<FromWorker>(&mut self.control, self.session.most_bytes()))
                .await
                .map_err(|_| StartError::NotReady(format!("it sent nothing for {} s", START_TIMEOUT.as_secs())))?;
        let word = match word {
            Ok(word) => word,
            Err(FrameError::Closed) => {
                return Err(StartError::NotReady(
                    self.ended().await.unwrap_or_else(|| "it closed its control channel".to_owned()),
                ));
            }
            Err(error) => return Err(StartError::NotReady(error.to_string())),
        };
        self.session.accept(&word).map_err(|violation| StartError::NotReady(violation.to_string()))?;
        match word {
            FromWorker::Failed(why) => Err(StartError::Failed(why)),
            word => Ok(word),
        }
    }

    /// How the process ended, if it ends by itself within half a second.
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

/// Has a jailed worker make the startup snapshot, and waits for the worker to end.
///
/// Once in some thousand starts V8 finds no room for its cage between the process's own mappings,
/// whose addresses the kernel randomizes. A new process has other addresses, so a new attempt
/// succeeds.
pub(crate) async fn make_snapshot(blueprint: &Arc<Blueprint>) -> Result<Vec<u8>, StartError> {
    for _ in 1..SNAPSHOT_TRIES {
        match try_snapshot(blueprint).await {
            Err(StartError::NotReady(why)) => {
                tracing::warn!(%why, "the startup snapshot failed and is attempted again")
            }
            other => return other,
        }
    }
    try_snapshot(blueprint).await
}

/// How often a snapshot is attempted at a start.
const SNAPSHOT_TRIES: u32 = 3;

async fn try_snapshot(blueprint: &Arc<Blueprint>) -> Result<Vec<u8>, StartError> {
    let mut maker = Newborn::start(blueprint, Role::Maker, Level::Shared, None).await?;
    match maker.first_word().await? {
        FromWorker::Snapshot(bytes) => Ok(bytes),
        _ => Err(StartError::NotReady("it made no snapshot".to_owned())),
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator is ready long before a daemon starts. If it cannot be read, the zone's
    // address is merely predictable.
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    u64::from_ne_bytes(bytes)
}

/// Logs the first lines that a worker prints (V8's last words), bounded and escaped. Later lines
/// are dropped: they are addresses, which are of no use.
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
    // Drain the pipe, or the worker would block on it.
    let _ = tokio::io::copy(&mut lines, &mut tokio::io::sink()).await;
}
