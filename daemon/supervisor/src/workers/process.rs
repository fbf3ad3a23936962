//! One worker process: started, verified from outside, spoken to on its control channel, and buried.
//!
//! ```text
//! start ─▶ (clone, exec, Start) ─▶ Ready? ─▶ verified? ─▶ living ─▶ dying ─▶ dead
//!             └─ refused, late, or not what it should be ─▶ killed before it has a tenant
//! ```
//! One task owns the process: only it writes to the control channel, kills, and collects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::blame::Thread;
use enisle_cordon::{Because, Ending, Level, MemoryRules, Room, Signal, Verdict, blame};
use enisle_hardening::fault::{Fault, FaultPage};
use enisle_hardening::islands::Zone;
use enisle_hardening::spawn::Started;
use enisle_hardening::tags::{self, Tags};
use enisle_hardening::verify;
use enisle_hardening::{Layer, LayerSet};
use enisle_wire::control::{Admit, FromWorker, OverrunCause, Role, Session, Slot, ToWorker};
use enisle_wire::decode;
use enisle_wire::frame::{HEADER_BYTES, body_len};
use enisle_wire::tenant::RunId;
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::cordons::meter;
use crate::cordons::warden::Warden;
use crate::events::What;
use crate::tenants::tenant::Tenant;
use crate::workers::birth::{Blueprint, Newborn, START_TIMEOUT, StartError};
use crate::workers::channel::send;
use crate::workers::death::Death;
use crate::workers::holdings::{self, Holdings, Unexplained};
use crate::workers::look::{Look, Looked};
use crate::workers::violation::{self, Attack};

/// For as long the threads of a worker may be other than what was said of them, because one is just ending.
const CONFINEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that has committed such a part of its bound since it was looked at is looked at again.
const LOOK_AFTER_PART: u64 = 32;

/// What the process's owner is told to do.
#[derive(Debug)]
enum Command {
    Admit { admit: Admit, channel: OwnedFd },
    Cancel { slot: Slot, run: RunId },
    Retire { slot: Slot },
    Kill(String),
}

/// A run that its worker could not end, or what it left; the process was killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun {
    pub(crate) run: RunId,
    pub(crate) cause: OverrunCause,
}

/// On whom a death is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It was that tenant's doing.
    Doing(Slot),
    /// It was for want of memory, of which that tenant held most.
    Holds(Slot),
    /// It is nobody's crime: all of them lost their runs to the others.
    Nobody,
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
    commands: mpsc::UnboundedSender<Command>,
    overruns: Mutex<HashMap<Slot, Overrun>>,
    /// For whose doing the process is ended, and what that was, where the supervisor saw it.
    culprit: OnceLock<(Slot, Signal)>,
    /// Whose run V8 gave up on, by its thread's last words, and whether it was over its own limit.
    gave_up: OnceLock<(Slot, bool)>,
    /// On whom its death was put, once that is judged.
    put: OnceLock<Put>,
    /// Whether it only ever had one tenant, once it has ended.
    was_one_tenants: OnceLock<bool>,
    /// On whose thread it ended, and the CPU time of that thread.
    computed: OnceLock<(Slot, Duration)>,
    /// It was killed for something that its tenants did, whoever of them.
    misbehaved: OnceLock<Signal>,
    /// It never holds more than one tenant, so what happens to it is that tenant's doing.
    pub(crate) holds_one: bool,
    /// Which key each page of its islands should carry; none where the layer is off.
    tags: Option<Tags>,
    zone: Zone,
    /// What it may commit.
    pub(crate) bound: u64,
    rules: MemoryRules,
    memory: Mutex<Holdings>,
    /// What it puts on record of itself.
    record: FaultPage,
    /// Those that have to leave, because it holds more than they explain.
    unwanted: Mutex<BTreeSet<Slot>>,
    /// Everybody who was ever admitted.
    tenants: Mutex<BTreeMap<Slot, Arc<Tenant>>>,
    /// Those whose thread has said that it is ready, and has not ended.
    confined: Mutex<BTreeSet<Slot>>,
    /// When tenants left.
    left: Mutex<BTreeMap<Slot, Instant>>,
    layers: LayerSet,
    /// Why it died, once it has.
    died: watch::Receiver<Option<Death>>,
}

