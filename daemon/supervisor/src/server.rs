//! The Unix socket: bound without stealing it from a living daemon, served with a bound on everything.

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
use crate::config::Api;
use crate::files::{self, How};
use crate::rights::{Client, Last, Rights};
use crate::share::{Exhausted, Held, Parts, Supply};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("another enisled is running on {0}; stop it, or give this one another --socket")]
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

/// The listening socket, and the lock that says whose it is. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    rights: Rights,
    folder: OwnedFd,
    name: OsString,
    _lock: Flock<File>,
}

/// Longest path that a socket address holds, without its final zero (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// The name of the socket, if it can be bound by its folder's descriptor and found by its path.
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

/// Whether there is a socket; anything else is in the way.
fn has_socket(folder: &OwnedFd, path: &Path) -> Result<bool, BindError> {
    match fstatat(folder, name_of(path)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) if found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits() => Ok(true),
        Ok(_) => Err(BindError::NotASocket(path.to_owned())),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(BindError::Io(path.to_owned(), errno.into())),
    }
}

/// Whether a socket could be bound there once no other daemon has it, without making anything.
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

/// Binds `path`. A socket that a dead daemon left behind is replaced; the lock beside it tells dead
/// from alive. All of it is done below one descriptor of the folder, so that nobody can exchange
/// the folder meanwhile.
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
    // Until its mode is set, the umask keeps everybody else out.
    let listener = UnixListener::bind(&below_folder).map_err(failed)?;
    let rights = Rights::of(&listener).map_err(failed)?;
    // Whoever may connect is decided by the file; what they may do then, by the policy.
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

