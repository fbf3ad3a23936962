//! Starting V8: its flags, what it would otherwise read from files later, and the signals that end
//! the process.

use std::io;
use std::thread::JoinHandle;

use enisle_hardening::islands::Zone;

use super::kernel::fill_random;
use super::last_words;
use super::memory::mappings::Reserved;
use super::memory::{account, commons, hooks, icu_caches};

/// The flags that V8 starts with in every worker. Once it has started, V8 freezes its flags
/// (`--freeze-flags-after-init` is its default).
///
/// * `single-threaded`: a pool thread of V8 would work on all tenants' heaps, with no tenant's key.
/// * `sandbox-prohibit-insecure-mode`: if the address space is too small for whole cages, V8 ends
///   the process, instead of silently making cages without guard regions.
/// * `no-wasm-native-module-cache`: that cache is shared by all cages of the process.
/// * `stack-size` (KiB): V8's own default on this architecture, a quarter of a tenant thread's
///   stack.
/// * `concurrent-marking-max-worker-num`: 0 means one worker for each thread of the platform. The
///   platform has none, so V8 allocates no tables for seven workers.
/// * `memory-saver-mode`: each garbage collection frees the memory of ICU that dead objects hold.
///   Without this flag V8 leaves that to a task, and nothing here runs V8's tasks.
const FLAGS: &str = "--single-threaded --sandbox-prohibit-insecure-mode --no-wasm-native-module-cache \
                     --stack-size=984 --concurrent-marking-max-worker-num=0 --memory-saver-mode";

/// With these flags V8 collects garbage after a certain amount was allocated, however long that
/// took. A script can see a collection by its `WeakRef`s. V8's own schedule depends on how fast the
/// script and the collector are, so a script could use it as a clock that moves inside a turn. What
/// V8 measures without each flag (files in V8's heap/):
///
/// * `incremental-marking`: how much a step marks depends on its duration (incremental-marking.cc).
/// * `heap-growing-percent`: the next limit depends on both speeds (heap-controller.cc), and is up
///   to twice what is alive. On average it was one and a half times that, and now it always is.
/// * `min-semi-space-size` and `max-semi-space-size` (MiB): the semispaces shrink when little is
///   allocated in a millisecond, and grow again (`Heap::ShouldResizeNewSpace`). They begin with 1
///   MiB, and now keep that size.
/// * `scavenger-updates-allocation-limit`: a scavenge updates the limit only when little is
///   allocated in a millisecond (`Heap::RecomputeLimits`).
const UNTIMED_FLAGS: &str = "--no-incremental-marking --heap-growing-percent=50 --min-semi-space-size=1 \
                             --max-semi-space-size=1 --no-scavenger-updates-allocation-limit";

/// Scripts can run no code but JavaScript. Only the attack harness has WebAssembly, to allocate
/// through its memories.
const WASM_FLAGS: &str = if cfg!(feature = "attack-natives") { "" } else { "--no-expose-wasm" };

/// For a sealed worker: V8 only interprets, also regular expressions, and never requests a code
/// range.
const JITLESS_FLAGS: &str = "--jitless";

/// For the maker. V8's own snapshot has the hash seed that the archive was built with. That seed is
/// public, so anyone can compute names that collide under it. With this flag V8 draws a random
/// seed, and rehashes what it restores. The startup snapshot that the maker makes then has the
/// random seed. Hosts restore the startup snapshot as it is, because rehashing takes about 7 % of a
/// turn for each isolate.
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
    /// Writes the name of the default time zone in UTF-16, in ICU, in the archive.
    #[link_name = "ucal_getDefaultTimeZone_78"]
    fn default_time_zone(name: *mut u16, capacity: i32, error: *mut std::ffi::c_int) -> i32;
}

/// Starts V8 on the calling thread, which must be the ancestor of every thread that will enter an
/// isolate: a thread inherits its access to V8's key for JIT pages. Returns V8's version, and the
/// reservation of the commons and of `zone`: V8 puts nothing there while the reservation lives.
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
    look_up_time_zone()?;
    Ok((v8::V8::get_version(), reserved))
}

/// Has ICU look up the host's time zone, which is all that ICU reads from files. ICU keeps the
/// answer (UTC, because the root is empty).
fn look_up_time_zone() -> io::Result<()> {
    let (mut name, mut error) = ([0; 64], 0);
    // SAFETY: `name` has room for 64 units; `error` says that nothing has failed yet.
    unsafe { default_time_zone(name.as_mut_ptr(), 64, &raw mut error) };
    if error <= 0 { Ok(()) } else { Err(io::Error::other(format!("ICU knows no time zone: error {error}"))) }
}

/// Has abseil count the processors and measure how fast they are, on a thread of its own, because
/// it mostly sleeps. V8's locks ask for both when two threads first contend for a lock. abseil
/// reads files then, so join this thread before the filter is installed. abseil keeps both answers.
///
/// Starting the first thread also makes libc install a signal handler of its own, which the filter
/// does not let a thread do.
pub(crate) fn measure_processors() -> JoinHandle<()> {
    std::thread::spawn(|| {
        // SAFETY: the function takes nothing and may be called at any time.
        unsafe { count_processors() };
        // SAFETY: as above.
        unsafe { processor_frequency() };
    })
}

/// A script that uses what V8 and its ICU make for all threads on first use. Most of its 25 ms are
/// for the list of locales that have a calendar.
const WARM_UP: &str = r"new Date(2020, 1, 1).toString(); new Date(5).toLocaleString(); new Intl.DateTimeFormat().format(0);
    (1234.5).toLocaleString(); 'ab'.localeCompare('ac'); '\u00e9'.normalize('NFD'); /\p{L}/u.test('x'); new Intl.Collator()";

/// Runs [`WARM_UP`] on a thread of its own, in V8's default group, which no tenant uses. A process
/// of several tenants needs this: otherwise what a tenant's first use of a formatter costs would
/// reveal whether a neighbour has used one. The maker needs it too: the date format shows from
/// where V8's cache of date patterns calls ICU (`date_patterns::cache`).
pub(crate) fn warm_up() -> Result<(), &'static str> {
    std::thread::spawn(|| {
        let isolate = &mut v8::Isolate::new(v8::CreateParams::default());
        v8::scope!(let scope, isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let scope = &mut v8::ContextScope::new(scope, context);
        let script = v8::String::new(scope, WARM_UP).and_then(|source| v8::Script::compile(scope, source, None));
        script.and_then(|script| script.run(scope)).ok_or("V8's first script failed")?;
        // The limits of memory hold only if V8 calls the hooks that count.
        let before = account::buffers();
        let buffer = v8::ArrayBuffer::new(scope, 1000);
        let counted = account::buffers() - before;
        if counted >= buffer.byte_length() { Ok(()) } else { Err("V8 does not count the bytes of buffers") }
    })
    .join()
    .map_err(|_| "V8's first script panicked")?
}

/// Installs the handlers of the signals that a fault raises. If V8 gives up, by a breakpoint or an
/// undefined instruction, or libc gives up, by SIGABRT, the handler first reports whose run it was.
/// Call this before the filter is installed, because the filter lets no thread change handlers.
pub(crate) fn set_signal_handlers() -> io::Result<()> {
    enisle_hardening::fault::handle(last_words::gave_up)?;
    #[cfg(feature = "attack-natives")]
    super::attack::survive_probes()?;
    Ok(())
}
