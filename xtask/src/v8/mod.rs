//! `cargo xtask v8`: which V8 archive a build uses, how to build one, and whether it is intact.
//!
//! The project needs a V8 with several cages in one process and with the patches in `v8/patches`.
//! No such archive is published, so it is part of this tree (`v8/`). Everything that is needed to
//! make it is in this tree or in package registries.

mod build;
mod place;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use place::Kind;
pub(crate) use place::{Archive, find};

#[derive(Debug, Subcommand)]
pub(crate) enum V8 {
    /// Print which archive a build uses.
    Status,
    /// Build the archive from the crate's source (about an hour on two cores; an interrupted build
    /// resumes).
    Build {
        /// Parallel compiler processes.
        #[arg(long, default_value_t = std::thread::available_parallelism().map_or(2, usize::from))]
        jobs: usize,
        /// Build an archive that checks V8's own assumptions, for tests. It stays in the cache
        /// folder.
        #[arg(long)]
        dchecks: bool,
    },
    /// Check the archive's checksums, then link and run a probe against it.
    Verify,
}

pub(crate) fn run(command: V8) -> Result<()> {
    match command {
        V8::Status => place::status(),
        V8::Build { jobs, dchecks: false } => {
            let built = build::build(Kind::Release, jobs)?;
            println!(
                "builds use it with RUSTY_V8_ARCHIVE={0} RUSTY_V8_ARCHIVE_SHA256=; copied over v8/ it is the tree's, with its \
                 checksum in .cargo/config.toml",
                built.display()
            );
            Ok(())
        }
        V8::Build { jobs, dchecks: true } => {
            let built = build::build(Kind::Dchecks, jobs)?;
            println!(
                "builds use it with RUSTY_V8_ARCHIVE={0} RUSTY_V8_ARCHIVE_SHA256=; give them a CARGO_TARGET_DIR of their own",
                built.display()
            );
            Ok(())
        }
        V8::Verify => verify::verify(&find()?),
    }
}
