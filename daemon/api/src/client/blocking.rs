//! A client that is small enough for measurements: one persistent connection, one request at a
//! time. It does not check who is listening, and returns every answer as it is, problems too.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A persistent connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The status line and the header lines, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects. A read that takes longer than `patience` fails.
    ///
    /// # Errors
    /// No process listens there.
    pub fn open(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one request and reads its answer; the connection stays open.
    ///
    /// # Errors
    /// The answer is missing or incomplete.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        self.ask(method, path, "", body)
    }

    /// Sends the last request of this connection. Returns when the daemon has closed the
    /// connection.
    ///
    /// # Errors
    /// The answer is missing or incomplete.
    pub fn last_request(mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        let response = self.ask(method, path, "connection: close\r\n", body)?;
        to_the_end(&mut self.stream);
        Ok(response)
    }

    fn ask(&mut self, method: &str, path: &str, header: &str, body: &[u8]) -> io::Result<Response> {
        let length = body.len();
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: enisle\r\n{header}content-length: {length}\r\n\r\n")
                .into_bytes();
        request.extend_from_slice(body);
        // A daemon that refuses a request early may stop reading it. Then the write fails, but the
        // answer can be read and counts.
        let sent = self.stream.get_mut().write_all(&request);
        let read = Response::read(&mut self.stream, method != "HEAD");
        read.map_err(|unread| sent.err().unwrap_or(unread))
    }
}

impl Response {
    /// Reads the last answer of a connection, up to the end of the connection.
    ///
    /// # Errors
    /// See [`Self::read`].
    pub fn read_last(stream: &mut impl Read) -> io::Result<Self> {
        let mut stream = BufReader::new(stream);
        let response = Self::read(&mut stream, true)?;
        to_the_end(&mut stream);
        Ok(response)
    }

    /// Reads one answer and nothing after it. The answer to `HEAD` has no body.
    ///
    /// # Errors
    /// The answer is missing, incomplete, or not HTTP.
    pub fn read(stream: &mut impl BufRead, has_body: bool) -> io::Result<Self> {
        let mut head = String::new();
        let (mut length, mut chunked) = (0, false);
        loop {
            let begin = head.len();
            if stream.read_line(&mut head)? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed without an answer"));
            }
            let header = head.get(begin..).unwrap_or_default().trim().to_ascii_lowercase();
            if header.is_empty() {
                head.truncate(begin);
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(Error::other)?;
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| Error::other(format!("no status in {head:?}")))?;
        let body = match (has_body, chunked) {
            (false, _) => Vec::new(),
            (true, true) => chunks(stream)?,
            (true, false) => {
                let mut body = vec![0; length];
                stream.read_exact(&mut body)?;
                body
            }
        };
        Ok(Self { status, head, body })
    }
}

/// Reads and drops the rest of a connection. An error counts as its end, because a daemon that has
/// not read all of a request resets the connection.
fn to_the_end(stream: &mut impl BufRead) {
    let _ = io::copy(stream, &mut io::sink());
}

fn chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
        let begin = body.len();
        body.resize(begin + size + 2, 0);
        stream.read_exact(body.get_mut(begin..).unwrap_or_default())?;
        // Each chunk ends with a line break.
        body.truncate(begin + size);
        if size == 0 {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> io::Result<(Response, usize)> {
        let response = Response::read(&mut bytes, true)?;
        Ok((response, bytes.len()))
    }

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let of_length = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\napi-version: 1\r\n\r\nabcHTTP";
        let (response, left) = read(of_length).unwrap();
        assert_eq!((response.status, response.body.as_slice(), left), (404, &b"abc"[..], 4));
        assert!(response.head.ends_with("api-version: 1\r\n"), "{:?}", response.head);
        let in_chunks =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\nHTTP";
        let (response, left) = read(in_chunks).unwrap();
        assert_eq!((response.body.as_slice(), left), (&b"abc0123456789"[..], 4));
        let (response, _) = read(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!((response.status, response.body.len()), (204, 0));
    }

    #[test]
    fn an_incomplete_answer_is_an_error() {
        for (bytes, word) in [
            (&b""[..], "without an answer"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n", "without an answer"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", "fill"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab", "fill"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "integer"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "digit"),
            (b"nothing\r\n\r\n", "no status"),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            let shown = String::from_utf8_lossy(bytes);
            assert!(error.contains(word), "{shown:?} -> {error}");
        }
    }

    #[test]
    fn the_answer_to_head_has_no_body() {
        let mut bytes = &b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n"[..];
        assert_eq!(Response::read(&mut bytes, false).unwrap().status, 200);
    }

    #[test]
    fn the_last_answer_is_read_to_the_end_of_the_connection() {
        let mut bytes = &b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabc"[..];
        assert_eq!(Response::read_last(&mut bytes).unwrap().body, b"a");
        assert!(bytes.is_empty());
    }

    #[test]
    fn an_answer_is_read_even_if_the_request_could_not_be_sent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut connection = Connection::open(&socket, Duration::from_secs(10)).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        accepted.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").unwrap();
        drop(accepted);
        assert_eq!(connection.request("PUT", "/", b"x").unwrap().status, 503);
        assert!(connection.request("PUT", "/", b"x").is_err());
    }
}
