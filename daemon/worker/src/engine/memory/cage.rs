//! One cage: a V8 isolate group on an island of its own, which belongs to one tenant's thread for
//! its whole life.
//!
//! ```text
//! main thread:     build_all ─▶ Cage ─▶ start_thread ─▶ IslandThread ─▶ join
//! tenant's thread:                      Entering ─▶ enter ─▶ Entered ─▶ lock_down
//! ```
//!
//! Every cage of the process is built before the first tenant. Only the thread that was started on
//! a cage's island can enter the cage, and only once, because only that thread has the
//! [`Entering`]. Once it has entered, its key is open and its mappings go to the island; after
//! `lock_down` its filter is on. Only [`IslandThread::join`] unmaps the island, so the island stays
//! until the thread has ended.

use std::ffi::{CString, c_int};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use enisle_hardening::islands::Island;
use enisle_hardening::islands::frozen;
use enisle_hardening::process::thread::{self, Thread};
use enisle_hardening::{fault, filter};

use super::mappings::{self, Home, Reserved};
use super::{commons, confinement, heap, quota};
use crate::engine::kernel;

/// `v8::IsolateGroup`, opaque.
#[repr(C)]
struct Group {
    _opaque: [u8; 0],
}

// Added to the archive's `binding.cc` by `v8/patches/01-tenant-groups.patch`.
unsafe extern "C" {
    fn v8_tenant_group_new(pkey: c_int) -> *mut Group;
    fn v8_tenant_group_delete(group: *mut Group);
    fn v8_tenant_set_group(group: *mut Group);
    fn v8_tenant_group_sandbox(group: *mut Group, base: *mut usize, bytes: *mut usize);
    fn v8_tenant_set_clock_ms(ms: f64);
}

unsafe extern "C" {
    /// `absl::synchronization_internal::CreateThreadIdentity()`, in the archive: how V8's locks
    /// identify a thread.
    #[link_name = "_ZN4absl24synchronization_internal20CreateThreadIdentityEv"]
    fn introduce_thread() -> *mut std::ffi::c_void;
}

/// No key: pages keep the default one.
const NO_KEY: c_int = -1;

/// Why a cage could not be made, entered or locked down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CageError {
    #[error("V8 put a sandbox at {0:x?} and not on its island")]
    Elsewhere(Range<usize>),
    #[error("a tenant's thread could not be started: {0}")]
    Thread(io::Error),
    #[error("a tenant's heap could not be allocated")]
    Heap,
    #[error("the slot has or had a tenant")]
    Taken,
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
}

/// A cage that no thread has entered yet.
///
/// The keys of its thread are not here but in `enisle_hardening::islands::frozen`, by slot, because
/// a tenant of the process may find a way to write this memory.
#[derive(Debug)]
pub(crate) struct Cage {
    group: *mut Group,
    slot: u32,
    island: Island,
    home: Home,
}

// SAFETY: any thread may use an isolate group, one at a time. Only a thread that has taken the cage
// by value uses the group: the main thread before, the tenant's thread from `enter` on.
unsafe impl Send for Cage {}

impl Cage {
    /// Makes every cage of the process, each tagged with the key of its slot from its first page
    /// on. The zone is assigned (`frozen`), and was `reserved` until now. No other thread may map
    /// memory meanwhile.
    pub(crate) fn build_all(reserved: Reserved) -> Result<Vec<Self>, CageError> {
        drop(reserved);
        commons::open(&frozen::zone());
        (0..).zip(frozen::zone().islands()).map(|(slot, island)| Self::build(slot, island)).collect()
    }

    fn build(slot: u32, island: Island) -> Result<Self, CageError> {
        let key = frozen::key_of(slot as usize);
        let mut random = [0; 8];
        kernel::fill_random(&mut random);
        mappings::move_to(Some(Home::new(island, key, u64::from_ne_bytes(random))));
        // SAFETY: V8 is initialised; it ends the process if it cannot reserve.
        let group = unsafe { v8_tenant_group_new(key.map_or(NO_KEY, c_int::from)) };
        let Some(home) = mappings::move_to(None) else { unreachable!("the thread has moved there above") };
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: `group` is live, the results are writable.
        unsafe { v8_tenant_group_sandbox(group, &raw mut base, &raw mut bytes) };
        if (base..base + bytes) != island.sandbox() {
            return Err(CageError::Elsewhere(base..base + bytes));
        }
        Ok(Self { group, slot, island, home })
    }

