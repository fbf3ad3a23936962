//! Text as bytes: `TextEncoder`, `TextDecoder` and base64 (`runtime/text.js`).

use super::bytes::{bytes_of, fill_buffer};
use crate::engine::memory::quota;
use crate::engine::values::{throw_range_error, throw_type_error};

pub(super) fn encode_utf8<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(text) = args.get(0).try_cast::<v8::String>() else { return };
    let length = text.utf8_length(scope);
    fill_buffer(scope, length, &mut rv, |scope, bytes| {
        text.write_utf8_v2(scope, bytes, v8::WriteFlags::kReplaceInvalidUtf8, None);
    });
}

pub(super) fn decode_utf8<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let (fatal, keep_bom) = (args.get(1).is_true(), args.get(2).is_true());
    let Some(bytes) = bytes_of(scope, view) else { return };
    if fatal && std::str::from_utf8(&bytes).is_err() {
        return throw_type_error(scope, "the bytes are not UTF-8");
    }
    let text = if keep_bom { &bytes[..] } else { bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes) };
    // Each byte becomes at most one UTF-16 unit, of two bytes.
    if !text.is_ascii() && text.len() > quota::left() / 2 {
        return throw_range_error(scope, "the text does not fit the run's memory beside its bytes (limits.memoryMb)");
    }
    match v8::String::new_from_utf8(scope, text, v8::NewStringType::Normal) {
        Some(text) => rv.set(text.into()),
        None => throw_range_error(scope, "the text is longer than a string can be"),
    }
}

/// The characters of a text as bytes; `undefined` if a character is above U+00FF.
pub(super) fn latin1_bytes<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(text) = args.get(0).try_cast::<v8::String>() else { return };
    if !text.contains_only_onebyte() {
        return;
    }
    fill_buffer(scope, text.length(), &mut rv, |scope, bytes| {
        text.write_one_byte_v2(scope, 0, bytes, v8::WriteFlags::empty());
    });
}

/// The inverse of [`latin1_bytes`].
pub(super) fn latin1_text<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut rv: v8::ReturnValue<'s>,
) {
    let Ok(view) = args.get(0).try_cast::<v8::Uint8Array>() else { return };
    let Some(bytes) = bytes_of(scope, view) else { return };
    match v8::String::new_from_one_byte(scope, &bytes, v8::NewStringType::Normal) {
        Some(text) => rv.set(text.into()),
        None => throw_range_error(scope, "the text is longer than a string can be"),
    }
}
