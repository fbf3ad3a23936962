//! What the machine offers, and what workers on it are started from.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use enisle_cordon::{CAGES_PER_PROCESS, Capacity};
use enisle_hardening::islands::keys;
use enisle_hardening::{Layer, LayerSet, Posture};
use enisle_wire::limits::Limit;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::config::{Config, Keys};
use crate::descriptors::{self, DescriptorsError};
use crate::workers::birth::{Blueprint, Memory, StartError, make_snapshot};

/// Private memory that a worker may commit besides the memory for its tenants: for V8 itself, and
/// for one largest allocation before a run ends as `exceededMemory`.
const WORKER_BASE_MB: u64 = 2048;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("this machine lacks what the configuration requires: {0}")]
    Posture(String),
    #[error("the worker program {0} cannot be used: {1}")]
    Program(PathBuf, io::Error),
    #[error("the startup snapshot could not be made: {0}")]
    Snapshot(#[from] StartError),
    #[error("the startup snapshot could not be put into a memory file: {0}")]
    MemoryFile(io::Error),
    #[error(transparent)]
    Layer(#[from] enisle_hardening::layers::UnknownLayer),
    #[error(transparent)]
    Descriptors(#[from] DescriptorsError),
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
}

/// What this machine offers.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) posture: Posture,
    pub(crate) capacity: Capacity,
    /// How many worker processes there may be at one time.
    pub(crate) processes: usize,
}

/// What this machine offers; an error if it lacks what the configuration requires.
pub(crate) fn probe(config: &Config) -> Result<Machine, MachineError> {
    let posture = Posture::probe();
    let missing: Vec<_> = posture
        .missing(config.required_layers()?)
        .map(|finding| format!("{} ({}); {}", finding.layer, finding.detail, finding.layer.remedy()))
        .collect();
    if !missing.is_empty() {
        return Err(MachineError::Posture(missing.join("; ")));
    }
    let capacity = Capacity {
        keys: if config.workers.keys == Keys::Off { 0 } else { keys::tenants_of(posture.keys) },
        cages: CAGES_PER_PROCESS,
        share_without_keys: config.workers.share_without_keys,
    };
    let limit = descriptors::raise()?;
    let processes = descriptors::processes(config, capacity.tenants_per_process(), limit)?;
    if processes < config.workers.max {
        let wanted = config.workers.max;
        tracing::warn!(
            limit,
            processes,
            wanted,
            "the limit of open files has room for fewer processes than workers.max"
        );
    }
    Ok(Machine { posture, capacity, processes })
}

/// What workers are started from.
pub(crate) struct Workers {
    pub(crate) blueprint: Arc<Blueprint>,
    /// The startup snapshot, just made by a worker: this shows that the program is a worker and
    /// starts on this machine.
    pub(crate) snapshot: OwnedFd,
    pub(crate) layers: LayerSet,
}

impl Workers {
    pub(crate) async fn make(config: &Config, machine: &Machine, program: PathBuf) -> Result<Self, MachineError> {
        let file = File::open(&program).map_err(|error| MachineError::Program(program, error))?;
        let tenants_per_process = u32::try_from(machine.capacity.tenants_per_process()).unwrap_or(1);
        let memory = Memory {
            base_mb: WORKER_BASE_MB,
            tenant_mb: config.workers.max_memory_mb.into(),
            sealed_mb: config.cordon.sealed.get(Limit::MemoryMb).into(),
        };
        let layers = jail_layers(&machine.posture);
        let layers = if machine.capacity.keys == 0 { layers.without(Layer::Keys) } else { layers };
        let blueprint = Blueprint::new(file, layers, tenants_per_process, memory, config.workers.uid_base);
        let blueprint = Arc::new(blueprint.map_err(MachineError::Thread)?);
        let snapshot = memory_file(&make_snapshot(&blueprint).await?).map_err(MachineError::MemoryFile)?;
        Ok(Self { blueprint, snapshot, layers })
    }
}

/// Fails if a start of the daemon would fail because of this machine, or because the worker program
/// cannot make a snapshot. Nothing is kept.
pub(crate) async fn check(config: &Config, program: PathBuf) -> Result<(), MachineError> {
    Workers::make(config, &probe(config)?, program).await.map(drop)
}

/// The layers that workers use here: all that the machine has and that can be used together.
fn jail_layers(posture: &Posture) -> LayerSet {
    let layers = posture.layers();
    if layers.has(Layer::Namespaces) {
        return layers;
    }
    // Without a mount namespace of its own a worker must not change the mounts.
    let layers = layers.without(Layer::EmptyRoot);
    // An ordinary user cannot inspect an undumpable process outside a user namespace of theirs, and
    // a worker that cannot be verified gets no tenant. Verification is worth more than this layer.
    if nix::unistd::geteuid().is_root() { layers } else { layers.without(Layer::NotDumpable) }
}

/// The snapshot in a memory file that can no longer be changed (memfd_create(2), file seals).
fn memory_file(snapshot: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(c"enisle-snapshot", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(memory.try_clone()?);
    file.write_all(snapshot)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(memory.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    tracing::debug!(
        bytes = snapshot.len(),
        descriptor = memory.as_raw_fd(),
        "the startup snapshot is in a read-only memory file"
    );
    Ok(memory)
}
