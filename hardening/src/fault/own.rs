//! The worker's side: which thread belongs to which slot, how much memory each slot has taken, and
//! how much CPU time each thread has used.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use memmap2::MmapRaw;

use super::page::{Account, Accounts, Raw, SHARED_BYTES};
use crate::islands::frozen::{self, FROZEN};
use crate::islands::keys::pkru::Pkru;
use crate::islands::keys::{Key, KeyError};
use crate::process::PAGE_BYTES;
use crate::process::thread::CpuClock;

/// Marks a slot that its thread has left. It is not 0, so no thread can take the slot again, and
/// not a valid thread id, so no thread is mistaken for the slot's.
const USED_UP: i32 = -1;

/// Registers the calling thread as that of `slot`, and returns whether it could: false if the slot
/// is or was taken, or does not exist. Afterwards the thread has only key 0 and the record's key
/// open, and must install its own keys next. Call this before any tenant's code runs in the thread.
#[must_use]
pub fn thread_of(slot: u32) -> bool {
    let this = nix::unistd::gettid().as_raw();
    let known = open_page().zip(usize::try_from(slot).ok()).and_then(|(raw, slot)| raw.threads.get(slot));
    known.is_some_and(|known| known.compare_exchange(0, this, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// Notes that the thread of `slot` is about to end, because the kernel may then reuse the thread's
/// id. The thread calls this itself, when it will not run a tenant's code again.
pub fn thread_leaves(slot: u32) {
    let slot = usize::try_from(slot).unwrap_or(usize::MAX);
    if let Some(known) = open_page().and_then(|raw| raw.threads.get(slot)) {
        known.store(USED_UP, Ordering::Release);
    }
    // `open_page` has closed the thread's own key. Open it again, because a thread frees memory
    // when it ends. The value comes from the frozen page, never from the stack.
    if let Some(pkru) = frozen::pkru_of(slot) {
        pkru.install();
    }
}

/// Opens the key of the record's page, closes every other key but 0, and returns the page. The key
/// stays open: a caller that does not end the process next must close it.
pub(super) fn open_page() -> Option<&'static Raw> {
    let page = FROZEN.fault_page.load(Ordering::Acquire).cast::<Raw>();
    if page.is_null() {
        return None;
    }
    let writer = FROZEN.writer.load(Ordering::Acquire);
    if writer != 0 {
        Pkru::from_bits(writer).install();
    }
    // SAFETY: `share` mapped the page for the life of the process, a page has room for a `Raw`
    // (asserted in `page`), and its key is open now.
    Some(unsafe { &*page })
}

/// Maps both pages into the worker. Call this before the filter is installed, because the filter
/// refuses to map a descriptor.
///
/// # Errors
/// The descriptor cannot be mapped, or is too small.
pub fn share(page: OwnedFd) -> io::Result<()> {
    let map = MmapRaw::map_raw(&File::from(page))?;
    if map.len() < SHARED_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory for faults is too small"));
    }
    FROZEN.fault_page.store(map.as_mut_ptr().cast(), Ordering::Release);
    // The map stays for the life of the process.
    std::mem::forget(map);
    Ok(())
}

/// The account of a slot, which the supervisor may read at any time. `None` if the slot does not
/// exist, or if no supervisor has shared its pages ([`share`]).
#[inline]
#[must_use]
pub fn account(slot: u32) -> Option<&'static Account> {
    let page = FROZEN.fault_page.load(Ordering::Acquire).cast::<u8>();
    if page.is_null() {
        return None;
    }
    // SAFETY: `share` mapped two pages.
    let page = unsafe { page.add(PAGE_BYTES) };
    // SAFETY: `share` mapped both for the life of the process, a page has room for `Accounts`
    // (asserted in `page`), and the second page has no key of its own.
    unsafe { &*page.cast::<Accounts>() }.get(usize::try_from(slot).ok()?)
}

/// Gives the record's page a key of its own. From then on only `open_page` opens this key, and no
/// caller of `open_page` runs a tenant's code before it closes the key.
///
/// # Errors
/// The kernel refuses.
pub fn guard(key: &Key) -> Result<(), KeyError> {
    let page = FROZEN.fault_page.load(Ordering::Acquire) as usize;
    // SAFETY: `share` mapped the page, and only callers of `open_page`, which opens the key, touch
    // it.
    unsafe { key.tag(&(page..page + PAGE_BYTES), libc::PROT_READ | libc::PROT_WRITE) }?;
    FROZEN.writer.store(Pkru::CLOSED.open(key).bits(), Ordering::Release);
    Ok(())
}

/// Records how much CPU time the calling thread has used. The thread calls this when it is about to
/// end the process because of what its tenant did, and must not run a tenant's code afterwards.
pub fn thread_ends_process() {
    if let Some(raw) = open_page() {
        note_computed(raw);
    }
}

/// Records the CPU time of the calling thread, and returns the thread's slot, if it has one.
pub(super) fn note_computed(raw: &Raw) -> Option<usize> {
    // SAFETY: gettid has no preconditions.
    let this = unsafe { libc::gettid() };
    let slot = raw.threads.iter().position(|thread| thread.load(Ordering::Acquire) == this)?;
    let computed_us = u64::try_from(CpuClock::OWN.now().as_micros()).unwrap_or(u64::MAX);
    raw.computed_us.get(slot)?.store(computed_us, Ordering::Release);
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::super::reading::{FaultPage, Taken};
    use super::*;
    use crate::islands::frozen::MOST_SLOTS;

    #[test]
    fn the_cpu_time_of_a_slot_is_known_once_its_thread_has_recorded_it() {
        let page = FaultPage::new().unwrap();
        page.raw().threads[3].store(nix::unistd::gettid().as_raw(), Ordering::Release);
        assert_eq!(page.computed(3), None);
        assert_eq!(note_computed(page.raw()), Some(3));
        let computed = page.computed(3).unwrap();
        assert!(computed <= CpuClock::OWN.now() && page.computed(4).is_none() && page.computed(u32::MAX).is_none());
    }

    #[test]
    fn the_supervisor_reads_a_workers_account_and_never_less_than_zero() {
        let page = FaultPage::new().unwrap();
        share(page.descriptor().try_clone_to_owned().unwrap()).unwrap();
        account(3).unwrap().take(5000);
        account(3).unwrap().give_back(1000);
        account(4).unwrap().give_back(1);
        let taken = page.taken();
        assert_eq!((taken[3], taken[4]), (Taken { now: 4000, ever: 5000 }, Taken::default()));
        let most = u32::try_from(MOST_SLOTS).unwrap();
        assert!(account(most - 1).is_some() && account(most).is_none());
        assert_eq!(page.read(), None);
    }
}
