//! The processor's own counters for a tenant's thread: instructions and mispredicted branches, in
//! user mode.
//!
//! The counters are optional: many virtual machines have none, and the kernel may forbid their use
//! (`perf_event_paranoid`). Without them the signal `mispredictions` is never seen; `GET /v1/info`
//! reports why.

use std::io;

use nix::unistd::Pid;
use perf_event::events::{Event, Hardware};
use perf_event::{Builder, Counter};

/// The two counters of one thread.
#[derive(Debug)]
pub(crate) struct Counters {
    instructions: Counter,
    mispredictions: Counter,
}

impl Counters {
    /// Starts counting for a thread.
    pub(crate) fn of(thread: Pid) -> io::Result<Self> {
        Self::counting(thread, Hardware::INSTRUCTIONS, Hardware::BRANCH_MISSES)
    }

    fn counting(thread: Pid, one: impl Event, other: impl Event) -> io::Result<Self> {
        let (instructions, mispredictions) = (begin(thread, one)?, begin(thread, other)?);
        Ok(Self { instructions, mispredictions })
    }

    /// Instructions and mispredictions so far.
    pub(crate) fn read(&mut self) -> io::Result<(u64, u64)> {
        Ok((self.instructions.read()?, self.mispredictions.read()?))
    }
}

fn begin(thread: Pid, event: impl Event) -> io::Result<Counter> {
    let mut counter = Builder::new(event).observe_pid(thread.as_raw()).build()?;
    counter.enable()?;
    Ok(counter)
}

/// Whether this machine has the counters and lets this process use them; the error says why not.
pub(crate) fn probe() -> Result<(), String> {
    let counted = Counters::of(nix::unistd::gettid()).and_then(|mut counters| counters.read());
    counted.map(drop).map_err(|error| format!("the processor's counters cannot be used here: {error}"))
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::unistd::gettid;
    use perf_event::events::Software;

    use super::*;
    use crate::waiting::{Busy, until};

    /// Counts software events, which exist even if the processor's counters do not.
    fn software(thread: Pid) -> Result<Counters, Errno> {
        let counters = Counters::counting(thread, Software::TASK_CLOCK, Software::PAGE_FAULTS);
        counters.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    #[test]
    fn another_thread_is_counted_wherever_the_kernel_lets_a_thread_count_itself() {
        let busy = Busy::start("busy");
        let forbidden = software(gettid()).err();
        let Some(errno) = forbidden else {
            let mut counters = software(busy.thread).unwrap();
            return until("a count", || (counters.read().unwrap().0 > 0).then_some(()));
        };
        // Refused by perf_event_paranoid, by a filter around this process, or by a kernel without
        // the call.
        assert!([Errno::EACCES, Errno::EPERM, Errno::ENOSYS].contains(&errno), "{errno}");
        assert_eq!(software(busy.thread).err(), Some(errno));
        assert!(probe().is_err());
    }
}
