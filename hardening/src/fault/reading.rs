//! The supervisor's side: the pages that it shares with one worker. It may read the accounts at any
//! time, and reads the record when the worker is dead.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::page::{Accounts, NO_SLOT, OUT_OF_MEMORY, Raw, SHARED_BYTES, WRITTEN, WRONG_KEYS};
use crate::islands::frozen::MOST_SLOTS;
use crate::process::PAGE_BYTES;
use crate::process::siginfo::SEGV_PKUERR;

/// An [`super::Account`] as the supervisor reads it: an allegation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub now: u64,
    pub ever: u64,
}

/// A fault, as alleged by the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub signal: libc::c_int,
    pub code: libc::c_int,
    /// The slot whose thread faulted; `None` if it was one of the worker's own threads.
    pub slot: Option<u32>,
    pub pc: u64,
    pub kind: Kind,
    /// How many bytes the process could still have committed at that moment ([`super::room`]).
    pub room: u64,
    /// Whether it happened inside libc's allocator.
    pub in_allocator: bool,
}

/// What kind of fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A load or store at `address`. The page carries `key`, which was closed.
    ClosedKey { address: u64, key: u32 },
    /// A system call that the filter does not allow.
    Refused { call: libc::c_int },
    /// An access where nothing is mapped, or that the protection of the page forbids.
    Access { address: u64 },
    /// The thread had keys open other than its own.
    WrongKeys,
    /// V8 or libc has given up.
    GaveUp,
    /// V8 was refused memory that it cannot do without.
    OutOfMemory,
}

/// The memory that the supervisor shares with one worker. Neither side can resize it.
#[derive(Debug)]
pub struct FaultPage {
    memory: OwnedFd,
    map: MmapRaw,
}

impl FaultPage {
    /// # Errors
    /// The kernel refuses the memory.
    pub fn new() -> io::Result<Self> {
        let memory = memfd_create(c"enisle-fault", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(memory.try_clone()?);
        file.set_len(SHARED_BYTES as u64)?;
        // If the worker could shorten the file, reading it would raise SIGBUS in the supervisor.
        fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        Ok(Self { map: MmapRaw::map_raw(&file)?, memory })
    }

    /// The memory's descriptor, to be passed to the worker.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    pub(super) fn raw(&self) -> &Raw {
        // SAFETY: the map begins with a page, larger than `Raw` and aligned for it, and lives as
        // long as `self`. Every field is an atomic: any bytes are a valid one, and it may change at
        // any time.
        unsafe { &*self.map.as_ptr().cast::<Raw>() }
    }

    fn accounts(&self) -> &Accounts {
        // SAFETY: the map has two pages.
        let page = unsafe { self.map.as_ptr().add(PAGE_BYTES) };
        // SAFETY: as in `raw`: the page is larger than `Accounts` and aligned for it.
        unsafe { &*page.cast::<Accounts>() }
    }

    /// How much each slot has taken outside the islands, as claimed by the worker.
    #[must_use]
    pub fn taken(&self) -> [Taken; MOST_SLOTS] {
        self.accounts().each_ref().map(|account| Taken {
            now: u64::try_from(account.now.load(Ordering::Relaxed)).unwrap_or(0),
            ever: account.ever.load(Ordering::Relaxed),
        })
    }

    /// How much CPU time the slot's thread had used when it recorded a fault, or was about to end
    /// the process. `None` if it recorded no time. This is an allegation too.
    #[must_use]
    pub fn computed(&self, slot: u32) -> Option<Duration> {
        let us = self.raw().computed_us.get(usize::try_from(slot).ok()?)?.load(Ordering::Acquire);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// The fault that ended the worker. `None` if no record was completed, or if its signal is not
    /// one that a fault raises.
    #[must_use]
    pub fn read(&self) -> Option<Fault> {
        let raw = self.raw();
        if raw.state.load(Ordering::Acquire) != WRITTEN {
            return None;
        }
        let (signal, code) = (raw.signal.load(Ordering::Relaxed), raw.code.load(Ordering::Relaxed));
        let address = raw.address.load(Ordering::Relaxed);
        let kind = match signal {
            libc::SIGSEGV if code == SEGV_PKUERR => Kind::ClosedKey { address, key: raw.key.load(Ordering::Relaxed) },
            libc::SIGSEGV | libc::SIGBUS => Kind::Access { address },
            libc::SIGSYS => Kind::Refused { call: raw.call.load(Ordering::Relaxed) },
            libc::SIGABRT if code == WRONG_KEYS => Kind::WrongKeys,
            libc::SIGABRT if code == OUT_OF_MEMORY => Kind::OutOfMemory,
            libc::SIGILL | libc::SIGTRAP | libc::SIGABRT => Kind::GaveUp,
            _ => return None,
        };
        let slot = raw.slot.load(Ordering::Relaxed);
        let slot = (slot != NO_SLOT).then_some(slot);
        let (pc, room) = (raw.pc.load(Ordering::Relaxed), raw.room.load(Ordering::Relaxed));
        let in_allocator = raw.in_allocator.load(Ordering::Relaxed) == 1;
        Some(Fault { signal, code, slot, pc, kind, room, in_allocator })
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::WRITING;
    use super::*;

    fn page_with(write: impl Fn(&Raw)) -> FaultPage {
        let page = FaultPage::new().unwrap();
        write(page.raw());
        page
    }

    #[test]
    fn a_page_that_is_empty_or_half_written_holds_no_record() {
        assert_eq!(page_with(|_| {}).read(), None);
        assert_eq!(page_with(|raw| raw.state.store(WRITING, Ordering::Release)).read(), None);
    }

    #[test]
    fn a_record_of_a_signal_that_no_fault_raises_is_ignored() {
        let page = page_with(|raw| {
            raw.signal.store(libc::SIGTERM, Ordering::Relaxed);
            raw.state.store(WRITTEN, Ordering::Release);
        });
        assert_eq!(page.read(), None);
    }

    #[test]
    fn a_closed_key_is_distinguished_from_another_fault_by_its_code() {
        let fault = |code| {
            page_with(|raw| {
                raw.signal.store(libc::SIGSEGV, Ordering::Relaxed);
                raw.code.store(code, Ordering::Relaxed);
                raw.key.store(7, Ordering::Relaxed);
                raw.address.store(0x1000, Ordering::Relaxed);
                raw.slot.store(NO_SLOT, Ordering::Relaxed);
                raw.state.store(WRITTEN, Ordering::Release);
            })
            .read()
            .unwrap()
        };
        assert_eq!(fault(SEGV_PKUERR).kind, Kind::ClosedKey { address: 0x1000, key: 7 });
        assert_eq!(fault(1).kind, Kind::Access { address: 0x1000 });
        assert_eq!(fault(1).slot, None);
    }

    #[test]
    fn the_page_cannot_be_resized() {
        let page = FaultPage::new().unwrap();
        let file = File::from(page.descriptor().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err());
    }
}
