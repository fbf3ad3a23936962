//! The Unix socket. It is never taken from a running daemon, and everything that its clients may
//! use is bounded.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, fchownat, unlinkat};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::api::peer::Peer;
use crate::api::problem::Problem;
use crate::config::{Api, STRANGERS_CONNECTIONS};
use crate::files::{self, How};
use crate::rights::{Client, Last, Rights};
use crate::share::{Exhausted, Held, Parts, Supply};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("another enisled is running on {0}; stop it, or choose another --socket for this one")]
    Taken(PathBuf),
    #[error("{0} is in the way: it is not a socket")]
    NotASocket(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} cannot be the folder of the socket: {1}; choose another --socket")]
    Folder(PathBuf, io::Error),
    #[error("{0} is too long for a Unix socket (107 bytes at most)")]
    TooLong(PathBuf),
}

/// The listening socket, and the lock on it. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    rights: Rights,
    folder: OwnedFd,
    name: OsString,
    _lock: Flock<File>,
}

/// The longest path that a socket address holds, without its terminating zero (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// The name of the socket, if it can be bound through its folder's descriptor and connected to by
/// its path.
fn name_of(path: &Path) -> Result<&OsStr, BindError> {
    let name = path.file_name().ok_or_else(|| BindError::NotASocket(path.to_owned()))?;
    let longest = path.as_os_str().len().max("/proc/self/fd/999/".len() + name.len());
    if longest > MAX_PATH_BYTES { Err(BindError::TooLong(path.to_owned())) } else { Ok(name) }
}

fn lock_of(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// Whether the socket exists. Any other kind of file is an error.
fn has_socket(folder: &OwnedFd, path: &Path) -> Result<bool, BindError> {
    match fstatat(folder, name_of(path)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) if found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits() => Ok(true),
        Ok(_) => Err(BindError::NotASocket(path.to_owned())),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(BindError::Io(path.to_owned(), errno.into())),
    }
}

/// Checks, without creating anything, that a socket could be bound there if no other daemon held
/// it.
pub(crate) fn check_place(path: &Path) -> Result<(), BindError> {
    name_of(path)?;
    let (dir, lock) = (files::parent(path), lock_of(path));
    let Some(folder) = files::check_folder(&dir).map_err(|error| BindError::Folder(dir, error))? else {
        return Ok(());
    };
    let name = lock.file_name().unwrap_or_default();
    files::check_file(&folder, name).map_err(|error| BindError::Io(lock.clone(), error))?;
    has_socket(&folder, path).map(drop)
}

