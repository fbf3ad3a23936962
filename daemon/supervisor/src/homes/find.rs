//! Finds the home that a run goes to.
//!
//! Lock order, outermost first: the daemon's tenants, [`Homes::by_tenant`], [`Residence::current`]
//! (held while a home is made), the pool's entries, a worker's slots, a tenant's own fields. An
//! inner lock is never held while waiting for an outer one.

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

/// How often the runs of a misplaced tenant may ask for its move.
const RUNS_ASK_EVERY: Duration = Duration::from_millis(200);

/// Which tenant lives in which process.
#[derive(Debug)]
pub(crate) struct Homes {
    /// The tenants that live somewhere, or did until just now.
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

    /// The tenant's residence, if it lives anywhere.
    pub(super) fn known(&self, name: &TenantName) -> Option<Arc<Residence>> {
        self.by_tenant().get(name).cloned()
    }

    /// The tenant's residence; a new one for a tenant that lives nowhere.
    fn of(&self, tenant: &Arc<Tenant>) -> Arc<Residence> {
        let mut known = self.by_tenant();
        let residence =
            known.entry(tenant.name.clone()).or_insert_with(|| Arc::new(Residence::new(Arc::clone(tenant))));
        // A stale entry belongs to a forgotten tenant of the same name. Nothing of the entry is
        // needed, or that tenant would not have been forgotten.
        if !Arc::ptr_eq(&residence.tenant, tenant) {
            *residence = Arc::new(Residence::new(Arc::clone(tenant)));
        }
        Arc::clone(residence)
    }

    /// Where a tenant lives now.
    pub(crate) fn current_home(&self, name: &TenantName) -> Option<Arc<Home>> {
        self.known(name)?.current_home()
    }

    /// Drops a tenant's residence if the tenant lives nowhere and no run or move is about to give
    /// it a home. Returns whether the tenant now has no residence.
    pub(crate) fn forget(&self, name: &TenantName) -> bool {
        let mut known = self.by_tenant();
        let Some(residence) = known.get(name) else { return true };
        // References are only handed out under this lock, so the count cannot grow here.
        let needed = Arc::strong_count(residence) > 1 || residence.is_needed();
        if !needed {
            known.remove(name);
        }
        !needed
    }

    /// Returns the tenant's home, and makes one if the tenant has none or has lost it. A tenant
    /// that is too far in, or whose process is old, is moved in the background (`rehome`) while its
    /// runs continue. Only a tenant with secrets that must not stay among its neighbours gets a new
    /// home before this run.
    ///
    /// If there is no room, the run waits until `until` in the cases that [`Pool::admit`] gives.
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
            // Secrets never go to a process with a tenant that they must be kept from.
            if tenant.holds_secrets()
                && let Some(old) = current.take_if(|old| self.pool.is_among_others(tenant, old))
            {
                self.drain_home(residence, old, true);
            }
            if let Some(visit) = current.as_ref().and_then(Home::visit) {
                // Other moves can wait for the next round of housekeeping: a move inward, or a move
                // for the tenant's own protection.
                let leaves = tenant.needs().is_too_far_in(visit.worker.level) || self.is_old(&visit.worker);
                if leaves && residence.runs_may_ask(RUNS_ASK_EVERY) {
                    self.warden.ask_for_move(tenant);
                }
                return Ok(visit);
            }
            // Where the tenant lives next depends on the verdict on the end of its process.
            if let Some(lost) = current.take_if(|old| old.is_lost()) {
                lost.worker.death().await;
                continue;
            }
            *current = None;
            let level = self.level_of_new_home(tenant, job.in_flight.uid);
            let memory_mb = job.run.limits.memory_mb.min(self.limits_at(tenant, level).memory_mb);
            // A run does not wait for a single-tenant home that its tenant needs only because of
            // deaths that other tenants caused.
            let own_doing = tenant.on_probation().is_none() || tenant.standing().level().is_alone();
            let patience = if own_doing { until } else { Instant::now() };
            let admitted = match self.pool.admit(residence, level, memory_mb, job.in_flight.uid, patience).await {
                // The tenant was to live alone for its own protection, or because of what others
                // did: it is not refused for that.
                Err(AdmitError::Full(_) | AdmitError::FullAlone(_))
                    if level.is_alone() && tenant.standing().level() == Level::Shared =>
                {
                    self.pool.admit(residence, Level::Shared, memory_mb, job.in_flight.uid, until).await
                }
                admitted => admitted,
            };
            match admitted {
                Ok(admitted) => *current = Some(admitted),
                // The tenant was expelled while it waited for room; the next iteration reports
                // that.
                Err(_) if tenant.wanted_level() == Level::Expelled => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The level of a tenant's next home, if that home counts against the uid's share. While the
    /// uid's budget of deaths is used up, this puts the tenant on probation.
    ///
    /// On probation a tenant lives alone, even if it has done nothing: the tenant that causes the
    /// next death is known only afterwards, and only a tenant without neighbours is safe from it. A
    /// tenant that already shares a process stays there. If there is no room for single-tenant
    /// homes, tenants on probation share with each other, but not with other tenants: no tenant may
    /// be refused because of what another did.
    pub(crate) fn level_of_new_home(&self, tenant: &Tenant, uid: u32) -> Level {
        if self.warden.has_used_up(uid) {
            tenant.put_on_probation(uid);
        }
        tenant.wanted_level()
    }

    /// What a tenant's runs may use at that level: for each limit, the lower of the policy's and
    /// the level's.
    pub(crate) fn limits_at(&self, tenant: &Tenant, level: Level) -> Limits {
        let limits = tenant.policy().limits;
        if level == Level::Sealed { self.cordon.sealed.lower(limits) } else { limits }
    }

    /// A home, as decisions on moves see it.
    pub(super) fn facts_of(&self, tenant: &Tenant, home: &Home) -> HomeFacts {
        HomeFacts {
            level: home.worker.level,
            is_old: self.is_old(&home.worker),
            is_unwanted: home.worker.is_unwanted(home.slot),
            among_others: self.pool.is_among_others(tenant, home),
        }
    }

    /// Old processes are left because what an attacker has learnt about a process's memory is
    /// worthless in the next one.
    pub(crate) fn is_old(&self, worker: &Worker) -> bool {
        worker.started_at.elapsed() >= self.max_age
    }
}