impl Worker {
    /// Starts a host and verifies it.
    pub(crate) async fn start(
        blueprint: &Arc<Blueprint>,
        level: Level,
        uid: u32,
        snapshot: &OwnedFd,
        warden: &Arc<Warden>,
    ) -> Result<Arc<Self>, StartError> {
        let events = &warden.events;
        let layers = blueprint.layers_of(level);
        let mut newborn = Newborn::start(blueprint, Role::Host, level, Some(snapshot)).await?;
        let FromWorker::Ready(ready) = newborn.first_word().await? else {
            return Err(StartError::NotReady("its first word was not Ready".to_owned()));
        };
        let zone = newborn.zone.clone();
        let tags = ready.keys.map(|keys| Tags { zone: zone.clone(), keys: keys.tenants, jit: keys.jit });
        // Before its first tenant.
        let Looked { findings, held } = Look::at(blueprint, &newborn, tags.clone()).take().await?;
        if !findings.is_empty() {
            let (worker, pid) = (newborn.id, newborn.started.pid.as_raw());
            events.tell(What::WorkerRejected { worker, pid, uid, findings: findings.clone() });
            return Err(StartError::Rejected(findings));
        }
        warden.note_engine(&ready.v8);
        let (commands, receive) = mpsc::unbounded_channel();
        let (death, died) = watch::channel(None);
        let worker = Arc::new(Self {
            id: newborn.id,
            pid: newborn.started.pid,
            level,
            uid,
            started_at: Instant::now(),
            v8: ready.v8,
            commands,
            overruns: Mutex::default(),
            culprit: OnceLock::new(),
            gave_up: OnceLock::new(),
            put: OnceLock::new(),
            was_one_tenants: OnceLock::new(),
            computed: OnceLock::new(),
            misbehaved: OnceLock::new(),
            holds_one: blueprint.places(level) == 1,
            tags,
            zone,
            bound: blueprint.data_bytes(level),
            rules: warden.cordon.rules.memory.clone(),
            memory: Mutex::new(Holdings::new(held)),
            record: newborn.faults,
            unwanted: Mutex::default(),
            tenants: Mutex::default(),
            confined: Mutex::default(),
            left: Mutex::default(),
            layers,
            died,
        });
        let (id, pid) = (worker.id, worker.pid.as_raw());
        events.tell(What::WorkerStarted { worker: id, pid, uid, level: level.as_str() });
        let owner = Owner {
            worker: Arc::clone(&worker),
            control: newborn.control,
            session: newborn.session,
            warden: Arc::clone(warden),
        };
        tokio::spawn(owner.own(newborn.started, receive, death));
        Ok(worker)
    }

