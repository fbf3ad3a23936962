//! One tenant, as the daemon knows it: its policy, its quota, its scripts, and its standing.
//!
//! The daemon may know a hundred thousand tenants, most of which have done next to nothing, so each
//! is small. Suspicion and probation, which few tenants need, are allocated when they begin, and
//! dropped once the tenant has no home and is not suspected ([`Life`]). The usage of a tenant's
//! runs is kept, and is small ([`Usage`]). Equal policies share one allocation.

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

/// How many moves are remembered of a tenant without a home and without a policy of its own.
const MOVES_OF_ABSENT: usize = 2;

/// One tenant that the daemon knows, from a request or from its records.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: TenantName,
    policy: Mutex<Kept>,
    pub(crate) account: Mutex<Account>,
    standing: Mutex<Standing>,
    /// A run of this tenant was lost with its worker. Until a run ends, the tenant lives alone, so
    /// that a repeat takes no other tenant's run with it.
    retries_alone: AtomicBool,
    scripts: Mutex<Scripts>,
    /// Whether an operator has set its policy.
    pub(crate) has_policy: AtomicBool,
    /// Whether its standing has changed since it was last recorded.
    pub(crate) unwritten: AtomicBool,
    /// `None` until it has run something.
    usage: OnceLock<Box<Mutex<Usage>>>,
    /// `None` if it is neither suspected nor on probation.
    life: Mutex<Option<Box<Life>>>,
    /// Its share of the supply of names.
    name_held: Held,
}

/// A policy, and the charge for it if it contains names.
#[derive(Debug)]
struct Kept {
    policy: Arc<Policy>,
    _held: Option<Box<Held>>,
}

/// Why a tenant is kept apart for a while: a suspicion or probation.
#[derive(Debug, Default)]
struct Life {
    /// Set after an unattributed death in the tenant's process, and for the tenant that held most
    /// of its memory.
    suspicion: Option<Suspicion>,
    /// The tenant's home was made while this uid's budget of deaths was used up. Until all those
    /// deaths are forgiven, the tenant lives alone, or with others on probation.
    probation: Option<u32>,
}

/// A tenant that may not run.
#[derive(Debug, thiserror::Error)]
#[error(
    "tenant {tenant} is expelled and may not run: {why}; an operator lifts that with \
     `enisle cordon {tenant} --lift --reason …` (DELETE /v1/tenants/{tenant}/cordon?reason=…)"
)]
pub(crate) struct Expelled {
    pub(crate) tenant: TenantName,
    why: String,
}

/// How long a suspicion lasts, and which other suspects the tenant may share a process with
/// meanwhile: none (`None`), or those of its half.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    case: Option<Case>,
    until: Instant,
}

/// A tenant that is kept apart: whether alone, and for how much longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apart {
    pub(crate) alone: bool,
    pub(crate) left: Duration,
}

impl Life {
    fn is_suspected(&self) -> bool {
        self.suspicion.is_some_and(|suspicion| suspicion.until > Instant::now())
    }
}

/// What a tenant's runs have used since the daemon started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// How often a run was sent to a worker; restarts count again.
    pub(crate) begun: u64,
    /// Ends that came from a home that the tenant had left, and were discarded.
    pub(crate) fenced: u64,
    pub(crate) cpu_us: u64,
    /// How many homes the tenant has had.
    homes: u64,
    /// Runs that have ended, each counted once, by outcome in the order of [`Outcome::ALL`].
    ended: [u32; Outcome::ALL.len()],
}

impl Usage {
    pub(crate) fn add_cpu(&mut self, us: u64) {
        self.cpu_us = self.cpu_us.saturating_add(us);
    }

    pub(crate) fn note(&mut self, outcome: Outcome) {
        let index = Outcome::ALL.iter().position(|known| *known == outcome);
        if let Some(count) = index.and_then(|index| self.ended.get_mut(index)) {
            *count = count.saturating_add(1);
        }
    }

    /// Runs that have ended.
    pub(crate) fn runs(&self) -> u64 {
        self.ended.iter().copied().map(u64::from).sum()
    }

    /// The number of runs by outcome.
    pub(crate) fn outcomes(&self) -> BTreeMap<Outcome, u64> {
        let ended = Outcome::ALL.into_iter().zip(self.ended.map(u64::from));
        ended.filter(|(_, count)| *count > 0).collect()
    }
}

impl Tenant {
    /// Whether the tenant may run at all.
    pub(crate) fn may_run(&self) -> Result<(), Expelled> {
        if self.wanted_level() == Level::Expelled {
            return Err(Expelled { tenant: self.name.clone(), why: self.why_expelled() });
        }
        Ok(())
    }

