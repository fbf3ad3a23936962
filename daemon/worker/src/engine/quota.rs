//! How many bytes of array buffers a tenant may hold.
//!
//! V8 has no such limit: backing stores lie outside the heap, and the archive's patch installs V8's own allocator of the
//! cage. So the limit is put in front of that allocator, by giving its object (and the cage's page allocator, which serves
//! resizable buffers) a copy of its virtual table in which allocating and freeing go through the functions below. The
//! archive is pinned to one V8, the layout of the two tables was read from it, and `tests/suite/hostile.rs` fails if a buffer over
//! the limit is ever granted.
//!
//! One tenant is one thread, and V8 runs single-threaded, so the account is thread-local. A refused allocation is a
//! `RangeError` in the script.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::OnceLock;

/// A pointer to a C++ object whose first word is its virtual table.
type Object = *mut *const usize;

unsafe extern "C" {
    #[link_name = "_ZN2v87Isolate23GetArrayBufferAllocatorEv"]
    fn get_array_buffer_allocator(isolate: *mut c_void) -> Object;
}

/// Every virtual table begins with the offset to the top and the type information, in front of slot 0.
const HEADER: usize = 2;

/// `v8::ArrayBuffer::Allocator` (include/v8-array-buffer.h): two destructors, then these.
mod buffer_slot {
    pub(super) const COUNT: usize = 7;
    pub(super) const ALLOCATE: usize = 2;
    pub(super) const ALLOCATE_UNINITIALIZED: usize = 3;
    pub(super) const FREE: usize = 4;
    pub(super) const MAX_ALLOCATION_SIZE: usize = 5;
    pub(super) const GET_PAGE_ALLOCATOR: usize = 6;
}

/// `v8::base::VirtualAddressSpacePageAllocator` (v8/src/base/virtual-address-space-page-allocator.h).
mod page_slot {
    pub(super) const COUNT: usize = 19;
    pub(super) const ALLOCATE_PAGES: usize = 6;
    pub(super) const FREE_PAGES: usize = 9;
}

/// V8 aborts where it cannot move an on-heap typed array of up to this size out of the heap
/// (`v8_typed_array_max_size_in_heap`), so that much is always granted, and counted.
const ALWAYS_GRANTED: usize = 64;

type Allocate = unsafe extern "C" fn(Object, usize) -> *mut c_void;
type Free = unsafe extern "C" fn(Object, *mut c_void, usize);
type MaxSize = unsafe extern "C" fn(Object) -> usize;
type GetPageAllocator = unsafe extern "C" fn(Object) -> Object;
type AllocatePages = unsafe extern "C" fn(Object, *mut c_void, usize, usize, i32) -> *mut c_void;
type FreePages = unsafe extern "C" fn(Object, *mut c_void, usize) -> bool;

/// V8's own functions, which ours call.
#[derive(Debug, Clone, Copy)]
struct BufferFunctions {
    allocate: Allocate,
    allocate_uninitialized: Allocate,
    free: Free,
    max_size: MaxSize,
}

#[derive(Debug, Clone, Copy)]
struct PageFunctions {
    allocate: AllocatePages,
    free: FreePages,
}

static BUFFERS: OnceLock<(BufferFunctions, usize)> = OnceLock::new();
static PAGES: OnceLock<(PageFunctions, usize)> = OnceLock::new();

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    /// Reservations of resizable buffers, whole: V8 commits inside them without asking again.
    static RESERVED: RefCell<HashMap<usize, usize>> = RefCell::new(HashMap::new());
}

/// A thread begins with a new cage.
pub(super) fn reset() {
    USED.set(0);
    LIMIT.set(usize::MAX);
    RESERVED.with_borrow_mut(HashMap::clear);
}

/// Sets the limit of this thread's tenant for what comes now.
pub(super) fn set_limit(bytes: usize) {
    LIMIT.set(bytes);
    REFUSED.set(false);
}

/// Bytes that the tenant may still take.
pub(super) fn left() -> usize {
    LIMIT.get().saturating_sub(USED.get())
}

pub(super) fn used() -> usize {
    USED.get()
}

/// Whether an allocation was refused since the last call. V8 collects garbage before it believes a refusal, and then
/// tells its near-heap-limit callback, though the heap itself may be nearly empty.
pub(super) fn take_refused() -> bool {
    REFUSED.replace(false)
}

