//! Every layer, attacked with it on and with it off.
//!
//! The test starts itself again as a worker would be started, with one layer alone (and what that layer needs), and
//! attacks what this layer is for: the attack has to fail. Then once more with no layer at all: the same attack has to
//! succeed, or the first result meant nothing. Layers overlap on purpose, so each is tried by itself.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test runner of its own")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enisle_hardening::islands::keys;
use enisle_hardening::jail::{self, Plan};
use enisle_hardening::process::fds;
use enisle_hardening::process::spawn::{NICER, OOM_SCORE, Spawn, Started, spawn};
use enisle_hardening::{Layer, LayerSet, Posture, filter};
use nix::sys::wait::WaitStatus;
use tempfile::TempDir;

/// An attack, and the layer that has to stop it.
struct Case {
    name: &'static str,
    layer: Layer,
    /// Layers that the one under test cannot do without.
    needs: &'static [Layer],
    attack: fn(&Target) -> io::Result<()>,
    takes: Takes,
}

/// What a machine must have beside the layer, or there is nothing to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// Only root can arrange the attack.
    Root,
    /// The same, on a machine where a process may read the memory of another one of its user
    /// (Yama's first level forbids it).
    RootThatMayTrace,
    /// Landlock's scopes, which older kernels lack: there the attack succeeds, and the posture says
    /// so.
    Scopes,
    /// Without user namespaces the machine itself forbids the attack.
    UserNamespaces,
    /// A key can be had only where the processor and the kernel have some.
    Keys,
}

/// What the attacker is told before it enters the jail.
struct Target {
    abstract_name: String,
    /// A folder of the host's where everybody may write, with the program in it.
    folder: PathBuf,
}

impl Target {
    /// A program that makes whoever executes it root.
    fn setuid_program(&self) -> PathBuf {
        self.folder.join("id")
    }

    /// What an attacker writes.
    fn file(&self) -> PathBuf {
        self.folder.join("written")
    }
}

const NS: &[Layer] = &[Layer::Namespaces];

