//! What simulated tenants do. The simulation knows their labels; the engine sees only what the
//! daemon would measure.
//!
//! The rates are assumptions, written down here so that they can be disputed. A burst is a stretch
//! of computing without a pause, in which each run takes more than 50 ms.

use enisle_cordon::{Signal, Trust};

/// What a tenant really is. The engine does not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Label {
    Benign,
    /// It takes more than its share and deserves a process of its own.
    Noisy,
    /// It ends its processes by mistake and deserves a process of its own.
    Buggy,
    Hostile,
}

/// One thing that a tenant does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Act {
    /// Computes for `secs` seconds, for the part `share` of each second. Each second has `messages`
    /// messages and `runs` runs.
    Compute { secs: f64, share: f64, messages: u64, runs: u64 },
    /// Fills memory for a number of seconds.
    Page { secs: f64 },
    /// Ends its process.
    Take(Signal),
    /// Ends its process, but only if other tenants are in it.
    TakeInCompany(Signal),
    /// Ends its process without a record that names the thread.
    TakeUnseen(Signal),
    /// Makes a neighbour's thread fault, so that the record names the neighbour.
    Push,
    /// Gives a signal that has no other effect.
    Say(Signal),
}

/// A kind of tenant: what it does, and how many times a day.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) label: Label,
    /// How many of ten thousand tenants are of this kind.
    pub(super) of_10k: usize,
    pub(super) acts: &'static [(f64, Act)],
}

/// Stands for a length that is drawn at random.
pub(super) const DRAWN: f64 = 0.0;

/// Median and spread (sigma of the logarithm) of a benign burst, in seconds: most are short, and
/// one in a hundred thousand is longer than four seconds.
pub(super) const BURST: (f64, f64) = (0.3, 0.6);
/// A burst whose length is drawn from [`BURST`].
const SOME_WORK: Act = Act::Compute { secs: DRAWN, share: 1.0, messages: 0, runs: 0 };

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "service",
        label: Label::Benign,
        of_10k: 5160,
        acts: &[(2.0, SOME_WORK), (0.05, Act::Say(Signal::LogFlood))],
    },
    Kind {
        name: "model-written code",
        label: Label::Benign,
        of_10k: 3000,
        acts: &[
            (2.0, SOME_WORK),
            (6.0, Act::Say(Signal::DeniedImport)),
            (1.0, Act::Say(Signal::DeniedCode)),
            (0.5, Act::Say(Signal::NearMemory)),
            (0.2, Act::Say(Signal::DeniedEgress)),
        ],
    },
    Kind {
        name: "memory-hungry service",
        label: Label::Benign,
        of_10k: 800,
        acts: &[(2.0, SOME_WORK), (4.0, Act::Say(Signal::NearMemory)), (0.5, Act::Page { secs: 1.0 })],
    },
    // It has one accident a quarter: a loop that V8 does not interrupt, or an array that is too
    // long.
    Kind {
        name: "accident-prone service",
        label: Label::Benign,
        of_10k: 40,
        acts: &[(0.011, Act::Take(Signal::HardKill))],
    },
    // It computes for two fifths of the time, in a thousand short runs a second, for half an hour
    // at a time.
    Kind {
        name: "busy service",
        label: Label::Benign,
        of_10k: 500,
        acts: &[(4.0, Act::Compute { secs: 1800.0, share: 0.4, messages: 10, runs: 1000 })],
    },
    Kind {
        name: "batch computing",
        label: Label::Noisy,
        of_10k: 150,
        acts: &[(6.0, Act::Compute { secs: 60.0, share: 1.0, messages: 1, runs: 0 })],
    },
    Kind { name: "memory bombs", label: Label::Noisy, of_10k: 80, acts: &[(4.0, Act::Page { secs: 20.0 })] },
    Kind {
        name: "hard kills and aborts",
        label: Label::Buggy,
        of_10k: 100,
        acts: &[(1.0, Act::Take(Signal::HardKill)), (0.5, Act::Take(Signal::OutOfMemory))],
    },
    Kind { name: "engine aborts", label: Label::Buggy, of_10k: 50, acts: &[(1.0, Act::Take(Signal::EngineAbort))] },
    Kind {
        name: "probes system calls",
        label: Label::Hostile,
        of_10k: 30,
        acts: &[(3.0, Act::Take(Signal::RefusedCall))],
    },
    Kind { name: "probes cages", label: Label::Hostile, of_10k: 30, acts: &[(3.0, Act::Take(Signal::ClosedKey))] },
    Kind { name: "crashes V8", label: Label::Hostile, of_10k: 20, acts: &[(4.0, Act::Take(Signal::Crash))] },
    Kind {
        name: "blocks the record",
        label: Label::Hostile,
        of_10k: 5,
        acts: &[(12.0, Act::TakeUnseen(Signal::RefusedCall))],
    },
    Kind { name: "forges frames", label: Label::Hostile, of_10k: 10, acts: &[(2.0, Act::Take(Signal::Protocol))] },
    Kind {
        name: "Spectre, silent",
        label: Label::Hostile,
        of_10k: 8,
        acts: &[(3.0, Act::Compute { secs: 1800.0, share: 1.0, messages: 0, runs: 0 })],
    },
    Kind {
        name: "Spectre, behind messages",
        label: Label::Hostile,
        of_10k: 8,
        acts: &[(3.0, Act::Compute { secs: 1800.0, share: 0.95, messages: 100, runs: 0 })],
    },
    Kind {
        name: "Spectre, at two thirds",
        label: Label::Hostile,
        of_10k: 8,
        acts: &[(3.0, Act::Compute { secs: 3600.0, share: 0.66, messages: 100, runs: 0 })],
    },
    Kind {
        name: "Spectre, in short runs",
        label: Label::Hostile,
        of_10k: 8,
        acts: &[(3.0, Act::Compute { secs: 3600.0, share: 0.92, messages: 60, runs: 30 })],
    },
    Kind {
        name: "attacks only in company",
        label: Label::Hostile,
        of_10k: 8,
        acts: &[(12.0, Act::TakeInCompany(Signal::ClosedKey))],
    },
    // This tenant uses one exploit a day, and no record ever names it, so the engine does not find
    // it.
    Kind { name: "pushes neighbours", label: Label::Hostile, of_10k: 1, acts: &[(1.0, Act::Push)] },
];

/// A fifth of all tenants is untrusted, a tenth trusted. One in twenty has secrets and an owner;
/// twenty of these tenants have the same owner.
pub(super) fn policy(index: usize) -> (Trust, Option<String>) {
    let trust = match index % 10 {
        0 => Trust::Trusted,
        1 | 2 => Trust::Untrusted,
        _ => Trust::Standard,
    };
    let owner = index.is_multiple_of(20).then(|| format!("owner-{}", index / 400));
    (trust, owner)
}
