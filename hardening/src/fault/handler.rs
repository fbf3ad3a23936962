//! Signals that end a worker, and the record of the first one, for the supervisor to read when the process is gone.
//!
//! ```text
//! fault in a thread ─▶ handler, on the thread's own signal stack, every key but 0 closed
//!                        ├─ writes one record to the page that the supervisor shares (the first fault wins)
//!                        └─ last words (V8 gave up) or nothing, then _exit: a handler never returns
//! ```
//!
//! The page carries a key of its own, which no thread has open; only the handler opens it, for the length of the record. Which
//! thread is whose stands there too, by the kernel's number of the thread, and what the handler goes by is read-only
//! ([`crate::sealed`]). So a script that can write anywhere but cannot execute cannot forge a record. It can still make another
//! thread stumble, over that one's stack or isolate, which carry no key; and one that can execute can write what it likes.
//! What the supervisor reads is an allegation, and [`FaultPage::read`] checks it as one.
//!
//! Behind the record lies a second page without a key, with an account for each place of the bytes
//! that its thread has taken outside the islands ([`account`]). A thread that can write anywhere
//! can write there as well.
//!
//! Handlers are also the answer of the filter ([`crate::seccomp`] traps instead of killing, so that there is a record);
//! where a handler cannot run, because the signal is blocked or the stack is gone, the kernel kills the process.
//! V8's own handler for WebAssembly is never installed: it would take a closed key for an index out of bounds.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::mpk::Key;
use crate::mpk::pkru::Pkru;
use crate::sealed::{MOST_PLACES, SEALED};
use crate::thread::CpuClock;

/// How a worker exits after a fault that has been recorded.
pub const FAULT_EXIT: i32 = 88;

/// `si_code` of a load or store by a closed key (`sigaction(2)`).
pub const SEGV_PKUERR: i32 = 4;

/// In place of a `si_code`, which the kernel never gives to SIGABRT: the worker itself found wrong keys.
const WRONG_KEYS: libc::c_int = i32::MIN;
/// The same: V8 ran out of memory, and raised no signal.
const OUT_OF_MEMORY: libc::c_int = i32::MIN + 1;

const PAGE_BYTES: usize = 4096;
/// The page of the record, and behind it that of the accounts.
const SHARED_BYTES: usize = 2 * PAGE_BYTES;
const SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];

/// What is at the start of the page. Atomics, because the other side may write at any time.
#[repr(C)]
#[derive(Debug)]
struct Raw {
    state: AtomicU32,
    signal: AtomicI32,
    code: AtomicI32,
    key: AtomicU32,
    place: AtomicU32,
    call: AtomicI32,
    address: AtomicU64,
    pc: AtomicU64,
    /// See [`Fault::room`].
    room: AtomicU64,
    /// 1 if `pc` was in the allocator.
    in_allocator: AtomicU32,
    /// The thread of each place; 0 where nobody has come yet.
    threads: [AtomicI32; MOST_PLACES],
    /// See [`FaultPage::computed`]; 0 where nothing was written.
    computed_us: [AtomicU64; MOST_PLACES],
}

/// The page holds it: `FaultPage::read` and `open_page` rely on that.
const _: () = assert!(size_of::<Raw>() <= PAGE_BYTES && align_of::<Raw>() <= PAGE_BYTES);

/// What a place has taken outside the islands, in bytes, as the worker counts it.
#[derive(Debug)]
#[repr(C)]
pub struct Account {
    /// And not given back. Signed: a thread that gives back more than it took owes the rest.
    now: AtomicI64,
    /// In all.
    ever: AtomicU64,
}

impl Account {
    pub fn take(&self, bytes: usize) {
        self.now.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.ever.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Any thread may give back what a place has taken.
    pub fn give_back(&self, bytes: usize) {
        self.now.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// What the supervisor reads of an [`Account`]: an allegation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub now: u64,
    pub ever: u64,
}

/// By place.
type Accounts = [Account; MOST_PLACES];

/// Their page holds them: `FaultPage::accounts` and `account` rely on that.
const _: () = assert!(size_of::<Accounts>() <= PAGE_BYTES && align_of::<Accounts>() <= PAGE_BYTES);

const EMPTY: u32 = 0;
const WRITING: u32 = 1;
const WRITTEN: u32 = 2;
/// The thread of no tenant.
const NOBODY: u32 = u32::MAX;

/// A fault, as the worker alleges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub signal: libc::c_int,
    pub code: libc::c_int,
    /// Of the tenant whose thread it was; none for the worker's own threads.
    pub place: Option<u32>,
    pub pc: u64,
    pub kind: Kind,
    /// What the process could still have committed just then, in bytes ([`room`]).
    pub room: u64,
    /// It happened inside libc's allocator.
    pub in_allocator: bool,
}

/// What kind of fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A load or store at `address`, whose pages carry `key`, which was closed.
    ClosedKey { address: u64, key: u32 },
    /// A system call that the filter does not let through.
    Refused { call: libc::c_int },
    /// A load or store where nothing is, or that the page does not allow.
    Access { address: u64 },
    /// The thread had other keys open than its own.
    WrongKeys,
    /// V8 or libc has given up.
    GaveUp,
    /// V8 was refused memory that it cannot do without.
    OutOfMemory,
}

