//! The daemon as a whole: its tenants, and a run from its admission to its answer.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Capacity, Level};
use enisle_hardening::{Layer, LayerSet, Posture};
use enisle_wire::Outcome;
use enisle_wire::tenant::RunId;
use tokio::sync::Notify;

use crate::config::Config;
use crate::events::{Events, What};
use crate::policy::{Policy, Store, StoreError, TenantName};
use crate::pool::{AdmitError, Pool};
use crate::process::{Blueprint, StartError, make_snapshot};
use crate::quota::{Account, OverQuota};
use crate::resident::{Ended, Finished, Job, Resident};

/// Cages that fit a process: 47 bits of address space, 1376 GiB each (measured: 93).
const CAGES_PER_PROCESS: usize = 90;
/// Tenants that the daemon remembers at one time. More names than that are refused: each costs memory.
const MAX_TENANTS: usize = 100_000;
/// Private memory that a worker may commit beside its tenants' own: V8, and one largest allocation on the way to an
/// `exceededMemory`.
const WORKER_BASE_MB: u64 = 2048;

#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) posture: Posture,
    pub(crate) events: Arc<Events>,
    pub(crate) pool: Pool,
    pub(crate) started: Instant,
    store: Store,
    tenants: Mutex<BTreeMap<TenantName, Arc<Tenant>>>,
    next_run: AtomicU64,
    in_flight: AtomicU64,
    drained: Notify,
    draining: AtomicBool,
}

/// One tenant, known to the daemon since it started.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: TenantName,
    policy: Mutex<Policy>,
    account: Mutex<Account>,
    home: tokio::sync::Mutex<Option<Arc<Resident>>>,
    /// Its last run was lost with its worker: until a run ends, it lives alone, so that it takes nobody with it.
    suspect: AtomicBool,
    usage: Mutex<Usage>,
}

/// What a tenant's runs came to since the daemon started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    pub(crate) runs: u64,
    pub(crate) cpu_us: u64,
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("this machine lacks what the configuration requires: {0}")]
    Posture(String),
    #[error("the worker program {0} cannot be used: {1}")]
    Program(std::path::PathBuf, std::io::Error),
    #[error("the startup snapshot could not be made: {0}")]
    Snapshot(#[from] StartError),
    #[error("the startup snapshot could not be sealed: {0}")]
    Seal(std::io::Error),
    #[error("the first worker cannot hold a tenant: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Layer(#[from] enisle_hardening::layers::UnknownLayer),
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// Why a run was not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Quota(#[from] OverQuota),
    #[error(transparent)]
    Admit(#[from] AdmitError),
    #[error("the daemon is ending and takes no new runs")]
    Draining,
}

/// A run's end, with where it was.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: RunId,
    pub(crate) finished: Finished,
    pub(crate) level: Level,
}

