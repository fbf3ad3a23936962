//! Resource limits: bounds that hold even for native code.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{JailError, Plan};

pub(super) fn set(plan: &Plan) -> Result<(), JailError> {
    let limits = [
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, core_bytes()),
        // No file can grow: a worker has no file to write to.
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, 0),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, plan.descriptors),
        // Counts only the threads of this user namespace, not others of the same uid (Linux 5.14
        // and later).
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC, plan.threads),
        // Committed private memory. V8 reserves terabytes of address space, so RLIMIT_AS is of no
        // use.
        ("RLIMIT_DATA", Resource::RLIMIT_DATA, plan.data_bytes),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK, 0),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE, 0),
    ];
    for (name, resource, limit) in limits {
        setrlimit(resource, limit, limit).map_err(|error| JailError::Rlimit(name, error))?;
    }
    Ok(())
}

/// The limit on core dumps that prevents dumps of tenants' heaps, whatever `core_pattern` is. The
/// kernel writes no dump to a file if the limit is less than a page. If `core_pattern` is a pipe to
/// a program, the kernel writes a dump under any limit, even 0, except 1 (fs/coredump.c). If the
/// daemon was started with a hard limit of 0, the limit stays 0: raising it takes a privilege.
pub(crate) fn core_bytes() -> u64 {
    getrlimit(Resource::RLIMIT_CORE).map_or(1, |(_, hard)| hard.min(1))
}

/// The hard limit on the threads of this user. The kernel derives it from the machine's memory; it
/// takes a privilege to raise it (setrlimit(2)).
pub(super) fn hard_threads() -> u64 {
    getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(_, hard)| hard)
}
