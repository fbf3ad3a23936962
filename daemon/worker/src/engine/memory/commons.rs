//! Memory that a tenant's thread allocates and other threads may use: isolate objects, metadata of
//! code, and the allocations of C++ and ICU. It carries no key, and may outlive its tenant.
//!
//! ```text
//! commons ─┬─ slot 0, 16 GiB ─┬─ slot 1 ─┬─ … ─┐ islands
//! ```
//!
//! Each slot has a heap of its own here. The tenant's account ([`super::account`]) counts the
//! heap's pages, not its blocks: any number of free blocks may lie between live ones, and a script
//! can bring that about. libc's one arena would not do, because all threads would wait while it is
//! trimmed. Any thread may give a block back. Its address decides to which heap it goes.

use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::frozen::MOST_SLOTS;

use super::heap::Head;
use super::{account, mappings};

/// The address space of each slot, in bytes.
const PART: usize = 16 << 30;
const ALL: usize = PART * MOST_SLOTS;
const PAGE: usize = enisle_hardening::process::PAGE_BYTES;
/// What a heap takes from the kernel at a time, and gives back when nothing in it is live.
const SEGMENT: usize = 1 << 20;

/// Where the commons begin; 0 until they are open.
static START: AtomicUsize = AtomicUsize::new(0);

static HEAPS: [Mutex<Common>; MOST_SLOTS] = [const { Mutex::new(Common::new()) }; MOST_SLOTS];

/// The heap of one slot.
struct Common {
    heap: Dlmalloc<Pages>,
    /// Bytes of live blocks.
    live: usize,
    /// Nothing was taken since the heap was last trimmed.
    is_trimmed: bool,
    /// A list of voids for each size: [`SMALLEST_VOID`], twice that, and so on.
    voids: [*mut Void; VOID_SIZES],
    /// Where the next block of [`take_for_good`] goes, and how many bytes are left there.
    for_good: (*mut u8, usize),
}

/// A range that was free between live blocks when the heap was last trimmed. To the heap it is a
/// block in use, but only its first and last pages exist. Voids are given back to the heap before
/// the heap grows.
struct Void {
    next: *mut Void,
}

const SMALLEST_VOID: usize = 16 << 10;
/// The largest void is half a segment.
const VOID_SIZES: usize = 6;

// SAFETY: the heap's pointers lead to pages that every thread can use.
unsafe impl Send for Common {}

impl Common {
    const fn new() -> Self {
        Self {
            heap: Dlmalloc::new_with_allocator(Pages::new()),
            live: 0,
            is_trimmed: true,
            voids: [ptr::null_mut(); VOID_SIZES],
            for_good: (ptr::null_mut(), 0),
        }
    }

    /// A block from free memory, else from voids, else from new pages. Null if there is no memory.
    fn malloc(&mut self, bytes: usize, align: usize) -> *mut u8 {
        loop {
            let block = self.malloc_within(bytes, align);
            // The most that the heap may need, with alignment and its own metadata.
            if !block.is_null() || !self.fill_void(bytes.saturating_add(2 * align + 64)) {
                break if block.is_null() {
                    // SAFETY: the size is not zero, the alignment a power of two.
                    unsafe { self.heap.malloc(bytes, align) }
                } else {
                    block
                };
            }
        }
    }

    /// A block from the pages that the heap has, or null.
    fn malloc_within(&mut self, bytes: usize, align: usize) -> *mut u8 {
        self.heap.allocator().is_closed.set(true);
        // SAFETY: the size is not zero, the alignment a power of two.
        let block = unsafe { self.heap.malloc(bytes, align) };
        self.heap.allocator().is_closed.set(false);
        block
    }

    /// Gives the smallest void of at least `bytes` back to the heap. False if there is none.
    fn fill_void(&mut self, bytes: usize) -> bool {
        let sizes = (0..).map(|number| SMALLEST_VOID << number).zip(&mut self.voids);
        let Some((size, first)) = sizes.filter(|(size, _)| *size >= bytes).find(|(_, first)| !first.is_null()) else {
            return false;
        };
        let void = *first;
        // SAFETY: `make_voids` wrote it, on a page that stays.
        *first = unsafe { void.read() }.next;
        self.heap.allocator().count(inner_pages(void, size).len());
        // SAFETY: it is a block of this heap, and no longer in a list.
        unsafe { self.heap.c_free(void.cast()) };
        true
    }