    /// Why it is expelled, according to its last move.
    fn why_expelled(&self) -> String {
        let standing = self.standing();
        let reasons = standing.history().last().map(|past| past.reasons.as_slice()).unwrap_or_default();
        let in_words = |reason: &Reason| match reason {
            Reason::Order { reason, by_uid } => Some(format!("ordered by uid {by_uid} ({reason})")),
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

    /// Gives the tenant a policy of its own, with what is charged for it.
    pub(crate) fn set_policy(&self, policy: Policy, held: Held) {
        self.has_policy.store(true, Ordering::Relaxed);
        let kept = Kept { policy: Arc::new(policy), _held: (held.units() > 0).then(|| Box::new(held)) };
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    fn life(&self) -> MutexGuard<'_, Option<Box<Life>>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only for a tenant without a home. Drops its [`Life`], unless it is still suspected, and all
    /// but its last moves, unless an operator has set its policy. The audit log has all moves.
    pub(crate) fn tidy(&self) {
        if !self.has_policy.load(Ordering::Relaxed) {
            self.standing().forget_moves_but(MOVES_OF_ABSENT);
        }
        self.life().take_if(|life| !life.is_suspected());
    }

    pub(crate) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.get_or_init(Box::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what its runs have used, without allocating if it has run nothing.
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

    /// Facts that count for or against the tenant, whatever it does.
    pub(crate) fn circumstances(&self, outdated_engine: bool) -> Circumstances {
        let trust = self.policy().trust;
        Circumstances { trust, outdated_engine }
    }

    /// A run has ended: the tenant no longer needs to be alone because of a lost run.
    pub(crate) fn note_end(&self) {
        self.retries_alone.store(false, Ordering::SeqCst);
    }

    /// A run was lost; its next attempt is alone.
    pub(crate) fn retry_alone(&self) {
        self.retries_alone.store(true, Ordering::SeqCst);
    }

    /// Keeps the tenant apart for this long: with the suspects of its half, or alone if there is no
    /// `case`.
    pub(crate) fn suspect(&self, case: Option<Case>, secs: u64) {
        let until = Instant::now() + Duration::from_secs(secs);
        self.life().get_or_insert_default().suspicion = Some(Suspicion { case, until });
    }

    /// An operator has forgiven everything.
    pub(crate) fn clear_suspicion(&self) {
        if let Some(life) = self.life().as_deref_mut() {
            life.suspicion = None;
        }
        self.note_end();
    }

    /// Whether the tenant is kept apart as a suspect.
    pub(crate) fn kept_apart(&self) -> Option<Apart> {
        let suspicion = self.suspicion()?;
        let left = suspicion.until.saturating_duration_since(Instant::now());
        Some(Apart { alone: suspicion.case.is_none(), left })
    }

    fn suspicion(&self) -> Option<Suspicion> {
        self.life().as_deref().filter(|life| life.is_suspected()).and_then(|life| life.suspicion)
    }

    /// The tenant gets a home while the budget of deaths of that uid is used up.
    pub(crate) fn put_on_probation(&self, uid: u32) {
        self.life().get_or_insert_default().probation = Some(uid);
    }

    /// The uid whose deaths must be forgiven before the tenant may share a process with tenants
    /// outside probation.
    pub(crate) fn on_probation(&self) -> Option<u32> {
        self.life().as_deref()?.probation
    }

    /// The deaths for which the tenant is on probation are forgiven.
    pub(crate) fn end_probation(&self) {
        if let Some(life) = self.life().as_deref_mut() {
            life.probation = None;
        }
    }

    /// The level at which the tenant must live at the moment.
    pub(crate) fn wanted_level(&self) -> Level {
        let alone = self.retries_alone.load(Ordering::SeqCst)
            || self.on_probation().is_some()
            || self.suspicion().is_some_and(|suspicion| suspicion.case.is_none());
        self.standing().level().max(if alone { Level::Solo } else { Level::Shared })
    }

    /// The level that the standing demands, and the level that everything together demands.
    pub(crate) fn needs(&self) -> Needs {
        // This is a statement of its own, because `wanted_level` takes the same lock.
        let standing = self.standing().level();
        Needs { standing, wanted: self.wanted_level() }
    }

    /// The traits that decide which tenants may share a process with this one.
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

    /// Whether it has secrets, which must not be in a process with tenants of other owners.
    pub(crate) fn holds_secrets(&self) -> bool {
        !self.policy().secrets.is_empty()
    }

    /// The number of its next home.
    pub(crate) fn next_token(&self) -> u64 {
        let mut usage = self.usage();
        usage.homes += 1;
        usage.homes
    }

    /// Whether nothing is known of the tenant that must be remembered. Does not check its homes.
    pub(crate) fn may_be_forgotten(&self, rules: &Rules, now: Time) -> bool {
        !self.has_policy.load(Ordering::Relaxed)
            && self.in_flight() == 0
            && self.scripts().is_empty()
            && self.suspicion().is_none()
            && self.standing().is_slight(rules, now)
    }

    /// The uid that is charged for the tenant's name.
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
    fn probation_is_dropped_with_the_last_home_and_what_the_runs_used_is_kept() {
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
    fn a_suspect_needs_a_process_of_its_own_and_its_standing_stays_shared() {
        let tenant = tenant();
        tenant.suspect(None, 60);
        assert_eq!(tenant.needs(), Needs { standing: Level::Shared, wanted: Level::Solo });
    }

    #[test]
    fn a_suspicion_outlives_the_last_home_until_it_is_over() {
        let tenant = tenant();
        tenant.suspect(None, 60);
        tenant.tidy();
        assert!(tenant.kept_apart().is_some_and(|apart| apart.alone));
        tenant.suspect(None, 0);
        assert!(tenant.kept_apart().is_none());
        tenant.tidy();
        assert!(tenant.life().is_none());
    }

    /// With a hundred thousand tenants, all of which have run something, each byte costs 100 KB.
    #[test]
    fn a_tenant_that_lives_nowhere_is_small() {
        assert!(size_of::<Tenant>() <= 336, "{}", size_of::<Tenant>());
        assert!(size_of::<Mutex<Usage>>() <= 88, "{}", size_of::<Mutex<Usage>>());
    }
}
