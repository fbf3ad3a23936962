//! A machine for the tests, emulated in software. It has every layer that the host may lack.
//!
//! `qemu-system-x86_64 -accel tcg -cpu max` has memory protection keys on any host. The machine
//! boots a Debian kernel either into an archive of files that lives in its memory
//! ([`Machine::with_files`]) or from a disk image with an init of its own
//! ([`Machine::with_image`]). It has no network and no disk of the host.
//!
//! The machine uses three serial ports: the kernel's console on the first, the command's output on
//! the second, the command's exit status on the third. It powers off when the command has ended. A
//! machine that has not powered off at its time limit is killed.
//!
//! ```no_run
//! use std::time::Duration;
//! use enisle_vm::{Files, Guest, Kernel, Machine};
//!
//! let mut files = Files::new()?;
//! files.program("target/harness/enisle", "/bin/enisle")?;
//! let kernel = Kernel::installed()?;
//! let report = Machine::with_files(&kernel, &files, Guest::default(), "enisle doctor")
//!     .processors(2)
//!     .memory_mib(1024)
//!     .time_limit(Duration::from_secs(60))
//!     .run(|line| println!("{line}"))?;
//! assert_eq!(report.status, 0);
//! # Ok::<(), enisle_vm::VmError>(())
//! ```
#![forbid(unsafe_code)]

mod files;
mod guest;
mod kernel;
mod machine;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use files::Files;
pub use guest::{Cgroups, Guest};
pub use kernel::Kernel;
pub use machine::{Machine, Report};

/// The packages that the machine needs, by their names in Debian.
pub const PACKAGES: &[&str] = &["qemu-system-x86", "linux-image-amd64", "busybox-static"];

/// Why a machine gave no report.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("the emulated machine needs {what}; install it with: apt-get install {}", PACKAGES.join(" "))]
    Missing { what: String },
    #[error("the kernel {release} has no initial file system (initrd) beside it, which an image needs")]
    NoInitrd { release: String },
    #[error("{path} could not be read or written: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the libraries of {program} could not be listed: {why}")]
    Libraries { program: PathBuf, why: String },
    #[error("the archive of the machine's files could not be written: {0}")]
    Archive(io::Error),
    #[error("qemu-system-x86_64 could not be run: {0}")]
    Emulator(io::Error),
    #[error("the emulated machine was killed after {} s, its time limit; it last printed:\n{tail}", limit.as_secs())]
    TimeLimit { limit: Duration, tail: String },
    #[error("the emulated machine ended before its command did; it last printed:\n{tail}")]
    NoStatus { tail: String },
}

fn file_error(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> VmError {
    let path = path.into();
    move |source| VmError::File { path, source }
}
