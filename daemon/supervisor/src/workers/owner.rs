//! The task that owns a worker process: starts it, verifies it from outside, speaks on its control
//! channel, and reaps it.
//!
//! ```text
//! start ─▶ (clone, exec, Start) ─▶ Ready? ─▶ verified? ─▶ living ─▶ ended ─▶ heard ─▶ judged
//!             └─ refused, late, or failed verification ─▶ killed before it has a tenant
//! ```
//! Once the worker is living, only this task writes to the control channel, kills the process, and
//! reaps it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use enisle_cordon::{Level, MemoryRules, Room, Signal};
use enisle_hardening::islands::tags::Tags;
use enisle_hardening::process::spawn::Started;
use enisle_wire::control::{FromWorker, OverrunCause, Role, Session, Slot, ToWorker};
use enisle_wire::decode;
use enisle_wire::frame::{HEADER_BYTES, body_len};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::events::{EventKind, Events};
use crate::workers::birth::{Blueprint, Newborn, START_TIMEOUT, StartError};
use crate::workers::channel::send;
use crate::workers::death::Death;
use crate::workers::exit::{Company, Evidence, Exit};
use crate::workers::holdings::Holdings;
use crate::workers::inspection::{Inspected, Inspection};
use crate::workers::listeners::Listeners;
use crate::workers::process::{Command, Worker};
use crate::workers::slots::{Overrun, Slots};
use crate::workers::threads;

/// How long reading the threads' last frames may take after a process has ended. The tasks that
/// read them have nothing else to do, unless they are waiting for memory for an answer.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// Applies the end of a process to the tenants that lived in it.
pub(crate) type OnExit = Box<dyn FnOnce(&Worker, &Exit) + Send>;

/// Starts a worker that hosts tenants of that uid, or stands by for those of any uid, and verifies
/// it. `on_exit` is called once, before the rest of the daemon can see the end of the process.
pub(crate) async fn start(
    blueprint: &Arc<Blueprint>,
    level: Level,
    uid: Option<u32>,
    snapshot: &OwnedFd,
    rules: &MemoryRules,
    events: &Arc<Events>,
    on_exit: OnExit,
) -> Result<Arc<Worker>, StartError> {
    let layers = blueprint.layers_of(level);
    let mut newborn = Newborn::start(blueprint, Role::Host, level, Some(snapshot)).await?;
    let FromWorker::Ready(ready) = newborn.first_word().await? else {
        return Err(StartError::NotReady("its first frame was not Ready".to_owned()));
    };
    let zone = newborn.zone.clone();
    let tags = ready.keys.map(|keys| Tags { zone: zone.clone(), keys: keys.tenants, jit: keys.jit });
    // The worker has no tenant yet, so `held` is what the process began with.
    let Inspected { findings, held } = Inspection::of(blueprint, &newborn, tags.clone()).run().await?;
    if !findings.is_empty() {
        let (worker, pid) = (newborn.id, newborn.started.pid.as_raw());
        let uid = uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        events.emit(EventKind::WorkerRejected { worker, pid, uid, findings: findings.clone() });
        return Err(StartError::Rejected(findings));
    }
    let (commands, receive) = mpsc::unbounded_channel();
    let (judged, exit) = watch::channel(None);
    let worker = Arc::new(Worker {
        id: newborn.id,
        pid: newborn.started.pid,
        level,
        owner: uid.map(OnceLock::from).unwrap_or_default(),
        started_at: Instant::now(),
        v8: ready.v8,
        commands,
        holds_one: blueprint.slots(level) == 1,
        tags,
        zone,
        layers,
        bound: blueprint.data_bytes(level),
        rules: rules.clone(),
        record: newborn.faults,
        memory: Mutex::new(Holdings::new(held)),
        slots: Mutex::new(Slots::default()),
        listeners: Listeners::default(),
        evidence: Evidence::default(),
        ended: AtomicBool::new(false),
        exit,
    });
    events.emit(EventKind::WorkerStarted {
        worker: worker.id,
        pid: worker.pid.as_raw(),
        uid: worker.uid(),
        level: level.as_str(),
    });
    let owner = Owner {
        worker: Arc::clone(&worker),
        control: newborn.control,
        session: newborn.session,
        events: Arc::clone(events),
    };
    tokio::spawn(owner.own(newborn.started, receive, on_exit, judged));
    Ok(worker)
}

struct Owner {
    worker: Arc<Worker>,
    control: UnixStream,
    session: Session,
    events: Arc<Events>,
}

