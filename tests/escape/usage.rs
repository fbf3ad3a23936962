//! Finds rules of the filters that are not used: `ptrace` shows every system call of a worker while
//! it starts tenants and runs code of every kind. Each rule must let one of those calls through, or
//! be listed in [`RARE`] with its reason.

use std::collections::BTreeSet;

use enisle_tests::rig::Rig;
use enisle_tests::{PATIENCE, wait};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use serde_json::{Value, json};

use crate::Bench;
use crate::checks::POLICIES;

/// Calls that happen only now and then, or that another machine may need. An entry is the call's
/// name, or the name and the value of an argument.
const RARE: &[(&str, &str)] = &[
    ("write", "last message, from a handler"),
    ("tgkill", "abort"),
    ("exit_group", "the end of the process, from a handler"),
    ("restart_syscall", "the kernel's own, after a stop"),
    ("gettimeofday", "clocks that the vDSO cannot read"),
    ("clock_getres", "clocks that the vDSO cannot read"),
    ("clock_nanosleep", "back-off of a lock that several threads want"),
    ("sched_yield", "a lock that several threads want"),
    ("sched_getparam", "a lock that several threads want"),
    ("sched_getscheduler", "a lock that several threads want"),
    ("prctl 1398164801", "kernels with CONFIG_ANON_VMA_NAME, where V8 checks that it could name its mappings"),
    ("brk", "malloc, until its heap has no room to grow"),
    ("mremap", "realloc of large blocks"),
    ("mprotect 7", "V8's code range without keys"),
    ("pkey_mprotect 3", "V8's mappings when they are ready to use"),
    ("futex 9", "a wait with a deadline on some versions of libc and std"),
    ("futex 0", "a lock that several threads want"),
];

/// A run that allocates and frees memory of every kind, waits, prints and computes.
const WORK: &str = "async () => {
    const kept = [];
    for (let i = 0; i < 30; i++) {
        const r = new ArrayBuffer(4096, { maxByteLength: 1 << 22 });
        r.resize(1 << 22); r.resize(0); r.resize(1 << 16);
        kept.push(r.transfer(1 << 17), 'x'.repeat(1 << 20) + i, Array.from({ length: 30000 }, (_, k) => ({ k })));
        if (kept.length > 12) kept.splice(0, 8);
        if (i % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 2));
    }
    const text = JSON.stringify(Array.from({ length: 200000 }, (_, k) => k));
    console.log(text.length, new Date().toLocaleString(), /(a+)+b/.test('aaaaaaaaaaaaaaaaaaaac'), 3n ** 5000n > 1n);
    crypto.getRandomValues(new Uint8Array(8));
    const hot = (x) => { let y = 0; for (let i = 0; i < 1e6; i++) y = (y + x * i) | 0; return y };
    for (let i = 0; i < 20; i++) hot(i);
    return text.length;
}";

/// System calls. For each: whether a tenant's thread made it, its number, its arguments.
type Seen = BTreeSet<(bool, u64, [u64; 6])>;

pub(crate) fn unused_rules(bench: &Bench) -> Result<String, String> {
    let mut rig = bench.start(bench.layers, 3).map_err(|error| error.to_string())?;
    let seen = watch(&mut rig).map_err(|error| error.to_string())?;
    let (mut unused, mut rules) = (Vec::new(), 0);
    for (policy, name) in POLICIES.iter().zip(["allow", "tenant"]) {
        let policy: Value = serde_json::from_str(policy).map_err(|error| error.to_string())?;
        for rule in policy[name]["filter"].as_array().ok_or("a policy has rules")? {
            rules += 1;
            let used = seen.iter().any(|(tenant, number, args)| {
                // A confined tenant's thread is under both lists.
                (*tenant || name == "allow") && matches(rule, *number, args)
            });
            let call = rule["syscall"].as_str().unwrap_or_default();
            let of = rule["args"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|arg| format!("{call} {}", arg["val"]))
                .collect::<Vec<_>>();
            let rare = RARE.iter().any(|(rare, _)| *rare == call || of.iter().any(|of| of == rare));
            if !used && !rare {
                unused.push(format!("{name}: {call} {of:?}"));
            }
        }
    }
    if unused.is_empty() {
        Ok(format!("{} different calls seen; all of {rules} rules are used or known to be rare", seen.len()))
    } else {
        Err(format!("unused: {}", unused.join("; ")))
    }
}

