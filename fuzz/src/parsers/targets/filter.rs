//! The filters of system calls.
//!
//! Attacked: the programs that `hardening::filter` compiles for a thread of any island of any zone.
//! The calls have numbers, architectures and arguments at and near everything that the policies
//! name, with junk in the upper halves. Oracle: two interpreters that share no code must agree on
//! every call. One interprets the programs as classic BPF. The other reads
//! `hardening/policy/*.json`; for the rules about a thread's own addresses, keys and channel it
//! evaluates the sentences of `hardening::filter`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use arbitrary::Unstructured;
use enisle_hardening::filter::{Own, programs};
use enisle_hardening::islands::{GAP_BYTES, Island, Zone};
use serde_json::Value;
use syscalls::x86_64::Sysno;

use crate::parsers::draw::{Draw, ensure};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const X86_64: u32 = 0xc000_003e;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    architecture: u32,
    args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> Option<u32> {
        let half = |value: u64, high: bool| u32::try_from(if high { value >> 32 } else { value & 0xffff_ffff }).ok();
        match offset {
            0 => Some(self.number),
            4 => Some(self.architecture),
            16..64 if offset.is_multiple_of(4) => half(self.args[(offset as usize - 16) / 8], offset % 8 == 4),
            _ => None,
        }
    }
}

/// One instruction of classic BPF.
#[derive(Debug, Clone, Copy)]
struct Step {
    code: u16,
    taken: u8,
    not_taken: u8,
    k: u32,
}

/// Runs a program. Knows only the instructions of classic BPF that filters use (`linux/filter.h`).
fn run(program: &[Step], call: &Call) -> Result<u32, String> {
    let (mut at, mut accumulator) = (0, 0_u32);
    for _ in 0..=program.len() {
        let step = program.get(at).ok_or_else(|| format!("a jump to {at}, behind the program's end"))?;
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.taken } else { step.not_taken });
        match step.code {
            0x20 => accumulator = call.word(step.k).ok_or_else(|| format!("a load from {}", step.k))?,
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x45 => at += jump(accumulator & step.k != 0),
            0x06 => return Ok(step.k),
            other => return Err(format!("instruction {other:#x} does not belong in a filter")),
        }
    }
    Err("a program that does not end".to_owned())
}

/// One condition on an argument.
#[derive(Debug, Clone, Copy)]
struct Condition {
    index: usize,
    mask: u64,
    value: u64,
}

/// A program as its policy describes it.
#[derive(Debug)]
struct Policy {
    matched: u32,
    otherwise: u32,
    rules: BTreeMap<u32, Vec<Vec<Condition>>>,
}

impl Policy {
    fn read(file: &str, name: &str) -> Self {
        let all: Value = serde_json::from_str(file).expect("a policy is JSON");
        let policy = &all[name];
        let mut rules: BTreeMap<u32, Vec<Vec<Condition>>> = BTreeMap::new();
        for rule in policy["filter"].as_array().into_iter().flatten() {
            let call: Sysno = rule["syscall"].as_str().and_then(|name| name.parse().ok()).expect("a call's name");
            let conditions = rule["args"].as_array().into_iter().flatten().map(Condition::read).collect();
            rules.entry(u32::try_from(call.id()).expect("a number")).or_default().push(conditions);
        }
        Self { matched: action(&policy["match_action"]), otherwise: action(&policy["mismatch_action"]), rules }
    }

    fn says(&self, call: &Call) -> u32 {
        let holds = |condition: &Condition| call.args[condition.index] & condition.mask == condition.value;
        let mut rules = self.rules.get(&call.number).into_iter().flatten();
        if rules.any(|rule| rule.iter().all(holds)) { self.matched } else { self.otherwise }
    }
}

fn action(written: &Value) -> u32 {
    match (written.as_str(), written["errno"].as_u64()) {
        (Some("allow"), _) => ALLOW,
        (Some("trap"), _) => TRAP,
        (_, Some(errno)) => libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap_or(0),
        other => panic!("an action that this reader does not know: {other:?}"),
    }
}

