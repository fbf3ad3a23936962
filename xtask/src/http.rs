//! A private daemon for a demonstration or a measurement, and requests to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use enisle_api::client::blocking::{self, Response};
use serde_json::Value;

/// The longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A persistent connection.
#[derive(Debug)]
pub(crate) struct Connection(blocking::Connection);

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let opened = blocking::Connection::open(socket, PATIENCE);
        Ok(Self(opened.with_context(|| format!("connecting to {}", socket.display()))?))
    }

    /// Makes one request, and returns its status and body.
    pub(crate) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let Response { status, body, .. } = self.0.request(method, path, body)?;
        Ok((status, body))
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        let (status, body) = self.request("GET", path, b"")?;
        if status != 200 {
            bail!("GET {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Calls `load` for a tenant, and returns the report of the run.
    pub(crate) fn load(&mut self, tenant: &str, body: &[u8]) -> Result<Value> {
        let (status, body) = self.request("POST", &format!("/v1/tenants/{tenant}/load"), body)?;
        let report: Value = serde_json::from_slice(&body)?;
        if status != 200 {
            bail!("load for {tenant}: {status} {report}");
        }
        Ok(report)
    }
}

/// A daemon of the release build, in a folder of its own. Dropping this value ends the daemon and
/// removes the folder.
#[derive(Debug)]
pub(crate) struct Private {
    process: Child,
    folder: PathBuf,
}

impl Private {
    pub(crate) fn start(programs: &Path, config: &str) -> Result<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("enisle-xtask-{}-{number}", std::process::id()));
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
