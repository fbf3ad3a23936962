//! Descriptors over a Unix socket (`SCM_RIGHTS`), and the control channel that a worker starts
//! with.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::spawn::CONTROL_FD;

/// The most descriptors that come with one frame: `Start` brings the snapshot and the fault page.
pub const MOST_DESCRIPTORS: usize = 2;

/// Sends `bytes` with descriptors attached to the first byte. Returns how many bytes were sent; if
/// that is not zero, the descriptors were sent with them.
///
/// # Errors
/// The socket fails.
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes into `buffer`. Returns how many there are, and the descriptors that came with
/// them, which are close-on-exec.
///
/// # Errors
/// The socket fails, or more descriptors came than a frame may carry.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just installed these descriptors in this process; nothing else
            // owns them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than a frame may carry"));
    }
    Ok((message.bytes, descriptors))
}

/// The control channel that a worker starts with. The first call returns it, later ones `None`.
#[must_use]
pub fn control_channel() -> Option<UnixStream> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the supervisor puts the channel at this number before it executes a worker, and only
    // the first call of this function makes an owner of the number.
    Some(unsafe { UnixStream::from_raw_fd(CONTROL_FD) })
}
