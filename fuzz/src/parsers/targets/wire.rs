//! Frames of both channels, and the state machines that accept them.
//!
//! Attacked: the decoders, by raw bytes and by well-formed frames that were then damaged. Oracles:
//! a frame that decodes is encoded and decoded again to the same value. Reading never holds more
//! memory than the cap and the bytes themselves explain. The oracle of the state machines is a
//! naive one: it keeps everything that was accepted, and derives the state from that each time.
//!
//! A new kind of frame needs a function in [`FROM_TENANT`], [`TO_TENANT`], [`FROM_WORKER`] or
//! [`TO_WORKER`].

use std::fmt::Debug;

use arbitrary::Unstructured;
use enisle_wire::control::{self, Admit, FromWorker, Keys, OverrunCause, Ready, Role, Slot, Start, ToWorker};
use enisle_wire::frame::HEADER_BYTES;
use enisle_wire::limits::{Limit, Limits};
use enisle_wire::tenant::{
    self, Advice, CodeOf, Done, EnvOf, FromTenant, InputOf, Level, LogLine, ModuleKind, ModuleOf, Run, RunId,
    ScriptError, ToTenant, Usage,
};
use enisle_wire::{
    FrameError, MAX_ERROR_BYTES, MAX_ERROR_NAME_BYTES, MAX_FROM_TENANT_BYTES, MAX_FROM_WORKER_BYTES, MAX_LOG_LINES,
    MAX_TO_TENANT_BYTES, MAX_TO_WORKER_BYTES, Outcome,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::parsers::draw::{Draw, damaged, ensure, same};

type Make<T> = fn(&mut Unstructured<'_>) -> T;

/// The most that serde reserves because of a length that a frame alleges, however great the length.
const RESERVED_BYTES: u64 = 2 << 20;
/// A decoded value takes at most this many times its encoded bytes. The worst is an empty module:
/// its name, kind and body take one byte each, and the vector of modules may have grown to twice
/// its length.
const TIMES: u64 = 64;

pub(in crate::parsers) fn to_tenant(u: &mut Unstructured<'_>) -> Result<(), String> {
    frames(u, MAX_TO_TENANT_BYTES, TO_TENANT, |_| true)
}

pub(in crate::parsers) fn from_tenant(u: &mut Unstructured<'_>) -> Result<(), String> {
    frames(
        u,
        MAX_FROM_TENANT_BYTES,
        FROM_TENANT,
        |frame| !matches!(frame, FromTenant::Log(lines) if lines.len() > MAX_LOG_LINES),
    )
}

pub(in crate::parsers) fn to_worker(u: &mut Unstructured<'_>) -> Result<(), String> {
    frames(u, MAX_TO_WORKER_BYTES, TO_WORKER, |_| true)
}

pub(in crate::parsers) fn from_worker(u: &mut Unstructured<'_>) -> Result<(), String> {
    frames(u, MAX_FROM_WORKER_BYTES, FROM_WORKER, |_| true)
}

/// Reads bytes as the frames of one channel. `is_allowed` says which messages a reader must accept.
fn frames<T: Serialize + DeserializeOwned + Debug>(
    u: &mut Unstructured<'_>,
    cap: usize,
    kinds: &[Make<T>],
    is_allowed: fn(&T) -> bool,
) -> Result<(), String> {
    let bytes = if u.flag() {
        let mut sent = Vec::new();
        for _ in 0..=u.below(3) {
            let message = u.pick(kinds)(u);
            let cap = if u.rarely(4) { u.below(200) } else { cap };
            sent.extend(written(&message, cap, is_allowed(&message))?);
        }
        damaged(sent, u)
    } else {
        u.rest().to_vec()
    };
    let mut left = bytes.as_slice();
    while !left.is_empty() {
        let before = left.len();
        let mut read = Err(FrameError::Closed);
        let held = allocation_counter::measure(|| read = enisle_wire::read_frame::<T>(&mut left, cap)).bytes_max;
        let most = cap as u64 + RESERVED_BYTES + TIMES * before as u64;
        ensure(held <= most, || format!("{before} bytes made the reader hold {held}, with a cap of {cap}"))?;
        let Ok(message) = read else { break };
        ensure(is_allowed(&message), || format!("{message:?} was read"))?;
        written(&message, cap, true)?;
    }
    drop(enisle_wire::decode::<T>(&bytes));
    Ok(())
}

/// Encodes a message, and checks the frame by reading it. Returns no bytes if the message does not
/// fit the cap.
fn written<T: Serialize + DeserializeOwned + Debug>(message: &T, cap: usize, allowed: bool) -> Result<Vec<u8>, String> {
    let whole = enisle_wire::encode(message, usize::MAX).map_err(|error| format!("{message:?}: {error}"))?;
    let fits = whole.len() - HEADER_BYTES <= cap;
    let frame = enisle_wire::encode(message, cap);
    ensure(frame.is_ok() == fits, || format!("{message:?} of {} bytes with a cap of {cap}: {frame:?}", whole.len()))?;
    let Ok(frame) = frame else { return Ok(Vec::new()) };
    let read = enisle_wire::read_frame::<T>(&mut frame.as_slice(), cap);
    ensure(read.is_ok() == allowed, || format!("{message:?} was written and read as {read:?}"))?;
    if let Ok(read) = read {
        same("written and read", &format!("{read:?}"), &format!("{message:?}"))?;
        let longer = [&frame[HEADER_BYTES..], &[0]].concat();
        let trailing = enisle_wire::decode::<T>(&longer);
        ensure(matches!(trailing, Err(FrameError::Trailing(1))), || {
            format!("a byte behind {message:?}: {trailing:?}")
        })?;
    }
    Ok(frame)
}

fn id(u: &mut Unstructured<'_>) -> RunId {
    RunId(u.below(3) as u128)
}

fn slot(u: &mut Unstructured<'_>) -> Slot {
    Slot(u32::try_from(u.below(4)).unwrap_or(0))
}

/// A text that is sometimes exactly as long as its bound, or one byte longer.
fn bounded(u: &mut Unstructured<'_>, most: usize) -> String {
    match u.below(8) {
        7 => "x".repeat(most),
        6 => "x".repeat(most + 1),
        _ => u.text(4),
    }
}

fn limits(u: &mut Unstructured<'_>) -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.log_lines = u32::try_from(u.below(20)).unwrap_or(0);
    limits.log_bytes = u32::try_from(u.below(2000)).unwrap_or(0);
    if u.rarely(8) {
        (limits.log_lines, limits.log_bytes) = (Limit::LogLines.most(), Limit::LogBytes.most());
    }
    limits
}

const TO_TENANT: &[Make<ToTenant>] = &[
    |u| {
        ToTenant::Run(Run {
            id: id(u),
            entrypoint: u.text(2),
            method: u.flag().then(|| u.text(2)),
            limits: limits(u),
            allow_eval: u.flag(),
            keep: u.flag().then(|| u.number()),
        })
    },
    |u| ToTenant::Input(InputOf { args: u.text(4), props: u.text(4) }),
    |u| ToTenant::Env(EnvOf { json: u.text(4) }),
    |u| ToTenant::Code(CodeOf::Short(u.text(6))),
    |u| {
        let modules = (0..u.below(4)).map(|_| ModuleOf {
            name: u.text(2),
            kind: *u.pick(&[ModuleKind::Js, ModuleKind::Json, ModuleKind::Text, ModuleKind::Data]),
            body: u.take(16).to_vec(),
        });
        let modules = modules.collect();
        ToTenant::Code(CodeOf::Modules { main: u.text(1), modules })
    },
    |u| ToTenant::Forget(u.number()),
];

const FROM_TENANT: &[Make<FromTenant>] = &[
    |u| FromTenant::Ready { cpu_us: u.number() },
    |u| FromTenant::Needs(id(u)),
    |u| {
        let lines = if u.rarely(16) { MAX_LOG_LINES + u.below(2) } else { u.below(4) };
        let line = |u: &mut Unstructured<'_>| LogLine {
            t_ms: u.small(),
            level: *u.pick(&[Level::Debug, Level::Log, Level::Info, Level::Warn, Level::Error]),
            text: u.text(3),
        };
        FromTenant::Log((0..lines).map(|_| line(u)).collect())
    },
    |u| FromTenant::Done(Box::new(done(u))),
    |u| FromTenant::Aborting { id: id(u), certain: u.flag() },
    |u| FromTenant::Left { cpu_us: u.number() },
];

/// A report of the end of a run.
pub(super) fn done(u: &mut Unstructured<'_>) -> Done {
    let error = |u: &mut Unstructured<'_>| ScriptError {
        name: bounded(u, MAX_ERROR_NAME_BYTES),
        message: bounded(u, MAX_ERROR_BYTES),
        stack: u.flag().then(|| bounded(u, MAX_ERROR_BYTES)),
    };
    Done {
        id: id(u),
        outcome: *u.pick(&Outcome::ALL),
        result: u.flag().then(|| u.text(4)),
        error: u.flag().then(|| error(u)),
        truncated: u.flag(),
        usage: Usage { cpu_us: u.number(), wall_us: u.number(), startup_us: u.number(), peak_heap_bytes: u.number() },
        advice: Advice { imports: u.small(), code: u.small(), timers: u.small() },
    }
}