impl Daemon {
    /// Probes the machine, has the snapshot made in a jailed worker, and is ready to admit.
    pub(crate) async fn set_up(config: Config, program: std::path::PathBuf, state_dir: &std::path::Path) -> Result<Self, SetupError> {
        let posture = Posture::probe();
        let missing: Vec<_> = posture
            .missing(config.required_layers()?)
            .map(|finding| format!("{} ({}); {}", finding.layer, finding.detail, finding.layer.remedy()))
            .collect();
        if !missing.is_empty() {
            return Err(SetupError::Posture(missing.join("; ")));
        }
        let capacity = Capacity {
            // V8 takes one key for its JIT pages.
            keys: posture.keys.saturating_sub(1),
            cages: CAGES_PER_PROCESS,
            share_without_keys: config.workers.share_without_keys,
        };
        let (store, policies) = Store::open(state_dir, config.workers.max_memory_mb)?;
        let file = std::fs::File::open(&program).map_err(|error| SetupError::Program(program, error))?;
        let tenants_per_process = u32::try_from(capacity.tenants_per_process()).unwrap_or(1);
        // Heap and buffers of every tenant at the most that a policy may grant.
        let data_mb = WORKER_BASE_MB + u64::from(tenants_per_process) * 2 * u64::from(config.workers.max_memory_mb);
        let layers = jail_layers(&posture);
        let blueprint = Blueprint::new(file, layers, tenants_per_process, data_mb << 20, config.workers.uid_base);
        let blueprint = Arc::new(blueprint.map_err(SetupError::Thread)?);
        let snapshot = seal(&make_snapshot(&blueprint).await?).map_err(SetupError::Seal)?;
        let events = Arc::new(Events::new());
        let pool = Pool::new(blueprint, capacity, config.workers.max, snapshot, Arc::clone(&events));
        let now = Instant::now();
        let tenants = policies.into_iter().map(|(name, policy)| (name.clone(), Arc::new(Tenant::new(name, policy, now)))).collect();
        Ok(Self {
            config,
            posture,
            events,
            pool,
            started: now,
            store,
            tenants: Mutex::new(tenants),
            next_run: AtomicU64::new(1),
            in_flight: AtomicU64::new(0),
            drained: Notify::new(),
            draining: AtomicBool::new(false),
        })
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantName, Arc<Tenant>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant of that name, known from now on. `None` when the daemon knows too many.
    pub(crate) fn tenant(&self, name: &TenantName) -> Option<Arc<Tenant>> {
        let mut tenants = self.tenants();
        if let Some(tenant) = tenants.get(name) {
            return Some(Arc::clone(tenant));
        }
        if tenants.len() >= MAX_TENANTS {
            return None;
        }
        let tenant = Arc::new(Tenant::new(name.clone(), self.config.defaults.clone(), Instant::now()));
        tenants.insert(name.clone(), Arc::clone(&tenant));
        Some(tenant)
    }

    pub(crate) fn known_tenant(&self, name: &TenantName) -> Option<Arc<Tenant>> {
        self.tenants().get(name).cloned()
    }

    pub(crate) fn all_tenants(&self) -> Vec<Arc<Tenant>> {
        self.tenants().values().cloned().collect()
    }

    /// Sets and keeps a tenant's policy. It holds from the next run on.
    pub(crate) fn set_policy(&self, tenant: &Tenant, policy: Policy, by_uid: u32) -> Result<(), StoreError> {
        self.store.put(&tenant.name, &policy)?;
        *tenant.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
        self.events.tell(What::PolicyChanged { tenant: tenant.name.to_string(), by_uid });
        Ok(())
    }

    pub(crate) fn next_run_id(&self) -> RunId {
        RunId(self.next_run.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// One run, from quota to report. Dropping the future cancels it.
    ///
    /// A run whose worker dies is begun once more, in a process of its own: no run has an effect outside its worker yet.
    pub(crate) async fn run(&self, tenant: &Arc<Tenant>, job: Job) -> Result<Report, RunError> {
        let _in_flight = InFlight::begin(self, tenant)?;
        let id = job.id;
        for attempt in [1, 2] {
            let resident = self.home(tenant, job.limits.memory_mb).await?;
            let level = resident.worker.level;
            match resident.run(job.clone()).await {
                Ended::Done(finished) => {
                    tenant.suspect.store(false, Ordering::SeqCst);
                    self.note(tenant, id, &finished);
                    return Ok(Report { id, finished: *finished, level });
                }
                Ended::Lost(reason) => {
                    tenant.suspect.store(true, Ordering::SeqCst);
                    self.pool.bury_dead();
                    if attempt == 2 {
                        let finished = lost(&reason);
                        self.note(tenant, id, &finished);
                        return Ok(Report { id, finished, level });
                    }
                    self.events.tell(What::Retried { tenant: tenant.name.to_string(), run: id.to_string(), reason });
                }
            }
        }
        Err(RunError::Draining)
    }

    /// The tenant's home; a new one if it has none or has lost it.
    async fn home(&self, tenant: &Tenant, memory_mb: u32) -> Result<Arc<Resident>, AdmitError> {
        let mut home = tenant.home.lock().await;
        let suspect = tenant.suspect.load(Ordering::SeqCst);
        if let Some(resident) = home.as_ref().filter(|resident| resident.is_usable()) {
            if !suspect || resident.worker.level == Level::Solo {
                return Ok(Arc::clone(resident));
            }
        }
        *home = None;
        let level = if suspect { Level::Solo } else { Level::Shared };
        let resident = self.pool.admit(&tenant.name, level, memory_mb).await?;
        *home = Some(Arc::clone(&resident));
        Ok(resident)
    }

    /// Adds a run to its tenant's account, and tells of an end that an operator may want to know.
    fn note(&self, tenant: &Tenant, run: RunId, finished: &Finished) {
        let mut usage = tenant.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.runs += 1;
        usage.cpu_us = usage.cpu_us.saturating_add(finished.usage.cpu_us);
        *usage.outcomes.entry(finished.outcome.as_str()).or_default() += 1;
        drop(usage);
        if !matches!(finished.outcome, Outcome::Ok | Outcome::Exception) {
            let outcome = finished.outcome.as_str();
            self.events.tell(What::RunEnded { tenant: tenant.name.to_string(), run: run.to_string(), outcome });
        }
    }

    /// Lets idle tenants move out, for as long as the daemon lives.
    pub(crate) async fn retire_idle(&self) {
        let idle = Duration::from_secs(self.config.workers.idle_secs);
        let mut rounds = tokio::time::interval(idle.clamp(Duration::from_millis(500), Duration::from_secs(10)));
        loop {
            rounds.tick().await;
            self.pool.bury_dead();
            for (name, resident) in self.pool.idle(idle) {
                let Some(tenant) = self.known_tenant(&name) else { continue };
                // A run that is just being begun holds the lock or finds the home gone and gets a new one.
                let Ok(mut home) = tenant.home.try_lock() else { continue };
                if resident.is_idle() && home.as_ref().is_some_and(|home| Arc::ptr_eq(home, &resident)) {
                    *home = None;
                    self.pool.leave(&resident, "idle");
                }
            }
        }
    }

    /// Takes no new runs and waits for those in flight, `drain` at most.
    pub(crate) async fn drain(&self, drain: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        self.events.tell(What::Draining);
        let empty = async {
            loop {
                let drained = self.drained.notified();
                if self.in_flight() == 0 {
                    return;
                }
                drained.await;
            }
        };
        if tokio::time::timeout(drain, empty).await.is_err() {
            tracing::warn!(runs = self.in_flight(), "runs are still in flight; ending all the same");
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

impl Tenant {
    fn new(name: TenantName, policy: Policy, now: Instant) -> Self {
        let account = Mutex::new(Account::new(&policy.quota, now));
        Self {
            name,
            policy: Mutex::new(policy),
            account,
            home: tokio::sync::Mutex::default(),
            suspect: AtomicBool::new(false),
            usage: Mutex::default(),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).in_flight()
    }

    /// Where it lives now: the worker, whether it is warm, and how far out.
    pub(crate) fn residence(&self) -> Option<Arc<Resident>> {
        self.home.try_lock().ok()?.as_ref().filter(|resident| resident.is_usable()).cloned()
    }
}

/// A run's place in its tenant's quota and in the daemon's count, given back when it is over in whatever way.
struct InFlight<'a> {
    daemon: &'a Daemon,
    tenant: &'a Tenant,
}

impl<'a> InFlight<'a> {
    fn begin(daemon: &'a Daemon, tenant: &'a Tenant) -> Result<Self, RunError> {
        if daemon.is_draining() {
            return Err(RunError::Draining);
        }
        let quota = tenant.policy().quota;
        tenant.account.lock().unwrap_or_else(PoisonError::into_inner).begin(&quota, Instant::now())?;
        daemon.in_flight.fetch_add(1, Ordering::SeqCst);
        Ok(Self { daemon, tenant })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.tenant.account.lock().unwrap_or_else(PoisonError::into_inner).end();
        if self.daemon.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.daemon.drained.notify_waiters();
        }
    }
}

fn lost(reason: &str) -> Finished {
    use enisle_wire::tenant::{ScriptError, Usage};
    let message = format!("the worker process died twice under this run; the last time {reason}");
    Finished {
        outcome: Outcome::WorkerLost,
        result: None,
        error: Some(ScriptError { name: "WorkerLost".to_owned(), message, stack: None }),
        logs: Vec::new(),
        truncated: true,
        usage: Usage::default(),
        queued: Duration::ZERO,
    }
}

/// The layers that workers take on here: all that the machine has.
fn jail_layers(posture: &Posture) -> LayerSet {
    let layers = posture.layers();
    // Without a mount namespace of its own a worker must not touch the mounts.
    if layers.has(Layer::Namespaces) { layers } else { layers.without(Layer::EmptyRoot) }
}

/// The snapshot in memory that nobody can change any more.
fn seal(snapshot: &[u8]) -> std::io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memory = memfd_create(c"enisle-snapshot", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory.try_clone()?);
    std::io::Write::write_all(&mut file, snapshot)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(memory.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    tracing::debug!(bytes = snapshot.len(), descriptor = memory.as_raw_fd(), "the startup snapshot is sealed");
    Ok(memory)
}