    /// A closed channel of commands means that the process is dead; its residents hear of that by themselves.
    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    pub(crate) fn admit(&self, tenant: &Arc<Tenant>, admit: Admit, channel: OwnedFd) {
        self.tenants().insert(admit.slot, Arc::clone(tenant));
        self.command(Command::Admit { admit, channel });
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
        self.overruns.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.died.borrow().is_some()
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<Slot, Arc<Tenant>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who lives, or lived, in that place.
    pub(crate) fn tenant_in(&self, slot: Slot) -> Option<Arc<Tenant>> {
        self.tenants().get(&slot).cloned()
    }

    /// Nobody but one tenant was ever here: whatever happens here is its doing.
    pub(crate) fn was_one_tenants(&self) -> bool {
        let now = || self.holds_one || self.tenants().len() == 1;
        self.was_one_tenants.get().copied().unwrap_or_else(now)
    }

    /// The places of those whose threads are here.
    fn present(&self) -> Vec<Slot> {
        let confined = self.confined().clone();
        confined.into_iter().filter(|slot| self.is_here(*slot) && self.tenant_in(*slot).is_some()).collect()
    }

    /// Those whose threads are here, but for the one in that place.
    fn others(&self, but: Option<Slot>) -> Vec<Arc<Tenant>> {
        let here = self.present().into_iter().filter(|slot| Some(*slot) != but);
        here.filter_map(|slot| self.tenant_in(slot)).collect()
    }

    /// A tenant's thread says for the first time that it is ready: it has to run under filters of its own, by the kernel's
    /// word. Threads come and go meanwhile, so what does not add up is looked at again for a while.
    pub(crate) async fn check_confinement(&self, slot: Slot) -> Result<(), String> {
        self.confined().insert(slot);
        if !self.layers.has(Layer::ThreadFilter) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (found, said) = (verify::confined_threads(self.pid, self.layers), self.confined().len());
            match found {
                Ok(found) if found >= said => return Ok(()),
                _ if self.is_dead() => return Err("it has died".to_owned()),
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
        meter::thread_named(self.pid, &format!("tenant-{}", slot.0))
    }

    fn confined(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        self.confined.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn memory(&self) -> MutexGuard<'_, Holdings> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what the process holds, by the kernel's word. May take some ms.
    pub(crate) fn look_at_memory(&self) {
        let before = meter::faults_of(self.pid);
        let taken = (0..).map(Slot).zip(self.record.taken()).collect();
        let held = tags::held(self.pid, &self.zone);
        // A process that has ended cannot be looked at, or has no memory any more; what was seen
        // last says how it stood.
        if let (Some(before), Ok(held), Some(after)) = (before, held, meter::faults_of(self.pid))
            && held.outside.committed > 0
        {
            self.memory().look(holdings::Look { held, faults: [before, after], taken });
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
        let most = self.tenants().len();
        self.memory().too_much(self.rules.most_outside(most))
    }

    /// The last look found too much.
    pub(crate) fn is_over(&self) -> bool {
        self.memory().is_over()
    }

    /// Has the next of its tenants leave, the one that holds most first. Whether it is known that
    /// the rest is that tenant's.
    pub(crate) fn send_one_away(&self) -> Option<(Arc<Tenant>, bool)> {
        let mut unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        let here: Vec<_> = self.present().into_iter().filter(|slot| !unwanted.contains(slot)).collect();
        let largest = self.memory().largest_outside(&here);
        let slot = largest.or_else(|| here.first().copied())?;
        unwanted.insert(slot);
        Some((self.tenant_in(slot)?, largest.is_some()))
    }

    /// The tenant of that place has to leave.
    pub(crate) fn is_unwanted(&self, slot: Slot) -> bool {
        self.unwanted.lock().unwrap_or_else(PoisonError::into_inner).contains(&slot)
    }

    /// The tenant of that place has left; what it was at may still be ending.
    pub(crate) fn has_left(&self, slot: Slot) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, Instant::now());
    }

    /// A tenant has run something there, and has not left for long.
    fn is_here(&self, slot: Slot) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied();
        self.confined().contains(&slot) && left.is_none_or(|left| left.elapsed() < 2 * START_TIMEOUT)
    }

    /// It is to be killed for something that one of its tenants did, whoever that was.
    pub(crate) fn misbehaves(&self, signal: Signal) {
        let _ = self.misbehaved.set(signal);
    }

    /// The process is ended for what the tenant of that place did.
    pub(crate) fn blame(&self, slot: Slot, signal: Signal) {
        let _ = self.culprit.set((slot, signal));
    }

    /// V8 gave up on a run of that place; whether the run was over its own limit.
    pub(crate) fn gave_up(&self, slot: Slot, certain: bool) {
        let _ = self.gave_up.set((slot, certain));
    }

    /// The process ended, and it was not this tenant's doing.
    pub(crate) fn blames_another(&self, slot: Slot) -> bool {
        self.put.get().is_some_and(|put| !matches!(put, Put::Doing(whose) | Put::Holds(whose) if *whose == slot))
    }

    /// The process ended, and it was this tenant's doing.
    pub(crate) fn blames(&self, slot: Slot) -> bool {
        self.put.get() == Some(&Put::Doing(slot))
    }

    /// How much CPU time the thread of that place had used at the end of the process, if that was
    /// over something on that thread and is known.
    pub(crate) fn computed(&self, slot: Slot) -> Option<Duration> {
        self.computed.get().filter(|(whose, _)| *whose == slot).map(|(_, time)| *time)
    }

    /// Waits for the death; says why.
    pub(crate) async fn death(&self) -> Death {
        let mut died = self.died.clone();
        match died.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Death::Unknown),
            Err(_) => Death::Unknown,
        }
    }
}

