//! What becomes of a run: its checked result, or the outcome that the death of its process implies.

use std::time::Duration;

use enisle_wire::Outcome;
use enisle_wire::control::OverrunCause;
use enisle_wire::limits::{Limit, Limits};
use enisle_wire::tenant::{Advice, Done, LogLine, ScriptError, Usage};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::homes::exchange::Finished;
use crate::share::{Exhausted, Held};
use crate::workers::death::Death;

/// How long an answer waits for memory.
pub(super) const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// What a log line takes in memory besides its text.
const LINE_BYTES: u64 = 64;
/// A longer result is parsed on another thread than the one that serves connections.
const INLINE_BYTES: usize = 256 << 10;

/// Why a speaker stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// The channel is closed: the worker has died, or is about to.
    Closed,
    /// V8 cannot continue; this was the thread's last frame before the process ends.
    Aborted {
        certain: bool,
    },
    Violation(String),
}

/// What has arrived from a run so far.
pub(super) struct Gathered {
    pub(super) logs: Vec<LogLine>,
    pub(super) held: Held,
    /// There was no memory for part of the log.
    pub(super) truncated: bool,
}

impl Gathered {
    pub(super) fn add(&mut self, lines: Vec<LogLine>) {
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

impl Gathered {
    /// The report of a run that did not end by itself.
    pub(super) fn ended(
        self,
        outcome: Outcome,
        message: String,
        usage: Usage,
        queued: Duration,
        limits: &Limits,
    ) -> Finished {
        Finished {
            outcome,
            result: None,
            error: Some(ScriptError { name: error_name(outcome).to_owned(), message, stack: None }),
            logs: self.logs,
            truncated: true,
            usage: Usage { peak_heap_bytes: least_held(outcome, limits), ..usage },
            queued,
            advice: Advice::default(),
            held: Some(self.held),
        }
    }
}

/// What is known about the end of a run whose process has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    /// The process was killed because V8 could not interrupt the run, or the disposal after it.
    pub(super) overrun: Option<OverrunCause>,
    pub(super) stop: &'a Stop,
    pub(super) death: &'a Death,
    /// A layer stopped this tenant's thread.
    pub(super) attacked: bool,
    /// No other tenant was ever in the process.
    pub(super) alone: bool,
}

impl End<'_> {
    /// The run's outcome and a message; `None` if the death of the process is not the run's doing.
    pub(super) fn judge(self, limits: &Limits) -> Option<(Outcome, String)> {
        let gave_up = match self.stop {
            Stop::Aborted { certain } => *certain || self.alone,
            // If the thread's last frame did not arrive, the exit status is used instead.
            Stop::Closed | Stop::Violation(_) => self.alone && *self.death == Death::OutOfMemory,
        };
        match (self.overrun, self.stop) {
            (Some(cause), _) => Some(overran(cause, limits)),
            (None, Stop::Violation(what)) => {
                Some((Outcome::Violation, format!("its worker broke the protocol: {what}")))
            }
            // The run was over its limit, or no other tenant was there.
            (None, _) if gave_up => {
                let mb = limits.memory_mb;
                let message = format!(
                    "V8 gave up on the run: it needed more at once than V8 has, or than {mb} MiB allow (limits.memoryMb)"
                );
                Some((Outcome::ExceededMemory, message))
            }
            (None, _) if self.attacked => Some((Outcome::Violation, format!("a layer stopped it: {}", self.death))),
            (None, _) if self.alone && *self.death == Death::Filter => {
                Some((Outcome::Violation, "the filter stopped a system call that no script needs".to_owned()))
            }
            (None, Stop::Aborted { .. } | Stop::Closed) => None,
        }
    }
}

