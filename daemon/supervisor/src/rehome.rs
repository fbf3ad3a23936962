//! Moving a tenant while its runs go on.
//!
//! ```text
//! new home: started ─▶ verified, locked down, warm ─▶ runs go there ─────────────────────────▶
//! old home: ─────────────── runs go there ──────────▶ drains ─▶ (too long: fenced, ended) ─▶ gone
//! ```
//!
//! No request is in two homes: one that waits in the old home goes to the new one, one that has begun ends where it is. If that
//! takes too long, the old home is fenced: whatever still comes from it is discarded ([`Tenant::accepts`]), and the run begins
//! again in the new home.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use enisle_cordon::Level;

use crate::daemon::Daemon;
use crate::events::What;
use crate::resident::Resident;
use crate::tenant::Tenant;

impl Daemon {
    /// Puts a tenant where it has to live, if it lives anywhere else; once at a time for each tenant.
    pub(crate) async fn rehome(self: &Arc<Self>, tenant: &Arc<Tenant>) {
        while !tenant.moving.swap(true, Ordering::SeqCst) {
            let moved = self.move_once(tenant).await;
            tenant.moving.store(false, Ordering::SeqCst);
            // It may have had to go further meanwhile, and whoever said so found it moving.
            let home = tenant.home.lock().await.clone().filter(|home| home.is_open());
            if !moved || !self.is_misplaced(tenant, home) {
                return;
            }
        }
    }

    /// False if it is where it has to be, or there is no room.
    async fn move_once(self: &Arc<Self>, tenant: &Arc<Tenant>) -> bool {
        let old = tenant.home.lock().await.clone();
        let to = tenant.wanted_level();
        if to == Level::Expelled {
            let Some(old) = tenant.home.lock().await.take() else { return false };
            self.abandon(tenant, &old, "it is expelled");
            return true;
        }
        let alive = old.as_ref().filter(|old| old.is_open());
        if alive.is_some_and(|old| !self.is_misplaced(tenant, Some(Arc::clone(old))))
            || (alive.is_none() && (old.is_none() || to == Level::Shared))
        {
            return false;
        }
        let memory_mb = self.limits_at(tenant, to).memory_mb;
        let admitted = self.pool.admit(tenant, to, memory_mb).await;
        let new = match admitted {
            Ok(new) => new,
            Err(error) => {
                let (tenant_name, level, reason) = (tenant.name.to_string(), to.as_str(), error.to_string());
                self.events.tell(What::NoRoom { tenant: tenant_name, level, reason });
                // Inward there is time; outward it must not stay where it is.
                if let Some(old) = old.filter(|old| old.worker.level < to) {
                    self.leave_home(tenant, &old).await;
                    self.drain_home(tenant, &old).await;
                }
                return false;
            }
        };
        if !new.is_ready().await {
            // It died on the way; the next run, or the next round, tries again.
            self.pool.bury_dead();
            return false;
        }
        {
            let mut home = tenant.home.lock().await;
            // Somebody has given it another home meanwhile, because the old one was lost.
            let same = match (&*home, &old) {
                (Some(now), Some(old)) => Arc::ptr_eq(now, old),
                (None, None) => true,
                _ => false,
            };
            if !same || tenant.wanted_level() > to {
                drop(home);
                if new.close() {
                    self.pool.leave(&new, "it was not needed");
                }
                return true;
            }
            *home = Some(Arc::clone(&new));
        }
        let (worker, token) = (new.worker.id, new.token);
        self.events.tell(What::Rehomed { tenant: tenant.name.to_string(), worker, level: to.as_str(), token });
        if let Some(old) = old.filter(|old| old.is_open()) {
            old.leave();
            self.drain_home(tenant, &old).await;
        }
        true
    }

    /// Lets no run go there any more.
    async fn leave_home(&self, tenant: &Tenant, old: &Arc<Resident>) {
        let mut home = tenant.home.lock().await;
        if home.as_ref().is_some_and(|home| Arc::ptr_eq(home, old)) {
            *home = None;
        }
        old.leave();
    }

    /// Waits for the run that is under way in the old home, for a bounded time; then fences and ends it.
    async fn drain_home(&self, tenant: &Tenant, old: &Arc<Resident>) {
        let (begun, patience) = (Instant::now(), Duration::from_secs(self.config.cordon.drain_secs));
        let drained = tokio::time::timeout(patience, old.close_when_unused()).await.is_ok();
        if drained {
            tenant.fence(old.token + 1);
            self.pool.leave(old, "it lives elsewhere now");
        } else {
            self.abandon(tenant, old, "it lives elsewhere now");
        }
        let (worker, ms) = (old.worker.id, begun.elapsed().as_millis());
        let ms = u64::try_from(ms).unwrap_or(u64::MAX);
        self.events.tell(What::Drained { tenant: tenant.name.to_string(), worker, fenced: !drained, ms });
    }

    /// Ends a home at once: nothing is taken from it any more, and what runs there is ended.
    fn abandon(&self, tenant: &Tenant, old: &Arc<Resident>, reason: &'static str) {
        tenant.fence(old.token + 1);
        old.worker.retire(old.slot);
        self.pool.leave(old, reason);
    }
}
