//! A host's own threads: the main thread obeys the control channel, the watchdog checks the
//! tenants' clocks.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_wire::FrameError;
use enisle_wire::control::{Admit, FromWorker, Slot, ToWorker};

use crate::control::{Control, Speaker};
use crate::engine::memory::cage::Cage;
use crate::engine::memory::{commons, oversized};
use crate::tenant::{Surroundings, Tenant};
use crate::watchdog::Alarm;

/// How often the pages of an oversized object are given back: V8 writes about two MiB in a
/// millisecond.
const OVERSIZED_EVERY: Duration = Duration::from_millis(1);

/// Serves until the supervisor closes the channel.
pub(crate) fn serve(
    control: &mut Control,
    speaker: Speaker,
    surroundings: Surroundings,
    cages: Vec<Cage>,
) -> Result<(), Box<dyn Error>> {
    let alarm = Arc::clone(&surroundings.alarm);
    let shared = Arc::new(Shared { tenants: Mutex::default(), alarm, speaker });
    let watched = Arc::clone(&shared);
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watched.watch())?;
    let cages = (0..).map(Slot).zip(cages).collect();
    let mut host = Host { shared, cages, surroundings: Arc::new(surroundings) };
    loop {
        if !control.receive()? {
            // The daemon is gone, so there is nothing left to do.
            std::process::exit(0);
        }
        while let Some(command) = control.buffered()? {
            host.obey(command, control)?;
        }
    }
}

/// What the two threads share.
struct Shared {
    tenants: Mutex<BTreeMap<Slot, Tenant>>,
    alarm: Arc<Alarm>,
    speaker: Speaker,
}

impl Shared {
    fn tenants(&self) -> MutexGuard<'_, BTreeMap<Slot, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the watchdog's thread does.
    fn watch(&self) {
        loop {
            match self.round() {
                Ok(next_look) => self.alarm.sleep(next_look),
                // Sending failed: the daemon is gone.
                Err(_) => std::process::exit(0),
            }
        }
    }

    /// Checks every tenant. Returns when to check again.
    fn round(&self) -> Result<Option<Instant>, FrameError> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut tenants = self.tenants();
        for tenant in tenants.values() {
            let (overrun, look) = tenant.watched.check(now);
            if let Some((run, cause)) = overrun {
                let slot = tenant.watched.slot();
                self.speaker.say(&FromWorker::Overrun { slot, run, cause })?;
            }
            if tenant.watched.is_idle() {
                commons::trim_idle(tenant.watched.slot().0);
            }
            let again = oversized::trim(tenant.watched.slot().0).then(|| now + OVERSIZED_EVERY);
            next = [next, look, again].into_iter().flatten().min();
        }
        let finished: Vec<_> = tenants.extract_if(.., |_, tenant| tenant.is_finished()).collect();
        drop(tenants);
        for (slot, tenant) in finished {
            tenant.join();
            self.speaker.say(&FromWorker::Retired { slot })?;
        }
        Ok(next)
    }
}

/// The main thread's state.
struct Host {
    shared: Arc<Shared>,
    /// Cages that no tenant has had yet. A cage is never reused, so the number only shrinks.
    cages: BTreeMap<Slot, Cage>,
    surroundings: Arc<Surroundings>,
}

impl Host {
    fn obey(&mut self, command: ToWorker, control: &mut Control) -> Result<(), Box<dyn Error>> {
        match command {
            ToWorker::Start(_) => return Err("Start was sent twice".into()),
            ToWorker::Admit(admit) => self.admit(&admit, control)?,
            ToWorker::Cancel { slot, run } => {
                if let Some(tenant) = self.shared.tenants().get(&slot) {
                    tenant.watched.cancel(run);
                }
            }
            ToWorker::Retire { slot } => {
                if let Some(tenant) = self.shared.tenants().get(&slot) {
                    tenant.watched.retire();
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, admit: &Admit, control: &mut Control) -> Result<(), Box<dyn Error>> {
        let channel = control.take_descriptor().ok_or("Admit came without a channel")?;
        let cage = self.cages.remove(&admit.slot).ok_or("Admit named a slot that is used up")?;
        let tenant = Tenant::admit(admit, UnixStream::from(channel), cage, &self.surroundings)?;
        self.shared.tenants().insert(admit.slot, tenant);
        // The tenant's thread may have ended already, and rung before the tenant was in the map.
        // Then the watchdog must look again.
        self.shared.alarm.ring();
        Ok(())
    }
}
