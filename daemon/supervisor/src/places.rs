//! Where things are when nobody says; what the command line has to know too is in
//! `enisle_hardening::places`.

use std::env;
use std::io;
use std::path::PathBuf;

pub(crate) use enisle_hardening::places::{socket, state_dir};

/// The configuration file, if there is one.
pub(crate) fn config() -> Option<PathBuf> {
    Some(enisle_hardening::places::config()).filter(|path| path.exists())
}

/// The worker program, installed beside the daemon.
pub(crate) fn worker_program() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("enisle-worker"))
}
