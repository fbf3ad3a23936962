//! Descriptors that clients pass with their bytes (`SCM_RIGHTS`). No client has a reason to pass
//! any.
//!
//! Dropping the last reference to a passed descriptor may take as long as the client likes
//! ([`enisle_hardening::process::rights`]), so the thread that serves connections must not be the
//! one that drops it. When the socket is bound, one of two ways is chosen:
//!
//! | way | kernel | what happens |
//! |---|---|---|
//! | [`Rights::Refused`] | Linux 6.16 and later | the kernel refuses to pass descriptors |
//! | [`Rights::Watched`] | before Linux 6.16 | the daemon peeks at bytes before it receives them |
//!
//! A watched client that has passed a descriptor has broken the protocol: nothing more is read from
//! that client. So no descriptor of a client is ever received. If something is still unread in a
//! socket when its connection ends, a thread that is itself ending closes the socket: the kernel
//! does not let such a thread linger (`inet_release`, `PF_EXITING`). That thread has a descriptor
//! table of its own, a copy of this process's, and so holds the last reference.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use enisle_hardening::process::rights::{self, Waiting};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::sockopt::OobInline;
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

/// What keeps passed descriptors away from the thread that serves connections.
#[derive(Debug, Clone)]
pub(crate) enum Rights {
    Refused,
    Watched(Closer),
}

impl Rights {
    /// Has the kernel refuse descriptors from all clients that connect from now on. If the kernel
    /// cannot, starts the thread that watched connections need.
    pub(crate) fn of(listener: &UnixListener) -> io::Result<Self> {
        match rights::refuse(listener.as_fd()) {
            Ok(()) => Ok(Self::Refused),
            Err(error) => {
                tracing::info!(%error, "this kernel cannot refuse descriptors that clients pass; the daemon watches for them instead");
                Self::watched()
            }
        }
    }

    fn watched() -> io::Result<Self> {
        Ok(Self::Watched(Closer::start()?))
    }

    /// Splits an accepted connection into its byte stream and the reference to its socket that must
    /// be dropped last.
    pub(crate) fn divide(&self, stream: UnixStream) -> io::Result<(Client, Last)> {
        let prepared = stream.as_fd().try_clone_to_owned().and_then(|socket| {
            self.prepare(&stream)?;
            Ok(socket)
        });
        match prepared {
            Ok(socket) => {
                let last = Last { socket: Some(socket), rights: self.clone() };
                Ok((Client { stream, watched: self.is_watched() }, last))
            }
            Err(error) => {
                self.refuse(stream);
                Err(error)
            }
        }
    }

    /// Closes a connection from which nothing was read.
    pub(crate) fn refuse(&self, stream: UnixStream) {
        let _ = self.prepare(&stream);
        // `into_std` fails only if the descriptor cannot be deregistered.
        if let Ok(stream) = stream.into_std() {
            self.close(stream.into());
        }
    }

    /// Makes out-of-band bytes part of the stream. Otherwise the search for descriptors would skip
    /// them.
    fn prepare(&self, stream: &UnixStream) -> io::Result<()> {
        if self.is_watched() {
            setsockopt(stream, OobInline, &true)?;
        }
        Ok(())
    }

    fn is_watched(&self) -> bool {
        matches!(self, Self::Watched(_))
    }

    /// Closes a socket of which this is the last reference.
    fn close(&self, socket: OwnedFd) {
        let Self::Watched(closer) = self else { return };
        // From here on, the client can send nothing more.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        match rights::look(socket.as_fd(), &mut [0]) {
            Ok(Waiting::Bytes(0)) => {}
            _ => closer.close(socket),
        }
    }
}

/// The last reference to a client's socket.
#[derive(Debug)]
pub(crate) struct Last {
    /// `None` only while this is being dropped.
    socket: Option<OwnedFd>,
    rights: Rights,
}

impl AsRawFd for Last {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.rights.close(socket);
        }
    }
}

