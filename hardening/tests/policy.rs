//! Do the compiled filters do what the policies say?
//!
//! Every rule is tested with arguments that it allows, with each of its conditions broken, and with
//! junk in the upper half of each argument that has a condition. The answer is found twice: by
//! interpreting the compiled BPF, and by reading the policy with code that the compiler does not
//! share. Both answers must be the same. (The harness in `tests/escape` makes the calls under the
//! real filters, and finds rules that nothing uses.)

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use enisle_hardening::filter::{Own, programs};
use enisle_hardening::islands::Zone;
use proptest::prelude::*;
use serde_json::Value;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;
const EBADF: u32 = libc::SECCOMP_RET_ERRNO | 9;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const JUNK: u64 = 0xdead_beef << 32;

/// One system call, as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    architecture: u32,
    args: [u64; 6],
}

fn call(number: i64, args: [u64; 6]) -> Call {
    Call { number: u32::try_from(number).unwrap(), architecture: X86_64, args }
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let half = |value: u64, high: bool| {
            let half = if high { value >> 32 } else { value & 0xffff_ffff };
            u32::try_from(half).unwrap()
        };
        match offset {
            0 => self.number,
            4 => self.architecture,
            // The instruction pointer, which no rule examines.
            8 | 12 => 0,
            _ => half(self.args[(offset as usize - 16) / 8], offset % 8 == 4),
        }
    }
}

/// Interprets a program of classic BPF, as far as filters use it (linux/filter.h).
fn run(program: &[seccompiler::sock_filter], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = call.word(step.k),
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x45 => at += jump(accumulator & step.k != 0),
            0x06 => return step.k,
            other => panic!("instruction {other:#x} does not belong in a filter"),
        }
    }
}

fn policy(name: &str) -> Value {
    let text = match name {
        "tenant" => include_str!("../policy/tenant.json"),
        _ => include_str!("../policy/worker.json"),
    };
    serde_json::from_str::<Value>(text).unwrap()[name].clone()
}

/// The numbers of the calls that the policies name.
fn numbers() -> BTreeMap<&'static str, i64> {
    macro_rules! numbers { ($($name:ident => $number:ident),* $(,)?) => { BTreeMap::from([$((stringify!($name), libc::$number)),*]) } }
    numbers! {
        recvfrom => SYS_recvfrom, sendto => SYS_sendto, write => SYS_write, fcntl => SYS_fcntl, close => SYS_close,
        recvmsg => SYS_recvmsg, mmap => SYS_mmap, munmap => SYS_munmap, mremap => SYS_mremap, mprotect => SYS_mprotect,
        pkey_mprotect => SYS_pkey_mprotect, madvise => SYS_madvise, brk => SYS_brk, futex => SYS_futex, clone => SYS_clone,
        clone3 => SYS_clone3, set_robust_list => SYS_set_robust_list, rseq => SYS_rseq, rt_sigprocmask => SYS_rt_sigprocmask,
        sigaltstack => SYS_sigaltstack, seccomp => SYS_seccomp, prctl => SYS_prctl, sched_getaffinity => SYS_sched_getaffinity,
        sched_getparam => SYS_sched_getparam, sched_getscheduler => SYS_sched_getscheduler, sched_setscheduler => SYS_sched_setscheduler, gettimeofday => SYS_gettimeofday,
        clock_getres => SYS_clock_getres, clock_gettime => SYS_clock_gettime, clock_nanosleep => SYS_clock_nanosleep,
        sched_yield => SYS_sched_yield, gettid => SYS_gettid, getpid => SYS_getpid, getrandom => SYS_getrandom,
        tgkill => SYS_tgkill, exit => SYS_exit, exit_group => SYS_exit_group, restart_syscall => SYS_restart_syscall,
    }
}

/// One condition of a rule, read from the policy.
#[derive(Debug, Clone, Copy)]
struct Condition {
    index: usize,
    int: bool,
    mask: u64,
    value: u64,
}

impl Condition {
    fn read(condition: &Value) -> Self {
        let int = condition["type"] == "dword";
        let width = if int { 0xffff_ffff } else { u64::MAX };
        let mask = match &condition["op"] {
            Value::String(op) if op == "eq" => width,
            op => op["masked_eq"].as_u64().expect("the policies use eq and masked_eq") & width,
        };
        let index = usize::try_from(condition["index"].as_u64().unwrap()).unwrap();
        Self { index, int, mask, value: condition["val"].as_u64().unwrap() }
    }

    fn holds(self, args: &[u64; 6]) -> bool {
        args[self.index] & self.mask == self.value
    }
}

/// The rules of a program, by call.
fn rules(name: &str) -> BTreeMap<i64, Vec<Vec<Condition>>> {
    let numbers = numbers();
    let mut rules: BTreeMap<i64, Vec<Vec<Condition>>> = BTreeMap::new();
    for rule in policy(name)["filter"].as_array().unwrap() {
        let call = rule["syscall"].as_str().unwrap();
        let number = *numbers.get(call).unwrap_or_else(|| panic!("{call} has no number in this test"));
        let conditions = rule["args"].as_array().map(|args| args.iter().map(Condition::read).collect());
        rules.entry(number).or_default().push(conditions.unwrap_or_default());
    }
    rules
}

