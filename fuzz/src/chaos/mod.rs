//! Disturb a daemon under load.

use clap::Args;

/// How long and from which seed.
#[derive(Debug, Args)]
pub struct Options {
    /// How long, in minutes.
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,
    /// Where the random choices begin; one is drawn and printed if it is left out.
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Runs until the time is over or something is found.
///
/// # Errors
/// What was found, or why nothing could be tried.
pub fn run(_options: &Options) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
