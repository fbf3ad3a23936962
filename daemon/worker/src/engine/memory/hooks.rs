//! The memory of V8, ICU and the C++ library: the archive calls the functions below where it would
//! call libc's (`v8/patches/15-memory-hooks.patch`).
//!
//! On a tenant's thread, V8's `malloc` is for zones (working memory of parser and compiler), stacks
//! of regular expressions, and serialisers. That memory comes from the tenant's heap on its island
//! ([`super::heap`]), behind its key.
//!
//! All else comes from the tenant's heap in the commons ([`super::commons`]):
//!
//! | caller | purpose |
//! |---|---|
//! | V8, `malloc` while it writes code | metadata of code, for all threads |
//! | V8, `aligned_alloc` | isolate objects, which the watchdog must reach; tables of names |
//! | C++, `operator new` | V8's containers and objects, task runners, caches of `Intl` |
//! | ICU | formatters, and caches for all threads |
//!
//! Other threads may later use some of this memory, and nothing shows which part, so none of it can
//! be on an island. On a thread that is not a tenant's, all memory is libc's.
//!
//! Where a block goes back to depends on its address, never on the thread that frees it. The
//! archive frees on one thread what it took on another, what it took before `main`, and what libc
//! allocated for it.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;

use libc::size_t;

use super::{commons, confinement, date_patterns, heap, mappings, quota};
use crate::engine::last_words;

/// All hook functions that the archive knows, in the order of `v8/patches/16-hooks-seen.patch`.
const HOOKS: [&str; 10] =
    ["take", "give_back", "most", "mmap", "malloc", "calloc", "realloc", "free", "aligned_alloc", "usable_size"];

unsafe extern "C" {
    /// A function of the archive: a bit for each of [`HOOKS`] that the linker has found.
    fn v8_tenant_hooks() -> u32;
}

/// Checks that the program has every hook. The archive silently skips a missing one: limits would
/// not hold, and nothing would show it.
pub(in crate::engine) fn check() -> io::Result<()> {
    // SAFETY: the function takes nothing and reads constants of the program.
    let found = unsafe { v8_tenant_hooks() };
    let mut missing: Vec<_> =
        HOOKS.iter().enumerate().filter(|(bit, _)| found >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if !mappings::sees_commits() {
        missing.push("mprotect");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("this program was linked without V8's hooks: {}", missing.join(", "))))
}

/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_malloc(bytes: size_t) -> *mut c_void {
    count::call("malloc");
    // SAFETY: the caller keeps this function's contract.
    of_a_tenant(bytes).unwrap_or_else(|| unsafe { libc::malloc(bytes) })
}

/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_calloc(elements: size_t, bytes: size_t) -> *mut c_void {
    count::call("calloc");
    let Some(whole) = elements.checked_mul(bytes) else { return ptr::null_mut() };
    match of_a_tenant(whole) {
        Some(block) if !block.is_null() => {
            // SAFETY: the block has `whole` bytes.
            unsafe { block.cast::<u8>().write_bytes(0, whole) };
            block
        }
        Some(null) => null,
        // SAFETY: the caller keeps this function's contract.
        None => unsafe { libc::calloc(elements, bytes) },
    }
}

/// Always moves the block. That costs little, because calls are rare: V8 makes none while it
/// compiles, matches, sorts or reads JSON, and ICU makes three for 300 formatters.
///
/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_realloc(memory: *mut c_void, bytes: size_t) -> *mut c_void {
    count::call("realloc");
    if memory.is_null() {
        // SAFETY: as for `malloc`.
        return unsafe { v8_tenant_malloc(bytes) };
    }
    // SAFETY: the caller keeps this function's contract.
    let Some(before) = (unsafe { size(memory) }) else {
        // SAFETY: libc has allocated it, and the caller keeps this function's contract.
        return unsafe { libc::realloc(memory, bytes) };
    };
    // SAFETY: as for `malloc`.
    let block = unsafe { v8_tenant_malloc(bytes) };
    if block.is_null() {
        return block;
    }
    // SAFETY: both blocks are live, and have at least that many bytes.
    unsafe { memory.cast::<u8>().copy_to_nonoverlapping(block.cast(), before.min(bytes)) };
    // SAFETY: the caller does not use it any more.
    unsafe { give_back(memory) };
    block
}

/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_free(memory: *mut c_void) {
    count::call("free");
    // SAFETY: the caller keeps this function's contract.
    unsafe { give_back(memory) };
}

/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_aligned_alloc(alignment: size_t, bytes: size_t) -> *mut c_void {
    count::call("aligned_alloc");
    // SAFETY: the caller keeps this function's contract.
    commons::take(bytes, alignment).unwrap_or_else(|| unsafe { libc::aligned_alloc(alignment, bytes) })
}

