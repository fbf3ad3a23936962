//! One tenant, as the daemon knows it: its policy, what it may start, where it lives, and how it stands.
//!
//! A hundred thousand tenants may be known of whom each has done next to nothing. What only one
//! that has lived somewhere needs is made then ([`Life`]), and a policy is shared by all that have
//! the same.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use enisle_cordon::{Case, Circumstances, Level, Rules, Standing, Time, Traits};
use enisle_wire::Outcome;
use serde_json::{Map, Value};

use crate::policy::{Policy, TenantName};
use crate::quota::Account;
use crate::resident::Resident;
use crate::script::Scripts;
use crate::share::Held;

/// One tenant, known to the daemon since it started, or for longer.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: TenantName,
    policy: Mutex<Kept>,
    pub(crate) account: Mutex<Account>,
    /// Where its runs go. Who holds the lock keeps them from going anywhere.
    pub(crate) home: tokio::sync::Mutex<Option<Arc<Resident>>>,
    standing: Mutex<Standing>,
    /// A run of its was lost with its worker: until a run ends, it lives alone, so that it takes nobody with it.
    retries_alone: AtomicBool,
    scripts: Mutex<Scripts>,
    /// An operator has set its policy.
    pub(crate) has_policy: AtomicBool,
    /// Somebody is moving it, and somebody has asked for that since.
    pub(crate) moving: AtomicBool,
    pub(crate) asked_to_move: AtomicBool,
    /// How it stands has changed since it was written down.
    pub(crate) unwritten: AtomicBool,
    /// None until it has lived somewhere.
    life: OnceLock<Box<Life>>,
    /// Its part of the names that there may be.
    name_held: Held,
}

/// A policy, and what is held for it if it is more than a few numbers.
#[derive(Debug)]
struct Kept {
    policy: Arc<Policy>,
    _held: Option<Held>,
}

/// What there is of a tenant that has lived somewhere.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// It was in a process that died, and nobody knows whose doing it was.
    suspicion: Mutex<Option<Suspicion>>,
    usage: Mutex<Usage>,
    /// Its home was begun while this uid's budget of deaths was used up. It lives alone until all
    /// of them are forgiven.
    probation: Mutex<Option<u32>>,
    /// When its runs last asked for a move, and when it was last told that there is no room for one.
    pub(crate) runs_asked: Pacer,
    pub(crate) no_room_told: Pacer,
    /// How many homes it has had.
    homes: AtomicU64,
    /// Those that it has left and in which a run has yet to end.
    draining: Mutex<Vec<Weak<Resident>>>,
}

/// For how long, and with whom of the others it may be meanwhile: with nobody (`None`), or with those of its half.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    case: Option<Case>,
    until: Instant,
}

/// Lets something happen only so often.
#[derive(Debug, Default)]
pub(crate) struct Pacer(Mutex<Option<Instant>>);

impl Pacer {
    /// True, and the time begins anew, if so much has passed since it was last true.
    pub(crate) fn has_passed(&self, pause: Duration) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = last.is_none_or(|last| last.elapsed() >= pause);
        if passed {
            *last = Some(Instant::now());
        }
        passed
    }
}

/// What a tenant's runs came to since the daemon started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// Runs that have ended, each counted once.
    pub(crate) runs: u64,
    /// Runs that went out to a worker, each time that they did.
    pub(crate) begun: u64,
    /// Ends that came from a home that the tenant had left: discarded.
    pub(crate) fenced: u64,
    pub(crate) cpu_us: u64,
    outcomes: Vec<(Outcome, u64)>,
}

impl Usage {
    pub(crate) fn add_cpu(&mut self, us: u64) {
        self.cpu_us = self.cpu_us.saturating_add(us);
    }

    pub(crate) fn note(&mut self, outcome: Outcome) {
        match self.outcomes.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += 1,
            None => self.outcomes.push((outcome, 1)),
        }
    }

    /// How many runs ended in which way, as JSON.
    pub(crate) fn outcomes(&self) -> Map<String, Value> {
        self.outcomes.iter().map(|(outcome, count)| (outcome.as_str().to_owned(), Value::from(*count))).collect()
    }
}

