//! Where V8's mappings go.
//!
//! The archive calls [`v8_tenant_mmap`] where it would call libc's `mmap`
//! (`v8/patches/13-mapping-hook.patch`). A mapping of a tenant's thread is put on its island and
//! tagged with its key. For every other thread the function is the plain system call. libc's own
//! `malloc` does not call it: all tenants of the process share libc's memory, which carries no key.
//!
//! So every mapping of V8 for a tenant is tagged, whichever part of V8 makes it: pointer tables of
//! each isolate, the code range, the trusted range. Pages that V8 replaces (`MAP_FIXED`, which
//! drops a key) are tagged again. `v8/patches/01-tenant-groups.patch` also tags the sandbox and the
//! trusted range. So these two are tagged twice.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::ops::Range;

use enisle_hardening::islands::Island;
use libc::{c_int, c_long, off_t, size_t};

use super::oversized;

/// From this size on a mapping is V8's sandbox: nothing else is nearly as large.
const SANDBOX_FROM: usize = 1 << 40;
/// How far the search advances when an address is taken.
const STEP: usize = 1 << 30;
/// V8 reserves the lowest addresses, so that nothing else is mapped there, and begins at 1 MiB at
/// most (v8/src/sandbox/sandbox.cc). A hint below this bound is for that. Any other hint may be
/// ignored, because V8 draws it at random.
const LOW: usize = 2 << 20;
const PAGE: usize = enisle_hardening::process::PAGE_BYTES;

/// The island that a thread's mappings go to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home {
    island: Island,
    key: Option<u8>,
    /// Where in the island's window the next mapping is tried. It only advances, until it starts
    /// over, so addresses that were unmapped are not reused soon.
    next: usize,
}

thread_local! {
    static HOME: Cell<Option<Home>> = const { Cell::new(None) };
}

/// The arguments of `mmap(2)`, without the address.
#[derive(Debug, Clone, Copy)]
struct Request {
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
}

impl Request {
    fn anonymous(bytes: usize, protection: c_int, flags: c_int) -> Self {
        Self { bytes, protection, flags: flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, fd: -1, offset: 0 }
    }

    /// Makes the system call. A failure is `MAP_FAILED`, with the reason in errno.
    ///
    /// # Safety
    /// As for `mmap(2)`.
    unsafe fn at(self, hint: usize) -> *mut c_void {
        let Self { bytes, protection, flags, fd, offset } = self;
        // SAFETY: the caller keeps this function's contract.
        let mapped = unsafe { libc::syscall(libc::SYS_mmap, hint, bytes, protection, flags, fd, offset) };
        mapped as *mut c_void
    }

    /// Maps exactly at `start`, or fails if anything is mapped there.
    fn place_at(self, start: usize) -> *mut c_void {
        let request = Self { flags: self.flags | libc::MAP_FIXED_NOREPLACE, ..self };
        // SAFETY: with NOREPLACE the mapping touches no other one.
        unsafe { request.at(start) }
    }
}

impl Home {
    /// `random` decides where in the window mappings begin.
    pub(super) fn new(island: Island, key: Option<u8>, random: u64) -> Self {
        let window = island.window();
        let start = usize::try_from(random).unwrap_or(0) % (window.len() / 2);
        Self { island, key, next: window.start + start / PAGE * PAGE }
    }
}

/// From now on this thread's mappings go to that island; with `None`, anywhere. Returns where they
/// went before.
pub(super) fn move_to(home: Option<Home>) -> Option<Home> {
    HOME.replace(home)
}

/// Whether an address is on the calling thread's island.
pub(super) fn is_home(address: usize) -> bool {
    HOME.get().is_some_and(|home| home.island.range().contains(&address))
}

/// Maps the stack of an island's thread.
pub(super) fn map_stack(home: &Home) -> io::Result<Range<usize>> {
    let stack = home.island.stack();
    let request = Request::anonymous(stack.len(), libc::PROT_READ | libc::PROT_WRITE, libc::MAP_STACK);
    if request.place_at(stack.start) as usize == stack.start { Ok(stack) } else { Err(io::Error::last_os_error()) }
}

/// Maps pages that every thread can use, where nothing is mapped; null if that fails.
pub(super) fn map_at(start: usize, bytes: usize) -> *mut u8 {
    let mapped = Request::anonymous(bytes, libc::PROT_READ | libc::PROT_WRITE, 0).place_at(start);
    if mapped == libc::MAP_FAILED { std::ptr::null_mut() } else { mapped.cast() }
}

/// Unmaps everything that is left on an island.
///
/// # Safety
/// The thread that lived there has been joined, and nothing on the island is used any more.
pub(super) unsafe fn sweep(island: Island) {
    let range = island.range();
    // SAFETY: the caller keeps this function's contract; the range is the island and nothing else.
    unsafe { libc::munmap(range.start as *mut c_void, range.len()) };
}

/// Keeps a range of addresses free while V8 chooses addresses for itself. Dropping the value gives
/// the range back.
#[derive(Debug)]
pub(crate) struct Reserved(Range<usize>);

