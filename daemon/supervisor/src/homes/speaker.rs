//! The task that speaks with one tenant's thread, one run at a time.
//!
//! ```text
//! warming ─▶ idle ─▶ running ─▶ warming …
//!    ├────────┴─────────┴─▶ gone (channel closed, protocol broken)
//!    └────────┴─▶ leaving (the tenant leaves, or the home was dropped) ─▶ gone
//! ```
//! The task reads from a leaving thread until the thread ends, because the CPU time that the thread
//! still uses is charged to its tenant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use enisle_cordon::Signal;
use enisle_wire::control::Slot;
use enisle_wire::tenant::{Done, FromTenant, Session, ToTenant, Usage};
use enisle_wire::{FrameError, MAX_TO_TENANT_BYTES, encode};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::cordons::warden::Warden;
use crate::events::EventKind;
use crate::homes::exchange::{Ended, HomeState, Leaves, Lost, Ticket};
use crate::homes::frames::{FrameReader, Heard, Kind};
use crate::homes::job::Job;
use crate::homes::report::{End, Gathered, ROOM_PATIENCE, Stop, all_the_time, finished, micros};
use crate::homes::sending::Sending;
use crate::homes::standby::Standby;
use crate::share::Exhausted;
use crate::tenants::tenant::Tenant;
use crate::workers::death::Death;
use crate::workers::listeners::Listener;
use crate::workers::process::Worker;

/// How long a run may take beyond its wall limit: enough for the watchdog's grace and for warming
/// an isolate. After that the supervisor ends the process.
const BACKSTOP: Duration = Duration::from_secs(5);

/// How many copies of a large frame exist while it is decoded.
const COPIES: u64 = 2;

/// Why [`Speaker::exchange`] returned.
enum Step {
    Done(Done),
    Large { bytes: usize, kind: Kind },
}

/// How [`Speaker::converse`] ended.
enum Exchanged {
    Done(Done),
    /// There was no memory for the answer.
    Skipped {
        bytes: usize,
        why: Exhausted,
    },
}

/// The task that speaks with one tenant's thread.
pub(crate) struct Speaker {
    tenant: Arc<Tenant>,
    worker: Arc<Worker>,
    slot: Slot,
    read: FrameReader,
    write: OwnedWriteHalf,
    /// Held until the channel has ended.
    listener: Option<Listener>,
    session: Session,
    state: Arc<HomeState>,
    /// How much of the thread's CPU time is accounted for, in microseconds, and when that was last
    /// added to.
    accounted_us: u64,
    accounted_at: Instant,
    warden: Arc<Warden>,
}

/// Waits until the tenant is to leave the home.
async fn leave_requested(leaves: &mut watch::Receiver<Leaves>) {
    let _ = leaves.wait_for(|leaves| *leaves != Leaves::No).await;
}

impl Speaker {
    pub(crate) fn new(
        tenant: Arc<Tenant>,
        worker: Arc<Worker>,
        standby: Standby,
        listener: Listener,
        state: Arc<HomeState>,
        warden: Arc<Warden>,
    ) -> Self {
        let Standby { slot, read, write, session, cpu_us } = standby;
        tenant.usage().add_cpu(cpu_us);
        Self {
            tenant,
            worker,
            slot,
            read,
            write,
            listener: Some(listener),
            session,
            state,
            accounted_us: cpu_us,
            accounted_at: Instant::now(),
            warden,
        }
    }

    pub(crate) async fn speak(mut self, mut tickets: mpsc::Receiver<Box<Ticket>>) {
        let mut leaves = self.state.leaves.subscribe();
        let state = Arc::clone(&self.state);
        let stop = loop {
            self.state.warm.store(self.session.is_idle(), Ordering::Relaxed);
            let done = tokio::select! {
                biased;
                // Dropping the waiting tickets reports that their runs did not begin.
                () = leave_requested(&mut leaves) => break None,
                () = state.scripts_changed.notified() => self.forget_replaced().await,
                ticket = tickets.recv() => match ticket {
                    // The home was dropped: the thread may end.
                    None => break None,
                    // The client disconnected while the run waited.
                    Some(ticket) if ticket.reply.is_closed() => Ok(()),
                    Some(ticket) => self.carry_out(*ticket).await,
                },
                heard = self.read.heard.recv() => match self.hear(heard) {
                    Ok(Ok(frame)) => {
                        self.charge(&frame);
                        Ok(())
                    }
                    Ok(Err(_)) => Err(Stop::Violation("a large frame without a run".to_owned())),
                    Err(stop) => Err(stop),
                },
            };
            if let Err(stop) = done {
                break Some(stop);
            }
        };
        // Dropping the waiting tickets reports that their runs did not begin.
        tickets.close();
        match stop {
            None => {
                drop(tickets);
                self.worker.retire(self.slot);
                self.state.gone();
                if self.see_off().await {
                    return;
                }
            }
            Some(Stop::Violation(what)) => self.denounce(&what),
            Some(Stop::Closed | Stop::Aborted { .. }) => {}
        }
        drop(self.death().await);
        // The thread's CPU time between runs is charged too.
        let cpu_us = self.unaccounted_us(self.accounted_at, 0);
        self.tenant.usage().add_cpu(cpu_us);
        self.state.gone();
    }

