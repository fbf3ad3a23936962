//! The page of the record and that of the accounts, as both sides see them: all atomics, for either
//! may write at any time.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::islands::frozen::MOST_PLACES;

/// In place of a `si_code`, which the kernel never gives to SIGABRT: the worker itself found wrong
/// keys.
pub(super) const WRONG_KEYS: libc::c_int = i32::MIN;
/// The same: V8 ran out of memory, and raised no signal.
pub(super) const OUT_OF_MEMORY: libc::c_int = i32::MIN + 1;

pub(super) const PAGE_BYTES: usize = 4096;
/// The page of the record, and behind it that of the accounts.
pub(super) const SHARED_BYTES: usize = 2 * PAGE_BYTES;
/// What is at the start of the page. Atomics, because the other side may write at any time.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) state: AtomicU32,
    pub(super) signal: AtomicI32,
    pub(super) code: AtomicI32,
    pub(super) key: AtomicU32,
    pub(super) place: AtomicU32,
    pub(super) call: AtomicI32,
    pub(super) address: AtomicU64,
    pub(super) pc: AtomicU64,
    /// See [`Fault::room`].
    pub(super) room: AtomicU64,
    /// 1 if `pc` was in the allocator.
    pub(super) in_allocator: AtomicU32,
    /// The thread of each place; 0 where nobody has come yet.
    pub(super) threads: [AtomicI32; MOST_PLACES],
    /// See [`FaultPage::computed`]; 0 where nothing was written.
    pub(super) computed_us: [AtomicU64; MOST_PLACES],
}

/// The page holds it: `FaultPage::read` and `open_page` rely on that.
const _: () = assert!(size_of::<Raw>() <= PAGE_BYTES && align_of::<Raw>() <= PAGE_BYTES);

/// What a place has taken outside the islands, in bytes, as the worker counts it.
#[derive(Debug)]
#[repr(C)]
pub struct Account {
    /// And not given back. Signed: a thread that gives back more than it took owes the rest.
    pub(super) now: AtomicI64,
    /// In all.
    pub(super) ever: AtomicU64,
}

impl Account {
    pub fn take(&self, bytes: usize) {
        self.now.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.ever.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Any thread may give back what a place has taken.
    pub fn give_back(&self, bytes: usize) {
        self.now.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// By place.
pub(super) type Accounts = [Account; MOST_PLACES];

/// Their page holds them: `FaultPage::accounts` and `account` rely on that.
const _: () = assert!(size_of::<Accounts>() <= PAGE_BYTES && align_of::<Accounts>() <= PAGE_BYTES);

pub(super) const EMPTY: u32 = 0;
pub(super) const WRITING: u32 = 1;
pub(super) const WRITTEN: u32 = 2;
/// The thread of no tenant.
pub(super) const NOBODY: u32 = u32::MAX;
