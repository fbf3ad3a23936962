//! Judges how a tenant's thread behaves during a run, in windows of half a second, by the kernel's
//! clocks and counters and by the supervisor's own count of messages.
//!
//! Cloudflare's detector that was beaten in 2026 looked only after an invocation had ended, and
//! divided by values that input and output inflate. Here a window is judged during a run, and
//! computing is judged by itself, so messages do not hide it.

use serde::{Deserialize, Serialize};

use crate::signal::Signal;
use crate::time::Time;

/// The thresholds at which a thread's behaviour becomes a signal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShapeRules {
    pub window_ms: u64,
    /// A window is busy only if the thread ran for at least this share of the time in which it was
    /// not waiting for a processor.
    pub busy_share: f64,
    /// A window is busy only if the thread ran for at least this share of all time: a thread that
    /// only waited has done nothing.
    pub busy_least: f64,
    /// A window is busy only if the thread ran for at least this long per run that began in it:
    /// many short runs are a busy service, not a spinner.
    pub busy_ms_per_run: u64,
    /// This many busy windows in a row are a signal, and so are this many windows in a row with too
    /// many page faults.
    pub streak: u32,
    /// This many page faults in a window are too many, beyond those that new isolates explain.
    pub faults: u64,
    /// How many page faults a new isolate explains: by its creation, its disposal and its garbage.
    pub faults_per_isolate: u64,
    /// A minute is busy if the thread ran for at least this share of the time in which it was not
    /// waiting for a processor, and for half this share of all time, however the work was spread
    /// and however short the runs were. A busy minute with fewer than 60 messages is also
    /// `computeOnly`.
    pub minute_share: f64,
    /// The rhythm of the messages in a window is examined if there are at least this many.
    pub messages: u64,
    /// The rhythm is examined only if the messages have at most this many bytes on average.
    pub message_bytes: u64,
    /// The rhythm is regular if the standard deviation of the times between messages is below this
    /// share of their mean. Three regular windows in a row are a signal.
    pub regular: f64,
    /// This many bytes of console output in a window are a log flood.
    pub log_bytes: u64,
    /// A tenant's limits explain resident memory up to this many times its `memoryMb` (heap,
    /// buffers, isolates that are kept), plus `resident_spare_mb`.
    pub resident_times: f64,
    pub resident_spare_mb: u64,
    /// This many mispredicted branches per thousand instructions are a signal, from the third such
    /// window in a row on.
    pub mispredictions: f64,
    /// An isolate is long-lived if it has lived this long and was called at least
    /// `long_lived_calls` times an hour.
    pub long_lived_secs: u64,
    pub long_lived_calls: u64,
}

impl Default for ShapeRules {
    fn default() -> Self {
        Self {
            window_ms: 500,
            busy_share: 0.8,
            busy_least: 0.1,
            busy_ms_per_run: 50,
            streak: 4,
            faults: 5_000,
            faults_per_isolate: 512,
            minute_share: 0.5,
            messages: 25,
            message_bytes: 256,
            regular: 0.3,
            log_bytes: 512 << 10,
            resident_times: 3.0,
            resident_spare_mb: 128,
            mispredictions: 25.0,
            long_lived_secs: 3600,
            long_lived_calls: 36_000,
        }
    }
}

/// The messages of a tenant's thread since the tenant was admitted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Messages {
    pub count: u64,
    pub bytes: u64,
    /// The sum of the times between messages, in milliseconds, and the sum of the squares of those
    /// times.
    pub gaps_ms: f64,
    pub gaps_ms2: f64,
}

impl ShapeRules {
    /// The most resident memory that a tenant's limits explain, in bytes.
    #[must_use]
    pub fn most_resident(&self, memory_mb: u32) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousand MiB")]
        let mb = (f64::from(memory_mb) * self.resident_times.max(0.0)) as u64;
        mb.saturating_add(self.resident_spare_mb).saturating_mul(1 << 20)
    }
}

/// The counts of one thread up to a moment. As long as it is the same thread, no count decreases.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    pub at: Time,
    /// Time on a processor, and waiting for one (`/proc/PID/task/TID/schedstat`).
    pub ran_ms: u64,
    pub waited_ms: u64,
    /// Minor page faults (`/proc/PID/task/TID/stat`).
    pub faults: u64,
    /// Runs begun.
    pub runs: u64,
    /// How many of those runs needed a new isolate.
    pub isolates: u64,
    pub messages: Messages,
    /// How many bytes of the messages are console output.
    pub log_bytes: u64,
    /// Counted by the processor, if its counters are available.
    pub instructions: u64,
    pub mispredictions: u64,
    /// How long the thread has kept isolates of scripts (its oldest isolate is no older than that),
    /// and how often kept isolates were called.
    pub isolate_ms: u64,
    pub isolate_calls: u64,
}

