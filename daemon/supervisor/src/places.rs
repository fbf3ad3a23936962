//! Where things are when nobody says: for root as the FHS has it, for an ordinary user as XDG has it.

use std::env;
use std::io;
use std::path::PathBuf;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn from_env(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home(below: &str) -> PathBuf {
    from_env("HOME").unwrap_or_else(|| PathBuf::from("/")).join(below)
}

/// The API's socket. The command line looks in the same place.
pub(crate) fn socket() -> PathBuf {
    if is_root() {
        return PathBuf::from("/run/enisle/enisled.sock");
    }
    let runtime = from_env("XDG_RUNTIME_DIR").map(|dir| dir.join("enisle"));
    // Without a session there is no such folder; a name that carries the uid is as good as it gets.
    runtime.unwrap_or_else(|| env::temp_dir().join(format!("enisle-{}", nix::unistd::geteuid()))).join("enisled.sock")
}

pub(crate) fn state_dir() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/enisle");
    }
    from_env("XDG_STATE_HOME").unwrap_or_else(|| home(".local/state")).join("enisle")
}

/// The configuration file, if there is one.
pub(crate) fn config() -> Option<PathBuf> {
    let path = if is_root() {
        PathBuf::from("/etc/enisle/enisled.toml")
    } else {
        from_env("XDG_CONFIG_HOME").unwrap_or_else(|| home(".config")).join("enisle/enisled.toml")
    };
    path.exists().then_some(path)
}

/// The worker program, installed beside the daemon.
pub(crate) fn worker_program() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("enisle-worker"))
}
