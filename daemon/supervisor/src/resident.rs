//! One tenant in one worker: the task that speaks on the tenant's channel, a run at a time.
//!
//! ```text
//! warming ─▶ idle ─▶ running ─▶ warming …
//!    └────────┴─────────┴─▶ gone (channel closed, protocol broken, or nobody holds the resident any more)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enisle_wire::control::{OverrunCause, Slot};
use enisle_wire::tenant::{Done, FromTenant, Limits, LogLine, RunId, ScriptError, Session, Usage};
use enisle_wire::{MAX_FROM_TENANT_BYTES, Outcome};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::events::{Events, What};
use crate::policy::TenantName;
use crate::process::{Worker, read_frame};

/// After a run's wall limit, its own watchdog's grace and the warming of an isolate, the process is no longer believed.
const BACKSTOP: Duration = Duration::from_secs(5);

/// A run on its way to a worker: encoded once, sent again if the worker dies.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: RunId,
    pub(crate) limits: Limits,
    /// The `Run` frame.
    pub(crate) frame: Arc<[u8]>,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Done(Box<Finished>),
    /// The worker died under it, for no fault that is known to be this run's.
    Lost(String),
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) outcome: Outcome,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) error: Option<ScriptError>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) truncated: bool,
    pub(crate) usage: Usage,
    pub(crate) queued: Duration,
}

struct Ticket {
    job: Job,
    at: Instant,
    reply: oneshot::Sender<Ended>,
}

/// A tenant's place in a worker, as the rest of the daemon holds it.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) worker: Arc<Worker>,
    pub(crate) slot: Slot,
    tickets: mpsc::UnboundedSender<Ticket>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    idle: AtomicBool,
    /// Milliseconds after `epoch` at which it was last used.
    used_ms: AtomicU64,
    epoch: Instant,
}

impl State {
    fn touch(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(now, Ordering::Relaxed);
    }
}

/// Ends a run whose client has gone: dropped before the run's end, it cancels.
struct CancelOnDrop<'a> {
    resident: &'a Resident,
    run: Option<RunId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            self.resident.worker.cancel(self.resident.slot, run);
        }
    }
}

impl Resident {
    /// Begins to speak on `channel`, whose other end goes to the worker with the admission.
    pub(crate) fn new(tenant: TenantName, worker: Arc<Worker>, slot: Slot, channel: UnixStream, events: Arc<Events>) -> Arc<Self> {
        let (tickets, receive) = mpsc::unbounded_channel();
        let state = Arc::new(State { idle: AtomicBool::new(false), used_ms: AtomicU64::new(0), epoch: Instant::now() });
        let (read, write) = channel.into_split();
        let speaker = Speaker {
            tenant,
            worker: Arc::clone(&worker),
            slot,
            read: FrameReader::spawn(read),
            write,
            session: Session::default(),
            state: Arc::clone(&state),
            events,
        };
        tokio::spawn(speaker.speak(receive));
        Arc::new(Self { worker, slot, tickets, state })
    }

    /// Runs one job. Dropping the future cancels it.
    pub(crate) async fn run(&self, job: Job) -> Ended {
        let mut guard = CancelOnDrop { resident: self, run: Some(job.id) };
        let (reply, answer) = oneshot::channel();
        self.state.touch();
        let sent = self.tickets.send(Ticket { job, at: Instant::now(), reply });
        let ended = match sent {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        guard.run = None;
        self.state.touch();
        match ended {
            Some(ended) => ended,
            None => Ended::Lost(self.worker.death().await),
        }
    }

    /// A warm isolate waits and no run does.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.idle.load(Ordering::Relaxed)
    }

    pub(crate) fn unused_for(&self) -> Duration {
        self.state.epoch.elapsed().saturating_sub(Duration::from_millis(self.state.used_ms.load(Ordering::Relaxed)))
    }

    /// False once its worker is dead or its channel is closed.
    pub(crate) fn is_usable(&self) -> bool {
        !self.tickets.is_closed() && !self.worker.is_dead()
    }
}

/// Frames as they come, read by a task of its own so that a wait for one can be abandoned without losing half of it.
#[derive(Debug)]
struct FrameReader(mpsc::Receiver<Result<FromTenant, enisle_wire::FrameError>>);

