//! The control channel: one per worker process.
//!
//! In the worker, the main thread and the watchdog send on this channel. A tenant's thread never
//! does.
//!
//! ```text
//!   supervisor ── Start ──▶ worker   (jail, V8, seccomp)
//!   supervisor ◀─ Ready ─── worker
//!   supervisor ── Admit + descriptor, Retire, Cancel ──▶ worker
//!   supervisor ◀─ Retired, Overrun ─── worker
//! ```
//!
//! A maker (the worker that makes the startup snapshot) answers `Start` with `Snapshot` and exits.

use serde::{Deserialize, Serialize};

use crate::tenant::RunId;
use crate::{MAX_FROM_HOST_BYTES, MAX_FROM_WORKER_BYTES};

/// The exit code of a worker whose V8 has run out of memory.
pub const OUT_OF_MEMORY_EXIT: i32 = 86;
/// The exit code of a worker whose V8 gave up for another reason. After a fault the exit code is
/// `hardening::fault::FAULT_EXIT`.
pub const GAVE_UP_EXIT: i32 = 87;

/// A numbered place for one tenant in one worker process; never used twice in the life of the
/// process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot(pub u32);

/// From the supervisor to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first frame. It carries the descriptor of the fault page and, for a host, that of the
    /// snapshot.
    Start(Start),
    /// A tenant moves in. The frame carries the descriptor of its channel.
    Admit(Admit),
    /// End this run, unless it has ended already.
    Cancel { slot: Slot, run: RunId },
    /// A tenant moves out, even in the middle of a run.
    Retire { slot: Slot },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    pub version: u16,
    pub role: Role,
    /// The jail's layers, as the bits of `hardening::LayerSet`.
    pub layers: u32,
    /// The most committed private memory (`RLIMIT_DATA`).
    pub data_bytes: u64,
    pub max_tenants: u32,
    /// The engine generates no machine code: interpreter only, no WebAssembly.
    pub jitless: bool,
    /// Where the tenants' islands are, in the form of `hardening::islands::Zone::parts`. The
    /// supervisor chooses, so that it knows where to look without trusting the worker.
    pub zone: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Makes the startup snapshot and exits.
    Maker,
    /// Hosts tenants.
    Host,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Admit {
    pub slot: Slot,
    /// The heap limit of the isolate that is warmed first. A run with another limit makes the
    /// thread replace the warm isolate.
    pub memory_mb: u32,
}

/// From a worker's own threads, the main thread and the watchdog, to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromWorker {
    Ready(Ready),
    Snapshot(Vec<u8>),
    /// A tenant's thread and cage are gone.
    Retired {
        slot: Slot,
    },
    /// A run did not end when it was stopped, or disposing of what runs have left takes too long.
    /// Only the end of the process stops the thread.
    Overrun {
        slot: Slot,
        run: RunId,
        cause: OverrunCause,
    },
    /// The worker cannot go on: start-up failed, or a host had no memory for a tenant's thread. The
    /// sentence is for the operator.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub v8: String,
    /// The protection keys of this process; `None` if the layer is off.
    pub keys: Option<Keys>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// V8's key for JIT pages.
    pub jit: u8,
    /// One key for each slot, in order.
    pub tenants: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverrunCause {
    Cpu,
    Wall,
    Memory,
    Canceled,
    /// The run had ended, and the thread was disposing of something that it or an earlier run left.
    Disposal,
}

