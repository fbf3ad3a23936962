//! Descriptors that a client passes (`SCM_RIGHTS`, unix(7)) and that nobody here wants.
//!
//! A passed descriptor may be the last hold of something whose end takes as long as its owner
//! likes: a TCP socket with `SO_LINGER` and unsent data. Whoever receives it without taking it, or
//! closes a socket in which it waits, waits for that end.

use std::io::{self, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::sys::socket::{MsgFlags, recvmsg};

/// `<asm-generic/socket.h>`, since Linux 6.16; libc does not have it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Makes a socket refuse passed descriptors, and all sockets that it accepts afterwards: their
/// sender gets `EPERM`.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.16.
pub fn refuse(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (passes, mut length): (libc::c_int, _) = (0, LENGTH_OF_INT);
    let fd = socket.as_raw_fd();
    // SAFETY: the option is an int, which the call only reads, and the length is an int's.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, ptr::from_ref(&passes).cast(), length) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut read: libc::c_int = 1;
    let (value, size) = (ptr::from_mut(&mut read).cast(), &raw mut length);
    // SAFETY: the kernel writes an int and its length, for both of which there is room.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, value, size) };
    match got {
        0 if read == 0 => Ok(()),
        0 => Err(io::Error::other("SO_PASSRIGHTS was set to 0 and is not")),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
const LENGTH_OF_INT: libc::socklen_t = mem::size_of::<libc::c_int>() as libc::socklen_t;

/// Whether this kernel can refuse them.
#[must_use]
pub fn can_be_refused() -> bool {
    UnixStream::pair().is_ok_and(|(socket, _)| refuse(socket.as_fd()).is_ok())
}

/// What waits in a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// How many bytes of it, and no descriptor with any of them; none at the end of the stream.
    Bytes(usize),
    /// Descriptors, with one of the first bytes.
    Descriptors,
}

/// Copies the first bytes that wait in a socket, and leaves them there. What comes with them stays
/// as it is: the kernel reports that there was no room for it (`MSG_CTRUNC`), and drops references
/// that are not the last ones.
///
/// Out-of-band bytes are passed over unless the socket has `SO_OOBINLINE`.
///
/// # Errors
/// The socket's own; `WouldBlock` where nothing waits in one that does not block.
pub fn look(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Waiting> {
    let mut slices = [IoSliceMut::new(buffer)];
    let looked = recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, MsgFlags::MSG_PEEK)?;
    if looked.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Ok(Waiting::Descriptors);
    }
    Ok(Waiting::Bytes(looked.bytes))
}
