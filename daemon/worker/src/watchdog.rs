//! Limits of time: the watchdog, a thread of the worker, watches every tenant's clock, and ends
//! runs that exceed a limit.
//!
//! A thread cannot use CPU time faster than time passes, so the earliest moment at which a run can
//! exceed its limits is known when it begins. The watchdog sleeps until the earliest of those
//! moments, checks, and sleeps again; a run that begins wakes it only if its own moment is earlier.
//! Short runs cost the watchdog nothing.
//!
//! ```text
//! waiting ── tidy ──▶ tidying ── arm ──▶ running ── disarm ──▶ tidying ── wait ──▶ waiting
//!                                           └─ end(cause) ─▶ ending ─ disarm ─▲
//! ```
//! Outside its runs a thread is tidying: it disposes of isolates, makes the next one, or moves out.
//! That time is limited too. Nothing interrupts a disposal, so one that takes too long is reported
//! like a run that does not stop. A waiting thread uses no CPU time.
//!
//! Only the tenant's thread calls `tidy`, `arm`, `disarm` and `wait`. A run is ended by the
//! watchdog, by the main thread for a command of the supervisor, or by its own thread at the memory
//! limit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_hardening::process::thread::CpuClock;
use enisle_wire::control::{OverrunCause, Slot};
use enisle_wire::limits::Limits;
use enisle_wire::tenant::RunId;

/// How long a run may take to notice that it was ended. V8 notices at the next loop or call. A run
/// that does not notice in this time is in one long operation of V8, and only the end of the
/// process stops it.
const GRACE: Duration = Duration::from_millis(50);
/// How much CPU time the thread must have used since the run was ended: a thread that waits for a
/// processor cannot notice anything.
const GRACE_CPU: Duration = Duration::from_millis(25);
/// A thread that has used less CPU time than that gets at most this much longer, however busy the
/// machine is.
const LAST_GRACE: Duration = Duration::from_millis(500);
/// After a memory limit V8 may first collect a full heap, so the grace is longer, both in time and
/// in CPU time of the thread.
const MEMORY_GRACE: Duration = Duration::from_millis(1000);
/// As [`LAST_GRACE`], after a memory limit.
const LAST_MEMORY_GRACE: Duration = Duration::from_secs(4);

/// The CPU time that a thread may use for tidying. If one of its runs was allowed more, the thread
/// may use that much.
const TIDY_LEAST: Duration = Duration::from_secs(1);

/// Why a run was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Cpu,
    Wall,
    Memory,
    Canceled,
}

impl From<Cause> for OverrunCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Cpu => Self::Cpu,
            Cause::Wall => Self::Wall,
            Cause::Memory => Self::Memory,
            Cause::Canceled => Self::Canceled,
        }
    }
}

/// The run in a tenant's thread.
#[derive(Debug)]
struct Armed {
    run: RunId,
    cpu_deadline: Duration,
    wall_deadline: Instant,
    handle: v8::IsolateHandle,
    /// Why the run was ended, when, and how much CPU time its thread had used by then.
    ended: Option<(Cause, Instant, Duration)>,
    reported: bool,
}

/// What a thread does outside its runs.
#[derive(Debug)]
struct Tidying {
    /// The last run before the tidying.
    run: RunId,
    begun: Duration,
    cpu_deadline: Duration,
    reported: bool,
}

impl Tidying {
    /// As [`Watched::check`].
    fn check(&mut self, now: Instant, clock: CpuClock) -> (Option<(RunId, OverrunCause)>, Option<Instant>) {
        let left = self.cpu_deadline.saturating_sub(clock.now());
        match (self.reported, left.is_zero()) {
            (true, _) => (None, None),
            (false, false) => (None, Some(now + left)),
            (false, true) => {
                self.reported = true;
                (Some((self.run, OverrunCause::Disposal)), None)
            }
        }
    }
}

/// What a tenant's thread is doing.
#[derive(Debug, Default)]
enum Doing {
    /// It waits for the supervisor, or has run no script yet.
    #[default]
    Waiting,
    Running(Armed),
    Tidying(Tidying),
}

#[derive(Debug, Default)]
struct State {
    doing: Doing,
    last: Option<RunId>,
    /// The longest CPU limit of any run of this thread.
    most: Duration,
    /// How much of the thread's CPU time has been reported.
    reported: Duration,
    /// The last canceled run: it may still be on its way to this thread.
    canceled: Option<RunId>,
    lifted: Lifted,
}

impl State {
    fn armed(&mut self) -> Option<&mut Armed> {
        if let Doing::Running(armed) = &mut self.doing { Some(armed) } else { None }
    }
}

/// Whether protections can be switched off: only in the attack harness's build.
const HARNESS: bool = cfg!(feature = "attack-natives");

/// Protections that the attack harness has switched off, to show what they prevent.
#[derive(Debug, Default, Clone, Copy)]
struct Lifted {
    bill: bool,
    bound: bool,
}

