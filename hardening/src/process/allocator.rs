//! libc's allocator, configured to return freed memory to the kernel (mallopt(3), malloc_trim(3)).

/// A block of this size or more gets a mapping of its own, which is unmapped when the block is
/// freed. By default the allocator raises this threshold to the size of the block that was freed
/// last, and so keeps blocks of up to 32 MiB.
const OWN_MAPPING_BYTES: i32 = 128 << 10;
/// How many arenas there are. Each keeps the memory that its threads have freed.
const ARENAS: i32 = 2;

/// Makes the allocator give back large blocks as soon as they are freed. Call this before any other
/// thread starts.
pub fn give_back_large_blocks() {
    // SAFETY: mallopt takes two numbers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives back the pages of freed small blocks, wherever they are. This takes about a millisecond.
pub fn give_back_freed_pages() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}
