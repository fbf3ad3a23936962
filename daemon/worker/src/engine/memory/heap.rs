//! A tenant's own heap, on its island: what Rust allocates for the tenant (code, `env`, arguments,
//! log lines and results), and what V8 requests from `malloc` ([`super::hooks`]).
//!
//! While a tenant's thread is in [`private`], what Rust allocates comes from this heap. Otherwise
//! Rust allocates from libc, whose memory all tenants share and which carries no key.
//! [`super::mappings`] puts the heap's pages on the tenant's island and tags them, and the pages
//! count on the tenant's account ([`super::account`]). Memory that is freed goes back to the
//! allocator that its address belongs to. If a thread's Rust code frees memory on another thread's
//! island, the process ends; what V8 frees there stays until the island is unmapped. Memory that
//! other threads must read too is allocated outside the islands.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use dlmalloc::Dlmalloc;
use enisle_hardening::islands::frozen;

use super::{account, mappings};

/// The worker's allocator.
#[derive(Debug)]
pub struct Heap;

/// Takes pages on the calling thread's island.
struct Pages;

/// What the heap takes from the island at a time. Larger allocations are mappings of their own, so
/// every other allocation fits into a segment.
const SEGMENT: usize = 256 << 10;
const PAGE: usize = enisle_hardening::process::PAGE_BYTES;

thread_local! {
    static OWN: Cell<*mut Dlmalloc<Pages>> = const { Cell::new(ptr::null_mut()) };
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
    /// Blocks of [`take`] that have not been given back.
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
}

/// Whether an address is on an island, and so from the heap of the thread that lives there.
fn on_an_island(memory: *mut u8) -> bool {
    frozen::is_in_zone(memory as usize)
}

/// Gives the calling thread a heap on its island, where the thread's mappings go by now. False if
/// there is no memory for the heap.
pub(super) fn open() -> bool {
    const { assert!(size_of::<Dlmalloc<Pages>>() <= PAGE) };
    let heap = map(PAGE).cast::<Dlmalloc<Pages>>();
    if heap.is_null() {
        return false;
    }
    // SAFETY: the page was mapped for this, is large enough and aligned for anything, and stays as
    // long as the thread.
    unsafe { heap.write(Dlmalloc::new_with_allocator(Pages)) };
    OWN.set(heap);
    true
}

/// Pages on the calling thread's island, or null.
fn map(bytes: usize) -> *mut u8 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the mapping goes to a free address on the island, so it touches no other one.
    let memory = unsafe { mappings::v8_tenant_mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED { ptr::null_mut() } else { memory.cast() }
}

/// Like [`map`], on the tenant's account.
fn map_counted(bytes: usize) -> *mut u8 {
    account::take_native(bytes);
    let memory = map(bytes);
    if memory.is_null() {
        account::give_back_native(bytes);
    }
    memory
}

/// # Safety
/// Pages of [`map_counted`] in which nothing is live any more.
unsafe fn unmap_counted(memory: *mut u8, bytes: usize) -> bool {
    // SAFETY: the caller keeps this function's contract.
    let unmapped = unsafe { libc::munmap(memory.cast(), bytes) } == 0;
    if unmapped {
        account::give_back_native(bytes);
    }
    unmapped
}

/// From this size on an allocation is a mapping of its own, which goes back to the kernel when it
/// is freed.
const MAPPED_FROM: usize = SEGMENT;

/// A block of `bytes` of the calling thread's own heap; `None` if the thread has no heap, null if
/// there is no memory.
pub(super) fn take(bytes: usize, align: usize) -> Option<*mut c_void> {
    let before = Head::room(align);
    let whole = bytes.checked_add(before)?;
    let base = with_own(|heap| {
        if whole >= MAPPED_FROM && align <= PAGE {
            map_counted(whole.next_multiple_of(PAGE))
        } else {
            // SAFETY: the size is not zero, the alignment a power of two.
            unsafe { heap.malloc(whole, align.max(HEAD)) }
        }
    })?;
    BLOCKS.set(BLOCKS.get() + usize::from(!base.is_null()));
    // SAFETY: `whole` bytes begin at `base`, if it is not null.
    Some(unsafe { Head::write(base, before, bytes, account::slot()) })
}

/// How many blocks of [`take`] the calling thread still has.
pub(super) fn blocks() -> usize {
    BLOCKS.get()
}

/// Frees a block of [`take`]. False if the block is not on an island.
///
/// # Safety
/// As for `free`.
pub(super) unsafe fn give_back(block: *mut c_void) -> bool {
    if !on_an_island(block.cast()) {
        return false;
    }
    // A block on another thread's island is not freed: only that thread may use its heap, which is
    // unmapped with the island.
    if !mappings::is_home(block as usize) {
        return true;
    }
    with_own(|heap| {
        // SAFETY: only `take` returns blocks on an island, each with a head.
        let (head, base) = unsafe { Head::of(block) };
        BLOCKS.set(BLOCKS.get() - 1);
        let whole = head.bytes + head.before as usize;
        if whole >= MAPPED_FROM && head.before as usize <= PAGE {
            // SAFETY: `take` mapped this many whole pages there.
            unsafe { unmap_counted(base, whole.next_multiple_of(PAGE)) };
        } else {
            // SAFETY: the block is this heap's.
            unsafe { heap.c_free(base) };
        }
    });
    true
}

