//! Every attack, with the layer that must stop it, and what a machine must have for the attack to
//! succeed without the layer.

use std::io;

use enisle_hardening::islands::keys;
use enisle_hardening::{Layer, Posture};

use crate::attacks::*;

/// An attack, and the layer that must stop it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) layer: Layer,
    /// Layers that the layer under test depends on: they are on in both attempts.
    pub(crate) needs: &'static [Layer],
    pub(crate) attack: fn(&Target) -> io::Result<()>,
    pub(crate) takes: Takes,
}

/// What a machine must have, besides the layer, so that the attack is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    /// Only root can arrange the attack.
    Root,
    /// As [`Self::Root`], on a machine where a process may read the memory of other processes of
    /// its user. From its level 1 on, Yama forbids that.
    RootThatMayTrace,
    /// Landlock's scopes. On older kernels, which lack scopes, the attack succeeds, and the posture
    /// must report the lack.
    Scopes,
    /// User namespaces: without them the machine itself forbids the attack.
    UserNamespaces,
    /// Protection keys: a key can be taken only if the processor and the kernel support keys.
    Keys,
}

impl Takes {
    /// Why the attack is not possible on this machine; `None` if it is possible.
    pub(crate) fn lacking(self, posture: &Posture) -> Option<&'static str> {
        match self {
            Self::Root | Self::RootThatMayTrace if !nix::unistd::geteuid().is_root() => {
                Some("only root can arrange it")
            }
            Self::RootThatMayTrace if yama_forbids_tracing() => Some("this machine forbids it to every process (Yama)"),
            Self::UserNamespaces if !posture.layers().has(Layer::Namespaces) => {
                Some("this machine forbids it to every process")
            }
            Self::Keys if keys::available() == 0 => Some("this machine has no protection keys"),
            _ => None,
        }
    }
}

fn yama_forbids_tracing() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    scope.trim().parse::<u32>().is_ok_and(|scope| scope > 0)
}