    /// Gives back to the kernel the pages in which nothing is live, except in ranges shorter than a
    /// void.
    fn trim(&mut self) {
        self.is_trimmed = true;
        while self.fill_void(0) {}
        // SAFETY: the heap is whole: its lock is held.
        unsafe { self.heap.trim(0) };
        for number in (0..VOID_SIZES).rev() {
            self.make_voids(number);
        }
    }

    fn make_voids(&mut self, number: usize) {
        let size = SMALLEST_VOID << number;
        let Some(mut next) = self.voids.get(number).copied() else { return };
        loop {
            let void = self.malloc_within(size, size_of::<Head>()).cast::<Void>();
            if void.is_null() {
                break;
            }
            // SAFETY: the block is larger, and aligned.
            unsafe { void.write(Void { next }) };
            next = void;
            let inner = inner_pages(void, size);
            // SAFETY: the pages are inside the block, after the `Void` that was just written.
            let result = unsafe { libc::madvise(inner.start as *mut c_void, inner.len(), libc::MADV_DONTNEED) };
            debug_assert_eq!(result, 0, "the kernel refuses to take pages back");
            self.heap.allocator().discount(inner.len());
        }
        if let Some(first) = self.voids.get_mut(number) {
            *first = next;
        }
    }
}

/// Where the commons of a zone are: in front of it. Nothing else may be mapped there.
pub(in crate::engine) fn range(zone: &Zone) -> Range<usize> {
    let end = zone.range().start;
    end.saturating_sub(ALL)..end
}

/// From now on tenants' threads allocate in the commons of `zone`.
pub(super) fn open(zone: &Zone) {
    START.store(range(zone).start, Ordering::Relaxed);
}

/// The slot that an address belongs to, if the address is in the commons.
fn slot_of(address: usize) -> Option<u32> {
    let start = START.load(Ordering::Relaxed);
    let offset = address.checked_sub(start).filter(|offset| start > 0 && *offset < ALL)?;
    u32::try_from(offset / PART).ok()
}