/// # Safety
/// As for libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_usable_size(memory: *mut c_void) -> size_t {
    count::call("usable_size");
    // SAFETY: the caller keeps this function's contract.
    unsafe { size(memory) }.unwrap_or_else(|| unsafe { libc::malloc_usable_size(memory) })
}

/// A block on the island of the calling thread, if the thread has one. While V8 has the key of its
/// JIT pages open, the block is in the commons: V8 then allocates metadata of code, which all
/// threads read.
fn of_a_tenant(bytes: usize) -> Option<*mut c_void> {
    if confinement::writes_code() { commons::take(bytes, ALIGNMENT) } else { heap::take(bytes, ALIGNMENT) }
}

/// The same as malloc's: enough for everything that does not request an alignment.
const ALIGNMENT: usize = 16;

/// A block that all threads may use. If there is no memory, the process ends: C++ without
/// exceptions cannot handle that.
fn common(bytes: usize, alignment: usize) -> *mut c_void {
    let taken = if date_patterns::is_note() && alignment <= ALIGNMENT {
        commons::take_for_good(bytes)
    } else {
        commons::take(bytes, alignment)
    };
    let block = taken.unwrap_or_else(|| {
        if alignment <= ALIGNMENT {
            // SAFETY: malloc has no preconditions.
            unsafe { libc::malloc(bytes) }
        } else {
            // SAFETY: the alignment is a power of two, and the size a multiple of it.
            unsafe { libc::aligned_alloc(alignment, bytes.next_multiple_of(alignment)) }
        }
    });
    if block.is_null() {
        last_words::no_memory_left();
    }
    block
}

/// Frees any block, or null.
///
/// # Safety
/// As for `free`.
unsafe fn give_back(block: *mut c_void) {
    // SAFETY: the caller keeps this function's contract.
    if unsafe { heap::give_back(block) } {
        return;
    }
    // SAFETY: the caller keeps this function's contract.
    if !unsafe { commons::give_back(block) } {
        // SAFETY: libc has allocated it, and the caller keeps this function's contract.
        unsafe { libc::free(block) };
    }
}

/// The size of a block; `None` if the block is libc's.
///
/// # Safety
/// The block is live.
unsafe fn size(block: *mut c_void) -> Option<usize> {
    // SAFETY: the caller keeps this function's contract.
    let on_an_island = unsafe { heap::size(block) };
    // SAFETY: the caller keeps this function's contract.
    on_an_island.or_else(|| unsafe { commons::size(block) })
}

/// Operators new and delete, replacing the archive's. All pairs do the same, whether they are for
/// arrays, get a size, or may return null. Here none returns null.
macro_rules! operators {
    (new: $($new:ident)*; aligned: $($aligned:ident)*; delete: $($delete:ident)*) => {
        $(
            /// # Safety
            /// As for C++'s operator.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $new(bytes: size_t) -> *mut c_void {
                count::call("new");
                common(bytes, ALIGNMENT)
            }
        )*
        $(
            /// # Safety
            /// As for C++'s operator.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $aligned(bytes: size_t, alignment: size_t) -> *mut c_void {
                count::call("new");
                common(bytes, alignment)
            }
        )*
        $(
            /// # Safety
            /// As for C++'s operator.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $delete(block: *mut c_void) {
                count::call("delete");
                // SAFETY: the caller keeps this function's contract.
                unsafe { give_back(block) };
            }
        )*
    };
}

operators! {
    new: _Znwm _Znam _ZnwmRKSt9nothrow_t _ZnamRKSt9nothrow_t;
    aligned: _ZnwmSt11align_val_t _ZnamSt11align_val_t _ZnwmSt11align_val_tRKSt9nothrow_t
        _ZnamSt11align_val_tRKSt9nothrow_t;
    delete: _ZdlPv _ZdaPv _ZdlPvm _ZdaPvm _ZdlPvRKSt9nothrow_t _ZdaPvRKSt9nothrow_t
        _ZdlPvSt11align_val_t _ZdaPvSt11align_val_t _ZdlPvmSt11align_val_t _ZdaPvmSt11align_val_t
        _ZdlPvSt11align_val_tRKSt9nothrow_t _ZdaPvSt11align_val_tRKSt9nothrow_t
}

/// From this size on a block may be refused to ICU. ICU requests such large blocks for text and for
/// what it makes of text, and checks whether it got them (`UnicodeString::allocate`,
/// `MaybeStackArray::resize`, `FormattedStringBuilder`). For small blocks it does not always check.
const MAY_FAIL_FROM: usize = 1 << 20;

