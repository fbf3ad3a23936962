//! A new process in namespaces of its own: `clone3`, then `execveat`, and nothing in between that
//! could allocate.
//!
//! ```text
//! supervisor                               child
//!   clone3(NEWUSER|NEWNS|NEWPID|…) ───────▶ waits for one byte
//!   writes uid_map, gid_map, oom_score_adj    │
//!   sends the byte ─────────────────────────▶ raises its nice value above the daemon's
//!                                             becomes uid 0 of its user namespace
//!   reads from the socket pair                opens 0, 1, 2, 3; makes the rest close-on-exec
//!     end of file: the worker runs ◀───────── execveat(worker, empty environment)
//!     four bytes: the errno of a failed step
//! ```
//!
//! The parent has many threads, and any of them may have held a lock at the moment of the clone. So
//! between `clone3` and `execveat` the child only makes system calls, on values that were prepared
//! before the clone. It makes them directly, or through libc's thin wrappers (`read`, `write`),
//! which take no lock and allocate nothing.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// The descriptor of a worker's control channel.
pub const CONTROL_FD: RawFd = 3;

/// Every namespace that a worker gets of its own, with its file in `/proc/PID/ns`.
pub const NAMESPACES: [(&str, libc::c_int); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// A worker's `oom_score_adj` is at least this, so that the kernel ends a worker and not the daemon
/// when memory runs out (proc_pid_oom_score_adj(5)). The runs of a worker start again elsewhere;
/// with the daemon all workers end.
pub const OOM_SCORE: i32 = 500;

/// The difference between a worker's nice value and the daemon's, so that the scheduler prefers the
/// daemon if both want a processor (sched(7)). Each step costs a worker a fifth of its scheduling
/// weight. With a difference of 5, the slowest hundredth of the runs of 8 clients on two busy cores
/// took a quarter longer.
pub const NICER: i32 = 1;

/// What to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program, already open, because the worker's uid may not be able to reach its path.
    pub program: BorrowedFd<'a>,
    pub arguments: &'a [CString],
    /// The worker's end of its control channel, which becomes [`CONTROL_FD`].
    pub control: OwnedFd,
    /// The descriptor that becomes standard error.
    pub stderr: OwnedFd,
    pub namespaces: bool,
    /// The worker's uid outside its user namespace; `gid` likewise. Only root can choose a uid
    /// other than its own.
    pub uid: u32,
    pub gid: u32,
}

/// A started worker. If this value is dropped before the process was collected, the process is
/// killed and collected, so none is left behind. The pidfd always names this process; its id could
/// be reused.
#[derive(Debug)]
pub struct Started {
    pub pid: Pid,
    pidfd: OwnedFd,
    collected: bool,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("a descriptor for the worker could not be prepared: {0}")]
    Descriptors(io::Error),
    #[error("the kernel refuses a process in namespaces of its own (clone3): {0}")]
    Clone(io::Error),
    #[error("the worker's uid and gid could not be mapped: {0}")]
    Map(io::Error),
    #[error("the worker could not be made the first to be killed when memory runs out (oom_score_adj): {0}")]
    OomScore(io::Error),
    #[error("the worker did not reach the execution of its program: {0}")]
    Exec(io::Error),
}

