//! HTTP/1.1 over the daemon's Unix socket. The client asks the kernel for the uid of the listener,
//! and sends only to a listener of an accepted uid.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::types::problem::Problem;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon answers on {socket} ({error})")]
    Unreachable { socket: String, error: io::Error },
    #[error(
        "the process that listens on {socket} has uid {uid}, which is neither root, yours, nor the one named by \
            --daemon-uid; nothing was sent"
    )]
    Stranger { socket: String, uid: u32 },
    #[error("the daemon says {status}: {detail}")]
    Problem { status: u16, detail: String },
    #[error("the daemon's answer cannot be read: {0}")]
    BadAnswer(String),
}

#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// A uid to accept as the daemon's, besides root and this user.
    daemon_uid: Option<u32>,
}

/// The body of an answer, byte for byte.
#[derive(Debug)]
pub struct Body(Bytes);

impl Body {
    /// # Errors
    /// The body is not UTF-8.
    pub fn text(&self) -> Result<&str, ClientError> {
        std::str::from_utf8(&self.0).map_err(|error| ClientError::BadAnswer(error.to_string()))
    }

    /// Parses the answer as one of the [types](crate::types). In those types, a script's result
    /// stays JSON text, because it may be nested more deeply than `serde_json` parses.
    ///
    /// # Errors
    /// The answer is of another type.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.0).map_err(|error| ClientError::BadAnswer(error.to_string()))
    }
}

impl Client {
    #[must_use]
    pub fn new(socket: PathBuf, daemon_uid: Option<u32>) -> Self {
        Self { socket, daemon_uid }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects, and fails unless the listener has an accepted uid: root's, this user's or
    /// `daemon_uid`. The path by itself proves nothing, because another user may have made it.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = || self.socket.display().to_string();
        let unreachable = |error| ClientError::Unreachable { socket: socket(), error };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let uid = stream.peer_cred().map_err(unreachable)?.uid();
        if uid == 0 || uid == nix::unistd::geteuid().as_raw() || Some(uid) == self.daemon_uid {
            return Ok(stream);
        }
        Err(ClientError::Stranger { socket: socket(), uid })
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, ClientError> {
        let broken = |error: hyper::Error| ClientError::BadAnswer(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "enisle")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::BadAnswer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() { Ok(response) } else { Err(problem(response).await) }
    }

    /// # Errors
    /// The daemon does not answer, or answers with a problem. The other methods fail for the same
    /// reasons.
    pub async fn get(&self, path: &str) -> Result<Body, ClientError> {
        body_of(self.send(Method::GET, path, Vec::new()).await?).await
    }

    /// # Errors
    /// See [`Self::get`].
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<Body, ClientError> {
        body_of(self.send(Method::POST, path, body).await?).await
    }

    /// # Errors
    /// See [`Self::get`].
    pub async fn put(&self, path: &str, body: Vec<u8>) -> Result<Body, ClientError> {
        body_of(self.send(Method::PUT, path, body).await?).await
    }

    /// # Errors
    /// See [`Self::get`].
    pub async fn delete(&self, path: &str) -> Result<Body, ClientError> {
        body_of(self.send(Method::DELETE, path, Vec::new()).await?).await
    }

    /// Calls `each` with every line of the answer, as it arrives.
    ///
    /// # Errors
    /// See [`Self::get`].
    pub async fn lines(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), ClientError> {
        let mut body = self.send(Method::GET, path, Vec::new()).await?.into_body();
        let mut unread = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::BadAnswer(error.to_string()))?;
            unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                each(String::from_utf8_lossy(&line).trim_end());
            }
        }
        Ok(())
    }
}

async fn body_of(response: Response<Incoming>) -> Result<Body, ClientError> {
    let collected = response.into_body().collect().await;
    Ok(Body(collected.map_err(|error| ClientError::BadAnswer(error.to_string()))?.to_bytes()))
}

async fn problem(response: Response<Incoming>) -> ClientError {
    let status: StatusCode = response.status();
    let body = body_of(response).await;
    let problem = body.and_then(|body| body.read::<Problem>());
    let detail = problem.map_or_else(|error| error.to_string(), |problem| problem.detail);
    ClientError::Problem { status: status.as_u16(), detail }
}
