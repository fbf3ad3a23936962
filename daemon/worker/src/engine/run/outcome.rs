//! How a run ended: derived from the script's end and the watchdog's cause.

use enisle_wire::Outcome;
use enisle_wire::limits::{Limit, Limits};
use enisle_wire::tenant::ScriptError;

use crate::watchdog::Cause;

/// Why a run ended, as far as the script's execution shows.
pub(super) enum Ended {
    Result(String),
    Failed(ScriptError),
    TooLarge(usize),
    /// V8 was terminated: the watchdog's cause decides.
    Terminated,
}

/// Derives the outcome from how the script ended and from the watchdog's cause. If a limit was
/// exceeded, the message says which one to change.
pub(super) fn conclude(
    ended: Ended,
    cause: Option<Cause>,
    limits: &Limits,
) -> (Outcome, Option<String>, Option<ScriptError>) {
    let error = |name: &str, message: String| Some(ScriptError { name: name.to_owned(), message, stack: None });
    match (cause, ended) {
        (Some(Cause::Cpu), _) => {
            (Outcome::ExceededCpu, None, error("LimitError", Limit::CpuMs.exceeded(limits.cpu_ms)))
        }
        (Some(Cause::Wall), _) => {
            (Outcome::ExceededWall, None, error("LimitError", Limit::WallMs.exceeded(limits.wall_ms)))
        }
        (Some(Cause::Memory), _) => {
            (Outcome::ExceededMemory, None, error("LimitError", Limit::MemoryMb.exceeded(limits.memory_mb)))
        }
        (Some(Cause::Canceled), _) => (Outcome::Canceled, None, error("Canceled", "the run was canceled".to_owned())),
        (None, Ended::Result(json)) => (Outcome::Ok, Some(json), None),
        (None, Ended::Failed(failed)) => (Outcome::Exception, None, Some(failed.bounded())),
        (None, Ended::TooLarge(bytes)) => {
            let message = format!(
                "the result has at least {bytes} bytes, more than {} (limits.outputBytes)",
                limits.output_bytes
            );
            (Outcome::ExceededOutput, None, error("LimitError", message))
        }
        // V8 was terminated, and no cause is known.
        (None, Ended::Terminated) => {
            (Outcome::InternalError, None, error("InternalError", "the run was ended without a cause".to_owned()))
        }
    }
}
