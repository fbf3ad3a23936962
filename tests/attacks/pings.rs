//! Pings beside an attack: how long the daemon takes to answer another client meanwhile.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::Options;
use crate::ground::{Gauge, Ground, STALLED, head, served_within};

/// The interval between two pings.
const BEAT: Duration = Duration::from_millis(10);

/// The latencies of pings that are due at fixed intervals, each counted from when it was due. Pings
/// that become due while one is in flight count as answered together with that one, as the pings of
/// other clients would be. So a stall counts as many late pings as were due in it, and a stall that
/// ends with the attack counts in full.
#[derive(Default)]
pub(crate) struct Pings {
    took: Vec<Duration>,
    /// The greatest delay of the probe itself: no ping was in flight, and other work kept the probe
    /// from running. That is not the daemon's fault, so the schedule is shifted by the delay.
    late: Duration,
    /// How long the daemon's thread waited for a processor, in total.
    waited: Duration,
    failed: Option<String>,
}

impl Pings {
    fn collect(&mut self, stream: &mut UnixStream, stop: &OnceLock<Instant>) -> io::Result<()> {
        let mut due = Instant::now();
        let over = |due| stop.get().is_some_and(|stop| due >= *stop);
        while !over(due) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let late = due.elapsed();
            self.late = self.late.max(late);
            due += late;
            ping(stream)?;
            let answered = Instant::now();
            while due <= answered && !over(due) {
                self.took.push(answered - due);
                due += BEAT;
            }
        }
        Ok(())
    }
}

fn ping(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(head("HEAD", "/_ping", 0, true).as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 512];
        match stream.read(&mut piece)? {
            0 => return Err(io::Error::other("the daemon closed the connection")),
            got => answer.extend_from_slice(&piece[..got]),
        }
    }
    Ok(())
}

/// Stops the pings, even if the attack panics.
struct Stop<'a>(&'a OnceLock<Instant>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let _ = self.0.set(Instant::now());
    }
}

/// Runs an attack while the victim sends pings.
pub(crate) fn probed<T>(ground: &Ground, attack: impl FnOnce() -> T) -> (T, Pings) {
    let stream = ground.victim.connect().expect("the victim may connect before the attack");
    probed_over(stream, ground.gauge(), attack)
}

/// Like [`probed`], over a connection to any daemon.
pub(crate) fn probed_over<T>(mut stream: UnixStream, daemon: Gauge, attack: impl FnOnce() -> T) -> (T, Pings) {
    let (stop, mut pings) = (OnceLock::new(), Pings::default());
    stream.set_read_timeout(Some(STALLED)).expect("a timeout");
    let waited = daemon.waited();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| pings.failed = pings.collect(&mut stream, &stop).err().map(|error| error.to_string()));
        let _stop = Stop(&stop);
        attack()
    });
    pings.waited = daemon.waited().saturating_sub(waited);
    (result, pings)
}

/// Runs an attack during which the daemon must keep answering; returns the attack's result with the
/// latencies.
pub(crate) fn answering(
    ground: &Ground,
    options: Options,
    attack: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let (result, pings) = probed(ground, attack);
    pings.beside(options, result)
}

impl Pings {
    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// The longest latency of all pings except the slowest hundredth, which is at least one ping.
    fn all_but_one_in_a_hundred(&self) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.truncate(sorted.len() - (sorted.len() / 100).max(1).min(sorted.len()));
        sorted.last().copied().unwrap_or_default()
    }

    /// The attack's result with the latencies; `Ok` only if both are good.
    pub(crate) fn beside(&self, options: Options, result: Result<String, String>) -> Result<String, String> {
        match (result, self.verdict(options.bench)) {
            (Ok(said), Ok(pings)) => Ok(format!("{said}; {pings}")),
            (Ok(said) | Err(said), Ok(pings) | Err(pings)) => Err(format!("{said}; {pings}")),
        }
    }

    /// The latencies in words; an error if the daemon has stalled. Only the benchmark enforces the
    /// exact figures, because other work may run beside a test.
    pub(crate) fn verdict(&self, bench: bool) -> Result<String, String> {
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let (p50, p99, most) = (self.at(50), self.all_but_one_in_a_hundred(), self.at(100));
        let said = format!(
            "{} pings: p50 {}, p99 {}, max {} ms (waiting for a processor cost the probe {} ms, and the daemon {})",
            self.took.len(),
            ms(p50),
            ms(p99),
            ms(most),
            ms(self.late),
            ms(self.waited)
        );
        match &self.failed {
            Some(error) => Err(format!("a ping failed after {said}: {error}")),
            None if p99 > Duration::from_millis(if bench { 100 } else { 250 }) => Err(said),
            None if most > served_within(bench) => Err(said),
            None => Ok(said),
        }
    }
}
