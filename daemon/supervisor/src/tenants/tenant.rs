//! One tenant, as the daemon knows it: its policy, what it may start, and how it stands.
//!
//! A hundred thousand tenants may be known of whom each has done next to nothing. What only one
//! that lives somewhere needs is made then, and goes with its last home ([`Life`]); what its runs
//! came to stays, and is small ([`Usage`]). A policy is shared by all that have the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::moving::Needs;
use enisle_cordon::{Case, Circumstances, Level, Reason, Rules, Standing, Time, Traits};
use enisle_wire::Outcome;

use crate::share::Held;
use crate::tenants::policy::{Policy, TenantName};
use crate::tenants::quota::Account;
use crate::tenants::scripts::Scripts;

/// Moves that are remembered of a tenant that lives nowhere and has no policy.
const MOVES_OF_ABSENT: usize = 2;

/// One tenant, known to the daemon since it started, or for longer.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: TenantName,
    policy: Mutex<Kept>,
    pub(crate) account: Mutex<Account>,
    standing: Mutex<Standing>,
    /// A run of its was lost with its worker: until a run ends, it lives alone, so that it takes nobody with it.
    retries_alone: AtomicBool,
    scripts: Mutex<Scripts>,
    /// An operator has set its policy.
    pub(crate) has_policy: AtomicBool,
    /// How it stands has changed since it was written down.
    pub(crate) unwritten: AtomicBool,
    /// None until it has run something.
    usage: OnceLock<Box<Mutex<Usage>>>,
    /// None where it lives nowhere and is not suspected of anything.
    life: Mutex<Option<Box<Life>>>,
    /// Its part of the names that there may be.
    name_held: Held,
}

/// A policy, and what is held for it if it is more than a few numbers.
#[derive(Debug)]
struct Kept {
    policy: Arc<Policy>,
    _held: Option<Box<Held>>,
}

/// What there is of a tenant as long as it lives somewhere, or did until just now.
#[derive(Debug, Default)]
struct Life {
    /// It was in a process that died, and nobody knows whose doing it was.
    suspicion: Option<Suspicion>,
    /// Its home was begun while this uid's budget of deaths was used up. It lives alone until all
    /// of them are forgiven.
    probation: Option<u32>,
}

/// A tenant that is not run any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "tenant {tenant} is expelled and not run any more: {why}; an operator lifts that with \
     `enisle cordon {tenant} --lift --reason …` (DELETE /v1/tenants/{tenant}/cordon?reason=…)"
)]
pub(crate) struct Expelled {
    pub(crate) tenant: TenantName,
    why: String,
}

/// For how long, and with whom of the others it may be meanwhile: with nobody (`None`), or with those of its half.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    case: Option<Case>,
    until: Instant,
}

impl Life {
    fn is_suspected(&self) -> bool {
        self.suspicion.is_some_and(|suspicion| suspicion.until > Instant::now())
    }
}

/// What a tenant's runs came to since the daemon started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// Runs that went out to a worker, each time that they did.
    pub(crate) begun: u64,
    /// Ends that came from a home that the tenant had left: discarded.
    pub(crate) fenced: u64,
    pub(crate) cpu_us: u64,
    /// How many homes it has had.
    homes: u64,
    /// Runs that have ended, each counted once, by outcome in the order of [`Outcome::ALL`].
    ended: [u32; Outcome::ALL.len()],
}

impl Usage {
    pub(crate) fn add_cpu(&mut self, us: u64) {
        self.cpu_us = self.cpu_us.saturating_add(us);
    }

