//! Executes a program under a filter that makes `setsockopt` refuse `SO_PASSRIGHTS` with
//! `ENOPROTOOPT`, as kernels before Linux 6.16 do.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// `<asm-generic/socket.h>`.
const SO_PASSRIGHTS: u64 = 83;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or("no program")?;
    let option = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SO_PASSRIGHTS)?;
    let rules = BTreeMap::from([(libc::SYS_setsockopt, vec![SeccompRule::new(vec![option])?])]);
    let unknown = SeccompAction::Errno(libc::ENOPROTOOPT.unsigned_abs());
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, unknown, machine)?.try_into()?;
    apply_filter(&filter)?;
    Err(Command::new(program).args(arguments).exec().into())
}