const CASES: &[Case] = &[
    Case {
        name: "connect to a socket of the host",
        layer: Layer::Namespaces,
        needs: &[],
        attack: connect_abstract,
        takes: Takes::Nothing,
    },
    Case {
        name: "see another process",
        layer: Layer::Namespaces,
        needs: &[],
        attack: see_another_process,
        takes: Takes::Nothing,
    },
    Case {
        name: "learn the host's name",
        layer: Layer::Namespaces,
        needs: &[],
        attack: learn_host_name,
        takes: Takes::Nothing,
    },
    Case {
        name: "read a file of the host",
        layer: Layer::EmptyRoot,
        needs: NS,
        attack: read_a_file,
        takes: Takes::Nothing,
    },
    Case { name: "write a file", layer: Layer::EmptyRoot, needs: NS, attack: write_a_file, takes: Takes::Nothing },
    Case {
        name: "open descriptors without end",
        layer: Layer::Rlimits,
        needs: &[],
        attack: open_without_end,
        takes: Takes::Nothing,
    },
    Case { name: "grow a file", layer: Layer::Rlimits, needs: &[], attack: grow_a_file, takes: Takes::Nothing },
    Case {
        name: "take memory without end",
        layer: Layer::Rlimits,
        needs: &[],
        attack: take_memory,
        takes: Takes::Nothing,
    },
    Case { name: "multiply", layer: Layer::Rlimits, needs: NS, attack: multiply, takes: Takes::Nothing },
    Case {
        name: "read a file past the empty root",
        layer: Layer::Landlock,
        needs: &[Layer::NoNewPrivileges],
        attack: read_a_file,
        takes: Takes::Nothing,
    },
    Case {
        name: "connect to an abstract socket past the namespace",
        layer: Layer::Landlock,
        needs: &[Layer::NoNewPrivileges],
        attack: connect_abstract,
        takes: Takes::Scopes,
    },
    Case {
        name: "rename the machine in its own namespace",
        layer: Layer::Capabilities,
        needs: NS,
        attack: rename_machine,
        takes: Takes::Nothing,
    },
    Case {
        name: "mount in its own namespace",
        layer: Layer::Capabilities,
        needs: NS,
        attack: mount_something,
        takes: Takes::Nothing,
    },
    Case {
        name: "become root by a setuid program",
        layer: Layer::NoNewPrivileges,
        needs: &[],
        attack: become_root,
        takes: Takes::Root,
    },
    Case {
        name: "read the memory of a process of the same user",
        layer: Layer::NotDumpable,
        needs: &[],
        attack: read_memory_of_parent,
        takes: Takes::RootThatMayTrace,
    },
    Case { name: "open a file", layer: Layer::Seccomp, needs: &[], attack: read_a_file, takes: Takes::Nothing },
    Case { name: "make a socket", layer: Layer::Seccomp, needs: &[], attack: make_a_socket, takes: Takes::Nothing },
    Case { name: "start a process", layer: Layer::Seccomp, needs: &[], attack: start_a_process, takes: Takes::Nothing },
    Case {
        name: "execute a program",
        layer: Layer::Seccomp,
        needs: &[],
        attack: execute_a_program,
        takes: Takes::Root,
    },
    Case {
        name: "map executable memory",
        layer: Layer::Seccomp,
        needs: &[],
        attack: map_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "make memory execute-only, which strips a key",
        layer: Layer::Seccomp,
        needs: &[],
        attack: make_execute_only,
        takes: Takes::Nothing,
    },
    Case { name: "map shared memory", layer: Layer::Seccomp, needs: &[], attack: map_shared, takes: Takes::Nothing },
    Case { name: "make a memory file", layer: Layer::Seccomp, needs: &[], attack: make_memfd, takes: Takes::Nothing },
    Case {
        name: "read memory by process_vm_readv",
        layer: Layer::Seccomp,
        needs: &[],
        attack: process_vm_readv,
        takes: Takes::Nothing,
    },
    Case {
        name: "use the 32-bit system calls",
        layer: Layer::Seccomp,
        needs: &[],
        attack: thirty_two_bit_call,
        takes: Takes::Nothing,
    },
    Case {
        name: "change a signal handler",
        layer: Layer::Seccomp,
        needs: &[],
        attack: change_handler,
        takes: Takes::Nothing,
    },
    Case {
        name: "make a nested user namespace",
        layer: Layer::Seccomp,
        needs: &[],
        attack: nested_namespace,
        takes: Takes::UserNamespaces,
    },
    Case {
        name: "allocate a protection key",
        layer: Layer::Seccomp,
        needs: &[],
        attack: allocate_key,
        takes: Takes::Keys,
    },
    Case {
        name: "send a signal to a thread",
        layer: Layer::Seccomp,
        needs: &[],
        attack: signal_a_thread,
        takes: Takes::Nothing,
    },
    Case {
        name: "make the process dumpable again",
        layer: Layer::Seccomp,
        needs: &[],
        attack: dumpable_again,
        takes: Takes::Nothing,
    },
    Case {
        name: "send a descriptor",
        layer: Layer::Seccomp,
        needs: &[],
        attack: send_a_descriptor,
        takes: Takes::Nothing,
    },
    Case {
        name: "make what was written executable",
        layer: Layer::DenyWriteExecute,
        needs: &[],
        attack: make_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "map memory that is writable and executable",
        layer: Layer::DenyWriteExecute,
        needs: &[],
        attack: map_write_execute,
        takes: Takes::Nothing,
    },
    Case {
        name: "make what was written executable, past the kernel's switch",
        layer: Layer::SealedFilter,
        needs: &[],
        attack: make_executable,
        takes: Takes::Nothing,
    },
    Case {
        name: "make the range for code that V8 has elsewhere",
        layer: Layer::SealedFilter,
        needs: &[Layer::Seccomp],
        attack: make_code_range,
        takes: Takes::Nothing,
    },
    Case { name: "map code", layer: Layer::SealedFilter, needs: &[], attack: map_executable, takes: Takes::Nothing },
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let layers = |bits: &str| LayerSet::from_bits(bits.parse().unwrap_or(0));
    match words.as_slice() {
        [_, "attack", index, bits, name, folder] => {
            let target = Target { abstract_name: (*name).to_owned(), folder: PathBuf::from(folder) };
            attack(index.parse().unwrap_or(usize::MAX), layers(bits), &target)
        }
        [_, "wait", bits] => wait(layers(bits)),
        [_, "keyring"] => leave_keyring(),
        _ => run_all(),
    }
}