/// The action that the policy's rules demand for a call.
fn says(rules: &BTreeMap<i64, Vec<Vec<Condition>>>, call: &Call, matched: u32, otherwise: u32) -> u32 {
    let matches = rules
        .get(&i64::from(call.number))
        .is_some_and(|rules| rules.iter().any(|rule| rule.iter().all(|condition| condition.holds(&call.args))));
    if matches { matched } else { otherwise }
}

/// The values for which programs are compiled: the third of four islands, and a channel. The tests
/// use the keys 4 (the thread's own) and 1 (V8's).
struct Compiled {
    zone: Zone,
    channel: std::os::unix::net::UnixStream,
}

impl Compiled {
    fn new() -> Self {
        Self { zone: Zone::place(4, || 77), channel: std::os::unix::net::UnixStream::pair().unwrap().0 }
    }

    fn program(&self, wanted: &str, keys: &[u8]) -> Vec<seccompiler::sock_filter> {
        let own = Own { zone: &self.zone, island: self.zone.island(2).unwrap(), keys, channel: self.channel.as_fd() };
        programs(&own).unwrap().into_iter().find(|(name, _)| *name == wanted).unwrap().1
    }
}

const TABLES: [(&str, u32, u32); 3] = [("allow", ALLOW, TRAP), ("tenant", ALLOW, TRAP), ("refuse", ENOSYS, ALLOW)];

#[test]
fn every_rule_allows_what_it_names_and_nothing_else() {
    let compiled = Compiled::new();
    for (name, matched, otherwise) in TABLES {
        let (program, rules) = (compiled.program(name, &[4, 1]), rules(name));
        for (number, alternatives) in &rules {
            for rule in alternatives {
                let mut args = [0; 6];
                for condition in rule {
                    args[condition.index] = condition.value;
                }
                assert_eq!(run(&program, &call(*number, args)), matched, "{name}, call {number}: {rule:?}");
                let mut refused = rule.is_empty();
                for condition in rule {
                    let broken = [
                        condition.value.wrapping_add(1_000_000),
                        condition.value ^ 1 << condition.mask.trailing_zeros(),
                    ];
                    for value in broken {
                        let mut args = args;
                        args[condition.index] = value;
                        let call = call(*number, args);
                        let expected = says(&rules, &call, matched, otherwise);
                        assert_eq!(run(&program, &call), expected, "{name}: {call:?}");
                        refused |= expected == otherwise;
                    }
                    // The kernel ignores the upper half of an argument only if the argument is an
                    // int.
                    let mut junk = args;
                    junk[condition.index] |= JUNK;
                    let expected = if condition.int { matched } else { otherwise };
                    assert_eq!(
                        run(&program, &call(*number, junk)),
                        expected,
                        "{name}, junk for {condition:?} of call {number}"
                    );
                }
                assert!(refused, "{name}: no call close to {rule:?} of call {number} is refused");
            }
        }
    }
}

#[test]
fn a_call_without_a_rule_is_trapped_and_another_architecture_is_killed() {
    let compiled = Compiled::new();
    for (name, _, otherwise) in TABLES {
        let (program, rules) = (compiled.program(name, &[4, 1]), rules(name));
        for number in (0..1000).filter(|number| !rules.contains_key(number)) {
            assert_eq!(run(&program, &call(number, [0; 6])), otherwise, "{name}: call {number}");
            assert_eq!(run(&program, &call(number | 0x4000_0000, [0; 6])), otherwise, "{name}: call {number} of x32");
        }
        let other = Call { architecture: I386, ..call(libc::SYS_getpid, [0; 6]) };
        assert_eq!(run(&program, &other), KILL, "{name}");
    }
}

