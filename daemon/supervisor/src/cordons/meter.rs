//! What is counted of a tenant while it runs: by the supervisor on its channel, by the kernel on its thread.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::sync::LazyLock;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::shape::Messages;
use enisle_cordon::{Sample, Time};
use enisle_wire::control::Slot;
use nix::unistd::Pid;

use crate::workers::holdings::Faults;

/// The supervisor's own counts for one home of a tenant.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    runs: u64,
    isolates: u64,
    messages: Messages,
    log_bytes: u64,
    last_message: Option<Instant>,
    /// Since when scripts have been kept warm here, and how often they were called.
    kept_since: Option<Instant>,
    kept_calls: u64,
    /// The scripts whose isolates are there, as far as can be told from here, the last one last.
    kept: VecDeque<u64>,
    /// The scripts of whom there may be one, because the thread was not told to dispose of it:
    /// those that are registered, and a few that were until just now.
    may_be_kept: BTreeSet<u64>,
}

/// So many isolates stay (`engine::kept` in the worker).
const KEPT: usize = 8;

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run goes out. The first message of a run is compared with none before it.
    pub(crate) fn run_begins(&self, keeps: Option<u64>) {
        let mut counts = self.lock();
        counts.runs += 1;
        counts.last_message = None;
        let known = keeps.and_then(|key| counts.kept.iter().position(|kept| *kept == key));
        counts.isolates += u64::from(known.is_none());
        if let Some(key) = keeps {
            known.and_then(|at| counts.kept.remove(at));
            counts.kept.push_back(key);
            counts.may_be_kept.insert(key);
            if counts.kept.len() > KEPT {
                counts.kept.pop_front();
            }
            counts.kept_since.get_or_insert_with(Instant::now);
            counts.kept_calls += 1;
        }
    }

    /// Those scripts that are not registered any more and of whom there may be an isolate. It is
    /// disposed of.
    pub(crate) fn forget_but(&self, is_registered: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut counts = self.lock();
        let forgotten: Vec<_> = counts.may_be_kept.extract_if(.., |key| !is_registered(*key)).collect();
        counts.kept.retain(|key| !forgotten.contains(key));
        forgotten
    }

    /// The thread has said something of a run; `log_bytes` of it are console output.
    pub(crate) fn message(&self, bytes: usize, log_bytes: usize) {
        let (now, mut counts) = (Instant::now(), self.lock());
        counts.messages.count += 1;
        counts.messages.bytes += bytes as u64;
        counts.log_bytes += log_bytes as u64;
        if let Some(last) = counts.last_message.replace(now) {
            let gap = (now - last).as_secs_f64() * 1e3;
            counts.messages.gaps_ms += gap;
            counts.messages.gaps_ms2 += gap * gap;
        }
    }

    /// All counts of one moment, with the kernel's of that thread. `None` once the thread has ended.
    pub(crate) fn sample(
        &self,
        process: Pid,
        thread: Pid,
        (instructions, mispredictions): (u64, u64),
    ) -> Option<Sample> {
        let kernels = of_thread(process, thread)?;
        let counts = self.lock();
        let isolate_ms = counts.kept_since.map_or(0, |since| since.elapsed().as_millis());
        Some(Sample {
            at: monotonic(),
            runs: counts.runs,
            isolates: counts.isolates,
            messages: counts.messages,
            log_bytes: counts.log_bytes,
            isolate_ms: u64::try_from(isolate_ms).unwrap_or(u64::MAX),
            isolate_calls: counts.kept_calls,
            instructions,
            mispredictions,
            ..kernels
        })
    }
}

/// Milliseconds since the daemon's first look: windows, and deaths that are forgiven, are no
/// business of the wall clock's, which may be set.
pub(crate) fn monotonic() -> Time {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    Time(u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// The thread of that name, among those of a process.
pub(crate) fn thread_named(process: Pid, name: &str) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads.filter_map(Result::ok).find_map(|thread| {
        let known = fs::read_to_string(thread.path().join("comm")).ok()?;
        (known.trim_end() == name).then(|| thread.file_name().to_str()?.parse().ok().map(Pid::from_raw)).flatten()
    })
}

/// The page faults that a process has had since it began, as long as it is there.
pub(crate) fn faults_of(process: Pid) -> Option<Faults> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().filter_map(Result::ok);
    let read = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // The worker names them before any of a tenant's code runs.
        let place = stat.split_once("(tenant-")?.1.split_once(')')?.0.parse().ok()?;
        Some((Slot(place), faults(&stat)?))
    };
    let of = threads.filter_map(read).collect();
    // After those, so that it has all of them.
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(Faults { all: faults(&stat)?, of })
}

/// In the text of `/proc/PID/stat`, or of a thread's. The name of a thread, in parentheses, may
/// hold anything.
fn faults(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// How long a thread has been on a processor, by the kernel's word, as long as it is there.
pub(crate) fn computed(process: Pid, thread: Pid) -> Option<Duration> {
    times(process, thread).map(|[ran, _]| ran)
}

/// Time on a processor, and waiting for one (sched-stats.rst: nanoseconds).
fn times(process: Pid, thread: Pid) -> Option<[Duration; 2]> {
    let schedstat = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).ok()?;
    let mut times = schedstat.split_whitespace().map(|word| Duration::from_nanos(word.parse().unwrap_or(0)));
    Some([times.next()?, times.next()?])
}

/// The kernel's counts: times, and page faults (proc_pid_stat(5), field 10).
fn of_thread(process: Pid, thread: Pid) -> Option<Sample> {
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
        let meter = Meter::default();
        until("its work", || (meter.sample(process, busy.thread, (0, 0))?.ran_ms >= 5).then_some(()));
        drop(busy);
        // The kernel takes its time to forget a thread.
        until("its end", || thread_named(process, "tenant-99").is_none().then_some(()));
    }

    #[test]
    fn a_run_needs_an_isolate_unless_its_script_was_among_the_last_ones() {
        let meter = Meter::default();
        let isolates = || meter.lock().isolates;
        (0..8).for_each(|key| meter.run_begins(Some(key)));
        (0..8).for_each(|key| meter.run_begins(Some(key)));
        assert_eq!(isolates(), 8);
        // One more than there is room for, in turn: none is ever there.
        (0..9).cycle().take(18).for_each(|key| meter.run_begins(Some(key + 100)));
        assert_eq!(isolates(), 26);
        meter.run_begins(None);
        assert_eq!(isolates(), 27);
    }

    #[test]
    fn what_is_not_registered_any_more_is_forgotten_once() {
        let meter = Meter::default();
        (0..20).for_each(|key| meter.run_begins(Some(key)));
        assert_eq!(meter.forget_but(|key| key != 3), [3]);
        assert!(meter.forget_but(|key| key != 3).is_empty());
    }

    #[test]
    fn gaps_are_counted_within_a_run_and_not_between_two() {
        let meter = Meter::default();
        for _ in 0..2 {
            meter.run_begins(None);
            meter.message(10, 0);
        }
        assert!(meter.lock().messages.gaps_ms < f64::EPSILON);
        meter.message(10, 4);
        let counts = meter.lock();
        assert!(counts.messages.gaps_ms > 0.0 && counts.messages.count == 3 && counts.log_bytes == 4);
    }
}
