//! A running worker process, as the rest of the daemon uses it. The task that owns the process is
//! in [`crate::workers::owner`].

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::{Level, MemoryRules, Signal};
use enisle_hardening::fault::{Fault, FaultPage};
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::tags::{self, Tags};
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

/// How long the kernel may report too few confined threads: other threads start and end meanwhile.
const CONFINEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// The memory of a process is read again once the process has committed one part in this many of
/// its bound since the last reading.
const READ_AFTER_PART: u64 = 32;

/// A command to the process's owner.
#[derive(Debug)]
pub(super) enum Command {
    Admit { admit: Admit, channel: OwnedFd },
    Cancel { slot: Slot, run: RunId },
    Retire { slot: Slot },
    Kill(String),
}

/// A running worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) level: Level,
    /// The uid whose tenants it holds; unset while it is on standby.
    pub(super) owner: OnceLock<u32>,
    pub(crate) started_at: Instant,
    pub(crate) v8: String,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// It never holds more than one tenant, so whatever happens in it is that tenant's doing.
    pub(crate) holds_one: bool,
    /// Which key each page of its islands should carry; `None` if the layer is off.
    pub(super) tags: Option<Tags>,
    pub(super) zone: Zone,
    pub(super) layers: LayerSet,
    /// How many bytes it may commit.
    pub(crate) bound: u64,
    pub(super) rules: MemoryRules,
    /// The page on which it records its faults.
    pub(super) record: FaultPage,
    pub(super) memory: Mutex<Holdings>,
    pub(super) slots: Mutex<Slots>,
    pub(super) listeners: Listeners,
    pub(super) evidence: Evidence,
    /// The process has ended; the verdict follows ([`Self::exit`]).
    pub(super) ended: AtomicBool,
    /// How it ended, once that is judged.
    pub(super) exit: watch::Receiver<Option<Arc<Exit>>>,
}

impl Worker {
    /// A closed command channel means that the process is dead; its homes notice that by
    /// themselves.
    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// The uid whose tenants it holds; the daemon's own uid while it is on standby.
    pub(crate) fn uid(&self) -> u32 {
        self.owner.get().copied().unwrap_or_else(|| nix::unistd::geteuid().as_raw())
    }

    /// Gives the worker to a uid: it will hold tenants of no other. Returns whether it was on
    /// standby until now.
    pub(crate) fn belongs_to(&self, uid: u32) -> bool {
        self.owner.set(uid).is_ok()
    }

    /// Has the worker start a thread in a slot.
    pub(crate) fn prepare(&self, admit: Admit, channel: OwnedFd) {
        self.slots().prepare(admit.slot);
        self.command(Command::Admit { admit, channel });
    }

