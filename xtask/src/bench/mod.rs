//! `cargo xtask bench`: one run, one table. Machines are shared and noisy, so what counts are ratios within a run.

mod load;
mod peers;
mod sample;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// `load()` through the socket against raw V8 in a loop, memory per idle tenant, hostile scripts against their limits.
    Load {
        /// A folder in which `npm install workerd` was done: the same script through its Worker Loader, in the same run.
        #[arg(long)]
        peers: Option<PathBuf>,
        /// Seconds for each throughput.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

pub(crate) fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Load { peers, seconds } => load::run(peers.as_deref(), seconds),
    }
}
