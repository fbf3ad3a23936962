//! Copies standard input to the named socket, and the socket's answers to standard output. Tests
//! run this program as another uid: the daemon judges a client by the uid of the process that
//! connects.
#![forbid(unsafe_code)]

use std::io::{self, copy, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn main() -> io::Result<()> {
    let socket = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("no socket is named"))?;
    let stream = UnixStream::connect(socket)?;
    let mut sending = stream.try_clone()?;
    // The thread is not joined, because standard input may stay open. The process ends the thread
    // when `main` returns.
    std::thread::spawn(move || copy(&mut stdin(), &mut sending));
    copy(&mut &stream, &mut stdout())?;
    stream.shutdown(Shutdown::Both)
}