/// The size of a block of [`take`]. `None` if the block is not on an island.
///
/// # Safety
/// The block is live.
pub(super) unsafe fn size(block: *mut c_void) -> Option<usize> {
    // SAFETY: only `take` returns blocks on an island, each with a head.
    on_an_island(block.cast()).then(|| unsafe { Head::of(block) }.0.bytes)
}

/// Gives back to the kernel the pages in which nothing is live any more.
pub(super) fn trim() {
    // SAFETY: the heap is whole: no other call of it is in progress.
    with_own(|heap| unsafe { heap.trim(0) });
}

/// Precedes a block that C or C++ was given.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Head {
    pub(super) bytes: usize,
    /// Bytes from the start of the allocation to the block.
    before: u32,
    /// The slot whose account the block is on.
    pub(super) slot: u32,
}

const HEAD: usize = size_of::<Head>();

impl Head {
    /// Bytes in front of a block of this alignment.
    pub(super) fn room(align: usize) -> usize {
        align.max(HEAD)
    }

    /// Writes the head of the block that begins `before` bytes after `base`, and returns the block;
    /// null stays null.
    ///
    /// # Safety
    /// `before` came from [`Self::room`], and `bytes` bytes begin at `base`, which is aligned for
    /// the block.
    pub(super) unsafe fn write(base: *mut u8, before: usize, bytes: usize, slot: u32) -> *mut c_void {
        if base.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps this function's contract.
        let block = unsafe { base.add(before) };
        let head = Self { bytes, before: u32::try_from(before).unwrap_or(0), slot };
        // SAFETY: the room in front of the block is at least a head long.
        let at = unsafe { block.cast::<Self>().sub(1) };
        // SAFETY: as above; the block, and so its head, is aligned for a head.
        unsafe { at.write(head) };
        block.cast()
    }

    /// The head of a block, and the start of its allocation.
    ///
    /// # Safety
    /// [`Self::write`] made the block, and it is live.
    pub(super) unsafe fn of(block: *mut c_void) -> (Self, *mut u8) {
        // SAFETY: the caller keeps this function's contract.
        let at = unsafe { block.cast::<Self>().sub(1) };
        // SAFETY: as above.
        let head = unsafe { at.read() };
        // SAFETY: as above.
        (head, unsafe { block.cast::<u8>().sub(head.before as usize) })
    }
}

/// During `work`, Rust allocates on the tenant's island; in a thread without a heap of its own, as
/// usual.
pub(crate) fn private<T>(work: impl FnOnce() -> T) -> T {
    switched(true, work)
}

/// Inside [`private`]: during `work`, Rust allocates where every thread can read. Only an attack
/// needs this, to pass memory to another thread.
#[cfg(any(test, feature = "attack-natives"))]
pub(in crate::engine) fn shared<T>(work: impl FnOnce() -> T) -> T {
    switched(false, work)
}

fn switched<T>(private: bool, work: impl FnOnce() -> T) -> T {
    let before = PRIVATE.replace(private);
    let result = work();
    PRIVATE.set(before);
    result
}