/// The byte stream of a client.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    watched: bool,
}

impl Client {
    /// Receives bytes that were peeked at, and so come without descriptors.
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.try_io(Interest::READABLE, || match rights::look(self.stream.as_fd(), room)? {
            Waiting::Bytes(seen) => match room.get_mut(..seen) {
                Some(seen) => Ok(recv(self.stream.as_raw_fd(), seen, MsgFlags::empty())?),
                None => Ok(0),
            },
            Waiting::Descriptors => Err(io::Error::new(io::ErrorKind::InvalidData, "the client passed descriptors")),
        })
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let client = self.get_mut();
        if !client.watched {
            return Pin::new(&mut client.stream).poll_read(context, into);
        }
        loop {
            ready!(client.stream.poll_read_ready(context))?;
            match client.receive(into.initialize_unfilled()) {
                Ok(received) => {
                    into.advance(received);
                    return Poll::Ready(Ok(()));
                }
                // `try_io` has cleared the readiness, so the next round waits.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The thread that has sockets closed, all that are waiting at once. It never blocks on a close,
/// because an [`Ending`] holds the last references.
#[derive(Debug, Clone)]
pub(crate) struct Closer(Sender<OwnedFd>);

/// How long to wait before another attempt to start a thread.
const AGAIN: Duration = Duration::from_millis(100);

impl Closer {
    fn start() -> io::Result<Self> {
        let (send, sockets) = channel();
        thread::Builder::new().name("closer".to_owned()).spawn(move || close_all(&sockets))?;
        Ok(Self(send))
    }

    fn close(&self, socket: OwnedFd) {
        // The receiver lives as long as this sender.
        let _ = self.0.send(socket);
    }
}

fn close_all(sockets: &Receiver<OwnedFd>) {
    while let Ok(first) = sockets.recv() {
        let waiting: Vec<_> = std::iter::once(first).chain(sockets.try_iter()).collect();
        loop {
            match Ending::begin() {
                Ok(ending) => {
                    drop(waiting);
                    ending.end();
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot start a thread to close connections on");
                    thread::sleep(AGAIN);
                }
            }
        }
    }
}

/// A thread with its own references to all descriptors, which it drops when it ends.
struct Ending(Sender<Infallible>);

impl Ending {
    /// Returns when the thread has its references.
    fn begin() -> io::Result<Self> {
        let ((send, unshared), (end, ends)) = (channel(), channel());
        let thread = move || {
            let _ = send.send(unshare(CloneFlags::CLONE_FILES));
            // Nothing is ever sent: this returns when the other side is dropped.
            let _ = ends.recv();
        };
        thread::Builder::new().name("ending".to_owned()).spawn(thread)?;
        unshared.recv().map_err(io::Error::other)??;
        Ok(Self(end))
    }

    /// Lets the thread end, without waiting for it.
    fn end(self) {
        drop(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream as Peer;
    use std::time::Instant;

    use nix::sys::socket::sockopt::{Linger, RcvBuf};
    use nix::sys::socket::{ControlMessage, sendmsg};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Much longer than a test may take.
    const LONG: Duration = Duration::from_secs(120);
    const SHORT: Duration = Duration::from_secs(10);

    /// A TCP socket whose close takes this long, and its other side, which never reads.
    fn lingering(time: Duration) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, RcvBuf, &4096).unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (unread, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 1 << 16]).is_ok() {}
        let l_linger = i32::try_from(time.as_secs()).unwrap();
        setsockopt(&socket, Linger, &nix::libc::linger { l_onoff: 1, l_linger }).unwrap();
        (socket, unread)
    }

    /// A connection on which a byte has arrived with the last reference to a lingering socket.
    struct Passed {
        ours: UnixStream,
        theirs: Peer,
        unread: TcpStream,
    }

    impl Passed {
        fn new(time: Duration, flags: MsgFlags) -> Self {
            let (ours, theirs) = Peer::pair().unwrap();
            let (socket, unread) = lingering(time);
            let descriptors = [socket.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"x")], &rights, flags, None).unwrap();
            ours.set_nonblocking(true).unwrap();
            Self { ours: UnixStream::from_std(ours).unwrap(), theirs, unread }
        }
    }

