//! Copies bytes into and out of buffers, within the tenant's memory limit.

use crate::engine::memory::quota;
use crate::engine::values::throw_range_error;

/// Returns a new `Uint8Array` of `length` bytes, which `fill` writes.
pub(super) fn fill_buffer<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    length: usize,
    rv: &mut v8::ReturnValue<'s>,
    fill: impl FnOnce(&v8::Isolate, &mut [u8]),
) {
    // V8 ends the process if a buffer that the host makes is refused, so the room is checked first.
    if !quota::has_room(length) {
        return throw_range_error(scope, "the bytes do not fit the run's memory (limits.memoryMb)");
    }
    let store = v8::ArrayBuffer::new_backing_store(scope, length).make_shared();
    if let Some(start) = store.data() {
        // SAFETY: the store has `length` bytes, and no script has it yet.
        fill(scope, unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), length) });
    }
    let buffer = v8::ArrayBuffer::with_backing_store(scope, &store);
    if let Some(view) = v8::Uint8Array::new(scope, buffer, 0, length) {
        rv.set(view.into());
    }
}

/// A copy of the bytes of a view. `None`, with an exception pending, if the copy does not fit.
pub(super) fn bytes_of(scope: &mut v8::PinScope<'_, '_>, view: v8::Local<'_, v8::Uint8Array>) -> Option<Vec<u8>> {
    if !quota::has_room(view.byte_length()) {
        throw_range_error(scope, "the bytes do not fit the run's memory twice (limits.memoryMb)");
        return None;
    }
    let mut bytes = vec![0; view.byte_length()];
    let copied = view.copy_contents(&mut bytes);
    bytes.truncate(copied);
    Some(bytes)
}
