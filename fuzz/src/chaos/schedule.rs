//! The schedule says what is disturbed, when, and for how long. It is made from a seed before
//! anything runs.
//!
//! A schedule is printed as one JSON object a line. A file with these lines repeats it
//! (`--schedule`). Workers are named by index, because process ids differ from run to run.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The time from the beginning of a round's load to its end, in milliseconds.
pub(crate) const ROUND_MS: u64 = 12_000;
/// The part of a round in which disturbances begin, in milliseconds.
const BUSY_MS: u64 = 10_000;
/// How many disturbances a round has: at least 4, and at most 12.
const STEPS: std::ops::Range<usize> = 4..13;
/// The longest stop of a process, in milliseconds. The end of a round ends every stop.
const LONGEST_STOP_MS: u64 = 8_000;

/// One thing that happens to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Disturbance {
    /// SIGKILL for one worker, which may cut a frame at any byte.
    KillWorker { nth: usize },
    /// SIGKILL for all workers.
    KillWorkers,
    /// SIGSTOP for one worker, and later SIGCONT, so that its frames arrive late.
    StopWorker { nth: usize, ms: u64 },
    /// SIGKILL for the supervisor, and a new start on the same state folder.
    KillDaemon,
    /// SIGTERM for the supervisor, and a new start on the same state folder.
    EndDaemon,
    /// SIGSTOP for the supervisor, and later SIGCONT.
    StopDaemon { ms: u64 },
    /// The filesystem of the state folder is full.
    FillDisk { ms: u64 },
    /// The supervisor can open only `left` more descriptors.
    TakeDescriptors { left: u64, ms: u64 },
    /// One worker can commit only `left_mib` more memory.
    StarveWorker { nth: usize, left_mib: u64, ms: u64 },
    /// The supervisor can commit only `left_mib` more memory.
    StarveDaemon { left_mib: u64, ms: u64 },
    /// The worker program is replaced by the same program, atomically.
    ReplaceWorker,
    /// The worker program may not be executed.
    ForbidWorker { ms: u64 },
    /// A file that is not a program replaces the worker program, and the supervisor is killed and
    /// started again. It must refuse to start. Then the worker program is put back.
    BreakWorker,
    /// The machine's clock jumps. Only in the emulated machine.
    MoveClock { secs: i64 },
}

/// A disturbance, and its time after the beginning of its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    pub(crate) round: usize,
    pub(crate) at_ms: u64,
    #[serde(flatten)]
    pub(crate) disturbance: Disturbance,
}

/// Which disturbances are possible on this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means {
    /// The fuzzer runs as root. So the state folder can have a filesystem of its own, and a limit
    /// that was lowered can be raised again.
    pub(crate) root: bool,
    /// The clock may be moved.
    pub(crate) clock: bool,
}

/// The steps of all rounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) rounds: Vec<Vec<Step>>,
}

impl Schedule {
    /// Draws `rounds` rounds.
    pub(crate) fn draw(seed: u64, rounds: usize, means: Means) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut round = |number| {
            // Every third round is undisturbed until its one late step. Only without disturbances
            // do the times for which runs held places add up to all the time that has passed.
            let (count, from) = if number % 3 == 2 { (1, BUSY_MS - 2_000) } else { (random.usize(STEPS), 500) };
            let mut steps: Vec<_> = (0..count)
                .map(|_| Step {
                    round: number,
                    at_ms: random.u64(from..BUSY_MS),
                    disturbance: Disturbance::draw(&mut random, means),
                })
                .collect();
            steps.sort_by_key(|step| step.at_ms);
            steps
        };
        Self { rounds: (0..rounds).map(&mut round).collect() }
    }

    /// Reads a schedule that [`Self::text`] wrote. Lines that do not begin with `{` are skipped.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut rounds: Vec<Vec<Step>> = Vec::new();
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let step: Step = serde_json::from_str(line).with_context(|| format!("not a step: {line}"))?;
            anyhow::ensure!(step.round < 10_000, "a schedule has fewer than 10000 rounds: {line}");
            rounds.resize_with(rounds.len().max(step.round + 1), Vec::new);
            rounds[step.round].push(step);
        }
        rounds.iter_mut().for_each(|steps| steps.sort_by_key(|step| step.at_ms));
        anyhow::ensure!(!rounds.is_empty(), "the schedule has no step");
        Ok(Self { rounds })
    }

    /// One JSON object a line.
    pub(crate) fn text(&self) -> String {
        let lines = self.rounds.iter().flatten().map(|step| serde_json::to_string(step).unwrap_or_default() + "\n");
        lines.collect()
    }
}