    /// Reads on while the thread disposes of what it has. Its last frame, `Left`, reports the CPU
    /// time that this took. Returns false if the thread ended without that frame.
    async fn see_off(&mut self) -> bool {
        let _ = self.write.shutdown().await;
        let mut has_left = false;
        loop {
            let heard = match self.read.heard.recv().await {
                Some(Heard::Large { .. }) => Err(Stop::Violation("a large frame without a run".to_owned())),
                Some(Heard::Frame(frame)) => self.accept(Some(frame)),
                None => Err(Stop::Closed),
            };
            match heard {
                Ok(frame) => {
                    has_left |= matches!(frame, FromTenant::Left { .. });
                    self.charge(&frame);
                }
                Err(Stop::Closed | Stop::Aborted { .. }) => return has_left,
                Err(Stop::Violation(what)) => {
                    self.denounce(&what);
                    return false;
                }
            }
        }
    }

    /// Charges the tenant for what its thread did between runs.
    fn charge(&mut self, frame: &FromTenant) {
        if let FromTenant::Ready { cpu_us } | FromTenant::Left { cpu_us } = frame {
            self.account(*cpu_us);
            self.tenant.usage().add_cpu(*cpu_us);
        }
    }

    /// Adds to the CPU time that is accounted for.
    fn account(&mut self, cpu_us: u64) {
        self.accounted_us = self.accounted_us.saturating_add(cpu_us);
        self.accounted_at = Instant::now();
    }

    /// The thread's CPU time that is not accounted for, now that its process has ended; never more
    /// than the time that has passed since `since`. If the process was killed for this tenant, the
    /// kernel reported the CPU time; otherwise the thread recorded it on the fault page. If it is
    /// unknown and this tenant is blamed, the thread counts as having computed since `since`, up to
    /// `most_us`. If this tenant is exonerated, the result is 0, because the run restarts.
    fn unaccounted_us(&self, since: Instant, most_us: u64) -> u64 {
        let passed_us = micros(since.elapsed());
        match self.worker.computed(self.slot) {
            _ if self.worker.blames_another(self.slot) => 0,
            Some(all) => micros(all).saturating_sub(self.accounted_us).min(passed_us),
            None if self.worker.blames(self.slot) => passed_us.min(most_us),
            None => 0,
        }
    }

    /// Reports how a run ended, and accounts for its CPU time. The receiver charges the tenant; if
    /// the receiver is gone, this function does.
    fn answer(&mut self, reply: oneshot::Sender<Ended>, ended: Ended) {
        self.account(ended.cpu_us());
        if let Err(unheard) = reply.send(ended) {
            self.tenant.usage().add_cpu(unheard.cpu_us());
        }
    }

    /// Waits for the worker to end. If the worker is still alive after a second, the tenant's
    /// thread has ended by itself, and the process is killed.
    async fn death(&mut self) -> Death {
        self.listener = None;
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
        self.warden.events.emit(EventKind::ProtocolViolation {
            worker: self.worker.id,
            pid: self.worker.pid.as_raw(),
            uid: self.worker.uid(),
            tenant: Some(self.tenant.name.to_string()),
            what: what.clone(),
        });
        self.worker.kill(format!("it broke the protocol {what}"));
    }