impl Owner {
    async fn own(
        mut self,
        mut started: Started,
        mut commands: mpsc::UnboundedReceiver<Command>,
        on_exit: OnExit,
        judged: watch::Sender<Option<Arc<Exit>>>,
    ) {
        let (death, computed) = match watch_process(&started) {
            Ok(pidfd) => {
                let killed = self.live(&pidfd, &mut commands).await;
                let computed = self.computed_by_culprit();
                started.kill();
                let _ = pidfd.readable().await;
                let ended = started.collect().map_or(Death::Unknown, |status| Death::of(status, &self.worker.record));
                let death = match (killed, ended) {
                    // With a record of a fault, the process had ended by itself before it was
                    // killed.
                    (_, fault @ Death::Fault(_)) => fault,
                    (Some(why), _) => Death::Killed(why),
                    (None, ended) => ended,
                };
                (death, computed)
            }
            Err(error) => (Death::Killed(format!("it cannot be watched: {error}")), None),
        };
        drop(started);
        self.worker.ended.store(true, Ordering::Relaxed);
        // Closes the channels of tenants that were on their way to the process.
        drop(commands);
        // The threads' last frames decide whom to blame.
        self.worker.listeners.have_heard_all(LAST_WORDS_TIMEOUT).await;
        let exit = self.judge(death, computed);
        on_exit(&self.worker, &exit);
        judged.send_replace(Some(Arc::new(exit)));
    }

    /// The CPU time of the thread that the process is to be killed for, as reported by the kernel:
    /// the thread may still exist and has recorded nothing.
    fn computed_by_culprit(&self) -> Option<(Slot, Duration)> {
        let (slot, _) = *self.worker.evidence.culprit.get()?;
        let computed = threads::computed(self.worker.pid, self.worker.thread_of(slot)?)?;
        Some((slot, computed))
    }

    fn judge(&self, death: Death, computed: Option<(Slot, Duration)>) -> Exit {
        let worker = &self.worker;
        let (ending, slot) = worker.evidence.ending(&death, &worker.zone);
        let on_record = slot.and_then(|slot| Some((slot, worker.record.computed(slot.0)?)));
        let room = match &death {
            Death::Fault(fault) => Room::of(fault.room, worker.bound, &worker.rules),
            _ => Room::Plenty,
        };
        let (here, ever) = {
            let slots = worker.slots();
            (slots.inhabited(), slots.ever_taken())
        };
        // Tenants that have left count too: what they took outside their islands is still held.
        let largest = || worker.memory().largest(&ever);
        let company = Company { here, ever: ever.clone(), was_one_tenants: worker.was_one_tenants() };
        let exit = Exit::judge(death, (ending, slot), company, room, largest);
        Exit { computed: computed.or(on_record), ..exit }
    }

    /// Returns when the process has ended by itself (`None`), or is to be killed (with the reason).
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
                        // End of file: the process is ending too; wait for that.
                        Ok(0) | Err(_) => {
                            let _ = tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await;
                            return None;
                        }
                        Ok(got) => unread.extend(reader.iter().take(got)),
                    }
                    if let Err(what) = self.hear(&mut unread) {
                        let (worker, pid, uid) = (self.worker.id, self.worker.pid.as_raw(), self.worker.uid());
                        let event = EventKind::ProtocolViolation { worker, pid, uid, tenant: None, what: what.clone() };
                        self.events.emit(event);
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

    /// Handles every complete frame in `unread`.
    fn hear(&mut self, unread: &mut Vec<u8>) -> Result<(), String> {
        while let Some(header) = unread.first_chunk::<HEADER_BYTES>() {
            let end = HEADER_BYTES + body_len(*header, self.session.most_bytes()).map_err(|error| error.to_string())?;
            let Some(body) = unread.get(HEADER_BYTES..end) else { break };
            let frame: FromWorker = decode(body).map_err(|error| error.to_string())?;
            unread.drain(..end);
            self.session.accept(&frame).map_err(|violation| violation.to_string())?;
            if let FromWorker::Retired { slot } = &frame {
                self.worker.slots().note_ended(*slot);
            }
            if let FromWorker::Failed(why) = &frame {
                tracing::warn!(worker = self.worker.id, %why, "a worker cannot go on");
                // This counts like an exit for an unknown reason.
                self.worker.misbehaves(Signal::Unattributed);
                self.worker.kill("it could not go on".to_owned());
            }
            if let FromWorker::Overrun { slot, run, cause } = frame {
                self.worker.blame(slot, Signal::HardKill);
                self.worker.slots().note_overrun(slot, Overrun { run, cause });
                // Killing the process is the only way to stop code that V8 does not interrupt.
                self.worker.kill(match cause {
                    OverrunCause::Disposal => format!("disposing of what {run} left took too long"),
                    _ => format!("{run} did not end when it was terminated ({cause:?})"),
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