/// The supervisor's side: memory that nobody can resize, shared with one worker.
#[derive(Debug)]
pub struct FaultPage {
    memory: OwnedFd,
    map: MmapRaw,
}

impl FaultPage {
    /// # Errors
    /// The kernel has no memory for it.
    pub fn new() -> io::Result<Self> {
        let memory = memfd_create(c"enisle-fault", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(memory.try_clone()?);
        file.set_len(SHARED_BYTES as u64)?;
        // A page that is cut off ends whoever reads it, and that would be the supervisor.
        fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        Ok(Self { map: MmapRaw::map_raw(&file)?, memory })
    }

    /// For the worker.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn raw(&self) -> &Raw {
        // SAFETY: the map begins with a page, larger than `Raw` and aligned for it, and lives as
        // long as `self`; every field is an atomic, which any bytes are, and which may change at
        // any time.
        unsafe { &*self.map.as_ptr().cast::<Raw>() }
    }

    fn accounts(&self) -> &Accounts {
        // SAFETY: the map has two pages.
        let page = unsafe { self.map.as_ptr().add(PAGE_BYTES) };
        // SAFETY: as in `raw`: the page is larger than `Accounts` and aligned for it.
        unsafe { &*page.cast::<Accounts>() }
    }

    /// What the worker says that each place has taken outside the islands.
    #[must_use]
    pub fn taken(&self) -> [Taken; MOST_PLACES] {
        self.accounts().each_ref().map(|account| Taken {
            now: u64::try_from(account.now.load(Ordering::Relaxed)).unwrap_or(0),
            ever: account.ever.load(Ordering::Relaxed),
        })
    }

