//! Loads and stores that survive a fault, so that one process can make ten thousand of them; and a
//! forged signal frame.
//!
//! The handler of hardening ends the process at the first fault. In this build another handler runs
//! before it and checks where the fault was. If the fault was in the load or the store below, the
//! thread continues, without `rt_sigreturn`, which the filter refuses. Any other fault goes on to
//! the handler of hardening.

use std::arch::global_asm;
use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use enisle_hardening::process::siginfo::SEGV_PKUERR;

use super::raw;

global_asm!(
    ".globl attack_probe_load",
    "attack_probe_load:",
    "mov al, [rdi]",
    "xor eax, eax",
    "ret",
    ".globl attack_probe_store",
    "attack_probe_store:",
    "lock or byte ptr [rdi], 0",
    "xor eax, eax",
    "ret",
    // Continues after a fault in one of the above, with the registers that RDI points to and 1 as
    // the result.
    ".globl attack_resume",
    "attack_resume:",
    "mov rbx, [rdi + 8 * 11]",
    "mov rbp, [rdi + 8 * 10]",
    "mov r12, [rdi + 8 * 4]",
    "mov r13, [rdi + 8 * 5]",
    "mov r14, [rdi + 8 * 6]",
    "mov r15, [rdi + 8 * 7]",
    "mov rsp, [rdi + 8 * 15]",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn attack_probe_load(address: u64) -> u32;
    fn attack_probe_store(address: u64) -> u32;
    fn attack_resume(registers: *const i64) -> !;
}

thread_local! {
    static KEY: Cell<i32> = const { Cell::new(0) };
    static PKRU: Cell<u32> = const { Cell::new(0) };
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

static BEHIND: OnceLock<Handler> = OnceLock::new();

/// The key that stopped a load, 0 for another fault, -1 if the load succeeded.
pub(super) fn load(address: u64) -> i32 {
    probed(|| {
        // SAFETY: none; a fault returns 1.
        unsafe { attack_probe_load(address) }
    })
}

/// The same for a store that changes nothing.
pub(super) fn store(address: u64) -> i32 {
    probed(|| {
        // SAFETY: none; a fault returns 1.
        unsafe { attack_probe_store(address) }
    })
}

fn probed(probe: impl Fn() -> u32) -> i32 {
    PKRU.set(raw::pkru());
    if probe() == 0 { -1 } else { KEY.get() }
}

/// Installs the handler that runs before hardening's.
pub(crate) fn survive_probes() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: hardening has installed a handler of this type.
    let _ = BEHIND.set(unsafe { std::mem::transmute::<usize, Handler>(before.sa_sigaction) });
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid context.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers.get(usize::try_from(libc::REG_RIP).unwrap_or(0)).copied().unwrap_or(0);
    let probes = [attack_probe_load as *const () as i64, attack_probe_store as *const () as i64];
    if probes.contains(&at) {
        // SAFETY: the kernel passes a valid siginfo, which is 128 bytes long: code in word 2, key
        // in word 8.
        let words = unsafe { &*info.cast::<[i32; 32]>() };
        let (code, key) = (words[2], words[8]);
        KEY.set(if code == SEGV_PKUERR { key } else { 0 });
        raw::write_pkru(PKRU.get());
        // SAFETY: the registers are those of a probe that has touched nothing yet.
        unsafe { attack_resume(registers.as_ptr()) };
    }
    if let Some(behind) = BEHIND.get() {
        behind(signal, info, context);
    }
}

/// Raises a real signal, puts this PKRU value into the frame in the signal's handler, and returns
/// through the frame. Returns the PKRU value after that. With the filter on, each system call that
/// this takes is refused.
pub(super) fn forge_sigreturn(value: u32) -> u32 {
    PKRU.set(value);
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = change_frame as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler changes its own frame only.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(libc::SIGUSR1) };
    raw::pkru()
}

/// Where PKRU is in a frame's extended state. That depends on the processor, because AVX-512's
/// state may come before it; CPUID leaf 0xd, 9 says where.
fn pkru_offset() -> usize {
    std::arch::x86_64::__cpuid_count(0xd, 9).ebx as usize
}

extern "C" fn change_frame(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid context.
    let state = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.fpregs }.cast::<u8>();
    // SAFETY: none; on a processor with keys the frame includes PKRU.
    let state = unsafe { std::slice::from_raw_parts_mut(state, pkru_offset() + 4) };
    // XSTATE_BV, after the 512 bytes of the legacy area: bit 9 says that PKRU is present.
    state[512 + 1] |= 1 << 1;
    let at = state.len() - 4;
    state[at..].copy_from_slice(&PKRU.get().to_le_bytes());
}