/// The task that owns a process.
struct Owner {
    worker: Arc<Worker>,
    control: UnixStream,
    session: Session,
    warden: Arc<Warden>,
}

impl Owner {
    async fn own(
        mut self,
        mut started: Started,
        mut commands: mpsc::UnboundedReceiver<Command>,
        death: watch::Sender<Option<Death>>,
    ) {
        let why = match watch_process(&started) {
            Ok(pidfd) => {
                let killed = self.live(&pidfd, &mut commands).await;
                self.note_computed();
                started.kill();
                let _ = pidfd.readable().await;
                let ended = started.collect().map_or(Death::Unknown, |status| Death::of(status, &self.worker.record));
                match (killed, ended) {
                    // It had ended by itself before it was killed.
                    (_, fault @ Death::Fault(_)) => fault,
                    (Some(why), _) => Death::Killed(why),
                    (None, ended) => ended,
                }
            }
            Err(error) => Death::Killed(format!("it cannot be watched: {error}")),
        };
        drop(started);
        // What its tenants' threads said last may still be unread, and says whose doing it was: every task that has
        // something to read runs before the death is told.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        // Whoever hears of the death asks that, when the tenants are gone.
        let _ = self.worker.was_one_tenants.set(self.worker.was_one_tenants());
        self.account(&why);
        death.send_replace(Some(why));
        // A tenant holds its home, which holds the process, which is gone.
        self.worker.tenants().clear();
    }

    /// The thread for whose doing the process is to be ended may still be there: then the kernel
    /// says how much it has computed, and not the thread.
    fn note_computed(&self) {
        let worker = &self.worker;
        let computed = worker
            .culprit
            .get()
            .and_then(|(slot, _)| Some((*slot, meter::computed(worker.pid, worker.thread_of(*slot)?)?)));
        if let Some(computed) = computed {
            let _ = worker.computed.set(computed);
        }
    }

    /// How it ended, for whoever judges it, and on whose thread that was. What the kernel put on
    /// record goes before what was said.
    fn ending(&self, why: &Death) -> (Ending, Option<Slot>) {
        let worker = &self.worker;
        let words = worker.gave_up.get().copied();
        if let Death::Fault(fault) = why {
            let slot = fault.place.map(Slot);
            let certain = words.is_some_and(|(speaker, certain)| certain && Some(speaker) == slot);
            return (violation::ending(fault, &worker.zone, certain), slot);
        }
        if let Some((slot, signal)) = worker.culprit.get() {
            return (Ending::Did(*signal), Some(*slot));
        }
        let silent = match (why, words) {
            (Death::GaveUp, Some((slot, certain))) => return (Ending::GaveUp { certain }, Some(slot)),
            (_, Some((slot, certain))) => return (Ending::OutOfMemory { certain }, Some(slot)),
            (Death::Killed(_), None) => {
                return (worker.misbehaved.get().map_or(Ending::Innocent, |signal| Ending::Silent(*signal)), None);
            }
            (Death::Filter, None) => Signal::RefusedCall,
            (Death::OutOfMemory, None) => Signal::OutOfMemory,
            (Death::GaveUp, None) => Signal::EngineAbort,
            // Whoever may send that signal is outside, the kernel's own choice in want of memory
            // included.
            (Death::Signaled(signal), None) if *signal == nix::sys::signal::Signal::SIGKILL => Signal::Unattributed,
            (Death::Fault(_) | Death::Exited(_) | Death::Signaled(_) | Death::Unknown, None) => Signal::Crash,
        };
        (Ending::Silent(silent), None)
    }