#[test]
fn the_list_of_a_tenants_thread_is_a_subset_of_the_list_of_its_process() {
    let (all, tenant) = (rules("allow"), rules("tenant"));
    assert!(tenant.keys().all(|number| all.contains_key(number)));
    for gone in [libc::SYS_clone, libc::SYS_seccomp, libc::SYS_sigaltstack, libc::SYS_rseq, libc::SYS_recvmsg] {
        assert!(all.contains_key(&gone) && !tenant.contains_key(&gone), "call {gone}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn compiled_and_read_policies_agree_on_any_call(
        which in 0_usize..3,
        number in 0_i64..460,
        args in proptest::array::uniform6(prop_oneof![0_u64..20, any::<u64>(), Just(JUNK | 3), Just(34), Just(0x4000), Just(u64::MAX)]),
    ) {
        let (name, matched, otherwise) = TABLES[which];
        let call = call(number, args);
        let program = Compiled::new().program(name, &[4, 1]);
        prop_assert_eq!(run(&program, &call), says(&rules(name), &call, matched, otherwise));
    }

    /// Compares `own` with its meaning: a range begins on the thread's own island or on none, and
    /// is shorter than a gap. Only a range that begins where the thread's own sandbox begins may be
    /// longer, up to the length of the sandbox.
    #[test]
    fn a_range_is_on_the_own_island_or_on_none(
        which in 0_usize..6,
        near in prop_oneof![Just("zone"), Just("own"), Just("end of own"), Just("end of zone"), Just("sandbox"), Just("nowhere")],
        offset in -8192_i64..8192,
        bytes in prop_oneof![0_u64..1 << 20, Just(64 << 30), Just((64 << 30) - 1), Just(1376 << 30), Just((1376 << 30) + 1), any::<u64>()],
    ) {
        let compiled = Compiled::new();
        let (zone, own) = (compiled.zone.range(), compiled.zone.island(2).unwrap());
        let base = match near {
            "zone" => zone.start,
            "own" => own.range().start,
            "end of own" => own.range().end,
            "end of zone" => zone.end,
            "sandbox" => own.sandbox().start,
            _ => 0x7fff_0000_0000,
        };
        let offset = if near == "sandbox" && offset % 2 == 0 { 0 } else { offset };
        let address = (base as u64).wrapping_add_signed(offset);
        let calls = [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect, libc::SYS_madvise, libc::SYS_mremap];
        // pkey_mprotect gets the thread's own key, and mremap a new length of 0.
        let args = if calls[which] == libc::SYS_pkey_mprotect { [address, bytes, 0, 4, 0, 0] } else { [address, bytes, 0, 0, 0, 0] };
        let at = usize::try_from(address).unwrap();
        let anothers = zone.contains(&at) && !own.range().contains(&at);
        let too_long = bytes > 1376 << 30 || (bytes >= 64 << 30 && at != own.sandbox().start);
        let expected = if anothers || too_long { TRAP } else { ALLOW };
        prop_assert_eq!(run(&compiled.program("own", &[4, 1]), &call(calls[which], args)), expected);
    }
}

#[test]
fn a_thread_may_name_only_its_own_keys_descriptor_and_thread() {
    let compiled = Compiled::new();
    let with_keys = compiled.program("own", &[4, 1]);
    let without = compiled.program("own", &[]);
    let tag = |program: &[_], key: u64| run(program, &call(libc::SYS_pkey_mprotect, [0x1000, 4096, 0, key, 0, 0]));
    for key in 0..16 {
        assert_eq!(tag(&with_keys, key), if key == 4 || key == 1 { ALLOW } else { TRAP }, "key {key}");
        assert_eq!(tag(&with_keys, key | JUNK), tag(&with_keys, key), "junk above key {key}");
        assert_eq!(tag(&without, key), TRAP, "key {key}");
    }
    assert_eq!(tag(&without, u64::MAX), ALLOW);

    let channel = u64::try_from(compiled.channel.as_raw_fd()).unwrap();
    let mute = compiled.program("mute", &[4, 1]);
    for fd in 0..64 {
        for number in [libc::SYS_recvfrom, libc::SYS_sendto] {
            let expected = if fd == channel { ALLOW } else { TRAP };
            assert_eq!(run(&with_keys, &call(number, [fd, 0, 0, 0, 0, 0])), expected, "descriptor {fd}");
            assert_eq!(
                run(&with_keys, &call(number, [fd | JUNK, 0, 0, 0, 0, 0])),
                expected,
                "junk above descriptor {fd}"
            );
        }
        let write = call(libc::SYS_write, [fd, 0, 0, 0, 0, 0]);
        assert_eq!(run(&with_keys, &write), if fd == channel || fd == 2 { ALLOW } else { TRAP }, "descriptor {fd}");
        assert_eq!(run(&mute, &write), if fd == 2 { EBADF } else { ALLOW }, "descriptor {fd}");
    }

    let (zone, own) = (compiled.zone.range(), compiled.zone.island(2).unwrap().range());
    let name = |at: usize, bytes| run(&with_keys, &call(libc::SYS_prctl, [0x5356_4d41, 0, at as u64, bytes, 0, 0]));
    assert_eq!([name(own.start, 4096), name(0x1000, 4096)], [ALLOW; 2]);
    assert_eq!(
        [name(zone.start, 4096), name(own.start - 1, 4096), name(own.end, 4096), name(own.start, 64 << 30)],
        [TRAP; 4]
    );

    let ids = [nix::unistd::getpid(), nix::unistd::gettid()].map(|id| u64::try_from(id.as_raw()).unwrap());
    let signal = |process, thread| run(&with_keys, &call(libc::SYS_tgkill, [process, thread, 6, 0, 0, 0]));
    assert_eq!(signal(ids[0], ids[1]), ALLOW);
    assert_eq!(signal(ids[0], ids[1] + 1), TRAP);
    assert_eq!(signal(ids[0] + 1, ids[1]), TRAP);
}

#[test]
fn every_program_is_short_enough_for_the_kernel() {
    let compiled = Compiled::new();
    for name in ["allow", "refuse", "tenant", "own", "mute"] {
        let length = compiled.program(name, &[4, 1]).len();
        assert!((5..4096).contains(&length), "{name} has {length} instructions");
    }
}