const TO_WORKER: &[Make<ToWorker>] = &[
    |u| {
        ToWorker::Start(Start {
            version: enisle_wire::VERSION,
            role: *u.pick(&[Role::Maker, Role::Host]),
            layers: u.small(),
            data_bytes: u.number(),
            max_tenants: u.small(),
            jitless: u.flag(),
            zone: (0..u.below(16)).map(|_| u.number()).collect(),
        })
    },
    |u| ToWorker::Admit(Admit { slot: slot(u), memory_mb: u.small() }),
    |u| ToWorker::Cancel { slot: slot(u), run: id(u) },
    |u| ToWorker::Retire { slot: slot(u) },
];

const FROM_WORKER: &[Make<FromWorker>] = &[
    |u| {
        let keys = |u: &mut Unstructured<'_>| Keys { jit: 1, tenants: u.take(16).to_vec() };
        FromWorker::Ready(Ready { v8: bounded(u, 64), keys: u.flag().then(|| keys(u)) })
    },
    |u| FromWorker::Snapshot(u.take(64).to_vec()),
    |u| FromWorker::Retired { slot: slot(u) },
    |u| {
        use OverrunCause::{Canceled, Cpu, Disposal, Memory, Wall};
        FromWorker::Overrun { slot: slot(u), run: id(u), cause: *u.pick(&[Cpu, Wall, Memory, Canceled, Disposal]) }
    },
    |u| FromWorker::Failed(u.text(3)),
];

