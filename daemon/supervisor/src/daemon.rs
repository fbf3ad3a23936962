//! The daemon as a whole: its tenants, and a run from its admission to its answer.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Bounds, Capacity, Level, Reason, Seen, Signal};
use enisle_hardening::{Layer, LayerSet, Posture, mpk};
use enisle_wire::Outcome;
use enisle_wire::tenant::{RunId, ScriptError, Usage};
use tokio::sync::{Notify, mpsc};

use crate::api::peer::whose;
use crate::attempt::{Attempts, GaveUp, Next};
use crate::birth::{Blueprint, Memory, StartError, make_snapshot};
use crate::config::{Config, Counters, Keys};
use crate::counters;
use crate::descriptors::{self, DescriptorsError};
use crate::events::{Events, What};
use crate::files::Folder;
use crate::job::{Job, Unsealable};
use crate::notes::{Line, Written};
use crate::policy::{KeptPolicy, Limits, Policy, Store, StoreError, TenantName};
use crate::pool::{AdmitError, Pool};
use crate::quota::OverQuota;
use crate::record::{RecordError, Recorder};
use crate::resident::{Finished, Resident, Visit};
use crate::run_id::RunIds;
use crate::share::{Exhausted, Held, Lanes, Parts, Supply, Turns};
use crate::tenant::Tenant;
use crate::warden::{self, Warden};

/// Cages that fit a process: 47 bits of address space, 1376 GiB each (measured: 93).
const CAGES_PER_PROCESS: usize = 90;
/// Tenants that the daemon remembers at one time. More names than that are refused: each costs memory.
const MAX_TENANTS: u64 = 100_000;
/// So many are looked at when there is no room for a new name.
const FORGET_AMONG: usize = 64;
/// Tenants that are looked at before others have their turn.
pub(crate) const SOME_TENANTS: usize = 256;
/// How often the runs of a tenant that lives where it should not ask for its move.
const RUNS_ASK_EVERY: Duration = Duration::from_millis(200);
/// Policies that are written at one time.
const WRITES: usize = 4;
/// Pieces of answers that are written before others have their turn.
const PIECES: usize = 4;
/// Private memory that a worker may commit beside its tenants' own: V8, and one largest allocation on the way to an
/// `exceededMemory`.
const WORKER_BASE_MB: u64 = 2048;

#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) supplies: Supplies,
    pub(crate) work: Lanes,
    /// Policies that are being written: each waits for the disk, on a thread that others need.
    pub(crate) writes: Turns,
    /// Pieces of answers that are being written.
    pub(crate) pieces: Arc<Turns>,
    pub(crate) posture: Posture,
    /// What workers take on: what the machine has, less what the configuration does without.
    pub(crate) layers: LayerSet,
    pub(crate) events: Arc<Events>,
    pub(crate) warden: Arc<Warden>,
    /// Whether the processor's counters are used; why not otherwise.
    pub(crate) counters: Result<(), String>,
    pub(crate) pool: Pool,
    pub(crate) started: Instant,
    store: Store,
    /// The policy of tenants that have none of their own.
    defaults: Arc<Policy>,
    tenants: Mutex<BTreeMap<TenantName, Arc<Tenant>>>,
    run_ids: RunIds,
    in_flight: AtomicU64,
    drained: Notify,
    draining: AtomicBool,
    /// Up to that name tenants were looked at when there was no room for a new one.
    forgot_up_to: Mutex<Option<TenantName>>,
    /// Tenants that may have to live elsewhere.
    pub(crate) moves: Mutex<Option<mpsc::UnboundedReceiver<Arc<Tenant>>>>,
}

/// What all clients share, but for the homes, which are the pool's.
#[derive(Debug)]
pub(crate) struct Supplies {
    /// Names of tenants.
    names: Supply,
    /// Bytes of bodies, of the runs made of them, and of their answers.
    pub(crate) bodies: Supply,
    /// Bytes of registered scripts, and of what policies name.
    pub(crate) scripts: Supply,
}

