//! The filter that a worker takes on when V8 has started: everything that is not needed kills the process.
//!
//! The policy is data, `policy/worker.json`; each rule there says who needs it. The build script compiles it, so a
//! policy that is empty or does not parse is a build that fails. There are two programs, for one program has one answer
//! to what it names: `allow` (everything else dies) and `refuse` (a few calls that libc probes get `ENOSYS`). The kernel
//! runs both and takes the stricter answer.

use seccompiler::{apply_filter_all_threads, sock_filter};

include!(concat!(env!("OUT_DIR"), "/policy.rs"));

/// Programs that a filtered worker runs under, for [`crate::verify`].
pub const FILTERS: usize = 2;

/// The filter could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter {name:?} could not be installed: {error}")]
pub struct SeccompError {
    name: &'static str,
    error: seccompiler::Error,
}

/// Filters every thread of the process, for good.
///
/// # Errors
/// The kernel refused; the process is then to exit.
pub fn install() -> Result<(), SeccompError> {
    for (name, program) in [("refuse", REFUSE), ("allow", ALLOW)] {
        apply_filter_all_threads(program).map_err(|error| SeccompError { name, error })?;
    }
    Ok(())
}
