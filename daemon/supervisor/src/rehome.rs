//! Moving a tenant while its runs go on.
//!
//! ```text
//! new home: started ─▶ verified, locked down, warm ─▶ runs go there ─────────────────────────▶
//! old home: ─────────────── runs go there ──────────▶ drains ─▶ (too long: fenced, ended) ─▶ gone
//! ```
//!
//! No request is in two homes: one that waits in the old home goes to the new one, one that has begun ends where it is. If that
//! takes too long on the way out, the old home is fenced: whatever still comes from it is discarded ([`Resident::is_fenced`]), and
//! the run begins again in the new home. On the way in there is time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use enisle_cordon::Level;

use crate::birth::START_TIMEOUT;
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
        let alive = old.as_ref().filter(|old| old.is_open());
        if to == Level::Expelled {
            let present = tenant.home.lock().await.take();
            let homes: Vec<_> = tenant.take_draining().into_iter().chain(present).collect();
            homes.iter().for_each(|home| self.abandon(home, "it is expelled"));
            return !homes.is_empty();
        }
        if alive.is_some_and(|old| !self.is_misplaced(tenant, Some(Arc::clone(old))))
            || (alive.is_none() && (old.is_none() || to == Level::Shared))
        {
            return false;
        }
        if let Some(old) = alive.filter(|old| self.is_old(&old.worker)) {
            self.pool.close(&old.worker);
        }
        let memory_mb = self.limits_at(tenant, to).memory_mb;
        let outward = alive.is_some_and(|old| old.worker.level < to);
        let new = match self.pool.admit(tenant, to, memory_mb, Instant::now()).await {
            Ok(new) => new,
            Err(error) => {
                let (name, level, reason) = (tenant.name.to_string(), to.as_str(), error.to_string());
                self.events.tell(What::NoRoom { tenant: name, level, reason });
                // Whoever has to be further out does not wait where it is; for whom it would only be better, it may.
                let has_to = old.as_ref().is_some_and(|old| old.worker.level < tenant.standing().level());
                if let Some(old) = old.filter(|_| outward && has_to) {
                    let mut home = tenant.home.lock().await;
                    if home.as_ref().is_some_and(|home| Arc::ptr_eq(home, &old)) {
                        *home = None;
                    }
                    self.drain_home(tenant, old, true);
                }
                return false;
            }
        };
        if !tokio::time::timeout(START_TIMEOUT, new.is_ready()).await.is_ok_and(|ready| ready) {
            // It died on the way, or says nothing; the next run, or the next round, tries again.
            self.abandon(&new, "it did not get ready");
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
            self.drain_home(tenant, old, outward);
        }
        true
    }

    /// Lets the run that is under way in a home end that its tenant has left: for a bounded time, if there is `haste`; then the
    /// home is fenced and ended.
    fn drain_home(self: &Arc<Self>, tenant: &Tenant, old: Arc<Resident>, haste: bool) {
        old.leave();
        tenant.drains(&old);
        let (daemon, name, begun) = (Arc::clone(self), tenant.name.to_string(), Instant::now());
        let reason = if self.is_old(&old.worker) { "its process is old" } else { "it lives elsewhere now" };
        tokio::spawn(async move {
            let patience = Duration::from_secs(daemon.config.cordon.drain_secs);
            let drained = if haste {
                tokio::time::timeout(patience, old.close_when_unused()).await.is_ok()
            } else {
                old.close_when_unused().await;
                true
            };
            if drained {
                daemon.pool.leave(&old, reason);
            } else {
                daemon.abandon(&old, reason);
            }
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            daemon.events.tell(What::Drained { tenant: name, worker: old.worker.id, fenced: !drained, ms });
        });
    }

    /// Ends a home at once: nothing is taken from it any more, and what runs there is ended. A worker that does not obey is
    /// ended as a whole.
    fn abandon(self: &Arc<Self>, old: &Arc<Resident>, reason: &'static str) {
        old.fence();
        old.worker.retire(old.slot);
        self.pool.leave(old, reason);
        let old = Arc::clone(old);
        tokio::spawn(async move {
            if tokio::time::timeout(START_TIMEOUT, old.close_when_unused()).await.is_err() {
                old.worker.kill("a tenant that was told to leave did not");
            }
        });
    }
}