/// The heap of a slot.
fn lock(slot: u32) -> Option<MutexGuard<'static, Common>> {
    Some(HEAPS.get(usize::try_from(slot).ok()?)?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A block on the account of the calling thread's tenant; `None` if the thread is not a tenant's,
/// null if there is no memory.
pub(super) fn take(bytes: usize, align: usize) -> Option<*mut c_void> {
    let slot = account::slot();
    let start = START.load(Ordering::Relaxed);
    let before = Head::room(align);
    let whole = bytes.saturating_add(before);
    let (base, taken) = {
        let mut common = lock(slot).filter(|_| start > 0)?;
        common.heap.allocator().begin(start + slot as usize * PART);
        let had = common.mapped();
        let base = common.malloc(whole, align.max(size_of::<Head>()));
        common.live += if base.is_null() { 0 } else { whole };
        common.is_trimmed = false;
        (base, common.mapped().saturating_sub(had))
    };
    // The lock is released by now, because reporting that the limit is near allocates.
    if taken > 0 {
        account::take_outside(taken);
    }
    // SAFETY: `whole` bytes begin at `base`, if it is not null.
    Some(unsafe { Head::write(base, before, bytes, slot) })
}

/// Blocks of [`take_for_good`] are parts of blocks of this size.
const FOR_GOOD: usize = 32 << 10;

/// Like [`take`], for a small block that stays as long as the process. Such blocks lie side by
/// side: scattered among blocks that are freed, each of them would keep a page.
pub(super) fn take_for_good(bytes: usize) -> Option<*mut c_void> {
    let (slot, align) = (account::slot(), size_of::<Head>());
    let before = Head::room(align);
    let whole = bytes.next_multiple_of(align) + before;
    if whole > FOR_GOOD {
        return take(bytes, align);
    }
    let room = |common: &mut Common| (common.for_good.1 >= whole).then(|| common.cut(whole));
    let had = room(&mut *lock(slot)?);
    let base = match had {
        Some(base) => base,
        None => {
            let more = take(FOR_GOOD, align)?;
            let mut common = lock(slot)?;
            common.for_good = (more.cast(), if more.is_null() { 0 } else { FOR_GOOD });
            room(&mut common).unwrap_or(ptr::null_mut())
        }
    };
    // SAFETY: `whole` bytes begin at `base`, if it is not null.
    Some(unsafe { Head::write(base, before, bytes, STAYS) })
}

/// Stands for a slot in the head of a block that is never given back.
const STAYS: u32 = u32::MAX;

/// Frees a block of [`take`]. False if the block is not in the commons.
///
/// # Safety
/// As for `free`.
pub(super) unsafe fn give_back(block: *mut c_void) -> bool {
    let Some(slot) = slot_of(block as usize) else { return false };
    // SAFETY: only `take` and `take_for_good` return blocks here, each with a head.
    let (head, base) = unsafe { Head::of(block) };
    if head.slot == STAYS {
        return true;
    }
    shrink(slot, |common| {
        let whole = head.bytes.saturating_add(block as usize - base as usize);
        common.live = common.live.saturating_sub(whole);
        // SAFETY: the block is this heap's.
        unsafe { common.heap.c_free(base) };
    });
    true
}

/// The size of a block of [`take`]. `None` if the block is not in the commons.
///
/// # Safety
/// The block is live.
pub(super) unsafe fn size(block: *mut c_void) -> Option<usize> {
    // SAFETY: only `take` and `take_for_good` return blocks here, each with a head.
    slot_of(block as usize).map(|_| unsafe { Head::of(block) }.0.bytes)
}

/// Gives back to the kernel the pages of the calling thread's tenant in which nothing is live any
/// more.
pub(super) fn trim() {
    shrink(account::slot(), Common::trim);
}

/// The same for a tenant that has no run, on behalf of its thread. Does nothing if nothing was
/// taken since the last time. May be called on any thread.
pub(crate) fn trim_idle(slot: u32) {
    shrink(slot, |common| {
        if !common.is_trimmed {
            common.trim();
        }
    });
}

/// Bytes of the calling thread's tenant that are free to be allocated again, on pages that count.
pub(super) fn free() -> usize {
    lock(account::slot()).map_or(0, |common| common.mapped().saturating_sub(common.live))
}

/// The whole pages of a void, after the [`Void`] that is written at its start.
fn inner_pages(void: *mut Void, size: usize) -> Range<usize> {
    let start = (void as usize + size_of::<Void>()).next_multiple_of(PAGE);
    start..(void as usize + size) / PAGE * PAGE
}

/// Calls the heap of a slot, and subtracts what the call has unmapped from the account of the slot.
fn shrink(slot: u32, call: impl FnOnce(&mut Common)) {
    let Some(mut common) = lock(slot) else { return };
    let had = common.mapped();
    call(&mut common);
    let given_back = had.saturating_sub(common.mapped());
    drop(common);
    if given_back > 0 {
        account::give_back_outside(slot, given_back);
    }
}

impl Common {
    /// The next `bytes` for [`take_for_good`]. At least that many are left.
    fn cut(&mut self, bytes: usize) -> *mut u8 {
        let (at, left) = self.for_good;
        self.for_good = (at.wrapping_add(bytes), left - bytes);
        at
    }

    fn mapped(&self) -> usize {
        self.heap.allocator().mapped.get()
    }
}

/// A slot's part of the commons, and how much of it is mapped.
#[derive(Debug)]
struct Pages {
    part: Cell<usize>,
    /// Where the next mapping is tried. It only advances, until it starts over at the end of the
    /// part.
    next: Cell<usize>,
    /// How many bytes are mapped, without the pages that voids have given back.
    mapped: Cell<usize>,
    /// Whether the heap must use only the pages that it has.
    is_closed: Cell<bool>,
}

impl Pages {
    const fn new() -> Self {
        Self { part: Cell::new(0), next: Cell::new(0), mapped: Cell::new(0), is_closed: Cell::new(false) }
    }

    fn begin(&self, part: usize) {
        if self.part.replace(part) != part {
            self.next.set(part);
        }
    }

    fn count(&self, bytes: usize) {
        self.mapped.set(self.mapped.get() + bytes);
    }

    fn discount(&self, bytes: usize) {
        self.mapped.set(self.mapped.get().saturating_sub(bytes));
    }

    /// Maps pages, with a gap after them; null if that fails. Segments that touch would merge into
    /// one, and a single live block would then keep all of it.
    fn map(&self, bytes: usize) -> *mut u8 {
        let mut tries = 0;
        while bytes < PART / 2 && tries < PART / STEP {
            if self.next.get() + bytes + PAGE > self.part.get() + PART {
                self.next.set(self.part.get());
            }
            let memory = mappings::map_at(self.next.get(), bytes);
            if !memory.is_null() {
                self.next.set(self.next.get() + bytes + PAGE);
                self.count(bytes);
                return memory;
            }
            if nix::errno::Errno::last() != nix::errno::Errno::EEXIST {
                break;
            }
            self.next.set(self.next.get() + STEP);
            tries += 1;
        }
        ptr::null_mut()
    }

    /// # Safety
    /// Pages of [`Self::map`] in which nothing is live any more.
    unsafe fn unmap(&self, memory: *mut u8, bytes: usize) -> bool {
        // SAFETY: the caller keeps this function's contract.
        let unmapped = unsafe { libc::munmap(memory.cast(), bytes) } == 0;
        if unmapped {
            self.discount(bytes);
        }
        unmapped
    }
}

/// How far to advance if something is mapped already.
const STEP: usize = 16 << 20;

// SAFETY: regions are mappings of their own, readable and writable, and given back only on request.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let bytes = size.next_multiple_of(SEGMENT);
        (if self.is_closed.get() { ptr::null_mut() } else { self.map(bytes) }, bytes, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, memory: *mut u8, old_bytes: usize, new_bytes: usize) -> bool {
        // SAFETY: the region has `old_bytes` bytes.
        let tail = unsafe { memory.add(new_bytes) };
        // SAFETY: dlmalloc gives back the tail of a region of this allocator.
        unsafe { self.unmap(tail, old_bytes - new_bytes) }
    }

    fn free(&self, memory: *mut u8, bytes: usize) -> bool {
        // SAFETY: dlmalloc gives back a region of this allocator.
        unsafe { self.unmap(memory, bytes) }
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

    /// Runs `test` as a tenant's thread, in a slot that no other test uses.
    fn in_slot<T: Send>(slot: u32, test: impl FnOnce() -> T + Send) -> T {
        open(&Zone::place(1, || 0));
        let run = || {
            account::reset(slot);
            test()
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
    }

    fn block(bytes: usize, align: usize) -> usize {
        let block = take(bytes, align).unwrap() as usize;
        assert!(block != 0 && block.is_multiple_of(align));
        // SAFETY: the block has `bytes` bytes.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(block).write_bytes(1, bytes) };
        block
    }

    fn put_back(block: usize) -> bool {
        // SAFETY: each test gives a block back once.
        unsafe { give_back(ptr::with_exposed_provenance_mut(block)) }
    }

    #[test]
    fn holes_between_live_blocks_count_until_their_pages_are_given_back() {
        const BYTES: usize = 100_000;
        in_slot(11, || {
            let blocks: Vec<_> = (0..300).map(|_| block(BYTES, 16)).collect();
            let full = account::used();
            assert!((300 * BYTES..400 * BYTES).contains(&full), "{full}");
            assert!(blocks.iter().step_by(2).all(|block| put_back(*block)));
            assert_eq!(account::used(), full);
            trim();
            let half = account::used();
            assert!(half < full * 6 / 10, "{half} of {full}");
            // A void is used again before the heap grows, and counts again.
            let others: Vec<_> = (0..100).map(|_| block(BYTES / 3, 16)).collect();
            let more = account::used();
            assert!(more > half + 20 * BYTES && more <= full, "{more} after {half}");
            let rest = blocks.iter().skip(1).step_by(2).chain(&others);
            assert!(rest.copied().all(put_back));
            trim();
            assert!(account::used() <= SEGMENT, "{}", account::used());
        });
    }

    #[test]
    fn a_large_block_is_off_the_account_when_it_is_given_back() {
        in_slot(12, || {
            for (bytes, align) in [(5 << 20, 16), (5 << 20, 4096)] {
                let block = block(bytes, align);
                assert!(account::used() >= bytes);
                // SAFETY: the block is live.
                let size = unsafe { size(ptr::with_exposed_provenance_mut(block)) };
                assert!(put_back(block) && size == Some(bytes) && account::used() <= SEGMENT);
            }
        });
    }

    #[test]
    fn a_block_goes_back_on_any_thread_and_comes_off_its_owners_account() {
        in_slot(13, || {
            let (small, large) = (block(100, 64), block(1 << 20, 16));
            let taken = account::used();
            assert!(taken > 1 << 20);
            std::thread::scope(|scope| scope.spawn(|| put_back(small) && put_back(large)).join()).unwrap();
            trim();
            assert!(account::used() <= SEGMENT, "{}", account::used());
        });
    }

    #[test]
    fn a_thread_that_is_not_a_tenants_gets_nothing_from_the_commons() {
        assert!(take(100, 16).is_none());
        // SAFETY: an address that is not here is not touched.
        assert!(!unsafe { give_back(ptr::null_mut()) });
    }
}