impl Supplies {
    fn new(config: &Config) -> Self {
        let parts = Parts::new(&config.peers);
        let bytes = |mb: usize| (mb as u64) << 20;
        Self {
            names: Supply::new("the names of tenants", MAX_TENANTS, parts.clone()),
            bodies: Supply::new(
                "the bytes of requests and answers (api.body_mb)",
                bytes(config.api.body_mb),
                parts.clone(),
            ),
            scripts: Supply::new(
                "the bytes of scripts and policies (api.script_mb)",
                bytes(config.api.script_mb),
                parts,
            ),
        }
    }
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
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Layer(#[from] enisle_hardening::layers::UnknownLayer),
    #[error(transparent)]
    Descriptors(#[from] DescriptorsError),
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
    #[error("the kernel's random numbers (/dev/urandom) cannot be read: {0}")]
    Random(std::io::Error),
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
    #[error("there is no room to write down what the run may leave behind: {0}")]
    Unrecorded(Exhausted),
    #[error("the run could not be made ready for a sealed worker: {0}")]
    Unsealable(#[from] Unsealable),
    #[error("making the run ready was interrupted")]
    Interrupted,
    #[error("the run has ended, and its answer of {bytes} bytes was discarded: {why}")]
    Answer { bytes: usize, why: Exhausted },
    #[error(
        "tenant {tenant} is expelled and not run any more: {why}; an operator lifts that with \
         `enisle cordon {tenant} --lift --reason …` (DELETE /v1/tenants/{tenant}/cordon?reason=…)"
    )]
    Expelled { tenant: TenantName, why: String },
}

/// A run's end, with where it was.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: RunId,
    pub(crate) finished: Finished,
    pub(crate) level: Level,
}

/// What this machine gives.
#[derive(Debug)]
pub(crate) struct Machine {
    posture: Posture,
    capacity: Capacity,
    /// Worker processes at one time.
    processes: usize,
}

/// What this machine has, unless it lacks what the configuration requires.
pub(crate) fn probe(config: &Config) -> Result<Machine, SetupError> {
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
    let limit = descriptors::raise()?;
    let processes = descriptors::processes(config, capacity.tenants_per_process(), limit)?;
    if processes < config.workers.max {
        let wanted = config.workers.max;
        tracing::warn!(
            limit,
            processes,
            wanted,
            "the limit of open files has room for fewer processes than workers.max"
        );
    }
    Ok(Machine { posture, capacity, processes })
}

/// What workers are started from.
struct Workers {
    blueprint: Arc<Blueprint>,
    /// As one of them has just made it: the program is a worker, and starts on this machine.
    snapshot: OwnedFd,
    layers: LayerSet,
}

impl Workers {
    async fn make(config: &Config, machine: &Machine, program: std::path::PathBuf) -> Result<Self, SetupError> {
        let file = std::fs::File::open(&program).map_err(|error| SetupError::Program(program, error))?;
        let tenants_per_process = u32::try_from(machine.capacity.tenants_per_process()).unwrap_or(1);
        let memory = Memory {
            base_mb: WORKER_BASE_MB,
            tenant_mb: config.workers.max_memory_mb.into(),
            sealed_mb: config.cordon.sealed.memory_mb.into(),
        };
        let layers = jail_layers(&machine.posture);
        let layers = if machine.capacity.keys == 0 { layers.without(Layer::Keys) } else { layers };
        let blueprint = Blueprint::new(file, layers, tenants_per_process, memory, config.workers.uid_base);
        let blueprint = Arc::new(blueprint.map_err(SetupError::Thread)?);
        let snapshot = seal(&make_snapshot(&blueprint).await?).map_err(SetupError::Seal)?;
        Ok(Self { blueprint, snapshot, layers })
    }
}

/// Finds what a start would refuse of this machine and of the worker program, which has to make a
/// snapshot; nothing is kept.
pub(crate) async fn check(config: &Config, program: std::path::PathBuf) -> Result<(), SetupError> {
    Workers::make(config, &probe(config)?, program).await.map(drop)
}

