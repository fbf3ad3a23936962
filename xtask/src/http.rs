//! A client of the daemon's socket, small enough to measure with: one kept connection, one request at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One request; status and body.
    pub(crate) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("no status in {line:?}"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        if chunked {
            return Ok((status, self.chunks()?));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16)?;
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        let (status, body) = self.request("GET", path, b"")?;
        if status != 200 {
            bail!("GET {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// `load` for a tenant; the report of the run.
    pub(crate) fn load(&mut self, tenant: &str, body: &[u8]) -> Result<Value> {
        let (status, body) = self.request("POST", &format!("/v1/tenants/{tenant}/load"), body)?;
        let report: Value = serde_json::from_slice(&body)?;
        if status != 200 {
            bail!("load for {tenant}: {status} {report}");
        }
        Ok(report)
    }
}

/// A daemon of the release build, in a folder of its own, gone when dropped.
#[derive(Debug)]
pub(crate) struct Private {
    process: Child,
    folder: PathBuf,
}

impl Private {
    pub(crate) fn start(programs: &Path, config: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("enisle-xtask-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("enisled.toml"), config)?;
        let log = std::fs::File::create(folder.join("log"))?;
        let process = Command::new(programs.join("enisled"))
            .arg("--socket")
            .arg(folder.join("enisled.sock"))
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--config")
            .arg(folder.join("enisled.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting enisled")?;
        let mut private = Self { process, folder };
        let begun = Instant::now();
        while private.connect().and_then(|mut connection| connection.get("/v1/version")).is_err() {
            if private.process.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(30) {
                bail!(
                    "enisled did not start:\n{}",
                    std::fs::read_to_string(private.folder.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(private)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("enisled.sock")
    }

    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.socket())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
