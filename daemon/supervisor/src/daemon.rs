//! The daemon as a whole: its tenants, and a run from its admission to its answer.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Capacity, Level};
use enisle_hardening::{Layer, LayerSet, Posture, mpk};
use enisle_wire::Outcome;
use enisle_wire::tenant::RunId;
use tokio::sync::{Notify, Semaphore};

use crate::birth::{Blueprint, StartError, make_snapshot};
use crate::config::{Config, Keys};
use crate::events::{Events, What};
use crate::policy::{Policy, Store, StoreError, TenantName};
use crate::pool::{AdmitError, Pool};
use crate::quota::{Account, OverQuota};
use crate::resident::{Ended, Finished, Job, Lost, Resident, Visit};

/// Cages that fit a process: 47 bits of address space, 1376 GiB each (measured: 93).
const CAGES_PER_PROCESS: usize = 90;
/// Tenants that the daemon remembers at one time. More names than that are refused: each costs memory.
const MAX_TENANTS: usize = 100_000;
/// So many workers may die before they come to one and the same run.
const MOST_NOT_BEGUN: u32 = 10;
/// How long a tenant lives alone after a run of its ended a worker process.
const ALONE_AFTER_TAKING_A_WORKER: Duration = Duration::from_secs(600);
/// Private memory that a worker may commit beside its tenants' own: V8, and one largest allocation on the way to an
/// `exceededMemory`.
const WORKER_BASE_MB: u64 = 2048;