/// Starts a worker. Call this from a thread that lives as long as the daemon, because the worker's
/// parent-death signal comes when the thread that cloned it ends.
///
/// # Errors
/// [`SpawnError`] names the step; no process is left behind.
pub fn spawn(spawn: Spawn<'_>) -> Result<Started, SpawnError> {
    // All source descriptors are above the targets 0..=3, so that no dup2 overwrites a source that
    // is still needed.
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(SpawnError::Descriptors)?;
    let null = above(null.as_raw_fd())?;
    let control = above(spawn.control.as_raw_fd())?;
    let stderr = above(spawn.stderr.as_raw_fd())?;
    let program = above(spawn.program.as_raw_fd())?;
    let (mut ours, theirs) = UnixStream::pair().map_err(SpawnError::Descriptors)?;
    let sync = above(theirs.as_raw_fd())?;
    drop(theirs);

    let mut argv: Vec<*const libc::c_char> = spawn.arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(ptr::null());
    let child = Child {
        null: null.as_raw_fd(),
        control: control.as_raw_fd(),
        stderr: stderr.as_raw_fd(),
        program: program.as_raw_fd(),
        sync: sync.as_raw_fd(),
        parents: ours.as_raw_fd(),
        argv: argv.as_ptr(),
        namespaces: spawn.namespaces,
        change_ids: nix::unistd::geteuid().is_root(),
        uid: spawn.uid,
        gid: spawn.gid,
        nice: own_nice() + NICER,
    };

    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD;
    if spawn.namespaces {
        flags |= NAMESPACES.iter().fold(0, |all, (_, flag)| all | flag);
    }
    let mut args = clone_args(flags, ptr::from_mut(&mut pidfd) as u64);
    // SAFETY: `args` is a valid clone_args of the size given, without CLONE_VM: the child runs on a
    // copy of this memory and calls only `Child::run`, which makes nothing but system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    match pid {
        -1 => return Err(SpawnError::Clone(io::Error::last_os_error())),
        0 => child.run(),
        _ => {}
    }
    let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor in `pidfd`; nothing else owns it.
    let started = Started { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) }, collected: false };
    drop(sync);

    release(&mut ours, pid, &spawn)?;
    let mut errno = [0; 4];
    match ours.read_exact(&mut errno) {
        // End of file: `execveat` closed the child's end, so the worker's program runs.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(started),
        result => Err(SpawnError::Exec(
            result.err().unwrap_or_else(|| io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        )),
    }
}

/// Arguments of `clone3` for a process, not a thread, whose end raises SIGCHLD.
pub(crate) fn clone_args(flags: libc::c_int, pidfd: u64) -> libc::clone_args {
    libc::clone_args {
        flags: u64::from(flags.cast_unsigned()),
        pidfd,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    }
}

impl Started {
    /// The pidfd, for waiting: it is readable once the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills the process; does nothing if it has ended.
    pub fn kill(&self) {
        // SAFETY: the descriptor is the process's pidfd, and the pointer to more information may be
        // null.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }

    /// Collects the process if it has ended, and returns how it ended.
    pub fn try_collect(&mut self) -> Option<WaitStatus> {
        self.wait(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
    }

    /// Waits until the process has ended, collects it, and returns how it ended.
    pub fn collect(&mut self) -> Option<WaitStatus> {
        self.wait(WaitPidFlag::WEXITED)
    }

    fn wait(&mut self, flags: WaitPidFlag) -> Option<WaitStatus> {
        match waitid(Id::PIDFd(self.pidfd.as_fd()), flags) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::EINTR) => None,
            Ok(status) => {
                self.collected = true;
                Some(status)
            }
            Err(_) => {
                self.collected = true;
                None
            }
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
        while !self.collected {
            self.collect();
        }
    }
}

/// Maps uid 0 of the child's user namespace, if it has one, to `spawn.uid`. Then sets the child's
/// `oom_score_adj`, and lets the child continue.
fn release(ours: &mut UnixStream, pid: Pid, spawn: &Spawn<'_>) -> Result<(), SpawnError> {
    if spawn.namespaces {
        let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text).map_err(SpawnError::Map);
        // An ordinary user may write a gid map only if setgroups is switched off. If the daemon is
        // root, the child drops root's groups itself.
        if !nix::unistd::geteuid().is_root() {
            write("setgroups", "deny".to_owned())?;
        }
        write("uid_map", format!("0 {} 1", spawn.uid))?;
        write("gid_map", format!("0 {} 1", spawn.gid))?;
    }
    // Raising the score takes no privilege, and the score survives the exec. `OOM_SCORE` is added
    // to the daemon's own score, which may be above zero.
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|score| score.trim().parse().ok());
    let score = (own.unwrap_or(0) + OOM_SCORE).clamp(OOM_SCORE, 1000);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(SpawnError::OomScore)?;
    ours.write_all(&[1]).map_err(SpawnError::Map)
}

