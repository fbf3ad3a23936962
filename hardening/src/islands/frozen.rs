//! What later threads of a worker rely on, in a page that becomes read-only before the first tenant
//! moves in.
//!
//! The page records which keys the thread of a slot may open, where the islands are, and where
//! faults are recorded. If these values were in ordinary memory, a tenant that can write anywhere,
//! but cannot execute code of its own, could change them and wait for the next thread to start. The
//! main thread stores every value once, before [`freeze`]; a store after `freeze` is a fault.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::keys::Key;
use super::keys::pkru::Pkru;
use super::zone::{ISLAND_BYTES, Zone};

/// The most slots that a process can have.
pub const MOST_SLOTS: usize = 64;

/// Fills a page of its own.
#[repr(C, align(4096))]
pub(crate) struct Frozen {
    /// The fault page.
    pub(crate) fault_page: AtomicPtr<libc::c_void>,
    /// The PKRU value with which a thread writes to the fault page; 0 without keys.
    pub(crate) writer: AtomicU32,
    /// The function that the handler calls when V8 or libc has given up.
    pub(crate) last_words: AtomicPtr<libc::c_void>,
    /// V8's key for JIT pages; 0 if the machine has no keys.
    jit: AtomicU32,
    /// The tenants' keys, by slot; 0 for a slot without a key.
    own: [AtomicU32; MOST_SLOTS],
    /// How many entries of `zone` are used.
    zone_parts: AtomicUsize,
    /// The zone, in the form of [`Zone::parts`].
    zone: [AtomicUsize; MOST_SLOTS + 1],
}

pub(crate) static FROZEN: Frozen = Frozen {
    fault_page: AtomicPtr::new(ptr::null_mut()),
    writer: AtomicU32::new(0),
    last_words: AtomicPtr::new(ptr::null_mut()),
    jit: AtomicU32::new(0),
    own: [const { AtomicU32::new(0) }; MOST_SLOTS],
    zone_parts: AtomicUsize::new(0),
    zone: [const { AtomicUsize::new(0) }; MOST_SLOTS + 1],
};

/// Stores where the islands are, V8's key for JIT pages, and the key of each slot. It consumes the
/// [`Key`] values: only the numbers of the keys are left. Slots from [`MOST_SLOTS`] on have no key.
pub fn assign(zone: &Zone, jit: Option<u8>, own: Vec<Key>) {
    let parts = zone.parts();
    for (known, part) in FROZEN.zone.iter().zip(&parts) {
        known.store(usize::try_from(*part).unwrap_or(0), Ordering::Relaxed);
    }
    FROZEN.zone_parts.store(parts.len().min(MOST_SLOTS + 1), Ordering::Relaxed);
    FROZEN.jit.store(jit.unwrap_or(0).into(), Ordering::Relaxed);
    for (known, key) in FROZEN.own.iter().zip(own) {
        known.store(key.number().into(), Ordering::Relaxed);
    }
}

/// Makes the page read-only, for good.
///
/// # Errors
/// The kernel refuses.
pub fn freeze() -> io::Result<()> {
    let page = ptr::from_ref(&FROZEN).cast_mut().cast();
    // SAFETY: `FROZEN` fills whole pages with nothing else in them, and is not stored to again.
    let result = unsafe { libc::mprotect(page, size_of::<Frozen>(), libc::PROT_READ) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where the islands are.
#[must_use]
pub fn zone() -> Zone {
    let parts = FROZEN.zone.iter().take(FROZEN.zone_parts.load(Ordering::Relaxed));
    let parts: Vec<_> = parts.map(|part| part.load(Ordering::Relaxed) as u64).collect();
    Zone::from_parts(&parts).unwrap_or_else(|| Zone::place(0, || 0))
}

/// Whether an address is on an island; the gap in front of an island belongs to the island.
#[must_use]
pub fn is_in_zone(address: usize) -> bool {
    let islands = FROZEN.zone_parts.load(Ordering::Relaxed).saturating_sub(1);
    let base = FROZEN.zone.first().map_or(0, |base| base.load(Ordering::Relaxed));
    address.checked_sub(base).is_some_and(|offset| offset < islands * ISLAND_BYTES)
}

fn key(known: &AtomicU32) -> Option<u8> {
    u8::try_from(known.load(Ordering::Relaxed)).ok().filter(|key| *key != 0)
}

/// The key of a slot; `None` if the layer is off, or the slot does not exist.
#[must_use]
pub fn key_of(slot: usize) -> Option<u8> {
    key(FROZEN.own.get(slot)?)
}

/// V8's key for JIT pages, which V8 takes even if the layer is off; `None` on a machine without
/// keys.
#[must_use]
pub fn jit_key() -> Option<u8> {
    key(&FROZEN.jit)
}

/// The PKRU value of a slot's thread: key 0 and the slot's own key are open, and V8's key for
/// reading. `None` if the slot has no key.
#[must_use]
pub fn pkru_of(slot: usize) -> Option<Pkru> {
    Some(Pkru::of_worker_thread(jit_key()?).open_number(key_of(slot)?))
}

/// The address of the page, for tests that try to write to it.
#[must_use]
pub fn address() -> usize {
    ptr::from_ref(&FROZEN) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frozen_page_contains_nothing_else() {
        assert_eq!(address() % 4096, 0);
        assert_eq!(size_of::<Frozen>() % 4096, 0);
    }

    #[test]
    fn what_is_assigned_is_read_back() {
        let zone = Zone::place(3, || 7);
        assign(&zone, None, Vec::new());
        assert_eq!((super::zone(), key_of(0), pkru_of(99)), (zone.clone(), None, None));
        let range = zone.range();
        assert!(is_in_zone(range.start) && is_in_zone(range.end - 1));
        assert!(!is_in_zone(range.start - 1) && !is_in_zone(range.end) && !is_in_zone(0));
    }
}