impl Tenant {
    pub(crate) fn new(
        name: TenantName,
        policy: Arc<Policy>,
        standing: Standing,
        name_held: Held,
        now: Instant,
    ) -> Self {
        let account = Mutex::new(Account::new(&policy.quota, now));
        Self {
            name,
            policy: Mutex::new(Kept { policy, _held: None }),
            account,
            home: tokio::sync::Mutex::default(),
            standing: Mutex::new(standing),
            retries_alone: AtomicBool::new(false),
            scripts: Mutex::default(),
            has_policy: AtomicBool::new(false),
            moving: AtomicBool::new(false),
            asked_to_move: AtomicBool::new(false),
            unwritten: AtomicBool::new(false),
            life: OnceLock::new(),
            name_held,
        }
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.lock().unwrap_or_else(PoisonError::into_inner).policy)
    }

    /// Gives it a policy of its own, for which something is held.
    pub(crate) fn set_policy(&self, policy: Policy, held: Held) {
        self.has_policy.store(true, Ordering::Relaxed);
        let kept = Kept { policy: Arc::new(policy), _held: (held.units() > 0).then_some(held) };
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    pub(crate) fn life(&self) -> &Life {
        self.life.get_or_init(Box::default)
    }

    pub(crate) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.life().usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its runs came to, for whoever only looks.
    pub(crate) fn usage_so_far(&self) -> Usage {
        self.life.get().map(|_| self.usage().clone()).unwrap_or_default()
    }

    pub(crate) fn scripts(&self) -> MutexGuard<'_, Scripts> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).in_flight()
    }

    /// What is so of it, whatever it does.
    pub(crate) fn circumstances(&self, outdated_engine: bool) -> Circumstances {
        let trust = self.policy().trust;
        Circumstances { trust, outdated_engine }
    }

    /// A run has ended: it need not be alone for that any more.
    pub(crate) fn note_end(&self) {
        self.retries_alone.store(false, Ordering::SeqCst);
    }

    /// Its run was lost; the next attempt is alone.
    pub(crate) fn retry_alone(&self) {
        self.retries_alone.store(true, Ordering::SeqCst);
    }

    /// It was in a process that died for nobody knows what.
    pub(crate) fn suspect(&self, case: Option<Case>, secs: u64) {
        let until = Instant::now() + Duration::from_secs(secs);
        *self.life().suspicion.lock().unwrap_or_else(PoisonError::into_inner) = Some(Suspicion { case, until });
    }

    /// An operator has lifted everything.
    pub(crate) fn clear_suspicion(&self) {
        if let Some(life) = self.life.get() {
            *life.suspicion.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.note_end();
    }

    /// It is kept from others because of a death that nobody can explain: alone or not, and for how much longer.
    pub(crate) fn kept_apart(&self) -> Option<(bool, Duration)> {
        let suspicion = self.suspicion()?;
        Some((suspicion.case.is_none(), suspicion.until.saturating_duration_since(Instant::now())))
    }

    fn suspicion(&self) -> Option<Suspicion> {
        let mut suspicion = self.life.get()?.suspicion.lock().unwrap_or_else(PoisonError::into_inner);
        if suspicion.is_some_and(|suspicion| suspicion.until <= Instant::now()) {
            *suspicion = None;
        }
        *suspicion
    }

    /// It gets a home while the budget of deaths of that uid is used up.
    pub(crate) fn put_on_probation(&self, uid: u32) {
        *self.life().probation.lock().unwrap_or_else(PoisonError::into_inner) = Some(uid);
    }

    /// The uid whose deaths have to be forgiven before it lives beside others.
    pub(crate) fn on_probation(&self) -> Option<u32> {
        *self.life.get()?.probation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those deaths are forgiven.
    pub(crate) fn end_probation(&self) {
        if let Some(life) = self.life.get() {
            *life.probation.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// How far out it has to live at the moment.
    pub(crate) fn wanted_level(&self) -> Level {
        let alone = self.retries_alone.load(Ordering::SeqCst)
            || self.on_probation().is_some()
            || self.suspicion().is_some_and(|suspicion| suspicion.case.is_none());
        self.standing().level().max(if alone { Level::Solo } else { Level::Shared })
    }

    /// Whom it may be beside.
    pub(crate) fn traits(&self, outdated_engine: bool, rules: &Rules, now: Time) -> Traits {
        let circumstances = self.circumstances(outdated_engine);
        let standing = self.standing();
        let (score, doubtful) = (standing.score(circumstances, rules, now), standing.is_doubtful());
        drop(standing);
        let case = self.suspicion().and_then(|suspicion| suspicion.case);
        let policy = self.policy();
        Traits {
            owner: policy.owner.clone(),
            trust: policy.trust,
            holds_secrets: !policy.secrets.is_empty(),
            watched: score >= rules.watch,
            doubtful,
            case,
            on_probation: self.on_probation().is_some(),
        }
    }

    /// A run has yet to end in a home that it has left.
    pub(crate) fn drains(&self, home: &Arc<Resident>) {
        let mut draining = self.life().draining.lock().unwrap_or_else(PoisonError::into_inner);
        draining.retain(|home| home.strong_count() > 0);
        draining.push(Arc::downgrade(home));
    }

    /// The homes that it has left and that are still there.
    pub(crate) fn take_draining(&self) -> Vec<Arc<Resident>> {
        let Some(life) = self.life.get() else { return Vec::new() };
        let draining = std::mem::take(&mut *life.draining.lock().unwrap_or_else(PoisonError::into_inner));
        draining.iter().filter_map(Weak::upgrade).collect()
    }

    /// It does not live there any more.
    pub(crate) fn has_left(&self, home: &Resident) {
        // Whoever holds the lock looks whether the home is open.
        if let Ok(mut present) = self.home.try_lock()
            && present.as_deref().is_some_and(|present| std::ptr::eq(present, home))
        {
            *present = None;
        }
    }

    /// Whether it has secrets that nobody may be beside.
    pub(crate) fn holds_secrets(&self) -> bool {
        !self.policy().secrets.is_empty()
    }

    /// The number of its next home.
    pub(crate) fn next_token(&self) -> u64 {
        self.life().homes.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether it has to be remembered; if nothing else says so, by how it stands.
    pub(crate) fn is_worth_remembering(&self, standing_is: impl Fn(&Standing) -> bool) -> bool {
        self.has_policy.load(Ordering::Relaxed)
            || self.in_flight() > 0
            || self.moving.load(Ordering::SeqCst)
            || self.home.try_lock().map_or(true, |home| home.as_ref().is_some_and(|home| home.is_open()))
            || !self.scripts().is_empty()
            || self.suspicion().is_some()
            || standing_is(&self.standing())
    }

    /// The uid that its name is charged to.
    pub(crate) fn charged_to(&self) -> u32 {
        self.name_held.uid()
    }

    /// Where it lives now.
    pub(crate) fn residence(&self) -> Option<Arc<Resident>> {
        self.home.try_lock().ok()?.as_ref().filter(|resident| resident.is_open()).cloned()
    }
}
