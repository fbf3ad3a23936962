//! Performs actions that only a process of another uid can perform, for a test that runs as root.
//!
//! The kernel reports to the daemon the uid of the process that called `connect`, and to a client
//! the uid of the process that called `listen` (unix(7), `SO_PEERCRED`). So a process of the other
//! uid must create the socket; it hands the socket over, and the test uses it. Standard input is a
//! Unix socket to the test. When the test closes that socket, or dies, this process ends.
//!
//! | call | on each byte received |
//! |---|---|
//! | `peer connect SOCKET` | connects, and hands the connection over |
//! | `peer listen SOCKET` | listens on a new socket that all may use, and hands it over |
//! | `peer lock FOLDER` | locks whatever it can below the folder; answers how many files |
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use enisle_hardening::process::fds;
use nix::fcntl::{Flock, FlockArg};

fn main() -> Result<(), Box<dyn Error>> {
    let mut test = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [call, path] = arguments.as_slice() else { return Err("usage: peer connect|listen|lock PATH".into()) };
    let path = Path::new(path);
    let mut locks = Vec::new();
    while test.read(&mut [0])? == 1 {
        let socket: OwnedFd = match call.as_str() {
            "connect" => UnixStream::connect(path)?.into(),
            "listen" => {
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
                listener.into()
            }
            "lock" => {
                lock(path, &mut locks);
                test.write_all(&[u8::try_from(locks.len()).unwrap_or(u8::MAX)])?;
                continue;
            }
            _ => return Err(format!("{call:?} is none of connect, listen and lock").into()),
        };
        fds::send_with(test.as_fd(), &[0], &[socket.as_fd()])?;
    }
    Ok(())
}

/// Takes every lock that this uid can take on a file below the folder.
fn lock(folder: &Path, locks: &mut Vec<Flock<File>>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            lock(&path, locks);
        } else if let Ok(file) = File::open(&path) {
            locks.extend(Flock::lock(file, FlockArg::LockExclusiveNonblock));
        }
    }
}