    fn accept(&mut self, frame: Option<Result<FromTenant, FrameError>>) -> Result<FromTenant, Stop> {
        match frame {
            None | Some(Err(FrameError::Closed | FrameError::Io(_))) => Err(Stop::Closed),
            Some(Err(error)) => Err(Stop::Violation(error.to_string())),
            Some(Ok(frame)) => match self.session.accept(&frame) {
                Ok(()) => Ok(frame),
                Err(violation) => Err(Stop::Violation(violation.to_string())),
            },
        }
    }

    /// Checks what has arrived: a frame (`Ok`), or the announcement of a large one (`Err`).
    fn hear(&mut self, heard: Option<Heard>) -> Result<Result<FromTenant, Step>, Stop> {
        match heard {
            Some(Heard::Large { bytes, kind }) => Ok(Err(Step::Large { bytes, kind })),
            Some(Heard::Frame(frame)) => self.accept(Some(frame)).map(Ok),
            None => self.accept(None).map(Ok),
        }
    }

    /// Asks the thread to dispose of isolates whose scripts were replaced or deleted.
    async fn forget_replaced(&mut self) -> Result<(), Stop> {
        let forgotten = self.state.meter.forget_but(|key| self.tenant.scripts().has(key));
        for key in forgotten {
            self.forget(key).await?;
        }
        Ok(())
    }

