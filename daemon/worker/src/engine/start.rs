//! Starting V8: its flags, what it would otherwise look up later, and the signals that end the
//! process.

use std::io;

use enisle_hardening::islands::Zone;

use super::kernel::fill_random;
use super::last_words;
use super::memory::mappings::Reserved;
use super::memory::{account, commons, date_patterns, hooks, icu_caches};

/// The flags that V8 starts with. Frozen afterwards (`--freeze-flags-after-init` is V8's default).
///
/// * `single-threaded`: a pool thread of V8 would work on all tenants' heaps, with no tenant's key.
/// * `sandbox-prohibit-insecure-mode`: too little address space for whole cages ends the process,
///   instead of silently leaving cages without guard regions.
/// * `no-wasm-native-module-cache`: that cache is shared by all cages of the process.
/// * `stack-size` (KiB): V8's own default on this architecture, a quarter of a tenant thread's
///   stack.
/// * `concurrent-marking-max-worker-num`: 0 means one for each thread of the platform. It has none,
///   so V8 allocates no tables for seven.
/// * `memory-saver-mode`: ICU's memory that dead objects hold is freed with each garbage
///   collection, not in a task of V8, which nothing here would run.
const FLAGS: &str = "--single-threaded --sandbox-prohibit-insecure-mode --no-wasm-native-module-cache \
                     --stack-size=984 --concurrent-marking-max-worker-num=0 --memory-saver-mode";

/// Garbage is collected after a certain amount was allocated, however long that took. A script sees
/// a collection by its `WeakRef`s; V8's own schedule depends on how fast script and collector are,
/// which makes it a clock that moves inside a turn. What each of these would measure (V8's heap/):
///
/// * `incremental-marking`: how much a step marks depends on its duration (incremental-marking.cc).
/// * `heap-growing-percent`: the next limit depends on both speeds (heap-controller.cc), up to
///   twice what is alive. Half more is what it was on average.
/// * the semispaces: they shrink when little is allocated in a millisecond, and grow again
///   (`Heap::ShouldResizeNewSpace`). A heap begins with one MiB.
/// * `scavenger-updates-allocation-limit`: only when little is allocated in a millisecond
///   (`Heap::RecomputeLimits`).
const UNTIMED_FLAGS: &str = "--no-incremental-marking --heap-growing-percent=50 --min-semi-space-size=1 \
                             --max-semi-space-size=1 --no-scavenger-updates-allocation-limit";

/// No code but JavaScript. The attack harness also allocates through WebAssembly's memories.
const WASM_FLAGS: &str = if cfg!(feature = "attack-natives") { "" } else { "--no-expose-wasm" };

/// For a sealed worker: only the interpreter, also for regular expressions, and V8 never requests a
/// code range.
const JITLESS_FLAGS: &str = "--jitless";

/// For the maker. V8's own snapshot has the hash seed that the archive was built with, which is
/// public, so names that collide under it can be computed. With this flag V8 rehashes what it
/// restores with a random seed, which the worker's snapshot then has. Hosts restore that as it is:
/// rehashing it for each isolate takes about 7 % of a turn.
const MAKER_FLAGS: &str = "--rehash-snapshot";

/// What V8 is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Making the startup snapshot.
    Snapshot,
    Tenants,
    /// Tenants without a compiler.
    SealedTenants,
}

unsafe extern "C" {
    /// `absl::base_internal::NumCPUs()`, in the archive.
    #[link_name = "_ZN4absl13base_internal7NumCPUsEv"]
    fn count_processors() -> std::ffi::c_int;
    /// `absl::base_internal::NominalCPUFrequency()`, in the archive. If no file contains the
    /// frequency, abseil measures it, which takes some ms.
    #[link_name = "_ZN4absl13base_internal19NominalCPUFrequencyEv"]
    fn processor_frequency() -> f64;
}

/// Starts V8 on the calling thread, which must be the ancestor of every thread that will enter an
/// isolate: V8's key for JIT pages is inherited. Returns V8's version, and the reservation of
/// `zone`: V8 puts nothing there while the reservation lives.
pub(crate) fn v8(zone: &Zone, purpose: Purpose) -> io::Result<(&'static str, Reserved)> {
    hooks::check()?;
    hooks::take_over_icu()?;
    let reserved = Reserved::new(commons::range(zone).start..zone.range().end)?;
    v8::V8::set_flags_from_string(FLAGS);
    v8::V8::set_flags_from_string(WASM_FLAGS);
    v8::V8::set_flags_from_string(UNTIMED_FLAGS);
    v8::V8::set_flags_from_string(match purpose {
        Purpose::Snapshot => MAKER_FLAGS,
        Purpose::Tenants => "",
        Purpose::SealedTenants => JITLESS_FLAGS,
    });
    // The root is empty: without this V8 finds no /dev/urandom and seeds itself from the clock.
    v8::V8::set_entropy_source(fill_random);
    v8::V8::initialize_platform(v8::new_single_threaded_default_platform(false).make_shared());
    v8::V8::initialize();
    hooks::make_what_is_shared();
    icu_caches::bound()?;
    // V8's locks ask for the number and speed of the processors when two threads first contend for
    // one: by then behind the filter. The answers are kept, so they are requested now.
    // SAFETY: the function takes nothing and may be called at any time.
    unsafe { count_processors() };
    // SAFETY: as above.
    unsafe { processor_frequency() };
    Ok((v8::V8::get_version(), reserved))
}

/// A script that uses everything that V8 and its ICU look up in files on first use. It runs while
/// there is no filter yet.
const WARM_UP: &str = r"new Date(2020, 1, 1).toString(); new Date(5).toLocaleString(); new Intl.DateTimeFormat().format(0);
    (1234.5).toLocaleString(); 'ab'.localeCompare('ac'); '\u00e9'.normalize('NFD'); /\p{L}/u.test('x'); new Intl.Collator()";

/// Runs [`WARM_UP`] on a thread of its own, in V8's default group, which no tenant uses. The first
/// thread also makes libc take a signal for itself, which must come before the filter: it lets no
/// thread change handlers.
pub(crate) fn warm_up() -> Result<(), &'static str> {
    std::thread::spawn(|| {
        let isolate = &mut v8::Isolate::new(v8::CreateParams::default());
        v8::scope!(let scope, isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let scope = &mut v8::ContextScope::new(scope, context);
        let script = v8::String::new(scope, WARM_UP).and_then(|source| v8::Script::compile(scope, source, None));
        script.and_then(|script| script.run(scope)).ok_or("V8's first script failed")?;
        // Limits hold only if V8 calls the hooks that count.
        let before = account::buffers();
        let buffer = v8::ArrayBuffer::new(scope, 1000);
        let counted = account::buffers() - before;
        if counted >= buffer.byte_length() { Ok(()) } else { Err("V8 does not count the bytes of buffers") }
    })
    .join()
    .map_err(|_| "V8's first script panicked")??;
    if date_patterns::is_cache_found() { Ok(()) } else { Err("V8's cache of date patterns would have no bound") }
}

/// Takes over the signals of a fault. If V8 gives up, by a breakpoint or an undefined instruction,
/// or libc, by SIGABRT, the handler first reports whose run it was. To be called before the filter,
/// which lets no thread change handlers.
pub(crate) fn set_signal_handlers() -> io::Result<()> {
    enisle_hardening::fault::handle(last_words::gave_up)?;
    #[cfg(feature = "attack-natives")]
    super::attack::survive_probes()?;
    Ok(())
}
