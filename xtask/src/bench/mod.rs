//! `cargo xtask bench`: each benchmark prints its table. Machines are shared and noisy, so only
//! figures of one run can be compared with each other.

mod attacks;
mod clients;
mod cordon;
mod keys;
mod load;
mod peers;
mod sample;
mod start;
mod workerd;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Run the attacks on the daemon, as root. During each of them the daemon must answer pings
    /// within 100 ms (p99), and other uids' requests within a second.
    Attacks {
        /// Only the cases whose ids begin with this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Measure how soon a misbehaving tenant lives alone, and what moves under load cost.
    Cordon {
        /// The number of moves under load.
        #[arg(long, default_value_t = 12)]
        moves: usize,
    },
    /// Measure what protection keys and the filters of tenants' threads cost: the runs a second of
    /// a worker with both, and of a worker without both.
    Keys {
        /// The number of pairs of rounds, one with both and one without, each half a second.
        #[arg(long, default_value_t = 40)]
        rounds: usize,
    },
    /// Measure `load()` through the socket beside raw V8 in a loop, the memory of an idle tenant,
    /// and how late hostile scripts end after their limits.
    Load(Beside),
    /// Measure the first run of a new tenant beside a warm tenant's, and the memory of one more
    /// tenant, beside containers and other ways to run a script in a place of its own.
    Start(Beside),
}

/// What a benchmark measures beside this build.
#[derive(Debug, Args)]
pub(crate) struct Beside {
    /// A folder in which `npm install workerd isolated-vm quickjs-emscripten` was run. With it,
    /// `load` also measures workerd's Worker Loader, with a script that does as little, and `start`
    /// measures all of them, and Node, bubblewrap and runc if they are in /usr/bin or /usr/sbin.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// A folder with the release programs of another build (`target/release` of an older
    /// checkout). With it, the two builds are compared, in turns.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Seconds for each measurement of a rate.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

pub(crate) fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Attacks { only } => attacks::run(only.as_deref()),
        Bench::Cordon { moves } => cordon::run(moves),
        Bench::Keys { rounds } => keys::run(rounds),
        Bench::Load(beside) => load::run(&beside),
        Bench::Start(beside) => start::run(&beside),
    }
}
