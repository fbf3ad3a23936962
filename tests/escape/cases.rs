//! The catalogue as attacks: what an attacker's script does, how the attack must end, and without
//! which layers it must succeed. The codes are those of `docs/attacks.md`: M for memory and keys, F
//! for the filter, N for namespaces, descriptors and the host.
//!
//! A script gets `s`, the scene: where the victim's secrets are, and what else an attacker with
//! native code would know. The script returns `true` if the attack succeeded, and a text if a call
//! was refused with an error.

use enisle_hardening::Layer;
use enisle_hardening::Layer::{
    Capabilities, EmptyRoot, Keys, Landlock, Namespaces, NoNewPrivileges, NotDumpable, Rlimits, Seccomp, ThreadFilter,
};

use crate::checks::{self, Check};
use crate::tables;

/// How an attack must end while the layers that stop it are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The filter traps a call; the fault record names the attacker's slot.
    Trapped,
    /// The kernel kills the process for a call, with SIGSYS and without a fault record.
    Killed,
    /// A closed key stops an access, and the fault record names the attacker's slot.
    ClosedKey,
    /// The worker finds that the thread has wrong keys, and ends itself; the fault record names the
    /// attacker's slot.
    Aborted,
    /// The page is read-only, and the fault record names the attacker's slot.
    NotWritable,
    /// A call returns an error, and the script goes on.
    Refused,
    /// The attack succeeds, for the reason given, and only in its own process.
    Residual(&'static str),
}

/// What happens with the layers of [`Attack::without`] switched off.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Control {
    /// The attack succeeds.
    Succeeds,
    /// The attack is not tried without layers, for this reason.
    NotHere(&'static str),
}

/// A script that attacks.
#[derive(Debug)]
pub(crate) struct Attack {
    pub(crate) script: &'static str,
    pub(crate) expected: Expected,
    /// Layers that would stop the attack before it reaches the layers under test. They are off in
    /// both tries.
    pub(crate) off_in_both: &'static [Layer],
    /// The layers that stop the attack.
    pub(crate) without: &'static [Layer],
    pub(crate) control: Control,
}

/// How a row is tried.
#[derive(Debug)]
pub(crate) enum Kind {
    Attack(Attack),
    /// A row that is examined, mostly from outside.
    Check(Check),
}

/// A row of the catalogue, or one of a row's variants.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
}

const FILTERS: &[Layer] = &[ThreadFilter, Seccomp];
const THREAD: &[Layer] = &[ThreadFilter];
const KEYS: &[Layer] = &[Keys];
const FILES: &[Layer] = &[EmptyRoot, Landlock];

const fn attack(
    id: &'static str,
    title: &'static str,
    expected: Expected,
    without: &'static [Layer],
    script: &'static str,
) -> Case {
    let control = Control::Succeeds;
    Case { id, title, kind: Kind::Attack(Attack { script, expected, off_in_both: &[], without, control }) }
}

const fn behind(
    id: &'static str,
    title: &'static str,
    off_in_both: &'static [Layer],
    without: &'static [Layer],
    script: &'static str,
) -> Case {
    let (expected, control) = (Expected::Refused, Control::Succeeds);
    Case { id, title, kind: Kind::Attack(Attack { script, expected, off_in_both, without, control }) }
}

const fn uncontrolled(
    id: &'static str,
    title: &'static str,
    expected: Expected,
    why: &'static str,
    script: &'static str,
) -> Case {
    let (without, control) = (&[], Control::NotHere(why));
    Case { id, title, kind: Kind::Attack(Attack { script, expected, off_in_both: &[], without, control }) }
}

const fn residual(id: &'static str, title: &'static str, why: &'static str, script: &'static str) -> Case {
    uncontrolled(id, title, Expected::Residual(why), "it succeeds with every layer on", script)
}

const fn check(id: &'static str, title: &'static str, check: Check) -> Case {
    Case { id, title, kind: Kind::Check(check) }
}

macro_rules! numbers {
    ($($name:ident => $number:ident),* $(,)?) => { &[$((stringify!($name), libc::$number)),*] };
}