/// Calls the calling thread's own heap, if it has one. During the call the thread has no heap. A
/// nested call would find the heap half changed, and allocates as usual instead.
fn with_own<T>(call: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> Option<T> {
    let heap = OWN.replace(ptr::null_mut());
    // SAFETY: null or what `open` stored, which lives as long as the thread, and which no other
    // thread knows of. This thread has no second reference: nothing finds the heap until it is put
    // back.
    let result = unsafe { heap.as_mut() }.map(call);
    OWN.set(heap);
    result
}

/// Like [`with_own`], if Rust is to allocate on the island.
fn with_private<T>(call: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> Option<T> {
    if PRIVATE.get() { with_own(call) } else { None }
}

/// Calls the calling thread's own heap, if `memory`, which is on an island, comes from there.
/// Otherwise ends the process: only the island's own thread can free the memory, and libc did not
/// allocate it.
fn with_owner<T>(memory: *mut u8, call: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> T {
    if mappings::is_home(memory as usize)
        && let Some(result) = with_own(call)
    {
        return result;
    }
    not_from_here()
}

/// Ends the process: a thread frees memory on the island of another thread.
#[cold]
fn not_from_here() -> ! {
    const WORDS: &[u8] = b"a thread frees memory on an island that is not its own\n";
    // SAFETY: the bytes are readable. The filter may refuse this write to a tenant's thread, which
    // does no harm.
    unsafe { libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len()) };
    std::process::abort()
}

// SAFETY: memory comes from one of two allocators that keep this contract, and goes back to the one
// that its address belongs to: no other allocator returns addresses of the zone.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let own = with_private(|heap| {
            // SAFETY: the layout is the caller's.
            if is_mapped(layout) { map_for(layout) } else { unsafe { heap.malloc(layout.size(), layout.align()) } }
        });
        // SAFETY: the caller keeps this function's contract.
        own.unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let own = with_private(|heap| {
            // SAFETY: as in `alloc`.
            if is_mapped(layout) { map_for(layout) } else { unsafe { heap.calloc(layout.size(), layout.align()) } }
        });
        // SAFETY: the caller keeps this function's contract.
        own.unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if !on_an_island(memory) {
            // SAFETY: the caller keeps the contract, and memory on no island is from libc.
            return unsafe { System.dealloc(memory, layout) };
        }
        with_owner(memory, |heap| {
            if is_mapped(layout) {
                // SAFETY: this many pages were mapped for it, and nothing uses them any more.
                unsafe { unmap_counted(memory, whole_pages(layout)) };
            } else {
                // SAFETY: the memory is on the island of this thread, so it is this heap's.
                unsafe { heap.free(memory, layout.size(), layout.align()) };
            }
        });
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if !on_an_island(memory) {
            // SAFETY: the caller keeps the contract, and memory on no island is from libc.
            return unsafe { System.realloc(memory, layout, bytes) };
        }
        // SAFETY: the size is the caller's, and the alignment was valid before.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        let moved = with_owner(memory, |heap| {
            if is_mapped(wanted) {
                map_for(wanted)
            } else if is_mapped(layout) {
                // SAFETY: as in `alloc`.
                unsafe { heap.malloc(bytes, layout.align()) }
            } else {
                // SAFETY: as in `dealloc`.
                unsafe { heap.realloc(memory, layout.size(), layout.align(), bytes) }
            }
        });
        if !moved.is_null() && (is_mapped(layout) || is_mapped(wanted)) {
            // SAFETY: both have at least this many bytes.
            unsafe { memory.copy_to_nonoverlapping(moved, layout.size().min(bytes)) };
            // SAFETY: the caller does not use it any more.
            unsafe { self.dealloc(memory, layout) };
        }
        moved
    }
}

/// Whether memory of this layout is a mapping of its own.
fn is_mapped(layout: Layout) -> bool {
    layout.size() >= MAPPED_FROM && layout.align() <= PAGE
}

fn whole_pages(layout: Layout) -> usize {
    layout.size().next_multiple_of(PAGE)
}

fn map_for(layout: Layout) -> *mut u8 {
    map_counted(whole_pages(layout))
}

// SAFETY: regions are mappings of their own, readable and writable, and given back only on request.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let bytes = size.next_multiple_of(SEGMENT);
        (map_counted(bytes), bytes, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, memory: *mut u8, old_bytes: usize, new_bytes: usize) -> bool {
        // SAFETY: dlmalloc gives back the tail of a region of this allocator.
        self.free(unsafe { memory.add(new_bytes) }, old_bytes - new_bytes)
    }

    fn free(&self, memory: *mut u8, bytes: usize) -> bool {
        // SAFETY: dlmalloc gives back a region of this allocator, in which nothing is live any
        // more.
        unsafe { unmap_counted(memory, bytes) }
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use enisle_hardening::islands::Zone;

    use super::*;

    /// The variable that tells the child process of a test how to free memory on an island.
    const CHILD: &str = "ENISLE_TEST_FOREIGN_MEMORY";

    #[test]
    fn freeing_memory_on_another_threads_island_ends_the_process() {
        for what in ["dealloc", "realloc"] {
            let ended = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--ignored", "--nocapture", "engine::memory::heap::tests::child_gives_back"])
                .env(CHILD, what)
                .output()
                .unwrap();
            let words = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{what}: {words}");
            assert!(words.contains("an island that is not its own"), "{what}: {words}");
        }
    }

    #[test]
    #[ignore = "the child of the test above"]
    fn child_gives_back() {
        let Ok(what) = std::env::var(CHILD) else { return };
        frozen::assign(&Zone::place(1, || 0), None, Vec::new());
        let home = mappings::Home::new(frozen::zone().island(0).unwrap(), None, 0);
        // The thread's mappings go to the island while it makes one, and never again. It never has
        // a heap there.
        mappings::move_to(Some(home));
        let memory = map(PAGE);
        mappings::move_to(None);
        assert!(on_an_island(memory));
        let layout = Layout::from_size_align(64, 16).unwrap();
        // Like an allocator's block, this one has readable bytes in front of it, where libc would
        // look for a size.
        // SAFETY: the page was mapped just now and is large enough.
        let block = unsafe { memory.add(64) };
        if what == "realloc" {
            // SAFETY: never given back before; the call must not return.
            let _ = unsafe { Heap.realloc(block, layout, 128) };
        } else {
            // SAFETY: as above.
            unsafe { Heap.dealloc(block, layout) };
        }
    }

    #[test]
    fn without_a_heap_of_its_own_a_thread_allocates_as_usual() {
        let text = private(|| "x".repeat(100));
        assert!(!on_an_island(text.as_ptr().cast_mut()));
        assert_eq!(shared(|| text.clone()), text);
    }
}