/// Checks what the worker reports: the result must be JSON and within the limit, and there must be
/// one exactly if the outcome is `Ok`. The outer error says what is wrong. Frames that were too
/// small to be charged before they were read are charged now. The inner error is given if there is
/// no memory for that; it has the size of result and error.
pub(super) async fn finished(
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
        return Err(format!("outcome {} does not go with the presence or absence of a result", done.outcome));
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

/// The usage of a run of which only the start is known: all time since then counts as CPU time, up
/// to the run's limit.
pub(super) fn all_the_time(begun: Instant, limits: &Limits) -> Usage {
    let wall_us = micros(begun.elapsed());
    Usage { wall_us, cpu_us: wall_us.min(u64::from(limits.cpu_ms) * 1000), ..Usage::default() }
}

/// The least memory that a run with this outcome can have held: its limit if it exceeded the limit,
/// and otherwise 0.
fn least_held(outcome: Outcome, limits: &Limits) -> u64 {
    if outcome == Outcome::ExceededMemory { u64::from(limits.memory_mb) << 20 } else { 0 }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The error's name for an outcome that is not an exception of the script.
fn error_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Violation => "Violation",
        Outcome::Canceled => "Canceled",
        _ => "LimitError",
    }
}

/// The outcome of a run whose process was killed because V8 could not interrupt the thread.
fn overran(cause: OverrunCause, limits: &Limits) -> (Outcome, String) {
    match cause {
        OverrunCause::Cpu => (Outcome::ExceededCpu, Limit::CpuMs.exceeded(limits.cpu_ms)),
        OverrunCause::Wall => (Outcome::ExceededWall, Limit::WallMs.exceeded(limits.wall_ms)),
        OverrunCause::Memory => (Outcome::ExceededMemory, Limit::MemoryMb.exceeded(limits.memory_mb)),
        OverrunCause::Canceled => (Outcome::Canceled, "the run was canceled".to_owned()),
        OverrunCause::Disposal => {
            (Outcome::ExceededCpu, "disposing of what runs left took too long (limits.cpuMs)".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: Stop = Stop::Closed;

    fn end<'a>(stop: &'a Stop, death: &'a Death) -> End<'a> {
        End { overrun: None, stop, death, attacked: false, alone: false }
    }

    fn outcome(end: End<'_>) -> Option<Outcome> {
        end.judge(&Limits::default()).map(|(outcome, _)| outcome)
    }

    #[test]
    fn a_run_that_was_killed_has_the_outcome_of_what_it_was_killed_for() {
        let killed = Death::Killed("why".to_owned());
        for (cause, expected) in [
            (OverrunCause::Cpu, Outcome::ExceededCpu),
            (OverrunCause::Wall, Outcome::ExceededWall),
            (OverrunCause::Memory, Outcome::ExceededMemory),
            (OverrunCause::Canceled, Outcome::Canceled),
            (OverrunCause::Disposal, Outcome::ExceededCpu),
        ] {
            // What else is known does not matter.
            for stop in [Stop::Closed, Stop::Aborted { certain: true }, Stop::Violation("what".to_owned())] {
                let end = End { overrun: Some(cause), attacked: true, alone: true, ..end(&stop, &killed) };
                assert_eq!(outcome(end), Some(expected), "{cause:?} {stop:?}");
            }
        }
    }

    #[test]
    fn when_v8_gives_up_it_is_the_runs_doing_if_it_was_over_its_limit_or_alone() {
        let gave_up = |certain, alone| {
            outcome(End { alone, ..end(&Stop::Aborted { certain }, &Death::GaveUp) }) == Some(Outcome::ExceededMemory)
        };
        assert_eq!([gave_up(true, false), gave_up(false, true), gave_up(false, false)], [true, true, false]);
    }

    #[test]
    fn an_exit_without_a_record_is_the_runs_doing_only_if_its_tenant_was_alone() {
        for (death, alone_it_is) in [
            (Death::OutOfMemory, Some(Outcome::ExceededMemory)),
            (Death::Filter, Some(Outcome::Violation)),
            (Death::Unknown, None),
            (Death::Killed("an operator".to_owned()), None),
        ] {
            assert_eq!(outcome(End { alone: true, ..end(&CLOSED, &death) }), alone_it_is, "{death:?}");
            assert_eq!(outcome(end(&CLOSED, &death)), None, "{death:?}");
        }
    }

    #[test]
    fn an_attack_and_a_broken_protocol_are_violations_even_in_company() {
        let broken = Stop::Violation("a frame out of turn".to_owned());
        assert_eq!(outcome(end(&broken, &Death::Unknown)), Some(Outcome::Violation));
        assert_eq!(outcome(End { attacked: true, ..end(&CLOSED, &Death::Filter) }), Some(Outcome::Violation));
    }
}
