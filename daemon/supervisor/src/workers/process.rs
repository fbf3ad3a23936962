//! A living worker process, as the rest of the daemon holds it. The task that owns it is in
//! [`crate::workers::owner`].

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Level, MemoryRules, Signal};
use enisle_hardening::fault::{Fault, FaultPage};
use enisle_hardening::islands::Zone;
use enisle_hardening::tags::{self, Tags};
use enisle_hardening::verify;
use enisle_hardening::{Layer, LayerSet};
use enisle_wire::control::{Admit, Slot};
use enisle_wire::tenant::RunId;
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};

use crate::workers::death::Death;
use crate::workers::exit::{Evidence, Exit};
use crate::workers::holdings::{self, Holdings, Unexplained};
use crate::workers::listeners::{Listener, Listeners};
use crate::workers::slots::{Overrun, Slots};
use crate::workers::threads;
use crate::workers::violation::{self, Attack};

/// For as long the threads of a worker may be other than what was said of them, because one is just ending.
const CONFINEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that has committed such a part of its bound since it was looked at is looked at again.
const LOOK_AFTER_PART: u64 = 32;

/// What the process's owner is told to do.
#[derive(Debug)]
pub(super) enum Command {
    Admit { admit: Admit, channel: OwnedFd },
    Cancel { slot: Slot, run: RunId },
    Retire { slot: Slot },
    Kill(String),
}

/// A living worker process, as the rest of the daemon holds it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) level: Level,
    /// Whose it is.
    pub(crate) uid: u32,
    pub(crate) started_at: Instant,
    pub(crate) v8: String,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// It never holds more than one tenant, so what happens to it is that tenant's doing.
    pub(crate) holds_one: bool,
    /// Which key each page of its islands should carry; none where the layer is off.
    pub(super) tags: Option<Tags>,
    pub(super) zone: Zone,
    pub(super) layers: LayerSet,
    /// What it may commit.
    pub(crate) bound: u64,
    pub(super) rules: MemoryRules,
    /// What it puts on record of itself.
    pub(super) record: FaultPage,
    pub(super) memory: Mutex<Holdings>,
    pub(super) slots: Mutex<Slots>,
    pub(super) listeners: Listeners,
    pub(super) evidence: Evidence,
    /// It has ended, and how is about to be told.
    pub(super) has_ended: AtomicBool,
    /// How it ended, once that is judged.
    pub(super) exit: watch::Receiver<Option<Arc<Exit>>>,
}

impl Worker {
    /// A closed channel of commands means that the process is dead; its residents hear of that by themselves.
    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// The end of the process is not judged before the listener is dropped.
    pub(crate) fn admit(&self, admit: Admit, channel: OwnedFd) -> Listener {
        self.slots().admit(admit.slot);
        self.command(Command::Admit { admit, channel });
        self.listeners.one_more()
    }

    pub(crate) fn cancel(&self, slot: Slot, run: RunId) {
        self.command(Command::Cancel { slot, run });
    }

    pub(crate) fn retire(&self, slot: Slot) {
        self.command(Command::Retire { slot });
    }

    pub(crate) fn kill(&self, why: impl Into<String>) {
        self.command(Command::Kill(why.into()));
    }

    pub(crate) fn overrun(&self, slot: Slot) -> Option<Overrun> {
        self.slots().overrun(slot)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody but one tenant was ever here: whatever happens here is its doing.
    pub(crate) fn was_one_tenants(&self) -> bool {
        let judged = self.exit.borrow().as_ref().map(|exit| exit.was_one_tenants);
        judged.unwrap_or_else(|| self.holds_one || self.slots().count() == 1)
    }

    /// A tenant's thread says for the first time that it is ready: it has to run under filters of its own, by the kernel's
    /// word. Threads come and go meanwhile, so what does not add up is looked at again for a while.
    pub(crate) async fn check_confinement(&self, slot: Slot) -> Result<(), String> {
        self.slots().is_confined(slot);
        if !self.layers.has(Layer::ThreadFilter) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (found, said) = (verify::confined_threads(self.pid, self.layers), self.slots().confined());
            match found {
                Ok(found) if found >= said => return Ok(()),
                _ if self.has_ended.load(Ordering::Relaxed) => return Err("it has died".to_owned()),
                _ if begun.elapsed() < CONFINEMENT_TIMEOUT => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(found) => {
                    return Err(format!("{said} tenants' threads say that they are confined, and {found} are"));
                }
                Err(error) => return Err(format!("its threads cannot be looked at: {error}")),
            }
        }
    }