/// Whether ICU must do without a block because the block would end the process.
fn is_refused(bytes: usize) -> bool {
    bytes >= MAY_FAIL_FROM && quota::ends_instead(bytes)
}

unsafe extern "C" fn icu_malloc(_: *const c_void, bytes: size_t) -> *mut c_void {
    count::call("icu");
    if is_refused(bytes) { ptr::null_mut() } else { common(bytes, ALIGNMENT) }
}

unsafe extern "C" fn icu_realloc(_: *const c_void, block: *mut c_void, bytes: size_t) -> *mut c_void {
    if is_refused(bytes) {
        return ptr::null_mut();
    }
    let larger = common(bytes, ALIGNMENT);
    if !block.is_null() {
        // SAFETY: ICU's block is live.
        let before = unsafe { v8_tenant_usable_size(block) };
        // SAFETY: both blocks are live, and have at least that many bytes.
        unsafe { block.cast::<u8>().copy_to_nonoverlapping(larger.cast(), before.min(bytes)) };
        // SAFETY: ICU does not use it any more.
        unsafe { give_back(block) };
    }
    larger
}

/// `icu::UnicodeString` (`unicode/unistr.h`), which has 64 bytes.
#[repr(C, align(16))]
struct UnicodeString(std::mem::MaybeUninit<[u8; 64]>);

/// Replaces ICU's `UnicodeString::clone` (`--wrap`, `build.rs`). If ICU is refused the memory, the
/// copy is empty and not null, because V8 does not check for null there (`js-segments.cc`).
///
/// # Safety
/// As for ICU's function.
#[unsafe(export_name = "__wrap__ZNK6icu_7813UnicodeString5cloneEv")]
unsafe extern "C" fn clone_text(text: *const UnicodeString) -> *mut UnicodeString {
    // SAFETY: the caller keeps this function's contract.
    let copy = unsafe { icu_clone_text(text) };
    if !copy.is_null() {
        return copy;
    }
    let mut empty = UnicodeString(std::mem::MaybeUninit::uninit());
    // SAFETY: a string fits there. An empty string holds nothing that must be given back.
    unsafe { icu_repeated_text(&raw mut empty, 0, 0, 0) };
    // SAFETY: the string was made just now.
    unsafe { icu_clone_text(&raw const empty) }
}

unsafe extern "C" fn icu_free(_: *const c_void, block: *mut c_void) {
    // SAFETY: the caller keeps this function's contract.
    unsafe { give_back(block) };
}

unsafe extern "C" {
    /// Sets ICU's allocator, in the archive. To be called before ICU has allocated anything.
    #[link_name = "u_setMemoryFunctions_78"]
    fn set_memory_functions_of_icu(
        context: *const c_void,
        malloc: unsafe extern "C" fn(*const c_void, size_t) -> *mut c_void,
        realloc: unsafe extern "C" fn(*const c_void, *mut c_void, size_t) -> *mut c_void,
        free: unsafe extern "C" fn(*const c_void, *mut c_void),
        error: *mut c_int,
    );
    /// `icu::UnicodeString::clone() const`, in the archive.
    #[cfg_attr(not(test), link_name = "__real__ZNK6icu_7813UnicodeString5cloneEv")]
    #[cfg_attr(test, link_name = "_ZNK6icu_7813UnicodeString5cloneEv")]
    fn icu_clone_text(text: *const UnicodeString) -> *mut UnicodeString;
    /// `icu::UnicodeString::UnicodeString(int32_t capacity, UChar32, int32_t count)`, in the
    /// archive.
    #[link_name = "_ZN6icu_7813UnicodeStringC1Eiii"]
    fn icu_repeated_text(text: *mut UnicodeString, capacity: c_int, unit: c_int, count: c_int);
    /// `v8::internal::compiler::TypeCache::Get()`, in the archive.
    #[link_name = "_ZN2v88internal8compiler9TypeCache3GetEv"]
    fn make_type_cache() -> *const c_void;
}

/// Makes ICU allocate by the functions above from now on. To be called before V8 starts.
pub(in crate::engine) fn take_over_icu() -> io::Result<()> {
    let mut error = 0;
    // SAFETY: the functions keep malloc's contract, and ICU has not allocated anything yet.
    unsafe { set_memory_functions_of_icu(ptr::null(), icu_malloc, icu_realloc, icu_free, &raw mut error) };
    if error > 0 { Err(io::Error::other(format!("ICU refuses V8's hooks: error {error}"))) } else { Ok(()) }
}