impl Condition {
    fn read(written: &Value) -> Self {
        let width = if written["type"] == "dword" { 0xffff_ffff } else { u64::MAX };
        let mask = match &written["op"] {
            Value::String(op) if op == "eq" => width,
            op => op["masked_eq"].as_u64().expect("the policies use eq and masked_eq") & width,
        };
        let index = written["index"].as_u64().and_then(|index| usize::try_from(index).ok()).expect("an index");
        Self { index, mask, value: written["val"].as_u64().expect("a value") }
    }
}

static POLICIES: LazyLock<[(&str, Policy); 4]> = LazyLock::new(|| {
    let worker = include_str!("../../../../hardening/policy/worker.json");
    [
        ("allow", Policy::read(worker, "allow")),
        ("refuse", Policy::read(worker, "refuse")),
        ("tenant", Policy::read(include_str!("../../../../hardening/policy/tenant.json"), "tenant")),
        ("sealed", Policy::read(include_str!("../../../../hardening/policy/sealed.json"), "sealed")),
    ]
});

/// What a thread's own filter allows the thread to name in system calls.
struct Thread<'a> {
    zone: &'a Zone,
    island: Island,
    keys: &'a [u8],
    channel: u32,
    process: u32,
    thread: u32,
}

impl Thread<'_> {
    fn is_anothers(&self, address: u64) -> bool {
        let on = |range: Range<usize>| usize::try_from(address).is_ok_and(|address| range.contains(&address));
        on(self.zone.range()) && !on(self.island.range())
    }

    /// Whether the program `own` must trap, because the call names something that is not the
    /// thread's own.
    fn names_anothers(&self, call: &Call) -> bool {
        let [first, second, third, fourth, ..] = call.args;
        let int = |argument: u64| u32::try_from(argument & 0xffff_ffff).unwrap_or(0);
        let (gap, sandbox) = (GAP_BYTES as u64, self.island.sandbox());
        let names = |call: &[Sysno], number: u32| call.iter().any(|call| u32::try_from(call.id()) == Ok(number));
        let range = self.is_anothers(first)
            || (second >= gap && first != sandbox.start as u64)
            || second > sandbox.len() as u64;
        let foreign_key = match self.keys {
            // -1 leaves the key as it is.
            [] => int(fourth) != u32::MAX,
            keys => keys.iter().all(|key| u32::from(*key) != int(fourth)),
        };
        match call.number {
            number if names(&[Sysno::mmap, Sysno::munmap, Sysno::mprotect, Sysno::madvise], number) => range,
            number if names(&[Sysno::mremap], number) => range || third >= gap,
            number if names(&[Sysno::pkey_mprotect], number) => range || foreign_key,
            number if names(&[Sysno::prctl], number) => self.is_anothers(third) || fourth >= gap,
            number if names(&[Sysno::recvfrom, Sysno::sendto], number) => int(first) != self.channel,
            number if names(&[Sysno::write], number) => ![self.channel, 2].contains(&int(first)),
            number if names(&[Sysno::tgkill], number) => int(first) != self.process || int(second) != self.thread,
            _ => false,
        }
    }
}