/// The nice value of this thread.
fn own_nice() -> i32 {
    // SAFETY: getpriority takes two numbers. -1 is a nice value, or an error; for an error it is a
    // good guess.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// A close-on-exec copy of `fd`, numbered 10 or above.
fn above(fd: RawFd) -> Result<OwnedFd, SpawnError> {
    // SAFETY: F_DUPFD_CLOEXEC takes any number as its descriptor and an integer argument; it
    // touches no memory.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) };
    if copy < 0 {
        return Err(SpawnError::Descriptors(io::Error::last_os_error()));
    }
    // SAFETY: fcntl has just made this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// All that the child needs, prepared before the clone: numbers, and one pointer to prepared
/// memory.
struct Child {
    null: RawFd,
    control: RawFd,
    stderr: RawFd,
    program: RawFd,
    sync: RawFd,
    /// The parent's end of `sync`. The child closes its copy, or else it would see no end of file
    /// if the parent dies.
    parents: RawFd,
    argv: *const *const libc::c_char,
    namespaces: bool,
    change_ids: bool,
    uid: u32,
    gid: u32,
    nice: i32,
}

impl Child {
    /// Makes only system calls, directly or through libc's thin wrappers, because another thread of
    /// the parent may have held any lock at the moment of the clone.
    fn run(&self) -> ! {
        let error = match self.become_worker() {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        let bytes = error.to_ne_bytes();
        // SAFETY: `bytes` is readable for its length.
        unsafe { libc::write(self.sync, bytes.as_ptr().cast(), bytes.len()) };
        // SAFETY: _exit ends the process without running anything of the parent's.
        unsafe { libc::_exit(111) }
    }

    fn become_worker(&self) -> Result<std::convert::Infallible, i32> {
        // SAFETY: closing a number touches no memory.
        check(unsafe { libc::syscall(libc::SYS_close, self.parents) })?;
        let mut go = 0_u8;
        // SAFETY: `go` is writable for one byte.
        let got = unsafe { libc::read(self.sync, ptr::from_mut(&mut go).cast(), 1) };
        if got != 1 {
            return Err(libc::ECANCELED);
        }
        // SAFETY: setpriority takes three numbers. The kernel caps the last one at 19.
        check(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, self.nice) })?;
        if self.change_ids {
            // In its user namespace the worker is uid 0; outside, that is an ordinary uid.
            let (uid, gid) = if self.namespaces { (0, 0) } else { (self.uid, self.gid) };
            if !self.namespaces {
                empty_bounding_set()?;
            }
            // SAFETY: setgroups reads no list when its length is 0.
            check(unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) })?;
            // SAFETY: setresgid takes three numbers.
            check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
            // SAFETY: setresuid takes three numbers.
            check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
        }
        for (source, target) in [(self.null, 0), (self.null, 1), (self.stderr, 2), (self.control, CONTROL_FD)] {
            // SAFETY: dup2 takes two numbers.
            check(unsafe { libc::syscall(libc::SYS_dup2, source, target) })?;
        }
        let rest = CONTROL_FD + 1;
        // SAFETY: close_range takes three numbers; with CLOEXEC it closes nothing before the exec.
        check(unsafe { libc::syscall(libc::SYS_close_range, rest, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
        let empty_mask = 0_u64;
        // SAFETY: the mask is eight readable bytes, like the kernel's sigset; the old one is not
        // requested.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                ptr::from_ref(&empty_mask),
                ptr::null::<u64>(),
                8,
            )
        })?;
        let environment = [ptr::null::<libc::c_char>()];
        // SAFETY: the path is an empty string, `argv` and `environment` end in null; all outlive
        // the call.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                c"".as_ptr(),
                self.argv,
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        check(failed)?;
        Err(libc::ENOEXEC)
    }
}

/// Empties the bounding set for a worker without a user namespace. Only root can, so the child does
/// it before it changes its uid. In a user namespace the worker does it later (`jail::privileges`).
fn empty_bounding_set() -> Result<(), i32> {
    for capability in 0_u64.. {
        // SAFETY: PR_CAPBSET_DROP takes a number.
        let dropped = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(dropped) {
            // No capability has this number, and none has a higher number (capabilities(7)).
            Err(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// An error with the errno, if the system call failed.
fn check(result: libc::c_long) -> Result<(), i32> {
    if result == -1 { Err(nix::errno::Errno::last_raw()) } else { Ok(()) }
}
