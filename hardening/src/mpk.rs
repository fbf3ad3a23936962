//! Memory protection keys: how many there are, and taking them before the filter forbids it.
//!
//! A key names the pages of one tenant's cage (`pkeys(7)`). This version assigns keys and tags cages; threads do not yet
//! close each other's keys, so no document claims that they keep tenants apart, and [`crate::Posture`] says so.

/// A key of this process, allocated and never freed: a freed key that is allocated again opens old pages.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Key(u8);

impl Key {
    /// For V8's `int pkey`.
    #[must_use]
    pub fn number(&self) -> i32 {
        i32::from(self.0)
    }
}

/// Takes up to `most` keys, open for this thread and for every thread that it starts. None where the processor or the
/// kernel has none.
#[must_use]
pub fn take(most: usize) -> Vec<Key> {
    std::iter::from_fn(allocate).take(most).collect()
}

/// How many keys a fresh process could take: what V8 needs for itself is not subtracted.
#[must_use]
pub fn available() -> usize {
    let keys = take(16);
    for key in &keys {
        // SAFETY: pkey_free takes a number; the key was allocated above and tags no page.
        unsafe { libc::syscall(libc::SYS_pkey_free, key.number()) };
    }
    keys.len()
}

fn allocate() -> Option<Key> {
    // SAFETY: pkey_alloc takes two numbers: no flags, no access disabled.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
    u8::try_from(key).ok().map(Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_keys_leaves_as_many_as_before() {
        assert_eq!(available(), available());
    }
}
