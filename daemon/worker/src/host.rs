//! A host's main thread: commands from the control channel, and the watchdog's rounds between them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use enisle_hardening::mpk::Key;
use enisle_wire::control::{Admit, FromWorker, Slot, ToWorker};
use memmap2::Mmap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::Control;
use crate::engine::isolate::Snapshot;
use crate::tenant::Tenant;
use crate::watchdog::Alarm;

/// Maps the snapshot for the life of the process.
pub(crate) fn map_snapshot(descriptor: OwnedFd) -> Result<&'static [u8], Box<dyn Error>> {
    let file = File::from(descriptor);
    // SAFETY: the supervisor has sealed the memfd against writing and resizing before it sent it, so the bytes never
    // change under the map.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Box::leak(Box::new(map)))
}

/// Serves until the supervisor closes the channel.
pub(crate) fn serve(
    control: &mut Control,
    snapshot: Snapshot,
    keys: Vec<Key>,
    alarm: Alarm,
) -> Result<(), Box<dyn Error>> {
    let mut host = Host { tenants: BTreeMap::new(), keys, snapshot, alarm: Arc::new(alarm) };
    loop {
        let next_look = host.round(control)?;
        host.alarm.will_wake(next_look);
        if host.wait(control, next_look)? && !control.receive()? {
            // The daemon is gone. There is nobody left to run anything for.
            std::process::exit(0);
        }
        // Awake: whoever begins a run before the next sleep rings, so that no deadline is missed.
        host.alarm.will_wake(None);
        host.alarm.clear();
        while let Some(command) = control.buffered()? {
            host.obey(command, control)?;
        }
    }
}

struct Host {
    tenants: BTreeMap<Slot, Tenant>,
    /// Keys that nobody had yet. A key is never handed on, so they only get fewer.
    keys: Vec<Key>,
    snapshot: Snapshot,
    alarm: Arc<Alarm>,
}

impl Host {
    /// Waits for a command, the alarm, or `until`. True if there is a command.
    fn wait(&self, control: &Control, until: Option<Instant>) -> Result<bool, Box<dyn Error>> {
        // Rounded up, or the last fraction of a millisecond would be spent turning in circles.
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut sources =
            [PollFd::new(control.as_fd(), PollFlags::POLLIN), PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(sources[0].any().unwrap_or(false)),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks after every tenant. Returns when to look again.
    fn round(&mut self, control: &mut Control) -> Result<Option<Instant>, Box<dyn Error>> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for tenant in self.tenants.values() {
            let (overrun, look) = tenant.watched.check(now);
            if let Some((run, cause)) = overrun {
                control.say(&FromWorker::Overrun { slot: tenant.watched.slot(), run, cause: cause.into() })?;
            }
            next = [next, look].into_iter().flatten().min();
        }
        let finished: Vec<_> = self.tenants.extract_if(.., |_, tenant| tenant.is_finished()).collect();
        for (slot, tenant) in finished {
            tenant.join();
            control.say(&FromWorker::Retired { slot })?;
        }
        Ok(next)
    }

    fn obey(&mut self, command: ToWorker, control: &mut Control) -> Result<(), Box<dyn Error>> {
        match command {
            ToWorker::Start(_) => return Err("Start was said twice".into()),
            ToWorker::Admit(admit) => self.admit(&admit, control)?,
            ToWorker::Cancel { slot, run } => {
                if let Some(tenant) = self.tenants.get(&slot) {
                    tenant.watched.cancel(run);
                }
            }
            ToWorker::Retire { slot } => {
                if let Some(tenant) = self.tenants.get(&slot) {
                    tenant.watched.retire();
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, admit: &Admit, control: &mut Control) -> Result<(), Box<dyn Error>> {
        let channel = control.take_descriptor().ok_or("Admit came without a channel")?;
        let tenant = Tenant::admit(admit, UnixStream::from(channel), self.keys.pop(), self.snapshot, &self.alarm)?;
        self.tenants.insert(admit.slot, tenant);
        Ok(())
    }
}