impl Disturbance {
    fn draw(random: &mut fastrand::Rng, means: Means) -> Self {
        let nth = random.usize(0..64);
        let short = random.u64(50..2_500);
        let long = random.u64(100..LONGEST_STOP_MS);
        let drawn = match random.u32(0..100) {
            0..22 => Self::KillWorker { nth },
            22..25 => Self::KillWorkers,
            25..40 => Self::StopWorker { nth, ms: if random.bool() { short } else { long } },
            40..50 => Self::KillDaemon,
            50..56 => Self::EndDaemon,
            56..64 => Self::StopDaemon { ms: if random.bool() { short } else { long } },
            64..73 => Self::FillDisk { ms: short },
            73..79 => Self::TakeDescriptors { left: random.u64(0..12), ms: short },
            79..85 => Self::StarveWorker { nth, left_mib: random.u64(0..64), ms: short },
            85..88 => Self::StarveDaemon { left_mib: random.u64(32..96), ms: short },
            88..92 => Self::ReplaceWorker,
            92..96 => Self::ForbidWorker { ms: short },
            96..98 => Self::BreakWorker,
            _ => Self::MoveClock { secs: random.i64(-100_000..100_000) },
        };
        match drawn {
            Self::MoveClock { .. } if !means.clock => Self::KillWorker { nth },
            drawn if drawn.needs_root() && !means.root => Self::KillWorker { nth },
            drawn => drawn,
        }
    }

    /// Whether the disturbance needs root: to mount a filesystem, to raise a limit again, or to set
    /// the clock.
    pub(crate) fn needs_root(self) -> bool {
        match self {
            Self::FillDisk { .. }
            | Self::TakeDescriptors { .. }
            | Self::StarveWorker { .. }
            | Self::StarveDaemon { .. }
            | Self::MoveClock { .. } => true,
            Self::KillWorker { .. }
            | Self::KillWorkers
            | Self::StopWorker { .. }
            | Self::KillDaemon
            | Self::EndDaemon
            | Self::StopDaemon { .. }
            | Self::ReplaceWorker
            | Self::ForbidWorker { .. }
            | Self::BreakWorker => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Means = Means { root: true, clock: true };

    #[test]
    fn a_seed_gives_one_schedule_and_its_text_gives_it_again() {
        let schedule = Schedule::draw(7, 20, ALL);
        assert_eq!(schedule, Schedule::draw(7, 20, ALL));
        assert_ne!(schedule, Schedule::draw(8, 20, ALL));
        assert_eq!(Schedule::parse(&schedule.text()).unwrap(), schedule);
    }

    #[test]
    fn every_kind_of_disturbance_is_drawn_and_only_what_the_machine_allows() {
        let drawn = |means| {
            let schedule = Schedule::draw(1, 200, means);
            let kinds = schedule.rounds.iter().flatten().map(|step| std::mem::discriminant(&step.disturbance));
            let needing = schedule.rounds.iter().flatten().filter(|step| step.disturbance.needs_root()).count();
            (kinds.collect::<std::collections::HashSet<_>>().len(), needing)
        };
        assert_eq!(drawn(ALL).0, 14);
        assert_eq!(drawn(Means { root: true, clock: false }).0, 13);
        assert_eq!(drawn(Means { root: false, clock: false }), (9, 0));
    }

    #[test]
    fn a_line_that_is_not_a_step_is_refused() {
        for bad in [
            "",
            "{}",
            r#"{"round": 0, "atMs": 1, "what": "dance"}"#,
            r#"{"round": 99999, "atMs": 1, "what": "killDaemon"}"#,
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
        let one =
            Schedule::parse("finding: none\n{\"round\":1,\"atMs\":9,\"what\":\"stopDaemon\",\"ms\":3}\n").unwrap();
        assert_eq!(one.rounds.len(), 2);
        assert_eq!(one.rounds[1][0].disturbance, Disturbance::StopDaemon { ms: 3 });
    }
}
