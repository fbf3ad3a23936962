//! The layers of a worker's confinement: one name each, used by the configuration, `doctor` and the tests alike.

use std::fmt;
use std::str::FromStr;

/// One layer. The order is that of `doctor`'s table. A worker takes the layers on in the order of
/// [`crate::jail::enter`], then keys and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Layer {
    Namespaces,
    EmptyRoot,
    Rlimits,
    Speculation,
    Landlock,
    Capabilities,
    NoNewPrivileges,
    NotDumpable,
    ParentDeath,
    Seccomp,
    ThreadFilter,
    Keys,
    /// Of sealed workers alone, as is the next one.
    DenyWriteExecute,
    SealedFilter,
}

impl Layer {
    pub const ALL: [Self; 14] = [
        Self::Namespaces,
        Self::EmptyRoot,
        Self::Rlimits,
        Self::Speculation,
        Self::Landlock,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::NotDumpable,
        Self::ParentDeath,
        Self::Seccomp,
        Self::ThreadFilter,
        Self::Keys,
        Self::DenyWriteExecute,
        Self::SealedFilter,
    ];

    /// The word in `required = [...]`, in `doctor` and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::EmptyRoot => "empty-root",
            Self::Rlimits => "rlimits",
            Self::Speculation => "speculation",
            Self::Landlock => "landlock",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::NotDumpable => "not-dumpable",
            Self::ParentDeath => "parent-death",
            Self::Seccomp => "seccomp",
            Self::ThreadFilter => "thread-filter",
            Self::Keys => "keys",
            Self::DenyWriteExecute => "deny-write-execute",
            Self::SealedFilter => "sealed-filter",
        }
    }

    /// What it protects against, for `doctor`.
    #[must_use]
    pub fn protects(self) -> &'static str {
        match self {
            Self::Namespaces => "seeing or reaching processes, networks, mounts and users of the host",
            Self::EmptyRoot => "reading or writing any file: the worker's file system is empty and read-only",
            Self::Rlimits => "core dumps, files, descriptors, threads and memory without bound",
            Self::Speculation => "speculative store bypass and indirect branches trained by another process",
            Self::Landlock => "files, TCP, abstract sockets and signals, should a system call slip through the filter",
            Self::Capabilities => "every privileged operation, also inside the worker's own namespaces",
            Self::NoNewPrivileges => "gaining privileges by executing a file",
            Self::NotDumpable => "ptrace and /proc/PID/mem from a process of the same user, and core dumps",
            Self::ParentDeath => "workers that outlive the daemon",
            Self::Seccomp => "every system call that V8 does not need",
            Self::ThreadFilter => {
                "a tenant's thread unmapping, retagging or aliasing a neighbour's memory, speaking on its channel, making code"
            }
            Self::Keys => {
                "a tenant's thread reading or writing a neighbour's memory, short of executing code of its own"
            }
            Self::DenyWriteExecute => "a sealed tenant making code: memory that was written never becomes executable",
            Self::SealedFilter => {
                "a sealed worker asking for executable memory at all, or returning from a forged signal"
            }
        }
    }

    /// What it means that it is missing.
    #[must_use]
    pub fn without(self) -> &'static str {
        match self {
            Self::Namespaces => {
                "workers see the host's processes, networks and names, and only the filter keeps them from using them"
            }
            Self::EmptyRoot => "the host's files are in sight of workers, behind Landlock and the filter",
            Self::Rlimits => "a worker can take what its user may take",
            Self::Speculation => "tenants may learn what other processes of the machine leave in its predictors",
            Self::Landlock => "a hole in the filter would reach whatever the empty root leaves",
            Self::Capabilities => "a hole in the filter would reach what root may do in the worker's namespaces",
            Self::NoNewPrivileges => "a hole in the filter would reach setuid programs",
            Self::NotDumpable => "processes of the same user can read a worker's memory",
            Self::ParentDeath => "a worker may outlive a daemon that was killed",
            Self::Seccomp => "the whole of the kernel is open to native code in a worker",
            Self::ThreadFilter => {
                "native code in a tenant's thread can unmap, retag and replace its neighbours' memory"
            }
            Self::Keys => "one tenant a process, unless share_without_keys accepts cages alone",
            Self::DenyWriteExecute => "only the filter keeps a sealed tenant from making code",
            Self::SealedFilter => "only the kernel's own switch keeps a sealed tenant from making code",
        }
    }

    /// How to get it where it is missing.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Namespaces | Self::EmptyRoot => {
                "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns=0) or run enisled as root"
            }
            Self::Speculation => "boot without mitigations=off; a processor that is not affected needs nothing",
            Self::Landlock => "a kernel of 5.13 or later with CONFIG_SECURITY_LANDLOCK and landlock in lsm=",
            Self::Seccomp | Self::ThreadFilter | Self::SealedFilter => "a kernel with CONFIG_SECCOMP_FILTER",
            Self::DenyWriteExecute => "a kernel of 6.3 or later (PR_SET_MDWE)",
            Self::Keys => {
                "a processor with memory protection keys and a kernel that uses them (ospke in /proc/cpuinfo), and delivers faults \
                 on a closed key to their handler; until then one tenant a process"
            }
            Self::Rlimits | Self::Capabilities | Self::NoNewPrivileges | Self::NotDumpable | Self::ParentDeath => {
                "every supported kernel has it"
            }
        }
    }

    fn bit(self) -> u32 {
        1 << (self as u8)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no layer {0:?}; the layers are {list}", list = Layer::ALL.map(Layer::name).join(", "))]
pub struct UnknownLayer(pub String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(word: &str) -> Result<Self, UnknownLayer> {
        Self::ALL.into_iter().find(|layer| layer.name() == word).ok_or_else(|| UnknownLayer(word.to_owned()))
    }
}

/// Some of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerSet(u32);

impl LayerSet {
    pub const NONE: Self = Self(0);

    #[must_use]
    pub fn all() -> Self {
        Layer::ALL.into_iter().collect()
    }

    #[must_use]
    pub fn has(self, layer: Layer) -> bool {
        self.0 & layer.bit() != 0
    }

    #[must_use]
    pub fn without(self, layer: Layer) -> Self {
        Self(self.0 & !layer.bit())
    }

    #[must_use]
    pub fn with(self, layer: Layer) -> Self {
        Self(self.0 | layer.bit())
    }

    /// Those of a worker that is not sealed.
    #[must_use]
    pub fn unsealed(self) -> Self {
        self.without(Layer::DenyWriteExecute).without(Layer::SealedFilter)
    }

    /// For the `Start` frame.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Unknown bits are dropped: they name no step.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & Self::all().0)
    }

    pub fn iter(self) -> impl Iterator<Item = Layer> {
        Layer::ALL.into_iter().filter(move |layer| self.has(*layer))
    }
}

impl FromIterator<Layer> for LayerSet {
    fn from_iter<I: IntoIterator<Item = Layer>>(layers: I) -> Self {
        layers.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for layer in Layer::ALL {
            assert_eq!(layer.name().parse(), Ok(layer));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "secomp".parse::<Layer>().unwrap_err().to_string();
        assert!(error.contains("seccomp") && error.contains("secomp"), "{error}");
    }

    #[test]
    fn bits_survive_the_wire() {
        let set = LayerSet::all().without(Layer::Landlock);
        assert_eq!(LayerSet::from_bits(set.bits() | 1 << 31), set);
        assert!(!set.has(Layer::Landlock) && set.has(Layer::Seccomp));
    }
}
