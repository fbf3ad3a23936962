//! Executes a program that a test attacks: `leash MEBIBYTES UMASK PROGRAM ARGUMENT…`.
//!
//! The program ends with the thread that started it, and cannot commit more memory than the bound.
//! So a failed defence neither takes down the machine nor leaves a process running after the test.
#![forbid(unsafe_code)]

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut number = |radix| -> Result<u64, Box<dyn Error>> {
        let word = arguments.next().ok_or("a number is missing")?;
        Ok(u64::from_str_radix(&word.to_string_lossy(), radix)?)
    };
    let (mebibytes, mask) = (number(10)?, number(8)?);
    let program = arguments.next().ok_or("no program")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    umask(Mode::from_bits_truncate(u32::try_from(mask)?));
    // Only the soft limit is set, because a worker sets a limit of its own, which may be higher.
    let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    setrlimit(Resource::RLIMIT_DATA, (mebibytes << 20).min(hard), hard)?;
    Err(Command::new(program).args(arguments).exec().into())
}
