//! The home that a run goes to.
//!
//! Locks, the outer one first: the daemon's tenants, [`Homes::by_tenant`], [`Residence::current`] (held
//! while a home is made), the pool's entries, what a worker has of its places, what a tenant has of
//! itself. Inner ones are never held while an outer one is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::Level;
use enisle_cordon::moving::HomeFacts;
use enisle_wire::limits::Limits;

use crate::config::{Config, Cordon};
use crate::cordons::warden::Warden;
use crate::events::Events;
use crate::homes::home::{Home, Visit};
use crate::homes::job::Job;
use crate::homes::pool::{AdmitError, Pool};
use crate::homes::residence::Residence;
use crate::tenants::policy::TenantName;
use crate::tenants::tenant::Tenant;
use crate::workers::process::Worker;

/// How often the runs of a tenant that lives where it should not ask for its move.
const RUNS_ASK_EVERY: Duration = Duration::from_millis(200);

/// Which tenant is in which process.
#[derive(Debug)]
pub(crate) struct Homes {
    /// Of those tenants that live anywhere, or did until just now.
    by_tenant: Mutex<HashMap<TenantName, Arc<Residence>>>,
    pub(crate) pool: Pool,
    pub(super) warden: Arc<Warden>,
    pub(super) events: Arc<Events>,
    pub(super) cordon: Cordon,
    max_age: Duration,
}

impl Homes {
    pub(crate) fn new(config: &Config, pool: Pool, warden: Arc<Warden>) -> Self {
        Self {
            by_tenant: Mutex::default(),
            pool,
            events: Arc::clone(&warden.events),
            warden,
            cordon: config.cordon.clone(),
            max_age: Duration::from_secs(config.workers.max_age_secs),
        }
    }

    fn by_tenant(&self) -> MutexGuard<'_, HashMap<TenantName, Arc<Residence>>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of where a tenant lives, if it lives anywhere.
    pub(super) fn known(&self, name: &TenantName) -> Option<Arc<Residence>> {
        self.by_tenant().get(name).cloned()
    }

    /// The same, from now on for one that lives nowhere.
    fn of(&self, tenant: &Arc<Tenant>) -> Arc<Residence> {
        let mut known = self.by_tenant();
        let residence =
            known.entry(tenant.name.clone()).or_insert_with(|| Arc::new(Residence::new(Arc::clone(tenant))));
        // Of one that was forgotten and has the same name nothing is needed, or it would not have
        // been.
        if !Arc::ptr_eq(&residence.tenant, tenant) {
            *residence = Arc::new(Residence::new(Arc::clone(tenant)));
        }
        Arc::clone(residence)
    }

    /// Where a tenant lives now.
    pub(crate) fn current_home(&self, name: &TenantName) -> Option<Arc<Home>> {
        self.known(name)?.current_home()
    }

    /// Forgets where a tenant lived, if it lives nowhere and nobody is about to change that.
    /// Whether nothing is known of it now.
    pub(crate) fn forget(&self, name: &TenantName) -> bool {
        let mut known = self.by_tenant();
        let Some(residence) = known.get(name) else { return true };
        // Whoever gets one does so under the lock.
        let needed = Arc::strong_count(residence) > 1 || residence.is_needed();
        if !needed {
            known.remove(name);
        }
        !needed
    }

    /// The tenant's home; a new one if it has none, has lost it, or its process is old. Where it
    /// has to live elsewhere, it is moved meanwhile (`rehome`); only one that must not be beside
    /// others waits for that.
    ///
    /// Where there is no room for one that has to live alone, or that is leaving a home in which a
    /// run has yet to end, it waits `until` then.
    pub(crate) async fn find(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        job: &Job,
        until: Instant,
    ) -> Result<Visit, AdmitError> {
        let residence = &self.of(tenant);
        let mut current = residence.current.lock().await;
        loop {
            tenant.may_run()?;
            // Secrets are nowhere where somebody else is whom they are not for.
            if tenant.holds_secrets()
                && let Some(old) = current.take_if(|old| self.pool.is_among_others(tenant, old))
            {
                self.drain_home(residence, old, true);
            }
            if let Some(visit) = current.as_ref().and_then(Home::visit) {
                // Further in there is time, and whoever is alone for its own sake need not be.
                let leaves = tenant.needs().is_too_far_in(visit.worker.level) || self.is_old(&visit.worker);
                if leaves && residence.runs_may_ask(RUNS_ASK_EVERY) {
                    self.warden.ask_for_move(tenant);
                }
                return Ok(visit);
            }
            *current = None;
            let level = self.level_of_new_home(tenant, job.in_flight.uid);
            let memory_mb = job.run.limits.memory_mb.min(self.limits_at(tenant, level).memory_mb);
            // A home alone that is nothing but others' doing is not waited for.
            let own_doing = tenant.on_probation().is_none() || tenant.standing().level().is_alone();
            let patience = if own_doing { until } else { Instant::now() };
            let admitted = match self.pool.admit(residence, level, memory_mb, job.in_flight.uid, patience).await {
                // That it lives alone was for its own sake, or is not its own doing: it is not
                // refused for that.
                Err(AdmitError::Full(_) | AdmitError::FullAlone(_))
                    if level.is_alone() && tenant.standing().level() == Level::Shared =>
                {
                    self.pool.admit(residence, Level::Shared, memory_mb, job.in_flight.uid, until).await
                }
                admitted => admitted,
            };
            match admitted {
                Ok(admitted) => *current = Some(admitted),
                // It was expelled while it waited for room; the next look says so.
                Err(_) if tenant.wanted_level() == Level::Expelled => {}
                Err(error) => return Err(error),
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
        let limits = tenant.policy().limits;
        if level == Level::Sealed { self.cordon.sealed.lower(limits) } else { limits }
    }

    /// A home, for who decides whether its tenant moves.
    pub(super) fn facts_of(&self, tenant: &Tenant, home: &Home) -> HomeFacts {
        HomeFacts {
            level: home.worker.level,
            is_old: self.is_old(&home.worker),
            is_unwanted: home.worker.is_unwanted(home.slot),
            among_others: self.pool.is_among_others(tenant, home),
        }
    }

    /// What an attacker has learnt of a process's memory is worth nothing in the next one.
    pub(crate) fn is_old(&self, worker: &Worker) -> bool {
        worker.started_at.elapsed() >= self.max_age
    }
}
