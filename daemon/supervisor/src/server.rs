//! The Unix socket: bound without stealing it from a living daemon, served with a bound on everything.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::api::peer::Peer;
use crate::api::problem::Problem;
use crate::config::Api;
use crate::share::{Exhausted, Held, Parts, Supply};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("another enisled is running on {0}; stop it, or give this one another --socket")]
    Taken(PathBuf),
    #[error("{0} is in the way: it is not a socket")]
    NotASocket(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} is no safe place for the socket: others may write there; choose another --socket")]
    Unsafe(PathBuf),
    #[error("{0} is too long for a Unix socket (107 bytes at most)")]
    TooLong(PathBuf),
}

/// The listening socket, and the lock that says whose it is. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    _lock: Flock<fs::File>,
}

/// Longest path that a socket address holds, without its final zero (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// Binds `path`. A socket that a dead daemon left behind is replaced; the lock beside it tells dead from alive.
pub(crate) fn bind(path: &Path) -> Result<Bound, BindError> {
    let failed = |error| BindError::Io(path.to_owned(), error);
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(BindError::TooLong(path.to_owned()));
    }
    // A name alone is in the present folder.
    if let Some(dir) = path.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir }) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
        let found = fs::metadata(dir).map_err(failed)?;
        let ours = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
        // Whoever else may write there could put another socket in the place of ours; a sticky folder keeps them from it.
        let (writable, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
        if !ours || (writable && !sticky) {
            return Err(BindError::Unsafe(dir.to_owned()));
        }
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_file = fs::File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
    let lock =
        Flock::lock(lock_file, FlockArg::LockExclusiveNonblock).map_err(|_| BindError::Taken(path.to_owned()))?;
    match fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            fs::remove_file(path).map_err(failed)?
        }
        Ok(_) => return Err(BindError::NotASocket(path.to_owned())),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Whoever may connect is decided by the file; what they may do then, by the policy.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("enisle") {
        let _ = nix::unistd::chown(path, None, Some(group.gid));
    }
    Ok(Bound { listener, path: path.to_owned(), _lock: lock })
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
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
    let places = Places::new(api.connections, parts);
    loop {
        let accepted = tokio::select! {
            accepted = bound.listener.accept() => accepted,
            () = &mut shutdown => return connections,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(uid) = stream.peer_cred().map(|credentials| credentials.uid()) else { continue };
                let Some(place) = places.take(uid, &stream) else { continue };
                let (router, api, watcher) = (router.clone(), api.clone(), connections.watcher());
                tokio::spawn(async move {
                    serve_connection(stream, Peer { uid }, router, &api, watcher).await;
                    drop(place);
                });
            }
            // Out of descriptors, most likely: others have to end first.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Connections of all uids that no rule names.
const STRANGERS: u64 = 8;

/// Places for connections. Those whom no rule names have a few of their own: they may do next to nothing, whatever
/// they say, so nobody waits for them.
struct Places {
    parts: Parts,
    known: Supply,
    strangers: Supply,
}

impl Places {
    fn new(connections: usize, parts: Parts) -> Self {
        let supply = |whole| Supply::new("the connections (api.connections)", whole, parts.clone());
        Self { known: supply(connections as u64), strangers: supply(STRANGERS), parts }
    }

    /// A place for one connection. One that is refused is told so, as far as it takes that without being waited for, and is
    /// closed.
    fn take(&self, uid: u32, stream: &UnixStream) -> Option<Held> {
        let supply = if self.parts.knows(uid) { &self.known } else { &self.strangers };
        supply.take(uid, 1).inspect_err(|exhausted| drop(stream.try_write(&refusal(exhausted)))).ok()
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

async fn serve_connection(stream: UnixStream, peer: Peer, router: Router, api: &Api, watcher: Watcher) {
    // A follower takes as long as there are events; one that takes nothing is cut off.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_secs(api.write_secs)));
    // Any other answer has to be taken as a whole in that time, however slowly.
    let (asked, mut until) = watch::channel(None);
    let (answered, patience) = (asked.clone(), Duration::from_secs(api.write_secs));
    let service = router
        .map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            asked.send_replace(None);
            request.extensions_mut().insert(peer);
            request
        })
        .map_response(move |response: Response| {
            if response.extensions().get::<Endless>().is_none() {
                answered.send_replace(Some(Instant::now() + patience));
            }
            response
        });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(api.read_secs))
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
    tokio::select! {
        served = watcher.watch(connection) => {
            if let Err(error) = served {
                tracing::debug!(%error, uid = peer.uid, "a connection ended early");
            }
        }
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
    use super::*;

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
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(bind(file.path()), Err(BindError::NotASocket(_))));
    }
}
