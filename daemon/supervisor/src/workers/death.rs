//! How a worker process ended: as reported by the kernel, and by the record of its fault if there
//! is one.

use enisle_hardening::fault::{FAULT_EXIT, Fault, FaultPage};
use enisle_wire::control::{GAVE_UP_EXIT, OUT_OF_MEMORY_EXIT};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::workers::violation;

/// How a worker process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Death {
    /// The supervisor killed it, for this reason.
    Killed(String),
    /// Its seccomp filter killed it for a system call that no worker makes, without a record of the
    /// thread.
    Filter,
    /// It ended by a fault, as the worker recorded it.
    Fault(Fault),
    OutOfMemory,
    GaveUp,
    Exited(i32),
    Signaled(Signal),
    Unknown,
}

impl Death {
    pub(crate) fn of(status: WaitStatus, faults: &FaultPage) -> Self {
        match status {
            WaitStatus::Exited(_, OUT_OF_MEMORY_EXIT) => faults.read().map_or(Self::OutOfMemory, Self::Fault),
            WaitStatus::Exited(_, code @ FAULT_EXIT) => faults.read().map_or(Self::Exited(code), Self::Fault),
            WaitStatus::Exited(_, GAVE_UP_EXIT) => faults.read().map_or(Self::GaveUp, Self::Fault),
            WaitStatus::Exited(_, code) => Self::Exited(code),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Self::Filter,
            // The process may have been killed after it wrote the record and before it exited.
            WaitStatus::Signaled(_, signal @ Signal::SIGKILL, _) => {
                faults.read().map_or(Self::Signaled(signal), Self::Fault)
            }
            WaitStatus::Signaled(_, signal, _) => Self::Signaled(signal),
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Killed(why) => f.write_str(why),
            Self::Filter => f.write_str("its filter killed it for a forbidden system call (SIGSYS)"),
            Self::Fault(fault) => f.write_str(&violation::describe(fault)),
            Self::OutOfMemory => f.write_str("V8 ran out of memory"),
            Self::GaveUp => f.write_str("V8 gave up"),
            Self::Exited(code) => write!(f, "it exited with {code}"),
            Self::Signaled(signal) => write!(f, "it was ended by {signal}"),
            Self::Unknown => f.write_str("it was lost"),
        }
    }
}
