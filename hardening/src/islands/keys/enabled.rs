//! Keys on x86-64.

use std::ops::Range;

use super::pkru::Pkru;
use super::{KeyError, sys};
use crate::process::siginfo::{Info, SEGV_PKUERR};
use crate::process::spawn::clone_args;

/// A key of this process, allocated and never freed. There is only one value for each key, and
/// whoever holds this value owns the pages that carry the key.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Key(u8);

impl Key {
    /// The number that the kernel and V8 use for the key.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.0
    }

    /// Tags `pages` and gives them `protection`.
    ///
    /// # Safety
    /// The pages are mapped, nothing relies on their having another protection, and every thread
    /// that touches them from now on has this key open.
    ///
    /// # Errors
    /// The kernel refuses.
    pub unsafe fn tag(&self, pages: &Range<usize>, protection: libc::c_int) -> Result<(), KeyError> {
        // SAFETY: the caller keeps this function's contract.
        unsafe { sys::tag(pages, protection, self.0) }.map_err(KeyError::Tag)
    }
}

/// The keys of one worker process.
#[derive(Debug)]
pub struct KeyRing {
    jit: u8,
    record: Key,
    tenants: Vec<Key>,
}

impl KeyRing {
    /// Takes one key for the fault record and one for each of `tenants`. Call it on the main
    /// thread, after V8 has started and while there is no other thread. The keys stay open for the
    /// main thread until it calls [`Pkru::install`].
    ///
    /// # Errors
    /// Too few keys are left, or V8 has taken none.
    pub fn take(tenants: usize) -> Result<Self, KeyError> {
        let jit = jit_key().ok_or(KeyError::NoJitKey)?;
        let wanted = tenants + 1;
        let mut keys: Vec<_> = std::iter::from_fn(|| sys::alloc().map(Key)).take(wanted).collect();
        let taken = keys.len();
        match keys.pop() {
            Some(record) if taken == wanted => Ok(Self { jit, record, tenants: keys }),
            _ => Err(KeyError::TooFew { taken, wanted }),
        }
    }

    /// V8's key, the fault record's, the tenants'.
    #[must_use]
    pub fn split(self) -> (u8, Key, Vec<Key>) {
        (self.jit, self.record, self.tenants)
    }
}

/// The key that V8 has taken for its JIT pages. Call this on the main thread before anything else
/// takes a key. V8 takes one on every machine with keys, even if the tenants get none.
#[must_use]
pub fn jit_key() -> Option<u8> {
    // OSPKE, CPUID leaf 7: without this bit, RDPKRU is an illegal instruction.
    if std::arch::x86_64::__cpuid_count(7, 0).ecx & 1 << 4 == 0 {
        return None;
    }
    // A thread starts with every key but 0 closed, and `pkey_alloc` opens the key that it
    // allocates. So the one key that is open now is V8's.
    let open = Pkru::current().readable();
    (open.count_ones() == 1).then(|| u8::try_from(open.trailing_zeros()).unwrap_or(0))
}

/// How many keys this process can still take. In a process without V8, which has taken none, that
/// is how many a worker can take, V8's included.
#[must_use]
pub fn available() -> usize {
    let keys: Vec<_> = std::iter::from_fn(sys::alloc).collect();
    for key in &keys {
        sys::free(*key);
    }
    keys.len()
}

/// Whether this kernel delivers a fault on a closed key as the fault handler needs it: on a stack
/// with key 0, with the code and the key in the siginfo, and with every other key closed while the
/// handler runs. Kernels before 6.12 lost the signal if the key of the signal stack was closed. The
/// function tries the delivery, and does not look at the kernel's version. A child process causes
/// the fault, because the process that causes it ends whether or not the signal is delivered.
#[must_use]
pub fn delivers_faults() -> bool {
    let mut args = clone_args(0, 0);
    // SAFETY: a valid clone_args of the size given, without CLONE_VM: the child has a copy of
    // everything, makes system calls through libc's thin wrappers, and exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => fault_on_a_closed_key(),
        Ok(pid) if pid > 0 => matches!(
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None),
            Ok(nix::sys::wait::WaitStatus::Exited(_, AS_EXPECTED))
        ),
        _ => false,
    }
}

const AS_EXPECTED: i32 = 42;

/// The child's part: it tags a page with a key, closes the key and loads from the page.
fn fault_on_a_closed_key() -> ! {
    let stack_bytes = 64 * 1024;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let map = |bytes| {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other
        // memory.
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) }
    };
    let (stack, page) = (map(stack_bytes), map(4096));
    let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: stack_bytes };
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = check_and_exit as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `stack` names memory of the size given that nothing else uses.
    let on_stack = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    // SAFETY: the handler makes system calls only.
    let handled = unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) };
    if let (0, 0, Some(key)) = (on_stack, handled, sys::alloc()) {
        let key = Key(key);
        // SAFETY: the page was mapped above and nothing else uses it.
        if unsafe { key.tag(&(page as usize..page as usize + 4096), libc::PROT_READ) }.is_ok() {
            Pkru::CLOSED.install();
            // SAFETY: the address is mapped and readable. Its key is closed, so the load faults,
            // as intended.
            unsafe { page.cast::<u8>().read_volatile() };
        }
    }
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(1) }
}

extern "C" fn check_and_exit(_: libc::c_int, info: *const Info, _: *const libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, which is at least as large as `Info`.
    let info = unsafe { &*info };
    let closed = Pkru::current().readable() == 0;
    let as_expected = info.code == SEGV_PKUERR && info.key > 0 && closed;
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(if as_expected { AS_EXPECTED } else { 1 }) };
}

#[cfg(test)]
pub(super) fn key_for_tests(number: u8) -> Key {
    Key(number)
}
