//! Resource limits: the bounds that hold even for native code.

use nix::sys::resource::{Resource, setrlimit};

use super::{JailError, Plan};

pub(super) fn set(plan: &Plan) -> Result<(), JailError> {
    let limits = [
        // No dump of anybody's heap, whatever core_pattern says.
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, 0),
        // No file can grow: there is none to write, and none can be made useful.
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, 0),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, plan.descriptors),
        // Threads of this user namespace, so neighbours under the same uid do not count (Linux 5.14 and later).
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC, plan.threads),
        // Committed private memory. V8 reserves terabytes of address space, so RLIMIT_AS cannot serve.
        ("RLIMIT_DATA", Resource::RLIMIT_DATA, plan.data_bytes),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK, 0),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE, 0),
    ];
    for (name, resource, limit) in limits {
        setrlimit(resource, limit, limit).map_err(|error| JailError::Rlimit(name, error))?;
    }
    Ok(())
}
