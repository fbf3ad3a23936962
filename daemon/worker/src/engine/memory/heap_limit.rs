//! What happens when a run reaches its memory limit: the run is ended, and V8 gets enough memory to
//! end it.
//!
//! At the heap's limit V8 calls [`near_heap_limit`]. For memory outside the heap, [`super::quota`]
//! requests a check, and V8 then calls [`look_at_memory`].

use std::sync::Arc;

use super::{confinement, oversized, quota};
use crate::engine::last_words;
use crate::watchdog::{Cause, Watched};

/// V8 is near a heap limit. Ends the run, and gives V8 the memory that it needs until the run has
/// ended: the next allocation may be one of the largest, and refusing it would end the process with
/// all its tenants.
pub(in crate::engine) unsafe extern "C" fn near_heap_limit(
    data: *mut std::ffi::c_void,
    current: usize,
    initial: usize,
) -> usize {
    confinement::edge();
    // SAFETY: `data` is the `HeapWatch` that `execute` keeps alive until it has removed this
    // callback.
    let watch = unsafe { &*data.cast::<HeapWatch<'_>>() };
    // SAFETY: V8 calls this on the isolate's own thread; the result is not dropped as an owner.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(watch.isolate) };
    // SAFETY: the function takes nothing and reads a variable of this thread.
    let for_an_object = unsafe { v8_tenant_wanted() } != 0;
    // V8 also calls here when an array buffer was refused and a garbage collection has not helped.
    // That is not a full heap. But an object that does not fit must get its memory, however empty
    // the heap is: otherwise V8 ends the process.
    if !for_an_object && quota::take_refused() && isolate.get_heap_statistics().used_heap_size() < initial / 2 {
        return current;
    }
    if quota::is_lifted() {
        return initial.saturating_add(1280 << 20);
    }
    watch.watched.end(Cause::Memory);
    last_words::it_is_over_its_limit();
    // The part of the run's last allowance that native memory has not used. If small objects fill
    // that too, the run is not about to end, and V8 gets no more.
    let room = quota::last_room();
    quota::no_more();
    // SAFETY: as above.
    let wanted = unsafe { v8_tenant_wanted() };
    let limit = current.max(initial.saturating_add(room));
    if current == initial && wanted <= room {
        return limit;
    }
    if wanted < OVERSIZED_FROM || !oversized::expect(wanted) {
        return limit;
    }
    watch.watched.look_now();
    limit.saturating_add(wanted)
}

/// From this size on an object is treated as oversized if it does not fit.
const OVERSIZED_FROM: usize = 1 << 20;

/// V8 is at a point where a run may be checked, and the run has requested a check because its
/// native memory nears the limit. Frees what dead objects hold, and ends the run if that is not
/// enough.
pub(in crate::engine) unsafe extern "C" fn look_at_memory(isolate: v8::UnsafeRawIsolatePtr, _: *mut std::ffi::c_void) {
    // SAFETY: V8 calls this on the isolate's own thread; the result is not dropped as an owner.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    isolate.memory_pressure_notification(v8::MemoryPressureLevel::Critical);
    if quota::is_over() || quota::is_exhausted() {
        last_words::it_is_over_its_limit();
        quota::no_more();
        if let Some(watched) = isolate.get_slot::<Arc<Watched>>() {
            watched.end(Cause::Memory);
        }
    }
}

unsafe extern "C" {
    /// The size of the object that V8 requests memory for, or 0. In the archive
    /// (`v8/patches/14-large-objects.patch`).
    fn v8_tenant_wanted() -> usize;
}

/// What the callback at the heap limit needs.
pub(in crate::engine) struct HeapWatch<'a> {
    pub(in crate::engine) watched: &'a Watched,
    pub(in crate::engine) isolate: v8::UnsafeRawIsolatePtr,
}
