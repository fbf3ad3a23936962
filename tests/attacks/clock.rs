//! Whether a script can tell by timing that a load of a cache line hit the cache.

use enisle_tests::{Daemon, SHARING};
use serde_json::json;

use crate::{Case, Options};

pub(crate) const CASES: &[Case] =
    &[Case { id: "S3 stopwatch", title: "a cached load and an evicted one", run: stopwatch }];

/// One load per turn, between two timers that would be a stopwatch of 350 ns if they followed a
/// real clock. Returns whether the line was cached, which timer came first, and how long the turn
/// was according to `Date`.
const TRIALS: &str = "async (trials) => {
    const others = new Uint8Array(1 << 22), line = new Uint8Array(64), seen = [];
    globalThis.sink = 0;
    const touch = (bytes) => { let sum = 0; for (let i = 0; i < bytes.length; i += 64) sum += bytes[i]; sink += sum };
    for (let i = 0; i < trials; i++) {
        const cached = Math.random() < 0.5, order = [];
        touch(others); if (cached) sink += line[0];
        const begun = Date.now();
        await new Promise((done) => {
            setTimeout(() => order.push(0), 1.00035);
            sink += line[0];
            setTimeout(() => { order.push(1); done() }, 1);
        });
        seen.push([cached, order[0], Date.now() - begun]);
    }
    return seen;
}";

/// How well a figure separates two kinds: the fraction of all pairs in which the figure of the
/// second kind is greater. Equal figures count half. 0.5 means not at all.
fn area_under_curve(cached: &[i64], evicted: &[i64]) -> f64 {
    let pairs = evicted.iter().flat_map(|b| cached.iter().map(move |a| a.cmp(b)));
    let halves: u64 = pairs
        .map(|order| match order {
            std::cmp::Ordering::Less => 2,
            std::cmp::Ordering::Equal => 1,
            std::cmp::Ordering::Greater => 0,
        })
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "some hundred million")]
    let area = halves as f64 / 2.0 / (cached.len() * evicted.len()) as f64;
    area
}

fn stopwatch(options: Options) -> Result<String, String> {
    // With fewer trials the figure scatters more.
    let (trials, tolerance) = if options.slow || options.bench { (20_000, 0.02) } else { (2_000, 0.06) };
    let limits = "[defaults.limits]\ncpu_ms = 300000\nwall_ms = 3600000\noutput_bytes = 16000000\n";
    let unmoved = ["busy", "computeOnly"]
        .map(|signal| format!("[cordon.rules.signals.{signal}]\npoints = 0\nhalf_life_secs = 1\nmost = 0\n"));
    let daemon = Daemon::start(&format!("{SHARING}{limits}{}", unmoved.concat()));
    let mut seen = Vec::new();
    for _ in 0..trials / 2000 {
        let run = daemon.load("t", &json!({ "code": TRIALS, "args": [2000] })).ok();
        let result = run["result"].as_array().ok_or_else(|| run.to_string())?;
        seen.extend(result.iter().map(|trial| (trial[0] == true, trial[1].as_i64(), trial[2].as_i64())));
    }
    let of = |kind: bool| seen.iter().filter(move |(cached, ..)| *cached == kind);
    let swapped = seen.iter().filter(|(_, first, _)| *first != Some(0)).count();
    let turns = |kind| of(kind).filter_map(|(.., turn)| *turn).collect::<Vec<_>>();
    let area = area_under_curve(&turns(true), &turns(false));
    let said = format!("{} trials: {swapped} in another order; by the date of the next turn AUC {area:.3}", seen.len());
    if swapped == 0 && (area - 0.5).abs() <= tolerance { Ok(said) } else { Err(said) }
}
