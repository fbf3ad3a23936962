//! The record of one tenant's homes: the current home, and the homes that the tenant is leaving.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::homes::home::Home;
use crate::tenants::tenant::Tenant;

/// One tenant's homes. The record exists while the tenant lives somewhere, and a little longer.
#[derive(Debug)]
pub(crate) struct Residence {
    pub(crate) tenant: Arc<Tenant>,
    /// Where the tenant's runs go. Holding this lock stops every run of the tenant from being
    /// routed.
    pub(super) current: tokio::sync::Mutex<Option<Arc<Home>>>,
    /// `moving`: a move is in progress. `asked_to_move`: a move was requested and has not begun.
    pub(super) moving: AtomicBool,
    pub(super) asked_to_move: AtomicBool,
    left: Mutex<Left>,
}

#[derive(Debug, Default)]
struct Left {
    /// The homes that the tenant has left and in which a run has yet to end.
    draining: Vec<Weak<Home>>,
    /// When the tenant's runs last asked for a move, and when lack of room for a move was last
    /// reported.
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

    /// Where the tenant lives now. `None` as well while a run is being given a home.
    pub(super) fn current_home(&self) -> Option<Arc<Home>> {
        self.current.try_lock().ok()?.as_ref().filter(|home| home.is_open()).cloned()
    }

    /// Whether the record must not be dropped. A home in a dead worker would keep the whole worker
    /// in memory, so it is released here.
    pub(super) fn is_needed(&self) -> bool {
        // The lock is held while a run is given a home.
        let Ok(mut current) = self.current.try_lock() else { return true };
        current.take_if(|home| !home.is_open());
        current.is_some() || self.moving.load(Ordering::SeqCst) || self.is_draining()
    }

    /// Whether the tenant's runs may ask for a move again.
    pub(super) fn runs_may_ask(&self, pause: Duration) -> bool {
        has_passed(&mut self.left().runs_asked, pause)
    }

    /// Whether lack of room for a move is to be reported again.
    pub(super) fn may_report_no_room(&self, pause: Duration) -> bool {
        has_passed(&mut self.left().no_room_reported, pause)
    }

    /// Adds a home that the tenant has left and in which a run has yet to end.
    pub(super) fn add_draining(&self, home: &Arc<Home>) {
        let draining = &mut self.left().draining;
        draining.retain(|home| home.strong_count() > 0);
        draining.push(Arc::downgrade(home));
    }

    /// Whether the tenant has left a home that still exists: its last run may free room when it
    /// ends.
    pub(super) fn is_draining(&self) -> bool {
        self.left().draining.iter().any(|home| home.strong_count() > 0)
    }

    /// The homes that the tenant has left and that still exist.
    pub(super) fn draining(&self) -> Vec<Arc<Home>> {
        self.left().draining.iter().filter_map(Weak::upgrade).collect()
    }

    /// Like [`Self::draining`], but removes the homes from the record: later calls do not return
    /// them.
    pub(super) fn take_draining(&self) -> Vec<Arc<Home>> {
        std::mem::take(&mut self.left().draining).iter().filter_map(Weak::upgrade).collect()
    }

    /// Notes that the tenant no longer lives in `home`.
    pub(super) fn note_left(&self, home: &Home) {
        // If the lock is held, its holder checks whether the home is open.
        if let Ok(mut current) = self.current.try_lock()
            && current.as_deref().is_some_and(|current| std::ptr::eq(current, home))
        {
            *current = None;
        }
    }
}

/// Whether `pause` has passed since this last returned true; if so, starts a new pause.
fn has_passed(last: &mut Option<Instant>, pause: Duration) -> bool {
    let passed = last.is_none_or(|last| last.elapsed() >= pause);
    if passed {
        *last = Some(Instant::now());
    }
    passed
}
