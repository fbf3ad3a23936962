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

use enisle_cordon::{Level, Seen, Signal};
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

use crate::birth::{Blueprint, Newborn, START_TIMEOUT, StartError, inspect, untagged};
use crate::channel::send;
use crate::death::Death;
use crate::events::What;
use crate::meter;
use crate::tenant::Tenant;
use crate::violation::{self, Attack};
use crate::warden::Warden;

/// For as long the threads of a worker may be other than what was said of them, because one is just ending.
const CONFINEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the process's owner is told to do.
#[derive(Debug)]
enum Command {
    Admit { admit: Admit, channel: OwnedFd },
    Cancel { slot: Slot, run: RunId },
    Retire { slot: Slot },
    Kill(String),
}

/// A run that its worker could not end; the process was killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun {
    pub(crate) run: RunId,
    pub(crate) cause: OverrunCause,
}

/// A living worker process, as the rest of the daemon holds it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) level: Level,
    /// For whom it was started.
    pub(crate) uid: u32,
    pub(crate) started_at: Instant,
    pub(crate) v8: String,
    commands: mpsc::UnboundedSender<Command>,
    overruns: Mutex<HashMap<Slot, Overrun>>,
    /// Whose run ended the process, and how, where that is known.
    culprit: OnceLock<(Slot, Signal)>,
    /// It was killed for something that its tenants did, whoever of them.
    misbehaved: OnceLock<Signal>,
    /// It never holds more than one tenant, so what happens to it is that tenant's doing.
    pub(crate) holds_one: bool,
    /// Which key each page of its islands should carry; none where the layer is off.
    tags: Option<Tags>,
    zone: Zone,
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
        let mut findings = inspect(blueprint, &newborn);
        let zone = newborn.zone.clone();
        let tags = ready.keys.map(|keys| Tags { zone: zone.clone(), keys: keys.tenants, jit: keys.jit });
        if layers.has(Layer::Keys) {
            findings.extend(untagged(newborn.started.pid, tags.as_ref()).map(|what| format!("keys: {what}")));
        }
        if !findings.is_empty() {
            let (worker, pid) = (newborn.id, newborn.started.pid.as_raw());
            events.tell(What::WorkerRejected { worker, pid, findings: findings.clone() });
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
            misbehaved: OnceLock::new(),
            holds_one: blueprint.places(level) == 1,
            tags,
            zone,
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
            faults: newborn.faults,
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
    fn was_one_tenants(&self) -> bool {
        self.holds_one || self.tenants().len() == 1
    }

    /// Those whose threads are here, but for the one in that place.
    fn others(&self, but: Option<Slot>) -> Vec<Arc<Tenant>> {
        let here = self.confined().clone();
        here.into_iter()
            .filter(|slot| Some(*slot) != but && self.is_here(*slot))
            .filter_map(|slot| self.tenant_in(slot))
            .collect()
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

    /// How much of each place's island is in memory, by the kernel's word. May take some ms.
    pub(crate) fn resident_bytes(&self) -> Vec<u64> {
        tags::resident(self.pid, &self.zone).unwrap_or_default()
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

    /// A run of that place ended the process.
    pub(crate) fn blame(&self, slot: Slot, signal: Signal) {
        let _ = self.culprit.set((slot, signal));
    }

    /// The process ended, and it was another tenant's doing.
    pub(crate) fn blames_another(&self, slot: Slot) -> bool {
        self.culprit.get().is_some_and(|(culprit, _)| *culprit != slot)
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
    faults: FaultPage,
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
                started.kill();
                let _ = pidfd.readable().await;
                let ended = started.collect().map_or(Death::Unknown, |status| Death::of(status, &self.faults));
                self.attribute(&ended);
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
        self.account(&why);
        death.send_replace(Some(why));
        // A tenant holds its home, which holds the process, which is gone.
        self.worker.tenants().clear();
    }

    /// Puts a fault on the account of the tenant on whose thread it was, and tells of it.
    fn attribute(&self, ended: &Death) {
        let Death::Fault(fault) = ended else { return };
        let slot = fault.place.map(Slot);
        let tenant = slot.and_then(|slot| self.worker.tenant_in(slot));
        if let (Some(slot), Some(_)) = (slot, &tenant) {
            self.worker.blame(slot, violation::signal(fault, &self.worker.zone));
        }
        let (worker, pid) = (self.worker.id, self.worker.pid.as_raw());
        let (tenant, what) = (tenant.map(|tenant| tenant.name.to_string()), violation::describe(fault));
        let pc = format!("{:#x}", fault.pc);
        self.warden.events.tell(match self.worker.attack(fault) {
            Some(Attack { layer, address, victim }) => {
                let address = address.map(|address| format!("{address:#x}"));
                let victim = victim.and_then(|slot| self.worker.tenant_in(slot));
                let victim = victim.map(|tenant| tenant.name.to_string());
                What::Violation { worker, pid, tenant, layer, what, address, victim, pc }
            }
            None => What::Crashed { worker, pid, tenant, what, pc },
        });
    }

    /// Puts the death on the accounts of those who were there: of the one whose doing it was, or of all a little.
    ///
    /// A neighbour that can write anywhere can make a thread stumble, so only of a process that was never anybody else's it
    /// is certain.
    fn account(&self, why: &Death) {
        let worker = &self.worker;
        let alone = worker.was_one_tenants();
        let seen = |signal| if alone { Seen::certain(signal) } else { Seen::in_company(signal) };
        // What the kernel put on record goes before what was said.
        let recorded = match why {
            Death::Fault(fault) => fault.place.map(|place| (Slot(place), violation::signal(fault, &worker.zone))),
            _ => None,
        };
        let said = worker.culprit.get().map(|(slot, signal)| match (signal, why) {
            (Signal::OutOfMemory, Death::GaveUp) => (*slot, Signal::EngineAbort),
            (signal, _) => (*slot, *signal),
        });
        if let Some((slot, signal)) = recorded.or(said) {
            // Of those who are here: one that has left, or has not run anything yet, has done nothing.
            if let Some(culprit) = worker.tenant_in(slot).filter(|_| worker.is_here(slot)) {
                self.warden.saw_death(&culprit, seen(signal), &worker.others(Some(slot)));
            }
            return;
        }
        let signal = match why {
            Death::Killed(_) => match worker.misbehaved.get() {
                Some(signal) => *signal,
                None => return,
            },
            Death::Filter => Signal::RefusedCall,
            Death::OutOfMemory => Signal::OutOfMemory,
            Death::GaveUp => Signal::EngineAbort,
            // Whoever may send that signal is outside, the kernel's own choice in want of memory included.
            Death::Signaled(signal) if *signal == nix::sys::signal::Signal::SIGKILL => Signal::Unattributed,
            Death::Fault(_) | Death::Exited(_) | Death::Signaled(_) | Death::Unknown => Signal::Crash,
        };
        match worker.others(None).as_slice() {
            [] => {}
            [only] if alone => self.warden.saw(only, &[Seen::certain(signal)]),
            several => self.warden.saw_unexplained_death(several, signal),
        }
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
                        let (worker, pid) = (self.worker.id, self.worker.pid.as_raw());
                        self.warden.events.tell(What::ProtocolViolation { worker, pid, tenant: None, what: what.clone() });
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
                self.worker.kill(format!("{run} did not end when it was told to ({cause:?})"));
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
