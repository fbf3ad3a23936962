//! PKRU: a register of each thread, with two bits for each key. Unprivileged code can write it.
//!
//! Every value that a thread is given starts from [`Pkru::CLOSED`], so a key that was never opened
//! is closed. In this crate only [`Pkru::install`] writes the register.

use std::io;

use super::Key;

/// Which keys a thread may use (Intel SDM, volume 3A, 4.6.2: bit 2k disables access by key k, bit
/// 2k+1 disables writes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pkru(u32);

/// The register set of `PTRACE_GETREGSET` that contains PKRU (linux/elf.h).
const NT_X86_XSTATE: libc::c_int = 0x202;
const ACCESS_DISABLED: u32 = 0b01;
const WRITE_DISABLED: u32 = 0b10;
const BOTH: u32 = 0b11;

impl Pkru {
    /// Key 0 open, everything else closed.
    pub const CLOSED: Self = Self(0xffff_fffc);

    /// For the worker's own threads: key 0, and V8's key for JIT pages for reading.
    #[must_use]
    pub fn of_worker_thread(jit: u8) -> Self {
        Self::CLOSED.open_number_for_reading(jit)
    }

    /// This value, with `key` open too.
    #[must_use]
    pub fn open(self, key: &Key) -> Self {
        self.open_number(key.number())
    }

    /// As [`Self::open`], for a key of which only the number is left.
    pub(crate) fn open_number(self, key: u8) -> Self {
        Self(self.0 & !(BOTH << (2 * u32::from(key & 15))))
    }

    /// This value, with `key` open for reading only. V8's key is open like this while V8
    /// writes no code.
    pub(crate) fn open_number_for_reading(self, key: u8) -> Self {
        Self(self.open_number(key).0 | WRITE_DISABLED << (2 * u32::from(key & 15)))
    }

    /// What the register of the calling thread holds.
    #[must_use]
    pub fn current() -> Self {
        let value: u32;
        // SAFETY: RDPKRU reads a register; ECX must be 0 and EDX is overwritten. Callers run only
        // on machines with keys, so the instruction exists.
        unsafe { std::arch::asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack)) };
        Self(value)
    }

    /// The keys besides 0 whose pages can be read with this value, as a set of bits.
    #[must_use]
    pub fn readable(self) -> u32 {
        (1..16).filter(|key| self.0 >> (2 * key) & ACCESS_DISABLED == 0).fold(0, |set, key| set | 1 << key)
    }

    /// Writes the register. This is the gate: the only function of the crate that does. If code
    /// jumps to its WRPKRU with a forged value in EAX, the next instruction compares EAX with the
    /// register that holds the wanted value, and a mismatch ends the process (the pattern of ERIM,
    /// USENIX Security '19). An attacker who chooses both registers passes: the gate is a hurdle,
    /// not a wall.
    #[inline(never)]
    pub fn install(self) {
        // SAFETY: WRPKRU takes EAX, and ECX and EDX as 0. Without `nomem` the compiler moves no
        // load or store across it.
        unsafe {
            std::arch::asm!(
                "wrpkru",
                "cmp eax, {wanted:e}",
                "je 2f",
                "and rsp, -16",
                "call {wrong}",
                "2:",
                wrong = sym enisle_wrong_value,
                wanted = in(reg) self.0,
                in("eax") self.0,
                in("ecx") 0,
                in("edx") 0,
            );
        };
    }

    /// What the register of another process's thread holds, by `ptrace`: stops the thread for a
    /// moment. For tests.
    ///
    /// # Errors
    /// The thread cannot be traced, or has no such register.
    pub fn of_thread(thread: libc::pid_t) -> io::Result<Self> {
        let check = |result: libc::c_long| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: PTRACE_SEIZE takes no address and no data.
        check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) })?;
        // SAFETY: as above.
        check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing) })?;
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
        let mut state = vec![0_u8; 16 * 1024];
        let mut slice = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
        // SAFETY: the slice names writable memory of its length.
        let read = check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, thread, NT_X86_XSTATE, &raw mut slice) });
        // SAFETY: as above; the thread continues.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, thread, nothing, nothing) };
        read?;
        // PKRU is component 9 (Intel SDM, volume 1, 13.1); CPUID leaf 0xd says where it is.
        let offset = std::arch::x86_64::__cpuid_count(0xd, 9).ebx as usize;
        let bytes = state.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| Self(u32::from_le_bytes(bytes))).ok_or_else(|| io::Error::other("the state is too short"))
    }

    /// The inverse of [`Self::bits`].
    #[must_use]
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The value as a number, for records and messages.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

unsafe extern "C" {
    /// Records that the gate wrote another value than it should have, and ends the process
    /// (`crate::fault`). Linked by its symbol name: `fault` imports this module, because it writes
    /// its record through this gate, so this module must not import `fault`.
    fn enisle_wrong_value() -> !;
}

#[cfg(test)]
mod tests {
    use super::super::enabled::key_for_tests;
    use super::*;

    #[test]
    fn a_value_opens_what_it_names_and_nothing_else() {
        let (own, jit) = (key_for_tests(3), key_for_tests(1));
        let value = Pkru::CLOSED.open(&own).open_number_for_reading(jit.number());
        assert_eq!(value.bits(), 0xffff_ff38);
        assert_eq!(value.readable(), 0b1010);
    }
}