    /// How much CPU time the thread of that place had used when it recorded a fault or was about to
    /// end the process, if it says so. An allegation as well.
    #[must_use]
    pub fn computed(&self, place: u32) -> Option<Duration> {
        let us = self.raw().computed_us.get(usize::try_from(place).ok()?)?.load(Ordering::Acquire);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// The fault that ended the worker, if one was recorded and says something that a fault can say.
    #[must_use]
    pub fn read(&self) -> Option<Fault> {
        let raw = self.raw();
        if raw.state.load(Ordering::Acquire) != WRITTEN {
            return None;
        }
        let (signal, code) = (raw.signal.load(Ordering::Relaxed), raw.code.load(Ordering::Relaxed));
        let address = raw.address.load(Ordering::Relaxed);
        let kind = match signal {
            libc::SIGSEGV if code == SEGV_PKUERR => Kind::ClosedKey { address, key: raw.key.load(Ordering::Relaxed) },
            libc::SIGSEGV | libc::SIGBUS => Kind::Access { address },
            libc::SIGSYS => Kind::Refused { call: raw.call.load(Ordering::Relaxed) },
            libc::SIGABRT if code == WRONG_KEYS => Kind::WrongKeys,
            libc::SIGABRT if code == OUT_OF_MEMORY => Kind::OutOfMemory,
            libc::SIGILL | libc::SIGTRAP | libc::SIGABRT => Kind::GaveUp,
            _ => return None,
        };
        let place = raw.place.load(Ordering::Relaxed);
        let place = (place != NOBODY).then_some(place);
        let (pc, room) = (raw.pc.load(Ordering::Relaxed), raw.room.load(Ordering::Relaxed));
        let in_allocator = raw.in_allocator.load(Ordering::Relaxed) == 1;
        Some(Fault { signal, code, place, pc, kind, room, in_allocator })
    }
}

/// What stands for the thread of a place that was given up: no number of a thread, so nobody can take it again.
const SPENT: i32 = -1;

/// From now on the calling thread is that of `place`, and it has only key 0 and the record's open, which it is to change next.
/// False if somebody is or was there already. To be called before any code of a tenant runs in the thread.
#[must_use]
pub fn thread_of(place: u32) -> bool {
    let this = nix::unistd::gettid().as_raw();
    let known = open_page().zip(usize::try_from(place).ok()).and_then(|(raw, place)| raw.threads.get(place));
    known.is_some_and(|known| known.compare_exchange(0, this, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// The thread of `place` is about to end: the kernel may give its number to another one. To be called by that thread, when no
/// code of a tenant runs in it any more.
pub fn thread_leaves(place: u32) {
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    if let Some(known) = open_page().and_then(|raw| raw.threads.get(place)) {
        known.store(SPENT, Ordering::Release);
    }
    // Its own key once more, for what is freed at the end of a thread: by the sealed page, never by a value from the stack.
    if let Some(pkru) = crate::sealed::pkru_of(place) {
        pkru.install();
    }
}

/// The page, with its key open. The key stays open: whoever is not about to exit closes it again.
fn open_page() -> Option<&'static Raw> {
    let page = SEALED.fault_page.load(Ordering::Acquire).cast::<Raw>();
    if page.is_null() {
        return None;
    }
    let writer = SEALED.writer.load(Ordering::Acquire);
    if writer != 0 {
        Pkru::from_bits(writer).install();
    }
    // SAFETY: `share` mapped a whole page for the life of the process, which holds a `Raw`
    // (asserted there), and its key is open now.
    Some(unsafe { &*page })
}

/// The worker's side: maps both pages. To be called while descriptors can still be mapped.
///
/// # Errors
/// The descriptor is no page.
pub fn share(page: OwnedFd) -> io::Result<()> {
    let map = MmapRaw::map_raw(&File::from(page))?;
    if map.len() < SHARED_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory for faults is too small"));
    }
    SEALED.fault_page.store(map.as_mut_ptr().cast(), Ordering::Release);
    // For the life of the process.
    std::mem::forget(map);
    Ok(())
}

/// The account of a place, which the supervisor may read at any time. None where there is no such
/// place, or no supervisor.
#[inline]
#[must_use]
pub fn account(place: u32) -> Option<&'static Account> {
    let page = SEALED.fault_page.load(Ordering::Acquire).cast::<u8>();
    if page.is_null() {
        return None;
    }
    // SAFETY: `share` mapped two pages.
    let page = unsafe { page.add(PAGE_BYTES) };
    // SAFETY: `share` mapped them for the life of the process, the second one holds `Accounts`
    // (asserted there), and it has no key of its own.
    unsafe { &*page.cast::<Accounts>() }.get(usize::try_from(place).ok()?)
}

/// Gives the record's page a key of its own, which is never open but in a handler.
///
/// # Errors
/// The kernel's.
pub fn guard(key: &Key) -> Result<(), crate::mpk::KeyError> {
    let page = SEALED.fault_page.load(Ordering::Acquire) as usize;
    // SAFETY: `share` mapped the page, and only the handler touches it, which opens the key.
    unsafe { key.tag(&(page..page + PAGE_BYTES), libc::PROT_READ | libc::PROT_WRITE) }?;
    SEALED.writer.store(Pkru::CLOSED.open(key).bits(), Ordering::Release);
    Ok(())
}

/// Takes over every signal that a fault can raise. To be called before the filter, which lets
/// nobody change handlers. `last_words` runs in the handler when V8 or libc has given up. Like the
/// handler it must be async-signal-safe (signal-safety(7)): no lock, no allocation, no first use of
/// a thread-local that has a destructor.
///
/// # Errors
/// The kernel's.
pub fn handle(last_words: extern "C" fn()) -> io::Result<()> {
    SEALED.last_words.store(last_words as *mut libc::c_void, Ordering::Release);
    for signal in SIGNALS {
        // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler itself uses atomics and makes system calls; the rest of what it does
        // is `last_words`, which the caller has made async-signal-safe too.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *const Info, context: *const libc::c_void) {
    record(signal, info, context);
    if matches!(signal, libc::SIGILL | libc::SIGTRAP | libc::SIGABRT) {
        let last_words = SEALED.last_words.load(Ordering::Acquire);
        if !last_words.is_null() {
            // SAFETY: `handle` stored a function of this type, and nothing else is ever stored.
            let last_words = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(last_words) };
            last_words();
        }
    }
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(FAULT_EXIT) };
}

/// The calling thread has other keys open than it should: puts that on record and ends the process.
pub fn wrong_keys() -> ! {
    let info = Info { code: WRONG_KEYS, ..Info::default() };
    record(libc::SIGABRT, &raw const info, ptr::null());
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(FAULT_EXIT) };
}

/// V8 has run out of memory on the calling thread: puts that on record. The process must end next.
pub fn out_of_memory() {
    let info = Info { code: OUT_OF_MEMORY, ..Info::default() };
    record(libc::SIGABRT, &raw const info, ptr::null());
}

