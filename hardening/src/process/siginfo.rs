//! What the kernel reports about a fault (`sigaction(2)`).

/// `si_code` of a load or store refused by a closed key (`sigaction(2)`).
pub const SEGV_PKUERR: i32 = 4;

/// The kernel's `siginfo_t` (asm-generic/siginfo.h) with the fields of a fault. libc does not name
/// all of them. The signal determines which fields have a meaning.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Info {
    signal: libc::c_int,
    errno: libc::c_int,
    pub(crate) code: libc::c_int,
    _padding: libc::c_int,
    /// `si_addr`, `si_call_addr`.
    pub(crate) address: u64,
    /// `si_syscall`.
    pub(crate) call: libc::c_int,
    /// `si_arch`.
    architecture: u32,
    /// `si_pkey`.
    pub(crate) key: u32,
}

impl Info {
    /// For a record that does not come from a signal.
    pub(crate) fn with_code(code: libc::c_int) -> Self {
        Self { code, ..Self::default() }
    }
}
