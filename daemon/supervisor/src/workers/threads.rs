//! What the kernel reports about the threads of a worker process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use enisle_cordon::Sample;
use enisle_wire::control::Slot;
use nix::unistd::Pid;

/// The page faults of a process since it began.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    /// The page faults of all threads, including those that have ended.
    pub(crate) all: u64,
    /// The page faults of each tenant's thread that exists.
    pub(crate) of: BTreeMap<Slot, u64>,
}

/// The thread with that name in a process.
pub(crate) fn thread_named(process: Pid, name: &str) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads.filter_map(Result::ok).find_map(|thread| {
        let known = fs::read_to_string(thread.path().join("comm")).ok()?;
        (known.trim_end() == name).then(|| thread.file_name().to_str()?.parse().ok().map(Pid::from_raw)).flatten()
    })
}

/// The page faults of a process since it began, while it exists.
pub(crate) fn faults_of(process: Pid) -> Option<Faults> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().filter_map(Result::ok);
    let read = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // The worker names the threads before any of a tenant's code runs.
        let slot = stat.split_once("(tenant-")?.1.split_once(')')?.0.parse().ok()?;
        Some((Slot(slot), faults(&stat)?))
    };
    let of = threads.filter_map(read).collect();
    // The total is read after the threads' counts, so that it includes them.
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(Faults { all: faults(&stat)?, of })
}

/// The minor page faults in the text of `/proc/PID/stat`, or of a thread's `stat`. The thread's
/// name, in parentheses, may contain anything.
pub(crate) fn faults(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// How long a thread has been on a processor, as reported by the kernel, while the thread exists.
pub(crate) fn computed(process: Pid, thread: Pid) -> Option<Duration> {
    times(process, thread).map(|[ran, _]| ran)
}

/// Time on a processor, and time waiting for one (sched-stats.rst: nanoseconds).
fn times(process: Pid, thread: Pid) -> Option<[Duration; 2]> {
    let schedstat = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).ok()?;
    let mut times = schedstat.split_whitespace().map(|word| Duration::from_nanos(word.parse().unwrap_or(0)));
    Some([times.next()?, times.next()?])
}

/// The kernel's counts for a thread while it exists: times, and page faults (proc_pid_stat(5),
/// field 10).
pub(crate) fn counts(process: Pid, thread: Pid) -> Option<Sample> {
    let stat = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")).ok()?;
    let [ran_ms, waited_ms] = times(process, thread)?.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Some(Sample { ran_ms, waited_ms, faults: faults(&stat)?, ..Sample::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::waiting::{Busy, until};

    #[test]
    fn a_thread_is_found_by_its_name_and_its_work_is_seen() {
        let process = nix::unistd::getpid();
        let busy = Busy::start("tenant-99");
        assert_eq!(thread_named(process, "tenant-99"), Some(busy.thread));
        until("its work", || (counts(process, busy.thread)?.ran_ms >= 5).then_some(()));
        drop(busy);
        // The kernel takes its time to forget a thread.
        until("its end", || thread_named(process, "tenant-99").is_none().then_some(()));
    }
}
