//! Resource limits: bounds that hold even for native code.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{JailError, Plan};

pub(super) fn set(plan: &Plan) -> Result<(), JailError> {
    let limits = [
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, core_bytes()),
        // No file can grow: a worker has none to write to.
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, 0),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, plan.descriptors),
        // Threads of this user namespace, so neighbours under the same uid do not count (Linux 5.14
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

/// Prevents core dumps of tenants' heaps, whatever core_pattern is. The kernel writes no dump to a
/// file whose limit is less than a page. To a program (`core_pattern` with a pipe) it writes one
/// under any limit, even 0, except 1 (fs/coredump.c). If the daemon was started with a hard limit
/// of 0, that stays: raising it takes a privilege.
pub(crate) fn core_bytes() -> u64 {
    getrlimit(Resource::RLIMIT_CORE).map_or(1, |(_, hard)| hard.min(1))
}

/// The most threads that this user may have. The kernel computes it from the machine's memory, and
/// without a privilege it can only be lowered (setrlimit(2)).
pub(super) fn hard_threads() -> u64 {
    getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(_, hard)| hard)
}
