//! The task that speaks with one tenant's thread, a run at a time.
//!
//! ```text
//! warming ─▶ idle ─▶ running ─▶ warming …
//!    └────────┴─────────┴─▶ gone (channel closed, protocol broken, the tenant leaves, or nobody holds the resident any more)
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use enisle_cordon::Signal;
use enisle_wire::control::{OverrunCause, Slot};
use enisle_wire::tenant::{Advice, Done, FromTenant, Limits, LogLine, ScriptError, Session, ToTenant, Usage};
use enisle_wire::{MAX_FROM_TENANT_BYTES, MAX_TO_TENANT_BYTES, Outcome, encode};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

use crate::channel::read_frame;
use crate::death::Death;
use crate::events::What;
use crate::job::Job;
use crate::process::Worker;
use crate::resident::{Ask, Ended, Finished, Lost, Phase, State, Ticket};
use crate::tenant::Tenant;
use crate::warden::Warden;

/// After a run's wall limit, its own watchdog's grace and the warming of an isolate, the process is no longer believed.
const BACKSTOP: Duration = Duration::from_secs(5);

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
pub(crate) struct Speaker {
    tenant: Arc<Tenant>,
    worker: Arc<Worker>,
    slot: Slot,
    read: FrameReader,
    write: OwnedWriteHalf,
    session: Session,
    /// What the present run has printed so far.
    logs: Vec<LogLine>,
    state: Arc<State>,
    /// The thread has said that it is ready, and was believed.
    confined: bool,
    warden: Arc<Warden>,
}

/// Why a speaker stops.
enum Stop {
    /// The channel is closed: the worker has died, or is about to.
    Closed,
    /// V8 cannot go on; the process ends with these words.
    Aborted {
        certain: bool,
    },
    Violation(String),
}

/// Waits until it is told to leave.
async fn told(leaves: &mut watch::Receiver<bool>) {
    let _ = leaves.wait_for(|leaves| *leaves).await;
}

impl Speaker {
    pub(crate) fn new(
        tenant: Arc<Tenant>,
        worker: Arc<Worker>,
        slot: Slot,
        channel: UnixStream,
        state: Arc<State>,
        warden: Arc<Warden>,
    ) -> Self {
        let (read, write) = channel.into_split();
        let (read, session) = (FrameReader::spawn(read), Session::default());
        Self { tenant, worker, slot, read, write, session, logs: Vec::new(), state, confined: false, warden }
    }

    pub(crate) async fn speak(mut self, mut tickets: mpsc::UnboundedReceiver<Ask>) {
        let mut leaves = self.state.leaves.subscribe();
        let stop = loop {
            self.state.warm.store(self.session.is_idle(), Ordering::Relaxed);
            let done = tokio::select! {
                biased;
                // Tickets that wait are dropped, which says that they have not begun.
                () = told(&mut leaves) => {
                    self.worker.retire(self.slot);
                    return self.state.gone();
                }
                ticket = tickets.recv() => match ticket {
                    // Nobody holds the resident any more: the thread may end.
                    None => {
                        self.worker.retire(self.slot);
                        return self.state.gone();
                    }
                    // Its client has gone while it waited.
                    Some(Ask::Run(ticket)) if ticket.reply.is_closed() => Ok(()),
                    Some(Ask::Run(ticket)) => self.carry_out(ticket).await,
                    Some(Ask::Forget(key)) => self.forget(key).await,
                },
                frame = self.read.0.recv() => self.accept_first(frame).await.map(drop),
            };
            if let Err(stop) = done {
                break stop;
            }
        };
        // Those who still wait have not begun: a ticket that is dropped says so.
        tickets.close();
        match stop {
            Stop::Closed | Stop::Aborted { .. } => drop(self.death().await),
            Stop::Violation(what) => self.denounce(&what),
        }
        self.state.gone();
    }

    /// Waits for the worker's end. A thread that closes its channel unasked, in a process that lives on, ends the process.
    async fn death(&self) -> Death {
        match tokio::time::timeout(Duration::from_secs(1), self.worker.death()).await {
            Ok(why) => why,
            Err(_) => {
                self.worker.blame(self.slot, Signal::Protocol);
                self.worker.kill(format!("the thread of tenant {} ended by itself", self.tenant.name));
                self.worker.death().await
            }
        }
    }

