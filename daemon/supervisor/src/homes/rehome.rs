//! Moves a tenant while its runs go on.
//!
//! ```text
//! new home: started ─▶ verified, locked down, warm ─▶ runs go there ─────────────────────────▶
//! old home: ─────────────── runs go there ──────────▶ drains ─▶ (too long: fenced, ended) ─▶ gone
//! ```
//!
//! No request is in two homes: a run that waits in the old home goes to the new one; a run that has
//! begun finishes where it is. If that takes too long on a move outward, the old home is fenced:
//! everything it still sends is discarded ([`Home::is_fenced`]), and the run restarts in the new
//! home. On a move inward a run has unlimited time, unless the tenant must move further out, or
//! away from its neighbours, after all.
//!
//! A move waits until the new home is ready, and while another run is being given a home, but never
//! for a run to end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use enisle_cordon::moving::{Leave, Move, Whereabouts};
use enisle_cordon::{Level, Signal};

use crate::events::EventKind;
use crate::homes::find::Homes;
use crate::homes::home::Home;
use crate::homes::pool::AdmitError;
use crate::homes::residence::Residence;
use crate::tenants::tenant::Tenant;
use crate::workers::birth::START_TIMEOUT;

/// How often lack of room for one tenant's move is reported.
const REPORT_NO_ROOM_EVERY: Duration = Duration::from_secs(10);

impl Homes {
    /// Moves a tenant to where it must live, if it lives elsewhere. A tenant has one move at a
    /// time; a request that arrives during a move is carried out after that move. The homes that
    /// the tenant is already leaving are hastened at once.
    pub(crate) async fn rehome(self: &Arc<Self>, tenant: &Tenant) {
        let Some(residence) = self.known(&tenant.name) else { return };
        self.hasten(&residence);
        residence.asked_to_move.store(true, Ordering::SeqCst);
        while residence.asked_to_move.load(Ordering::SeqCst) && !residence.moving.swap(true, Ordering::SeqCst) {
            while residence.asked_to_move.swap(false, Ordering::SeqCst) {
                self.move_once(&residence).await;
            }
            residence.moving.store(false, Ordering::SeqCst);
        }
    }

    /// Hastens the homes that a tenant is leaving, and asks for a move if the tenant is misplaced.
    /// Returns whether the tenant still has a residence.
    pub(crate) fn look_after(self: &Arc<Self>, tenant: &Arc<Tenant>) -> bool {
        let Some(residence) = self.known(&tenant.name) else { return false };
        self.hasten(&residence);
        let current = residence.current_home();
        if current.is_some_and(|current| tenant.needs().is_misplaced(&self.facts_of(tenant, &current))) {
            self.warden.ask_for_move(tenant);
        }
        drop(residence);
        !self.forget(&tenant.name)
    }

    async fn move_once(self: &Arc<Self>, residence: &Arc<Residence>) {
        let tenant = &residence.tenant;
        // The homes that the tenant is leaving come first: the lock on the current home may be held
        // by a run that waits for room.
        self.hasten(residence);
        let old = residence.current.lock().await.clone();
        let alive = old.as_ref().filter(|old| old.is_open());
        let next = || tenant.needs().next(self.whereabouts(tenant, old.as_deref()));
        match next() {
            Move::Stay => return,
            Move::Expel => {
                let current = residence.current.lock().await.take();
                current.iter().for_each(|current| self.abandon(current, "it is expelled"));
                return;
            }
            Move::Go { .. } => {}
        }
        // Wherever the tenant lives, its home counts against the same uid's share.
        let uid = old.as_ref().map_or_else(|| tenant.charged_to(), |old| old.uid);
        let to = self.level_of_new_home(tenant, uid);
        // `level_of_new_home` may have put the tenant on probation. Then a tenant that was to move
        // inward to `shared` stays.
        let Move::Go { outward } = next() else { return };
        if let Some(old) = alive.filter(|old| self.is_old(&old.worker)) {
            self.pool.close(&old.worker);
        }
        let memory_mb = self.limits_at(tenant, to).memory_mb;
        let new = match self.pool.admit(residence, to, memory_mb, uid, Instant::now()).await {
            Ok(new) => new,
            // The next run, or the next round of housekeeping, tries again.
            Err(AdmitError::NotPrepared(_)) => return self.pool.bury_dead(),
            Err(error) => {
                if residence.may_report_no_room(REPORT_NO_ROOM_EVERY) {
                    let (name, level, reason) = (tenant.name.to_string(), to.as_str(), error.to_string());
                    self.events.emit(EventKind::NoRoom { tenant: name, uid, level, reason });
                }
                return self.without_room(residence, old).await;
            }
        };
        if !self.take_over(residence, old.as_ref(), &new).await {
            return;
        }
        let (worker, token) = (new.worker.id, new.token);
        let name = tenant.name.to_string();
        self.events.emit(EventKind::Rehomed { tenant: name, uid, worker, level: to.as_str(), token });
        if let Some(old) = old.filter(|old| old.is_open()) {
            self.drain_home(residence, old, outward);
        }
    }