pub(in crate::parsers) fn filter(u: &mut Unstructured<'_>) -> Result<(), String> {
    let slots = 1 + u.below(12);
    let mut random = u.number();
    let zone = Zone::place(slots, || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 16
    });
    let island = zone.island(u.below(slots)).ok_or("no island")?;
    let keys: Vec<u8> = (0..u.below(3)).map(|_| u8::try_from(1 + u.below(15)).unwrap_or(1)).collect();
    let (channel, _other) = UnixStream::pair().map_err(|error| error.to_string())?;
    let own = Own { zone: &zone, island, keys: &keys, channel: channel.as_fd() };
    let programs = programs(&own).map_err(|error| format!("{own:?} does not compile: {error}"))?;
    let thread = Thread {
        zone: &zone,
        island,
        keys: &keys,
        channel: channel.as_raw_fd().cast_unsigned(),
        process: nix::unistd::getpid().as_raw().cast_unsigned(),
        thread: nix::unistd::gettid().as_raw().cast_unsigned(),
    };
    let compiled = programs.map(|(name, program)| {
        let step = |step: &_| step_of(step);
        (name, program.iter().map(step).collect::<Vec<_>>())
    });
    for _ in 0..32 {
        let call = call(u, &thread);
        for (name, program) in &compiled {
            ensure((2..4096).contains(&program.len()), || format!("{name} has {} instructions", program.len()))?;
            let found = run(program, &call)?;
            let policy = POLICIES.iter().find(|(known, _)| known == name);
            let muted = call.number == u32::try_from(Sysno::write.id()).unwrap_or(0) && call.args[0] & 0xffff_ffff == 2;
            let expected = match (*name, policy) {
                _ if call.architecture != X86_64 => KILL,
                (_, Some((_, policy))) => policy.says(&call),
                ("own", _) if thread.names_anothers(&call) => TRAP,
                ("mute", _) if muted => libc::SECCOMP_RET_ERRNO | libc::EBADF.cast_unsigned(),
                ("own" | "mute", _) => ALLOW,
                (other, _) => return Err(format!("a program {other} that no oracle knows")),
            };
            ensure(found == expected, || {
                format!("{name} answers {found:#x} to {call:x?} of {own:?}, expected {expected:#x}")
            })?;
        }
    }
    Ok(())
}

fn step_of(step: &seccompiler::sock_filter) -> Step {
    Step { code: step.code, taken: step.jt, not_taken: step.jf, k: step.k }
}

/// A call close to what the policies and the thread's own rules name.
fn call(u: &mut Unstructured<'_>, thread: &Thread<'_>) -> Call {
    let (_, policy) = u.pick(&*POLICIES);
    let numbers: Vec<u32> = policy.rules.keys().copied().collect();
    let mut number = *u.pick(&numbers);
    let mut args = [0; 6].map(|_: u64| argument(u, thread));
    // The arguments of one of the call's rules, so that the rule matches.
    let rules = &policy.rules[&number];
    for condition in &rules[u.below(rules.len())] {
        if !u.rarely(6) {
            args[condition.index] = condition.value;
        }
        if u.rarely(4) {
            args[condition.index] |= u.number() << 32;
        }
        if u.rarely(6) {
            args[condition.index] ^= 1 << u.below(64);
        }
    }
    match u.below(10) {
        0 => number = u32::try_from(u.below(600)).unwrap_or(0),
        1 => number |= 0x4000_0000,
        2 => number = u.small(),
        _ => {}
    }
    let architecture = if u.rarely(12) { *u.pick(&[0x4000_0003, 0xc000_00b7, 0, u32::MAX]) } else { X86_64 };
    Call { number, architecture, args }
}

fn argument(u: &mut Unstructured<'_>, thread: &Thread<'_>) -> u64 {
    let (zone, island) = (thread.zone.range(), thread.island);
    let (own, sandbox) = (island.range(), island.sandbox());
    let edges = [zone.start, zone.end, own.start, own.end, sandbox.start, sandbox.len(), sandbox.end, GAP_BYTES];
    let near = |edge: u64, u: &mut Unstructured<'_>| edge.wrapping_add(u.below(3) as u64).wrapping_sub(1);
    match u.below(5) {
        0 => u.number(),
        1 => near(*u.pick(&edges) as u64, u),
        2 => near(u64::from(*u.pick(&[thread.channel, thread.process, thread.thread, 2])), u),
        3 => u64::from(*u.pick(&[thread.channel, thread.process, thread.thread, 2])) | u.number() << 32,
        _ => u.below(20) as u64,
    }
}
