//! The handler of every signal that a fault can raise: it writes one record, calls `last_words` if
//! V8 or libc has given up, and ends the process.

use std::io;
use std::ptr;
use std::sync::atomic::Ordering;

use super::own::{note_computed, open_page};
use super::page::{EMPTY, NO_SLOT, OUT_OF_MEMORY, WRITING, WRITTEN, WRONG_KEYS};
use super::room::room;
use crate::islands::frozen::FROZEN;
use crate::process::siginfo::Info;

/// The exit code of a worker after a recorded fault.
pub const FAULT_EXIT: i32 = 88;

const SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];

/// Takes over every signal that a fault can raise. Call this before the filter is installed,
/// because afterwards no handler can be changed. `last_words` runs in the handler when V8 or libc
/// has given up. Like the handler it must be async-signal-safe (signal-safety(7)): no lock, no
/// allocation, no first use of a thread-local that has a destructor.
///
/// # Errors
/// The kernel refuses.
pub fn handle(last_words: extern "C" fn()) -> io::Result<()> {
    FROZEN.last_words.store(last_words as *mut libc::c_void, Ordering::Release);
    for signal in SIGNALS {
        // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler itself only uses atomics and makes system calls; `last_words`, which
        // it also calls, must be async-signal-safe by this function's contract.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *const Info, context: *const libc::c_void) {
    record(signal, info, context);
    if matches!(signal, libc::SIGILL | libc::SIGTRAP | libc::SIGABRT) {
        let last_words = FROZEN.last_words.load(Ordering::Acquire);
        if !last_words.is_null() {
            // SAFETY: `handle` stored a function of this type, and nothing else is ever stored.
            let last_words = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(last_words) };
            last_words();
        }
    }
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(FAULT_EXIT) };
}

/// Records that the calling thread has keys open that it should not have, and ends the process.
pub fn wrong_keys() -> ! {
    let info = Info::with_code(WRONG_KEYS);
    record(libc::SIGABRT, &raw const info, ptr::null());
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(FAULT_EXIT) };
}

/// The gate of [`crate::islands::keys::pkru`] calls this function by its symbol name.
#[unsafe(no_mangle)]
extern "C" fn enisle_wrong_value() -> ! {
    wrong_keys()
}

/// Records that V8 has run out of memory on the calling thread. The process must end next.
pub fn out_of_memory() {
    let info = Info::with_code(OUT_OF_MEMORY);
    record(libc::SIGABRT, &raw const info, ptr::null());
}

/// Whether an address is in the code of libc's allocator. The allocator's functions lie side by
/// side: `malloc`, the other exported ones after it, and the internal ones before it.
fn is_in_allocator(pc: u64) -> bool {
    const BEFORE: u64 = 12 << 10;
    const AFTER: u64 = 4 << 10;
    let (first, last) = (libc::malloc as *const () as u64, libc::posix_memalign as *const () as u64);
    (first.saturating_sub(BEFORE)..last.max(first) + AFTER).contains(&pc)
}

/// How many times the second thread to fault checks whether the first has written its record. All
/// the checks together take about 10 ms.
const PATIENCE: u32 = 1 << 20;

fn record(signal: libc::c_int, info: *const Info, context: *const libc::c_void) {
    let Some(raw) = open_page() else { return };
    let slot = note_computed(raw);
    if raw.state.compare_exchange(EMPTY, WRITING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // The second thread must not end the process while the first is still writing.
        for _ in 0..PATIENCE {
            if raw.state.load(Ordering::Acquire) == WRITTEN {
                return;
            }
            std::hint::spin_loop();
        }
        return;
    }
    // SAFETY: the kernel, `wrong_keys` and `out_of_memory` pass a valid siginfo, which is at least
    // as large as `Info`.
    let info = unsafe { &*info };
    raw.signal.store(signal, Ordering::Relaxed);
    raw.code.store(info.code, Ordering::Relaxed);
    raw.address.store(info.address, Ordering::Relaxed);
    raw.key.store(info.key, Ordering::Relaxed);
    raw.call.store(info.call, Ordering::Relaxed);
    raw.slot.store(slot.and_then(|slot| u32::try_from(slot).ok()).unwrap_or(NO_SLOT), Ordering::Relaxed);
    let pc = program_counter(context);
    raw.pc.store(pc, Ordering::Relaxed);
    raw.in_allocator.store(is_in_allocator(pc).into(), Ordering::Relaxed);
    raw.room.store(room() as u64, Ordering::Relaxed);
    raw.state.store(WRITTEN, Ordering::Release);
}

#[cfg(target_arch = "x86_64")]
fn program_counter(context: *const libc::c_void) -> u64 {
    if context.is_null() {
        return 0;
    }
    // SAFETY: with SA_SIGINFO the third argument is a valid ucontext.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    registers.get(usize::try_from(libc::REG_RIP).unwrap_or(0)).map_or(0, |pc| pc.cast_unsigned())
}

#[cfg(not(target_arch = "x86_64"))]
fn program_counter(_: *const libc::c_void) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocator_code_is_distinguished_from_other_code_of_libc() {
        for function in [libc::malloc as *const (), libc::free as *const (), libc::realloc as *const ()] {
            assert!(is_in_allocator(function as u64));
        }
        for function in [libc::memcpy as *const (), libc::getpid as *const (), room as *const ()] {
            assert!(!is_in_allocator(function as u64));
        }
    }
}