/// The last windows of one thread.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    last: Option<Sample>,
    busy: u32,
    paging: u32,
    regular: u32,
    mispredicting: u32,
    /// The sample at which the current minute began.
    minute: Option<Sample>,
    /// `Sample::isolate_ms` when a long life was last reported.
    reported_long_lived_ms: u64,
}

const MINUTE_MS: u64 = 60_000;
const MINUTE_SECS: u64 = 60;
const HOUR_MS: u64 = 3_600_000;

impl Shape {
    /// Takes in one more window. The first sample yields no signals, and a sample less than half a
    /// window after the last one is ignored. After a pause of more than three windows, only the
    /// minute is judged: counts of windows in a row restart, and log floods and long lives are
    /// skipped.
    pub fn observe(&mut self, sample: Sample, rules: &ShapeRules) -> Vec<Signal> {
        let Some(last) = self.last else {
            self.last = Some(sample);
            return Vec::new();
        };
        let elapsed = sample.at.since(last.at);
        if elapsed < rules.window_ms / 2 {
            return Vec::new();
        }
        self.last = Some(sample);
        let mut signals = Vec::new();
        if elapsed > rules.window_ms.saturating_mul(3) {
            (self.busy, self.paging, self.regular, self.mispredicting) = (0, 0, 0, 0);
            self.observe_minute(&last, &sample, rules, &mut signals);
            return signals;
        }
        let runs = sample.runs.saturating_sub(last.runs);

        let busy = is_busy(&last, &sample, elapsed, runs, rules);
        if streak(&mut self.busy, busy) >= rules.streak {
            signals.push(Signal::Busy);
        }
        let faults = sample.faults.saturating_sub(last.faults);
        let isolates = sample.isolates.saturating_sub(last.isolates);
        let paging = faults.saturating_sub(isolates.saturating_mul(rules.faults_per_isolate)) >= rules.faults;
        if streak(&mut self.paging, paging) >= rules.streak {
            signals.push(Signal::Paging);
        }
        if streak(&mut self.regular, is_regular(&last.messages, &sample.messages, rules)) >= 3 {
            signals.push(Signal::RemoteTiming);
        }
        if streak(&mut self.mispredicting, mispredicts(&last, &sample, rules)) >= 3 {
            signals.push(Signal::Mispredictions);
        }
        if sample.log_bytes.saturating_sub(last.log_bytes) >= rules.log_bytes {
            signals.push(Signal::LogFlood);
        }
        self.observe_minute(&last, &sample, rules, &mut signals);
        if self.report_long_life(&sample, rules) {
            signals.push(Signal::LongLived);
        }
        signals
    }

    /// Judges a whole minute, and so detects work that is spread so that few windows are busy.
    fn observe_minute(&mut self, last: &Sample, sample: &Sample, rules: &ShapeRules, signals: &mut Vec<Signal>) {
        let begin = *self.minute.get_or_insert(*last);
        let elapsed = sample.at.since(begin.at);
        if elapsed < MINUTE_MS {
            return;
        }
        // Here short runs are no excuse, so 0 runs are passed: a tenant that uses half a processor
        // for minutes should live alone, for its neighbours' sake.
        let rules = &ShapeRules { busy_share: rules.minute_share, busy_least: rules.minute_share / 2.0, ..*rules };
        if is_busy(&begin, sample, elapsed, 0, rules) {
            if !signals.contains(&Signal::Busy) {
                signals.push(Signal::Busy);
            }
            if sample.messages.count.saturating_sub(begin.messages.count) < MINUTE_SECS {
                signals.push(Signal::ComputeOnly);
            }
        }
        self.minute = None;
    }

    /// Returns whether to report now that an isolate has lived long and is called often: at most
    /// once an hour.
    fn report_long_life(&mut self, sample: &Sample, rules: &ShapeRules) -> bool {
        let due = sample.isolate_ms >= self.reported_long_lived_ms.saturating_add(HOUR_MS)
            || (self.reported_long_lived_ms == 0 && sample.isolate_ms >= rules.long_lived_secs.saturating_mul(1000));
        let calls_an_hour = sample.isolate_calls.saturating_mul(HOUR_MS) / sample.isolate_ms.max(1);
        let lives_long = due
            && sample.isolate_ms >= rules.long_lived_secs.saturating_mul(1000)
            && calls_an_hour >= rules.long_lived_calls;
        if lives_long {
            self.reported_long_lived_ms = sample.isolate_ms;
        } else if sample.isolate_ms < self.reported_long_lived_ms {
            // The isolates were kept for less time than at the last report, so these are others.
            self.reported_long_lived_ms = 0;
        }
        lives_long
    }
}

