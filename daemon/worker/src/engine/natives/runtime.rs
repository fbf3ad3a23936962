//! The runtime: what it is made of, and its name.

/// The runtime as one function of the natives; each part is a file with a purpose of its own.
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

/// The source as V8 holds it: it stays where the program has it, and no isolate gets a copy of its
/// own. ASCII alone, or it does not compile.
pub(in crate::engine) static SOURCE: v8::OneByteConst = v8::String::create_external_onebyte_const(RUNTIME.as_bytes());

/// The name of the runtime's file; lines of a stack that mention it are cut from what tenants see.
pub(in crate::engine) const NAME: &str = "enisle:runtime";