/// One thing that happens on a tenant channel.
#[derive(Debug)]
enum Step {
    Start { id: RunId, most_log: u64, with_code: bool },
    Came(FromTenant),
    SkippedLog(u64),
    SkippedEnd,
}

/// Everything that happened and was allowed, oldest first.
#[derive(Debug, Default)]
struct Channel(Vec<Step>);

impl Channel {
    /// The last step for which `last` is true, and all steps after it.
    fn after(&self, last: impl Fn(&Step) -> bool) -> Option<&[Step]> {
        let at = self.0.iter().rposition(last)?;
        Some(&self.0[at..])
    }

    fn ends_run(step: &Step) -> bool {
        matches!(step, Step::Came(FromTenant::Done(_)) | Step::SkippedEnd)
    }

    /// The run in progress, and its steps since it began.
    fn run(&self) -> Option<(RunId, u64, bool, &[Step])> {
        let since = self.after(|step| matches!(step, Step::Start { .. }))?;
        let Step::Start { id, most_log, with_code } = since.first()? else { return None };
        (!since.iter().any(Self::ends_run)).then_some((*id, *most_log, *with_code, since))
    }

    fn is_warm(&self) -> bool {
        let since = self.after(Self::ends_run).unwrap_or(&self.0);
        since.iter().any(|step| matches!(step, Step::Came(FromTenant::Ready { .. })))
    }

    /// How many bytes the log of the run may still have.
    fn log_left(&self) -> Option<u64> {
        let (_, most, _, since) = self.run()?;
        let counted = |step: &Step| match step {
            Step::Came(FromTenant::Log(lines)) => counted(lines),
            Step::SkippedLog(bytes) => *bytes,
            _ => 0,
        };
        Some(most - since.iter().map(counted).sum::<u64>())
    }

    /// Whether the protocol allows the frame.
    fn allows(&self, frame: &FromTenant) -> bool {
        let has_left = self.0.iter().any(|step| matches!(step, Step::Came(FromTenant::Left { .. })));
        let runs = |id: &RunId| self.run().is_some_and(|(running, ..)| running == *id);
        let fits = |error: &ScriptError| {
            error.name.len() <= MAX_ERROR_NAME_BYTES
                && error.message.len() <= MAX_ERROR_BYTES
                && error.stack.as_ref().is_none_or(|stack| stack.len() <= MAX_ERROR_BYTES)
        };
        !has_left
            && match frame {
                FromTenant::Ready { .. } => !self.is_warm(),
                FromTenant::Needs(id) => self.run().is_some_and(|(running, _, with_code, since)| {
                    let asked = since.iter().any(|step| matches!(step, Step::Came(FromTenant::Needs(_))));
                    running == *id && !with_code && !asked
                }),
                FromTenant::Log(lines) => {
                    !lines.is_empty() && self.log_left().is_some_and(|left| counted(lines) <= left)
                }
                FromTenant::Done(done) => runs(&done.id) && done.error.as_ref().is_none_or(fits),
                FromTenant::Aborting { id, .. } => runs(id),
                FromTenant::Left { .. } => self.run().is_none(),
            }
    }
}