/// Counts one more if `holds`, and otherwise restarts at 0. Returns the count.
fn streak(count: &mut u32, holds: bool) -> u32 {
    *count = if holds { count.saturating_add(1) } else { 0 };
    *count
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds and counts of one window")]
fn is_busy(last: &Sample, sample: &Sample, elapsed: u64, runs: u64, rules: &ShapeRules) -> bool {
    let ran = sample.ran_ms.saturating_sub(last.ran_ms);
    let waited = sample.waited_ms.saturating_sub(last.waited_ms).min(elapsed);
    // The time in which the thread could run. A spinner is busy by this measure even if its
    // neighbours take most of the processors.
    let could = elapsed.saturating_sub(waited).max(1) as f64;
    ran as f64 >= rules.busy_share * could
        && ran as f64 >= rules.busy_least * elapsed as f64
        && ran >= rules.busy_ms_per_run.saturating_mul(runs)
}

#[expect(clippy::cast_precision_loss, reason = "counts of one window")]
fn is_regular(last: &Messages, now: &Messages, rules: &ShapeRules) -> bool {
    let count = now.count.saturating_sub(last.count);
    let bytes = now.bytes.saturating_sub(last.bytes);
    if count < rules.messages.max(2) || bytes > count.saturating_mul(rules.message_bytes) {
        return false;
    }
    let mean = (now.gaps_ms - last.gaps_ms) / count as f64;
    let variance = (now.gaps_ms2 - last.gaps_ms2) / count as f64 - mean * mean;
    mean > 0.0 && variance.max(0.0).sqrt() < rules.regular * mean
}

#[expect(clippy::cast_precision_loss, reason = "counts of one window")]
fn mispredicts(last: &Sample, sample: &Sample, rules: &ShapeRules) -> bool {
    let instructions = sample.instructions.saturating_sub(last.instructions);
    let mispredictions = sample.mispredictions.saturating_sub(last.mispredictions);
    // A million instructions take about a millisecond: fewer are too few to judge.
    instructions >= 1_000_000 && mispredictions as f64 * 1000.0 >= rules.mispredictions * instructions as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules with windows of a second, which are easier to count.
    fn seconds() -> ShapeRules {
        ShapeRules { window_ms: 1000, streak: 2, faults: 10_000, ..ShapeRules::default() }
    }

    /// The signals of each window. The samples are a second apart, each made by `next` from the
    /// last.
    fn watch(windows: usize, next: impl Fn(Sample) -> Sample) -> Vec<Vec<Signal>> {
        let (mut shape, mut sample, rules) = (Shape::default(), Sample::default(), seconds());
        shape.observe(sample, &rules);
        (0..windows)
            .map(|_| {
                sample = Sample { at: sample.at.plus(1000), ..next(sample) };
                shape.observe(sample, &rules)
            })
            .collect()
    }

    fn count(windows: &[Vec<Signal>], signal: Signal) -> usize {
        windows.iter().flatten().filter(|seen| **seen == signal).count()
    }

    #[test]
    fn a_spinner_is_detected_from_the_second_window_on_and_a_busy_service_never() {
        let spinner = watch(5, |last| Sample { ran_ms: last.ran_ms + 990, runs: last.runs + 1, ..last });
        assert_eq!(spinner.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 1, 1, 1]);
        let service = watch(5, |last| Sample { ran_ms: last.ran_ms + 990, runs: last.runs + 400, ..last });
        assert_eq!(count(&service, Signal::Busy), 0);
    }

    #[test]
    fn a_spinner_is_detected_on_a_busy_machine_and_a_neighbour_that_waits_is_not() {
        let spinner = watch(3, |last| Sample { ran_ms: last.ran_ms + 300, waited_ms: last.waited_ms + 700, ..last });
        assert_eq!(count(&spinner, Signal::Busy), 2);
        let waits = watch(9, |last| Sample {
            ran_ms: last.ran_ms + 100,
            waited_ms: last.waited_ms + 700,
            runs: last.runs + 10,
            ..last
        });
        assert_eq!(count(&waits, Signal::Busy), 0);
    }

    #[test]
    fn messages_do_not_hide_computing_and_computing_in_silence_is_a_signal_of_its_own() {
        let messages = |last: Sample, count| Messages { count: last.messages.count + count, ..last.messages };
        let silent = watch(60, |last| Sample { ran_ms: last.ran_ms + 990, ..last });
        assert_eq!((count(&silent, Signal::Busy), count(&silent, Signal::ComputeOnly)), (59, 1));
        let talks = watch(60, |last| Sample { ran_ms: last.ran_ms + 990, messages: messages(last, 40), ..last });
        assert_eq!((count(&talks, Signal::Busy), count(&talks, Signal::ComputeOnly)), (59, 0));
    }

    #[test]
    fn work_that_is_spread_is_detected_after_a_minute() {
        let halves = watch(120, |last| {
            let (second, ran_ms) = (last.at.0 / 1000, last.ran_ms);
            Sample { ran_ms: ran_ms + if second.is_multiple_of(2) { 950 } else { 150 }, ..last }
        });
        assert_eq!((count(&halves, Signal::Busy), count(&halves, Signal::ComputeOnly)), (2, 2));
        let modest = watch(120, |last| Sample { ran_ms: last.ran_ms + 400, ..last });
        assert_eq!(modest.iter().flatten().count(), 0);
        // Work in short runs is detected as well, and so is work with pauses that end every streak.
        let short = watch(120, |last| Sample { ran_ms: last.ran_ms + 900, runs: last.runs + 30, ..last });
        assert_eq!(count(&short, Signal::Busy), 2);
        let (mut shape, mut sample, mut busy, rules) = (Shape::default(), Sample::default(), 0, seconds());
        for second in 0..240_u64 {
            // A thread is sampled only while it has a run: here in four seconds of eight.
            let runs = second % 8 < 4;
            sample.ran_ms += if runs { 1000 } else { 0 };
            sample.at = Time(second * 1000);
            busy += if runs { count(&[shape.observe(sample, &rules)], Signal::Busy) } else { 0 };
        }
        assert!(busy > 60, "only {busy} busy signals from windows in a row and from minutes");
    }

    #[test]
    fn many_isolates_are_not_a_memory_bomb() {
        let bomb = watch(3, |last| Sample { faults: last.faults + 30_000, isolates: last.isolates + 2, ..last });
        assert_eq!(count(&bomb, Signal::Paging), 2);
        let made = |last: Sample| Sample { faults: last.faults + 44_000, runs: last.runs + 400, ..last };
        let isolates = watch(3, |last| Sample { isolates: last.isolates + 400, ..made(last) });
        assert_eq!(count(&isolates, Signal::Paging), 0);
        assert_eq!(count(&watch(3, made), Signal::Paging), 2, "runs that need no isolate explain no page faults");
    }

    #[test]
    fn messages_like_a_clock_are_regular_and_a_conversation_is_not() {
        let with_gaps = |windows, gap: fn(u64) -> f64| {
            watch(windows, |last| {
                let mut messages = last.messages;
                for n in 0..100 {
                    let gap = gap(n);
                    messages.count += 1;
                    messages.bytes += 40;
                    messages.gaps_ms += gap;
                    messages.gaps_ms2 += gap * gap;
                }
                Sample { messages, ..last }
            })
        };
        assert_eq!(count(&with_gaps(5, |_| 10.0), Signal::RemoteTiming), 3);
        assert_eq!(count(&with_gaps(5, |n| if n % 10 == 0 { 91.0 } else { 1.0 }), Signal::RemoteTiming), 0);
    }

    #[test]
    fn mispredictions_are_reported_from_the_third_window_on() {
        let windows = watch(4, |last| Sample {
            instructions: last.instructions + 2_000_000_000,
            mispredictions: last.mispredictions + 60_000_000,
            ..last
        });
        assert_eq!(count(&windows, Signal::Mispredictions), 2);
    }

    #[test]
    fn a_long_life_is_reported_once_an_hour() {
        let windows = watch(9000, |last| Sample {
            isolate_ms: last.isolate_ms + 1000,
            isolate_calls: last.isolate_calls + 20,
            ..last
        });
        assert_eq!(count(&windows, Signal::LongLived), 2);
    }

    #[test]
    fn a_pause_resets_every_count_of_windows_in_a_row() {
        let (mut shape, rules) = (Shape::default(), seconds());
        let at = |at, ran_ms| Sample { at: Time(at), ran_ms, ..Sample::default() };
        assert!(shape.observe(at(0, 0), &rules).is_empty());
        assert!(shape.observe(at(1000, 1000), &rules).is_empty());
        assert!(shape.observe(at(9000, 9000), &rules).is_empty());
        assert!(shape.observe(at(10_000, 10_000), &rules).is_empty());
        assert_eq!(shape.observe(at(11_000, 11_000), &rules), [Signal::Busy]);
    }
}
