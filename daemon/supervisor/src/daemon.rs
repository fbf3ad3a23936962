//! The daemon as a whole: its parts, and the tenants that it knows.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Bounds, Standing};
use enisle_hardening::{LayerSet, Posture};
use enisle_wire::tenant::RunId;
use tokio::sync::mpsc;

use crate::clock;
use crate::config::{Config, Counters};
use crate::cordons::counters;
use crate::cordons::warden::Warden;
use crate::events::{Audit, EventKind, Events};
use crate::files::Folder;
use crate::homes::demand::Demand;
use crate::homes::find::Homes;
use crate::homes::pool::Pool;
use crate::homes::starting::Starter;
use crate::peers::acting_uid;
use crate::run_id::RunIds;
use crate::share::{Exhausted, Held, Lanes, Parts, Supply, Turns};
use crate::state::kept::RecordError;
use crate::state::notes::{Line, Written};
use crate::state::recorder::Recorder;
use crate::tenants::in_flight::Flights;
use crate::tenants::policy::{KeptPolicy, Policy, Store, StoreError, TenantName};
use crate::tenants::tenant::Tenant;
use crate::workers::machine::{self, Machine, MachineError, Workers};

/// How many tenants the daemon remembers at one time. Further names are refused, because each name
/// costs memory.
const MAX_TENANTS: u64 = 100_000;
/// How many tenants are considered for forgetting at a time, to make room for a new name.
const FORGET_AMONG: usize = 64;
/// How many tenants are handled before other tasks get their turn.
pub(crate) const SOME_TENANTS: usize = 256;
/// How many policies are written at one time.
const WRITES: usize = 4;
/// How many pieces of answers are written at one time.
const PIECES: usize = 4;

#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) supplies: Supplies,
    pub(crate) work: Lanes,
    /// Turns for writing policies: each write blocks a thread that other work needs.
    pub(crate) writes: Turns,
    /// Turns for writing pieces of answers.
    pub(crate) pieces: Arc<Turns>,
    pub(crate) posture: Posture,
    /// The layers of workers: the machine's layers, without those that the daemon leaves out here.
    pub(crate) layers: LayerSet,
    pub(crate) events: Arc<Events>,
    pub(crate) warden: Arc<Warden>,
    /// Whether the processor's counters are used; the error says why not.
    pub(crate) counters: Result<(), String>,
    pub(crate) homes: Arc<Homes>,
    pub(crate) started: Instant,
    store: Store,
    /// The policy of tenants that have none of their own.
    defaults: Arc<Policy>,
    tenants: Mutex<BTreeMap<TenantName, Arc<Tenant>>>,
    run_ids: RunIds,
    pub(crate) flights: Arc<Flights>,
    /// The last name that [`Daemon::forget_some`] considered; the next search begins after it.
    forgot_up_to: Mutex<Option<TenantName>>,
    /// The queue of tenants that may need to move, until [`Daemon::move_tenants`] takes it.
    pub(crate) moves: Mutex<Option<mpsc::UnboundedReceiver<Arc<Tenant>>>>,
}

/// The supplies of names, bodies and scripts. Other supplies belong to the modules that hand them
/// out, such as worker processes to `homes::pool`.
#[derive(Debug)]
pub(crate) struct Supplies {
    /// Names of tenants.
    names: Supply,
    /// Bytes of bodies, of the runs made of them, and of their answers.
    pub(crate) bodies: Supply,
    /// Bytes of registered scripts, and of names in policies.
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
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the kernel's random numbers (/dev/urandom) cannot be read: {0}")]
    Random(std::io::Error),
}

/// The tenants of which a policy or a standing was kept.
fn remembered(
    policies: BTreeMap<TenantName, KeptPolicy>,
    mut standings: BTreeMap<TenantName, Standing>,
    defaults: &Arc<Policy>,
    supplies: &Supplies,
    config: &Config,
    now: Instant,
) -> BTreeMap<TenantName, Arc<Tenant>> {
    // The uid that first used the name is not recorded, so the name is charged to the uid that may
    // act for the tenant, or to the daemon's own uid if no rule names the tenant.
    let owner = nix::unistd::geteuid().as_raw();
    let held = |name: &TenantName| supplies.names.keep(acting_uid(&config.peers, name.as_str()).unwrap_or(owner), 1);
    let tenant =
        |name: &TenantName, standing| Tenant::new(name.clone(), Arc::clone(defaults), standing, held(name), now);
    let mut tenants = BTreeMap::new();
    for (name, KeptPolicy { policy, set_by }) in policies {
        let tenant = tenant(&name, standings.remove(&name).unwrap_or_else(Warden::newcomer));
        let bytes = policy.bytes();
        tenant.set_policy(policy, supplies.scripts.keep(set_by.unwrap_or(owner), bytes));
        tenants.insert(name, Arc::new(tenant));
    }
    tenants.extend(standings.into_iter().map(|(name, standing)| (name.clone(), Arc::new(tenant(&name, standing)))));
    tenants
}