    fn denounce(&self, what: &str) {
        let what = format!("as tenant {}: {what}", self.tenant.name);
        self.worker.blame(self.slot, Signal::Protocol);
        self.warden.events.tell(What::ProtocolViolation {
            worker: self.worker.id,
            pid: self.worker.pid.as_raw(),
            what: what.clone(),
        });
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

    /// The next frame; with the first one the thread's filters are looked at. Not to be abandoned half-way: what was read
    /// would be lost.
    async fn accept_first(
        &mut self,
        frame: Option<Result<FromTenant, enisle_wire::FrameError>>,
    ) -> Result<FromTenant, Stop> {
        let frame = self.accept(frame)?;
        if !self.confined {
            // Also a worker that is dying has fewer threads than it had: how it ended then says whose doing it was.
            if let Err(why) = self.worker.check_confinement(self.slot).await {
                self.worker.misbehaves(Signal::Protocol);
                self.worker.kill(why);
                return Err(Stop::Closed);
            }
            self.confined = true;
            self.state.phase.send_replace(Phase::Ready);
        }
        Ok(frame)
    }

    /// A few bytes, to a thread that waits for them or is about to; one that does not take them for as long as a run may last is
    /// ended.
    async fn forget(&mut self, key: u64) -> Result<(), Stop> {
        let frame = encode(&ToTenant::Forget(key), MAX_TO_TENANT_BYTES).unwrap_or_default();
        match tokio::time::timeout(BACKSTOP, self.write.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Stop::Closed),
            Err(_) => Err(Stop::Violation("it does not read its channel".to_owned())),
        }
    }

    /// Sends one run, reads until its end, and answers the ticket.
    async fn carry_out(&mut self, ticket: Ticket) -> Result<(), Stop> {
        let Ticket { job, at, reply } = ticket;
        if !self.session.start(job.id, &job.limits) {
            return Err(Stop::Violation("a run was begun during another".to_owned()));
        }
        self.logs.clear();
        self.state.meter.run_begins(job.keeps);
        self.tenant.usage().begun += 1;
        let (queued, mut sent) = (at.elapsed(), 0);
        let patience = Duration::from_millis(job.limits.wall_ms.into()) + BACKSTOP;
        let exchanged = match tokio::time::timeout(patience, self.exchange(&job, &mut sent)).await {
            Ok(exchanged) => exchanged,
            Err(_) => {
                self.worker.blame(self.slot, Signal::HardKill);
                self.worker.kill(format!("{} neither ended nor was ended by its watchdog", job.id));
                Err(Stop::Closed)
            }
        };
        let stop = match exchanged.and_then(|done| self.finished(done, queued, &job.limits)) {
            Ok(finished) => {
                let _ = reply.send(Ended::Done(Box::new(finished)));
                return Ok(());
            }
            Err(stop) => stop,
        };
        // Nothing of it has reached the worker: it did not begin.
        if sent == 0 {
            return Err(stop);
        }
        if let Stop::Violation(what) = &stop {
            self.denounce(what);
        }
        let death = self.death().await;
        let _ = reply.send(self.last_report(&stop, &death, &job, queued, at.elapsed()));
        Err(Stop::Closed)
    }

    /// What became of a run whose worker died: its own doing, another's, or nobody knows.
    fn last_report(&mut self, stop: &Stop, death: &Death, job: &Job, queued: Duration, wall: Duration) -> Ended {
        let alone = self.worker.holds_one;
        let overrun = self.worker.overrun(self.slot).filter(|overrun| overrun.run == job.id);
        let cause = match (overrun, stop) {
            (Some(overrun), _) => Some(overran(overrun.cause, &job.limits)),
            (None, Stop::Violation(what)) => {
                Some((Outcome::Violation, format!("its worker broke the protocol: {what}")))
            }
            // V8 gave up, and it is this run's doing: it was over its limit, or there was nobody else.
            (None, Stop::Aborted { certain }) if *certain || alone => {
                let mb = job.limits.memory_mb;
                let message = format!(
                    "V8 gave up on the run: it needed more at once than V8 has, or than {mb} MiB allow (limits.memoryMb)"
                );
                Some((Outcome::ExceededMemory, message))
            }
            (None, _) if self.attacked(death) => Some((Outcome::Violation, format!("a layer stopped it: {death}"))),
            (None, _) if alone && *death == Death::Filter => {
                Some((Outcome::Violation, "the filter stopped a system call that no script needs".to_owned()))
            }
            (None, Stop::Aborted { .. } | Stop::Closed) => None,
        };
        match cause {
            None => Ended::Lost(Lost { why: death.to_string(), anothers_doing: self.worker.blames_another(self.slot) }),
            Some((outcome, message)) => Ended::Judged(Box::new(Finished {
                outcome,
                result: None,
                error: Some(ScriptError { name: error_name(outcome).to_owned(), message, stack: None }),
                logs: std::mem::take(&mut self.logs),
                truncated: true,
                usage: last_usage(outcome, &job.limits, wall),
                queued,
                advice: Advice::default(),
            })),
        }
    }

