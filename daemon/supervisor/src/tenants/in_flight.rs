//! Runs in flight: begun and not yet over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::share::{Held, Supply};
use crate::tenants::quota::OverQuota;
use crate::tenants::tenant::Tenant;

/// All runs of the daemon in flight, and whether new ones may begin.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    count: AtomicU64,
    none_left: Notify,
    draining: AtomicBool,
}

impl Flights {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether new runs are refused.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Refuses new runs from now on.
    pub(crate) fn close(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Waits until no run is in flight, for at most `patience`. Returns whether none is left.
    pub(crate) async fn over(&self, patience: Duration) -> bool {
        let empty = async {
            loop {
                let none_left = self.none_left.notified();
                if self.count() == 0 {
                    return;
                }
                none_left.await;
            }
        };
        tokio::time::timeout(patience, empty).await.is_ok()
    }
}

/// A run's place in its tenant's quota and in the daemon's count, given back when the run is over,
/// however it ends.
#[derive(Debug)]
pub(crate) struct InFlight {
    flights: Arc<Flights>,
    pub(crate) tenant: Arc<Tenant>,
    /// The supply that the run's answer is charged to.
    bodies: Supply,
    /// The uid that asked for the run.
    pub(crate) uid: u32,
}

impl InFlight {
    /// Takes a place in the tenant's quota.
    pub(crate) fn begin(
        flights: &Arc<Flights>,
        tenant: &Arc<Tenant>,
        bodies: &Supply,
        uid: u32,
    ) -> Result<Self, OverQuota> {
        let policy = tenant.policy();
        tenant.account.lock().unwrap_or_else(PoisonError::into_inner).begin(&policy.quota, Instant::now())?;
        flights.count.fetch_add(1, Ordering::SeqCst);
        Ok(Self { flights: Arc::clone(flights), tenant: Arc::clone(tenant), bodies: bodies.clone(), uid })
    }

    /// The charge for the run's answer, still empty.
    pub(crate) fn answer(&self) -> Held {
        self.bodies.none(self.uid)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.tenant.account.lock().unwrap_or_else(PoisonError::into_inner).end();
        if self.flights.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flights.none_left.notify_waiters();
        }
    }
}
