//! The layout of the record's page and the accounts' page. All fields are atomics, because the
//! worker may write to them while the supervisor reads.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::islands::frozen::MOST_SLOTS;
use crate::process::PAGE_BYTES;

/// In place of a `si_code`: the worker itself found wrong keys. The kernel never uses this value
/// with SIGABRT.
pub(super) const WRONG_KEYS: libc::c_int = i32::MIN;
/// As [`WRONG_KEYS`]: V8 ran out of memory, and raised no signal.
pub(super) const OUT_OF_MEMORY: libc::c_int = i32::MIN + 1;

/// The record's page, followed by the accounts' page.
pub(super) const SHARED_BYTES: usize = 2 * PAGE_BYTES;
/// The start of the record's page.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) state: AtomicU32,
    pub(super) signal: AtomicI32,
    pub(super) code: AtomicI32,
    pub(super) key: AtomicU32,
    pub(super) slot: AtomicU32,
    pub(super) call: AtomicI32,
    pub(super) address: AtomicU64,
    pub(super) pc: AtomicU64,
    /// See [`super::Fault::room`].
    pub(super) room: AtomicU64,
    /// 1 if `pc` was in libc's allocator.
    pub(super) in_allocator: AtomicU32,
    /// The id of each slot's thread: 0 before a thread registers, -1 after it has left.
    pub(super) threads: [AtomicI32; MOST_SLOTS],
    /// See [`super::FaultPage::computed`]; 0 if the thread has not recorded it.
    pub(super) computed_us: [AtomicU64; MOST_SLOTS],
}

/// `Raw` must fit its page: `FaultPage::raw` and `open_page` rely on that.
const _: () = assert!(size_of::<Raw>() <= PAGE_BYTES && align_of::<Raw>() <= PAGE_BYTES);

/// What a slot has taken outside the islands, in bytes, as counted by the worker.
#[derive(Debug)]
#[repr(C)]
pub struct Account {
    /// Taken and not given back. Negative if more was given back than was taken.
    pub(super) now: AtomicI64,
    /// Taken in all, whether or not it was given back.
    pub(super) ever: AtomicU64,
}

impl Account {
    pub fn take(&self, bytes: usize) {
        self.now.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.ever.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Any thread may give back what a slot has taken.
    pub fn give_back(&self, bytes: usize) {
        self.now.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// The accounts of all slots, by slot.
pub(super) type Accounts = [Account; MOST_SLOTS];

/// `Accounts` must fit its page: `FaultPage::accounts` and `account` rely on that.
const _: () = assert!(size_of::<Accounts>() <= PAGE_BYTES && align_of::<Accounts>() <= PAGE_BYTES);

pub(super) const EMPTY: u32 = 0;
pub(super) const WRITING: u32 = 1;
pub(super) const WRITTEN: u32 = 2;
/// In place of a slot: the thread is not a tenant's.
pub(super) const NO_SLOT: u32 = u32::MAX;