#[rustfmt::skip]
const NUMBERS: &[(&str, libc::c_long)] = numbers! {
    arch_prctl => SYS_arch_prctl, brk => SYS_brk, clock_getres => SYS_clock_getres,
    clock_gettime => SYS_clock_gettime, clock_nanosleep => SYS_clock_nanosleep, clone => SYS_clone,
    clone3 => SYS_clone3, close => SYS_close, dup => SYS_dup, execveat => SYS_execveat, exit => SYS_exit,
    exit_group => SYS_exit_group, fcntl => SYS_fcntl, ftruncate => SYS_ftruncate, futex => SYS_futex,
    getpid => SYS_getpid, getppid => SYS_getppid, getrandom => SYS_getrandom, gettid => SYS_gettid,
    gettimeofday => SYS_gettimeofday, io_setup => SYS_io_setup, io_uring_setup => SYS_io_uring_setup,
    ioctl => SYS_ioctl, keyctl => SYS_keyctl, kill => SYS_kill, madvise => SYS_madvise,
    memfd_create => SYS_memfd_create, mincore => SYS_mincore, mmap => SYS_mmap, mprotect => SYS_mprotect,
    mremap => SYS_mremap, munmap => SYS_munmap, openat => SYS_openat, pkey_alloc => SYS_pkey_alloc,
    pkey_free => SYS_pkey_free, pkey_mprotect => SYS_pkey_mprotect, prctl => SYS_prctl, pread64 => SYS_pread64,
    process_vm_readv => SYS_process_vm_readv, ptrace => SYS_ptrace, read => SYS_read, recvfrom => SYS_recvfrom,
    recvmsg => SYS_recvmsg, restart_syscall => SYS_restart_syscall, rseq => SYS_rseq,
    rt_sigaction => SYS_rt_sigaction, rt_sigprocmask => SYS_rt_sigprocmask, rt_sigreturn => SYS_rt_sigreturn,
    sched_getaffinity => SYS_sched_getaffinity, sched_getparam => SYS_sched_getparam,
    sched_getscheduler => SYS_sched_getscheduler, sched_setscheduler => SYS_sched_setscheduler, sched_yield => SYS_sched_yield, seccomp => SYS_seccomp,
    sendmsg => SYS_sendmsg, sendto => SYS_sendto, set_robust_list => SYS_set_robust_list, shmget => SYS_shmget,
    sigaltstack => SYS_sigaltstack, socket => SYS_socket, tgkill => SYS_tgkill, unshare => SYS_unshare,
    userfaultfd => SYS_userfaultfd, write => SYS_write,
};

/// The number of a system call that scripts or policies name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let (_, number) = NUMBERS.iter().find(|(known, _)| *known == name)?;
    u64::try_from(*number).ok()
}

/// The beginning of every script: the numbers of system calls, and helpers that the attacks use.
pub(crate) fn prelude() -> String {
    let calls: Vec<_> = NUMBERS.iter().map(|(name, number)| format!("{name}: {number}n")).collect();
    format!(
        "(s) => {{
const N = {{ {} }};
const at = (text) => BigInt(text);
const V = at(s.victim.buffer), own = new ArrayBuffer(65536), O = attack.address(own);
const [channel, stack, isolate, thread] = attack.self();
const call = (name, ...args) => attack.syscall(N[name], ...args);
const text = (string, offset = 0) => {{ new Uint8Array(own).set([...string].map((c) => c.charCodeAt(0)).concat(0), offset); return O + BigInt(offset); }};
const words = (list, offset = 0) => {{ new BigUint64Array(own, offset, list.length).set(list.map((w) => BigInt.asUintN(64, w))); return O + BigInt(offset); }};
const stolen = () => attack.read(V, 8n) === s.canary;
// An attacker that has changed its keys restores them, or the worker's next check would end it.
const hidden = (got) => {{ if (s.keys) attack.wrpkru(BigInt(s.pkru)); return got; }};
",
        calls.join(", ")
    )
}

