//! Executes a program in a user namespace in which no further user namespaces can be made. For the
//! program, that is like a machine without user namespaces.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or("no program")?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    // This process has the capabilities of the namespace. The exec drops them, except for root.
    fs::write("/proc/sys/user/max_user_namespaces", "0")?;
    Err(Command::new(program).args(arguments).exec().into())
}
