//! The attacks. Each function runs inside the jail; an error means that the attack failed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;

use enisle_hardening::process::fds;
use nix::sys::wait::WaitStatus;

/// What the attacker knows before it enters the jail.
pub(crate) struct Target {
    pub(crate) abstract_name: String,
    /// A folder of the host that every user may write to, with the setuid program in it.
    pub(crate) folder: PathBuf,
}

impl Target {
    /// A setuid program. It runs as its owner: as root, if root runs this test.
    pub(crate) fn setuid_program(&self) -> PathBuf {
        self.folder.join("id")
    }

    /// The file that an attacker writes.
    fn file(&self) -> PathBuf {
        self.folder.join("written")
    }
}

fn errno<T: PartialOrd + Default>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn connect_abstract(target: &Target) -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&target.abstract_name)?).map(drop)
}

pub(crate) fn see_another_process(_: &Target) -> io::Result<()> {
    // SAFETY: getppid has no preconditions.
    let parent = unsafe { libc::getppid() };
    if parent == 0 { Err(io::Error::other("it has no parent that it could name")) } else { Ok(()) }
}

pub(crate) fn learn_host_name(_: &Target) -> io::Result<()> {
    let name = nix::sys::utsname::uname()?;
    if name.nodename() == "enisle" { Err(io::Error::other("it is called enisle")) } else { Ok(()) }
}

pub(crate) fn read_a_file(_: &Target) -> io::Result<()> {
    File::open("/etc/passwd")?.read_exact(&mut [0])
}

pub(crate) fn write_a_file(target: &Target) -> io::Result<()> {
    File::create(target.file())?.write_all(b"x")
}

pub(crate) fn open_without_end(_: &Target) -> io::Result<()> {
    let kept: Result<Vec<_>, _> = (0..100).map(|_| io::stderr().as_fd().try_clone_to_owned()).collect();
    kept.map(drop)
}

pub(crate) fn grow_a_file(target: &Target) -> io::Result<()> {
    // Above the limit the kernel sends SIGXFSZ, which ends the process.
    File::create(target.file())?.write_all(&[0; 4096])
}

pub(crate) fn take_memory(_: &Target) -> io::Result<()> {
    let (bytes, flags) = (128 << 20, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn multiply(_: &Target) -> io::Result<()> {
    for _ in 0..20 {
        // SAFETY: the child makes one system call and ends with the namespace.
        if errno(unsafe { libc::fork() })? == 0 {
            // SAFETY: pause has no preconditions.
            unsafe { libc::pause() };
        }
    }
    Ok(())
}

pub(crate) fn rename_machine(_: &Target) -> io::Result<()> {
    // SAFETY: the name is readable for its length.
    errno(unsafe { libc::sethostname(c"other".as_ptr(), 5) }).map(drop)
}

pub(crate) fn mount_something(_: &Target) -> io::Result<()> {
    let nothing: Option<&str> = None;
    Ok(nix::mount::mount(Some("none"), "/proc", Some("tmpfs"), nix::mount::MsFlags::empty(), nothing)?)
}

pub(crate) fn become_root(target: &Target) -> io::Result<()> {
    let out = std::process::Command::new(target.setuid_program()).arg("-u").output()?;
    if out.stdout == b"0\n" { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&out.stdout).into_owned())) }
}

pub(crate) fn read_memory_of_parent(_: &Target) -> io::Result<()> {
    let secret = 42_u64;
    // SAFETY: the child only reads a file and ends.
    if errno(unsafe { libc::fork() })? == 0 {
        // SAFETY: getppid has no preconditions.
        let parent = unsafe { libc::getppid() };
        let read = File::open(format!("/proc/{parent}/mem")).and_then(|memory| {
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut [0; 8], std::ptr::from_ref(&secret) as u64)
        });
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(i32::from(read.is_err())) };
    }
    match nix::sys::wait::wait()? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

pub(crate) fn make_a_socket(_: &Target) -> io::Result<()> {
    // SAFETY: socket takes three numbers.
    errno(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }).map(drop)
}

pub(crate) fn start_a_process(_: &Target) -> io::Result<()> {
    // SAFETY: the child ends at once.
    if errno(unsafe { libc::fork() })? == 0 {
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(0) };
    }
    Ok(())
}

pub(crate) fn execute_a_program(_: &Target) -> io::Result<()> {
    // An exec that succeeds does not return and so cannot report it. The attack counts as
    // successful if the kernel looked for the file and did not find it.
    let (program, arguments) = (c"/no/such/program", [std::ptr::null()]);
    // SAFETY: the path is a C string, the list ends in null.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOENT) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map(protection: i32, flags: i32) -> io::Result<*mut libc::c_void> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags | libc::MAP_ANONYMOUS, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory) }
}

pub(crate) fn map_executable(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
}

pub(crate) fn make_execute_only(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_READ, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_EXEC) }).map(drop)
}

pub(crate) fn make_executable(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) }).map(drop)
}

pub(crate) fn map_write_execute(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
}

/// Makes memory that can be read, written and executed: the only kind of executable memory that a
/// worker's ordinary filter allows.
pub(crate) fn make_code_range(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_NONE, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) }).map(drop)
}

pub(crate) fn map_shared(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ, libc::MAP_SHARED).map(drop)
}

pub(crate) fn make_memfd(_: &Target) -> io::Result<()> {
    // SAFETY: the name is a C string.
    errno(unsafe { libc::memfd_create(c"x".as_ptr(), 0) }).map(drop)
}

pub(crate) fn process_vm_readv(_: &Target) -> io::Result<()> {
    let (from, mut to) = ([1_u8], [0_u8]);
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: 1 };
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: both vectors name one byte each of live memory of this process.
    errno(unsafe { libc::process_vm_readv(this, &raw const local, 1, &raw const remote, 1, 0) }).map(drop)
}

pub(crate) fn thirty_two_bit_call(_: &Target) -> io::Result<()> {
    let result: i32;
    // SAFETY: system call 20 of the 32-bit table is getpid, which takes nothing; r8 to r11 are
    // clobbered by int 0x80.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    if result > 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

pub(crate) fn change_handler(_: &Target) -> io::Result<()> {
    let default = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::SigDfl,
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the default action runs no code of ours.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGUSR1, &default) }?;
    Ok(())
}

pub(crate) fn nested_namespace(_: &Target) -> io::Result<()> {
    Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?)
}

pub(crate) fn allocate_key(_: &Target) -> io::Result<()> {
    // SAFETY: pkey_alloc takes two numbers.
    errno(unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) }).map(drop)
}

pub(crate) fn signal_a_thread(_: &Target) -> io::Result<()> {
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: signal 0 is not delivered; the call only checks whether a signal could be sent.
    errno(unsafe { libc::syscall(libc::SYS_tgkill, this, this, 0) }).map(drop)
}

pub(crate) fn dumpable_again(_: &Target) -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(true)?)
}

pub(crate) fn send_a_descriptor(_: &Target) -> io::Result<()> {
    let (ours, _theirs) = UnixStream::pair()?;
    fds::send_with(ours.as_fd(), b"x", &[ours.as_fd()]).map(drop)
}
