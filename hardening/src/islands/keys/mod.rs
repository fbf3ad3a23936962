//! Memory protection keys (`pkeys(7)`): one for each tenant of a process, and which keys a thread
//! has open.
//!
//! Each page carries one key. A thread can load and store only on pages whose key is open in the
//! thread's register PKRU ([`pkru`]). A tenant's thread has key 0 and its own key open, and V8's
//! key for JIT pages for reading. The keys of other tenants are closed.
//!
//! ```text
//! main thread:   V8 starts (takes its JIT key) ─▶ KeyRing::take ─▶ cages are tagged
//!                  ─▶ Pkru::of_worker_thread ─▶ filter: no more keys
//! tenant thread: starts with all closed ─▶ frozen::pkru_of(its slot) ─▶ filter ─▶ tenant's code
//! ```
//!
//! A worker takes its keys before the filter is installed, and never frees one: pages that still
//! carry a freed key would be open to the next holder of that key. As in Wasmtime's `vm/mpk`, there
//! is one interface with two implementations, [`enabled`] and `disabled`; the system calls are in
//! [`sys`].
//!
//! Keys do not stop native code, because `WRPKRU`, which opens them, is an unprivileged
//! instruction.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod enabled;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod pkru;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sys;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use enabled::{Key, KeyRing, available, delivers_faults, jit_key};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod disabled;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use disabled::{Key, KeyRing, available, delivers_faults, jit_key, pkru};

/// How many keys the processor has besides key 0.
pub const PROCESSOR_KEYS: usize = 15;
/// How many keys are not for tenants: one is V8's, for JIT pages; one is the fault record's
/// ([`crate::fault`]); one stays in reserve.
pub const RESERVED_KEYS: usize = 3;

/// How many tenants of one process can have a key of their own, if a process can take `available`
/// keys.
#[must_use]
pub fn tenants_of(available: usize) -> usize {
    available.min(PROCESSOR_KEYS).saturating_sub(RESERVED_KEYS)
}

/// Why keys could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "{taken} protection keys could be taken, and {wanted} are needed: one for the fault record, one for each tenant"
    )]
    TooFew { taken: usize, wanted: usize },
    #[error("V8 took no protection key for its JIT pages")]
    NoJitKey,
    #[error("a page could not be tagged: errno {0}")]
    Tag(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v8_and_the_fault_record_keep_their_keys_and_one_stays_in_reserve() {
        assert_eq!((tenants_of(15), tenants_of(4), tenants_of(3), tenants_of(0)), (12, 1, 0, 0));
        assert_eq!(tenants_of(99), 12);
    }
}
