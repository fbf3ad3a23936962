//! The memory of V8, ICU and the C++ library: the archive calls the functions below where it would
//! call libc's (`v8/patches/15-memory-hooks.patch`).
//!
//! For now they pass everything on. Their invariant, once they do more: the address decides where
//! memory goes back to, never the thread. The archive frees on one thread what it took on another,
//! what it took before `main`, and what libc allocated for it.

use std::ffi::c_void;
use std::io;

use libc::size_t;

/// All functions of ours that the archive knows, in the order of `v8/patches/16-hooks-seen.patch`.
const HOOKS: [&str; 10] =
    ["take", "give_back", "most", "mmap", "malloc", "calloc", "realloc", "free", "aligned_alloc", "usable_size"];

unsafe extern "C" {
    /// A bit for each of [`HOOKS`] that the linker has found, in the archive.
    fn v8_tenant_hooks() -> u32;
}

/// The archive skips a missing function without a word: limits would not hold, and nobody would see
/// it.
pub(super) fn check() -> io::Result<()> {
    // SAFETY: the function takes nothing and reads constants of the program.
    let found = unsafe { v8_tenant_hooks() };
    let missing: Vec<_> =
        HOOKS.iter().enumerate().filter(|(bit, _)| found >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("this program was linked without V8's hooks: {}", missing.join(", "))))
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_malloc(bytes: size_t) -> *mut c_void {
    count::call("malloc");
    // SAFETY: the caller's.
    unsafe { libc::malloc(bytes) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_calloc(elements: size_t, bytes: size_t) -> *mut c_void {
    count::call("calloc");
    // SAFETY: the caller's.
    unsafe { libc::calloc(elements, bytes) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_realloc(memory: *mut c_void, bytes: size_t) -> *mut c_void {
    count::call("realloc");
    // SAFETY: the caller's.
    unsafe { libc::realloc(memory, bytes) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_free(memory: *mut c_void) {
    count::call("free");
    // SAFETY: the caller's.
    unsafe { libc::free(memory) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_aligned_alloc(alignment: size_t, bytes: size_t) -> *mut c_void {
    count::call("aligned_alloc");
    // SAFETY: the caller's.
    unsafe { libc::aligned_alloc(alignment, bytes) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn v8_tenant_usable_size(memory: *mut c_void) -> size_t {
    count::call("usable_size");
    // SAFETY: the caller's.
    unsafe { libc::malloc_usable_size(memory) }
}

#[cfg(not(test))]
mod count {
    pub(super) const fn call(_: &'static str) {}
}

#[cfg(test)]
mod count {
    use std::cell::Cell;

    use super::HOOKS;

    thread_local! {
        static CALLS: Cell<[u32; HOOKS.len()]> = const { Cell::new([0; HOOKS.len()]) };
    }

    pub(super) fn call(name: &'static str) {
        let mut calls = CALLS.get();
        for (count, hook) in calls.iter_mut().zip(HOOKS) {
            *count += u32::from(hook == name);
        }
        CALLS.set(calls);
    }

    /// The hooks that this thread has called in `work`, each as often as it was.
    pub(super) fn calls(work: impl FnOnce()) -> Vec<(&'static str, u32)> {
        CALLS.set([0; HOOKS.len()]);
        work();
        HOOKS.into_iter().zip(CALLS.get()).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one chain of calls hands one address on")]
mod tests {
    use std::hint::black_box;

    use super::*;

    // Of the archive: operators new and delete of C++, ICU's functions, and what libc's names have
    // become.
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
    fn operators_new_and_delete_come_here() {
        // The compiler knows these functions, and leaves out a pair whose memory nobody sees.
        // SAFETY: each address is given back once, to the function that belongs to the one that it
        // came from.
        let called = count::calls(|| unsafe { delete(black_box(new(100))) });
        assert_eq!(called, [("malloc", 1), ("free", 1)]);
        // SAFETY: as above.
        let called = count::calls(|| unsafe { delete_aligned(black_box(new_aligned(100, 64)), 64) });
        assert_eq!(called, [("free", 1), ("aligned_alloc", 1)]);
    }

    #[test]
    fn icu_comes_here() {
        // SAFETY: as above.
        let called = count::calls(|| unsafe { icu_free(icu_realloc(icu_malloc(100), 200)) });
        assert_eq!(called, [("malloc", 1), ("realloc", 1), ("free", 1)]);
    }

    #[test]
    fn the_rest_of_libcs_functions_come_here() {
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
    fn v8_itself_comes_here() {
        let called = count::calls(|| {
            drop(v8::new_single_threaded_default_platform(false));
        });
        let hooks: Vec<_> = called.iter().map(|(name, _)| *name).collect();
        assert!(hooks.contains(&"malloc") && hooks.contains(&"free"), "{called:?}");
    }
}