#[rustfmt::skip]
pub(crate) const CASES: &[Case] = &[
    // M: memory isolation and ways around keys.
    check("M01", "corrupt lengths and offsets inside V8's sandbox", Check::NotHere(
        "V8's interface for corrupting memory exists in builds with one cage only; what is beyond the sandbox is M02")),
    attack("M02 buffer", "read an ArrayBuffer of the victim", Expected::ClosedKey, KEYS, "return stolen()"),
    attack("M02 resizable", "read a resizable ArrayBuffer", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.resizable), 8n) === s.canary"),
    attack("M02 string", "read a string on the heap", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.string) + 12n, 8n) === s.canary"),
    attack("M02 object", "read an object on the heap", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.object), 8n).length === 16"),
    attack("M02 array", "read numbers in an array", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.array), 8n).length === 16"),
    attack("M02 tables", "read V8's tables of the victim's isolate", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.table), 8n).length === 16"),
    attack("M02 rust", "read the worker's own memory for the victim: code, env, results", Expected::ClosedKey, KEYS,
        "return attack.read(at(s.victim.planted), 8n) === s.canary"),
    behind("M02 island", "read any used page of the victim's island", &[], KEYS,
        "for (const page of s.victim.pages) if (attack.probe(at(page)) !== s.victim.key || attack.probeWrite(at(page)) !== s.victim.key) return true;
        return s.victim.pages.length + ' pages are closed'"),
    attack("M02 write", "write into a buffer of the victim", Expected::ClosedKey, KEYS,
        "attack.write(V, 0x58n); return attack.read(V, 1n) === '58'"),
    attack("M02 write tables", "write into V8's tables of the victim's isolate", Expected::ClosedKey, KEYS,
        "attack.write(at(s.victim.table), 0x58n); return attack.read(at(s.victim.table), 1n) === '58'"),
    check("M03", "the same after the victim has freed, resized and allocated again", Check::NamesAnother("the rounds below, and the oracle in storms")),
    check("M03 tables", "what V8 wrote into a pooled table through a corrupted handle is gone in the next isolate", Check::Look(tables::cleared)),
    check("M04", "the readable parts of the victim's memory are on the documented list", Check::Look(checks::readable_is_documented)),
    residual("M05", "overwrite the victim's isolate", "isolate objects are malloc's, and carry no key; a process is the boundary",
        "attack.write(at(s.victim.isolate) + 64n, BigInt(parseInt(attack.read(at(s.victim.isolate) + 64n, 1n), 16))); return true"),
    uncontrolled("M06", "call the worker with other keys open than its own", Expected::Aborted, "without keys none can be wrong",
        "attack.wrpkru(0n); console.log('x'); return true"),
    check("M07", "no thread has more than one tenant's key, as reported by the kernel", Check::Look(checks::keys_of_every_thread)),
    residual("M08", "WRPKRU from native code", "an instruction cannot be forbidden; a process is the boundary",
        "attack.wrpkru(0n); const got = attack.read(V, 8n); attack.wrpkru(BigInt(s.pkru)); return got === s.canary"),
    uncontrolled("M09 gate", "jump into the gate with a chosen PKRU", Expected::Aborted,
        "M08 is the same instruction without the comparison", "return attack.callGate(0n) === 0n"),
    check("M09", "the worker's program has no unknown WRPKRU or XRSTOR", Check::Look(checks::instructions_that_write_pkru)),
    check("M10", "constants that form WRPKRU in compiled code",
        Check::Residual("V8 does not blind constants; a worker without a compiler is the answer", checks::sprayed_constants)),
    attack("M11", "read the victim through /proc/self/mem", Expected::Trapped,
        &[ThreadFilter, Seccomp, EmptyRoot, Landlock, NotDumpable, Capabilities, NoNewPrivileges], "
        const fd = call('openat', -100n, text('/proc/self/mem'), 0n); if (fd < 0n) return 'errno ' + fd;
        const n = call('pread64', fd, O + 4096n, 8n, V); return n === 8n && attack.read(O + 4096n, 8n) === s.canary"),
    attack("M12", "read the victim by process_vm_readv", Expected::Trapped, FILTERS, "
        const n = call('process_vm_readv', 1n, words([O + 4096n, 8n]), 1n, words([V, 8n], 64), 1n, 0n);
        return n === 8n && attack.read(O + 4096n, 8n) === s.canary"),
    attack("M13", "attach to another thread by ptrace", Expected::Trapped, FILTERS,
        // The kernel lets no process trace its own threads. EPERM shows that the call was made.
        "return call('ptrace', 16n, 1n, 0n, 0n) === -1n"),
    attack("M14", "give the victim's page key 0", Expected::Trapped, &[ThreadFilter],
        "call('pkey_mprotect', V & ~4095n, 4096n, 3n, 0n); return stolen()"),
    attack("M14 own", "give the victim's page the attacker's key", Expected::Trapped, &[ThreadFilter],
        "call('pkey_mprotect', V & ~4095n, 4096n, 3n, BigInt(s.key)); return stolen()"),
    attack("M15", "make a page execute-only, which strips its key", Expected::Trapped, FILTERS,
        "call('mprotect', O & ~4095n, 4096n, 4n); const got = call('mprotect', O & ~4095n, 4096n, 3n); return hidden(got === 0n)"),
    attack("M15 victim", "the same with the victim's page", Expected::Trapped, FILTERS,
        "call('mprotect', V & ~4095n, 4096n, 4n); call('mprotect', V & ~4095n, 4096n, 3n); return hidden(stolen())"),
    attack("M16 mmap", "map over the victim's page", Expected::Trapped, THREAD,
        "return call('mmap', V & ~4095n, 4096n, 3n, 0x32n, -1n, 0n) === (V & ~4095n)"),
    attack("M16 munmap", "unmap the victim's page", Expected::Trapped, THREAD, "return call('munmap', V & ~4095n, 4096n) === 0n"),
    attack("M16 mremap", "move a page over the victim's", Expected::Trapped, FILTERS,
        "const p = call('mmap', 0n, 4096n, 3n, 0x22n, -1n, 0n); return call('mremap', p, 4096n, 4096n, 3n, V & ~4095n) === (V & ~4095n)"),
    attack("M16 reach", "unmap a range that begins on the attacker's island and reaches the victim", Expected::Trapped, THREAD,
        "return call('munmap', at(s.own.sandbox) + (1n << 40n), 1n << 41n) === 0n"),
    attack("M17 dontneed", "zero the victim's page by madvise", Expected::Trapped, THREAD,
        "return call('madvise', V & ~4095n, 4096n, 4n) === 0n"),
    attack("M17 mincore", "see which of the victim's pages are in memory", Expected::Trapped, FILTERS,
        "return call('mincore', V & ~4095n, 4096n, O) === 0n"),
    attack("M18", "free the victim's key and allocate it again", Expected::Trapped, FILTERS,
        "call('pkey_free', BigInt(s.victim.key)); call('pkey_alloc', 0n, 0n); return hidden(stolen())"),
    attack("M18 allocate", "allocate a key", Expected::Trapped, FILTERS, "return hidden(call('pkey_alloc', 0n, 0n) > 0n)"),
    uncontrolled("M19 call", "rt_sigreturn by itself", Expected::Trapped, "M19 makes the frame that it takes", "return call('rt_sigreturn') === 0n"),
    attack("M19", "return through a forged signal frame with every key open", Expected::Trapped, FILTERS,
        "return hidden(attack.sigreturn(0n) === 0n && stolen())"),
    attack("M20 handler", "replace a signal handler", Expected::Trapped, FILTERS, "return call('rt_sigaction', 12n, 0n, O, 8n) === 0n"),
    attack("M20 stack", "replace the signal stack", Expected::Trapped, FILTERS, "return call('sigaltstack', 0n, O) === 0n"),
    attack("M21", "signal the victim's thread", Expected::Trapped, FILTERS, "return call('tgkill', 1n, at(s.victim.thread), 0n) === 0n"),
    attack("M22 memfd", "make memory that can be mapped twice", Expected::Trapped, FILTERS, "return call('memfd_create', text('x'), 0n) >= 0n"),
    attack("M22 shared", "map shared memory", Expected::Trapped, FILTERS, "return call('mmap', 0n, 4096n, 3n, 0x21n, -1n, 0n) > 0n"),
    attack("M23", "set up io_uring", Expected::Trapped, &[ThreadFilter, Seccomp, Rlimits], "const got = call('io_uring_setup', 1n, O); return got >= 0n || 'errno ' + got"),
    attack("M24", "make a userfaultfd", Expected::Trapped, FILTERS, "return call('userfaultfd', 1n) >= 0n"),
    attack("M25", "set up asynchronous I/O", Expected::Trapped, FILTERS, "return call('io_setup', 1n, O) === 0n"),
    attack("M26", "start a thread (libc blocks signals meanwhile, so the kernel kills the process)", Expected::Killed, &[ThreadFilter, Keys], "return attack.thread(V) >= 0"),
    residual("M27", "overwrite the victim's stack", "stacks carry no key: V8's locks read the stacks of waiting threads",
        "const b = attack.read(at(s.victim.stack), 1n); attack.write(at(s.victim.stack), BigInt(parseInt(b, 16))); return b.length === 2"),
    attack("M28 arch_prctl", "move the thread's segment base", Expected::Trapped, FILTERS, "return call('arch_prctl', 0x1003n, O) === 0n"),
    attack("M28 rseq", "register restartable sequences anew", Expected::Trapped, THREAD, "return call('rseq', O, 32n, 0n, 0n) !== -38n"),
    attack("M29", "install a filter that lies about keys", Expected::Trapped, THREAD,
        "words([0x7fff000000000006n], 64); return call('seccomp', 1n, 0n, words([1n, O + 64n])) === 0n"),
    attack("M30", "strip the key by the 32-bit table", Expected::Killed, FILTERS, "return attack.syscall32(20n) > 0n"),
    attack("M31 map", "map memory to write and execute", Expected::Trapped, FILTERS, "return attack.execute('b82a000000c3') === 42n"),
    attack("M31 protect", "make the attacker's own page executable", Expected::Trapped, FILTERS, "return call('mprotect', O & ~4095n, 4096n, 5n) === 0n"),
    attack("M32", "have the kernel merge pages", Expected::Trapped, FILTERS,
        "const got = call('madvise', O & ~4095n, 4096n, 12n); return got === 0n || (got === -22n && 'this kernel merges no pages')"),
    uncontrolled("M33", "overwrite the page that says which keys a thread gets", Expected::NotWritable, "the page is read-only whatever the layers",
        "const page = attack.frozen(); attack.read(page, 8n); attack.write(page + 24n, 0n); return true"),
    check("M33 calls", "no call that a script can make changes its thread's keys", Check::Look(checks::keys_hold_whatever_is_called)),
    behind("M34", "have the kernel write into the victim's buffer", &[], KEYS,
        "const got = call('getrandom', V, 8n, 0n); return got === 8n || 'errno ' + got"),
    check("M35", "a crash leaves no dump", Check::Look(checks::no_dump)),

    // F: ways around the filter.
    attack("F01", "the system calls of 32-bit programs", Expected::Killed, FILTERS, "return attack.syscall32(20n) > 0n"),
    uncontrolled("F02", "the system calls of x32 programs", Expected::Trapped, "this kernel has no x32 table: the call is ENOSYS by itself",
        "return attack.syscall(0x40000000n | 39n) !== -38n"),
    uncontrolled("F03", "a system call that does not exist", Expected::Trapped, "it has no effect to show", "return attack.syscall(1999n) !== -38n"),
    attack("F04 key", "junk in the upper half of a key", Expected::Trapped, THREAD,
        "call('pkey_mprotect', V & ~4095n, 4096n, 3n, 0x1234567800000000n); return stolen()"),
    attack("F04 descriptor", "junk in the upper half of a descriptor", Expected::Trapped, THREAD,
        "return call('recvfrom', at(s.victim.channel) | 0x1234567800000000n, O, 8n, 0x40n, 0n, 0n) === -11n"),
    attack("F04 call", "junk in the upper half of the number", Expected::Trapped, FILTERS, "return attack.syscall(N.getppid | 0x1234567800000000n) >= 0n"),
    check("F05", "every thread runs under its filters", Check::Look(checks::filters_of_every_thread)),
    attack("F06", "clone3, whose flags a filter cannot see", Expected::Trapped, FILTERS, "return call('clone3', 0n, 0n) !== -38n"),
    attack("F07", "ioctl on the attacker's own channel", Expected::Trapped, FILTERS, "return call('ioctl', channel, 0x541bn, O) === 0n"),
    attack("F08 dumpable", "prctl: become dumpable", Expected::Trapped, FILTERS, "return call('prctl', 4n, 1n, 0n, 0n, 0n) === 0n"),
    attack("F08 name", "prctl: options that only the start of a thread needs", Expected::Trapped, THREAD, "return call('prctl', 15n, text('x'), 0n, 0n, 0n) === 0n"),
    attack("F09", "a trapped call is not made and the thread does not go on", Expected::Trapped, FILTERS, "return call('getppid') >= 0n"),
    attack("F09 blocked", "the same with the signal blocked", Expected::Killed, FILTERS,
        "call('rt_sigprocmask', 0n, words([1n << 30n]), 0n, 8n); return call('getppid') >= 0n"),
    behind("F10", "a call that is refused with an error has no other effect", &[], THREAD, "const got = call('write', 2n, O, 1n); return got === 1n || 'errno ' + got"),
    check("F11", "no decision is left to user space", Check::Look(checks::no_user_notification)),
    attack("F12", "map a descriptor", Expected::Trapped, FILTERS,
        // The kernel cannot map a socket. ENODEV shows that the call was made.
        "return call('mmap', 0n, 4096n, 1n, 2n, channel, 0n) === -19n"),
    attack("F12 execute", "map a file to execute it", Expected::Trapped, FILTERS,
        "const fd = call('memfd_create', text('x'), 0n); call('ftruncate', fd, 4096n); return call('mmap', 0n, 4096n, 5n, 2n, fd, 0n) > 0n"),
    attack("F13", "execute an inherited file", Expected::Trapped, FILTERS, "return call('execveat', channel, text(''), 0n, 0n, 0x1000n) === -13n"),
    attack("F14", "signal the process", Expected::Trapped, FILTERS, "return call('kill', 1n, 0n) === 0n"),
    check("F15", "every rule is used; hardening/tests/policy.rs shows that the rules do what they say", Check::Look(crate::usage::unused_rules)),

    // N: namespaces, cgroups, descriptors, /proc.
    behind("N01", "open a file of the host", FILTERS, FILES, "const got = call('openat', -100n, text('/etc/passwd'), 0n); return got >= 0n || 'errno ' + got"),
    attack("N02", "make a namespace", Expected::Trapped, FILTERS, "return call('unshare', 0x200n) === 0n"),
    check("N03", "the worker has exactly the descriptors that it needs", Check::Look(checks::descriptors)),
    attack("N03 read", "read the victim's channel", Expected::Trapped, THREAD, "return call('recvfrom', at(s.victim.channel), O, 8n, 0x40n, 0n, 0n) === -11n"),
    attack("N03 write", "speak on the victim's channel", Expected::Trapped, THREAD, "return call('sendto', at(s.victim.channel), O, 1n, 0x4000n, 0n, 0n) === 1n"),
    attack("N03 duplicate", "duplicate a descriptor", Expected::Trapped, FILTERS, "return call('dup', 3n) > 3n"),
    attack("N03 close", "close a channel, and wait until another tenant gets its number", Expected::Trapped, FILTERS,
        "return call('close', at(s.victim.channel)) === 0n"),
    attack("N04", "send a descriptor to the supervisor", Expected::Trapped, FILTERS, "
        // msghdr: name, namelen, iov, iovlen, control, controllen, flags;
        // cmsg: length 20, SOL_SOCKET, SCM_RIGHTS, the descriptor.
        words([O, 1n], 256); words([20n, 0x0000000100000001n, channel], 320);
        return call('sendmsg', at(s.victim.channel), words([0n, 0n, O + 256n, 1n, O + 320n, 24n, 0n]), 0x4000n) === 1n"),
    attack("N05", "receive a descriptor", Expected::Trapped, THREAD,
        "words([O, 1n], 256); return call('recvmsg', channel, words([0n, 0n, O + 256n, 1n, 0n, 0n, 0n]), 0x40n) === -11n"),
    attack("N06", "make a socket", Expected::Trapped, FILTERS, "return call('socket', 1n, 1n, 0n) >= 0n"),
    behind("N07", "open the control groups", FILTERS, FILES, "const got = call('openat', -100n, text('/sys'), 0n); return got >= 0n || 'errno ' + got"),
    behind("N08", "read /proc", FILTERS, FILES, "const got = call('openat', -100n, text('/proc/version'), 0n); return got >= 0n || 'errno ' + got"),
    check("N09", "the worker has no environment, and its arguments hold only its name", Check::Look(checks::environment)),
    behind("N10", "signal the supervisor", FILTERS, &[Namespaces, EmptyRoot, Landlock],
        "const got = call('kill', BigInt(s.supervisor), 0n); return got !== -3n || 'errno ' + got"),
    attack("N11 shm", "make System V shared memory", Expected::Trapped, FILTERS, "return call('shmget', 0n, 4096n, 0o600n) >= 0n"),
    attack("N11 keys", "ask for a keyring", Expected::Trapped, FILTERS, "return call('keyctl', 0n, -2n, 1n) > 0n"),
    check("N12", "a bug in the kernel", Check::Residual("beyond what a daemon can prevent; the calls that reach the kernel are counted", checks::number_of_calls)),
];
