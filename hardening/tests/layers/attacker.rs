//! Starts the attacker as a worker would be started, and receives the outcome of its attack.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use enisle_hardening::process::spawn::{Spawn, Started, spawn};
use enisle_hardening::{Layer, LayerSet};
use nix::sys::wait::WaitStatus;
use tempfile::TempDir;

use crate::attacks::Target;

/// The outcome of an attack.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Blocked(String),
    Broken(String),
}

/// Makes what the attackers aim at: a socket of the host, and a setuid program in `folder`.
pub(crate) fn prepare(folder: &TempDir) -> Target {
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

pub(crate) fn start(arguments: &[String], layers: LayerSet) -> (Started, UnixStream) {
    let program = File::open(std::env::current_exe().expect("a path")).expect("this program");
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    let stderr = OwnedFd::from(File::options().write(true).open("/dev/null").expect("/dev/null"));
    let arguments: Vec<_> = arguments.iter().map(|text| CString::new(text.as_str()).expect("no zero")).collect();
    let root = nix::unistd::geteuid().is_root();
    // If this test runs as root, the attacker is an ordinary user, as a worker is.
    let uid = if root { 1_899_999_999 } else { nix::unistd::geteuid().as_raw() };
    let gid = if root { uid } else { nix::unistd::getegid().as_raw() };
    let namespaces = layers.has(Layer::Namespaces);
    let request =
        Spawn { program: program.as_fd(), arguments: &arguments, control: theirs.into(), stderr, namespaces, uid, gid };
    (spawn(request).expect("the attacker starts"), ours)
}

pub(crate) fn try_attack(index: usize, layers: LayerSet, target: &Target) -> Verdict {
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
