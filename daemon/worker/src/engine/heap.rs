//! What Rust allocates for a tenant: code, `env`, arguments, log lines and results, on the tenant's own island.
//!
//! The worker's allocator is libc's, whose memory all tenants share and which carries no key. While a tenant's thread is in
//! [`private`], what it allocates comes from a heap of its own instead, in pages that [`super::memory`] has put on its
//! island and tagged. Whatever is freed goes back to where its address says it came from, inside or outside. What other
//! threads have to read as well is allocated outside, or in [`shared`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

use dlmalloc::Dlmalloc;
use enisle_hardening::sealed;

use super::memory;

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
            // SAFETY: the layout is the caller's.
            Some(heap) => unsafe { heap.malloc(layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match own(PRIVATE.get()) {
            // SAFETY: as in `alloc`.
            Some(heap) => unsafe { heap.calloc(layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match own(on_an_island(memory)) {
            // SAFETY: what a tenant's thread allocates on its island it frees itself, so the memory is this heap's.
            Some(heap) => unsafe { heap.free(memory, layout.size(), layout.align()) },
            // SAFETY: the caller's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        match own(on_an_island(memory)) {
            // SAFETY: as in `dealloc`.
            Some(heap) => unsafe { heap.realloc(memory, layout.size(), layout.align(), bytes) },
            // SAFETY: the caller's.
            None => unsafe { System.realloc(memory, layout, bytes) },
        }
    }
}

// SAFETY: regions are mappings of their own, readable and writable, and given back only as asked.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let bytes = size.next_multiple_of(SEGMENT);
        (map(bytes), bytes, 0)
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
        unsafe { libc::munmap(memory.cast(), bytes) == 0 }
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
