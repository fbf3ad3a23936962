//! Values that pass between V8 and the worker: bounded texts, and errors that a script can catch.

/// The beginning of `text` in at most `cap` bytes, and whether that is the whole text.
pub(super) fn bounded_text(scope: &v8::Isolate, text: v8::Local<'_, v8::String>, cap: usize) -> (String, bool) {
    // A UTF-16 unit takes at most three bytes, so a short text gets a buffer of less than `cap`.
    let mut bytes = vec![0; cap.min(text.length().saturating_mul(3))];
    let mut taken = 0;
    let flags = v8::WriteFlags::kReplaceInvalidUtf8;
    let written = text.write_utf8_v2(scope, &mut bytes, flags, Some(&mut taken));
    bytes.truncate(written);
    (String::from_utf8_lossy(&bytes).into_owned(), taken == text.length())
}

/// Throws an error that `make` makes. Always returns `None`, for callbacks that return an `Option`.
pub(super) fn throw<T>(
    scope: &v8::PinScope<'_, '_>,
    make: for<'s> fn(&v8::PinScope<'s, '_>, v8::Local<'_, v8::String>) -> v8::Local<'s, v8::Value>,
    text: &str,
) -> Option<T> {
    let text = v8::String::new(scope, text)?;
    let error = make(scope, text);
    scope.throw_exception(error);
    None
}

pub(super) fn throw_range_error(scope: &v8::PinScope<'_, '_>, text: &str) {
    let _: Option<()> = throw(scope, v8::Exception::range_error, text);
}

pub(super) fn throw_type_error(scope: &v8::PinScope<'_, '_>, text: &str) {
    let _: Option<()> = throw(scope, v8::Exception::type_error, text);
}