/// A frame that the worker's role or state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("{0} before the worker was ready")]
    TooEarly(&'static str),
    #[error("{0} from a worker that is ready already")]
    TooLate(&'static str),
    /// A host sent a snapshot, or a maker offered to host tenants.
    #[error("{0} from a worker of the other role")]
    WrongRole(&'static str),
    #[error("an overlong V8 version")]
    LongReady,
    #[error("{frame} for slot {slot}, which this worker does not hold")]
    NotHeld { frame: &'static str, slot: u32 },
}

/// The supervisor's view of one control channel.
#[derive(Debug)]
pub struct Session {
    role: Role,
    ready: bool,
    held: std::collections::BTreeSet<Slot>,
}

impl Session {
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, ready: false, held: std::collections::BTreeSet::new() }
    }

    /// The largest frame that this worker may send: a host sends only small ones.
    #[must_use]
    pub fn most_bytes(&self) -> usize {
        match self.role {
            Role::Maker => MAX_FROM_WORKER_BYTES,
            Role::Host => MAX_FROM_HOST_BYTES,
        }
    }

    /// Notes that `Admit` was sent.
    pub fn admit(&mut self, slot: Slot) {
        self.held.insert(slot);
    }

    /// Checks a frame that came in.
    ///
    /// # Errors
    /// The frame was not allowed: the worker must be killed.
    pub fn accept(&mut self, frame: &FromWorker) -> Result<(), ProtocolError> {
        match frame {
            FromWorker::Failed(_) if self.ready && self.role == Role::Maker => Err(ProtocolError::TooLate("Failed")),
            FromWorker::Failed(_) => Ok(()),
            FromWorker::Snapshot(_) if self.role == Role::Host => Err(ProtocolError::WrongRole("Snapshot")),
            FromWorker::Ready(_) if self.role == Role::Maker => Err(ProtocolError::WrongRole("Ready")),
            FromWorker::Ready(_) if self.ready => Err(ProtocolError::TooLate("Ready")),
            FromWorker::Snapshot(_) if self.ready => Err(ProtocolError::TooLate("Snapshot")),
            // The version is stored and shown with every worker, so its length is bounded.
            FromWorker::Ready(ready) if ready.v8.len() > 64 => Err(ProtocolError::LongReady),
            FromWorker::Ready(_) | FromWorker::Snapshot(_) => {
                self.ready = true;
                Ok(())
            }
            FromWorker::Retired { slot } => {
                self.expect_held("Retired", *slot)?;
                self.held.remove(slot);
                Ok(())
            }
            FromWorker::Overrun { slot, .. } => self.expect_held("Overrun", *slot),
        }
    }

    fn expect_held(&self, frame: &'static str, slot: Slot) -> Result<(), ProtocolError> {
        if !self.ready {
            Err(ProtocolError::TooEarly(frame))
        } else if self.held.contains(&slot) {
            Ok(())
        } else {
            Err(ProtocolError::NotHeld { frame, slot: slot.0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> FromWorker {
        FromWorker::Ready(Ready { v8: "15".into(), keys: None })
    }

    #[test]
    fn a_worker_speaks_only_for_the_slots_that_it_holds() {
        let mut session = Session::new(Role::Host);
        assert_eq!(session.accept(&ready()), Ok(()));
        session.admit(Slot(3));
        let other = FromWorker::Retired { slot: Slot(4) };
        assert_eq!(session.accept(&other), Err(ProtocolError::NotHeld { frame: "Retired", slot: 4 }));
        assert_eq!(session.accept(&FromWorker::Retired { slot: Slot(3) }), Ok(()));
        assert!(session.accept(&FromWorker::Retired { slot: Slot(3) }).is_err());
    }

    #[test]
    fn an_overlong_version_is_refused() {
        let ready = FromWorker::Ready(Ready { v8: "1".repeat(65), keys: None });
        assert_eq!(Session::new(Role::Host).accept(&ready), Err(ProtocolError::LongReady));
    }

    #[test]
    fn retired_is_refused_before_ready_and_ready_is_accepted_once() {
        let mut session = Session::new(Role::Host);
        session.admit(Slot(1));
        assert!(session.accept(&FromWorker::Retired { slot: Slot(1) }).is_err());
        assert_eq!(session.accept(&ready()), Ok(()));
        assert!(session.accept(&ready()).is_err());
    }

    #[test]
    fn a_host_may_fail_at_any_time_and_a_maker_until_its_snapshot() {
        let failed = FromWorker::Failed("no memory for a thread".to_owned());
        let mut host = Session::new(Role::Host);
        assert_eq!(host.accept(&failed), Ok(()));
        assert_eq!(host.accept(&ready()), Ok(()));
        assert_eq!(host.accept(&failed), Ok(()));
        let mut maker = Session::new(Role::Maker);
        assert_eq!(maker.accept(&FromWorker::Snapshot(vec![])), Ok(()));
        assert_eq!(maker.accept(&failed), Err(ProtocolError::TooLate("Failed")));
    }

    #[test]
    fn a_host_makes_no_snapshot_and_a_maker_hosts_no_tenant() {
        let mut maker = Session::new(Role::Maker);
        let snapshot = FromWorker::Snapshot(vec![]);
        assert_eq!(Session::new(Role::Host).accept(&snapshot), Err(ProtocolError::WrongRole("Snapshot")));
        assert_eq!(maker.accept(&ready()), Err(ProtocolError::WrongRole("Ready")));
        assert_eq!(maker.accept(&snapshot), Ok(()));
    }

    #[test]
    fn an_error_names_the_frame_that_came_out_of_order() {
        let snapshot = FromWorker::Snapshot(vec![]);
        let of_a_host = Session::new(Role::Host).accept(&snapshot).unwrap_err();
        assert_eq!(of_a_host.to_string(), "Snapshot from a worker of the other role");
        let mut maker = Session::new(Role::Maker);
        assert_eq!(maker.accept(&snapshot), Ok(()));
        assert_eq!(maker.accept(&snapshot).unwrap_err().to_string(), "Snapshot from a worker that is ready already");
        let mut host = Session::new(Role::Host);
        assert_eq!(host.accept(&ready()), Ok(()));
        assert_eq!(host.accept(&ready()), Err(ProtocolError::TooLate("Ready")));
    }
}
