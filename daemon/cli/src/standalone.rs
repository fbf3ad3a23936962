//! `--standalone`: a private daemon for one call, which ends with the call.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enisle_api::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A private daemon, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Private {
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Private {
    pub(crate) async fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("enisled");
        let folder = tempfile::Builder::new().prefix("enisle-").tempdir().map_err(|error| error.to_string())?;
        let daemon = Command::new(&program)
            .arg("--socket")
            .arg(folder.path().join("enisled.sock"))
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .env("ENISLE_LOG", std::env::var("ENISLE_LOG").unwrap_or_else(|_| "error".to_owned()))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let mut private = Self { daemon, folder };
        private.wait_until_ready().await?;
        Ok(private)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.folder.path().join("enisled.sock"), None)
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < START_TIMEOUT {
            if self.client().get("/v1/version").await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.daemon.try_wait() {
                return Err(format!("the private daemon did not start ({status}); its messages are above"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("the private daemon was not ready after {} s", START_TIMEOUT.as_secs()))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.daemon.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.daemon.wait();
    }
}