/// Binds `path`. A socket that a dead daemon left behind is replaced; the lock file beside it tells
/// a dead daemon from a running one. Everything happens below one descriptor of the folder, so
/// exchanging the folder meanwhile has no effect.
pub(crate) fn bind(path: &Path) -> Result<Bound, BindError> {
    let failed = |error| BindError::Io(path.to_owned(), error);
    let name = name_of(path)?;
    let dir = files::parent(path);
    let folder = files::make_socket_folder(&dir).map_err(|error| BindError::Folder(dir, error))?;
    let below_folder = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let lock_path = lock_of(path);
    let lock_file =
        files::below(&folder, &lock_path, How::Keep).map_err(|error| BindError::Io(lock_path.clone(), error))?;
    let lock = Flock::lock(lock_file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => BindError::Taken(path.to_owned()),
        errno => BindError::Io(lock_path, errno.into()),
    })?;
    if has_socket(&folder, path)? {
        unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir).map_err(|errno| failed(errno.into()))?;
    }
    // Until the mode is set, the umask keeps other users out.
    let listener = UnixListener::bind(&below_folder).map_err(failed)?;
    let rights = Rights::of(&listener).map_err(failed)?;
    // The mode of the file decides who may connect; the rules decide what a client may do then.
    fchmodat(&folder, name, Mode::from_bits_truncate(0o660), FchmodatFlags::FollowSymlink)
        .map_err(|errno| failed(errno.into()))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("enisle") {
        let _ = fchownat(&folder, name, None, Some(group.gid), AtFlags::AT_SYMLINK_NOFOLLOW);
    }
    Ok(Bound { listener, rights, folder, name: name.to_owned(), _lock: lock })
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// Accepts and serves until `shutdown`, then accepts no more and removes the socket. The returned
/// value ends the open connections, each after its current answer.
pub(crate) async fn serve(
    bound: Bound,
    router: Router,
    api: &Api,
    parts: Parts,
    shutdown: impl Future<Output = ()>,
) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    let mut places = Places::new(api.connections, parts);
    let mut cost = 0;
    let (mut refused, mut logged) = (0, None);
    loop {
        // Open connections have their turn between new ones.
        if cost >= COST_AT_ONCE {
            cost = 0;
            tokio::task::yield_now().await;
        }
        let accepted = tokio::select! {
            accepted = bound.listener.accept() => accepted,
            () = &mut shutdown => return connections,
        };
        match accepted {
            Ok((stream, _)) => {
                let uid = stream.peer_cred().map(|credentials| credentials.uid());
                let Some((uid, place)) = uid.ok().and_then(|uid| Some((uid, places.take(uid, &stream)?))) else {
                    bound.rights.refuse(stream);
                    cost += 1;
                    continue;
                };
                cost += COST_OF_ONE;
                let (client, last) = match bound.rights.divide(stream) {
                    Ok(divided) => divided,
                    Err(error) => {
                        tracing::debug!(%error, uid, "a connection cannot be watched");
                        continue;
                    }
                };
                let (router, api, watcher) = (router.clone(), api.clone(), connections.watcher());
                tokio::spawn(async move {
                    serve_connection(client, last, Peer { uid }, router, &api, watcher).await;
                    drop(place);
                });
            }
            // The daemon's own descriptors suffice (`descriptors`), but the machine's may run out.
            Err(error) => {
                refused += 1;
                if logged.is_none_or(|logged: Instant| logged.elapsed() >= LOG_EVERY) {
                    tracing::warn!(%error, times = refused, "connections could not be accepted");
                    (refused, logged) = (0_u64, Some(Instant::now()));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// How often the log reports that connections cannot be accepted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The most that a connection buffers in each direction. A request's head must fit.
const MAX_BUFFER_BYTES: usize = 16 << 10;

/// The work on new connections that may be done before the open ones have their turn. Accepting a
/// connection costs several times as much as refusing it.
const COST_AT_ONCE: u32 = 32;
const COST_OF_ONE: u32 = 8;

/// How many connections may begin in [`WINDOW`], with and without a rule for their uid. Connections
/// that have ended in the window count too, because most of the cost is in accepting them.
const BEGUN: u64 = 10_000;
const BEGUN_BY_STRANGERS: u64 = 500;
const WINDOW: Duration = Duration::from_secs(1);

/// Admission of connections. Uids that no rule names have a few connections of their own: they may
/// do next to nothing, so no other client should wait for them.
struct Places {
    parts: Parts,
    known: Kind,
    strangers: Kind,
    /// What began in this window, and when the window began.
    begun: Vec<Held>,
    since: Instant,
}

/// The connections for uids with a rule, or for uids without one.
struct Kind {
    open: Supply,
    begun: Supply,
}

impl Places {
    fn new(connections: usize, parts: Parts) -> Self {
        let kind = |open, begun| Kind {
            open: Supply::new("the connections (api.connections)", open, parts.clone()),
            begun: Supply::new("the connections that may begin in a second", begun, parts.clone()),
        };
        let (known, strangers) = (kind(connections as u64, BEGUN), kind(STRANGERS_CONNECTIONS, BEGUN_BY_STRANGERS));
        Self { known, strangers, parts, begun: Vec::new(), since: Instant::now() }
    }

    /// Admits one connection. The reason for a refusal is sent as far as the socket takes it
    /// without waiting, and the connection is closed.
    fn take(&mut self, uid: u32, stream: &UnixStream) -> Option<Held> {
        if self.since.elapsed() >= WINDOW {
            self.begun.clear();
            self.since = Instant::now();
        }
        let kind = if self.parts.knows(uid) { &self.known } else { &self.strangers };
        let bounded = !self.parts.has_all(uid);
        let begun = || bounded.then(|| kind.begun.take(uid, 1)).transpose();
        let taken = kind.open.take(uid, 1).and_then(|open| Ok((open, begun()?)));
        let (open, begun) = taken.inspect_err(|exhausted| drop(stream.try_write(&refusal(exhausted)))).ok()?;
        self.begun.extend(begun);
        Some(open)
    }
}

/// The answer on a refused connection, whose request is not read.
fn refusal(exhausted: &Exhausted) -> Vec<u8> {
    let body = serde_json::to_vec(&Problem::from(exhausted.clone())).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// Detects that a client has closed its connection, as opposed to its sending side only.
#[derive(Debug)]
struct HangUp(AsyncFd<Last>);

impl HangUp {
    /// Takes a second descriptor of the socket, the only way to wait for this event alone.
    fn of(socket: Last) -> Result<Self, AsyncFdRegisterError<Last>> {
        // The end of both directions is reported whatever events are requested (epoll_ctl(2),
        // EPOLLHUP).
        #[expect(deprecated, reason = "its unsoundness needs a type that lies about its descriptor; Last does not")]
        AsyncFd::try_with_interest(socket, Interest::PRIORITY).map(Self)
    }

    /// Waits until the client can neither send nor read any more, whatever it has sent before.
    async fn happens(&self) {
        while let Ok(mut ready) = self.0.ready(Interest::PRIORITY).await {
            if ready.ready().is_read_closed() {
                return;
            }
            // The socket has urgent data, which this daemon does not use.
            ready.clear_ready();
        }
    }
}

pub(crate) async fn serve_connection(
    client: Client,
    last: Last,
    peer: Peer,
    router: Router,
    api: &Api,
    watcher: Watcher,
) {
    // `hang_up` is dropped after everything else of the connection, because it has the last
    // reference to the socket.
    let hang_up = match HangUp::of(last) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            drop(client);
            return tracing::debug!(%error, uid = peer.uid, "a connection cannot be watched");
        }
    };
    // The answer to a client that follows events lasts as long as the daemon; such a client is cut
    // off if it reads nothing.
    let mut stream = TimeoutStream::new(client);
    stream.set_write_timeout(Some(Duration::from_secs(api.write_secs)));
    // Any other answer must be read completely within the same time.
    let (asked, mut until) = watch::channel(None);
    let (answered, patience) = (asked.clone(), Duration::from_secs(api.write_secs));
    let service = tower::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        asked.send_replace(None);
        request.extensions_mut().insert(peer);
        let (router, answered) = (router.clone(), answered.clone());
        async move {
            // Pipelined requests take turns with those of other clients.
            tokio::task::yield_now().await;
            let response = router.oneshot(request).await?;
            if response.extensions().get::<Endless>().is_none() {
                answered.send_replace(Some(Instant::now() + patience));
            }
            Ok::<Response, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(api.read_secs))
        .max_headers(64)
        .max_buf_size(MAX_BUFFER_BYTES)
        // A client that sends nothing more may still read. `hang_up` detects a client that does
        // neither: hyper does not see the end of a stream before it has read all bytes in front of
        // the end.
        .half_close(true)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
    tokio::select! {
        biased;
        served = watcher.watch(connection) => {
            if let Err(error) = served {
                tracing::debug!(%error, uid = peer.uid, "a connection ended early");
            }
        }
        () = hang_up.happens() => tracing::debug!(uid = peer.uid, "a client hung up"),
        () = passed(&mut until) => tracing::debug!(uid = peer.uid, "an answer was not taken in time"),
    }
}

/// Marks an answer that goes on for as long as the client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Endless;

/// Waits until the deadline that was set last has passed.
async fn passed(until: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let set = *until.borrow_and_update();
        let changed = match set {
            Some(set) => match timeout_at(set, until.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
            None => until.changed().await,
        };
        // The sender is gone, so the connection is ending by itself.
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{Notify, mpsc};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_running_daemons_socket_is_not_taken_and_a_dead_ones_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Taken(_))));
        // As after kill -9: the file stays, the lock is released.
        let Bound { .. } = &first;
        let file = path.clone();
        drop(first);
        drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
        assert!(bind(&path).is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "whole").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
    }

    #[tokio::test]
    async fn a_folder_behind_a_link_is_refused_and_a_planted_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, link) = (dir.path().join("folder"), dir.path().join("link"));
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(matches!(bind(&link.join("s")), Err(BindError::Folder(..))));
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), folder.join("s.lock")).unwrap();
        assert!(matches!(bind(&folder.join("s")), Err(BindError::Io(..))));
        assert!(!dir.path().join("elsewhere").exists());
    }

    /// A server of one route, which answers when `answer` is notified. The route reports when work
    /// on a request begins and ends.
    async fn serving(answer: Arc<Notify>) -> (tempfile::TempDir, PathBuf, mpsc::UnboundedReceiver<&'static str>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = bind(&path).unwrap();
        let (report, reports) = mpsc::unbounded_channel();
        let handler = move || {
            let (report, answer) = (report.clone(), Arc::clone(&answer));
            async move {
                report.send("begun").unwrap();
                let _work = Work(report);
                answer.notified().await;
                "answered"
            }
        };
        let router = Router::new().route("/", axum::routing::get(handler));
        tokio::spawn(async move {
            serve(bound, router, &Api::default(), Parts::new(&[]), std::future::pending()).await;
        });
        (dir, path, reports)
    }

    struct Work(mpsc::UnboundedSender<&'static str>);

    impl Drop for Work {
        fn drop(&mut self) {
            let _ = self.0.send("ended");
        }
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: d\r\n\r\n";

    #[tokio::test]
    async fn work_ends_when_its_client_hangs_up_whatever_it_sent_after_its_request() {
        let (_dir, path, mut reports) = serving(Arc::default()).await;
        for behind in ["", "G", REQUEST] {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all([REQUEST, behind].concat().as_bytes()).await.unwrap();
            assert_eq!(timeout(PATIENCE, reports.recv()).await, Ok(Some("begun")));
            drop(client);
            assert_eq!(timeout(PATIENCE, reports.recv()).await, Ok(Some("ended")), "behind {behind:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_sending_side_gets_its_answer() {
        let answer = Arc::new(Notify::new());
        let (_dir, path, mut reports) = serving(Arc::clone(&answer)).await;
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        assert_eq!(timeout(PATIENCE, reports.recv()).await, Ok(Some("begun")));
        client.shutdown().await.unwrap();
        // If the server took the end of the first client's stream for a hang-up, it would do so
        // before it serves another client.
        let mut another = UnixStream::connect(&path).await.unwrap();
        another.write_all(b"GET /other HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n").await.unwrap();
        another.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(reports.try_recv().is_err());
        answer.notify_one();
        let mut read = String::new();
        timeout(PATIENCE, client.read_to_string(&mut read)).await.unwrap().unwrap();
        assert!(read.ends_with("answered"), "{read}");
    }

    #[tokio::test]
    async fn a_path_too_long_for_clients_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(bind(&dir.path().join("x".repeat(100))), Err(BindError::TooLong(_))));
    }
}
