//! Shows that the archive links, and runs one line of JavaScript in a cage of its own. `cargo xtask
//! v8 verify` runs this program.
#![allow(clippy::print_stdout, reason = "a probe answers on its terminal")]

use std::ffi::{c_int, c_void};

// Added to the archive by `v8/patches/01-tenant-groups.patch`.
unsafe extern "C" {
    fn v8_tenant_group_new(pkey: c_int) -> *mut c_void;
    fn v8_tenant_set_group(group: *mut c_void);
}

fn main() {
    v8::V8::set_flags_from_string("--single-threaded --sandbox-prohibit-insecure-mode");
    v8::V8::initialize_platform(v8::new_single_threaded_default_platform(false).make_shared());
    v8::V8::initialize();
    // SAFETY: V8 is initialised; -1 requests no key.
    let group = unsafe { v8_tenant_group_new(-1) };
    // SAFETY: `group` is live for the rest of the process.
    unsafe { v8_tenant_set_group(group) };
    let isolate = &mut v8::Isolate::new(v8::CreateParams::default());
    v8::scope!(let scope, isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    let scope = &mut v8::ContextScope::new(scope, context);
    let source = v8::String::new(scope, "'V' + 2 ** 3").unwrap();
    let value = v8::Script::compile(scope, source, None).unwrap().run(scope).unwrap();
    assert_eq!(value.to_rust_string_lossy(scope), "V8");
    println!("ok  linked and ran V8 {} in a cage of its own", v8::V8::get_version());
}