#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    /// Bodies and the runs made of them, in MiB, all clients together.
    pub(crate) body_mb: Arc<Semaphore>,
    pub(crate) posture: Posture,
    /// What workers take on: what the machine has, less what the configuration does without.
    pub(crate) layers: LayerSet,
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
    /// A run of its ended a worker: until then it lives alone, whatever its later runs do.
    alone_until: Mutex<Option<Instant>>,
    usage: Mutex<Usage>,
    /// An operator has set its policy.
    has_policy: AtomicBool,
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
    pub(crate) async fn set_up(
        config: Config,
        program: std::path::PathBuf,
        state_dir: &std::path::Path,
    ) -> Result<Self, SetupError> {
        let posture = Posture::probe();
        let missing: Vec<_> = posture
            .missing(config.required_layers()?)
            .map(|finding| format!("{} ({}); {}", finding.layer, finding.detail, finding.layer.remedy()))
            .collect();
        if !missing.is_empty() {
            return Err(SetupError::Posture(missing.join("; ")));
        }
        let capacity = Capacity {
            keys: if config.workers.keys == Keys::Off { 0 } else { mpk::tenants_of(posture.keys) },
            cages: CAGES_PER_PROCESS,
            share_without_keys: config.workers.share_without_keys,
        };
        let (store, policies) = Store::open(state_dir, config.workers.max_memory_mb)?;
        let file = std::fs::File::open(&program).map_err(|error| SetupError::Program(program, error))?;
        let tenants_per_process = u32::try_from(capacity.tenants_per_process()).unwrap_or(1);
        // Heap and buffers of every tenant at the most that a policy may grant.
        let data_mb = WORKER_BASE_MB + u64::from(tenants_per_process) * 2 * u64::from(config.workers.max_memory_mb);
        let layers = jail_layers(&posture);
        let layers = if capacity.keys == 0 { layers.without(Layer::Keys) } else { layers };
        let blueprint = Blueprint::new(file, layers, tenants_per_process, data_mb << 20, config.workers.uid_base);
        let blueprint = Arc::new(blueprint.map_err(SetupError::Thread)?);
        let snapshot = seal(&make_snapshot(&blueprint).await?).map_err(SetupError::Seal)?;
        let events = Arc::new(Events::new());
        let pool = Pool::new(blueprint, capacity, config.workers.max, snapshot, Arc::clone(&events));
        let now = Instant::now();
        let tenants = policies.into_iter().map(|(name, policy)| {
            let tenant = Tenant::new(name.clone(), policy, now);
            tenant.has_policy.store(true, Ordering::Relaxed);
            (name, Arc::new(tenant))
        });
        let tenants = tenants.collect();
        Ok(Self {
            body_mb: Arc::new(Semaphore::new(config.api.body_mb)),
            config,
            posture,
            layers,
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

    /// The tenant of that name, known from now on. `None` when the daemon knows too many; those that have no policy of
    /// their own, live nowhere and run nothing are forgotten first.
    pub(crate) fn tenant(&self, name: &TenantName) -> Option<Arc<Tenant>> {
        let mut tenants = self.tenants();
        if let Some(tenant) = tenants.get(name) {
            return Some(Arc::clone(tenant));
        }
        if tenants.len() >= MAX_TENANTS {
            tenants.retain(|_, tenant| tenant.is_worth_remembering());
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
        tenant.has_policy.store(true, Ordering::Relaxed);
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

    /// A place in a tenant's quota for one run, held until its end. Taken before a body is read, so that bodies count too.
    pub(crate) fn begin(self: &Arc<Self>, tenant: &Arc<Tenant>) -> Result<InFlight, RunError> {
        InFlight::begin(self, tenant)
    }

    /// One run, to its report. Dropping the future cancels it.
    ///
    /// A run whose worker dies under it is begun once more: no run has an effect outside its worker yet.
    pub(crate) async fn run(&self, in_flight: &InFlight, job: Job) -> Result<Report, RunError> {
        let tenant = &in_flight.tenant;
        let id = job.id;
        let (mut begun, mut in_company, mut not_begun) = (0, 0, 0);
        loop {
            let resident = self.home(tenant, job.limits.memory_mb).await?;
            let level = resident.worker.level;
            match resident.run(job.clone()).await {
                Ended::Done(finished) => {
                    tenant.note_end(finished.took_worker);
                    self.note(tenant, id, &finished);
                    return Ok(Report { id, finished: *finished, level });
                }
                // The worker died before it came to this run, which is not held against it; but not for ever.
                Ended::NotBegun if not_begun < MOST_NOT_BEGUN => not_begun += 1,
                Ended::NotBegun => {
                    let finished = lost("no worker lived long enough to begin it");
                    self.note(tenant, id, &finished);
                    return Ok(Report { id, finished, level });
                }
                Ended::Lost(Lost { why, anothers_doing }) => {
                    // What another tenant did is not held against this run. Twice in bad company, it lives alone; there
                    // nobody else can take its worker.
                    begun += u32::from(!anothers_doing);
                    in_company += u32::from(anothers_doing);
                    if !anothers_doing || in_company == 2 {
                        tenant.suspect.store(true, Ordering::SeqCst);
                    }
                    if begun == 2 {
                        let finished = lost(&why);
                        self.note(tenant, id, &finished);
                        return Ok(Report { id, finished, level });
                    }
                    self.events.tell(What::Retried {
                        tenant: tenant.name.to_string(),
                        run: id.to_string(),
                        reason: why,
                    });
                }
            }
            self.pool.bury_dead();
        }
    }

    /// The tenant's home; a new one if it has none, has lost it, or has to live alone from now on.
    async fn home(&self, tenant: &Tenant, memory_mb: u32) -> Result<Visit, AdmitError> {
        let mut home = tenant.home.lock().await;
        loop {
            if let Some(resident) = home.as_ref()
                && resident.worker.is_dead()
                && resident.worker.blames(resident.slot)
            {
                // Also where no run of its was in it any more.
                tenant.live_alone();
            }
            let suspect = tenant.lives_alone(Instant::now());
            // It stays its home until it has left: a client that goes away while it waits changes nothing.
            if let Some(resident) = home.clone() {
                let worker = &resident.worker;
                let old = worker.started_at.elapsed() >= Duration::from_secs(self.config.workers.max_age_secs);
                let leaves = match worker.level {
                    _ if worker.is_dead() => None,
                    _ if old => Some("its process is old"),
                    Level::Shared if suspect => Some("it has to live alone"),
                    Level::Shared | Level::Solo => None,
                };
                if let Some(reason) = leaves {
                    if old {
                        self.pool.close(worker);
                    }
                    // Never in two homes at once: what still runs there ends first. Others wait for the lock meanwhile.
                    resident.close_when_unused().await;
                    self.pool.leave(&resident, reason);
                } else if let Some(visit) = resident.visit() {
                    return Ok(visit);
                }
            }
            *home = None;
            let level = if suspect { Level::Solo } else { Level::Shared };
            *home = Some(self.pool.admit(&tenant.name, level, memory_mb).await?);
        }
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

    /// Lets idle tenants move out, ends old workers, and looks at the keys of one worker after the other, for as long as
    /// the daemon lives.
    pub(crate) async fn keep_house(&self) {
        let workers = &self.config.workers;
        let (idle, age) = (Duration::from_secs(workers.idle_secs), Duration::from_secs(workers.max_age_secs));
        let pause = idle.min(age).clamp(Duration::from_millis(500), Duration::from_secs(10));
        let mut rounds = tokio::time::interval(pause);
        loop {
            rounds.tick().await;
            self.pool.bury_dead();
            self.pool.retire_idle(idle);
            self.pool.retire_old(age);
            self.pool.inspect_next().await;
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
            alone_until: Mutex::default(),
            usage: Mutex::default(),
            has_policy: AtomicBool::new(false),
        }
    }

    /// A run has ended, perhaps with its worker.
    fn note_end(&self, took_worker: bool) {
        self.suspect.store(false, Ordering::SeqCst);
        if took_worker {
            self.live_alone();
        }
    }

    /// It has ended a worker.
    fn live_alone(&self) {
        let until = Instant::now() + ALONE_AFTER_TAKING_A_WORKER;
        *self.alone_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn lives_alone(&self, now: Instant) -> bool {
        let until = *self.alone_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.suspect.load(Ordering::SeqCst) || until.is_some_and(|until| now < until)
    }

    fn is_worth_remembering(&self) -> bool {
        self.has_policy.load(Ordering::Relaxed)
            || self.in_flight() > 0
            || self.home.try_lock().is_ok_and(|home| home.is_some())
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
        self.home
            .try_lock()
            .ok()?
            .as_ref()
            .filter(|resident| !resident.worker.is_dead() && !resident.is_closed())
            .cloned()
    }
}

/// A run's place in its tenant's quota and in the daemon's count, given back when it is over in whatever way.
#[derive(Debug)]
pub(crate) struct InFlight {
    daemon: Arc<Daemon>,
    tenant: Arc<Tenant>,
}

impl InFlight {
    fn begin(daemon: &Arc<Daemon>, tenant: &Arc<Tenant>) -> Result<Self, RunError> {
        if daemon.is_draining() {
            return Err(RunError::Draining);
        }
        let quota = tenant.policy().quota;
        tenant.account.lock().unwrap_or_else(PoisonError::into_inner).begin(&quota, Instant::now())?;
        daemon.in_flight.fetch_add(1, Ordering::SeqCst);
        Ok(Self { daemon: Arc::clone(daemon), tenant: Arc::clone(tenant) })
    }
}

impl Drop for InFlight {
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
        took_worker: true,
    }
}

/// The layers that workers take on here: all that the machine has.
fn jail_layers(posture: &Posture) -> LayerSet {
    let layers = posture.layers();
    if layers.has(Layer::Namespaces) {
        return layers;
    }
    // Without a mount namespace of its own a worker must not touch the mounts.
    let layers = layers.without(Layer::EmptyRoot);
    // An ordinary user cannot look into an undumpable process that is in no namespace of theirs, and a worker that cannot
    // be verified gets no tenant: being able to look is worth more.
    if nix::unistd::geteuid().is_root() { layers } else { layers.without(Layer::NotDumpable) }
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