    /// Starts a thread on this island's stack, for entering the cage.
    pub(crate) fn start_thread(
        self,
        name: CString,
        body: impl FnOnce(Entering) + Send + 'static,
    ) -> Result<IslandThread, CageError> {
        let island = self.island;
        let stack = mappings::map_stack(&self.home).map_err(CageError::Thread)?;
        let body = Box::new(move || body(Entering { cage: self, _thread: PhantomData }));
        // SAFETY: the stack was mapped for this thread only, and only `IslandThread::join` unmaps
        // it, after the thread has ended.
        let thread = unsafe { thread::spawn(name, &stack, body) }.map_err(CageError::Thread)?;
        Ok(IslandThread { thread, island })
    }
}

/// A thread that lives on an island.
#[derive(Debug)]
pub(crate) struct IslandThread {
    thread: Thread,
    island: Island,
}

impl IslandThread {
    /// Waits for the thread to end, and unmaps everything that is still mapped on its island: its
    /// stack, its heap.
    pub(crate) fn join(self) {
        self.thread.join();
        // SAFETY: the thread that lived there has just been joined. Its isolates and its cage ended
        // with the thread, because they cannot leave it (`Entered` is not `Send`). Memory that the
        // thread shared with others is not on the island (`heap`).
        unsafe { mappings::sweep(self.island) };
    }
}

/// A cage, in the thread that was started to enter it. Each such thread has one of these, and
/// cannot pass it to another thread.
#[derive(Debug)]
pub(crate) struct Entering {
    cage: Cage,
    _thread: PhantomData<*const ()>,
}

impl Entering {
    /// Makes the calling thread the tenant's. Opens the tenant's key and no other tenant's. From
    /// now on V8's mappings on this thread go to the island, and V8's isolates into this cage.
    pub(crate) fn enter(self) -> Result<Entered, CageError> {
        let Self { cage, _thread } = self;
        if !fault::thread_of(cage.slot) {
            return Err(CageError::Taken);
        }
        if let Some(pkru) = frozen::pkru_of(cage.slot as usize) {
            pkru.install();
            confinement::expect(pkru);
        }
        // V8's locks give a thread an identity when the thread first waits, in memory that all
        // threads read. So the identity must be made before this thread's allocations become
        // private.
        // SAFETY: the thread has no identity yet: it was started for its one `Entering`, which is
        // used up here.
        unsafe { introduce_thread() };
        mappings::move_to(Some(cage.home));
        // SAFETY: `group` is live; this thread is in no other cage.
        unsafe { v8_tenant_set_group(cage.group) };
        quota::reset(cage.slot);
        let entered = Entered { cage, _thread };
        if heap::open() { Ok(entered) } else { Err(CageError::Heap) }
    }
}

/// The cage of the calling thread. While this value lives, every isolate that the thread makes is
/// in the cage.
///
/// It is not `Send`: one tenant is one thread is one cage. The isolates in the cage borrow this
/// value ([`crate::engine::isolate::resting::Resting`]), so none of them is left when it is
/// dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    cage: Cage,
    _thread: PhantomData<*const ()>,
}

impl Entered {
    /// Installs the thread's own filter, for good. No tenant's code runs before that.
    pub(crate) fn lock_down(&self, channel: BorrowedFd<'_>) -> Result<(), CageError> {
        let (zone, slot) = (frozen::zone(), self.cage.slot as usize);
        let island = zone.island(slot).ok_or(CageError::Taken)?;
        let keys: Vec<_> = frozen::key_of(slot).into_iter().chain(frozen::jit_key()).collect();
        Ok(filter::confine(&filter::Own { zone: &zone, island, keys: &keys, channel })?)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: null stands for V8's default group; no isolate is being made, and none is left.
        unsafe { v8_tenant_set_group(std::ptr::null_mut()) };
        // SAFETY: `group` came from v8_tenant_group_new and is dropped once, here; every isolate in
        // it borrowed this value, and is gone.
        unsafe { v8_tenant_group_delete(self.cage.group) };
        // Memory that V8 still holds on the island must be shared with other threads, and would be
        // unmapped with the island.
        debug_assert_eq!(heap::blocks(), 0, "memory that the process shares is on an island");
        fault::thread_leaves(self.cage.slot);
    }
}

/// Sets what `Date` sees on this thread until the next call, in ms since 1970: the clock stands
/// still while a tenant's code runs.
pub(in crate::engine) fn set_clock(ms: u64) {
    #[expect(clippy::cast_precision_loss, reason = "exact for 280,000 years")]
    let ms = ms as f64;
    // SAFETY: the call stores a number in a thread-local.
    unsafe { v8_tenant_set_clock_ms(ms) };
}