/// Accepts and serves until `shutdown`; then takes no more, and removes the socket. What is returned ends the connections
/// that are still open, each after its answer.
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
    let (mut refused, mut told) = (0, None);
    loop {
        // Those who are connected have their turn between those who come.
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
            // The daemon's own descriptors suffice (`descriptors`); those of the machine may not.
            Err(error) => {
                refused += 1;
                if told.is_none_or(|told: Instant| told.elapsed() >= TELL_EVERY) {
                    tracing::warn!(%error, times = refused, "connections could not be accepted");
                    (refused, told) = (0_u64, Some(Instant::now()));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// How often the log says that connections cannot be accepted.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What a connection keeps unread at the most, and unsent: a head has to fit.
const MAX_BUFFER_BYTES: usize = 16 << 10;

/// What may be spent on new connections before others have their turn: on one that is taken some
/// times as much as on one that is refused.
const COST_AT_ONCE: u32 = 32;
const COST_OF_ONE: u32 = 8;

/// Connections of all uids that no rule names.
pub(crate) const STRANGERS: u64 = 8;

/// Connections that may be begun in [`WINDOW`], and those of uids without a rule: what has ended
/// already is charged too, because to take it is most of what it costs.
const BEGUN: u64 = 10_000;
const BEGUN_BY_STRANGERS: u64 = 500;
const WINDOW: Duration = Duration::from_secs(1);

/// Places for connections. Those whom no rule names have a few of their own: they may do next to
/// nothing, whatever they say, so nobody waits for them.
struct Places {
    parts: Parts,
    known: Kind,
    strangers: Kind,
    /// What is begun in this window, and since when it lasts.
    begun: Vec<Held>,
    since: Instant,
}

/// What there is for uids with a rule, or without one.
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
        let (known, strangers) = (kind(connections as u64, BEGUN), kind(STRANGERS, BEGUN_BY_STRANGERS));
        Self { known, strangers, parts, begun: Vec::new(), since: Instant::now() }
    }

    /// A place for one connection. One that is refused is told so, as far as it takes that without
    /// being waited for, and is closed.
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

/// The answer to a request that is not read.
fn refusal(exhausted: &Exhausted) -> Vec<u8> {
    let body = serde_json::to_vec(&Problem::from(exhausted.clone())).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// The end of a connection, told from the end of what its client sends.
#[derive(Debug)]
struct HangUp(AsyncFd<Last>);

impl HangUp {
    /// A descriptor of its own: only so can the kernel be asked for this and nothing else.
    fn of(socket: Last) -> Result<Self, AsyncFdRegisterError<Last>> {
        // The end of both directions is told whatever is asked for (epoll_ctl(2), EPOLLHUP).
        #[expect(deprecated, reason = "its unsoundness needs a type that lies about its descriptor; Last does not")]
        AsyncFd::try_with_interest(socket, Interest::PRIORITY).map(Self)
    }

    /// Waits until the client can neither send nor read any more, whatever it has sent before.
    async fn happens(&self) {
        while let Ok(mut ready) = self.0.ready(Interest::PRIORITY).await {
            if ready.ready().is_read_closed() {
                return;
            }
            // Urgent data, which nobody asked for.
            ready.clear_ready();
        }
    }
}

async fn serve_connection(client: Client, last: Last, peer: Peer, router: Router, api: &Api, watcher: Watcher) {
    // Dropped after everything else of the connection, as the last hold must be.
    let hang_up = match HangUp::of(last) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            drop(client);
            return tracing::debug!(%error, uid = peer.uid, "a connection cannot be watched");
        }
    };
    // A follower takes as long as there are events; one that takes nothing is cut off.
    let mut stream = TimeoutStream::new(client);
    stream.set_write_timeout(Some(Duration::from_secs(api.write_secs)));
    // Any other answer has to be taken as a whole in that time, however slowly.
    let (asked, mut until) = watch::channel(None);
    let (answered, patience) = (asked.clone(), Duration::from_secs(api.write_secs));
    let service = tower::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        asked.send_replace(None);
        request.extensions_mut().insert(peer);
        let (router, answered) = (router.clone(), answered.clone());
        async move {
            // Requests that came together are answered in turn with those of others.
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
        // A client that sends nothing more may still read. One that does not either is told by
        // `hang_up`: hyper sees no end behind bytes that it has not read.
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

/// Waits until the time has passed that is set last.
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
        // Nobody can set it any more: the connection is ending by itself.
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
    async fn a_living_daemons_socket_is_not_taken_and_a_dead_ones_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Taken(_))));
        // As after kill -9: the file stays, the lock goes.
        let Bound { .. } = &first;
        let file = path.clone();
        drop(first);
        drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
        assert!(bind(&path).is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
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

    /// A server of one route that answers when `answer` says so; it tells when work on a request
    /// begins and ends.
    async fn serving(answer: Arc<Notify>) -> (tempfile::TempDir, PathBuf, mpsc::UnboundedReceiver<&'static str>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = bind(&path).unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        let handler = move || {
            let (tell, answer) = (tell.clone(), Arc::clone(&answer));
            async move {
                tell.send("begun").unwrap();
                let _work = Work(tell);
                answer.notified().await;
                "answered"
            }
        };
        let router = Router::new().route("/", axum::routing::get(handler));
        tokio::spawn(async move {
            serve(bound, router, &Api::default(), Parts::new(&[]), std::future::pending()).await;
        });
        (dir, path, told)
    }

    struct Work(mpsc::UnboundedSender<&'static str>);

    impl Drop for Work {
        fn drop(&mut self) {
            let _ = self.0.send("ended");
        }
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: d\r\n\r\n";

    #[tokio::test]
    async fn the_work_for_a_client_that_hangs_up_ends_whatever_it_has_sent_behind_its_request() {
        let (_dir, path, mut told) = serving(Arc::default()).await;
        for behind in ["", "G", REQUEST] {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all([REQUEST, behind].concat().as_bytes()).await.unwrap();
            assert_eq!(timeout(PATIENCE, told.recv()).await, Ok(Some("begun")));
            drop(client);
            assert_eq!(timeout(PATIENCE, told.recv()).await, Ok(Some("ended")), "behind {behind:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_sending_side_gets_its_answer() {
        let answer = Arc::new(Notify::new());
        let (_dir, path, mut told) = serving(Arc::clone(&answer)).await;
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        assert_eq!(timeout(PATIENCE, told.recv()).await, Ok(Some("begun")));
        client.shutdown().await.unwrap();
        // Its end has been seen, if it was going to be, before anybody else is served.
        let mut another = UnixStream::connect(&path).await.unwrap();
        another.write_all(b"GET /other HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n").await.unwrap();
        another.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(told.try_recv().is_err());
        answer.notify_one();
        let mut read = String::new();
        timeout(PATIENCE, client.read_to_string(&mut read)).await.unwrap().unwrap();
        assert!(read.ends_with("answered"), "{read}");
    }

    #[tokio::test]
    async fn a_path_that_no_client_could_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(bind(&dir.path().join("x".repeat(100))), Err(BindError::TooLong(_))));
    }
}
