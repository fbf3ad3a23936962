//! V8's cache of `DateTimePatternGenerator`s, with which V8 makes date formats
//! (`js-date-time-format.cc`). There is one cache for all threads of the process, with an entry for
//! each locale, and it never drops an entry. An entry would be about 45 KiB, and a script chooses
//! the locales.
//!
//! So the worker has the cache keep records of about 100 bytes, which the cache mistakes for
//! generators. The cache has an entry made and has it copied, and does nothing else with it. The
//! functions that do so are [`create_instance`] and [`clone`], which the linker puts in place of
//! ICU's (`--wrap`, `build.rs`).
//!
//! ```text
//! V8's cache ── createInstance ─▶ a record: the locale's name
//!            └─ clone(record) ──▶ a copy of the thread's own generator, made if it has none
//! ```
//!
//! A tenant's thread keeps the generators that it used last, in the commons, on its own account. So
//! the cost of a formatter does not reveal to a tenant what its neighbours have used. A tenant may
//! add [`MOST_RECORDS`] records. A run that adds one more is ended.
//!
//! Other code also calls `createInstance`, for generators that it uses and deletes. So the worker
//! recognises a call of V8's cache by the address that it comes from. The first script of the maker
//! shows that address ([`cache`]), and the maker gives it to every host ([`know_cache`]).

use std::arch::naked_asm;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{commons, quota};

/// The most generators that a tenant's thread keeps, of about 45 KiB each.
const MOST_GENERATORS: usize = 32;

/// The most records that a tenant may add. There are about 800 locales, each with about 20
/// calendars and 90 kinds of digits.
const MOST_RECORDS: u32 = 4096;

/// `icu::DateTimePatternGenerator`. Its first pointer is to its table of virtual functions. If the
/// pointer is to [`MARK`] instead, this is a [`Record`].
#[repr(C)]
struct Generator {
    first: *const c_void,
}

/// An entry of V8's cache, followed by the locale's name, which ends with a zero.
#[repr(C)]
struct Record {
    mark: *const c_void,
}

static MARK: u8 = 0;

/// `icu::Locale` (`unicode/locid.h`), which is less than half as large.
#[repr(C, align(16))]
struct Locale(MaybeUninit<[u8; 256]>);

/// The address that V8's cache calls from, which is where [`create_instance`] returns to; 0 until
/// it is known.
static CACHE: AtomicUsize = AtomicUsize::new(0);

/// A record, and the thread's own generator for it. Both are null in an empty entry.
type Own = (*const Record, *mut Generator);

thread_local! {
    /// The most recently used first.
    static OWN: Cell<[Own; MOST_GENERATORS]> = const { Cell::new([(ptr::null(), ptr::null_mut()); MOST_GENERATORS]) };
    static RECORDS: Cell<u32> = const { Cell::new(0) };
    /// How many allocations V8's cache may still make for the record that it was given last.
    static ADDS: Cell<u32> = const { Cell::new(0) };
    /// The last generator of ICU that [`created`] returned, and the address that requested it.
    static LAST: Cell<(*const Generator, usize)> = const { Cell::new((ptr::null(), 0)) };
}

unsafe extern "C" {
    /// `icu::DateTimePatternGenerator::createInstance(const icu::Locale&, UErrorCode&)`.
    #[cfg_attr(
        not(test),
        link_name = "__real__ZN6icu_7824DateTimePatternGenerator14createInstanceERKNS_6LocaleER10UErrorCode"
    )]
    #[cfg_attr(test, link_name = "_ZN6icu_7824DateTimePatternGenerator14createInstanceERKNS_6LocaleER10UErrorCode")]
    fn icu_create_instance(locale: *const Locale, error: *mut c_int) -> *mut Generator;
    /// `icu::DateTimePatternGenerator::clone() const`.
    #[cfg_attr(not(test), link_name = "__real__ZNK6icu_7824DateTimePatternGenerator5cloneEv")]
    #[cfg_attr(test, link_name = "_ZNK6icu_7824DateTimePatternGenerator5cloneEv")]
    fn icu_clone(generator: *const Generator) -> *mut Generator;
    /// The generator's destructor, which also frees it.
    #[link_name = "_ZN6icu_7824DateTimePatternGeneratorD0Ev"]
    fn icu_delete(generator: *mut Generator);
    /// `icu::Locale::getName() const`.
    #[link_name = "_ZNK6icu_786Locale7getNameEv"]
    fn name_of(locale: *const Locale) -> *const c_char;
    /// `icu::Locale::createFromName(const char*)`, which writes what it returns.
    #[link_name = "_ZN6icu_786Locale14createFromNameEPKc"]
    fn locale_from_name(locale: *mut Locale, name: *const c_char) -> *mut Locale;
    /// `icu::Locale::~Locale()`.
    #[link_name = "_ZN6icu_786LocaleD1Ev"]
    fn drop_locale(locale: *mut Locale);
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the address that V8's cache calls from is read as on x86-64");

/// For a record, V8's cache allocates a node of its map, and a copy of the name if the name is
/// long. Then it has the record copied. Both allocations stay as long as the record.
const NOTES: u32 = 2;

/// Whether the calling thread's current allocation is one of the [`NOTES`]. To be called once for
/// each allocation.
pub(super) fn is_note() -> bool {
    let left = ADDS.get();
    ADDS.set(left.saturating_sub(1));
    left > 0
}

/// Replaces ICU's `createInstance`: calls [`created`] with the address that it was called from.
///
/// # Safety
/// As for ICU's function.
#[unsafe(naked)]
#[unsafe(export_name = "__wrap__ZN6icu_7824DateTimePatternGenerator14createInstanceERKNS_6LocaleER10UErrorCode")]
unsafe extern "C" fn create_instance(locale: *const Locale, error: *mut c_int) -> *mut Generator {
    naked_asm!("mov rdx, [rsp]", "jmp {}", sym created)
}