fn plan(layers: LayerSet) -> Plan {
    Plan { layers, data_bytes: 64 << 20, descriptors: 20, threads: 8 }
}

/// Inside the jail: says that it is there, and waits for something that never comes.
fn wait(layers: LayerSet) -> ExitCode {
    let Some(mut channel) = fds::control_channel() else { return ExitCode::FAILURE };
    if jail::enter(&plan(layers)).is_ok() && channel.write_all(&[0]).is_ok() {
        let _ = channel.read(&mut [0]);
    }
    ExitCode::SUCCESS
}

/// Inside the jail: one byte on the channel says whether the attack succeeded; the errno follows.
fn attack(index: usize, layers: LayerSet, target: &Target) -> ExitCode {
    let (Some(case), Some(mut channel)) = (CASES.get(index), fds::control_channel()) else { return ExitCode::FAILURE };
    if let Err(error) = jail::enter(&plan(layers)) {
        let _ = write!(channel, "E{error}");
        return ExitCode::FAILURE;
    }
    let sealed = if layers.has(Layer::SealedFilter) { filter::seal() } else { Ok(()) };
    let filtered = if layers.has(Layer::Seccomp) { filter::install() } else { Ok(()) };
    if let Err(error) = sealed.and(filtered) {
        let _ = write!(channel, "E{error}");
        return ExitCode::FAILURE;
    }
    let said = match (case.attack)(target) {
        Ok(()) => "S".to_owned(),
        Err(error) => format!("F{error}"),
    };
    let _ = channel.write_all(said.as_bytes());
    ExitCode::SUCCESS
}

/// What became of an attack.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Succeeded,
    Blocked(String),
    Broken(String),
}

fn run_all() -> ExitCode {
    let posture = Posture::probe();
    // Gone when this function returns or panics, with all that an attacker has written there.
    let folder = tempfile::Builder::new().prefix("enisle-layers-").tempdir().expect("a folder");
    let target = prepare(&folder);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (index, case) in CASES.iter().enumerate() {
        let label = format!("{:<18} {}", case.layer, case.name);
        let missing = std::iter::once(&case.layer).chain(case.needs).find(|layer| !posture.layers().has(**layer));
        if let Some(layer) = missing {
            let name = if *layer == Layer::Namespaces || *layer == Layer::EmptyRoot { "userns" } else { layer.name() };
            let forced = is_required(name);
            println!("{label}: {}: this machine has no {layer}", if forced { "FAILED" } else { "skipped" });
            if forced {
                failed += 1
            } else {
                skipped += 1
            }
            continue;
        }
        let lacking = match case.takes {
            Takes::Root | Takes::RootThatMayTrace if !nix::unistd::geteuid().is_root() => {
                Some("only root can arrange it")
            }
            Takes::RootThatMayTrace if yama_forbids_tracing() => Some("this machine forbids it to everybody (Yama)"),
            Takes::UserNamespaces if !posture.layers().has(Layer::Namespaces) => {
                Some("this machine forbids it to everybody")
            }
            Takes::Keys if keys::available() == 0 => Some("this machine has no protection keys"),
            _ => None,
        };
        if let Some(why) = lacking {
            let forced = case.takes == Takes::Keys && is_required("pku");
            println!("{label}: {}: {why}", if forced { "FAILED" } else { "skipped" });
            if forced {
                failed += 1
            } else {
                skipped += 1
            }
            continue;
        }
        let with: LayerSet = case.needs.iter().copied().chain([case.layer]).collect();
        let without: LayerSet = case.needs.iter().copied().collect();
        let (on, off) = (try_attack(index, with, &target), try_attack(index, without, &target));
        if case.takes == Takes::Scopes && !posture.landlock_scopes {
            let detail = posture.findings.iter().find(|finding| finding.layer == Layer::Landlock);
            let told = detail.is_some_and(|finding| finding.detail.contains("without scopes"));
            println!(
                "{label}: {}",
                if told { "succeeds, as the posture says" } else { "FAILED: the posture hides it" }
            );
            if told { passed += 1 } else { failed += 1 }
        } else if matches!(on, Verdict::Blocked(_)) && off == Verdict::Succeeded {
            println!("{label}: blocked with it, succeeds without it");
            passed += 1;
        } else {
            println!("{label}: FAILED: with the layer {on:?}, without it {off:?}");
            failed += 1;
        }
    }
    for (die, layer) in [(true, LayerSet::NONE.with(Layer::ParentDeath)), (false, LayerSet::NONE)] {
        let dies = dies_with_its_parent(layer);
        println!(
            "{:<18} outlive the daemon: {}",
            Layer::ParentDeath,
            if dies == die { "as it should be" } else { "FAILED" }
        );
        if dies == die { passed += 1 } else { failed += 1 }
    }
    let no_keys = "this machine has no protection keys";
    for (who, what, holds, lacking) in [
        (
            "every worker",
            "reach the keys of the daemon's session",
            keys_are_left(),
            "this machine lets nobody have any",
        ),
        ("every worker", "compete with the daemon for memory and processors", steps_back(), ""),
        ("keys", "are as many after they were counted as before", counting_keys_gives_them_back(), no_keys),
        ("keys", "that are closed deliver their faults to a handler", keys_deliver_faults(), no_keys),
    ] {
        let verdict = match holds {
            Some(true) => "as it should be".to_owned(),
            Some(false) => "FAILED".to_owned(),
            None => format!("skipped: {lacking}"),
        };
        println!("{who:<18} {what}: {verdict}");
        match holds {
            Some(true) => passed += 1,
            Some(false) => failed += 1,
            None => skipped += 1,
        }
    }
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether this machine must have a feature, so that nothing is skipped for the want of it.
fn is_required(feature: &str) -> bool {
    std::env::var("ENISLE_REQUIRE").unwrap_or_default().split(',').any(|word| word == feature)
}

/// Nothing to show where there are no keys, unless there must be some.
fn with_keys(holds: impl FnOnce() -> bool) -> Option<bool> {
    if keys::available() > 0 { Some(holds()) } else { is_required("pku").then_some(false) }
}

fn counting_keys_gives_them_back() -> Option<bool> {
    with_keys(|| keys::available() == keys::available())
}

fn keys_deliver_faults() -> Option<bool> {
    with_keys(keys::delivers_faults)
}

fn yama_forbids_tracing() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    scope.trim().parse::<u32>().is_ok_and(|scope| scope > 0)
}