    /// Tells of the death, and puts it on the accounts of those who were there: of the one whose
    /// doing it was, of all a little, or of nobody.
    fn account(&self, why: &Death) {
        let worker = &self.worker;
        let (ending, slot) = self.ending(why);
        if let Some((slot, computed)) = slot.and_then(|slot| Some((slot, worker.record.computed(slot.0)?))) {
            let _ = worker.computed.set((slot, computed));
        }
        let thread = match slot {
            Some(slot) if worker.is_here(slot) && worker.tenant_in(slot).is_some() => Thread::Here,
            Some(_) => Thread::Left,
            None => Thread::Unknown,
        };
        let room = match why {
            Death::Fault(fault) => Room::of(fault.room, worker.bound, &worker.rules),
            _ => Room::Plenty,
        };
        let verdict = blame(ending, thread, !worker.was_one_tenants(), room);
        if let Death::Fault(fault) = why {
            self.tell(fault, verdict);
        }
        let here = worker.present();
        match verdict {
            Verdict::Nobody => {}
            Verdict::Thread(seen) => {
                // Of a process that was always one tenant's, whatever is not known is that
                // tenant's.
                let culprit = slot.filter(|_| thread == Thread::Here).or_else(|| here.first().copied());
                let Some((slot, culprit)) = culprit.and_then(|slot| Some((slot, worker.tenant_in(slot)?))) else {
                    return;
                };
                let _ = worker.put.set(Put::Doing(slot));
                self.warden.saw_death(&culprit, worker.uid, seen, &worker.others(Some(slot)));
            }
            Verdict::WantOfMemory => {
                // Also one that has left: what it took outside its island is still there.
                let ever: Vec<_> = worker.tenants().keys().copied().collect();
                let largest = worker.memory().largest(&ever);
                let _ = worker.put.set(largest.map_or(Put::Nobody, Put::Holds));
                match largest.and_then(|slot| worker.tenant_in(slot)) {
                    Some(largest) => self.warden.keep_apart(&[(largest, None)], Because::WantOfMemory, worker),
                    None => self.warden.halve(&worker.others(None), Because::WantOfMemory, worker),
                }
            }
            Verdict::Halves(None) => {
                let _ = worker.put.set(Put::Nobody);
                self.warden.halve(&worker.others(None), Because::UnexplainedDeath, worker);
            }
            Verdict::Halves(Some(signal)) => {
                self.warden.saw_unexplained_death(&worker.others(None), signal, worker);
            }
        }
    }

    /// Tells of a fault, on whose thread it was, and what follows from it.
    fn tell(&self, fault: &Fault, verdict: Verdict) {
        let (worker, pid, uid) = (self.worker.id, self.worker.pid.as_raw(), self.worker.uid);
        let tenant = fault.place.and_then(|place| self.worker.tenant_in(Slot(place)));
        let (tenant, what) = (tenant.map(|tenant| tenant.name.to_string()), violation::describe(fault));
        let pc = format!("{:#x}", fault.pc);
        self.warden.events.tell(match self.worker.attack(fault) {
            Some(Attack { layer, address, victim }) => {
                let address = address.map(|address| format!("{address:#x}"));
                let victim = victim.and_then(|slot| self.worker.tenant_in(slot));
                let victim = victim.map(|tenant| tenant.name.to_string());
                What::Violation { worker, pid, uid, tenant, layer, what, address, victim, pc }
            }
            None => {
                let (room_mb, blame) = (fault.room >> 20, in_a_word(verdict));
                What::Crashed { worker, pid, uid, tenant, what, pc, room_mb, blame }
            }
        });
    }