    /// Routes the next runs to the new home instead of the old one. Returns false if the new home
    /// is given up, because another run has got a home meanwhile or the new home is too far in by
    /// now.
    async fn take_over(&self, residence: &Residence, old: Option<&Arc<Home>>, new: &Arc<Home>) -> bool {
        let mut current = residence.current.lock().await;
        // A run may have got another home meanwhile, because the old one was lost.
        let same = match (&*current, old) {
            (Some(now), Some(old)) => Arc::ptr_eq(now, old),
            (None, None) => true,
            _ => false,
        };
        if same && residence.tenant.wanted_level() <= new.worker.level {
            *current = Some(Arc::clone(new));
            return true;
        }
        drop(current);
        if new.close() {
            self.pool.leave(new, "it was not needed");
        }
        residence.asked_to_move.store(true, Ordering::SeqCst);
        false
    }

    /// Handles a move for which there is no room. If the tenant must leave all the same, its next
    /// runs wait for room.
    async fn without_room(self: &Arc<Self>, residence: &Residence, old: Option<Arc<Home>>) {
        let Some(old) = old.filter(|old| old.is_open()) else { return };
        let leave = residence.tenant.needs().without_room(&self.facts_of(&residence.tenant, &old));
        if leave == Leave::Stays {
            return;
        }
        let mut current = residence.current.lock().await;
        if current.take_if(|current| Arc::ptr_eq(current, &old)).is_some() {
            self.drain_home(residence, old, leave == Leave::InHaste);
        }
    }

    /// Where a tenant lives, as decisions on moves see it.
    fn whereabouts(&self, tenant: &Tenant, home: Option<&Home>) -> Whereabouts {
        match home {
            None => Whereabouts::Nowhere,
            Some(home) if home.is_open() => Whereabouts::In(self.facts_of(tenant, home)),
            Some(_) => Whereabouts::Lost,
        }
    }

    /// Hastens the homes that a tenant is leaving: if the tenant is expelled, its runs there end at
    /// once; if it must not stay there, they have bounded time.
    fn hasten(self: &Arc<Self>, residence: &Residence) {
        let tenant = &residence.tenant;
        if tenant.wanted_level() == Level::Expelled {
            residence.take_draining().iter().for_each(|left| self.abandon(left, "it is expelled"));
            return;
        }
        let draining = residence.draining();
        let must_leave = |left: &&Arc<Home>| tenant.needs().must_leave(&self.facts_of(tenant, left));
        draining.iter().filter(must_leave).for_each(|left| left.leave_in_haste());
    }

    /// Lets the current run finish in a home that its tenant has left. If there is `haste`, or if
    /// the home is hastened later, the run has `cordon.drain_secs` for that; then the home is
    /// fenced and ended.
    pub(super) fn drain_home(self: &Arc<Self>, residence: &Residence, old: Arc<Home>, haste: bool) {
        if haste {
            old.leave_in_haste()
        } else {
            old.leave()
        }
        residence.add_draining(&old);
        let (homes, name, begun) = (Arc::clone(self), residence.tenant.name.to_string(), Instant::now());
        let reason = if self.is_old(&old.worker) { "its process is old" } else { "it lives elsewhere now" };
        tokio::spawn(async move {
            let patience = Duration::from_secs(homes.cordon.drain_secs);
            let drained = tokio::select! {
                biased;
                () = old.close_when_unused() => true,
                () = old.overstays(patience) => false,
            };
            if drained {
                homes.pool.leave(&old, reason);
            } else {
                homes.abandon(&old, reason);
            }
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            homes.events.emit(EventKind::Drained {
                tenant: name,
                uid: old.uid,
                worker: old.worker.id,
                fenced: !drained,
                ms,
            });
        });
    }

    /// Ends a home at once: its run is ended, and everything that still arrives from it is
    /// discarded. A worker that does not comply is killed.
    fn abandon(self: &Arc<Self>, old: &Arc<Home>, reason: &'static str) {
        old.fence();
        old.worker.retire(old.slot);
        self.pool.leave(old, reason);
        let old = Arc::clone(old);
        tokio::spawn(async move {
            if tokio::time::timeout(START_TIMEOUT, old.close_when_unused()).await.is_err() {
                old.worker.blame(old.slot, Signal::HardKill);
                old.worker.kill("a tenant was asked to leave and did not");
            }
        });
    }
}
