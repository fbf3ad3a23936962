//! What the benchmarks measure and print: durations with their percentiles, memory, verdicts.

use std::time::Duration;

use anyhow::{Context, Result};

/// Some durations, sorted.
#[derive(Debug)]
pub(crate) struct Sample(Vec<Duration>);

impl Sample {
    pub(crate) fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self(durations)
    }

    /// The percentile of the durations, by nearest rank.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(rank.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub(crate) fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The duration in microseconds, for a column of the table.
pub(crate) fn micros(duration: Duration) -> String {
    format!("{:.0}", duration.as_secs_f64() * 1e6)
}

/// `Private_Clean` and `Private_Dirty` of a process (proc_pid_smaps(5)).
pub(super) fn private_mib(pid: u64) -> Result<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("reading the memory of {pid}"))?;
    let kib: f64 = rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean") || line.starts_with("Private_Dirty"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum();
    Ok(kib / 1024.0)
}

/// Prints a figure, and whether it is as good as it must be.
pub(super) fn verdict(what: &str, figure: f64, wanted: &str, holds: bool) {
    println!("{what:<58} {figure:>8.2}   {wanted}: {}", if holds { "holds" } else { "DOES NOT HOLD" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sample = Sample::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(
            (sample.percentile(50), sample.percentile(99)),
            (Duration::from_millis(50), Duration::from_millis(99))
        );
        assert_eq!(Sample::new(vec![Duration::from_millis(7)]).percentile(50), Duration::from_millis(7));
    }
}