/// A socket of the host, and a program that makes whoever executes it root.
fn prepare(folder: &TempDir) -> Target {
    let abstract_name = format!("enisle-layers-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket of the host");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let target = Target { abstract_name, folder: folder.path().to_owned() };
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    allow(&target.folder, 0o1777);
    std::fs::copy("/usr/bin/id", target.setuid_program()).expect("a program");
    allow(&target.setuid_program(), 0o4755);
    target
}

fn start(arguments: &[String], layers: LayerSet) -> (Started, UnixStream) {
    let program = File::open(std::env::current_exe().expect("a path")).expect("this program");
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    let stderr = OwnedFd::from(File::options().write(true).open("/dev/null").expect("/dev/null"));
    let arguments: Vec<_> = arguments.iter().map(|text| CString::new(text.as_str()).expect("no zero")).collect();
    let root = nix::unistd::geteuid().is_root();
    // As root the attacker is an ordinary user, as a worker is.
    let uid = if root { 1_899_999_999 } else { nix::unistd::geteuid().as_raw() };
    let gid = if root { uid } else { nix::unistd::getegid().as_raw() };
    let namespaces = layers.has(Layer::Namespaces);
    let request =
        Spawn { program: program.as_fd(), arguments: &arguments, control: theirs.into(), stderr, namespaces, uid, gid };
    (spawn(request).expect("the attacker starts"), ours)
}

fn try_attack(index: usize, layers: LayerSet, target: &Target) -> Verdict {
    let arguments = [
        "layers",
        "attack",
        &index.to_string(),
        &layers.bits().to_string(),
        &target.abstract_name,
        target.folder.to_str().expect("a path of ours"),
    ];
    let (mut attacker, mut channel) = start(&arguments.map(str::to_owned), layers);
    let mut said = String::new();
    let read = channel.read_to_string(&mut said);
    match (attacker.collect(), said.split_at_checked(1)) {
        (Some(WaitStatus::Signaled(_, signal, _)), _) => Verdict::Blocked(signal.to_string()),
        (_, Some(("S", _))) => Verdict::Succeeded,
        (_, Some(("F", why))) => Verdict::Blocked(why.to_owned()),
        (status, _) => Verdict::Broken(format!("{status:?} {said:?} {read:?}")),
    }
}