impl FrameReader {
    fn spawn(mut channel: OwnedReadHalf) -> Self {
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let frame = read_frame(&mut channel, MAX_FROM_TENANT_BYTES).await;
                let last = frame.is_err();
                if send.send(frame).await.is_err() || last {
                    return;
                }
            }
        });
        Self(receive)
    }
}

/// The task that speaks with one tenant's thread.
struct Speaker {
    tenant: TenantName,
    worker: Arc<Worker>,
    slot: Slot,
    read: FrameReader,
    write: OwnedWriteHalf,
    session: Session,
    state: Arc<State>,
    events: Arc<Events>,
}

/// Why a speaker stops.
enum Stop {
    /// The channel is closed: the worker has died, or is about to.
    Closed,
    /// V8 has no memory left; the process ends with these words.
    Aborted,
    Violation(String),
}

impl Speaker {
    async fn speak(mut self, mut tickets: mpsc::UnboundedReceiver<Ticket>) {
        loop {
            self.state.idle.store(self.session.is_idle() && tickets.is_empty(), Ordering::Relaxed);
            let stop = tokio::select! {
                ticket = tickets.recv() => match ticket {
                    // Nobody holds the resident any more: the thread may end.
                    None => {
                        self.worker.retire(self.slot);
                        return;
                    }
                    // Its client has gone while it waited.
                    Some(ticket) if ticket.reply.is_closed() => continue,
                    Some(ticket) => self.carry_out(ticket).await.err(),
                },
                frame = self.read.0.recv() => self.between_runs(frame).err(),
            };
            match stop {
                None => {}
                Some(Stop::Closed | Stop::Aborted) => {
                    self.death().await;
                    return;
                }
                Some(Stop::Violation(what)) => return self.denounce(&what),
            }
        }
    }

    /// Waits for the worker's end. A thread that closes its channel unasked, in a process that lives on, ends the process.
    async fn death(&self) -> String {
        match tokio::time::timeout(Duration::from_secs(1), self.worker.death()).await {
            Ok(why) => why,
            Err(_) => {
                self.worker.kill(format!("the thread of tenant {} ended by itself", self.tenant));
                self.worker.death().await
            }
        }
    }

    fn denounce(&self, what: &str) {
        let what = format!("as tenant {}: {what}", self.tenant);
        self.events.tell(What::ProtocolViolation { worker: self.worker.id, pid: self.worker.pid.as_raw(), what: what.clone() });
        self.worker.kill(format!("it broke the protocol {what}"));
    }

    fn accept(&mut self, frame: Option<Result<FromTenant, enisle_wire::FrameError>>) -> Result<FromTenant, Stop> {
        match frame {
            None | Some(Err(enisle_wire::FrameError::Closed | enisle_wire::FrameError::Io(_))) => Err(Stop::Closed),
            Some(Err(error)) => Err(Stop::Violation(error.to_string())),
            Some(Ok(frame)) => match self.session.accept(&frame) {
                Ok(()) => Ok(frame),
                Err(violation) => Err(Stop::Violation(violation.to_string())),
            },
        }
    }

    fn between_runs(&mut self, frame: Option<Result<FromTenant, enisle_wire::FrameError>>) -> Result<(), Stop> {
        self.accept(frame).map(drop)
    }

    /// Sends one run and reads until its end. The ticket is answered in every case but a lost worker, where dropping it
    /// is the answer.
    async fn carry_out(&mut self, ticket: Ticket) -> Result<(), Stop> {
        let Ticket { job, at, reply } = ticket;
        self.state.idle.store(false, Ordering::Relaxed);
        if !self.session.start(job.id, &job.limits) {
            return Err(Stop::Violation("a run was begun during another".to_owned()));
        }
        let patience = Duration::from_millis(job.limits.wall_ms.into()) + BACKSTOP;
        let queued = at.elapsed();
        let ended = match tokio::time::timeout(patience, self.exchange(&job)).await {
            Ok(ended) => ended,
            Err(_) => {
                self.worker.kill(format!("{} neither ended nor was ended by its watchdog", job.id));
                Err(Stop::Closed)
            }
        };
        match ended {
            Ok((done, logs)) => {
                let finished = self.finished(done, logs, queued, &job.limits)?;
                let _ = reply.send(Ended::Done(Box::new(finished)));
                Ok(())
            }
            Err(stop) => {
                if let Stop::Violation(what) = &stop {
                    self.denounce(what);
                }
                let why = self.death().await;
                let overrun = self.worker.overrun(self.slot).filter(|overrun| overrun.run == job.id);
                let ended = match (overrun, stop) {
                    (Some(overrun), _) => Ended::Done(Box::new(overran(overrun.cause, queued, &job.limits, at.elapsed()))),
                    (None, Stop::Aborted) => Ended::Done(Box::new(aborted(queued, &job.limits, at.elapsed()))),
                    (None, Stop::Closed | Stop::Violation(_)) => Ended::Lost(why),
                };
                let _ = reply.send(ended);
                Err(Stop::Closed)
            }
        }
    }

