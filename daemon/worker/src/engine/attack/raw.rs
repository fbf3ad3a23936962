//! The bare instructions. Each is unsound on purpose: that is what an attacker's natives are for.
//! Only runs that request these natives reach the instructions, in builds that cannot be a release.

use std::arch::asm;

/// One byte, from anywhere.
pub(super) fn load(address: u64) -> u8 {
    // SAFETY: none; if the address is bad or its key closed, the fault is what the harness waits
    // for.
    unsafe { (address as *const u8).read_volatile() }
}

/// One byte, to anywhere.
pub(super) fn store(address: u64, byte: u8) {
    // SAFETY: none; as above.
    unsafe { (address as *mut u8).write_volatile(byte) };
}

/// Any system call, with any upper halves of its arguments.
pub(super) fn system_call([number, a, b, c, d, e, f]: [u64; 7]) -> i64 {
    let result: i64;
    // SAFETY: none; the effect of the call is what the harness tests.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
             in("r9") f, lateout("rcx") _, lateout("r11") _);
    };
    result
}

/// A system call by the 32-bit table. LLVM reserves RBX, so it is set by hand.
pub(super) fn system_call_32([number, a, b, c]: [u64; 4]) -> i64 {
    let result: i64;
    // SAFETY: none; as above. RBX is restored.
    unsafe {
        asm!("xchg rbx, {a}", "int 0x80", "xchg rbx, {a}", a = inout(reg) a => _, inlateout("rax") number => result,
             in("rcx") b, in("rdx") c, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    };
    i64::from(i32::try_from(result & 0xffff_ffff).unwrap_or(-1))
}

pub(super) fn pkru() -> u32 {
    enisle_hardening::islands::keys::pkru::Pkru::current().bits()
}

pub(super) fn write_pkru(value: u32) {
    // SAFETY: none; whether the thread can continue with this value is what the harness tests.
    unsafe { asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0) };
}

/// Jumps to the WRPKRU inside the gate, as a chain of returns would, and so skips the instructions
/// before it, which load the value that the gate's caller wanted. Returns PKRU if the gate returns.
pub(super) fn call_gate(value: u32) -> u32 {
    let gate = enisle_hardening::islands::keys::pkru::Pkru::install as *const () as usize;
    // WRPKRU is 0f 01 ef; the gate is a few dozen bytes long.
    let at = (gate..gate + 128)
        .find(|at| load(*at as u64) == 0x0f && load(*at as u64 + 1) == 0x01 && load(*at as u64 + 2) == 0xef);
    let Some(at) = at else { return 0 };
    let other = u64::from(!value);
    // SAFETY: none; whichever register the compiler has the gate compare holds another value than
    // `value`, so the gate does not return. An attacker who can choose that register too passes, as
    // `Pkru::install` says.
    unsafe {
        asm!("push rax", "call r11", "pop rcx", inlateout("r11") at => _, inlateout("eax") value => _, inlateout("ecx") 0 => _,
             inlateout("edx") 0 => _, inlateout("rsi") other => _, inlateout("rdi") other => _, inlateout("r8") other => _,
             inlateout("r9") other => _, inlateout("r10") other => _);
    };
    pkru()
}

/// Puts `bytes` into executable memory, and calls them.
pub(super) fn execute(bytes: &[u8]) -> i64 {
    let protection = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).cast_unsigned();
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
    let number = libc::SYS_mmap.cast_unsigned();
    let page = system_call([number, 0, 4096, protection.into(), flags.into(), u64::MAX, 0]);
    if page < 0 {
        return page;
    }
    for (address, byte) in (page.cast_unsigned()..).zip(bytes) {
        store(address, *byte);
    }
    // SAFETY: none; the page holds what the harness wants to execute.
    let code: extern "C" fn() -> i64 = unsafe { std::mem::transmute(page as *const ()) };
    code()
}

/// The heap address of an object: a handle is a pointer to the tagged address.
pub(super) fn heap_address(value: v8::Local<'_, v8::Value>) -> u64 {
    const { assert!(size_of::<v8::Local<'_, v8::Value>>() == size_of::<*const u64>()) };
    // SAFETY: a Local is one pointer, to a slot with the object's address and a tag in its lowest
    // bit.
    let slot: *const u64 = unsafe { std::mem::transmute_copy(&value) };
    // SAFETY: the slot lives as long as the handle.
    unsafe { slot.read() & !1 }
}

pub(super) fn isolate_address(isolate: &v8::Isolate) -> u64 {
    // SAFETY: the pointer is only read.
    let raw = unsafe { isolate.as_raw_isolate_ptr() };
    const { assert!(size_of::<v8::UnsafeRawIsolatePtr>() == size_of::<u64>()) };
    // SAFETY: UnsafeRawIsolatePtr is one pointer.
    unsafe { std::mem::transmute_copy(&raw) }
}

/// Maps `bytes` where V8 would for this tenant, and keeps them.
pub(super) fn hold(bytes: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping where nothing was mapped affects no other memory.
    let at = unsafe {
        crate::engine::memory::mappings::v8_tenant_mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0)
    };
    at != libc::MAP_FAILED
}

/// Takes `bytes` from libc, touches every page of them, and keeps them.
pub(super) fn leak(bytes: usize) -> bool {
    // SAFETY: malloc has no preconditions.
    let at = unsafe { libc::malloc(bytes) }.cast::<u8>();
    if at.is_null() {
        return false;
    }
    for page in (0..bytes).step_by(4096) {
        store(at as u64 + page as u64, 1);
    }
    true
}