    /// Whether the socket on the other side loses its owner within [`SHORT`]: its row in
    /// `/proc/net/tcp` has an inode until its close is over (`__tcp_close`).
    fn is_closed(unread: &TcpStream) -> bool {
        let port = format!(":{:04X}", unread.peer_addr().unwrap().port());
        let held = || {
            let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
            sockets.lines().any(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                fields[1].ends_with(&port) && fields[9] != "0"
            })
        };
        let begun = Instant::now();
        while held() {
            if begun.elapsed() > SHORT {
                return false;
            }
            thread::yield_now();
        }
        true
    }

    #[tokio::test]
    async fn a_client_that_passes_descriptors_does_not_block_the_daemon() {
        for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
            let Passed { ours, mut theirs, unread } = Passed::new(LONG, flags);
            let begun = Instant::now();
            let (mut client, last) = Rights::watched().unwrap().divide(ours).unwrap();
            let error = client.read(&mut [0; 16]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            drop(client);
            drop(last);
            assert!(theirs.write(&[0]).is_err(), "the connection has ended");
            assert!(begun.elapsed() < SHORT && is_closed(&unread), "{flags:?}");
        }
    }

    #[tokio::test]
    async fn closing_an_unread_connection_does_not_block_the_daemon() {
        for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
            let Passed { ours, theirs: _theirs, unread } = Passed::new(LONG, flags);
            let (begun, rights) = (Instant::now(), Rights::watched().unwrap());
            rights.refuse(ours);
            assert!(begun.elapsed() < SHORT && is_closed(&unread), "{flags:?}");
        }
    }

    /// The attack: without the defence, reading from the connection and closing it each take as
    /// long as the passed socket lingers.
    #[tokio::test]
    async fn without_the_defence_the_daemon_waits_for_the_close() {
        const TIME: Duration = Duration::from_secs(1);
        let Passed { ours, theirs: _theirs, unread: _unread } = Passed::new(TIME, MsgFlags::empty());
        let begun = Instant::now();
        let (mut client, _last) = Rights::Refused.divide(ours).unwrap();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 1);
        assert!(begun.elapsed() >= TIME);
        let Passed { ours, theirs: _theirs, unread: _unread } = Passed::new(TIME, MsgFlags::empty());
        let begun = Instant::now();
        Rights::Refused.refuse(ours);
        assert!(begun.elapsed() >= TIME);
    }

    #[tokio::test]
    async fn a_capable_kernel_refuses_descriptors_before_and_after_a_connection_is_accepted() {
        let can = rights::can_be_refused();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        assert_eq!(matches!(Rights::of(&listener).unwrap(), Rights::Refused), can);
        let theirs = Peer::connect(folder.path().join("s")).unwrap();
        let descriptors = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let pass = || sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None);
        assert_eq!(pass() == Err(nix::errno::Errno::EPERM), can);
        let _accepted = listener.accept().await.unwrap();
        assert_eq!(pass() == Err(nix::errno::Errno::EPERM), can);
    }

    #[tokio::test]
    async fn bytes_arrive_complete_and_in_order_up_to_the_clients_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut client, _last) = Rights::watched().unwrap().divide(ours).unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[n as usize % 3]).collect();
        let (mut theirs_read, mut theirs_write) = theirs.into_split();
        let sent = bytes.clone();
        tokio::spawn(async move { theirs_write.write_all(&sent).await });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == bytes);
        client.write_all(b"answer").await.unwrap();
        drop(client);
        let mut answer = [0; 6];
        theirs_read.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
}