impl Daemon {
    /// Probes the machine, has the snapshot made in a jailed worker, and is ready to admit.
    pub(crate) async fn set_up(
        config: Config,
        program: std::path::PathBuf,
        state_dir: &std::path::Path,
    ) -> Result<Self, SetupError> {
        let machine = probe(&config)?;
        let workers = Workers::make(&config, &machine, program).await?;
        let Workers { blueprint, snapshot, layers } = workers;
        let Machine { posture, capacity, processes } = machine;
        let state = Folder::make(state_dir).map_err(|error| StoreError::Folder(state_dir.to_owned(), error))?;
        let (store, policies) = Store::open(&state, config.workers.max_memory_mb)?;
        let (recorder, kept) = Recorder::open(&state, config.audit.keep_mb, Parts::new(&config.peers))?;
        let recorder = Arc::new(recorder);
        let events = Arc::new(Events::new(config.peers.clone(), Some(Arc::clone(&recorder))));
        for what in kept.broken {
            tracing::error!(%what, "what was kept is broken");
            events.tell(What::RecordBroken { what });
        }
        let (warden, moves) = Warden::new(Arc::clone(&events), config.cordon.clone(), recorder);
        // One process is left for those who share.
        let alone = config.cordon.max_alone.min(processes.saturating_sub(1).max(1));
        let bounds = Bounds { processes, alone };
        let counters = match config.cordon.counters {
            Counters::Auto => counters::probe(),
            Counters::Off => {
                Err("the configuration does without the processor's counters (cordon.counters)".to_owned())
            }
        };
        let run_ids = RunIds::open().map_err(SetupError::Random)?;
        let supplies = Supplies::new(&config);
        let parts = Parts::new(&config.peers);
        let pool = Pool::new(blueprint, capacity, bounds, parts, snapshot, Arc::clone(&warden));
        let mut standings = kept.standings;
        let now = Instant::now();
        let mut tenants = BTreeMap::new();
        // Who made it first is not written down: whoever may act for it pays for it.
        let owner = nix::unistd::geteuid().as_raw();
        let held = |name: &TenantName| supplies.names.keep(whose(&config.peers, name.as_str()).unwrap_or(owner), 1);
        let defaults = Arc::new(config.defaults.clone());
        for (name, KeptPolicy { policy, set_by }) in policies {
            let standing = standings.remove(&name).unwrap_or_else(Warden::newcomer);
            let tenant = Tenant::new(name.clone(), Arc::clone(&defaults), standing, held(&name), now);
            let bytes = policy.bytes();
            tenant.set_policy(policy, supplies.scripts.keep(set_by.unwrap_or(owner), bytes));
            tenants.insert(name, Arc::new(tenant));
        }
        for (name, standing) in standings {
            let tenant = Tenant::new(name.clone(), Arc::clone(&defaults), standing, held(&name), now);
            tenants.insert(name, Arc::new(tenant));
        }
        Ok(Self {
            supplies,
            work: Lanes::new(),
            writes: Turns::new(WRITES, 1),
            pieces: Arc::new(Turns::new(PIECES, 1)),
            config,
            posture,
            layers,
            events,
            warden,
            counters,
            pool,
            started: now,
            store,
            defaults,
            tenants: Mutex::new(tenants),
            run_ids,
            in_flight: AtomicU64::new(0),
            drained: Notify::new(),
            draining: AtomicBool::new(false),
            forgot_up_to: Mutex::default(),
            moves: Mutex::new(Some(moves)),
        })
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantName, Arc<Tenant>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant of that name, known from now on, for a uid that has room for one more name. Those
    /// that have no policy of their own, live nowhere and run nothing are forgotten if it has none.
    pub(crate) fn tenant(&self, name: &TenantName, uid: u32) -> Result<Arc<Tenant>, Exhausted> {
        let mut tenants = self.tenants();
        if let Some(tenant) = tenants.get(name) {
            return Ok(Arc::clone(tenant));
        }
        let taken = self.supplies.names.take(uid, 1).or_else(|_| {
            self.forget_some(&mut tenants, uid);
            self.supplies.names.take(uid, 1)
        })?;
        let policy = Arc::clone(&self.defaults);
        let tenant = Arc::new(Tenant::new(name.clone(), policy, Warden::newcomer(), taken, Instant::now()));
        tenants.insert(name.clone(), Arc::clone(&tenant));
        Ok(tenant)
    }

    /// Forgets those of a uid's tenants, and of those that were there at the start, that need not
    /// be remembered, among the next few: looking at all of them would take too long.
    fn forget_some(&self, tenants: &mut BTreeMap<TenantName, Arc<Tenant>>, uid: u32) {
        let (rules, now) = (&self.config.cordon.rules, warden::now());
        let mut up_to = self.forgot_up_to.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = up_to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut next: Vec<_> = tenants.range::<TenantName, _>((begin, Bound::Unbounded)).take(FORGET_AMONG).collect();
        if next.len() < FORGET_AMONG {
            next.extend(tenants.iter().take(FORGET_AMONG - next.len()));
        }
        *up_to = next.last().map(|(name, _)| TenantName::clone(name));
        let owner = nix::unistd::geteuid().as_raw();
        let forgotten: Vec<TenantName> = next
            .into_iter()
            .filter(|(_, tenant)| [uid, owner].contains(&tenant.charged_to()))
            .filter(|(_, tenant)| !tenant.is_worth_remembering(|standing| !standing.is_slight(rules, now)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in forgotten {
            tenants.remove(&name);
            self.warden.recorder.forget(&name);
        }
    }

    pub(crate) fn known_tenant(&self, name: &TenantName) -> Option<Arc<Tenant>> {
        self.tenants().get(name).cloned()
    }

    pub(crate) fn count_tenants(&self) -> usize {
        self.tenants().len()
    }

    /// The next tenants by name, so many at the most.
    pub(crate) fn tenants_after(&self, name: Option<&TenantName>, most: usize) -> Vec<Arc<Tenant>> {
        let tenants = self.tenants();
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        tenants
            .range::<TenantName, _>((from, Bound::Unbounded))
            .take(most)
            .map(|(_, tenant)| Arc::clone(tenant))
            .collect()
    }

    /// Sets and keeps a tenant's policy, for whose line there is room. It holds from the next run
    /// on.
    pub(crate) fn set_policy(
        &self,
        tenant: &Tenant,
        policy: Policy,
        held: Held,
        line: Line,
    ) -> Result<Written, StoreError> {
        let by_uid = held.uid();
        // Of two at one time, the one that holds has the later line.
        let in_order = self.store.put(&tenant.name, &policy, by_uid)?;
        tenant.set_policy(policy, held);
        let written = self.warden.recorder.decided(line);
        drop(in_order);
        tenant.unwritten.store(true, Ordering::Relaxed);
        self.events.tell(What::PolicyChanged { tenant: tenant.name.to_string(), by_uid });
        Ok(written)
    }

    pub(crate) fn next_run_id(&self) -> RunId {
        self.run_ids.next()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// A place in a tenant's quota for one run, held until its end. Taken before a body is read, so that bodies count too.
    pub(crate) fn begin(self: &Arc<Self>, tenant: &Arc<Tenant>, uid: u32) -> Result<InFlight, RunError> {
        InFlight::begin(self, tenant, uid)
    }

    /// One run, to its report. Dropping the future cancels it.
    ///
    /// A run whose worker dies under it is begun again ([`Attempts`]): no run has an effect outside
    /// its worker yet.
    pub(crate) async fn run(self: &Arc<Self>, job: Job) -> Result<Report, RunError> {
        let tenant = &Arc::clone(&job.in_flight.tenant);
        let (id, uid) = (job.run.id, job.in_flight.uid);
        let room_until = || Instant::now() + Duration::from_secs(self.config.cordon.queue_secs);
        let (mut attempts, mut until) = (Attempts::default(), room_until());
        loop {
            let resident = self.home(tenant, &job, until).await?;
            let level = resident.worker.level;
            let fitted = if level == Level::Sealed { self.sealed(&job, tenant).await? } else { job.clone() };
            let ended = resident.run(fitted).await;
            let finished = match attempts.after(ended, resident.is_fenced()) {
                Next::Answer(finished) => {
                    tenant.note_end();
                    *finished
                }
                Next::Refuse { bytes, why, usage } => {
                    tenant.note_end();
                    self.note(tenant, uid, id, &Finished::of_ours(Outcome::ExceededOutput, None, usage));
                    return Err(RunError::Answer { bytes, why });
                }
                Next::Discard { cpu_us, gives_up } => {
                    self.discard(tenant, uid, id, resident.token, cpu_us);
                    let Some(why) = gives_up else { continue };
                    given_up(tenant, &why, Usage::default())
                }
                Next::GiveUp(why, usage) => given_up(tenant, &why, usage),
                Next::Wait => {
                    // So far it has waited for its turn, not for room.
                    until = room_until();
                    self.pool.bury_dead();
                    continue;
                }
                Next::Retry { alone, why: reason, usage } => {
                    if alone {
                        tenant.retry_alone();
                    }
                    // The answer has what the last attempt used.
                    tenant.usage().add_cpu(usage.cpu_us);
                    let (tenant, run) = (tenant.name.to_string(), id.to_string());
                    self.events.tell(What::Retried { tenant, uid, run, reason });
                    self.pool.bury_dead();
                    continue;
                }
            };
            self.note(tenant, uid, id, &finished);
            return Ok(Report { id, finished, level });
        }
    }

    /// What comes from a home that the tenant has left does not count, whatever it says.
    fn discard(&self, tenant: &Tenant, uid: u32, run: RunId, token: u64, cpu_us: u64) {
        let mut usage = tenant.usage();
        usage.fenced += 1;
        usage.add_cpu(cpu_us);
        drop(usage);
        self.events.tell(What::Fenced { tenant: tenant.name.to_string(), uid, run: run.to_string(), token });
    }

    /// The tenant's home; a new one if it has none, has lost it, or its process is old. Where it has to live elsewhere, it is
    /// moved meanwhile (`rehome`); only one that must not be beside others waits for that.
    ///
    /// Where there is no room for one that has to live alone, or that is leaving a home in which a
    /// run has yet to end, it waits `until` then.
    async fn home(self: &Arc<Self>, tenant: &Arc<Tenant>, job: &Job, until: Instant) -> Result<Visit, RunError> {
        let mut home = tenant.home.lock().await;
        loop {
            let level = tenant.wanted_level();
            if level == Level::Expelled {
                return Err(RunError::Expelled { tenant: tenant.name.clone(), why: why_expelled(tenant) });
            }
            // Secrets are nowhere where somebody else is whom they are not for.
            if tenant.holds_secrets()
                && let Some(present) = home.take_if(|home| self.pool.is_among_others(tenant, home))
            {
                self.drain_home(tenant, present, true);
            }
            if let Some(visit) = home.as_ref().and_then(Resident::visit) {
                // Further in there is time, and whoever is alone for its own sake need not be.
                let leaves = visit.worker.level < tenant.standing().level() || self.is_old(&visit.worker);
                if leaves && tenant.runs_may_ask(RUNS_ASK_EVERY) {
                    self.warden.ask_for_move(tenant);
                }
                return Ok(visit);
            }
            *home = None;
            let level = self.level_of_new_home(tenant, job.in_flight.uid);
            let memory_mb = job.run.limits.memory_mb.min(self.limits_at(tenant, level).memory_mb);
            // A home alone that is nothing but others' doing is not waited for.
            let own_doing = tenant.on_probation().is_none() || tenant.standing().level().is_alone();
            let patience = if own_doing { until } else { Instant::now() };
            let admitted = match self.pool.admit(tenant, level, memory_mb, job.in_flight.uid, patience).await {
                // That it lives alone was for its own sake, or is not its own doing: it is not refused for that.
                Err(AdmitError::Full(_) | AdmitError::FullAlone(_))
                    if level.is_alone() && tenant.standing().level() == Level::Shared =>
                {
                    self.pool.admit(tenant, Level::Shared, memory_mb, job.in_flight.uid, until).await
                }
                admitted => admitted,
            };
            match admitted {
                Ok(admitted) => *home = Some(admitted),
                // It was expelled while it waited for room; the next look says so.
                Err(_) if tenant.wanted_level() == Level::Expelled => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How far out a tenant's next home has to be, on the account of a uid.
    ///
    /// While the uid's budget of deaths is used up, it is alone, also for those who have done
    /// nothing: whose doing the next death will be shows only afterwards, and a neighbour is safe
    /// where nobody else is. Whoever has a home in company stays there. If there is no room alone,
    /// such tenants are together, and never beside those who were there before: want of homes alone
    /// is no reason to refuse somebody for what another tenant did.
    pub(crate) fn level_of_new_home(&self, tenant: &Tenant, uid: u32) -> Level {
        if self.warden.has_used_up(uid) {
            tenant.put_on_probation(uid);
        }
        tenant.wanted_level()
    }

    /// What a tenant's runs may use at that level: the lower of its policy's and the level's.
    pub(crate) fn limits_at(&self, tenant: &Tenant, level: Level) -> Limits {
        let limits = tenant.policy().limits.clone();
        if level == Level::Sealed { self.config.cordon.sealed.lower(limits) } else { limits }
    }

    /// A run as a sealed home gets it: lower limits, no secrets, no code from strings.
    async fn sealed(&self, job: &Job, tenant: &Tenant) -> Result<Job, RunError> {
        let (limits, policy) = (self.limits_at(tenant, Level::Sealed), tenant.policy());
        let job = job.clone();
        if policy.secrets.is_empty() {
            return Ok(job.sealed(&limits, &[])?);
        }
        // An env may be large.
        let uid = job.in_flight.uid;
        let turn = self.work.turn(uid, job.env.len()).await;
        let sealed = tokio::task::spawn_blocking(move || {
            let sealed = job.sealed(&limits, &policy.secrets);
            drop(turn);
            sealed
        });
        Ok(sealed.await.map_err(|_| RunError::Interrupted)??)
    }

    /// Adds a run to its tenant's account, and tells of an end that an operator may want to know.
    fn note(&self, tenant: &Arc<Tenant>, uid: u32, run: RunId, finished: &Finished) {
        let mut usage = tenant.usage();
        usage.add_cpu(finished.usage.cpu_us);
        usage.note(finished.outcome);
        drop(usage);
        let advice = &finished.advice;
        let said = [
            (advice.imports > 0, Signal::DeniedImport),
            (advice.code > 0, Signal::DeniedCode),
            (advice.timers > 0, Signal::TimerFlood),
            (finished.outcome == Outcome::ExceededMemory, Signal::NearMemory),
        ];
        let said: Vec<_> = said.iter().filter(|(said, _)| *said).map(|(_, signal)| Seen::certain(*signal)).collect();
        if !said.is_empty() {
            self.warden.saw(tenant, uid, &said);
        }
        if !matches!(finished.outcome, Outcome::Ok | Outcome::Exception) {
            let outcome = finished.outcome.as_str();
            self.events.tell(What::RunEnded { tenant: tenant.name.to_string(), uid, run: run.to_string(), outcome });
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

    /// What has changed since the last round, at the end of the daemon.
    pub(crate) fn write_down(&self) {
        let mut last = None;
        loop {
            let some = self.tenants_after(last.as_ref(), SOME_TENANTS);
            some.iter().for_each(|tenant| self.warden.look_after(tenant));
            let Some(tenant) = some.last() else { break };
            last = Some(tenant.name.clone());
        }
        self.warden.recorder.close();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// A run's place in its tenant's quota and in the daemon's count, given back when it is over in whatever way.
#[derive(Debug)]
pub(crate) struct InFlight {
    daemon: Arc<Daemon>,
    tenant: Arc<Tenant>,
    /// Who asked for the run.
    pub(crate) uid: u32,
}

impl InFlight {
    fn begin(daemon: &Arc<Daemon>, tenant: &Arc<Tenant>, uid: u32) -> Result<Self, RunError> {
        if daemon.is_draining() {
            return Err(RunError::Draining);
        }
        if tenant.wanted_level() == Level::Expelled {
            return Err(RunError::Expelled { tenant: tenant.name.clone(), why: why_expelled(tenant) });
        }
        daemon.warden.recorder.may_run(uid).map_err(RunError::Unrecorded)?;
        let policy = tenant.policy();
        tenant.account.lock().unwrap_or_else(PoisonError::into_inner).begin(&policy.quota, Instant::now())?;
        daemon.in_flight.fetch_add(1, Ordering::SeqCst);
        Ok(Self { daemon: Arc::clone(daemon), tenant: Arc::clone(tenant), uid })
    }

    /// Nothing yet of what the answer is going to be charged.
    pub(crate) fn answer(&self) -> Held {
        self.daemon.supplies.bodies.none(self.uid)
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

/// What is answered for a run that is not tried any more.
fn given_up(tenant: &Tenant, why: &GaveUp, usage: Usage) -> Finished {
    if why.is_an_end() {
        tenant.note_end();
    }
    let error = ScriptError { name: "WorkerLost".to_owned(), message: why.to_string(), stack: None };
    Finished::of_ours(Outcome::WorkerLost, Some(error), usage)
}

/// Why a tenant is expelled, from the last thing that was decided about it.
fn why_expelled(tenant: &Tenant) -> String {
    let standing = tenant.standing();
    let reasons = standing.history().last().map(|past| past.reasons.as_slice()).unwrap_or_default();
    let in_words = |reason: &Reason| match reason {
        Reason::Order { reason, by_uid } => Some(format!("uid {by_uid} said so ({reason})")),
        Reason::Score { score, threshold } => Some(format!("its score reached {score:.0} of {threshold:.0}")),
        Reason::Signal { signal, count, .. } => Some(format!("{signal:?} {count} times")),
        Reason::Suspected { .. } | Reason::Lifted { .. } | Reason::Clean { .. } | Reason::Unsuspected => None,
    };
    reasons.iter().filter_map(in_words).collect::<Vec<_>>().join(", ")
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
