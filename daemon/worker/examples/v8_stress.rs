//! Stress for the patched V8 (`v8/patches`), without the rest of the worker. `v8_stress ROUNDS`:
//! two threads, one of them with a snapshot, make isolates, enter them again and dispose of them in
//! random order, in a new group for each round. The script that they run fills pointer tables, and
//! on one thread must always give the same result. `v8_stress rest RUNS` shows what a group still
//! holds after runs that each filled most of their limit, and fails if that is too much. The
//! environment variable `MORE_FLAGS` gives V8 further flags.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::ffi::{c_int, c_void};

// Added to the archive by `v8/patches`.
unsafe extern "C" {
    fn v8_tenant_group_new(pkey: c_int) -> *mut c_void;
    fn v8_tenant_group_delete(group: *mut c_void);
    fn v8_tenant_set_group(group: *mut c_void);
    fn v8_tenant_trim(isolate: *mut c_void);
}

/// A group without a key, in which this thread's next isolates are made. All isolates of the group
/// must be dropped before the group.
struct Group(*mut c_void);

impl Group {
    fn new() -> Self {
        // SAFETY: V8 has started; -1 is not a key.
        let group = unsafe { v8_tenant_group_new(-1) };
        // SAFETY: `group` was made just now, and lives until `drop` puts null in its place.
        unsafe { v8_tenant_set_group(group) };
        Self(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: null stands for V8's default group.
        unsafe { v8_tenant_set_group(std::ptr::null_mut()) };
        // SAFETY: the group is this value's own, and nothing refers to it any more.
        unsafe { v8_tenant_group_delete(self.0) };
    }
}

fn enter(isolate: &mut v8::OwnedIsolate) {
    // SAFETY: the isolate was made on this thread, and was exited before.
    unsafe { isolate.enter() };
}

fn exit(isolate: &mut v8::OwnedIsolate) {
    // SAFETY: the isolate is the one that this thread entered last.
    unsafe { isolate.exit() };
}

/// Gives back all memory that the pools of the isolate's group keep.
fn trim(isolate: &v8::OwnedIsolate) {
    // SAFETY: the pointer is passed to V8 while `isolate` lives.
    let raw = unsafe { isolate.as_raw_isolate_ptr() };
    // SAFETY: UnsafeRawIsolatePtr is one pointer to the C++ isolate.
    let raw: *mut c_void = unsafe { std::mem::transmute_copy(&raw) };
    // SAFETY: a live isolate of this thread.
    unsafe { v8_tenant_trim(raw) };
}

const SCRIPT: &str = r#"
(() => {
  const fs = [];
  for (let i = 0; i < 3000; i++) fs.push(eval('(function f' + i + '(a,b,c){ return a + ' + i + ' })'));
  let sum = 0; for (const f of fs) sum += f(1);
  const m = new Map(); for (let i = 0; i < 2000; i++) m.set('k' + i, { i, s: 'x'.repeat(i % 50) });
  const w = new WeakMap(); for (const v of m.values()) w.set(v, v.i);
  const bufs = []; for (let i = 0; i < 50; i++) { const b = new ArrayBuffer(100 * i, { maxByteLength: 100 * i + 70000 }); b.resize(100 * i + 4096); new Uint8Array(b)[100 * i] = i; bufs.push(b); }
  for (let i = 0; i < 200; i++) bufs.push(new Uint32Array(i * 100));
  let s = 0; for (const b of bufs) s += b.byteLength;
  const re = /(a+)(b*)c/g; const r = 'aaabbc abc ac'.replace(re, '$2$1');
  const d = new Date(0).toISOString(); const n = (1234.5).toLocaleString('en-US'); const c = 'a'.localeCompare('b');
  let ok = false; { using x = { [Symbol.dispose]() { ok = true } } }
  const h = new Uint8Array([1, 2, 3]).toHex(); const f16 = new Float16Array([1.5])[0]; const p = Math.sumPrecise([0.1, 0.2, 0.3]);
  let big = 1n; for (let i = 1n; i < 200n; i++) big *= i;
  function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2) }
  const hot = fib(18);
  const symbols = typeof queueMicrotask + typeof WebAssembly + typeof SharedArrayBuffer + typeof Atomics + typeof Atomics.pause;
  return JSON.stringify([sum, m.size, s, r, d, n, c, ok, h, f16, p, String(big).length, hot, symbols, typeof fromSnapshot]);
})()
"#;
fn run(isolate: &mut v8::OwnedIsolate, gc: bool) -> String {
    v8::scope!(let scope, isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    let scope = &mut v8::ContextScope::new(scope, context);
    let source = v8::String::new(scope, SCRIPT).unwrap();
    let value = v8::Script::compile(scope, source, None).unwrap().run(scope).expect("ran");
    let text = value.to_rust_string_lossy(scope);
    scope.perform_microtask_checkpoint();
    if gc {
        scope.low_memory_notification();
    }
    text
}
fn snapshot() -> Vec<u8> {
    let mut isolate = v8::Isolate::snapshot_creator(None, None);
    {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let scope = &mut v8::ContextScope::new(scope, context);
        let source = v8::String::new(
            scope,
            "globalThis.fromSnapshot = class A { #x = 1; get x() { return this.#x } }; new fromSnapshot().x",
        )
        .unwrap();
        v8::Script::compile(scope, source, None).unwrap().run(scope).unwrap();
        scope.set_default_context(context);
    }
    let blob = isolate.create_blob(v8::FunctionCodeHandling::Keep).unwrap();
    assert!(blob.can_be_rehashed(), "--rehash-snapshot would do nothing");
    blob.to_vec()
}
fn private_kib() -> i64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
const FILL: &str = "{ const a = []; for (let i = 0; i < 11; i++) a.push(new Array(600000).fill(i)); \
                    const b = []; for (let i = 0; i < 300000; i++) b.push({ i, s: 'x' + i }); a.length + b.length }";
fn evaluate(isolate: &mut v8::OwnedIsolate, source: &str) -> String {
    v8::scope!(let scope, isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    let scope = &mut v8::ContextScope::new(scope, context);
    let source = v8::String::new(scope, source).unwrap();
    v8::Script::compile(scope, source, None).unwrap().run(scope).expect("ran").to_rust_string_lossy(scope)
}
/// Measures a group with one resting isolate, as a tenant has it, while each run fills an isolate
/// of its own with a limit of 64 MB.
fn rest(runs: usize) {
    let group = Group::new();
    let new = || v8::Isolate::new(v8::CreateParams::default().heap_limits(0, 64 << 20));
    let mut stays = new();
    evaluate(&mut stays, "1");
    exit(&mut stays);
    let one = |source: &str| {
        let mut isolate = new();
        evaluate(&mut isolate, source);
        drop(isolate);
        private_kib()
    };
    let (first, light) = (one("1"), one("1"));
    let heavy = (0..runs).fold(light, |_, _| one(FILL));
    let after = one("1");
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let without_libc = private_kib();
    println!(
        "private KiB: {first} fresh, {light} after a second light run, {heavy} after {runs} that filled 64 MB, {after} after a light one, \
         {without_libc} when libc has given back what is free"
    );
    // The resting isolate now fills its own heap.
    enter(&mut stays);
    evaluate(&mut stays, FILL);
    let full = private_kib();
    stays.low_memory_notification();
    let collected = private_kib();
    trim(&stays);
    let trimmed = private_kib();
    println!("an isolate that stays: {full} full, {collected} collected, {trimmed} trimmed");
    assert!(without_libc - light <= 2048, "a tenant at rest keeps more than 2 MiB");
    drop(stays);
    drop(group);
}

/// Makes, leaves, enters and disposes of isolates at random, and runs [`SCRIPT`] in them. Returns
/// the result of the script, which must be the same every time.
fn churn(blob: Option<&'static [u8]>, seed: u64, rounds: usize) -> String {
    let mut seed = 0x9e3779b97f4a7c15 + seed;
    let mut random = |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut first = None;
    for _ in 0..rounds {
        let group = Group::new();
        let mut live: Vec<v8::OwnedIsolate> = Vec::new();
        for _ in 0..12 {
            if live.len() < 4 && random(3) > 0 || live.is_empty() {
                let params = v8::CreateParams::default().heap_limits(0, 128 << 20);
                let params = match blob {
                    Some(blob) => params.snapshot_blob(v8::StartupData::from(blob)),
                    None => params,
                };
                let mut isolate = v8::Isolate::new(params);
                let text = run(&mut isolate, random(2) == 0);
                assert_eq!(*first.get_or_insert_with(|| text.clone()), text);
                exit(&mut isolate);
                live.push(isolate);
            } else {
                let at = usize::try_from(random(live.len() as u64)).unwrap();
                let mut isolate = live.remove(at);
                enter(&mut isolate);
                if random(2) == 0 {
                    assert_eq!(run(&mut isolate, true), *first.as_ref().unwrap());
                }
                drop(isolate);
            }
        }
        for mut isolate in live {
            enter(&mut isolate);
            drop(isolate);
        }
        drop(group);
    }
    first.unwrap()
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let rounds: usize = arguments.last().and_then(|a| a.parse().ok()).unwrap_or(40);
    v8::V8::set_flags_from_string("--single-threaded --sandbox-prohibit-insecure-mode --stack-size=500");
    if let Ok(flags) = std::env::var("MORE_FLAGS") {
        v8::V8::set_flags_from_string(&flags);
    }
    v8::V8::initialize_platform(v8::new_single_threaded_default_platform(false).make_shared());
    v8::V8::initialize();
    if arguments.get(1).is_some_and(|a| a == "rest") {
        rest(rounds);
        return;
    }
    let blob: &'static [u8] = Box::leak(snapshot().into_boxed_slice());
    let threads: Vec<_> = [true, false]
        .map(|custom| {
            std::thread::Builder::new()
                .stack_size(8 << 20)
                .spawn(move || churn(custom.then_some(blob), u64::from(custom), rounds))
                .unwrap()
        })
        .into_iter()
        .collect();
    for thread in threads {
        println!("{}", thread.join().unwrap());
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    println!("ok, {maps} mappings");
}