/// Puts the limit in front of the allocators of a new isolate.
pub(super) fn adopt(isolate: &v8::Isolate) {
    // SAFETY: the pointer is only passed to V8 below, while `isolate` lives.
    let raw = unsafe { isolate.as_raw_isolate_ptr() };
    // SAFETY: UnsafeRawIsolatePtr is one pointer to the C++ isolate.
    let raw: *mut c_void = unsafe { std::mem::transmute_copy(&raw) };
    // SAFETY: `raw` is a live isolate of this thread; the allocator lives as long as it.
    let allocator = unsafe { get_array_buffer_allocator(raw) };
    let (functions, table) = BUFFERS.get_or_init(|| copy_buffer_table(allocator));
    let _ = functions;
    // SAFETY: slot 6 of V8's own table is GetPageAllocator, which takes the object alone.
    let pages = unsafe { slot_of::<GetPageAllocator>(allocator, buffer_slot::GET_PAGE_ALLOCATOR) };
    // SAFETY: `allocator` is the live object that the function belongs to.
    let pages = unsafe { pages(allocator) };
    let (_, page_table) = PAGES.get_or_init(|| copy_page_table(pages));
    // SAFETY: the copy has every slot of the original's class and is never freed.
    unsafe { *allocator = *table as *const usize };
    // SAFETY: as above; the page allocator belongs to the cage, and giving it the same table again changes nothing.
    unsafe { *pages = *page_table as *const usize };
}

/// The function in one slot of an object's table.
///
/// # Safety
/// `F` is the type of the function in that slot of `object`'s class.
unsafe fn slot_of<F: Copy>(object: Object, slot: usize) -> F {
    // SAFETY: `object` is a C++ object with virtual functions, so its first word points to its table.
    let table = unsafe { *object };
    // SAFETY: the caller names a slot of that class.
    let entry = unsafe { table.add(slot) };
    // SAFETY: F is a function pointer, one word, of the type that the caller vouches for.
    unsafe { entry.cast::<F>().read() }
}

/// A copy of `object`'s table with header, leaked: objects point into it for the life of the process.
fn leak_table(object: Object, slots: usize) -> &'static mut [usize] {
    // SAFETY: as in `slot_of`.
    let table = unsafe { *object };
    // SAFETY: two header words stand in front of slot 0 (Itanium C++ ABI, 2.5).
    let start = unsafe { table.sub(HEADER) };
    // SAFETY: header and slots of the class are readable and never change.
    let words = unsafe { std::slice::from_raw_parts(start, HEADER + slots) };
    Box::leak(words.to_vec().into_boxed_slice())
}

fn copy_buffer_table(object: Object) -> (BufferFunctions, usize) {
    // SAFETY: slot 2 is Allocate(size_t).
    let allocate = unsafe { slot_of(object, buffer_slot::ALLOCATE) };
    // SAFETY: slot 3 is AllocateUninitialized(size_t).
    let allocate_uninitialized = unsafe { slot_of(object, buffer_slot::ALLOCATE_UNINITIALIZED) };
    // SAFETY: slot 4 is Free(void*, size_t).
    let free = unsafe { slot_of(object, buffer_slot::FREE) };
    // SAFETY: slot 5 is MaxAllocationSize() const.
    let max_size = unsafe { slot_of(object, buffer_slot::MAX_ALLOCATION_SIZE) };
    let copy = leak_table(object, buffer_slot::COUNT);
    for (slot, function) in [
        (buffer_slot::ALLOCATE, allocate_counted as Allocate as usize),
        (buffer_slot::ALLOCATE_UNINITIALIZED, allocate_uninitialized_counted as Allocate as usize),
        (buffer_slot::FREE, free_counted as Free as usize),
        (buffer_slot::MAX_ALLOCATION_SIZE, max_size_limited as MaxSize as usize),
    ] {
        if let Some(word) = copy.get_mut(HEADER + slot) {
            *word = function;
        }
    }
    let functions = BufferFunctions { allocate, allocate_uninitialized, free, max_size };
    (functions, copy.as_ptr() as usize + HEADER * size_of::<usize>())
}

