//! Operations that must never return, whatever their result. This file states them itself and does
//! not read the policies, so that a rule which is missing in a policy is found.

use super::ledger::Broken;
use super::program::Op;

/// The calls that a tenant's thread needs; SECURITY.md gives their number. Every other call must
/// trap, or be answered with [`NO_SUCH_CALL`].
#[rustfmt::skip]
pub(super) const NEEDED: [libc::c_long; 28] = [
    libc::SYS_write, libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap,
    libc::SYS_mprotect, libc::SYS_pkey_mprotect, libc::SYS_madvise, libc::SYS_brk, libc::SYS_futex,
    libc::SYS_rt_sigprocmask, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield, libc::SYS_gettimeofday, libc::SYS_clock_getres, libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getrandom, libc::SYS_prctl,
    libc::SYS_tgkill, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_restart_syscall,
];
/// The filter's answer (ENOSYS) to calls that libc makes only to see whether they exist.
const NO_SUCH_CALL: &str = "errno 38";

const PROT_EXEC: u64 = 4;
const MAP_SHARED: u64 = 1;

/// Judges an operation that returned; `result` is the class of what it returned. Reads the
/// operation from its text, because the operations of a case are only text.
pub fn returned(op: &Op, result: &str) -> Option<Broken> {
    let script = op.script();
    let call = script.strip_prefix("attack.syscall(").and_then(|rest| rest.strip_suffix(')')).map(words);
    let why = match call.as_deref() {
        None if script.starts_with("attack.syscall32(") => "a call of the 32-bit table returned",
        None if script == FROZEN && result == "went through" => "the frozen page was written to",
        // The kernel looks only at the lower half of a number.
        Some([Some(number), args @ ..]) => match (number & 0xffff_ffff, args) {
            (number, _) if !is_needed(number) && result != NO_SUCH_CALL => "a call that no tenant needs returned",
            (9 | 10 | 329, [_, _, Some(protection), ..]) if protection & PROT_EXEC != 0 && has_succeeded(result) => {
                "memory became executable"
            }
            (9, [_, _, _, Some(flags), ..]) if flags & MAP_SHARED != 0 && has_succeeded(result) => {
                "memory was mapped to be shared"
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Broken::new("reach", format!("{why}: {script} returned {result:?}")))
}

/// The statement that stores to the frozen page.
const FROZEN: &str = "store((attack.frozen() + 24n))";

/// The arguments of a call; `None` for an argument that is not a plain number.
fn words(arguments: &str) -> Vec<Option<u64>> {
    let (mut depth, mut parts) = (0_i32, vec![String::new()]);
    for letter in arguments.chars() {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        match parts.last_mut() {
            Some(part) if letter != ',' || depth > 0 => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts.iter().map(|part| part.trim().strip_suffix('n')?.parse().ok()).collect()
}

fn is_needed(number: u64) -> bool {
    NEEDED.iter().any(|needed| u64::try_from(*needed) == Ok(number))
}

fn has_succeeded(result: &str) -> bool {
    ["0", "+", "-"].contains(&result)
}

#[cfg(test)]
mod tests {
    use super::super::program::Arg;
    use super::*;

    fn call(number: u64, args: &[u64]) -> Op {
        Op::Call { number, args: args.iter().map(|word| Arg::Word(*word)).collect() }
    }

    #[test]
    fn a_call_that_must_trap_is_a_finding_when_it_returns() {
        assert!(returned(&call(57, &[]), "+").is_some(), "fork");
        assert!(returned(&call(57, &[]), "errno 1").is_some(), "the kernel saw it");
        assert!(returned(&call(0x4000_0027, &[]), "+").is_some(), "x32");
        assert!(returned(&Op::Call32 { number: 20, args: Vec::new() }, "+").is_some());
        assert_eq!(returned(&call(39, &[]), "+"), None);
        assert_eq!(returned(&call(39 | 7 << 32, &[]), "+"), None);
        assert_eq!(returned(&call(435, &[]), NO_SUCH_CALL), None);
    }

    #[test]
    fn memory_that_may_not_be_made_is_a_finding() {
        assert!(returned(&call(9, &[0, 4096, 7, 0x22]), "+").is_some());
        assert!(returned(&call(10, &[0, 4096, 4]), "0").is_some());
        assert!(returned(&call(9, &[0, 4096, 3, 0x21]), "+").is_some());
        assert_eq!(returned(&call(9, &[0, 4096, 3, 0x22]), "+"), None);
        assert_eq!(returned(&call(10, &[0, 4096, 4]), "errno 22"), None);
        assert!(returned(&Op::Store { at: Arg::Frozen }, "went through").is_some());
        let case = |text: &str| returned(&Op::Language { class: "case".into(), text: text.to_owned() }, "0");
        assert!(case("attack.syscall(10n, page(v(0, 'x')), 4096n, 7n)").is_some());
        assert_eq!(case("attack.syscall(10n, page(v(7, 'x')), 4096n, 3n)"), None);
    }
}
