//! One cage: a V8 isolate group that belongs to one tenant's thread for its whole life.

use std::ffi::c_int;
use std::marker::PhantomData;

use enisle_hardening::mpk::Key;

use super::quota;

/// `v8::IsolateGroup`, opaque.
#[repr(C)]
struct Group {
    _opaque: [u8; 0],
}

// What `xtask/v8/tenant.patch` adds to the archive's `binding.cc`.
unsafe extern "C" {
    fn v8_tenant_group_new(pkey: c_int) -> *mut Group;
    fn v8_tenant_group_delete(group: *mut Group);
    fn v8_tenant_set_group(group: *mut Group);
    fn v8_tenant_set_clock_ms(ms: f64);
}

/// No key: pages keep the default one.
const NO_KEY: c_int = -1;

/// The cage of the calling thread. While it lives, every isolate that this thread makes is in it.
///
/// Not `Send`: one tenant is one thread is one cage. It has to outlive the isolates in it, which is why a tenant's
/// thread drops them first.
#[derive(Debug)]
pub(crate) struct Cage {
    group: *mut Group,
    _thread: PhantomData<*const ()>,
}

impl Cage {
    /// Reserves a cage of address space, tagged with `key` from its first page on. The key is spent with it.
    pub(crate) fn new(key: Option<Key>) -> Self {
        let number = key.as_ref().map_or(NO_KEY, Key::number);
        // SAFETY: V8 is initialised before any tenant thread exists; V8 ends the process if it cannot reserve.
        let group = unsafe { v8_tenant_group_new(number) };
        // SAFETY: `group` is live; this thread has no other cage.
        unsafe { v8_tenant_set_group(group) };
        quota::reset();
        Self { group, _thread: PhantomData }
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // SAFETY: null takes this thread's group away; no isolate is being made.
        unsafe { v8_tenant_set_group(std::ptr::null_mut()) };
        // SAFETY: `group` came from v8_tenant_group_new and is dropped once; V8 unmaps it with the last isolate.
        unsafe { v8_tenant_group_delete(self.group) };
    }
}

/// Sets what `Date` sees on this thread until the next call: the clock stands still while a tenant's code runs.
pub(crate) fn set_clock(now: std::time::SystemTime) {
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // SAFETY: the call stores a number in a thread-local.
    unsafe { v8_tenant_set_clock_ms((since.as_secs_f64() * 1000.0).floor()) };
}
