//! Natives to attack the process with: the abilities of an attacker who has broken V8, without the
//! bug that it would take.
//!
//! They exist only in builds with the feature `attack-natives`, which no release can have, and only
//! for runs whose `props` contain `"attack":true`. They stand for what an attacker may have
//! achieved: to read and write anywhere, by an escape from V8's sandbox; and to make any system
//! call, write PKRU or forge a signal frame, by native code. Victims use `address` and `plant` to
//! report where their secrets are.

mod probe;
mod raw;

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use crate::watchdog::Watched;

pub(super) use probe::survive_probes;

thread_local! {
    static CHANNEL: Cell<RawFd> = const { Cell::new(-1) };
    /// The start of this run's clock.
    static EPOCH: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Sets this thread's channel, for `attack.self()`.
pub(crate) fn channel_is(fd: RawFd) {
    CHANNEL.set(fd);
}

type Args<'s> = v8::FunctionCallbackArguments<'s>;
type Scope<'s, 'i> = v8::PinScope<'s, 'i>;

/// Puts `attack` into the global object, if this run requests it.
pub(super) fn arm(scope: &mut Scope<'_, '_>, props: &str, epoch: Instant) {
    EPOCH.set(Some(epoch));
    if !props.contains("\"attack\":true") {
        return;
    }
    // The run has no limits of memory: a WebAssembly memory alone reserves more than any tenant may
    // have.
    super::memory::quota::lift();
    let object = v8::Object::new(scope);
    macro_rules! natives {
        ($($name:literal => $function:path),* $(,)?) => {$(
            let (name, function) = (v8::String::new(scope, $name), v8::Function::new(scope, $function));
            if let (Some(name), Some(function)) = (name, function) {
                object.set(scope, name.into(), function.into());
            }
        )*};
    }
    natives! {
        "read" => read, "write" => write, "probe" => probe_load, "probeWrite" => probe_store,
        "syscall" => syscall, "syscall32" => syscall_32, "pkru" => pkru, "wrpkru" => write_pkru,
        "sigreturn" => forge_sigreturn, "thread" => start_thread, "execute" => execute, "address" => address,
        "object" => object_address, "plant" => plant, "self" => about_self, "frozen" => frozen_page, "callGate" => call_gate,
        "thaw" => thaw, "hold" => hold, "leak" => leak, "unbilled" => unbilled, "unbounded" => unbounded,
        "account" => account, "gateLoad" => gate_load,
    }
    let context = scope.get_current_context();
    let global = context.global(scope);
    if let Some(name) = v8::String::new(scope, "attack") {
        global.set(scope, name.into(), object.into());
    }
}

/// The first arguments as 64 bits each, from BigInts or numbers.
fn words<const N: usize>(scope: &mut Scope<'_, '_>, args: &Args<'_>) -> [u64; N] {
    let mut words = [0; N];
    for (index, word) in (0..).zip(&mut words) {
        let value = args.get(index);
        *word = match value.try_cast::<v8::BigInt>() {
            Ok(big) => big.u64_value().0,
            Err(_) => value.integer_value(scope).unwrap_or(0).cast_unsigned(),
        };
    }
    words
}

fn return_word<'s>(scope: &mut Scope<'s, '_>, mut result: v8::ReturnValue<'s>, word: i64) {
    result.set(v8::BigInt::new_from_i64(scope, word).into());
}

/// `read(address, length)`: the bytes, as a string of two hexadecimal digits each.
fn read<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [address, length] = words(scope, &args);
    let text: String = (0..length).map(|offset| format!("{:02x}", raw::load(address + offset))).collect();
    if let Some(text) = v8::String::new(scope, &text) {
        result.set(text.into());
    }
}

/// `write(address, byte)`.
fn write<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, _: v8::ReturnValue<'s>) {
    let [address, byte] = words(scope, &args);
    raw::store(address, u8::try_from(byte & 0xff).unwrap_or(0));
}

/// `probe(address)`: the key that stopped a load there, 0 for another fault, -1 if the load
/// succeeded.
fn probe_load<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [address] = words(scope, &args);
    result.set_int32(probe::load(address));
}

/// `probeWrite(address)`: the same for a store, which writes back what is there.
fn probe_store<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [address] = words(scope, &args);
    result.set_int32(probe::store(address));
}

/// `syscall(number, a0 … a5)`: the result, or the negated errno.
fn syscall<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let words = words::<7>(scope, &args);
    return_word(scope, result, raw::system_call(words));
}

/// `syscall32(number, a0 … a2)`: the same by the 32-bit table.
fn syscall_32<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let words = words::<4>(scope, &args);
    return_word(scope, result, raw::system_call_32(words));
}

/// `pkru()`.
fn pkru<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, result: v8::ReturnValue<'s>) {
    return_word(scope, result, raw::pkru().into());
}

/// `wrpkru(value)`: the instruction itself, as injected code would use it.
fn write_pkru<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, _: v8::ReturnValue<'s>) {
    let [value] = words(scope, &args);
    raw::write_pkru(u32::try_from(value & 0xffff_ffff).unwrap_or(0));
}

/// `callGate(value)`: a jump to the WRPKRU of the worker's gate, with a value that the attacker
/// chose.
fn call_gate<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let [value] = words(scope, &args);
    return_word(scope, result, raw::call_gate(u32::try_from(value & 0xffff_ffff).unwrap_or(0)).into());
}