    pub(crate) fn note(&mut self, outcome: Outcome) {
        let place = Outcome::ALL.iter().position(|known| *known == outcome);
        if let Some(count) = place.and_then(|place| self.ended.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// Runs that have ended.
    pub(crate) fn runs(&self) -> u64 {
        self.ended.iter().copied().map(u64::from).sum()
    }

    /// How many runs ended in which way.
    pub(crate) fn outcomes(&self) -> BTreeMap<Outcome, u64> {
        let ended = Outcome::ALL.into_iter().zip(self.ended.map(u64::from));
        ended.filter(|(_, count)| *count > 0).collect()
    }
}

impl Tenant {
    /// Whether it may be run at all.
    pub(crate) fn may_run(&self) -> Result<(), Expelled> {
        if self.wanted_level() == Level::Expelled {
            return Err(Expelled { tenant: self.name.clone(), why: self.why_expelled() });
        }
        Ok(())
    }

    /// Why it is expelled, from the last thing that was decided about it.
    fn why_expelled(&self) -> String {
        let standing = self.standing();
        let reasons = standing.history().last().map(|past| past.reasons.as_slice()).unwrap_or_default();
        let in_words = |reason: &Reason| match reason {
            Reason::Order { reason, by_uid } => Some(format!("uid {by_uid} said so ({reason})")),
            Reason::Score { score, threshold } => Some(format!("its score reached {score:.0} of {threshold:.0}")),
            Reason::Signal { signal, count, .. } => Some(format!("{signal:?} {count} times")),
            Reason::Suspected { .. } | Reason::Lifted { .. } | Reason::Clean { .. } | Reason::Unsuspected => None,
        };
        reasons.iter().filter_map(in_words).collect::<Vec<_>>().join(", ")
    }

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
            standing: Mutex::new(standing),
            retries_alone: AtomicBool::new(false),
            scripts: Mutex::default(),
            has_policy: AtomicBool::new(false),
            unwritten: AtomicBool::new(false),
            usage: OnceLock::new(),
            life: Mutex::default(),
            name_held,
        }
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.lock().unwrap_or_else(PoisonError::into_inner).policy)
    }

    /// Gives it a policy of its own, for which something is held.
    pub(crate) fn set_policy(&self, policy: Policy, held: Held) {
        self.has_policy.store(true, Ordering::Relaxed);
        let kept = Kept { policy: Arc::new(policy), _held: (held.units() > 0).then(|| Box::new(held)) };
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    fn life(&self) -> MutexGuard<'_, Option<Box<Life>>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what only one needs that lives somewhere; of its history, if no operator has given
    /// it a policy, all but its last moves, which the audit log has. To be called where it lives
    /// nowhere.
    pub(crate) fn tidy(&self) {
        if !self.has_policy.load(Ordering::Relaxed) {
            self.standing().forget_moves_but(MOVES_OF_ABSENT);
        }
        self.life().take_if(|life| !life.is_suspected());
    }

    pub(crate) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.get_or_init(Box::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its runs came to, for whoever only looks.
    pub(crate) fn usage_so_far(&self) -> Usage {
        self.usage.get().map(|_| self.usage().clone()).unwrap_or_default()
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
        self.life().get_or_insert_default().suspicion = Some(Suspicion { case, until });
    }

    /// An operator has lifted everything.
    pub(crate) fn clear_suspicion(&self) {
        if let Some(life) = self.life().as_deref_mut() {
            life.suspicion = None;
        }
        self.note_end();
    }

    /// It is kept from others because of a death that nobody can explain: alone or not, and for how much longer.
    pub(crate) fn kept_apart(&self) -> Option<(bool, Duration)> {
        let suspicion = self.suspicion()?;
        Some((suspicion.case.is_none(), suspicion.until.saturating_duration_since(Instant::now())))
    }

    fn suspicion(&self) -> Option<Suspicion> {
        self.life().as_deref().filter(|life| life.is_suspected()).and_then(|life| life.suspicion)
    }

    /// It gets a home while the budget of deaths of that uid is used up.
    pub(crate) fn put_on_probation(&self, uid: u32) {
        self.life().get_or_insert_default().probation = Some(uid);
    }

    /// The uid whose deaths have to be forgiven before it lives beside others.
    pub(crate) fn on_probation(&self) -> Option<u32> {
        self.life().as_deref()?.probation
    }

    /// Those deaths are forgiven.
    pub(crate) fn end_probation(&self) {
        if let Some(life) = self.life().as_deref_mut() {
            life.probation = None;
        }
    }

    /// How far out it has to live at the moment.
    pub(crate) fn wanted_level(&self) -> Level {
        let alone = self.retries_alone.load(Ordering::SeqCst)
            || self.on_probation().is_some()
            || self.suspicion().is_some_and(|suspicion| suspicion.case.is_none());
        self.standing().level().max(if alone { Level::Solo } else { Level::Shared })
    }

    /// How far out it has to live, and why.
    pub(crate) fn needs(&self) -> Needs {
        Needs { standing: self.standing().level(), wanted: self.wanted_level() }
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

    /// Whether it has secrets that nobody may be beside.
    pub(crate) fn holds_secrets(&self) -> bool {
        !self.policy().secrets.is_empty()
    }

    /// The number of its next home.
    pub(crate) fn next_token(&self) -> u64 {
        let mut usage = self.usage();
        usage.homes += 1;
        usage.homes
    }

    /// Whether it has to be remembered, wherever it lives; if nothing else says so, by how it
    /// stands.
    pub(crate) fn is_worth_remembering(&self, standing_is: impl Fn(&Standing) -> bool) -> bool {
        self.has_policy.load(Ordering::Relaxed)
            || self.in_flight() > 0
            || !self.scripts().is_empty()
            || self.suspicion().is_some()
            || standing_is(&self.standing())
    }

    /// The uid that its name is charged to.
    pub(crate) fn charged_to(&self) -> u32 {
        self.name_held.uid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::{Parts, Supply};

    fn tenant() -> Tenant {
        let held = Supply::new("names", 1, Parts::halves()).take(5, 1).unwrap();
        Tenant::new("t".parse().unwrap(), Arc::default(), Standing::new(Time(1)), held, Instant::now())
    }

    #[test]
    fn what_a_life_needs_goes_with_it_and_what_the_runs_came_to_stays() {
        let tenant = tenant();
        assert_eq!((tenant.next_token(), tenant.next_token()), (1, 2));
        tenant.usage().note(Outcome::Violation);
        tenant.usage().note(Outcome::Ok);
        tenant.put_on_probation(5);
        assert_eq!(tenant.on_probation(), Some(5));
        tenant.tidy();
        assert!(tenant.life().is_none());
        assert_eq!((tenant.usage_so_far().runs(), tenant.next_token()), (2, 3));
        assert_eq!(tenant.usage_so_far().outcomes(), BTreeMap::from([(Outcome::Ok, 1), (Outcome::Violation, 1)]));
    }

    #[test]
    fn a_suspicion_outlives_the_last_home_until_it_is_over() {
        let tenant = tenant();
        tenant.suspect(None, 60);
        tenant.tidy();
        assert!(tenant.kept_apart().is_some_and(|(alone, _)| alone));
        tenant.suspect(None, 0);
        assert!(tenant.kept_apart().is_none());
        tenant.tidy();
        assert!(tenant.life().is_none());
    }

    /// Of a hundred thousand, all of whom have run something, each byte is 100 KB.
    #[test]
    fn a_tenant_that_lives_nowhere_is_small() {
        assert!(size_of::<Tenant>() <= 336, "{}", size_of::<Tenant>());
        assert!(size_of::<Mutex<Usage>>() <= 88, "{}", size_of::<Mutex<Usage>>());
    }
}
