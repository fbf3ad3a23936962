//! Random bytes from the kernel (`runtime/crypto.js`).

use crate::engine::kernel::fill_random;
use crate::engine::values::throw_type_error;

/// `random(view)`: fills the view.
pub(super) fn random<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    _: v8::ReturnValue<'s>,
) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let (offset, length) = (view.byte_offset(), view.byte_length());
    let Some(store) = view.buffer(scope).map(|buffer| buffer.get_backing_store()) else { return };
    let mut bytes = vec![0; length];
    if !fill_random(&mut bytes) {
        return throw_type_error(scope, "the kernel gave no random bytes");
    }
    // The store has the length that the buffer has now: if the buffer has shrunk, the rest of
    // `bytes` is dropped.
    store.iter().skip(offset).zip(bytes).for_each(|(place, byte)| place.set(byte));
}