/// `gateLoad(value, address)`: the same jump, then 64 bytes from `address`, before anything can
/// look at PKRU.
fn gate_load<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let ([value, address], own) = (words(scope, &args), raw::pkru());
    raw::call_gate(u32::try_from(value & 0xffff_ffff).unwrap_or(0));
    let text: String = (0..64).map(|offset| format!("{:02x}", raw::load(address + offset))).collect();
    raw::write_pkru(own);
    if let Some(text) = v8::String::new(scope, &text) {
        result.set(text.into());
    }
}

/// `sigreturn(pkru)`: returns through a signal frame with a PKRU that the attacker chose.
fn forge_sigreturn<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let [value] = words(scope, &args);
    return_word(scope, result, probe::forge_sigreturn(u32::try_from(value & 0xffff_ffff).unwrap_or(0)).into());
}

/// `thread(address)`: starts a thread, which reads one byte there. Returns the byte, or -1 if no
/// thread started.
fn start_thread<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [address] = words(scope, &args);
    // The new thread frees what its start allocates here, so that must not be on this thread's
    // island.
    let thread =
        super::memory::heap::shared(|| std::thread::Builder::new().spawn(move || i32::from(raw::load(address))));
    result.set_int32(thread.ok().and_then(|thread| thread.join().ok()).unwrap_or(-1));
}

/// `execute(hex)`: maps writable and executable memory, puts the bytes there and calls them;
/// returns RAX.
fn execute<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let text = args.get(0).to_rust_string_lossy(scope);
    let digits: Vec<_> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    let bytes: Vec<_> = digits
        .chunks(2)
        .filter_map(|pair| u8::try_from(pair.iter().fold(0, |sum, digit| sum * 16 + digit)).ok())
        .collect();
    return_word(scope, result, raw::execute(&bytes));
}

/// `address(value)`: the address of a buffer's bytes, or the heap address of another object.
fn address<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let value = args.get(0);
    let address = match value.try_cast::<v8::ArrayBuffer>() {
        Ok(buffer) => buffer.data().map_or(0, |data| data.as_ptr() as u64),
        Err(_) => raw::heap_address(value),
    };
    return_word(scope, result, address.cast_signed());
}

/// `object(value)`: the heap address of an object, also of a buffer, whose bytes are elsewhere.
fn object_address<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    return_word(scope, result, raw::heap_address(args.get(0)).cast_signed());
}

/// `plant(text)`: puts the bytes on the tenant's heap, where Rust allocates for it, for good.
/// Returns their address.
fn plant<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, result: v8::ReturnValue<'s>) {
    let bytes = args.get(0).to_rust_string_lossy(scope).into_bytes();
    let address = bytes.leak().as_ptr() as u64;
    return_word(scope, result, address.cast_signed());
}

/// `self()`: what an attacker would find out: `[channel, stack, isolate, thread]`.
fn about_self<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let local = 0_u8;
    let isolate = raw::isolate_address(scope);
    let facts = [
        i64::from(CHANNEL.get()),
        (std::ptr::from_ref(&local) as u64).cast_signed(),
        isolate.cast_signed(),
        i64::from(nix::unistd::gettid().as_raw()),
    ];
    let facts: Vec<v8::Local<'_, v8::Value>> =
        facts.iter().map(|fact| v8::BigInt::new_from_i64(scope, *fact).into()).collect();
    result.set(v8::Array::new_with_elements(scope, &facts).into());
}

/// `frozen()`: the address of the page that decides which keys a thread gets.
fn frozen_page<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, result: v8::ReturnValue<'s>) {
    return_word(scope, result, (enisle_hardening::islands::frozen::address() as u64).cast_signed());
}

/// `thaw()`: from now on this run's timers use the real clock, as if the turn's clock moved.
fn thaw<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, _: v8::ReturnValue<'s>) {
    if let Some(timers) = scope.get_slot_mut::<super::natives::timers::Timers>() {
        timers.moving_clock = EPOCH.get();
    }
}

/// `account(mib)`: from now on this run has a memory limit again, and the script sees its exact
/// account.
fn account<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, _: v8::ReturnValue<'s>) {
    let [mib] = words(scope, &args);
    super::memory::quota::set_limit(usize::try_from(mib << 20).unwrap_or(usize::MAX));
    super::memory::quota::see_exactly();
}

/// `unbilled()`: from now on this tenant is not billed for disposing of what its runs leave.
fn unbilled<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, _: v8::ReturnValue<'s>) {
    if let Some(watched) = scope.get_slot::<Arc<Watched>>() {
        watched.lift_bill();
    }
}

/// `unbounded()`: from now on disposal may take as long as it likes.
fn unbounded<'s>(scope: &mut Scope<'s, '_>, _: Args<'s>, _: v8::ReturnValue<'s>) {
    if let Some(watched) = scope.get_slot::<Arc<Watched>>() {
        watched.lift_bound();
    }
}

/// `hold(bytes)`: maps memory on the island, past every limit of the tenant, and does not touch it.
/// False if the kernel refuses.
fn hold<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [bytes] = words(scope, &args);
    result.set_bool(raw::hold(usize::try_from(bytes).unwrap_or(usize::MAX)));
}

/// `leak(bytes)`: takes memory from libc's `malloc`, which all tenants share, and touches it. False
/// if there is none.
fn leak<'s>(scope: &mut Scope<'s, '_>, args: Args<'s>, mut result: v8::ReturnValue<'s>) {
    let [bytes] = words(scope, &args);
    result.set_bool(raw::leak(usize::try_from(bytes).unwrap_or(usize::MAX)));
}
