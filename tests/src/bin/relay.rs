//! Passes standard input on to the socket that is named, and what comes back to standard output:
//! for tests that are another user to the daemon, which knows who has connected.
#![forbid(unsafe_code)]

use std::io::{self, copy, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn main() -> io::Result<()> {
    let socket = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("no socket is named"))?;
    let stream = UnixStream::connect(socket)?;
    let mut sending = stream.try_clone()?;
    // An answer may be all that is read: then this ends with the program.
    std::thread::spawn(move || copy(&mut stdin(), &mut sending));
    copy(&mut &stream, &mut stdout())?;
    stream.shutdown(Shutdown::Both)
}