fn copy_page_table(object: Object) -> (PageFunctions, usize) {
    // SAFETY: slot 6 is AllocatePages(void*, size_t, size_t, Permission).
    let allocate = unsafe { slot_of(object, page_slot::ALLOCATE_PAGES) };
    // SAFETY: slot 9 is FreePages(void*, size_t).
    let free = unsafe { slot_of(object, page_slot::FREE_PAGES) };
    let copy = leak_table(object, page_slot::COUNT);
    for (slot, function) in [
        (page_slot::ALLOCATE_PAGES, allocate_pages_counted as AllocatePages as usize),
        (page_slot::FREE_PAGES, free_pages_counted as FreePages as usize),
    ] {
        if let Some(word) = copy.get_mut(HEADER + slot) {
            *word = function;
        }
    }
    (PageFunctions { allocate, free }, copy.as_ptr() as usize + HEADER * size_of::<usize>())
}

/// Takes `bytes` from the account, or refuses.
fn charge(bytes: usize) -> bool {
    if bytes > left() && bytes > ALWAYS_GRANTED {
        REFUSED.set(true);
        return false;
    }
    USED.set(USED.get().saturating_add(bytes));
    true
}

fn refund(bytes: usize) {
    USED.set(USED.get().saturating_sub(bytes));
}

fn buffer_functions() -> BufferFunctions {
    match BUFFERS.get() {
        Some((functions, _)) => *functions,
        // Our functions are in a table only after `adopt` has set this.
        None => super::exit_now(70),
    }
}

fn page_functions() -> PageFunctions {
    match PAGES.get() {
        Some((functions, _)) => *functions,
        None => super::exit_now(70),
    }
}

unsafe extern "C" fn allocate_counted(this: Object, bytes: usize) -> *mut c_void {
    // SAFETY: V8 called us as this function of `this`.
    charged(bytes, || unsafe { (buffer_functions().allocate)(this, bytes) })
}

unsafe extern "C" fn allocate_uninitialized_counted(this: Object, bytes: usize) -> *mut c_void {
    // SAFETY: V8 called us as this function of `this`.
    charged(bytes, || unsafe { (buffer_functions().allocate_uninitialized)(this, bytes) })
}

fn charged(bytes: usize, allocate: impl FnOnce() -> *mut c_void) -> *mut c_void {
    super::confinement::edge();
    if !charge(bytes) {
        return std::ptr::null_mut();
    }
    let memory = allocate();
    if memory.is_null() {
        refund(bytes);
    }
    memory
}

unsafe extern "C" fn free_counted(this: Object, memory: *mut c_void, bytes: usize) {
    refund(bytes);
    // SAFETY: V8 called us as this function of `this`, with what it was given by it.
    unsafe { (buffer_functions().free)(this, memory, bytes) }
}

/// V8 asks this first and answers a larger request with a `RangeError` without collecting garbage for it.
unsafe extern "C" fn max_size_limited(this: Object) -> usize {
    // SAFETY: V8 called us as this function of `this`.
    let own = unsafe { (buffer_functions().max_size)(this) };
    own.min(LIMIT.get().max(ALWAYS_GRANTED))
}

unsafe extern "C" fn allocate_pages_counted(
    this: Object,
    hint: *mut c_void,
    bytes: usize,
    alignment: usize,
    permission: i32,
) -> *mut c_void {
    // SAFETY: V8 called us as this function of `this`.
    let memory = charged(bytes, || unsafe { (page_functions().allocate)(this, hint, bytes, alignment, permission) });
    if !memory.is_null() {
        RESERVED.with_borrow_mut(|reserved| reserved.insert(memory as usize, bytes));
    }
    memory
}

unsafe extern "C" fn free_pages_counted(this: Object, memory: *mut c_void, bytes: usize) -> bool {
    // The cage's own heap was reserved before we came; that is no business of the account.
    if let Some(charged) = RESERVED.with_borrow_mut(|reserved| reserved.remove(&(memory as usize))) {
        refund(charged);
    }
    // SAFETY: V8 called us as this function of `this`, with what it was given by it.
    unsafe { (page_functions().free)(this, memory, bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_refuses_over_its_limit_and_grants_again_after_a_refund() {
        reset();
        set_limit(1000);
        assert!(charge(900));
        assert!(!charge(200));
        assert!(take_refused() && !take_refused());
        refund(500);
        assert!(charge(200));
    }

    #[test]
    fn what_v8_cannot_do_without_is_granted_and_counted() {
        reset();
        set_limit(10);
        assert!(charge(64));
        assert_eq!(used(), 64);
        assert!(!charge(65));
    }
}