impl Reserved {
    pub(in crate::engine) fn new(range: Range<usize>) -> io::Result<Self> {
        let at = Request::anonymous(range.len(), libc::PROT_NONE, libc::MAP_NORESERVE).place_at(range.start);
        if at as usize == range.start { Ok(Self(range)) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and nothing uses it.
        unsafe { libc::munmap(self.0.start as *mut c_void, self.0.len()) };
    }
}

/// `mmap(2)`.
///
/// # Safety
/// As for the system call.
#[unsafe(no_mangle)]
pub(in crate::engine) unsafe extern "C" fn v8_tenant_mmap(
    hint: *mut c_void,
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let request = Request { bytes, protection, flags, fd, offset };
    let Some(home) = HOME.get() else {
        // SAFETY: the caller keeps this function's contract.
        return unsafe { request.at(hint as usize) };
    };
    let chosen = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
    let at_home =
        if chosen { home.island.range().contains(&(hint as usize)) } else { !(1..LOW).contains(&(hint as usize)) };
    // Pages get no tag if the tenant has no key, nor outside the island, where V8 replaces pages
    // that all tenants of the process share.
    let Some(key) = home.key.filter(|_| at_home) else {
        return if chosen || !at_home {
            // SAFETY: the caller keeps this function's contract.
            unsafe { request.at(hint as usize) }
        } else {
            home.place(request)
        };
    };
    // No access until the page has its key.
    let closed = Request { protection: libc::PROT_NONE, ..request };
    let mapped = if chosen {
        // SAFETY: the caller keeps this function's contract.
        unsafe { closed.at(hint as usize) }
    } else {
        home.place(closed)
    };
    // SAFETY: the pages were mapped just now, for a thread that has the key open.
    if mapped != libc::MAP_FAILED && !unsafe { tag(mapped as usize, bytes, protection, key) } {
        // SAFETY: as above; nothing has seen them yet.
        unsafe { libc::munmap(mapped, bytes) };
        return libc::MAP_FAILED;
    }
    mapped
}

impl Home {
    /// Maps what V8 lets the worker place: a sandbox at its reserved address, everything else in
    /// the window. Stores how far the search got.
    fn place(mut self, request: Request) -> *mut c_void {
        let mapped = if request.bytes >= SANDBOX_FROM {
            request.place_at(self.island.sandbox().start)
        } else {
            self.search(request)
        };
        HOME.set(Some(self));
        mapped
    }

    /// Tries addresses in the window, once around, until one is free.
    fn search(&mut self, request: Request) -> *mut c_void {
        let window = self.island.window();
        let bytes = request.bytes.next_multiple_of(PAGE);
        for _ in 0..=window.len() / STEP {
            if self.next + bytes > window.end {
                self.next = window.start;
            }
            let mapped = request.place_at(self.next);
            if mapped != libc::MAP_FAILED {
                self.next += bytes;
                return mapped;
            }
            if nix::errno::Errno::last() != nix::errno::Errno::EEXIST {
                break;
            }
            self.next += STEP;
        }
        libc::MAP_FAILED
    }
}

/// V8 commits pages with `mprotect`. The worker replaces libc's function, to learn where an
/// oversized object is ([`super::oversized`]).
///
/// # Safety
/// As for the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn mprotect(start: *mut c_void, bytes: size_t, protection: c_int) -> c_int {
    // SAFETY: the caller keeps this function's contract. A failure is -1, with the reason in errno.
    let result = unsafe { libc::syscall(libc::SYS_mprotect, start, bytes, protection) };
    committed(result, start as usize, bytes, protection)
}

/// Like [`mprotect`].
///
/// # Safety
/// As for the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn pkey_mprotect(start: *mut c_void, bytes: size_t, protection: c_int, key: c_int) -> c_int {
    // SAFETY: the caller keeps this function's contract. A failure is -1, with the reason in errno.
    let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, start, bytes, protection, key) };
    committed(result, start as usize, bytes, protection)
}

/// Whether the linker has used [`mprotect`] in place of libc's function. If not, the worker does
/// not notice what V8 commits.
pub(super) fn sees_commits() -> bool {
    libc::mprotect as *const () == mprotect as *const ()
}

fn committed(result: c_long, start: usize, bytes: usize, protection: c_int) -> c_int {
    if result == 0 && protection & libc::PROT_WRITE != 0 && oversized::is_expected(bytes) {
        let sandbox = HOME.get().map(|home| home.island.sandbox());
        if sandbox.is_some_and(|sandbox| sandbox.contains(&start)) {
            oversized::is_at(start, bytes);
        }
    }
    if result == 0 { 0 } else { -1 }
}

/// Gives pages a key and a protection. False if the kernel refuses.
///
/// # Safety
/// The pages are mapped, nothing relies on another protection of theirs, and every thread that uses
/// them has the key open.
unsafe fn tag(start: usize, bytes: usize, protection: c_int, key: u8) -> bool {
    // SAFETY: the caller keeps this function's contract.
    let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, start, bytes, protection, c_int::from(key)) };
    result == 0
}
