//! The task that speaks with one tenant's thread, a run at a time.
//!
//! ```text
//! warming ─▶ idle ─▶ running ─▶ warming …
//!    ├────────┴─────────┴─▶ gone (channel closed, protocol broken)
//!    └────────┴─▶ leaving (the tenant leaves, or nobody holds the resident any more) ─▶ gone
//! ```
//! A thread that leaves is heard until its end: what it computes is its tenant's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Bytes;
use enisle_cordon::Signal;
use enisle_wire::control::{OverrunCause, Slot};
use enisle_wire::limits::{Limit, Limits};
use enisle_wire::tenant::{Advice, Done, FromTenant, LogLine, ScriptError, Session, ToTenant, Usage};
use enisle_wire::{FrameError, MAX_FROM_TENANT_BYTES, MAX_TO_TENANT_BYTES, Outcome, encode};
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::cordons::warden::Warden;
use crate::events::What;
use crate::homes::exchange::{Channel, Ended, Finished, Leaves, Lost, Phase, State, Ticket};
use crate::homes::job::Job;
use crate::share::{Exhausted, Held};
use crate::tenants::tenant::Tenant;
use crate::workers::channel::{read_body, read_len, skip};
use crate::workers::death::Death;
use crate::workers::listeners::Listener;
use crate::workers::process::Worker;

/// After a run's wall limit, its own watchdog's grace and the warming of an isolate, the process is no longer believed.
const BACKSTOP: Duration = Duration::from_secs(5);

/// A frame that is larger is announced before it is read, and charged for.
const LARGE_BYTES: usize = 64 << 10;
/// While it is decoded there are two of it.
const COPIES: u64 = 2;
/// So long an answer waits for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// What a line of the log holds beside its text.
const LINE_BYTES: u64 = 64;
/// Looking whether a longer result is JSON is done off the thread that serves connections.
const INLINE_BYTES: usize = 256 << 10;

/// What comes from a tenant's thread.
#[derive(Debug)]
enum Heard {
    Frame(Result<FromTenant, FrameError>),
    /// A large frame; whether it is read or skipped has to be said ([`FrameReader::decide`]).
    Large {
        bytes: usize,
        kind: Kind,
    },
}

/// What a large frame is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Log,
    End,
    /// Nothing that may be large.
    Other,
}

impl Kind {
    fn of(first: u8) -> Self {
        match first {
            FromTenant::LOG_TAG => Self::Log,
            FromTenant::DONE_TAG => Self::End,
            _ => Self::Other,
        }
    }
}

/// Frames as they come, read by a task of its own so that a wait for one can be abandoned without losing half of it.
#[derive(Debug)]
struct FrameReader {
    heard: mpsc::Receiver<Heard>,
    verdicts: mpsc::Sender<bool>,
}

impl FrameReader {
    fn spawn(mut channel: OwnedReadHalf) -> Self {
        let (send, heard) = mpsc::channel(1);
        let (verdicts, mut decided) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let frame = match Self::read(&mut channel, &send, &mut decided).await {
                    Ok(None) => continue,
                    Ok(Some(frame)) => Ok(frame),
                    Err(error) => Err(error),
                };
                let last = frame.is_err();
                if send.send(Heard::Frame(frame)).await.is_err() || last {
                    return;
                }
            }
        });
        Self { heard, verdicts }
    }

    /// The next frame; none if it was skipped.
    async fn read(
        channel: &mut OwnedReadHalf,
        send: &mpsc::Sender<Heard>,
        decided: &mut mpsc::Receiver<bool>,
    ) -> Result<Option<FromTenant>, FrameError> {
        let bytes = read_len(channel, MAX_FROM_TENANT_BYTES).await?;
        if bytes <= LARGE_BYTES {
            return read_body(channel, Vec::new(), bytes).await.map(Some);
        }
        let first = channel.read_u8().await?;
        let large = Heard::Large { bytes, kind: Kind::of(first) };
        if send.send(large).await.is_err() {
            return Err(FrameError::Closed);
        }
        match decided.recv().await {
            Some(true) => read_body(channel, vec![first], bytes).await.map(Some),
            Some(false) => skip(channel, bytes - 1).await.map(|()| None),
            None => Err(FrameError::Closed),
        }
    }

    /// Has the large frame that was announced read, or skipped.
    async fn decide(&self, read: bool) {
        let _ = self.verdicts.send(read).await;
    }
}

/// A run's parts on their way to the worker.
struct Sending {
    parts: std::vec::IntoIter<Bytes>,
    /// What is left of the part that is being sent.
    present: Bytes,
    code: Bytes,
    begun: bool,
}

