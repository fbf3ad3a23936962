//! `cargo xtask v8`: where the V8 archive is, how to point at one, how to build one, whether it is whole.
//!
//! The project needs a V8 with several cages in one process and with the patches in `v8`; nobody
//! publishes such an archive. Everything that makes one is in this folder, in `v8` and in the
//! package registries.

mod build;
mod place;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use place::{Archive, find, or_explain, use_dir};

#[derive(Debug, Subcommand)]
pub(crate) enum V8 {
    /// Say which archive a build would use and where others are.
    Status,
    /// Use the archive in DIR for every build of this checkout.
    Use {
        /// A folder with the archive and its bindings.
        dir: PathBuf,
    },
    /// Build the archive from the crate's source (about an hour on two cores; resumes where it was stopped).
    Build {
        /// Parallel compiler processes.
        #[arg(long, default_value_t = std::thread::available_parallelism().map_or(2, usize::from))]
        jobs: usize,
    },
    /// Check the archive's checksums, then link and run a probe against it.
    Verify,
}

pub(crate) fn run(command: V8) -> Result<()> {
    match command {
        V8::Status => place::status(),
        V8::Use { dir } => use_dir(&dir),
        V8::Build { jobs } => {
            let built = build::build(jobs)?;
            use_dir(&built)
        }
        V8::Verify => verify::verify(&or_explain()?),
    }
}
