//! A tenant's own heap, on its island: what Rust allocates for the tenant (code, `env`, arguments,
//! log lines and results), and what V8 asks `malloc` for ([`super::hooks`]).
//!
//! The worker's allocator is libc's, whose memory all tenants share and which carries no key. While
//! a tenant's thread is in [`private`], what Rust allocates comes from the tenant's heap instead,
//! in pages that [`super::memory`] has put on its island and tagged, and that count as the
//! tenant's ([`super::quota`]). Whatever is freed goes back to where its address says it came
//! from, inside or outside. What other threads have to read as well is allocated outside, or in
//! [`shared`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use dlmalloc::Dlmalloc;
use enisle_hardening::sealed;

use super::{memory, quota};

/// The worker's allocator.
#[derive(Debug)]
pub struct Heap;

/// Pages of the calling thread's island.
struct Pages;

/// Larger than anything that comes from one allocation of a run, so that segments are few.
const SEGMENT: usize = 256 << 10;
const PAGE: usize = 4096;

thread_local! {
    static OWN: Cell<*mut Dlmalloc<Pages>> = const { Cell::new(ptr::null_mut()) };
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
    /// Blocks of [`take`] that have not been given back.
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
}

/// An address on an island is from the heap of the thread that lives there.
fn on_an_island(memory: *mut u8) -> bool {
    sealed::is_in_zone(memory as usize)
}

/// Gives the calling thread a heap on its island, where its mappings go by now. False if there is no memory for it.
pub(super) fn open() -> bool {
    const { assert!(size_of::<Dlmalloc<Pages>>() <= PAGE) };
    let heap = map(PAGE).cast::<Dlmalloc<Pages>>();
    if heap.is_null() {
        return false;
    }
    // SAFETY: the page was mapped for this, is large enough and aligned for anything, and stays as long as the thread.
    unsafe { heap.write(Dlmalloc::new_with_allocator(Pages)) };
    OWN.set(heap);
    true
}

/// Pages on the calling thread's island, or null.
fn map(bytes: usize) -> *mut u8 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping at a place of the island's choice touches no other one.
    let memory = unsafe { memory::v8_tenant_mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED { ptr::null_mut() } else { memory.cast() }
}

/// As [`map`], on the tenant's account.
fn map_counted(bytes: usize) -> *mut u8 {
    quota::take_native(bytes);
    let memory = map(bytes);
    if memory.is_null() {
        quota::give_back_native(bytes);
    }
    memory
}

/// # Safety
/// Pages of [`map_counted`] in which nothing lives any more.
unsafe fn unmap_counted(memory: *mut u8, bytes: usize) -> bool {
    // SAFETY: the caller's.
    let unmapped = unsafe { libc::munmap(memory.cast(), bytes) } == 0;
    if unmapped {
        quota::give_back_native(bytes);
    }
    unmapped
}

/// From this size on memory is a mapping of its own, which goes back to the kernel when it is
/// freed.
const MAPPED_FROM: usize = SEGMENT;

/// A block of `bytes` of the calling thread's own heap; `None` in a thread that has none, null
/// where there is no memory.
pub(super) fn take(bytes: usize, align: usize) -> Option<*mut c_void> {
    let heap = own(true)?;
    let before = Head::room(align);
    let whole = bytes.checked_add(before)?;
    let base = if whole >= MAPPED_FROM && align <= PAGE {
        map_counted(whole.next_multiple_of(PAGE))
    } else {
        // SAFETY: the size is not zero, the alignment a power of two.
        unsafe { heap.malloc(whole, align.max(HEAD)) }
    };
    BLOCKS.set(BLOCKS.get() + usize::from(!base.is_null()));
    // SAFETY: `whole` bytes begin at `base`, if it is not null.
    Some(unsafe { Head::write(base, before, bytes, quota::place()) })
}

/// How many blocks of [`take`] the calling thread still has.
pub(super) fn blocks() -> usize {
    BLOCKS.get()
}

/// Frees a block of [`take`], if it is one.
///
/// # Safety
/// As free's.
pub(super) unsafe fn give_back(block: *mut c_void) -> bool {
    if !on_an_island(block.cast()) {
        return false;
    }
    // What is of another thread's heap stays with it: that heap is not for two threads, and goes
    // with its island.
    let Some(heap) = own(memory::is_home(block as usize)) else { return true };
    // SAFETY: only `take` hands out blocks on an island, each with a head.
    let (head, base) = unsafe { Head::of(block) };
    BLOCKS.set(BLOCKS.get() - 1);
    let whole = head.bytes + head.before as usize;
    if whole >= MAPPED_FROM && head.before as usize <= PAGE {
        // SAFETY: `take` mapped as many whole pages there.
        unsafe { unmap_counted(base, whole.next_multiple_of(PAGE)) };
    } else {
        // SAFETY: the block is this heap's.
        unsafe { heap.c_free(base) };
    }
    true
}

/// The size of a block of [`take`], if it is one.
///
/// # Safety
/// The block is live.
pub(super) unsafe fn size(block: *mut c_void) -> Option<usize> {
    // SAFETY: only `take` hands out blocks on an island, each with a head.
    on_an_island(block.cast()).then(|| unsafe { Head::of(block) }.0.bytes)
}

/// Gives pages back to the kernel in which nothing lives any more.
pub(crate) fn trim() {
    if let Some(heap) = own(true) {
        // SAFETY: no call of the allocator is under way in this thread.
        unsafe { heap.trim(0) };
    }
}

/// What stands in front of a block that C or C++ was given.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Head {
    pub(super) bytes: usize,
    /// From the beginning of the allocation to the block.
    before: u32,
    /// Whose account it is on.
    pub(super) place: u32,
}

