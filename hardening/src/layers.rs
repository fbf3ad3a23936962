//! The one table of the layers that confine a worker.
//!
//! Besides its row here, a layer needs the code that turns it on ([`crate::jail`],
//! [`crate::filter`], [`crate::islands`]), a probe ([`crate::posture`]), a check from outside if
//! `/proc` shows the layer ([`crate::verify`]), an attack with the layer on and off
//! (`tests/layers`, `tests/escape`) and its rows in SECURITY.md. The configuration, `doctor`, the
//! API and the tests use the name of the layer.

use std::fmt;
use std::str::FromStr;

macro_rules! layers {
    ($(
        $layer:ident $name:literal, of $workers:ident workers {
            against: $protects:literal, without: $without:literal, remedy: $remedy:expr,
        }
    )+) => {
        /// One layer. This is the order of `doctor`'s table; a worker takes the layers on in the
        /// order of [`crate::jail::enter`], then keys and filters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Layer {
            $(#[doc = concat!("Against ", $protects, ".")] $layer,)+
        }

        impl Layer {
            /// All layers, in the order of the table.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$layer),+];

            /// The word in `required = [...]`, in `doctor` and in the API.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$layer => $name,)+ }
            }

            /// Which workers take this layer on.
            const fn workers(self) -> Workers {
                match self { $(Self::$layer => Workers::$workers,)+ }
            }

            /// What the layer protects against, for `doctor`.
            #[must_use]
            pub const fn protects(self) -> &'static str {
                match self { $(Self::$layer => $protects,)+ }
            }

            /// What follows if the layer is missing.
            #[must_use]
            pub const fn without(self) -> &'static str {
                match self { $(Self::$layer => $without,)+ }
            }

            /// How an operator gets the layer if it is missing.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$layer => $remedy,)+ }
            }
        }
    };
}

/// Which workers take a layer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workers {
    All,
    Sealed,
}

const USER_NAMESPACES: &str = "allow unprivileged user namespaces (sysctl user.max_user_namespaces, \
     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns=0) or run enisled as root";
const SECCOMP: &str = "a kernel with CONFIG_SECCOMP_FILTER";
const NOTHING: &str = "every supported kernel has it";

layers! {
    Namespaces "namespaces", of All workers {
        against: "seeing or reaching processes, networks, mounts and users of the host",
        without: "workers see the host's processes, networks and names, and only the filter keeps them from \
         using them",
        remedy: USER_NAMESPACES,
    }
    EmptyRoot "empty-root", of All workers {
        against: "reading or writing any file: the worker's file system is empty and read-only",
        without: "workers see the host's files, and only Landlock and the filter protect them",
        remedy: USER_NAMESPACES,
    }
    Rlimits "rlimits", of All workers {
        against: "core dumps, files, descriptors, threads and memory without bound",
        without: "a worker can take what its user may take",
        remedy: NOTHING,
    }
    Speculation "speculation", of All workers {
        against: "speculative store bypass and indirect branches trained by another process",
        without: "tenants may learn what other processes leave in the processor's predictors",
        remedy: "boot without mitigations=off; a processor that is not affected needs nothing",
    }
    Landlock "landlock", of All workers {
        against: "files, TCP, abstract sockets and signals, should a system call slip through the filter",
        without: "a hole in the filter would reach whatever the empty root leaves",
        remedy: "a kernel of 5.13 or later with CONFIG_SECURITY_LANDLOCK and landlock in lsm=",
    }
    Capabilities "capabilities", of All workers {
        against: "every privileged operation, also inside the worker's own namespaces",
        without: "a hole in the filter would reach what root may do in the worker's namespaces",
        remedy: NOTHING,
    }
    NoNewPrivileges "no-new-privileges", of All workers {
        against: "gaining privileges by executing a file",
        without: "a hole in the filter would reach setuid programs",
        remedy: NOTHING,
    }
    NotDumpable "not-dumpable", of All workers {
        against: "ptrace and /proc/PID/mem from a process of the same user, and core dumps",
        without: "processes of the same user can read a worker's memory",
        remedy: NOTHING,
    }
    ParentDeath "parent-death", of All workers {
        against: "workers that outlive the daemon",
        without: "a worker may outlive a daemon that was killed",
        remedy: NOTHING,
    }
    Seccomp "seccomp", of All workers {
        against: "every system call that V8 does not need",
        without: "the whole of the kernel is open to native code in a worker",
        remedy: SECCOMP,
    }
    ThreadFilter "thread-filter", of All workers {
        against: "a tenant's thread unmapping, retagging or aliasing a neighbour's memory, speaking on its \
         channel, making code",
        without: "native code in a tenant's thread can unmap, retag and replace its neighbours' memory",
        remedy: SECCOMP,
    }
    Keys "keys", of All workers {
        against: "a tenant's thread reading or writing a neighbour's memory, short of executing code of its own",
        without: "one tenant a process, unless share_without_keys accepts cages without keys",
        remedy: "a processor with memory protection keys and a kernel that uses them (ospke in \
         /proc/cpuinfo), and delivers faults on a closed key to their handler; until then one \
         tenant a process",
    }
    DenyWriteExecute "deny-write-execute", of Sealed workers {
        against: "a sealed tenant making code: memory that was written never becomes executable",
        without: "only the filter keeps a sealed tenant from making code",
        remedy: "a kernel of 6.3 or later (PR_SET_MDWE)",
    }
    SealedFilter "sealed-filter", of Sealed workers {
        against: "a sealed worker asking for executable memory at all, or returning from a forged signal",
        without: "only the kernel's own switch keeps a sealed tenant from making code",
        remedy: SECCOMP,
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No layer has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no layer {0:?}; the layers are {list}", list = Layer::ALL.map(Layer::name).join(", "))]
pub struct UnknownLayer(pub String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(word: &str) -> Result<Self, UnknownLayer> {
        Self::ALL.into_iter().find(|layer| layer.name() == word).ok_or_else(|| UnknownLayer(word.to_owned()))
    }
}

fn bit(layer: Layer) -> u32 {
    1 << (layer as u8)
}

/// A set of layers.
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
        self.0 & bit(layer) != 0
    }

    #[must_use]
    pub fn without(self, layer: Layer) -> Self {
        Self(self.0 & !bit(layer))
    }

    #[must_use]
    pub fn with(self, layer: Layer) -> Self {
        Self(self.0 | bit(layer))
    }

    /// Those layers of this set that a worker takes on if it is not sealed.
    #[must_use]
    pub fn unsealed(self) -> Self {
        self.iter().filter(|layer| layer.workers() == Workers::All).collect()
    }

    /// The set as a number, for the `Start` frame: one bit for each layer.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`Self::bits`]. Bits that stand for no layer are dropped.
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
