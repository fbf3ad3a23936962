//! One cage: a V8 isolate group on an island of its own, which belongs to one tenant's thread for its whole life.
//!
//! ```text
//! main thread: build_all ─▶ Cage (nobody's)          every cage of the process, before the first tenant
//! tenant's thread:          Cage ─▶ enter ─▶ Entered ─▶ lock_down     its key open, its mappings at home, its filter on
//! ```

use std::ffi::{CString, c_int};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use enisle_hardening::islands::Island;
use enisle_hardening::thread::{self, Thread};
use enisle_hardening::{fault, sealed, seccomp};

use super::memory::{self, Home};
use super::{Reserved, confinement, heap, quota};

/// `v8::IsolateGroup`, opaque.
#[repr(C)]
struct Group {
    _opaque: [u8; 0],
}

// What `v8/patches/01-tenant-groups.patch` adds to the archive's `binding.cc`.
unsafe extern "C" {
    fn v8_tenant_group_new(pkey: c_int) -> *mut Group;
    fn v8_tenant_group_delete(group: *mut Group);
    fn v8_tenant_set_group(group: *mut Group);
    fn v8_tenant_group_sandbox(group: *mut Group, base: *mut usize, bytes: *mut usize);
    fn v8_tenant_set_clock_ms(ms: f64);
}

unsafe extern "C" {
    /// `absl::synchronization_internal::CreateThreadIdentity()`, in the archive: how V8's locks know a thread.
    #[link_name = "_ZN4absl24synchronization_internal20CreateThreadIdentityEv"]
    fn introduce_thread() -> *mut std::ffi::c_void;
}

/// No key: pages keep the default one.
const NO_KEY: c_int = -1;

/// Why a cage could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CageError {
    #[error("V8 put a sandbox at {0:x?} instead of on its island")]
    Elsewhere(Range<usize>),
    #[error("a tenant's thread could not be started: {0}")]
    Thread(io::Error),
    #[error("there is no memory for a tenant's heap")]
    Heap,
    #[error("somebody is in that place, or was")]
    Taken,
    #[error(transparent)]
    Filter(#[from] seccomp::SeccompError),
}

/// A cage that no thread has entered yet.
///
/// Which keys its thread gets is not in here but in `enisle_hardening::sealed`, by the place: this is memory that every
/// tenant of the process may be able to write one day.
#[derive(Debug)]
pub(crate) struct Cage {
    group: *mut Group,
    place: u32,
    island: Island,
    home: Home,
}

// SAFETY: V8 lets any one thread at a time use an isolate group, and only `enter`, which takes the cage, uses it.
unsafe impl Send for Cage {}

impl Cage {
    /// Makes every cage of the process, each tagged with the key of its place from its first page on. The zone was `reserved`
    /// until now, and is assigned; no other thread may ask for memory meanwhile.
    pub(crate) fn build_all(reserved: Reserved) -> Result<Vec<Self>, CageError> {
        drop(reserved);
        (0..).zip(sealed::zone().islands()).map(|(place, island)| Self::build(place, island)).collect()
    }

    fn build(place: u32, island: Island) -> Result<Self, CageError> {
        let key = sealed::key_of(place as usize);
        let mut random = [0; 8];
        super::fill_random(&mut random);
        memory::move_to(Some(Home::new(island, key, u64::from_ne_bytes(random))));
        // SAFETY: V8 is initialised; it ends the process if it cannot reserve.
        let group = unsafe { v8_tenant_group_new(key.map_or(NO_KEY, c_int::from)) };
        let Some(home) = memory::move_to(None) else { unreachable!("the thread has moved there above") };
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: `group` is live, the results are writable.
        unsafe { v8_tenant_group_sandbox(group, &raw mut base, &raw mut bytes) };
        if (base..base + bytes) != island.sandbox() {
            return Err(CageError::Elsewhere(base..base + bytes));
        }
        Ok(Self { group, place, island, home })
    }

    pub(crate) fn island(&self) -> Island {
        self.island
    }

    /// Starts a thread on this island's stack, to enter the cage. [`sweep`] gives the stack back when it has been joined.
    pub(crate) fn start_thread(
        self,
        name: CString,
        body: impl FnOnce(Self) + Send + 'static,
    ) -> Result<Thread, CageError> {
        let stack = memory::map_stack(&self.home).map_err(CageError::Thread)?;
        // SAFETY: the stack was mapped for this thread alone, and stays until it has been joined.
        unsafe { thread::spawn(name, &stack, Box::new(move || body(self))) }.map_err(CageError::Thread)
    }

    /// Makes the calling thread the tenant's: opens its key and no other, and sends what V8 maps and makes from now on to
    /// this cage. To be called once per thread.
    pub(crate) fn enter(self) -> Result<Entered, CageError> {
        if !fault::thread_of(self.place) {
            return Err(CageError::Taken);
        }
        if let Some(pkru) = sealed::pkru_of(self.place as usize) {
            pkru.install();
            confinement::expect(pkru);
        }
        // V8's locks make that of a thread when it first waits, in memory that all threads read: before this one's memory
        // is its own.
        // SAFETY: the thread is new, so it has none yet.
        unsafe { introduce_thread() };
        memory::move_to(Some(self.home));
        // SAFETY: `group` is live; this thread is in no other cage.
        unsafe { v8_tenant_set_group(self.group) };
        quota::reset(self.place);
        let entered = Entered { cage: self, _thread: PhantomData };
        if heap::open() { Ok(entered) } else { Err(CageError::Heap) }
    }
}

/// Gives everything back that is still mapped on the island of a thread that has ended: its stack, its heap.
pub(crate) fn sweep(island: Island) {
    memory::sweep(island);
}

/// The cage of the calling thread. While it lives, every isolate that this thread makes is in it.
///
/// Not `Send`: one tenant is one thread is one cage. It has to outlive the isolates in it, which is why a tenant's
/// thread drops them first.
#[derive(Debug)]
pub(crate) struct Entered {
    cage: Cage,
    _thread: PhantomData<*const ()>,
}

impl Entered {
    /// Takes on the thread's own filter, for good. No tenant's code runs before.
    pub(crate) fn lock_down(&self, channel: BorrowedFd<'_>) -> Result<(), CageError> {
        let (zone, place) = (sealed::zone(), self.cage.place as usize);
        let island = zone.island(place).ok_or(CageError::Taken)?;
        let keys: Vec<_> = sealed::key_of(place).into_iter().chain(sealed::jit_key()).collect();
        Ok(seccomp::confine(&seccomp::Own { zone: &zone, island, keys: &keys, channel })?)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: null takes this thread's group away; no isolate is being made.
        unsafe { v8_tenant_set_group(std::ptr::null_mut()) };
        // SAFETY: `group` came from v8_tenant_group_new and is dropped once; V8 unmaps it with the last isolate.
        unsafe { v8_tenant_group_delete(self.cage.group) };
        // What V8 still holds is for other threads as well, and goes with this island.
        debug_assert_eq!(heap::blocks(), 0, "something of the process is on an island");
        fault::thread_leaves(self.cage.place);
    }
}

/// Sets what `Date` sees on this thread until the next call, in ms since 1970: the clock stands
/// still while a tenant's code runs.
pub(super) fn set_clock(ms: u64) {
    #[expect(clippy::cast_precision_loss, reason = "exact for 280,000 years")]
    let ms = ms as f64;
    // SAFETY: the call stores a number in a thread-local.
    unsafe { v8_tenant_set_clock_ms(ms) };
}
