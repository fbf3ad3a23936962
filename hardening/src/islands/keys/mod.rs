//! Memory protection keys (`pkeys(7)`): one for each tenant of a process, and which of them a
//! thread has open.
//!
//! A key names pages; a register of the thread (PKRU, [`pkru`]) says which keys its loads and
//! stores may use. A tenant's thread has key 0, its own key and V8's key for JIT pages; a key of
//! another tenant is closed to it at all times.
//!
//! ```text
//! main thread:   V8 starts (takes its JIT key) ─▶ KeyRing::take ─▶ cages are tagged
//!                  ─▶ Pkru::of_worker_thread ─▶ filter: no more keys
//! tenant thread: starts with all closed ─▶ frozen::pkru_of(its slot) ─▶ filter ─▶ tenant's code
//! ```
//!
//! Keys are taken before the filter is installed, and never freed: a freed key that is allocated
//! again opens old pages. Shape after Wasmtime's `vm/mpk`: one interface, [`enabled`] or `disabled`
//! behind it, the kernel in [`sys`].
//!
//! Keys do not stop native code: `WRPKRU` is an ordinary instruction.

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

/// The keys of the processor besides key 0.
pub const PROCESSOR_KEYS: usize = 15;
/// One is V8's, for JIT pages; one is the fault record's ([`crate::fault`]); one stays in reserve.
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