    /// The kernel's number of a tenant's thread, by the name that it got before any of the tenant's code.
    pub(crate) fn thread_of(&self, slot: Slot) -> Option<Pid> {
        threads::thread_named(self.pid, &format!("tenant-{}", slot.0))
    }

    /// The attack that a fault in this process was, if it was one.
    pub(crate) fn attack(&self, fault: &Fault) -> Option<Attack> {
        violation::attack(fault, &self.zone)
    }

    /// What the oracle finds: pages of its islands that do not carry the key that they should, in words. May take some 50 ms.
    pub(crate) fn mistagged(&self) -> Vec<String> {
        let Some(tags) = &self.tags else { return Vec::new() };
        // A process that cannot be looked at has ended, which is told elsewhere.
        tags::inspect_running(self.pid, tags).map(|seen| seen.findings()).unwrap_or_default()
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Holdings> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what the process holds, by the kernel's word. May take some ms.
    pub(crate) fn read_memory(&self) {
        let before = threads::faults_of(self.pid);
        let taken = (0..).map(Slot).zip(self.record.taken()).collect();
        let held = tags::held(self.pid, &self.zone);
        // A process that has ended cannot be looked at, or has no memory any more; what was seen
        // last says how it stood.
        if let (Some(before), Ok(held), Some(after)) = (before, held, threads::faults_of(self.pid))
            && held.outside.committed > 0
        {
            self.memory().record(holdings::Reading { held, faults: [before, after], taken });
        }
    }

    /// It has committed so much more than at the last look that another one is due.
    pub(crate) fn has_grown(&self) -> bool {
        let now = tags::committed(self.pid).unwrap_or_default();
        now > self.memory().committed() + self.bound / LOOK_AFTER_PART
    }

    /// What it had committed at the last look.
    pub(crate) fn committed_bytes(&self) -> u64 {
        self.memory().committed()
    }

    /// How much of a tenant's island was in memory at the last look.
    pub(crate) fn resident_bytes(&self, slot: Slot) -> u64 {
        self.memory().island(slot).resident
    }

    /// Whether the last look found more outside the islands than its tenants explain.
    pub(crate) fn unexplained(&self) -> Option<Unexplained> {
        let most = self.slots().count();
        self.memory().too_much(self.rules.most_outside(most))
    }

    /// The last look found too much.
    pub(crate) fn is_over(&self) -> bool {
        self.memory().is_over()
    }

    /// Has the next of its tenants leave, the one that holds most first. Whether it is known that
    /// the rest is that tenant's.
    pub(crate) fn send_one_away(&self) -> Option<(Slot, bool)> {
        let mut slots = self.slots();
        let here = slots.wanted();
        let largest = self.memory().largest_outside(&here);
        let slot = largest.or_else(|| here.first().copied())?;
        slots.send_away(slot);
        Some((slot, largest.is_some()))
    }

    /// The tenant of that place has to leave.
    pub(crate) fn is_unwanted(&self, slot: Slot) -> bool {
        self.slots().is_unwanted(slot)
    }

    /// The tenant of that place has left; what it was at may still be ending.
    pub(crate) fn has_left(&self, slot: Slot) {
        self.slots().has_left(slot);
    }

    /// It is to be killed for something that one of its tenants did, whoever that was.
    pub(crate) fn misbehaves(&self, signal: Signal) {
        let _ = self.evidence.misbehaved.set(signal);
    }

    /// The process is ended for what the tenant of that place did.
    pub(crate) fn blame(&self, slot: Slot, signal: Signal) {
        let _ = self.evidence.culprit.set((slot, signal));
    }

    /// V8 gave up on a run of that place; whether the run was over its own limit.
    pub(crate) fn gave_up(&self, slot: Slot, certain: bool) {
        let _ = self.evidence.gave_up.set((slot, certain));
    }

    fn exit(&self) -> Option<Arc<Exit>> {
        self.exit.borrow().clone()
    }

    /// The process ended, and it was not this tenant's doing.
    pub(crate) fn blames_another(&self, slot: Slot) -> bool {
        self.exit().is_some_and(|exit| exit.consequence.exonerates(slot))
    }

    /// The process ended, and it was this tenant's doing.
    pub(crate) fn blames(&self, slot: Slot) -> bool {
        self.exit().is_some_and(|exit| exit.consequence.blames(slot))
    }

    /// How much CPU time the thread of that place had used at the end of the process, if that was
    /// over something on that thread and is known.
    pub(crate) fn computed(&self, slot: Slot) -> Option<Duration> {
        self.exit()?.computed(slot)
    }

    /// Waits for the death; says why.
    pub(crate) async fn death(&self) -> Death {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.as_ref().map(|exit| exit.death.clone())).unwrap_or(Death::Unknown)
    }
}