    /// The worker ended because a layer stopped this tenant's thread.
    fn attacked(&self, death: &Death) -> bool {
        matches!(death, Death::Fault(fault) if fault.place == Some(self.slot.0) && self.worker.attack(fault).is_some())
    }

    /// `sent` counts the bytes of the run that went out.
    async fn exchange(&mut self, job: &Job, sent: &mut usize) -> Result<Done, Stop> {
        loop {
            tokio::select! {
                // Reading first: a thread that writes must never wait for one that writes.
                biased;
                frame = self.read.0.recv() => match self.accept_first(frame).await? {
                    FromTenant::Ready => {}
                    FromTenant::Log(lines) => {
                        let bytes = lines.iter().map(|line| line.text.len()).sum();
                        self.state.meter.message(bytes, bytes);
                        self.logs.extend(lines);
                    }
                    FromTenant::Done(done) => return Ok(*done),
                    FromTenant::Aborting { certain, .. } => {
                        self.worker.blame(self.slot, Signal::OutOfMemory);
                        return Err(Stop::Aborted { certain });
                    }
                },
                wrote = self.write.write(job.frame.get(*sent..).unwrap_or_default()), if *sent < job.frame.len() => match wrote {
                    Ok(0) | Err(_) => return Err(Stop::Closed),
                    Ok(wrote) => *sent += wrote,
                },
            }
        }
    }

    /// Checks what the worker says of the run: its result has to be JSON, within the limit.
    fn finished(&mut self, done: Done, queued: Duration, limits: &Limits) -> Result<Finished, Stop> {
        let refuse = |what: String| Err(Stop::Violation(what));
        let result = match done.result {
            Some(text) if text.len() > limits.output_bytes as usize => {
                return refuse(format!("a result of {} bytes, over its limit", text.len()));
            }
            Some(text) => match RawValue::from_string(text) {
                Ok(json) => Some(json),
                Err(error) => return refuse(format!("a result that is not JSON: {error}")),
            },
            None => None,
        };
        if result.is_some() != (done.outcome == Outcome::Ok) {
            return refuse(format!("outcome {} and a result do not go together", done.outcome));
        }
        let Done { outcome, error, truncated, usage, advice, .. } = done;
        let logs = std::mem::take(&mut self.logs);
        Ok(Finished { outcome, result, error, logs, truncated, usage, queued, advice })
    }
}

/// What a run used whose worker died: by the supervisor's own clock, and by the limit that it went over.
fn last_usage(outcome: Outcome, limits: &Limits, wall: Duration) -> Usage {
    let cpu_us = if outcome == Outcome::ExceededCpu { u64::from(limits.cpu_ms) * 1000 } else { 0 };
    Usage { wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX), cpu_us, ..Usage::default() }
}

/// The name of the error that goes with an outcome that the script did not choose.
fn error_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Violation => "Violation",
        Outcome::Canceled => "Canceled",
        _ => "LimitError",
    }
}

/// A run that V8 could not interrupt: its process was killed for it.
fn overran(cause: OverrunCause, limits: &Limits) -> (Outcome, String) {
    match cause {
        OverrunCause::Cpu => {
            (Outcome::ExceededCpu, format!("the run used its {} ms of CPU time (limits.cpuMs)", limits.cpu_ms))
        }
        OverrunCause::Wall => {
            (Outcome::ExceededWall, format!("the run took longer than {} ms (limits.wallMs)", limits.wall_ms))
        }
        OverrunCause::Memory => {
            (Outcome::ExceededMemory, format!("the run needed more than {} MiB (limits.memoryMb)", limits.memory_mb))
        }
        OverrunCause::Canceled => (Outcome::Canceled, "the run was canceled".to_owned()),
    }
}
