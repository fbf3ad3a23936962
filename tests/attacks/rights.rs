//! Descriptors that a client passes: a process that drops the last reference to a lingering socket
//! (`SO_LINGER`, socket(7)) waits until the socket has lingered.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use enisle_hardening::process::rights;
use enisle_tests::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::{Linger, RcvBuf};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt};
use nix::unistd::Pid;

use crate::ground::{Ground, STALLED, answered, wait};
use crate::pings::probed;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S10 rights", title: "lingering sockets, passed by a user without rights", run: this_kernel },
    Case { id: "S10 rights before", title: "the same on a kernel that cannot refuse descriptors", run: before },
];

/// How long the sockets linger. The attacker may choose any value.
const LINGER_SECS: i32 = 3600;
const CONNECTIONS: usize = 4;
/// How many connections uids without rights may have together. One such uid may have half of them.
const PLACES: usize = 8;

/// A TCP socket that lingers because of bytes that its peer never reads, and the peer.
fn lingering() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    setsockopt(&listener, RcvBuf, &4096)?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (unread, _) = listener.accept()?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 1 << 16]).is_ok() {}
    setsockopt(&socket, Linger, &libc::linger { l_onoff: 1, l_linger: LINGER_SECS })?;
    Ok((socket, unread))
}

/// Sends one byte with the last reference to a lingering socket.
fn pass(stream: &UnixStream, flags: MsgFlags) -> io::Result<TcpStream> {
    let (socket, unread) = lingering()?;
    let descriptors = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"G")], &rights, flags | MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(unread)
}

/// Opens [`PLACES`] connections, and waits until the last one is answered. That answer is a
/// refusal, so the earlier connections hold every place that the uid may have.
fn take_all_places(ground: &Ground) -> io::Result<Vec<UnixStream>> {
    let held = (0..PLACES).map(|_| ground.stranger.connect()).collect::<io::Result<Vec<_>>>()?;
    let refused = wait(PATIENCE, || held.last().is_some_and(answered));
    if refused { Ok(held) } else { Err(io::Error::other("no connection is refused")) }
}

/// Opens [`CONNECTIONS`] connections and passes a descriptor on each, before the daemon accepts the
/// first. Returns how many descriptors were sent, and how many connections were refused.
fn pass_on_all(ground: &Ground, flags: MsgFlags) -> io::Result<(usize, usize)> {
    let daemon = Pid::from_raw(ground.daemon.pid());
    kill(daemon, Signal::SIGSTOP)?;
    let streams: Vec<_> =
        (0..CONNECTIONS).map(|_| ground.stranger.connect().map(|stream| (pass(&stream, flags), stream))).collect();
    kill(daemon, Signal::SIGCONT)?;
    let streams = streams.into_iter().collect::<io::Result<Vec<_>>>()?;
    let refused = |mut stream: &UnixStream| {
        let _ = stream.set_read_timeout(Some(STALLED));
        // If no descriptor was passed, this is a whole request. Otherwise the daemon has ended the
        // connection.
        let _ = stream.write_all(b"GET /_ping HTTP/1.1\r\nhost: d\r\n\r\n");
        let mut said = [0; 12];
        stream.read_exact(&mut said).is_ok() && said == *b"HTTP/1.1 503"
    };
    let passed = streams.iter().filter(|(unread, _)| unread.is_ok()).count();
    Ok((passed, streams.iter().filter(|(_, stream)| refused(stream)).count()))
}

fn attack(start: impl Fn() -> Ground, options: Options, passes: bool) -> Result<String, String> {
    let all = if passes { CONNECTIONS } else { 0 };
    let mut said = Vec::new();
    for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
        let ground = start();
        ground.victim.served("good-1", "()=>1")?;
        let ((unread, read, served), pings) = probed(&ground, || {
            let places = take_all_places(&ground);
            let unread = places.and_then(|_places| pass_on_all(&ground, flags));
            wait(PATIENCE, || ground.stranger.ask("GET", "/_ping", b"").is_ok_and(|answer| answer.status == 200));
            (unread, pass_on_all(&ground, flags), ground.victim.served("good-1", "()=>1"))
        });
        let what = format!("{flags:?}: passed and refused {unread:?}, then {read:?}; the victim: {served:?}");
        let pings = pings.verdict(options.bench).map_err(|pings| format!("{what}; {pings}"))?;
        let as_meant = unread.is_ok_and(|(passed, refused)| passed == all && refused == CONNECTIONS)
            && read.is_ok_and(|(passed, refused)| passed == all && refused < CONNECTIONS);
        let in_time = served.is_ok_and(|took| took <= options.served_within());
        if !as_meant || !in_time {
            return Err(format!("{what}; {pings}"));
        }
        said.push(format!("{what}; {pings}"));
    }
    Ok(said.join("; "))
}

fn this_kernel(options: Options) -> Result<String, String> {
    attack(|| Ground::start(""), options, !rights::can_be_refused())
}

fn before(options: Options) -> Result<String, String> {
    attack(|| Ground::executed_by("before-passrights"), options, true)
}