/// Parts that have less together are sent as one: each by itself would wake the worker up.
const TOGETHER_BYTES: usize = 16 << 10;

impl Sending {
    fn new(mut parts: Vec<Bytes>, code: Bytes) -> Self {
        if parts.iter().map(Bytes::len).sum::<usize>() <= TOGETHER_BYTES {
            parts = vec![parts.concat().into()];
        }
        let mut parts = parts.into_iter();
        Self { present: parts.next().unwrap_or_default(), parts, code, begun: false }
    }

    fn sent(&mut self, bytes: usize) {
        self.begun |= bytes > 0;
        let _ = self.present.split_to(bytes.min(self.present.len()));
        if self.present.is_empty() {
            self.present = self.parts.next().unwrap_or_default();
        }
    }

    /// The worker has all that was sent, and needs the code too.
    fn add_code(&mut self) {
        self.present = std::mem::take(&mut self.code);
    }
}

/// What a run has given so far.
struct Gathered {
    logs: Vec<LogLine>,
    held: Held,
    /// There was no room for some of the log.
    truncated: bool,
}

impl Gathered {
    fn add(&mut self, lines: Vec<LogLine>) {
        let bytes = lines.iter().map(|line| line.text.len() as u64 + LINE_BYTES).sum();
        match self.held.grow(bytes) {
            Ok(()) => self.logs.extend(lines),
            Err(_) => self.truncated = true,
        }
    }

    fn log_bytes(&self) -> u64 {
        self.logs.iter().map(|line| line.text.len() as u64 + LINE_BYTES).sum()
    }
}

/// How far an exchange has come.
enum Step {
    Done(Done),
    Large { bytes: usize, kind: Kind },
}