/// A tenant's thread, as the watchdog sees it.
#[derive(Debug)]
pub(crate) struct Watched {
    slot: Slot,
    clock: CpuClock,
    state: Mutex<State>,
    ended: Condvar,
    retiring: AtomicBool,
    alarm: Arc<Alarm>,
}

/// Wakes the watchdog, and records when it will wake by itself. It works by a futex in memory that
/// all threads share, because a tenant's thread has no descriptor except its own channel.
#[derive(Debug)]
pub(crate) struct Alarm {
    epoch: Instant,
    /// Microseconds after `epoch`.
    wakes_at: AtomicU64,
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        let (rung, bell) = (Mutex::new(false), Condvar::new());
        Self { epoch: Instant::now(), wakes_at: AtomicU64::new(u64::MAX), rung, bell }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// Sleeps until the alarm is rung, or until `until`.
    pub(crate) fn sleep(&self, until: Option<Instant>) {
        self.wakes_at.store(until.map_or(u64::MAX, |until| self.micros(until)), Ordering::SeqCst);
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rung {
            rung = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.bell.wait(rung).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.bell.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        *rung = false;
        // The watchdog is awake: a run that begins before the next sleep rings, so no deadline is
        // missed.
        self.wakes_at.store(u64::MAX, Ordering::SeqCst);
    }

    /// Makes sure that the watchdog is awake at `at`.
    fn by(&self, at: Instant) {
        if self.micros(at) < self.wakes_at.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Wakes the watchdog now.
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }
}

impl Watched {
    /// The record of a tenant's thread, by its CPU clock.
    pub(crate) fn new(slot: Slot, clock: CpuClock, alarm: Arc<Alarm>) -> Self {
        let (state, ended) = (Mutex::default(), Condvar::new());
        Self { slot, clock, state, ended, retiring: AtomicBool::new(false), alarm }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn clock(&self) -> CpuClock {
        self.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins on this thread.
    pub(crate) fn arm(&self, run: RunId, limits: &Limits, handle: v8::IsolateHandle) {
        let (cpu, wall) = (Duration::from_millis(limits.cpu_ms.into()), Duration::from_millis(limits.wall_ms.into()));
        let now = Instant::now();
        let mut armed = Armed {
            run,
            cpu_deadline: self.clock.now() + cpu,
            wall_deadline: now + wall,
            handle,
            ended: None,
            reported: false,
        };
        let mut state = self.lock();
        if state.canceled == Some(run) || self.retiring.load(Ordering::SeqCst) {
            self.end_now(&mut armed, Cause::Canceled);
        }
        state.doing = Doing::Running(armed);
        state.last = Some(run);
        state.most = state.most.max(cpu);
        drop(state);
        self.alarm.by(now + cpu.min(wall));
    }

    /// The run has left its isolate, and the thread tidies. Returns why the run was ended, if it
    /// was.
    pub(crate) fn disarm(&self) -> Option<Cause> {
        let mut state = self.lock();
        let ended = state.armed().and_then(|armed| armed.ended);
        self.begin_to_tidy(state);
        ended.map(|(cause, ..)| cause)
    }

    /// The thread has work to do outside its runs.
    pub(crate) fn tidy(&self) {
        self.begin_to_tidy(self.lock());
    }

    fn begin_to_tidy(&self, mut state: MutexGuard<'_, State>) {
        // Before the first run there is no limit: no script has made anything on this thread.
        let Some(run) = state.last else { return };
        let (begun, most) = (self.clock.now(), state.most.max(TIDY_LEAST));
        state.doing = Doing::Tidying(Tidying { run, begun, cpu_deadline: begun + most, reported: false });
        drop(state);
        self.alarm.by(Instant::now() + most);
    }

    /// The thread waits for the supervisor.
    pub(crate) fn wait(&self) {
        self.lock().doing = Doing::Waiting;
    }

    /// The thread's CPU time in microseconds since the last call. Each part is reported exactly
    /// once.
    pub(crate) fn take_us(&self) -> u64 {
        let (mut state, now) = (self.lock(), self.clock.now());
        let until = match &state.doing {
            Doing::Tidying(tidying) if HARNESS && state.lifted.bill => tidying.begun,
            _ => now,
        };
        let used = until.saturating_sub(std::mem::replace(&mut state.reported, now));
        u64::try_from(used.as_micros()).unwrap_or(u64::MAX)
    }

    /// From now on disposal is not billed: the attack harness shows what billing prevents.
    #[cfg(feature = "attack-natives")]
    pub(crate) fn lift_bill(&self) {
        self.lock().lifted.bill = true;
    }

    /// From now on disposal has no limit.
    #[cfg(feature = "attack-natives")]
    pub(crate) fn lift_bound(&self) {
        self.lock().lifted.bound = true;
    }

    /// Why the current run was ended, if it was.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.lock().armed()?.ended.map(|(cause, ..)| cause)
    }

    /// Ends the current run. The first cause counts.
    pub(crate) fn end(&self, cause: Cause) {
        if let Some(armed) = self.lock().armed() {
            self.end_now(armed, cause);
        }
    }

    /// Ends `armed`. The caller holds the lock, so this run is still the current one.
    fn end_now(&self, armed: &mut Armed, cause: Cause) {
        if armed.ended.is_none() {
            let now = Instant::now();
            armed.ended = Some((cause, now, self.clock.now()));
            armed.handle.terminate_execution();
            self.ended.notify_all();
            self.alarm.by(now + GRACE);
        }
    }

    /// Makes the watchdog check the tenants now.
    pub(crate) fn look_now(&self) {
        self.alarm.ring();
    }

    /// Ends `run`, now or when it arrives.
    pub(crate) fn cancel(&self, run: RunId) {
        let mut state = self.lock();
        state.canceled = Some(run);
        if let Some(armed) = state.armed().filter(|armed| armed.run == run) {
            self.end_now(armed, Cause::Canceled);
        }
    }

    /// The tenant moves out: its current run and any later one are ended.
    pub(crate) fn retire(&self) {
        self.retiring.store(true, Ordering::SeqCst);
        self.end(Cause::Canceled);
    }

    /// Sleeps outside V8 until `due`, or until the run is ended. Returns why it was ended, if it
    /// was.
    pub(crate) fn sleep_until(&self, due: Instant) -> Option<Cause> {
        let mut state = self.lock();
        loop {
            let cause = state.armed()?.ended.map(|(cause, ..)| cause);
            let now = Instant::now();
            if cause.is_some() || now >= due {
                return cause;
            }
            let waited = self.ended.wait_timeout(state, due - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the thread has no run, and waits for the next.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.lock().doing, Doing::Waiting)
    }

    /// Checks the clocks. Returns the run, if it or the disposal after it does not stop, and when
    /// to check again.
    pub(crate) fn check(&self, now: Instant) -> (Option<(RunId, OverrunCause)>, Option<Instant>) {
        let state = &mut *self.lock();
        let armed = match &mut state.doing {
            Doing::Waiting => return (None, None),
            Doing::Tidying(_) if HARNESS && state.lifted.bound => return (None, None),
            Doing::Tidying(tidying) => return tidying.check(now, self.clock),
            Doing::Running(armed) => armed,
        };
        let cpu_used = self.clock.now();
        let Some((cause, since, cpu_then)) = armed.ended else {
            let cpu_left = armed.cpu_deadline.saturating_sub(cpu_used);
            let wall_left = armed.wall_deadline.saturating_duration_since(now);
            let cause = match (cpu_left.is_zero(), wall_left.is_zero()) {
                (true, _) => Cause::Cpu,
                (_, true) => Cause::Wall,
                (false, false) => return (None, Some(now + cpu_left.min(wall_left))),
            };
            self.end_now(armed, cause);
            return (None, Some(now + GRACE));
        };
        // A run with a full heap takes longer to end, but may not take longer than its other limits
        // allow.
        let patience = match cause {
            Cause::Memory => (since + MEMORY_GRACE).min(armed.wall_deadline.max(since) + GRACE),
            Cause::Cpu | Cause::Wall | Cause::Canceled => since + GRACE,
        };
        // After the wall deadline a full heap no longer extends the grace.
        let (least, longest) = match cause {
            Cause::Memory if now < armed.wall_deadline => (MEMORY_GRACE, LAST_MEMORY_GRACE),
            _ => (GRACE_CPU, LAST_GRACE),
        };
        let unheard = cpu_used.saturating_sub(cpu_then) >= least || now >= patience + longest;
        let over = (now >= patience && unheard) || (cause == Cause::Memory && cpu_used >= armed.cpu_deadline + GRACE);
        if armed.reported {
            (None, None)
        } else if over {
            armed.reported = true;
            (Some((armed.run, cause.into())), None)
        } else {
            (None, Some(patience.clamp(now + Duration::from_millis(5), now + GRACE)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Watched {
        Watched::new(Slot(0), CpuClock::of_this_thread().unwrap(), Arc::new(Alarm::new()))
    }

    #[test]
    fn tidying_past_its_limit_is_reported_once() {
        let (watched, run) = (watched(), RunId(7));
        let look = || watched.check(Instant::now());
        watched.lock().last = Some(run);
        watched.tidy();
        let (over, next) = look();
        assert!(over.is_none() && next.is_some());
        if let Doing::Tidying(tidying) = &mut watched.lock().doing {
            tidying.cpu_deadline = Duration::ZERO;
        }
        assert_eq!(look(), (Some((run, OverrunCause::Disposal)), None));
        assert_eq!(look(), (None, None));
        watched.wait();
        assert_eq!(look(), (None, None));
    }
}
