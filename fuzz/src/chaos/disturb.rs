//! Carries out the disturbances of a schedule, and undoes them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use enisle_tests::wait::within;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ground::{self, Ground};
use super::load::World;
use super::schedule::{Disturbance, ROUND_MS, Step};
use super::shares;

/// The time between two checks for steps that are due.
const TICK: Duration = Duration::from_millis(20);
/// How long a worker may outlive its daemon: a second, plus the time that a busy machine takes to
/// collect the process.
const OUTLIVE: Duration = Duration::from_secs(3);

/// How a disturbance ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Undo {
    Continue(i32),
    FreeDisk,
    /// A limit of a process, as `prlimit` takes it.
    Limit {
        pid: i32,
        limit: String,
    },
    AllowWorker,
}

/// Carries out the steps of rounds.
#[derive(Debug)]
pub(crate) struct Disturber<'w> {
    world: &'w World,
    undos: Vec<(Instant, Undo)>,
}

impl<'w> Disturber<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        Self { world, undos: Vec::new() }
    }

    /// Carries out a round's steps, and undoes all of them. Ends early if something was found.
    pub(crate) fn carry_out(&mut self, steps: &[Step]) -> Result<()> {
        let (begun, mut left) = (Instant::now(), steps.iter().peekable());
        while begun.elapsed() < Duration::from_millis(ROUND_MS) || left.peek().is_some() {
            if !self.world.findings().is_empty() || self.has_ended() {
                break;
            }
            shares::processes(self.world);
            self.undo(|at| at <= Instant::now());
            match left.next_if(|step| begun.elapsed() >= Duration::from_millis(step.at_ms)) {
                Some(step) => self.begin(step.disturbance).with_context(|| format!("{step:?}"))?,
                None => thread::sleep(TICK),
            }
        }
        self.undo(|_| true);
        Ok(())
    }

    /// Whether the daemon has ended by itself.
    fn has_ended(&self) -> bool {
        let mut ground = self.world.ground_to_change();
        let Some(status) = ground.ended() else { return false };
        let log = ground.log(ground.life());
        self.world.found("recovery", format!("the daemon ended by itself: {status}\n{}", last_lines(&log)));
        true
    }

    fn undo(&mut self, is_due: impl Fn(Instant) -> bool) {
        let due = self.undos.extract_if(.., |(at, _)| is_due(*at)).collect::<Vec<_>>();
        for (_, undo) in due {
            match undo {
                Undo::Continue(pid) => signal(pid, Signal::SIGCONT),
                Undo::FreeDisk => self.world.ground().free_disk(),
                // The process may have ended meanwhile.
                Undo::Limit { pid, limit } => drop(prlimit(pid, &limit)),
                Undo::AllowWorker => allow_worker(&self.world.ground(), 0o755),
            }
        }
    }

    fn later(&mut self, ms: u64, undo: Undo) {
        self.undos.push((Instant::now() + Duration::from_millis(ms), undo));
    }

    fn begin(&mut self, disturbance: Disturbance) -> Result<()> {
        self.world.set_disturbed(|disturbed| disturbed.at_all = true);
        match disturbance {
            Disturbance::KillWorker { nth } => {
                self.target(nth).into_iter().for_each(|pid| signal(pid, Signal::SIGKILL))
            }
            Disturbance::KillWorkers => {
                self.world.ground().workers().into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
            }
            Disturbance::StopWorker { nth, ms } => self.stop(self.target(nth), ms),
            Disturbance::StopDaemon { ms } => self.stop(self.world.ground().pid(), ms),
            Disturbance::KillDaemon => self.restart(Signal::SIGKILL)?,
            Disturbance::EndDaemon => self.restart(Signal::SIGTERM)?,
            Disturbance::FillDisk { ms } => {
                self.world.ground().fill_disk()?;
                self.later(ms, Undo::FreeDisk);
            }
            Disturbance::TakeDescriptors { left, ms } => {
                self.world.set_disturbed(|disturbed| disturbed.without_descriptors = true);
                let pid = self.world.ground().pid().context("there is no daemon")?;
                self.limit(pid, "nofile", "Max open files", ground::descriptors(pid) as u64 + left, ms)?;
            }
            Disturbance::StarveWorker { nth, left_mib, ms } => {
                if let Some(pid) = self.target(nth) {
                    self.starve(pid, left_mib, ms)?;
                }
            }
            Disturbance::StarveDaemon { left_mib, ms } => {
                let pid = self.world.ground().pid().context("there is no daemon")?;
                self.starve(pid, left_mib, ms)?;
            }
            Disturbance::ReplaceWorker => self.world.ground().replace_worker()?,
            Disturbance::ForbidWorker { ms } => {
                allow_worker(&self.world.ground(), 0o644);
                self.later(ms, Undo::AllowWorker);
            }
            Disturbance::BreakWorker => self.break_worker()?,
            Disturbance::MoveClock { secs } => {
                self.world.clock_moved.store(true, Ordering::SeqCst);
                move_clock(secs)?;
            }
        }
        Ok(())
    }

    fn target(&self, nth: usize) -> Option<i32> {
        let workers = self.world.ground().workers();
        workers.get(nth.checked_rem(workers.len())?).copied()
    }

    fn stop(&mut self, pid: Option<i32>, ms: u64) {
        let Some(pid) = pid else { return };
        self.world.set_disturbed(|disturbed| disturbed.stopped = true);
        signal(pid, Signal::SIGSTOP);
        self.later(ms, Undo::Continue(pid));
    }

    fn starve(&mut self, pid: i32, left_mib: u64, ms: u64) -> Result<()> {
        self.world.set_disturbed(|disturbed| disturbed.starved = true);
        let Some(held_kib) = ground::status_of(pid, "VmData") else { return Ok(()) };
        self.limit(pid, "data", "Max data size", (held_kib << 10) + (left_mib << 20), ms)
    }

    /// Lowers a soft limit of a process, and raises it again later.
    fn limit(&mut self, pid: i32, name: &str, shown_as: &str, to: u64, ms: u64) -> Result<()> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let soft = limits.lines().find_map(|line| line.strip_prefix(shown_as)?.split_whitespace().next());
        // `None`: the process has ended.
        let Some(soft) = soft else { return Ok(()) };
        if prlimit(pid, &format!("--{name}={to}:"))? {
            self.later(ms, Undo::Limit { pid, limit: format!("--{name}={soft}:") });
        }
        Ok(())
    }

    /// Ends the daemon and starts it again. While a disturbance withholds something that the daemon
    /// needs, the daemon may refuse to start. Then the disturbances are undone first.
    pub(crate) fn restart(&mut self, signal: Signal) -> Result<()> {
        let old = self.world.ground().workers();
        let mut ground = self.world.ground_to_change();
        let life = ground.life();
        let status = ground.end(signal)?;
        if signal == Signal::SIGTERM && !status.success() {
            let log = ground.log(life);
            self.world.found("recovery", format!("SIGTERM ended the daemon with {status}\n{}", last_lines(&log)));
        }
        let lives_on = |old: &[i32]| old.iter().any(|pid| ground::is_worker(*pid));
        if !within(OUTLIVE, || !lives_on(&old)) {
            self.world.found("leak", format!("workers {old:?} outlived their daemon by {} s", OUTLIVE.as_secs()));
        }
        if ground.try_start()? {
            return Ok(());
        }
        let refused = ground.log(ground.life());
        drop(ground);
        ensure!(!self.undos.is_empty(), "enisled does not start:\n{refused}");
        println!("  it did not start under a disturbance: {}", last_lines(&refused).trim());
        self.undo(|_| true);
        self.world.ground_to_change().start()
    }

    fn break_worker(&mut self) -> Result<()> {
        self.undo(|_| true);
        let mut ground = self.world.ground_to_change();
        ground.break_worker()?;
        ground.end(Signal::SIGKILL)?;
        if ground.try_start()? {
            self.world.found("recovery", "the daemon started with a worker program that cannot be executed");
        }
        let log = ground.log(ground.life());
        if !log.contains("ERROR") {
            self.world.found("recovery", format!("a start without a worker program gave no reason:\n{log}"));
        }
        ground.replace_worker()?;
        ground.start()
    }
}

/// Moves the machine's clock. [`super::run`] has checked that it may be moved.
fn move_clock(secs: i64) -> Result<()> {
    let now = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?;
    let set = Command::new("date").args(["-s", &format!("@{}", now + secs)]).output().context("date")?;
    ensure!(set.status.success(), "the clock cannot be set: {}", String::from_utf8_lossy(&set.stderr));
    Ok(())
}

fn signal(pid: i32, signal: Signal) {
    // The process may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Lowers or raises a limit of a process. Returns false if the process has ended.
fn prlimit(pid: i32, limit: &str) -> Result<bool> {
    let mut prlimit = Command::new("prlimit");
    Ok(prlimit.args(["--pid", &pid.to_string(), limit]).output().context("prlimit")?.status.success())
}

/// Changes the mode of the worker program: of the file at its path, and of the file that the daemon
/// has open.
fn allow_worker(ground: &Ground, mode: u32) {
    for program in [Some(ground.worker_program()), ground.held_program()].into_iter().flatten() {
        let _ = fs::set_permissions(program, fs::Permissions::from_mode(mode));
    }
}

/// The last 20 lines of a log.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
