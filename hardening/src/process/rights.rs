//! Descriptors that a client passes (`SCM_RIGHTS`, unix(7)) and that the daemon does not want.
//!
//! A passed descriptor may be the last reference to something that takes as long to close as the
//! client likes, such as a TCP socket with `SO_LINGER` and unsent data. A process that receives
//! such a descriptor without keeping it blocks until the close is over. So does a process that
//! closes the socket in which the descriptor waits.

use std::io::{self, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::sys::socket::{MsgFlags, recvmsg};

/// From `<asm-generic/socket.h>`, since Linux 6.16. The crate `libc` does not define it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Makes a socket, and all sockets that are accepted from it afterwards, refuse passed descriptors:
/// the sender gets `EPERM`.
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
    // SAFETY: the kernel writes an int and its length, and both fit.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, value, size) };
    match got {
        0 if read == 0 => Ok(()),
        0 => Err(io::Error::other("SO_PASSRIGHTS was set to 0 and is not")),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
const LENGTH_OF_INT: libc::socklen_t = mem::size_of::<libc::c_int>() as libc::socklen_t;

/// Whether this kernel can refuse passed descriptors.
#[must_use]
pub fn can_be_refused() -> bool {
    UnixStream::pair().is_ok_and(|(socket, _)| refuse(socket.as_fd()).is_ok())
}

/// What waits in a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// How many bytes were copied; none of them has a descriptor attached. Zero at the end of the
    /// stream.
    Bytes(usize),
    /// Descriptors that are attached to one of the first bytes.
    Descriptors,
}

/// Copies the first bytes that wait in a socket, and leaves them there. Attached descriptors stay
/// in the socket too: the kernel only reports that they did not fit (`MSG_CTRUNC`). The references
/// that it drops then are never the last ones, so nothing is closed.
///
/// Out-of-band bytes are skipped unless the socket has `SO_OOBINLINE`.
///
/// # Errors
/// The socket fails; `WouldBlock` if nothing waits in a non-blocking socket.
pub fn look(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Waiting> {
    let mut slices = [IoSliceMut::new(buffer)];
    let looked = recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, MsgFlags::MSG_PEEK)?;
    if looked.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Ok(Waiting::Descriptors);
    }
    Ok(Waiting::Bytes(looked.bytes))
}
