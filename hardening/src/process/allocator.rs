//! libc's allocator, told to give back what is freed (mallopt(3), malloc_trim(3)).

/// Blocks of that size and more are mapped by themselves, and unmapped when they are freed. Left to
/// itself the allocator raises this to what was freed last, and keeps blocks of 32 MiB.
const OWN_MAPPING_BYTES: i32 = 128 << 10;
/// So many arenas: each keeps what its threads have freed.
const ARENAS: i32 = 2;

/// Has large blocks given back as soon as they are freed. To be called before any thread.
pub fn give_back_large_blocks() {
    // SAFETY: mallopt takes two numbers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives back the pages of freed small blocks, wherever they are; it takes a millisecond or so.
pub fn give_back_freed_pages() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}
