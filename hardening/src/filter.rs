//! The system call filters of a worker: a call that nothing in the worker needs ends the process.
//!
//! Policies are data, `policy/*.json`; the comment of each rule names what needs the call. The
//! build script compiles them, so a policy that is empty or does not parse fails the build. Only
//! `own` and `mute` are made at run time, from values of the thread.
//!
//! | program | runs on | answer |
//! |---|---|---|
//! | `allow` | every thread, from the end of start-up on | trap calls that are not listed |
//! | `refuse` | as `allow` | `ENOSYS` for `clone3`, so that libc uses `clone` |
//! | `sealed` | as `allow`, in a sealed worker | trap calls for executable memory |
//! | `tenant` | a tenant's thread, before any tenant's code | as `allow`, with a shorter list |
//! | `own` ([`Own`]) | as `tenant` | trap calls that name what is not the thread's own |
//! | `mute` ([`Own`]) | as `tenant` | `EBADF` for writes to standard error |
//!
//! The list of `tenant` allows no new filters, threads, signal stacks or executable memory. `own`
//! traps a call that names an island, a key, a descriptor or a thread that is not the thread's own.
//! `mute` is for V8, which prints before it gives up: such a write fails and is not trapped.
//! `sealed` also traps the return from a signal.
//!
//! The kernel runs all programs of a thread and takes the strictest answer. *Trap* raises SIGSYS in
//! the thread. The handler of the signal records which tenant's thread it was, and ends the process
//! ([`crate::fault`]); if the handler cannot run, the kernel ends the process. The call is not made
//! in either case. If a call is of another architecture, the kernel kills the process without a
//! record.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, apply_filter, apply_filter_all_threads, sock_filter,
};

use crate::islands::{GAP_BYTES, Island, Zone};
use crate::layers::{Layer, LayerSet};

include!(concat!(env!("OUT_DIR"), "/policy.rs"));

/// How many programs every thread of a filtered worker runs under, for [`crate::verify`].
pub const FILTERS: usize = 2;
/// How many further programs a tenant's thread runs under.
pub const THREAD_FILTERS: usize = 3;

/// The filter could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter {name:?} could not be installed: {error}")]
pub struct FilterError {
    name: &'static str,
    error: seccompiler::Error,
}

/// Filters every thread of the process, for good.
///
/// # Errors
/// The kernel refused; the process must then exit.
pub fn install() -> Result<(), FilterError> {
    for (name, program) in [("refuse", REFUSE), ("allow", ALLOW)] {
        apply_filter_all_threads(program).map_err(|error| FilterError { name, error })?;
    }
    Ok(())
}

/// Filters every thread of a sealed worker, on top of [`install`], for good.
///
/// # Errors
/// The kernel refused; the process must then exit.
pub fn seal() -> Result<(), FilterError> {
    apply_filter_all_threads(SEALED).map_err(|error| FilterError { name: "sealed", error })
}

/// How many programs every thread of a worker with these layers runs under.
#[must_use]
pub fn filters_of(layers: LayerSet) -> usize {
    FILTERS + usize::from(layers.has(Layer::SealedFilter))
}

/// What a tenant's thread may name in its system calls.
#[derive(Debug)]
pub struct Own<'a> {
    pub zone: &'a Zone,
    pub island: Island,
    /// Its own key and V8's for JIT pages; empty without keys.
    pub keys: &'a [u8],
    pub channel: BorrowedFd<'a>,
}

/// Filters the calling thread, for good: afterwards it cannot install another filter.
///
/// # Errors
/// The kernel refused; the thread must then run no tenant's code.
pub fn confine(own: &Own<'_>) -> Result<(), FilterError> {
    let [own, mute] = own.programs().map_err(|error| FilterError { name: "own", error: error.into() })?;
    for (name, program) in [("mute", mute.as_slice()), ("own", &own), ("tenant", TENANT)] {
        apply_filter(program).map_err(|error| FilterError { name, error })?;
    }
    Ok(())
}

/// Every program that a tenant's thread may run under, by name: for tests, and to measure how long
/// the programs are.
///
/// # Errors
/// The rules of `own` cannot be compiled.
pub fn programs(own: &Own<'_>) -> Result<[(&'static str, BpfProgram); 6], seccompiler::BackendError> {
    let [own, mute] = own.programs()?;
    let fixed = |name, program: &[sock_filter]| (name, program.to_vec());
    Ok([
        fixed("allow", ALLOW),
        fixed("refuse", REFUSE),
        fixed("tenant", TENANT),
        ("own", own),
        ("mute", mute),
        fixed("sealed", SEALED),
    ])
}

