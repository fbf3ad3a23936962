//! The steps that a worker takes before V8 starts, each with its reason.
//!
//! The order in [`enter`] matters: a step that needs a capability comes before capabilities are
//! dropped, and a step that could undo another step comes before that other step. The filter
//! ([`crate::filter`]) comes last, when V8 has started.

mod landlock;
pub(crate) mod limits;
mod privileges;
mod root;
mod speculation;

use std::io;

use crate::layers::{Layer, LayerSet};
use crate::process::spawn::CONTROL_FD;

/// The parameters of the jail; the steps themselves have no settings.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub layers: LayerSet,
    /// The most committed private memory of the process (`RLIMIT_DATA`).
    pub data_bytes: u64,
    /// The most open descriptors.
    pub descriptors: u64,
    /// The most threads.
    pub threads: u64,
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("the environment is not empty: it holds {0:?}")]
    Environment(std::ffi::OsString),
    #[error("inherited descriptors could not be closed: {0}")]
    CloseRange(io::Error),
    #[error("this process is not the first of a pid namespace: it was not started in namespaces of its own")]
    NotFirst,
    #[error("the host's mounts could not be made private: {0}")]
    MakePrivate(nix::Error),
    #[error("an empty file system could not be mounted: {0}")]
    MountEmpty(nix::Error),
    #[error("the empty file system could not become the root: {0}")]
    PivotRoot(nix::Error),
    #[error("the host's file system could not be detached: {0}")]
    Detach(nix::Error),
    #[error("the empty root could not be made read-only: {0}")]
    ReadOnly(nix::Error),
    #[error("the host's name could not be hidden: {0}")]
    HostName(io::Error),
    #[error("the session keyring that the daemon was started with could not be left: {0}")]
    Keyring(io::Error),
    #[error("the limit {0} could not be set: {1}")]
    Rlimit(&'static str, nix::Error),
    #[error("speculation control {0} could not be forced: {1}")]
    Speculation(&'static str, io::Error),
    #[error("Landlock could not be enforced: {0}")]
    Landlock(String),
    #[error("the capability set {0} could not be emptied: {1}")]
    Capabilities(&'static str, caps::errors::CapsError),
    #[error("capabilities could be regained (securebits): {0}")]
    SecureBits(io::Error),
    #[error("no_new_privs could not be set: {0}")]
    NoNewPrivileges(nix::Error),
    #[error("the process could not be made undumpable: {0}")]
    Dumpable(nix::Error),
    #[error("memory that was written could still become executable: {0}")]
    DenyWriteExecute(io::Error),
    #[error("the parent-death signal could not be set: {0}")]
    ParentDeath(nix::Error),
}

/// Takes on every layer of `plan` except keys and filters. Call this while the process has one
/// thread.
///
/// # Errors
/// The first step that failed; the process must then exit, because half a jail confines nothing.
pub fn enter(plan: &Plan) -> Result<(), JailError> {
    // An environment may carry secrets of the user who started the daemon, and settings of libc.
    if let Some((name, _)) = std::env::vars_os().next() {
        return Err(JailError::Environment(name));
    }
    close_inherited()?;
    privileges::leave_session_keyring().map_err(JailError::Keyring)?;
    let on = |layer| plan.layers.has(layer);
    if on(Layer::Namespaces) {
        // `clone3` makes all namespaces or none; process id 1 shows that it made them.
        if std::process::id() != 1 {
            return Err(JailError::NotFirst);
        }
        privileges::forbid_user_namespaces();
        privileges::hide_host_name().map_err(JailError::HostName)?;
    }
    if on(Layer::EmptyRoot) {
        root::enter_empty()?;
    }
    if on(Layer::Rlimits) {
        limits::set(plan)?;
    }
    if on(Layer::Speculation) {
        speculation::force_off()?;
    }
    if on(Layer::NoNewPrivileges) {
        nix::sys::prctl::set_no_new_privs().map_err(JailError::NoNewPrivileges)?;
    }
    if on(Layer::Landlock) {
        landlock::grant_nothing(on(Layer::NoNewPrivileges))?;
    }
    if on(Layer::Capabilities) {
        privileges::drop_capabilities()?;
    }
    if on(Layer::NotDumpable) {
        nix::sys::prctl::set_dumpable(false).map_err(JailError::Dumpable)?;
    }
    if on(Layer::DenyWriteExecute) {
        privileges::deny_write_execute().map_err(JailError::DenyWriteExecute)?;
    }
    // This step is last, because the kernel clears this signal when credentials change.
    if on(Layer::ParentDeath) {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(JailError::ParentDeath)?;
    }
    Ok(())
}

/// Closes every descriptor except 0, 1, 2 and the control channel.
fn close_inherited() -> Result<(), JailError> {
    let first = CONTROL_FD.cast_unsigned() + 1;
    // SAFETY: close_range takes three numbers; this early no Rust value owns a descriptor above the
    // control channel's.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(JailError::CloseRange(io::Error::last_os_error())) }
}

/// The limit for a worker without a user namespace: more threads than one user should ever have.
const UNBOUNDED_THREADS: u64 = 1 << 16;

impl Plan {
    /// The jail of a worker that holds up to `tenants`. Supervisor and worker both compute this
    /// plan. They get the same result, because both have the same hard limit on threads.
    #[must_use]
    pub fn for_tenants(layers: LayerSet, data_bytes: u64, tenants: u32) -> Self {
        let tenants = u64::from(tenants);
        Self {
            layers,
            data_bytes,
            // 0, 1, 2 and the control channel; a channel for each tenant; some in reserve.
            descriptors: 16 + tenants,
            // The main thread, the watchdog and one thread for each tenant. There is room for twice
            // as many, because a thread that has just ended still counts for a moment. Without a
            // user namespace every process of the same user counts too, and others could use up a
            // tight limit.
            threads: if layers.has(Layer::Namespaces) {
                4 + 2 * tenants
            } else {
                UNBOUNDED_THREADS.min(limits::hard_threads())
            },
        }
    }
}