fn matches(rule: &Value, number: u64, args: &[u64; 6]) -> bool {
    let named = rule["syscall"].as_str().and_then(crate::cases::number_of);
    let condition = |condition: &Value| {
        let width = if condition["type"] == "dword" { 0xffff_ffff } else { u64::MAX };
        let mask = condition["op"]["masked_eq"].as_u64().unwrap_or(width) & width;
        let index = condition["index"].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(0);
        args.get(index).is_some_and(|arg| Some(arg & mask) == condition["val"].as_u64())
    };
    named == Some(number) && rule["args"].as_array().is_none_or(|conditions| conditions.iter().all(condition))
}

/// Waits only for threads that the calling thread traces and for processes that it started: the
/// workers of other rows belong to other threads.
const OWN: WaitPidFlag = WaitPidFlag::__WALL.union(WaitPidFlag::__WNOTHREAD);

/// Traces every thread of the worker, including those that it starts, while tenants move in, work
/// and move out.
///
/// A process with traced threads is gone only when the tracer has collected each of them. So the
/// loop continues until no thread is left. If waiting fails, the loop kills the worker and then
/// continues.
fn watch(rig: &mut Rig) -> nix::Result<Seen> {
    let worker = Pid::from_raw(rig.pid());
    let mut outcome = trace(worker);
    std::thread::scope(|scope| {
        let traced = outcome.is_ok();
        scope.spawn(move || {
            if traced {
                work(rig);
            }
            rig.kill();
        });
        let mut seen = Seen::new();
        loop {
            match waitpid(None::<Pid>, Some(OWN)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    if let Ok(registers) = ptrace::getregs(thread) {
                        let r = registers;
                        seen.insert((is_tenants(worker, thread), r.orig_rax, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]));
                    }
                    let _ = ptrace::syscall(thread, None);
                }
                Ok(WaitStatus::PtraceEvent(thread, ..)) => drop(ptrace::syscall(thread, None)),
                Ok(WaitStatus::Stopped(thread, signal)) => {
                    let signal = (signal != Signal::SIGTRAP && signal != Signal::SIGSTOP).then_some(signal);
                    let _ = ptrace::syscall(thread, signal);
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECHILD) => return outcome.map(|()| seen),
                Err(error) => {
                    outcome = outcome.and(Err(error));
                    let _ = kill(worker, Signal::SIGKILL);
                }
            }
        }
    })
}

/// Starts to trace every thread of the process. A thread that is not traced yet may start another
/// one at any time, so this reads the folder of threads again until it holds no new one.
fn trace(worker: Pid) -> nix::Result<()> {
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
    let mut traced = BTreeSet::new();
    loop {
        let new: Vec<_> = threads(worker).filter(|thread| !traced.contains(thread)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for thread in new {
            match ptrace::seize(thread, options).and_then(|()| ptrace::interrupt(thread)) {
                // ESRCH: the thread has ended since the folder was read.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                // EPERM: a traced thread started this one, so the kernel traces it already; or the
                // thread is just ending.
                Err(nix::Error::EPERM) if wait::within(PATIENCE, || is_traced_or_gone(worker, thread)) => {}
                Err(error) => return Err(error),
            }
            traced.insert(thread);
        }
    }
}

fn threads(worker: Pid) -> impl Iterator<Item = Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_string_lossy().parse().ok().map(Pid::from_raw))
}

/// Whether the calling thread traces this thread of the process, or the thread has ended, even if
/// the kernel has not forgotten it yet.
fn is_traced_or_gone(worker: Pid, thread: Pid) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{worker}/task/{thread}/status")) else { return true };
    let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    value("TracerPid:") == gettid().to_string() || value("State:").starts_with(['X', 'Z'])
}

/// Tenants move in, work, and move out.
fn work(rig: &mut Rig) {
    for _ in 0..3 {
        let _ = rig.admit();
    }
    for _ in 0..2 {
        for tenant in rig.tenants() {
            let _ = tenant.send(WORK, &json!(null));
        }
        for tenant in rig.tenants() {
            let _ = tenant.end_of_run();
        }
    }
    rig.move_out();
}

fn is_tenants(worker: Pid, thread: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{worker}/task/{thread}/comm")).is_ok_and(|name| name.starts_with("tenant-"))
}