/// Calls that name a range of addresses: its start is argument 0, its length argument 1.
const RANGES: [libc::c_long; 6] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_madvise,
    libc::SYS_mremap,
];
/// Calls whose argument 0 is a descriptor, other than `write`.
const DESCRIPTORS: [libc::c_long; 2] = [libc::SYS_recvfrom, libc::SYS_sendto];

impl Own<'_> {
    /// Compiles `own` and `mute`. The rules of one call are alternatives; a rule matches if all its
    /// conditions hold.
    fn programs(&self) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
        let mut rules: BTreeMap<i64, Vec<Rule>> = BTreeMap::new();
        for call in RANGES {
            rules.insert(call, self.ranges()?);
        }
        rules.entry(libc::SYS_mremap).or_default().push(too_long(2)?);
        let mut foreign_key: Vec<_> =
            self.keys.iter().map(|key| int(3, Op::Ne, u64::from(*key))).collect::<Result<_, _>>()?;
        // -1 leaves the key unchanged; without keys V8 needs nothing else.
        if foreign_key.is_empty() {
            foreign_key.push(int(3, Op::Ne, u64::from(u32::MAX))?);
        }
        rules.entry(libc::SYS_pkey_mprotect).or_default().push(Rule::new(foreign_key)?);

        // PR_SET_VMA: argument 2 is the start of a range, argument 3 its length.
        let mut named = self.others_islands(2)?;
        named.push(too_long(3)?);
        rules.insert(libc::SYS_prctl, named);

        let channel = u64::from(self.channel.as_raw_fd().cast_unsigned());
        for call in DESCRIPTORS {
            rules.insert(call, vec![Rule::new(vec![int(0, Op::Ne, channel)?])?]);
        }
        let stderr = u64::from(libc::STDERR_FILENO.cast_unsigned());
        rules.insert(libc::SYS_write, vec![Rule::new(vec![int(0, Op::Ne, channel)?, int(0, Op::Ne, stderr)?])?]);
        // abort sends a signal to its own thread, and no other call needs tgkill.
        let own_thread = [nix::unistd::getpid(), nix::unistd::gettid()];
        let other_thread = |(index, id): (u8, &nix::unistd::Pid)| {
            Rule::new(vec![int(index, Op::Ne, u64::from(id.as_raw().cast_unsigned()))?])
        };
        rules.insert(libc::SYS_tgkill, (0..).zip(&own_thread).map(other_thread).collect::<Result<_, _>>()?);

        let muted = BTreeMap::from([(libc::SYS_write, vec![Rule::new(vec![int(0, Op::Eq, stderr)?])?])]);
        let errno = SeccompAction::Errno(libc::EBADF.cast_unsigned());
        Ok([compile(rules, SeccompAction::Trap)?, compile(muted, errno)?])
    }

    /// Rules that match if argument `index` is an address on another tenant's island.
    fn others_islands(&self, index: u8) -> Result<Vec<Rule>, seccompiler::BackendError> {
        let (zone, own) = (self.zone.range(), self.island.range());
        let others = [zone.start..own.start, own.end..zone.end].into_iter().filter(|others| !others.is_empty());
        let within = |range: Range<usize>| {
            Rule::new(vec![long(index, Op::Ge, range.start as u64)?, long(index, Op::Lt, range.end as u64)?])
        };
        others.map(within).collect()
    }

    /// Rules that match the ranges that no call may name. These are ranges that begin on another
    /// tenant's island, and ranges that are long enough to reach across a gap. Only a range that
    /// begins where the thread's own sandbox begins may be as long as the sandbox.
    fn ranges(&self) -> Result<Vec<Rule>, seccompiler::BackendError> {
        let sandbox = self.island.sandbox();
        let mut rules = self.others_islands(0)?;
        rules.push(Rule::new(vec![long(1, Op::Ge, GAP_BYTES as u64)?, long(0, Op::Ne, sandbox.start as u64)?])?);
        rules.push(Rule::new(vec![long(1, Op::Gt, sandbox.len() as u64)?])?);
        Ok(rules)
    }
}

fn too_long(index: u8) -> Result<Rule, seccompiler::BackendError> {
    Rule::new(vec![long(index, Op::Ge, GAP_BYTES as u64)?])
}

/// A condition on an argument that the kernel takes as an `int`; it ignores the upper half.
fn int(index: u8, op: Op, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(index, Width::Dword, op, value)
}

/// A condition on an argument of which the kernel uses all 64 bits.
fn long(index: u8, op: Op, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(index, Width::Qword, op, value)
}

fn compile(rules: BTreeMap<i64, Vec<Rule>>, action: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?.try_into()
}
