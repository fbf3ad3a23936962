//! Copies standard input to the named socket, and the socket's answers to standard output. Tests
//! use it to be another user to the daemon, which learns from the kernel who has connected.
#![forbid(unsafe_code)]

use std::io::{self, copy, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn main() -> io::Result<()> {
    let socket = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("no socket is named"))?;
    let stream = UnixStream::connect(socket)?;
    let mut sending = stream.try_clone()?;
    // The caller may only read an answer; this thread then ends with the program.
    std::thread::spawn(move || copy(&mut stdin(), &mut sending));
    copy(&mut &stream, &mut stdout())?;
    stream.shutdown(Shutdown::Both)
}