    async fn exchange(&mut self, job: &Job) -> Result<(Done, Vec<LogLine>), Stop> {
        let mut logs = Vec::new();
        let mut sent = 0;
        loop {
            tokio::select! {
                // Reading first: a thread that writes must never wait for one that writes.
                biased;
                frame = self.read.0.recv() => match self.accept(frame)? {
                    FromTenant::Ready => {}
                    FromTenant::Log(lines) => logs.extend(lines),
                    FromTenant::Done(done) => return Ok((*done, logs)),
                    FromTenant::Aborting { .. } => return Err(Stop::Aborted),
                },
                wrote = self.write.write(job.frame.get(sent..).unwrap_or_default()), if sent < job.frame.len() => match wrote {
                    Ok(0) | Err(_) => return Err(Stop::Closed),
                    Ok(wrote) => sent += wrote,
                },
            }
        }
    }

    /// Checks what the worker says of the run: its result has to be JSON, within the limit.
    fn finished(&self, done: Done, logs: Vec<LogLine>, queued: Duration, limits: &Limits) -> Result<Finished, Stop> {
        let result = match done.result {
            Some(text) if text.len() > limits.output_bytes as usize => {
                return self.refuse(format!("a result of {} bytes, over its limit", text.len()));
            }
            Some(text) => match RawValue::from_string(text) {
                Ok(json) => Some(json),
                Err(error) => return self.refuse(format!("a result that is not JSON: {error}")),
            },
            None => None,
        };
        if result.is_some() != (done.outcome == Outcome::Ok) {
            return self.refuse(format!("outcome {} and a result do not go together", done.outcome));
        }
        let Done { outcome, error, truncated, usage, .. } = done;
        Ok(Finished { outcome, result, error, logs, truncated, usage, queued })
    }

    fn refuse<T>(&self, what: String) -> Result<T, Stop> {
        Err(Stop::Violation(what))
    }
}

fn limit_error(message: String) -> Option<ScriptError> {
    Some(ScriptError { name: "LimitError".to_owned(), message, stack: None })
}

fn without_result(outcome: Outcome, error: Option<ScriptError>, queued: Duration, wall: Duration) -> Finished {
    let wall_us = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
    let usage = Usage { wall_us, ..Usage::default() };
    Finished { outcome, result: None, error, logs: Vec::new(), truncated: true, usage, queued }
}

/// A run that V8 could not interrupt: its process was killed for it.
fn overran(cause: OverrunCause, queued: Duration, limits: &Limits, wall: Duration) -> Finished {
    let (outcome, message) = match cause {
        OverrunCause::Cpu => (Outcome::ExceededCpu, format!("the run used its {} ms of CPU time (limits.cpuMs)", limits.cpu_ms)),
        OverrunCause::Wall => (Outcome::ExceededWall, format!("the run took longer than {} ms (limits.wallMs)", limits.wall_ms)),
        OverrunCause::Memory => {
            (Outcome::ExceededMemory, format!("the run needed more than {} MiB (limits.memoryMb)", limits.memory_mb))
        }
        OverrunCause::Canceled => (Outcome::Canceled, "the run was canceled".to_owned()),
    };
    without_result(outcome, limit_error(message), queued, wall)
}

/// A run that took all of V8's memory at once, so that V8 gave up.
fn aborted(queued: Duration, limits: &Limits, wall: Duration) -> Finished {
    let message = format!("the run needed far more than {} MiB at once (limits.memoryMb)", limits.memory_mb);
    without_result(Outcome::ExceededMemory, limit_error(message), queued, wall)
}
