//! HTTP/1.1 over the daemon's Unix socket, with nobody but the daemon: whoever listens there is
//! asked of the kernel first.

use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::Failure;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("there is no daemon on {socket} ({error}); start one with `enisled`, or use `enisle run --standalone`")]
    Unreachable { socket: String, error: std::io::Error },
    #[error(
        "whoever listens on {socket} has uid {uid}, which is neither root's nor yours; nothing was sent. If that is the \
         daemon that you mean, say so with --daemon-uid {uid}"
    )]
    Stranger { socket: String, uid: u32 },
    #[error("the daemon says {status}: {detail}")]
    Problem { status: u16, detail: String },
    #[error("the daemon's answer is broken: {0}")]
    Broken(String),
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: PathBuf,
    /// Whom to take for the daemon beside root and this user.
    daemon_uid: Option<u32>,
}

/// An answer as it came, byte for byte.
#[derive(Debug)]
pub(crate) struct Body(Bytes);

impl Body {
    pub(crate) fn text(&self) -> Result<&str, ClientError> {
        std::str::from_utf8(&self.0).map_err(|error| ClientError::Broken(error.to_string()))
    }

    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.0).map_err(|error| ClientError::Broken(error.to_string()))
    }

    /// An answer of the daemon's own. What a script returned is read as text: it may be deeper than
    /// a tree can be.
    pub(crate) fn value(&self) -> Result<Value, ClientError> {
        self.read()
    }
}

/// A tenant's name as a segment of a path. The daemon says what a name may be; this keeps it one segment.
pub(crate) fn segment(name: &str) -> Result<&str, Failure> {
    if name.is_empty() || name.chars().any(|c| !c.is_ascii_graphic() || "/?#%".contains(c)) {
        return Err(Failure::Usage(format!("{name:?} cannot be a tenant's name")));
    }
    Ok(name)
}

/// Text as the value of a parameter (RFC 3986, section 2.1).
pub(crate) fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

impl Client {
    pub(crate) fn new(socket: PathBuf, daemon_uid: Option<u32>) -> Self {
        Self { socket, daemon_uid }
    }

    /// Connects, and goes on only if it is the daemon that listens: the place alone proves nothing,
    /// because others may have made it.
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
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
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
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() { Ok(response) } else { Err(problem(response).await) }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Body, ClientError> {
        body_of(self.send(Method::GET, path, Vec::new()).await?).await
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> Result<Body, ClientError> {
        body_of(self.send(Method::POST, path, body).await?).await
    }

    pub(crate) async fn put(&self, path: &str, body: Vec<u8>) -> Result<Body, ClientError> {
        body_of(self.send(Method::PUT, path, body).await?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Body, ClientError> {
        body_of(self.send(Method::DELETE, path, Vec::new()).await?).await
    }

    /// Calls `each` with every line of the answer, as it comes.
    pub(crate) async fn lines(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), ClientError> {
        let mut body = self.send(Method::GET, path, Vec::new()).await?.into_body();
        let mut unread = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken(error.to_string()))?;
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
    Ok(Body(collected.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes()))
}

async fn problem(response: Response<Incoming>) -> ClientError {
    let status: StatusCode = response.status();
    let problem = body_of(response).await.and_then(|body| body.value());
    let detail = match problem {
        Ok(problem) => problem["detail"].as_str().unwrap_or("no detail").to_owned(),
        Err(error) => error.to_string(),
    };
    ClientError::Problem { status: status.as_u16(), detail }
}
