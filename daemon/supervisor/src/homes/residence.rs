//! Where one tenant lives, and the homes that it is leaving.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::homes::home::Home;
use crate::tenants::tenant::Tenant;

/// What there is of a tenant as long as it lives somewhere, or did until just now.
#[derive(Debug)]
pub(crate) struct Residence {
    pub(crate) tenant: Arc<Tenant>,
    /// Where its runs go. Who holds the lock keeps them from going anywhere.
    pub(super) current: tokio::sync::Mutex<Option<Arc<Home>>>,
    /// Somebody is moving it, and somebody has asked for that since.
    pub(super) moving: AtomicBool,
    pub(super) asked_to_move: AtomicBool,
    left: Mutex<Left>,
}

#[derive(Debug, Default)]
struct Left {
    /// The homes that it has left and in which a run has yet to end.
    draining: Vec<Weak<Home>>,
    /// When its runs last asked for a move, and when it was last told that there is no room for
    /// one.
    runs_asked: Option<Instant>,
    no_room_reported: Option<Instant>,
}

impl Residence {
    pub(super) fn new(tenant: Arc<Tenant>) -> Self {
        Self {
            tenant,
            current: tokio::sync::Mutex::default(),
            moving: AtomicBool::new(false),
            asked_to_move: AtomicBool::new(false),
            left: Mutex::default(),
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the tenant lives now.
    pub(super) fn current_home(&self) -> Option<Arc<Home>> {
        self.current.try_lock().ok()?.as_ref().filter(|home| home.is_open()).cloned()
    }

    /// Whether there is anything in it that must not be forgotten. Of a worker that is dead all
    /// that there is would be kept, so that is given up here.
    pub(super) fn is_needed(&self) -> bool {
        // Whoever holds the lock is giving the tenant a home.
        let Ok(mut current) = self.current.try_lock() else { return true };
        current.take_if(|home| !home.is_open());
        current.is_some() || self.moving.load(Ordering::SeqCst) || self.is_draining()
    }

    /// Whether the tenant's runs may ask for a move again.
    pub(super) fn runs_may_ask(&self, pause: Duration) -> bool {
        has_passed(&mut self.left().runs_asked, pause)
    }

    /// Whether it is to be told again that there is no room for a move.
    pub(super) fn may_report_no_room(&self, pause: Duration) -> bool {
        has_passed(&mut self.left().no_room_reported, pause)
    }

    /// A run has yet to end in a home that the tenant has left.
    pub(super) fn add_draining(&self, home: &Arc<Home>) {
        let draining = &mut self.left().draining;
        draining.retain(|home| home.strong_count() > 0);
        draining.push(Arc::downgrade(home));
    }

    /// There is a home that the tenant has left: there may be room once the last run there has
    /// ended.
    pub(super) fn is_draining(&self) -> bool {
        self.left().draining.iter().any(|home| home.strong_count() > 0)
    }

    /// The homes that the tenant has left and that are still there.
    pub(super) fn draining(&self) -> Vec<Arc<Home>> {
        self.left().draining.iter().filter_map(Weak::upgrade).collect()
    }

    /// The same, to be ended: they are not asked for again.
    pub(super) fn take_draining(&self) -> Vec<Arc<Home>> {
        std::mem::take(&mut self.left().draining).iter().filter_map(Weak::upgrade).collect()
    }

    /// The tenant does not live there any more.
    pub(super) fn has_left(&self, home: &Home) {
        // Whoever holds the lock looks whether the home is open.
        if let Ok(mut current) = self.current.try_lock()
            && current.as_deref().is_some_and(|current| std::ptr::eq(current, home))
        {
            *current = None;
        }
    }
}

/// Whether so much has passed since this was last true; the time begins anew then.
fn has_passed(last: &mut Option<Instant>, pause: Duration) -> bool {
    let passed = last.is_none_or(|last| last.elapsed() >= pause);
    if passed {
        *last = Some(Instant::now());
    }
    passed
}