/// The calling thread is about to end the process, over what its tenant did: puts on record how
/// much CPU time it has used. No tenant's code may run in it any more.
pub fn thread_ends_process() {
    if let Some(raw) = open_page() {
        note_computed(raw);
    }
}

/// Which place's thread this is, if any; with its CPU time on record.
fn note_computed(raw: &Raw) -> Option<usize> {
    // SAFETY: gettid has no preconditions.
    let this = unsafe { libc::gettid() };
    let place = raw.threads.iter().position(|thread| thread.load(Ordering::Acquire) == this)?;
    let computed_us = u64::try_from(CpuClock::OWN.now().as_micros()).unwrap_or(u64::MAX);
    raw.computed_us.get(place)?.store(computed_us, Ordering::Release);
    Some(place)
}

/// How much [`room`] looks for: the filter of a tenant's thread lets no mapping be as long as
/// [`crate::islands::GAP_BYTES`].
const MOST_ROOM: usize = crate::islands::GAP_BYTES - LEAST_ROOM;
const LEAST_ROOM: usize = 1 << 16;

/// What the process may still commit (`RLIMIT_DATA`, or the machine's own limit), within 64 KiB.
/// Found by asking for it: a handler can open no file in `/proc`, and a process that has ended has
/// no memory that the supervisor could look at.
fn room() -> usize {
    let (mut found, mut step) = (0, (MOST_ROOM + LEAST_ROOM) / 2);
    while step >= LEAST_ROOM {
        if may_commit(found + step) {
            found += step;
        }
        step /= 2;
    }
    found
}

/// Whether the process may still commit so much. Found by asking for it.
#[must_use]
pub fn may_commit(bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses a place where nothing is.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return false;
    }
    // On another's island the filter would trap: it stays then, for the moment that is left.
    if !crate::sealed::is_in_zone(at as usize) {
        // SAFETY: it was mapped just now, and nobody uses it.
        unsafe { libc::munmap(at, bytes) };
    }
    true
}

/// Whether an address is in the code of libc's allocator, whose functions lie side by side:
/// `malloc` and those behind it that a program can name, and the ones before it that it cannot.
fn is_in_allocator(pc: u64) -> bool {
    const BEFORE: u64 = 12 << 10;
    const BEHIND: u64 = 4 << 10;
    let (first, last) = (libc::malloc as *const () as u64, libc::posix_memalign as *const () as u64);
    (first.saturating_sub(BEFORE)..last.max(first) + BEHIND).contains(&pc)
}

/// How often a thread that comes second looks whether the first one has written its record: some 10 ms.
const PATIENCE: u32 = 1 << 20;

fn record(signal: libc::c_int, info: *const Info, context: *const libc::c_void) {
    let Some(raw) = open_page() else { return };
    let place = note_computed(raw);
    if raw.state.compare_exchange(EMPTY, WRITING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // Whoever comes second must not end the process under the first one's hands.
        for _ in 0..PATIENCE {
            if raw.state.load(Ordering::Acquire) == WRITTEN {
                return;
            }
            std::hint::spin_loop();
        }
        return;
    }
    // SAFETY: the kernel, or `wrong_keys`, passes a valid siginfo, which is larger than what is named of it.
    let info = unsafe { &*info };
    raw.signal.store(signal, Ordering::Relaxed);
    raw.code.store(info.code, Ordering::Relaxed);
    raw.address.store(info.address, Ordering::Relaxed);
    raw.key.store(info.key, Ordering::Relaxed);
    raw.call.store(info.call, Ordering::Relaxed);
    raw.place.store(place.and_then(|place| u32::try_from(place).ok()).unwrap_or(NOBODY), Ordering::Relaxed);
    let pc = program_counter(context);
    raw.pc.store(pc, Ordering::Relaxed);
    raw.in_allocator.store(is_in_allocator(pc).into(), Ordering::Relaxed);
    raw.room.store(room() as u64, Ordering::Relaxed);
    raw.state.store(WRITTEN, Ordering::Release);
}

/// The kernel's `siginfo_t` (asm-generic/siginfo.h) with the fields of a fault, some of which libc does not name. Which of
/// them mean something is up to the signal.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Info {
    signal: libc::c_int,
    errno: libc::c_int,
    pub(crate) code: libc::c_int,
    _padding: libc::c_int,
    /// `si_addr`, `si_call_addr`.
    address: u64,
    /// `si_syscall`.
    call: libc::c_int,
    /// `si_arch`.
    architecture: u32,
    /// `si_pkey`.
    pub(crate) key: u32,
}