/// How an exchange ended.
enum Exchanged {
    Done(Done),
    /// There was no room for the answer.
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
    /// Until the channel has ended.
    listener: Option<Listener>,
    session: Session,
    state: Arc<State>,
    /// The thread has said that it is ready, and was believed.
    confined: bool,
    /// What of the CPU time of the thread is accounted for, in microseconds, and since when.
    accounted_us: u64,
    accounted_at: Instant,
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
async fn told(leaves: &mut watch::Receiver<Leaves>) {
    let _ = leaves.wait_for(|leaves| *leaves != Leaves::No).await;
}

impl Speaker {
    pub(crate) fn new(
        tenant: Arc<Tenant>,
        worker: Arc<Worker>,
        channel: Channel,
        state: Arc<State>,
        warden: Arc<Warden>,
    ) -> Self {
        let Channel { slot, stream, listener } = channel;
        let (read, write) = stream.into_split();
        let (read, session) = (FrameReader::spawn(read), Session::default());
        Self {
            tenant,
            worker,
            slot,
            read,
            write,
            listener: Some(listener),
            session,
            state,
            confined: false,
            accounted_us: 0,
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
                // Tickets that wait are dropped, which says that they have not begun.
                () = told(&mut leaves) => break None,
                () = state.scripts_changed.notified() => self.forget_replaced().await,
                ticket = tickets.recv() => match ticket {
                    // Nobody holds the resident any more: the thread may end.
                    None => break None,
                    // Its client has gone while it waited.
                    Some(ticket) if ticket.reply.is_closed() => Ok(()),
                    Some(ticket) => self.carry_out(*ticket).await,
                },
                heard = self.read.heard.recv() => match self.hear(heard).await {
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
        // Those who still wait have not begun: a ticket that is dropped says so.
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
        // What it was at between runs.
        let cpu_us = self.unaccounted_us(self.accounted_at, 0);
        self.tenant.usage().add_cpu(cpu_us);
        self.state.gone();
    }

    /// The thread disposes of what it has, and says last what that took. False if it ended before.
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

    /// Between runs a thread computes for its tenant too.
    fn charge(&mut self, frame: &FromTenant) {
        if let FromTenant::Ready { cpu_us } | FromTenant::Left { cpu_us } = frame {
            self.account(*cpu_us);
            self.tenant.usage().add_cpu(*cpu_us);
        }
    }

    /// So much more of what the thread computed is accounted for.
    fn account(&mut self, cpu_us: u64) {
        self.accounted_us = self.accounted_us.saturating_add(cpu_us);
        self.accounted_at = Instant::now();
    }

    /// What the thread has computed that is not accounted for, now that its process has ended: by
    /// the kernel's word if it was killed, by its own otherwise, and never more than the time that
    /// has passed since then. Where neither is known and the end is put on this tenant, it is as if
    /// it had computed all that time, `most_us` at the most. What another tenant ended is nothing:
    /// the run is begun again.
    fn unaccounted_us(&self, since: Instant, most_us: u64) -> u64 {
        let passed_us = micros(since.elapsed());
        match self.worker.computed(self.slot) {
            _ if self.worker.blames_another(self.slot) => 0,
            Some(all) => micros(all).saturating_sub(self.accounted_us).min(passed_us),
            None if self.worker.blames(self.slot) => passed_us.min(most_us),
            None => 0,
        }
    }

    /// Says how a run ended, and has that accounted for. If whoever asked for it has gone away, its
    /// tenant is charged here.
    fn answer(&mut self, reply: oneshot::Sender<Ended>, ended: Ended) {
        self.account(ended.cpu_us());
        if let Err(unheard) = reply.send(ended) {
            self.tenant.usage().add_cpu(unheard.cpu_us());
        }
    }

    /// Waits for the worker's end. A thread that closes its channel unasked, in a process that lives on, ends the process.
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
        self.warden.events.tell(What::ProtocolViolation {
            worker: self.worker.id,
            pid: self.worker.pid.as_raw(),
            uid: self.worker.uid,
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

    /// What comes next: a frame, or the announcement of a large one.
    async fn hear(&mut self, heard: Option<Heard>) -> Result<Result<FromTenant, Step>, Stop> {
        match heard {
            Some(Heard::Large { bytes, kind }) => Ok(Err(Step::Large { bytes, kind })),
            Some(Heard::Frame(frame)) => self.accept_first(Some(frame)).await.map(Ok),
            None => self.accept_first(None).await.map(Ok),
        }
    }

    /// The next frame; with the first one the thread's filters are looked at. Not to be abandoned half-way: what was read
    /// would be lost.
    async fn accept_first(&mut self, frame: Option<Result<FromTenant, FrameError>>) -> Result<FromTenant, Stop> {
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

    /// Has the isolates disposed of whose scripts are not registered any more.
    async fn forget_replaced(&mut self) -> Result<(), Stop> {
        let forgotten = self.state.meter.forget_but(|key| self.tenant.scripts().has(key));
        for key in forgotten {
            self.forget(key).await?;
        }
        Ok(())
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
        let Ticket { job, at, reply, _turn } = ticket;
        let (id, limits) = (job.run.id, job.run.limits);
        // A part that cannot be encoded was never a run: the ticket is dropped, which says that it
        // has not begun.
        let Ok(parts) = job.parts() else { return Ok(()) };
        if !self.session.start(id, &limits, job.run.keep.is_none()) {
            return Err(Stop::Violation("a run was begun during another".to_owned()));
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
        // Nothing of it has reached the worker: it did not begin.
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

    /// Sends a run and reads until its end, for as long as it may last. The time for which an
    /// answer waits for room is not the run's.
    async fn converse(&mut self, job: &Job, sending: &mut Sending, gathered: &mut Gathered) -> Result<Exchanged, Stop> {
        let mut until = Instant::now() + Duration::from_millis(job.run.limits.wall_ms.into()) + BACKSTOP;
        // All waits for room together.
        let mut patience = ROOM_PATIENCE;
        loop {
            match timeout_at(until, self.exchange(sending, gathered)).await {
                Ok(Ok(Step::Done(done))) => return Ok(Exchanged::Done(done)),
                Ok(Ok(Step::Large { bytes, kind: Kind::Other })) => {
                    return Err(Stop::Violation(format!("a frame of {bytes} bytes that is neither log nor end")));
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

    /// What became of a run whose worker died: its own doing, another's, or nobody knows.
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
        let alone = self.worker.was_one_tenants();
        let overrun = self.worker.overrun(self.slot).filter(|overrun| overrun.run == job.run.id);
        let cause = match (overrun, stop) {
            (Some(overrun), _) => Some(overran(overrun.cause, limits)),
            (None, Stop::Violation(what)) => {
                Some((Outcome::Violation, format!("its worker broke the protocol: {what}")))
            }
            // V8 gave up, and it is this run's doing: it was over its limit, or there was nobody else.
            // Where the worker's word did not come through, its end says as much.
            (None, stop)
                if matches!(stop, Stop::Aborted { certain: true })
                    || (alone && (matches!(stop, Stop::Aborted { .. }) || *death == Death::OutOfMemory)) =>
            {
                let mb = limits.memory_mb;
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
            None => {
                let anothers_doing = self.worker.blames_another(self.slot);
                Ended::Lost(Lost { why: death.to_string(), anothers_doing, usage })
            }
            Some((outcome, message)) => Ended::Judged(Box::new(Finished {
                outcome,
                result: None,
                error: Some(ScriptError { name: error_name(outcome).to_owned(), message, stack: None }),
                logs: gathered.logs,
                truncated: true,
                usage: Usage { peak_heap_bytes: least_held(outcome, limits), ..usage },
                queued,
                advice: Advice::default(),
                held: Some(gathered.held),
            })),
        }
    }

    /// The worker ended because a layer stopped this tenant's thread.
    fn attacked(&self, death: &Death) -> bool {
        matches!(death, Death::Fault(fault) if fault.place == Some(self.slot.0) && self.worker.attack(fault).is_some())
    }

    /// Sends what is left to send and reads what comes, until the run's end or a large frame.
    async fn exchange(&mut self, sending: &mut Sending, gathered: &mut Gathered) -> Result<Step, Stop> {
        loop {
            tokio::select! {
                // Reading first: a thread that writes must never wait for one that writes.
                biased;
                heard = self.read.heard.recv() => match self.hear(heard).await? {
                    Err(large) => return Ok(large),
                    Ok(frame @ (FromTenant::Ready { .. } | FromTenant::Left { .. })) => self.charge(&frame),
                    Ok(FromTenant::Needs(_)) if sending.present.is_empty() => sending.add_code(),
                    Ok(FromTenant::Needs(_)) => {
                        return Err(Stop::Violation("code was asked for before the run had come".to_owned()));
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

/// Checks what the worker says of the run: its result has to be JSON, within the limit. If it is
/// not, what is wrong. What is small and was not charged before it was read is charged now; how
/// large it is, if there is no room.
async fn finished(
    done: Done,
    gathered: Gathered,
    queued: Duration,
    limits: &Limits,
) -> Result<Result<Finished, (usize, Exhausted)>, String> {
    let result = match done.result {
        Some(text) if text.len() > limits.output_bytes as usize => {
            return Err(format!("a result of {} bytes, over its limit", text.len()));
        }
        Some(text) if text.len() > INLINE_BYTES => {
            let read = tokio::task::spawn_blocking(move || RawValue::from_string(text)).await;
            Some(read.map_err(|error| error.to_string())?)
        }
        Some(text) => Some(RawValue::from_string(text)),
        None => None,
    };
    let result = result.transpose().map_err(|error| format!("a result that is not JSON: {error}"))?;
    if result.is_some() != (done.outcome == Outcome::Ok) {
        return Err(format!("outcome {} and a result do not go together", done.outcome));
    }
    let log_bytes = gathered.log_bytes();
    let Gathered { logs, mut held, truncated: dropped } = gathered;
    let Done { outcome, error, truncated, usage, advice, .. } = done;
    let error_bytes = error
        .as_ref()
        .map_or(0, |error| error.name.len() + error.message.len() + error.stack.as_ref().map_or(0, String::len));
    let bytes = error_bytes + result.as_ref().map_or(0, |result| result.get().len());
    let needed = log_bytes + bytes as u64;
    held.shrink_to(needed);
    if let Err(why) = held.grow_within(needed - held.units().min(needed), ROOM_PATIENCE).await {
        return Ok(Err((bytes, why)));
    }
    let (truncated, held) = (truncated || dropped, Some(held));
    Ok(Ok(Finished { outcome, result, error, logs, truncated, usage, queued, advice, held }))
}

/// What a run is charged of which only the time is known: as if it had computed all of it, as far
/// as it may.
fn all_the_time(begun: Instant, limits: &Limits) -> Usage {
    let wall_us = micros(begun.elapsed());
    Usage { wall_us, cpu_us: wall_us.min(u64::from(limits.cpu_ms) * 1000), ..Usage::default() }
}

/// What a run held at the least whose process ended: its limit, if that was it.
fn least_held(outcome: Outcome, limits: &Limits) -> u64 {
    if outcome == Outcome::ExceededMemory { u64::from(limits.memory_mb) << 20 } else { 0 }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
        OverrunCause::Cpu => (Outcome::ExceededCpu, Limit::CpuMs.exceeded(limits.cpu_ms)),
        OverrunCause::Wall => (Outcome::ExceededWall, Limit::WallMs.exceeded(limits.wall_ms)),
        OverrunCause::Memory => (Outcome::ExceededMemory, Limit::MemoryMb.exceeded(limits.memory_mb)),
        OverrunCause::Canceled => (Outcome::Canceled, "the run was canceled".to_owned()),
        OverrunCause::Disposal => {
            (Outcome::ExceededCpu, "what was left of runs took too long to dispose of (limits.cpuMs)".to_owned())
        }
    }
}