    /// Until the process ends by itself (`None`) or is to be killed (with the reason).
    async fn live(
        &mut self,
        pidfd: &AsyncFd<OwnedFd>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<String> {
        let (mut reader, mut unread) = ([0; 4096], Vec::new());
        loop {
            tokio::select! {
                _ = pidfd.readable() => return None,
                command = commands.recv() => {
                    if let Err(why) = self.obey(command?).await {
                        return Some(why);
                    }
                }
                got = self.control.read(&mut reader) => {
                    match got {
                        // The end of the channel: the process is ending too; wait for that.
                        Ok(0) | Err(_) => {
                            let _ = tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await;
                            return None;
                        }
                        Ok(got) => unread.extend(reader.iter().take(got)),
                    }
                    if let Err(what) = self.hear(&mut unread) {
                        let (worker, pid, uid) = (self.worker.id, self.worker.pid.as_raw(), self.worker.uid);
                        let told = What::ProtocolViolation { worker, pid, uid, tenant: None, what: what.clone() };
                        self.warden.events.tell(told);
                        self.worker.misbehaves(Signal::Protocol);
                        return Some(format!("it broke the protocol: {what}"));
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), String> {
        let (frame, channel) = match command {
            Command::Kill(why) => return Err(why),
            Command::Cancel { slot, run } => (ToWorker::Cancel { slot, run }, None),
            Command::Retire { slot } => (ToWorker::Retire { slot }, None),
            Command::Admit { admit, channel } => {
                self.session.admit(admit.slot);
                (ToWorker::Admit(admit), Some(channel))
            }
        };
        let sent = tokio::time::timeout(
            START_TIMEOUT,
            send(&mut self.control, &frame, &channel.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
        )
        .await;
        let why = match sent {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("its control channel failed: {error}"),
            Err(_) => "it does not read its control channel".to_owned(),
        };
        self.worker.misbehaves(Signal::Protocol);
        Err(why)
    }

    /// Every whole frame in `unread`.
    fn hear(&mut self, unread: &mut Vec<u8>) -> Result<(), String> {
        while let Some(header) = unread.first_chunk::<HEADER_BYTES>() {
            let end = HEADER_BYTES + body_len(*header, self.session.most_bytes()).map_err(|error| error.to_string())?;
            let Some(body) = unread.get(HEADER_BYTES..end) else { break };
            let frame: FromWorker = decode(body).map_err(|error| error.to_string())?;
            unread.drain(..end);
            self.session.accept(&frame).map_err(|violation| violation.to_string())?;
            if let FromWorker::Retired { slot } = &frame {
                self.worker.confined().remove(slot);
            }
            if let FromWorker::Overrun { slot, run, cause } = frame {
                self.worker.blame(slot, Signal::HardKill);
                self.worker
                    .overruns
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(slot, Overrun { run, cause });
                // Ends this process by itself: the one way to stop code that V8 does not interrupt.
                self.worker.kill(match cause {
                    OverrunCause::Disposal => format!("what {run} left took too long to dispose of"),
                    _ => format!("{run} did not end when it was told to ({cause:?})"),
                });
            }
        }
        Ok(())
    }
}

/// A descriptor that is readable once the process has ended.
fn watch_process(started: &Started) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = started.pidfd().try_clone_to_owned()?;
    #[expect(deprecated, reason = "its unsoundness needs a type that lies about its descriptor; OwnedFd does not")]
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// What follows from a death, for an event.
fn in_a_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Nobody => "nobody",
        Verdict::Thread(seen) if seen.certain => "certain",
        Verdict::Thread(_) => "inCompany",
        Verdict::WantOfMemory => "wantOfMemory",
        Verdict::Halves(_) => "unknown",
    }
}