    /// A tenant takes a slot whose thread is ready. If the process ends, the owner waits for the
    /// listener to be dropped, for a bounded time, before it judges that end. The end never waits
    /// for a slot on standby: nobody reads what its thread sends.
    pub(crate) fn take(&self, slot: Slot) -> Listener {
        self.slots().take(slot);
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

    /// Whether the process has ended. From then on it admits no tenant, but it counts as dead only
    /// when its end is judged.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether the process has ended and its end is judged.
    pub(crate) fn is_dead(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether only one tenant was ever here: then whatever happens here is that tenant's doing.
    pub(crate) fn was_one_tenants(&self) -> bool {
        let judged = self.exit.borrow().as_ref().map(|exit| exit.was_one_tenants);
        judged.unwrap_or_else(|| self.holds_one || self.slots().ever_taken().len() == 1)
    }

    /// Called when a slot's thread first reports that it is ready. According to the kernel, at
    /// least as many threads must have a filter of their own as have reported that they are ready.
    /// Other threads start and end meanwhile, so a mismatch is checked again for a while.
    pub(crate) async fn check_confinement(&self, slot: Slot) -> Result<(), String> {
        self.slots().note_confined(slot);
        if !self.layers.has(Layer::ThreadFilter) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (found, said) = (verify::confined_threads(self.pid, self.layers), self.slots().confined());
            match found {
                Ok(found) if found >= said => return Ok(()),
                _ if self.has_ended() => return Err("it has died".to_owned()),
                _ if begun.elapsed() < CONFINEMENT_TIMEOUT => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(found) => {
                    return Err(format!("{said} tenants' threads report that they are confined, and {found} are"));
                }
                Err(error) => return Err(format!("its threads cannot be inspected: {error}")),
            }
        }
    }

    /// The thread id of a tenant's thread, found by the name that it got before any of the tenant's
    /// code ran.
    pub(crate) fn thread_of(&self, slot: Slot) -> Option<Pid> {
        threads::thread_named(self.pid, &format!("tenant-{}", slot.0))
    }

    /// The attack that a fault in this process shows, if it shows one.
    pub(crate) fn attack(&self, fault: &Fault) -> Option<Attack> {
        violation::attack(fault, &self.zone)
    }

    /// Describes the pages of islands that do not carry the key that they should. May take some
    /// 50 ms.
    pub(crate) fn mistagged(&self) -> Vec<String> {
        let Some(tags) = &self.tags else { return Vec::new() };
        // A process that cannot be read has ended, which its owner reports.
        tags::inspect_running(self.pid, tags).map(|seen| seen.findings()).unwrap_or_default()
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Holdings> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads how much memory the process holds, as reported by the kernel. May take some ms.
    pub(crate) fn read_memory(&self) {
        let before = threads::faults_of(self.pid);
        let taken = (0..).map(Slot).zip(self.record.taken()).collect();
        let held = tags::held(self.pid, &self.zone);
        // A process that has ended cannot be read, or has no memory any more; then the last reading
        // stands.
        if let (Some(before), Ok(held), Some(after)) = (before, held, threads::faults_of(self.pid))
            && held.outside.committed > 0
        {
            self.memory().record(holdings::Reading { held, faults: [before, after], taken });
        }
    }

    /// Whether it has committed so much since the last reading that another reading is due.
    pub(crate) fn has_grown(&self) -> bool {
        let now = tags::committed(self.pid).unwrap_or_default();
        now > self.memory().committed() + self.bound / READ_AFTER_PART
    }

    /// What it had committed at the last reading.
    pub(crate) fn committed_bytes(&self) -> u64 {
        self.memory().committed()
    }

    /// How much of a tenant's island was resident at the last reading.
    pub(crate) fn resident_bytes(&self, slot: Slot) -> u64 {
        self.memory().island(slot).resident
    }

    /// What the last reading found outside the islands, if that is more than the tenants explain.
    pub(crate) fn unexplained(&self) -> Option<Unexplained> {
        let most = self.slots().count();
        self.memory().too_much(self.rules.most_outside(most))
    }

    /// Whether the last reading found too much outside the islands.
    pub(crate) fn is_over(&self) -> bool {
        self.memory().is_over()
    }

    /// Asks one of its tenants to leave: the one that holds most, if known. Returns that tenant's
    /// slot, and whether the tenant is known to hold most.
    pub(crate) fn send_one_away(&self) -> Option<(Slot, bool)> {
        let mut slots = self.slots();
        let here = slots.wanted();
        let largest = self.memory().largest_outside(&here);
        let slot = largest.or_else(|| here.first().copied())?;
        slots.send_away(slot);
        Some((slot, largest.is_some()))
    }

    /// Whether the tenant of that slot is asked to leave.
    pub(crate) fn is_unwanted(&self, slot: Slot) -> bool {
        self.slots().is_unwanted(slot)
    }

    /// The tenant of that slot has left; its last work may still be ending.
    pub(crate) fn note_left(&self, slot: Slot) {
        self.slots().note_left(slot);
    }

    /// The process is to be killed for something that one of its tenants did, and it is unknown
    /// which.
    pub(crate) fn misbehaves(&self, signal: Signal) {
        let _ = self.evidence.misbehaved.set(signal);
    }

    /// The process is to be killed for what the tenant of that slot did.
    pub(crate) fn blame(&self, slot: Slot, signal: Signal) {
        let _ = self.evidence.culprit.set((slot, signal));
    }

    /// V8 gave up on a run of that slot; `certain` if that run was over its own limit.
    pub(crate) fn gave_up(&self, slot: Slot, certain: bool) {
        let _ = self.evidence.gave_up.set((slot, certain));
    }

    fn exit(&self) -> Option<Arc<Exit>> {
        self.exit.borrow().clone()
    }

    /// Whether the process has ended, and its end exonerates this slot.
    pub(crate) fn blames_another(&self, slot: Slot) -> bool {
        self.exit().is_some_and(|exit| exit.consequence.exonerates(slot))
    }

    /// Whether the process has ended, and its end is blamed on this slot.
    pub(crate) fn blames(&self, slot: Slot) -> bool {
        self.exit().is_some_and(|exit| exit.consequence.blames(slot))
    }

    /// The CPU time of that slot's thread at the end of the process, if the process ended on that
    /// thread and the time is known.
    pub(crate) fn computed(&self, slot: Slot) -> Option<Duration> {
        self.exit()?.computed(slot)
    }

    /// Waits for the process to die; returns how it died.
    pub(crate) async fn death(&self) -> Death {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.as_ref().map(|exit| exit.death.clone())).unwrap_or(Death::Unknown)
    }
}