/// How many bytes lines count for: 16 for the frame, and for each line 16 and its text.
fn counted(lines: &[LogLine]) -> u64 {
    lines.iter().fold(16, |sum, line| sum + 16 + line.text.len() as u64)
}

pub(in crate::parsers) fn tenant_session(u: &mut Unstructured<'_>) -> Result<(), String> {
    let (mut session, mut channel) = (tenant::Session::default(), Channel::default());
    while !u.is_empty() {
        let step = match u.below(10) {
            0..3 => Step::Start { id: id(u), most_log: 0, with_code: u.flag() },
            3 => Step::SkippedLog(u.below(400) as u64),
            4 => Step::SkippedEnd,
            _ => Step::Came(u.pick(FROM_TENANT)(u)),
        };
        let step = match step {
            Step::Start { id, with_code, .. } => {
                let limits = limits(u);
                let most_log = u64::from(limits.log_bytes) + 32 * u64::from(limits.log_lines);
                same("whether a run may start", &session.start(id, &limits, with_code), &channel.run().is_none())?;
                if channel.run().is_some() {
                    continue;
                }
                Step::Start { id, most_log, with_code }
            }
            Step::SkippedLog(bytes) => {
                let (found, allowed) = (
                    session.skip_log(usize::try_from(bytes).unwrap_or(0)),
                    channel.log_left().is_some_and(|left| bytes <= left),
                );
                same("a log that was skipped", &found.is_ok(), &allowed)?;
                if !allowed {
                    return Ok(());
                }
                Step::SkippedLog(bytes)
            }
            // `homes::speaker` skips an end only while a run is in progress.
            Step::SkippedEnd if channel.run().is_none() => continue,
            Step::SkippedEnd => {
                session.skip_end();
                Step::SkippedEnd
            }
            Step::Came(frame) => {
                let (found, allowed) = (session.accept(&frame), channel.allows(&frame));
                ensure(found.is_ok() == allowed, || {
                    format!("{frame:?} after {channel:?}: {found:?}, expected {allowed}")
                })?;
                // The supervisor kills the worker, which ends the session.
                if !allowed {
                    return Ok(());
                }
                Step::Came(frame)
            }
        };
        channel.0.push(step);
        same("the run in progress", &session.running(), &channel.run().map(|(id, ..)| id))?;
        same("idle", &session.is_idle(), &(channel.is_warm() && channel.run().is_none()))?;
    }
    Ok(())
}

pub(in crate::parsers) fn worker_session(u: &mut Unstructured<'_>) -> Result<(), String> {
    let role = *u.pick(&[Role::Host, Role::Maker]);
    let mut session = control::Session::new(role);
    let most = if role == Role::Maker { MAX_FROM_WORKER_BYTES } else { enisle_wire::MAX_FROM_HOST_BYTES };
    same("the largest frame", &session.most_bytes(), &most)?;
    let (mut accepted, mut held): (Vec<FromWorker>, Vec<Slot>) = (Vec::new(), Vec::new());
    while !u.is_empty() {
        if u.below(4) == 0 {
            let slot = slot(u);
            session.admit(slot);
            held.retain(|other| *other != slot);
            held.push(slot);
            continue;
        }
        let frame = u.pick(FROM_WORKER)(u);
        let ready = accepted.iter().any(|frame| matches!(frame, FromWorker::Ready(_) | FromWorker::Snapshot(_)));
        let allowed = match &frame {
            FromWorker::Ready(Ready { v8, .. }) => role == Role::Host && !ready && v8.len() <= 64,
            FromWorker::Snapshot(_) => role == Role::Maker && !ready,
            FromWorker::Failed(_) => role == Role::Host || !ready,
            FromWorker::Retired { slot } | FromWorker::Overrun { slot, .. } => ready && held.contains(slot),
        };
        let found = session.accept(&frame);
        ensure(found.is_ok() == allowed, || format!("{frame:?} after {accepted:?}, holding {held:?}: {found:?}"))?;
        if !allowed {
            return Ok(());
        }
        if let FromWorker::Retired { slot } = &frame {
            held.retain(|other| other != slot);
        }
        accepted.push(frame);
    }
    Ok(())
}