/// Makes the one object that all threads share and that V8 takes from `malloc` on first use. So it
/// is not on the island of the thread that uses it first. V8 makes every other shared object with
/// operator new. A debug build checks whether an island has blocks left when its cage is gone
/// ([`super::cage::Entered`]).
pub(in crate::engine) fn make_what_is_shared() {
    // SAFETY: V8 has started; the function takes nothing.
    unsafe { make_type_cache() };
}

#[cfg(not(test))]
mod count {
    pub(super) const fn call(_: &'static str) {}
}

#[cfg(test)]
mod count {
    use std::cell::Cell;

    const NAMES: [&str; 9] =
        ["malloc", "calloc", "realloc", "free", "aligned_alloc", "usable_size", "new", "delete", "icu"];

    thread_local! {
        static CALLS: Cell<[u32; NAMES.len()]> = const { Cell::new([0; NAMES.len()]) };
    }

    pub(super) fn call(name: &'static str) {
        let mut calls = CALLS.get();
        for (count, hook) in calls.iter_mut().zip(NAMES) {
            *count += u32::from(hook == name);
        }
        CALLS.set(calls);
    }

    /// The hooks that this thread called in `work`, and how often.
    pub(super) fn calls(work: impl FnOnce()) -> Vec<(&'static str, u32)> {
        CALLS.set([0; NAMES.len()]);
        work();
        NAMES.into_iter().zip(CALLS.get()).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one chain of calls hands one address on")]
mod tests {
    use std::hint::black_box;

    use super::*;

    // In the archive: operators new and delete of C++, ICU's functions, and the names that replace
    // libc's.
    unsafe extern "C" {
        #[link_name = "_Znwm"]
        fn new(bytes: size_t) -> *mut c_void;
        #[link_name = "_ZdlPv"]
        fn delete(memory: *mut c_void);
        #[link_name = "_ZnwmSt11align_val_t"]
        fn new_aligned(bytes: size_t, alignment: size_t) -> *mut c_void;
        #[link_name = "_ZdlPvSt11align_val_t"]
        fn delete_aligned(memory: *mut c_void, alignment: size_t);
        #[link_name = "uprv_malloc_78"]
        fn icu_malloc(bytes: size_t) -> *mut c_void;
        #[link_name = "uprv_realloc_78"]
        fn icu_realloc(memory: *mut c_void, bytes: size_t) -> *mut c_void;
        #[link_name = "uprv_free_78"]
        fn icu_free(memory: *mut c_void);
        fn v8_archive_calloc(elements: size_t, bytes: size_t) -> *mut c_void;
        fn v8_archive_free(memory: *mut c_void);
        fn v8_archive_usable_size(memory: *mut c_void) -> size_t;
    }

    #[test]
    fn no_hook_is_missing() {
        check().unwrap();
    }

    #[test]
    fn operators_new_and_delete_reach_the_hooks() {
        // Without `black_box` the compiler would omit a pair of new and delete whose memory is not
        // used.
        // SAFETY: each address is given back once, to the function that matches the one that it
        // came from.
        let called = count::calls(|| unsafe { delete(black_box(new(100))) });
        assert_eq!(called, [("new", 1), ("delete", 1)]);
        // SAFETY: as above.
        let called = count::calls(|| unsafe { delete_aligned(black_box(new_aligned(100, 64)), 64) });
        assert_eq!(called, [("new", 1), ("delete", 1)]);
    }

    #[test]
    fn icu_reaches_the_hooks() {
        // SAFETY: as above.
        let called = count::calls(|| unsafe { icu_free(icu_realloc(icu_malloc(100), 200)) });
        assert_eq!(called, [("malloc", 1), ("realloc", 1), ("free", 1)]);
    }

    #[test]
    fn the_rest_of_libcs_functions_reach_the_hooks() {
        let called = count::calls(|| {
            // SAFETY: the address is given back once, below.
            let memory = unsafe { v8_archive_calloc(10, 10) };
            // SAFETY: `memory` was allocated just now.
            assert!(unsafe { v8_archive_usable_size(memory) } >= 100);
            // SAFETY: as above; it is not used again.
            unsafe { v8_archive_free(memory) };
        });
        assert_eq!(called, [("calloc", 1), ("free", 1), ("usable_size", 1)]);
    }

    #[test]
    fn v8_itself_reaches_the_hooks() {
        let called = count::calls(|| {
            drop(v8::new_single_threaded_default_platform(false));
        });
        let hooks: Vec<_> = called.iter().map(|(name, _)| *name).collect();
        assert!(hooks.contains(&"new") && hooks.contains(&"delete"), "{called:?}");
    }
}
