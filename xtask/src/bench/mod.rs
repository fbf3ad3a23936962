//! `cargo xtask bench`: one run, one table. Machines are shared and noisy, so only ratios within a
//! run count.

mod attacks;
mod cordon;
mod keys;
mod load;
mod sample;
mod workerd;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The attacks on the daemon, as root: pings within 100 ms (p99) and other uids' requests
    /// within a second through each of them.
    Attacks {
        /// Only the cases whose ids begin with this.
        #[arg(long)]
        only: Option<String>,
    },
    /// How soon a misbehaving tenant lives alone, and what moves under load cost.
    Cordon {
        /// How many moves under load.
        #[arg(long, default_value_t = 12)]
        moves: usize,
    },
    /// The cost of protection keys and of the filters of tenants' threads: runs a second of one
    /// worker with them, and without them.
    Keys {
        /// How many rounds of half a second each, with them and without them in turn.
        #[arg(long, default_value_t = 40)]
        rounds: usize,
    },
    /// `load()` through the socket against raw V8 in a loop, memory per idle tenant, and hostile
    /// scripts against their limits.
    Load {
        /// A folder where `npm install workerd` was run: measures workerd's Worker Loader too, with
        /// a script that does as little.
        #[arg(long)]
        peers: Option<PathBuf>,
        /// The folder with the release of another build (`target/release` of an older checkout):
        /// compares the two builds, in turns.
        #[arg(long)]
        against: Option<PathBuf>,
        /// Seconds for each measurement of throughput.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

pub(crate) fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Attacks { only } => attacks::run(only.as_deref()),
        Bench::Cordon { moves } => cordon::run(moves),
        Bench::Keys { rounds } => keys::run(rounds),
        Bench::Load { peers, against, seconds } => load::run(peers.as_deref(), against.as_deref(), seconds),
    }
}