impl Daemon {
    /// Probes the machine and has the snapshot made in a jailed worker. The daemon is then ready to
    /// admit tenants.
    pub(crate) async fn set_up(
        config: Config,
        program: std::path::PathBuf,
        state_dir: &std::path::Path,
    ) -> Result<Self, SetupError> {
        let machine = machine::probe(&config)?;
        let workers = Workers::make(&config, &machine, program).await?;
        Self::assemble(config, machine, workers, state_dir)
    }

    /// Reads what was kept, and puts the parts together.
    pub(crate) fn assemble(
        config: Config,
        machine: Machine,
        workers: Workers,
        state_dir: &std::path::Path,
    ) -> Result<Self, SetupError> {
        let Workers { blueprint, snapshot, layers } = workers;
        let Machine { posture, capacity, processes } = machine;
        let state = Folder::make(state_dir).map_err(|error| StoreError::Folder(state_dir.to_owned(), error))?;
        let (store, policies) = Store::open(&state, config.workers.max_memory_mb)?;
        let (recorder, kept) = Recorder::open(&state, config.audit.keep_mb, Parts::new(&config.peers))?;
        let recorder = Arc::new(recorder);
        let events = Arc::new(Events::new(config.peers.clone(), Some(Arc::clone(&recorder) as Arc<dyn Audit>)));
        for what in kept.broken {
            tracing::error!(%what, "a kept record is broken");
            events.emit(EventKind::RecordBroken { what });
        }
        let (warden, moves) = Warden::new(Arc::clone(&events), config.cordon.clone(), recorder);
        // One process is left for tenants that share, unless there is only one.
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
        let memory_mb = config.defaults.limits.memory_mb;
        let sealed_mb = config.cordon.sealed.lower(config.defaults.limits).memory_mb;
        let demand = Demand::new(config.workers.standby, [memory_mb, sealed_mb]);
        let starter = Starter::new(blueprint, snapshot, Arc::clone(&warden));
        let pool = Pool::new(starter, capacity, bounds, parts, demand, Arc::clone(&warden));
        let homes = Homes::new(&config, pool, Arc::clone(&warden));
        let (defaults, now) = (Arc::new(config.defaults.clone()), Instant::now());
        let tenants = remembered(policies, kept.standings, &defaults, &supplies, &config, now);
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
            homes: Arc::new(homes),
            started: now,
            store,
            defaults,
            tenants: Mutex::new(tenants),
            run_ids,
            flights: Arc::default(),
            forgot_up_to: Mutex::default(),
            moves: Mutex::new(Some(moves)),
        })
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantName, Arc<Tenant>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant of that name, which is made if it is unknown. If the uid has no room for one more
    /// name, tenants that need not be remembered are forgotten first.
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

    /// Forgets tenants that need not be remembered and whose names are charged to this uid or to
    /// the daemon's own. Considers only the next [`FORGET_AMONG`] names, because all names would
    /// take too long.
    fn forget_some(&self, tenants: &mut BTreeMap<TenantName, Arc<Tenant>>, uid: u32) {
        let (rules, now) = (&self.config.cordon.rules, clock::now());
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
            .filter(|(_, tenant)| tenant.may_be_forgotten(rules, now))
            .map(|(name, _)| name.clone())
            .filter(|name| self.homes.forget(name))
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

    /// The tenants after `name` in the order of names, at most `most` of them.
    pub(crate) fn tenants_after(&self, name: Option<&TenantName>, most: usize) -> Vec<Arc<Tenant>> {
        let tenants = self.tenants();
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        tenants
            .range::<TenantName, _>((from, Bound::Unbounded))
            .take(most)
            .map(|(_, tenant)| Arc::clone(tenant))
            .collect()
    }

    /// Sets and stores a tenant's policy; `line` is the line that was reserved for this in the
    /// audit log. The policy takes effect with the next run.
    pub(crate) fn set_policy(
        &self,
        tenant: &Tenant,
        policy: Policy,
        held: Held,
        line: Line,
    ) -> Result<Written, StoreError> {
        let by_uid = held.uid();
        // If two policies are set at one time, the policy that is in effect afterwards has the
        // later line.
        let in_order = self.store.put(&tenant.name, &policy, by_uid)?;
        tenant.set_policy(policy, held);
        let written = self.warden.recorder.decided(line);
        drop(in_order);
        tenant.unwritten.store(true, Ordering::Relaxed);
        self.events.emit(EventKind::PolicyChanged { tenant: tenant.name.to_string(), by_uid });
        Ok(written)
    }

    pub(crate) fn next_run_id(&self) -> RunId {
        self.run_ids.next()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.flights.count()
    }

    /// Refuses new runs, and waits for those in flight, for at most `drain`.
    pub(crate) async fn drain(&self, drain: Duration) {
        self.flights.close();
        self.events.emit(EventKind::Draining);
        if !self.flights.over(drain).await {
            tracing::warn!(runs = self.in_flight(), "runs are still in flight; ending anyway");
        }
    }

    /// Records what has changed since the last round. Called when the daemon ends.
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
        self.flights.is_draining()
    }
}
