//! The runtime: its parts, and its name.

/// The runtime as one function, which takes the natives. Each part is a file with a purpose of its
/// own.
const RUNTIME: &str = concat!(
    "(function (native) {\n\"use strict\";\n",
    include_str!("../../runtime/primordials.js"),
    include_str!("../../runtime/inspect.js"),
    include_str!("../../runtime/console.js"),
    include_str!("../../runtime/timers.js"),
    include_str!("../../runtime/clone.js"),
    include_str!("../../runtime/text.js"),
    include_str!("../../runtime/crypto.js"),
    include_str!("../../runtime/performance.js"),
    include_str!("../../runtime/entry.js"),
    "\n})"
);

/// The source as a string that stays in the program's memory, so that no isolate gets a copy. It
/// must be ASCII, or it does not compile.
pub(in crate::engine) static SOURCE: v8::OneByteConst = v8::String::create_external_onebyte_const(RUNTIME.as_bytes());

/// The name of the runtime's file. Frames of a stack that are in it are removed before a tenant
/// sees the stack.
pub(in crate::engine) const NAME: &str = "enisle:runtime";