/// # Safety
/// As for ICU's function.
unsafe extern "C" fn created(locale: *const Locale, error: *mut c_int, caller: usize) -> *mut Generator {
    if caller == CACHE.load(Ordering::Relaxed) && !quota::is_lifted() {
        // SAFETY: the caller keeps this function's contract.
        let record = unsafe { record(locale) };
        if !record.is_null() {
            ADDS.set(NOTES);
            return record.cast_mut().cast();
        }
    }
    // SAFETY: the caller keeps this function's contract.
    let generator = unsafe { icu_create_instance(locale, error) };
    LAST.set((generator, caller));
    generator
}

/// Replaces ICU's `clone`.
///
/// # Safety
/// As for ICU's function, or `generator` is a record.
#[unsafe(export_name = "__wrap__ZNK6icu_7824DateTimePatternGenerator5cloneEv")]
unsafe extern "C" fn clone(generator: *const Generator) -> *mut Generator {
    ADDS.set(0);
    // SAFETY: the caller keeps this function's contract.
    let original = if unsafe { &*generator }.first == (&raw const MARK).cast() {
        // SAFETY: only a record is marked.
        unsafe { own(generator.cast()) }
    } else {
        let (last, caller) = LAST.get();
        if last == generator {
            let _ = CACHE.compare_exchange(0, caller, Ordering::Relaxed, Ordering::Relaxed);
        }
        generator.cast_mut()
    };
    // V8 ends the process if this is null, as it would for a null from ICU.
    if original.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: it is ICU's.
    unsafe { icu_clone(original) }
}

/// Where V8's cache calls from, as a distance from this program's own code: the same in every
/// process of this program. `None` if no script has made a date format.
pub(in crate::engine) fn cache() -> Option<usize> {
    let address = CACHE.load(Ordering::Relaxed);
    (address != 0).then(|| address.wrapping_sub(here()))
}

/// Learns where V8's cache calls from, as [`cache`] returned it in another process.
pub(crate) fn know_cache(distance: usize) {
    CACHE.store(here().wrapping_add(distance), Ordering::Relaxed);
}

fn here() -> usize {
    create_instance as *const () as usize
}

/// A new record. Null in a thread that is not a tenant's, or if there is no memory.
///
/// # Safety
/// `locale` is ICU's.
unsafe fn record(locale: *const Locale) -> *const Record {
    // SAFETY: the caller keeps this function's contract.
    let name = unsafe { name_of(locale) };
    // SAFETY: ICU's names end with a zero, and live as long as their locales.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    let Some(memory) = commons::take_for_good(size_of::<Record>() + name.len()) else {
        return ptr::null();
    };
    let record = memory.cast::<Record>();
    if record.is_null() {
        return record;
    }
    // SAFETY: the block is large enough, and aligned.
    unsafe { record.write(Record { mark: (&raw const MARK).cast() }) };
    // SAFETY: the name fits after the record.
    let behind = unsafe { record.add(1) }.cast::<u8>();
    // SAFETY: as above.
    unsafe { behind.copy_from_nonoverlapping(name.as_ptr(), name.len()) };
    // The record over the limit is complete too, because a neighbour may be the next to use it.
    RECORDS.set(RECORDS.get().saturating_add(1));
    if RECORDS.get() > MOST_RECORDS {
        quota::end_the_run();
    }
    record
}

/// The calling thread's generator for a record, or null.
///
/// # Safety
/// The record is complete.
unsafe fn own(record: *const Record) -> *mut Generator {
    let mut all = OWN.get();
    let at = all.iter().position(|(of, _)| *of == record);
    let generator = match at.and_then(|at| all.get(at)) {
        Some((_, generator)) => *generator,
        None => {
            // SAFETY: by this function's contract, the name follows the record.
            let name = unsafe { record.add(1) };
            // SAFETY: as above.
            unsafe { make(name.cast()) }
        }
    };
    if generator.is_null() {
        return generator;
    }
    // The other entries move back by one, up to the entry where this one was, or to the end.
    if let Some(moved) = all.get_mut(..=at.unwrap_or(MOST_GENERATORS - 1)) {
        moved.rotate_right(1);
    }
    let [first, ..] = &mut all;
    let (_, last) = std::mem::replace(first, (record, generator));
    OWN.set(all);
    if at.is_none() && !last.is_null() {
        // SAFETY: it has just been removed from the list; V8 has only copies.
        unsafe { icu_delete(last) };
    }
    generator
}

/// A generator for a locale, or the one that V8 would use instead. Null if neither can be made.
///
/// # Safety
/// `name` is a locale's.
unsafe fn make(name: *const c_char) -> *mut Generator {
    for name in [name, c"root".as_ptr()] {
        let (mut locale, mut error) = (Locale(MaybeUninit::uninit()), 0);
        // SAFETY: a locale fits there.
        unsafe { locale_from_name(&raw mut locale, name) };
        // SAFETY: the locale was made just now, and `error` says that nothing has failed yet.
        let generator = unsafe { icu_create_instance(&raw const locale, &raw mut error) };
        // SAFETY: as above; it is not used any more.
        unsafe { drop_locale(&raw mut locale) };
        if error <= 0 {
            return generator;
        }
    }
    ptr::null_mut()
}

/// The tenant of the calling thread leaves: deletes its generators.
pub(crate) fn forget() {
    let none = [(ptr::null(), ptr::null_mut()); MOST_GENERATORS];
    for (_, generator) in OWN.replace(none).into_iter().filter(|(_, generator)| !generator.is_null()) {
        // SAFETY: as in `own`.
        unsafe { icu_delete(generator) };
    }
}