/// Starts a process from a thread that ends at once, and says whether the process ended with it.
fn dies_with_its_parent(layers: LayerSet) -> bool {
    // Waits for a byte that never comes: it ends only by its parent's death, or by the end of the channel.
    let started = std::thread::spawn(move || {
        let arguments = ["layers", "wait", &layers.bits().to_string()];
        let (attacker, mut channel) = start(&arguments.map(str::to_owned), layers);
        // It is in its jail, with its signal set, when it says so.
        channel.read_exact(&mut [0]).expect("it is ready");
        (attacker, channel)
    });
    let (mut attacker, mut channel) = started.join().expect("the thread ends");
    channel.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
    // The end of the channel comes with its death; a time-out means that it lives.
    let dead = channel.read(&mut [0]).is_ok_and(|got| got == 0);
    drop(channel);
    attacker.kill();
    attacker.collect();
    dead
}

/// The number of the session keyring; negative if there is none, or none can be had.
fn session_keyring() -> i64 {
    // SAFETY: KEYCTL_GET_KEYRING_ID takes two numbers.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, libc::KEY_SPEC_SESSION_KEYRING, 0) }
}

/// Inside the jail: says which session keyring it has.
fn leave_keyring() -> ExitCode {
    let Some(mut channel) = fds::control_channel() else { return ExitCode::FAILURE };
    match jail::enter(&plan(LayerSet::NONE)) {
        Ok(()) if channel.write_all(&session_keyring().to_le_bytes()).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Whether a worker has another session keyring than whoever started it.
fn keys_are_left() -> Option<bool> {
    // One of this test's own, so that there is one to inherit.
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, or null for a keyring without one.
    let ours =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if ours < 0 {
        return None;
    }
    let (mut worker, mut channel) = start(&["layers", "keyring"].map(str::to_owned), LayerSet::NONE);
    let mut theirs = [0; 8];
    channel.read_exact(&mut theirs).expect("it says which");
    worker.collect();
    Some(i64::from_le_bytes(theirs) != ours && session_keyring() == ours)
}

/// Whether the kernel would end a worker before whoever started it, and prefers the latter.
fn steps_back() -> Option<bool> {
    let arguments = ["layers", "wait", &LayerSet::NONE.bits().to_string()];
    let (mut worker, mut channel) = start(&arguments.map(str::to_owned), LayerSet::NONE);
    channel.read_exact(&mut [0]).expect("it is ready");
    let read = |pid: &str| {
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        // The nineteenth field; the second one is a name in parentheses.
        let nice = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(16)).expect("a nice value").to_owned();
        (score.trim().parse::<i32>().expect("a number"), nice.parse::<i32>().expect("a number"))
    };
    let (ours, theirs) = (read("self"), read(&worker.pid.to_string()));
    worker.kill();
    worker.collect();
    Some(theirs.0 == (ours.0 + OOM_SCORE).clamp(OOM_SCORE, 1000) && theirs.1 == (ours.1 + NICER).min(19))
}

fn errno<T: PartialOrd + Default>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn connect_abstract(target: &Target) -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&target.abstract_name)?).map(drop)
}

fn see_another_process(_: &Target) -> io::Result<()> {
    // SAFETY: getppid has no preconditions.
    let parent = unsafe { libc::getppid() };
    if parent == 0 { Err(io::Error::other("it has no parent that it could name")) } else { Ok(()) }
}

fn learn_host_name(_: &Target) -> io::Result<()> {
    let name = nix::sys::utsname::uname()?;
    if name.nodename() == "enisle" { Err(io::Error::other("it is called enisle")) } else { Ok(()) }
}

fn read_a_file(_: &Target) -> io::Result<()> {
    File::open("/etc/passwd")?.read_exact(&mut [0])
}

fn write_a_file(target: &Target) -> io::Result<()> {
    File::create(target.file())?.write_all(b"x")
}

fn open_without_end(_: &Target) -> io::Result<()> {
    let kept: Result<Vec<_>, _> = (0..100).map(|_| io::stderr().as_fd().try_clone_to_owned()).collect();
    kept.map(drop)
}

