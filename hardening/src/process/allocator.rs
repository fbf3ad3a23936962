//! libc's allocator, configured to give back what is freed (mallopt(3), malloc_trim(3)).

/// Blocks of this size and more get a mapping of their own, which is unmapped when they are freed.
/// By default the allocator raises the threshold to the size freed last, and keeps blocks of up to
/// 32 MiB.
const OWN_MAPPING_BYTES: i32 = 128 << 10;
/// The number of arenas: each keeps what its threads have freed.
const ARENAS: i32 = 2;

/// Has large blocks given back as soon as they are freed. To be called before any other thread
/// starts.
pub fn give_back_large_blocks() {
    // SAFETY: mallopt takes two numbers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives back the pages of freed small blocks, wherever they are; takes about a millisecond.
pub fn give_back_freed_pages() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}