const HEAD: usize = size_of::<Head>();

impl Head {
    /// Bytes in front of a block of that alignment.
    pub(super) fn room(align: usize) -> usize {
        align.max(HEAD)
    }

    /// The block that begins `before` bytes after `base`, with its head; null stays null.
    ///
    /// # Safety
    /// `before` came from [`Self::room`], and so many bytes begin at `base`, which is aligned for
    /// the block.
    pub(super) unsafe fn write(base: *mut u8, before: usize, bytes: usize, place: u32) -> *mut c_void {
        if base.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the caller's.
        let block = unsafe { base.add(before) };
        let head = Self { bytes, before: u32::try_from(before).unwrap_or(0), place };
        // SAFETY: at least a head's room is in front of the block.
        let at = unsafe { block.cast::<Self>().sub(1) };
        // SAFETY: as above; the block, and so its head, is aligned for a head.
        unsafe { at.write(head) };
        block.cast()
    }

    /// The head of a block, and where its allocation begins.
    ///
    /// # Safety
    /// [`Self::write`] made the block, and it is live.
    pub(super) unsafe fn of(block: *mut c_void) -> (Self, *mut u8) {
        // SAFETY: the caller's.
        let at = unsafe { block.cast::<Self>().sub(1) };
        // SAFETY: as above.
        let head = unsafe { at.read() };
        // SAFETY: as above.
        (head, unsafe { block.cast::<u8>().sub(head.before as usize) })
    }
}

/// Allocates on the tenant's island in `work`; as ever in a thread that has none.
pub(crate) fn private<T>(work: impl FnOnce() -> T) -> T {
    switched(true, work)
}

/// Allocates where every thread can read in `work`, which is in [`private`].
pub(super) fn shared<T>(work: impl FnOnce() -> T) -> T {
    switched(false, work)
}

fn switched<T>(private: bool, work: impl FnOnce() -> T) -> T {
    let before = PRIVATE.replace(private);
    let result = work();
    PRIVATE.set(before);
    result
}

/// The calling thread's own heap, if it has one and `wanted`. Borrowed for one call of the allocator, in which no other one
/// of this thread's begins.
fn own(wanted: bool) -> Option<&'static mut Dlmalloc<Pages>> {
    let heap = if wanted { OWN.get() } else { ptr::null_mut() };
    // SAFETY: null or what `open` stored, which lives as long as the thread, and which no other thread knows of.
    unsafe { heap.as_mut() }
}

// SAFETY: memory comes from one of two allocators that keep this contract, and goes back to the one that its address is
// from: no other allocator hands out addresses of the zone.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match own(PRIVATE.get()) {
            Some(_) if is_mapped(layout) => map_counted(layout.size().next_multiple_of(PAGE)),
            // SAFETY: the layout is the caller's.
            Some(heap) => unsafe { heap.malloc(layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match own(PRIVATE.get()) {
            Some(_) if is_mapped(layout) => map_counted(layout.size().next_multiple_of(PAGE)),
            // SAFETY: as in `alloc`.
            Some(heap) => unsafe { heap.calloc(layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match own(on_an_island(memory)) {
            Some(_) if is_mapped(layout) => {
                // SAFETY: as many pages were mapped for it, and nobody uses them any more.
                unsafe { unmap_counted(memory, layout.size().next_multiple_of(PAGE)) };
            }
            // SAFETY: what a tenant's thread allocates on its island it frees itself, so the memory is this heap's.
            Some(heap) => unsafe { heap.free(memory, layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let Some(heap) = own(on_an_island(memory)) else {
            // SAFETY: the caller's.
            return unsafe { System.realloc(memory, layout, bytes) };
        };
        // SAFETY: the size is the caller's, and the alignment was good before.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        if !is_mapped(layout) && !is_mapped(wanted) {
            // SAFETY: as in `dealloc`.
            return unsafe { heap.realloc(memory, layout.size(), layout.align(), bytes) };
        }
        let moved = if is_mapped(wanted) {
            map_counted(bytes.next_multiple_of(PAGE))
        } else {
            // SAFETY: as in `alloc`.
            unsafe { heap.malloc(bytes, layout.align()) }
        };
        if !moved.is_null() {
            // SAFETY: both have at least so many bytes.
            unsafe { memory.copy_to_nonoverlapping(moved, layout.size().min(bytes)) };
            // SAFETY: the caller does not use it any more.
            unsafe { self.dealloc(memory, layout) };
        }
        moved
    }
}

/// Whether something of that layout is a mapping of its own.
fn is_mapped(layout: Layout) -> bool {
    layout.size() >= MAPPED_FROM && layout.align() <= PAGE
}

// SAFETY: regions are mappings of their own, readable and writable, and given back only as asked.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let bytes = size.next_multiple_of(SEGMENT);
        (map_counted(bytes), bytes, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, memory: *mut u8, old_bytes: usize, new_bytes: usize) -> bool {
        // SAFETY: dlmalloc gives back the tail of a region of ours.
        self.free(unsafe { memory.add(new_bytes) }, old_bytes - new_bytes)
    }

    fn free(&self, memory: *mut u8, bytes: usize) -> bool {
        // SAFETY: dlmalloc gives back a region of ours, in which nothing lives any more.
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
    use super::*;

    #[test]
    fn without_a_heap_of_its_own_a_thread_allocates_as_ever() {
        let text = private(|| "x".repeat(100));
        assert!(!on_an_island(text.as_ptr().cast_mut()));
        assert_eq!(shared(|| text.clone()), text);
    }
}
