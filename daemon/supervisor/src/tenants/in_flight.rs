//! Runs that have begun and are not over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::share::{Held, Supply};
use crate::tenants::quota::OverQuota;
use crate::tenants::tenant::Tenant;

/// All runs of the daemon, and the end of them.
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

    /// Whether no new runs are taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Takes no new runs from here on.
    pub(crate) fn close(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Waits until none is left, so long at the most; whether none is.
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

/// A run's place in its tenant's quota and in the daemon's count, given back when it is over in
/// whatever way.
#[derive(Debug)]
pub(crate) struct InFlight {
    flights: Arc<Flights>,
    pub(crate) tenant: Arc<Tenant>,
    /// What its answer is charged to.
    bodies: Supply,
    /// Who asked for the run.
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

    /// Nothing yet of what the answer is going to be charged.
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