fn grow_a_file(target: &Target) -> io::Result<()> {
    // Over the limit the kernel sends SIGXFSZ, which ends the process.
    File::create(target.file())?.write_all(&[0; 4096])
}

fn take_memory(_: &Target) -> io::Result<()> {
    let (bytes, flags) = (128 << 20, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn multiply(_: &Target) -> io::Result<()> {
    for _ in 0..20 {
        // SAFETY: the child makes one system call and ends with the namespace.
        if errno(unsafe { libc::fork() })? == 0 {
            // SAFETY: pause has no preconditions.
            unsafe { libc::pause() };
        }
    }
    Ok(())
}

fn rename_machine(_: &Target) -> io::Result<()> {
    // SAFETY: the name is readable for its length.
    errno(unsafe { libc::sethostname(c"other".as_ptr(), 5) }).map(drop)
}

fn mount_something(_: &Target) -> io::Result<()> {
    let nothing: Option<&str> = None;
    Ok(nix::mount::mount(Some("none"), "/proc", Some("tmpfs"), nix::mount::MsFlags::empty(), nothing)?)
}

fn become_root(target: &Target) -> io::Result<()> {
    let out = std::process::Command::new(target.setuid_program()).arg("-u").output()?;
    if out.stdout == b"0\n" { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&out.stdout).into_owned())) }
}

fn read_memory_of_parent(_: &Target) -> io::Result<()> {
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

fn make_a_socket(_: &Target) -> io::Result<()> {
    // SAFETY: socket takes three numbers.
    errno(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }).map(drop)
}

fn start_a_process(_: &Target) -> io::Result<()> {
    // SAFETY: the child ends at once.
    if errno(unsafe { libc::fork() })? == 0 {
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(0) };
    }
    Ok(())
}

fn execute_a_program(_: &Target) -> io::Result<()> {
    // It has to come back to say that it succeeded, so it is told by the file that does not exist.
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

fn map_executable(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
}

fn make_execute_only(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_READ, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_EXEC) }).map(drop)
}

fn make_executable(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) }).map(drop)
}

fn map_write_execute(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
}

/// All three at once: the one kind of executable memory that the ordinary filter allows.
fn make_code_range(_: &Target) -> io::Result<()> {
    let page = map(libc::PROT_NONE, libc::MAP_PRIVATE)?;
    // SAFETY: the page was mapped above and holds nothing.
    errno(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) }).map(drop)
}

fn map_shared(_: &Target) -> io::Result<()> {
    map(libc::PROT_READ, libc::MAP_SHARED).map(drop)
}

fn make_memfd(_: &Target) -> io::Result<()> {
    // SAFETY: the name is a C string.
    errno(unsafe { libc::memfd_create(c"x".as_ptr(), 0) }).map(drop)
}

fn process_vm_readv(_: &Target) -> io::Result<()> {
    let (from, mut to) = ([1_u8], [0_u8]);
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: 1 };
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: both vectors name one byte each of live memory of this process.
    errno(unsafe { libc::process_vm_readv(this, &raw const local, 1, &raw const remote, 1, 0) }).map(drop)
}

fn thirty_two_bit_call(_: &Target) -> io::Result<()> {
    let result: i32;
    // SAFETY: system call 20 of the 32-bit table is getpid, which takes nothing; r8 to r11 are clobbered by int 0x80.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    if result > 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

fn change_handler(_: &Target) -> io::Result<()> {
    let default = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::SigDfl,
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the default action runs no code of ours.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGUSR1, &default) }?;
    Ok(())
}

fn nested_namespace(_: &Target) -> io::Result<()> {
    Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?)
}

fn allocate_key(_: &Target) -> io::Result<()> {
    // SAFETY: pkey_alloc takes two numbers.
    errno(unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) }).map(drop)
}

fn signal_a_thread(_: &Target) -> io::Result<()> {
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: signal 0 only asks whether it could be sent.
    errno(unsafe { libc::syscall(libc::SYS_tgkill, this, this, 0) }).map(drop)
}

fn dumpable_again(_: &Target) -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(true)?)
}

fn send_a_descriptor(_: &Target) -> io::Result<()> {
    let (ours, _theirs) = UnixStream::pair()?;
    fds::send_with(ours.as_fd(), b"x", &[ours.as_fd()]).map(drop)
}