    /// Asks the thread to dispose of one isolate. No run is in progress, so the thread reads the
    /// few bytes soon; if it has not done so within [`BACKSTOP`], its process is killed.
    async fn forget(&mut self, key: u64) -> Result<(), Stop> {
        let frame = encode(&ToTenant::Forget(key), MAX_TO_TENANT_BYTES).unwrap_or_default();
        match tokio::time::timeout(BACKSTOP, self.write.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Stop::Closed),
            Err(_) => Err(Stop::Violation("it does not read its channel".to_owned())),
        }
    }

    /// Sends one run, reads until it ends, and answers the ticket.
    async fn carry_out(&mut self, ticket: Ticket) -> Result<(), Stop> {
        let Ticket { job, at, reply, _turn } = ticket;
        let (id, limits) = (job.run.id, job.run.limits);
        // A run that cannot be encoded never begins; dropping the ticket reports that.
        let Ok(parts) = job.parts() else { return Ok(()) };
        if !self.session.start(id, &limits, job.run.keep.is_none()) {
            return Err(Stop::Violation("a run began during another".to_owned()));
        }
        self.state.meter.run_begins(job.run.keep);
        self.tenant.usage().begun += 1;
        let (queued, begun) = (at.elapsed(), Instant::now());
        let mut sending = Sending::new(parts, job.code.clone());
        let mut gathered = Gathered { logs: Vec::new(), held: job.in_flight.answer(), truncated: false };
        let exchanged = self.converse(&job, &mut sending, &mut gathered).await;
        let stop = match exchanged {
            Ok(Exchanged::Skipped { bytes, why }) => {
                let usage = all_the_time(begun, &limits);
                self.answer(reply, Ended::Unanswered { bytes, why, usage });
                return Ok(());
            }
            Ok(Exchanged::Done(done)) => match finished(done, gathered, queued, &limits).await {
                Ok(Ok(finished)) => {
                    self.answer(reply, Ended::Done(Box::new(finished)));
                    return Ok(());
                }
                Ok(Err((bytes, why))) => {
                    let usage = all_the_time(begun, &limits);
                    self.answer(reply, Ended::Unanswered { bytes, why, usage });
                    return Ok(());
                }
                Err(what) => {
                    gathered = Gathered { logs: Vec::new(), held: job.in_flight.answer(), truncated: true };
                    Stop::Violation(what)
                }
            },
            Err(stop) => stop,
        };
        // Nothing of the run was sent. Dropping `reply` reports that the run did not begin.
        if !sending.begun {
            return Err(stop);
        }
        if let Stop::Violation(what) = &stop {
            self.denounce(what);
        }
        let death = self.death().await;
        let report = self.last_report(&stop, &death, &job, gathered, queued, begun);
        self.answer(reply, report);
        Err(Stop::Closed)
    }

    /// Sends a run and reads until it ends, for at most the run's wall limit and [`BACKSTOP`]. Time
    /// during which an answer waits for memory does not count.
    async fn converse(&mut self, job: &Job, sending: &mut Sending, gathered: &mut Gathered) -> Result<Exchanged, Stop> {
        let mut until = Instant::now() + Duration::from_millis(job.run.limits.wall_ms.into()) + BACKSTOP;
        // This patience is for all waits for memory together.
        let mut patience = ROOM_PATIENCE;
        loop {
            match timeout_at(until, self.exchange(sending, gathered)).await {
                Ok(Ok(Step::Done(done))) => return Ok(Exchanged::Done(done)),
                Ok(Ok(Step::Large { bytes, kind: Kind::Other })) => {
                    return Err(Stop::Violation(format!(
                        "a frame of {bytes} bytes that is neither a log nor a result"
                    )));
                }
                Ok(Ok(Step::Large { bytes, kind })) => {
                    let begun = Instant::now();
                    let room = gathered.held.grow_within(COPIES * bytes as u64, patience).await;
                    until += begun.elapsed();
                    patience = patience.saturating_sub(begun.elapsed());
                    self.read.decide(room.is_ok()).await;
                    match (room, kind) {
                        (Ok(()), _) => {}
                        (Err(why), Kind::End) => {
                            self.session.skip_end();
                            return Ok(Exchanged::Skipped { bytes, why });
                        }
                        (Err(_), _) => {
                            gathered.truncated = true;
                            let counted = self.session.skip_log(bytes);
                            counted.map_err(|violation| Stop::Violation(violation.to_string()))?;
                        }
                    }
                }
                Ok(Err(stop)) => return Err(stop),
                Err(_) => {
                    self.worker.blame(self.slot, Signal::HardKill);
                    self.worker.kill(format!("{} neither ended nor was ended by its watchdog", job.run.id));
                    return Err(Stop::Closed);
                }
            }
        }
    }

    /// The end of a run whose worker died: judged, if the death was the run's own doing, or lost.
    fn last_report(
        &mut self,
        stop: &Stop,
        death: &Death,
        job: &Job,
        gathered: Gathered,
        queued: Duration,
        begun: Instant,
    ) -> Ended {
        let limits = &job.run.limits;
        let most = all_the_time(begun, limits);
        let usage = Usage { cpu_us: self.unaccounted_us(begun, most.cpu_us), ..most };
        let overrun = self.worker.overrun(self.slot).filter(|overrun| overrun.run == job.run.id);
        let end = End {
            overrun: overrun.map(|overrun| overrun.cause),
            stop,
            death,
            attacked: self.attacked(death),
            alone: self.worker.was_one_tenants(),
        };
        match end.judge(limits) {
            None => {
                let anothers_doing = self.worker.blames_another(self.slot);
                Ended::Lost(Lost { why: death.to_string(), anothers_doing, usage })
            }
            Some((outcome, message)) => {
                Ended::Judged(Box::new(gathered.ended(outcome, message, usage, queued, limits)))
            }
        }
    }

    /// Whether the worker ended because a layer stopped this tenant's thread.
    fn attacked(&self, death: &Death) -> bool {
        matches!(death, Death::Fault(fault) if fault.slot == Some(self.slot.0) && self.worker.attack(fault).is_some())
    }

    /// Sends what is left and reads what arrives, until the run ends or a large frame is announced.
    async fn exchange(&mut self, sending: &mut Sending, gathered: &mut Gathered) -> Result<Step, Stop> {
        loop {
            tokio::select! {
                // Read first: if both sides only wrote, neither would proceed.
                biased;
                heard = self.read.heard.recv() => match self.hear(heard)? {
                    Err(large) => return Ok(large),
                    Ok(frame @ (FromTenant::Ready { .. } | FromTenant::Left { .. })) => self.charge(&frame),
                    Ok(FromTenant::Needs(_)) if sending.present.is_empty() => sending.add_code(),
                    Ok(FromTenant::Needs(_)) => {
                        return Err(Stop::Violation("code was requested before the run had arrived".to_owned()));
                    }
                    Ok(FromTenant::Log(lines)) => {
                        let bytes = lines.iter().map(|line| line.text.len()).sum();
                        self.state.meter.message(bytes, bytes);
                        gathered.add(lines);
                    }
                    Ok(FromTenant::Done(done)) => return Ok(Step::Done(*done)),
                    Ok(FromTenant::Aborting { certain, .. }) => {
                        self.worker.gave_up(self.slot, certain);
                        return Err(Stop::Aborted { certain });
                    }
                },
                wrote = self.write.write(&sending.present), if !sending.present.is_empty() => match wrote {
                    Ok(0) | Err(_) => return Err(Stop::Closed),
                    Ok(wrote) => sending.sent(wrote),
                },
            }
        }
    }
}