const NS: &[Layer] = &[Layer::Namespaces];

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "connect to a socket of the host",
        layer: Layer::Namespaces,
        needs: &[],
        attack: connect_abstract,
        takes: Takes::Nothing,
    },
    Case {
        name: "see another process",
        layer: Layer::Namespaces,
        needs: &[],
        attack: see_another_process,
        takes: Takes::Nothing,
    },
    Case {
        name: "learn the host's name",
        layer: Layer::Namespaces,
        needs: &[],
        attack: learn_host_name,
        takes: Takes::Nothing,
    },
    Case {
        name: "read a file of the host",
        layer: Layer::EmptyRoot,
        needs: NS,
        attack: read_a_file,
        takes: Takes::Nothing,
    },
    Case { name: "write a file", layer: Layer::EmptyRoot, needs: NS, attack: write_a_file, takes: Takes::Nothing },
    Case {
        name: "open descriptors without end",
        layer: Layer::Rlimits,
        needs: &[],
        attack: open_without_end,
        takes: Takes::Nothing,
    },
    Case { name: "grow a file", layer: Layer::Rlimits, needs: &[], attack: grow_a_file, takes: Takes::Nothing },
    Case {
        name: "take memory without end",
        layer: Layer::Rlimits,
        needs: &[],
        attack: take_memory,
        takes: Takes::Nothing,
    },
    Case { name: "multiply", layer: Layer::Rlimits, needs: NS, attack: multiply, takes: Takes::Nothing },
    Case {
        name: "read a file past the empty root",
        layer: Layer::Landlock,
        needs: &[Layer::NoNewPrivileges],
        attack: read_a_file,
        takes: Takes::Nothing,
    },
    Case {
        name: "connect to an abstract socket past the namespace",
        layer: Layer::Landlock,
        needs: &[Layer::NoNewPrivileges],
        attack: connect_abstract,
        takes: Takes::Scopes,
    },
    Case {
        name: "rename the machine in its own namespace",
        layer: Layer::Capabilities,
        needs: NS,
        attack: rename_machine,
        takes: Takes::Nothing,
    },
    Case {
        name: "mount in its own namespace",
        layer: Layer::Capabilities,
        needs: NS,
        attack: mount_something,
        takes: Takes::Nothing,
    },
    Case {
        name: "become root by a setuid program",
        layer: Layer::NoNewPrivileges,
        needs: &[],
        attack: become_root,
        takes: Takes::Root,
    },
    Case {
        name: "read the memory of a process of the same user",
        layer: Layer::NotDumpable,
        needs: &[],
        attack: read_memory_of_parent,
        takes: Takes::RootThatMayTrace,
    },
    Case { name: "open a file", layer: Layer::Seccomp, needs: &[], attack: read_a_file, takes: Takes::Nothing },
    Case { name: "make a socket", layer: Layer::Seccomp, needs: &[], attack: make_a_socket, takes: Takes::Nothing },
    Case { name: "start a process", layer: Layer::Seccomp, needs: &[], attack: start_a_process, takes: Takes::Nothing },
    Case {
        name: "execute a program",
        layer: Layer::Seccomp,
        needs: &[],
        attack: execute_a_program,
        takes: Takes::Root,
    },
    Case {
        name: "map executable memory",
        layer: Layer::Seccomp,
        needs: &[],
        attack: map_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "make memory execute-only, which strips a key",
        layer: Layer::Seccomp,
        needs: &[],
        attack: make_execute_only,
        takes: Takes::Nothing,
    },
    Case { name: "map shared memory", layer: Layer::Seccomp, needs: &[], attack: map_shared, takes: Takes::Nothing },
    Case { name: "make a memory file", layer: Layer::Seccomp, needs: &[], attack: make_memfd, takes: Takes::Nothing },
    Case {
        name: "read memory by process_vm_readv",
        layer: Layer::Seccomp,
        needs: &[],
        attack: process_vm_readv,
        takes: Takes::Nothing,
    },
    Case {
        name: "use the 32-bit system calls",
        layer: Layer::Seccomp,
        needs: &[],
        attack: thirty_two_bit_call,
        takes: Takes::Nothing,
    },
    Case {
        name: "change a signal handler",
        layer: Layer::Seccomp,
        needs: &[],
        attack: change_handler,
        takes: Takes::Nothing,
    },
    Case {
        name: "make a nested user namespace",
        layer: Layer::Seccomp,
        needs: &[],
        attack: nested_namespace,
        takes: Takes::UserNamespaces,
    },
    Case {
        name: "allocate a protection key",
        layer: Layer::Seccomp,
        needs: &[],
        attack: allocate_key,
        takes: Takes::Keys,
    },
    Case {
        name: "send a signal to a thread",
        layer: Layer::Seccomp,
        needs: &[],
        attack: signal_a_thread,
        takes: Takes::Nothing,
    },
    Case {
        name: "make the process dumpable again",
        layer: Layer::Seccomp,
        needs: &[],
        attack: dumpable_again,
        takes: Takes::Nothing,
    },
    Case {
        name: "send a descriptor",
        layer: Layer::Seccomp,
        needs: &[],
        attack: send_a_descriptor,
        takes: Takes::Nothing,
    },
    Case {
        name: "make what was written executable",
        layer: Layer::DenyWriteExecute,
        needs: &[],
        attack: make_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "map memory that is writable and executable",
        layer: Layer::DenyWriteExecute,
        needs: &[],
        attack: map_write_execute,
        takes: Takes::Nothing,
    },
    Case {
        name: "make what was written executable, past the kernel's switch",
        layer: Layer::SealedFilter,
        needs: &[],
        attack: make_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "make the range for code that V8 has elsewhere",
        layer: Layer::SealedFilter,
        needs: &[Layer::Seccomp],
        attack: make_code_range,
        takes: Takes::Nothing,
    },
    Case { name: "map code", layer: Layer::SealedFilter, needs: &[], attack: map_executable, takes: Takes::Nothing },
];