#[cfg(target_arch = "x86_64")]
fn program_counter(context: *const libc::c_void) -> u64 {
    if context.is_null() {
        return 0;
    }
    // SAFETY: with SA_SIGINFO the third argument is a valid ucontext.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    registers.get(usize::try_from(libc::REG_RIP).unwrap_or(0)).map_or(0, |pc| pc.cast_unsigned())
}

#[cfg(not(target_arch = "x86_64"))]
fn program_counter(_: *const libc::c_void) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_with(write: impl Fn(&Raw)) -> FaultPage {
        let page = FaultPage::new().unwrap();
        write(page.raw());
        page
    }

    #[test]
    fn a_page_that_nobody_wrote_or_that_was_left_half_written_says_nothing() {
        assert_eq!(page_with(|_| {}).read(), None);
        assert_eq!(page_with(|raw| raw.state.store(WRITING, Ordering::Release)).read(), None);
    }

    #[test]
    fn a_record_of_a_signal_that_no_fault_raises_is_not_believed() {
        let page = page_with(|raw| {
            raw.signal.store(libc::SIGTERM, Ordering::Relaxed);
            raw.state.store(WRITTEN, Ordering::Release);
        });
        assert_eq!(page.read(), None);
    }

    #[test]
    fn a_closed_key_is_told_from_another_fault_by_its_code() {
        let fault = |code| {
            page_with(|raw| {
                raw.signal.store(libc::SIGSEGV, Ordering::Relaxed);
                raw.code.store(code, Ordering::Relaxed);
                raw.key.store(7, Ordering::Relaxed);
                raw.address.store(0x1000, Ordering::Relaxed);
                raw.place.store(NOBODY, Ordering::Relaxed);
                raw.state.store(WRITTEN, Ordering::Release);
            })
            .read()
            .unwrap()
        };
        assert_eq!(fault(SEGV_PKUERR).kind, Kind::ClosedKey { address: 0x1000, key: 7 });
        assert_eq!(fault(1).kind, Kind::Access { address: 0x1000 });
        assert_eq!(fault(1).place, None);
    }

    #[test]
    fn what_a_process_may_still_commit_is_found_within_its_bound() {
        // A bound of the process's own, which other tests of this process must not meet.
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { nix::unistd::fork() }.unwrap();
        if child.is_child() {
            let own = std::fs::read_to_string("/proc/self/statm").ok();
            let pages = own.and_then(|own| own.split_whitespace().nth(5)?.parse::<u64>().ok()).unwrap_or(0);
            let bound = pages * 4096 + (300 << 20);
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_DATA, bound, bound);
            let found = room() as u64 >> 20;
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(i32::from(!(290..=300).contains(&found))) };
        }
        let nix::unistd::ForkResult::Parent { child } = child else { return };
        let ended = nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
    }

    #[test]
    fn the_allocator_is_told_from_other_code_of_libcs() {
        for function in [libc::malloc as *const (), libc::free as *const (), libc::realloc as *const ()] {
            assert!(is_in_allocator(function as u64));
        }
        for function in [libc::memcpy as *const (), libc::getpid as *const (), room as *const ()] {
            assert!(!is_in_allocator(function as u64));
        }
    }

    #[test]
    fn the_cpu_time_of_a_place_is_told_once_its_thread_has_put_it_on_record() {
        let page = page_with(|raw| raw.threads[3].store(nix::unistd::gettid().as_raw(), Ordering::Release));
        assert_eq!(page.computed(3), None);
        assert_eq!(note_computed(page.raw()), Some(3));
        let told = page.computed(3).unwrap();
        assert!(told <= CpuClock::OWN.now() && page.computed(4).is_none() && page.computed(u32::MAX).is_none());
    }

    #[test]
    fn an_account_of_the_worker_is_what_the_supervisor_reads_and_never_less_than_nothing() {
        let page = FaultPage::new().unwrap();
        share(page.descriptor().try_clone_to_owned().unwrap()).unwrap();
        account(3).unwrap().take(5000);
        account(3).unwrap().give_back(1000);
        account(4).unwrap().give_back(1);
        let taken = page.taken();
        assert_eq!((taken[3], taken[4]), (Taken { now: 4000, ever: 5000 }, Taken::default()));
        let most = u32::try_from(MOST_PLACES).unwrap();
        assert!(account(most - 1).is_some() && account(most).is_none());
        assert_eq!(page.read(), None);
    }

    #[test]
    fn nobody_can_resize_the_page() {
        let page = FaultPage::new().unwrap();
        let file = File::from(page.descriptor().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err());
    }
}
