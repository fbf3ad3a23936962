//! workerd's Worker Loader under the same load, for comparison. `env.LOADER.get(null, …)` makes a
//! new isolate for each request.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http::Connection;

const CONFIG: &str = r#"using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "main.js", esModule = embed "main.js")],
    compatibilityDate = "2026-01-01",
    compatibilityFlags = ["experimental"],
    bindings = [(name = "LOADER", workerLoader = ())],
  ))],
  sockets = [(name = "http", address = "unix:SOCKET", http = (), service = "main")],
);
"#;

const MAIN: &str = r#"const script = SCRIPT;
export default {
  async fetch(request, env) {
    const code = { compatibilityDate: "2026-01-01", mainModule: "main.js", modules: { "main.js": script }, globalOutbound: null };
    return env.LOADER.get(null, () => code).getEntrypoint().fetch("http://loaded/");
  },
};
"#;

/// The script that the loaded worker runs. This script answers a request, and ours a call; neither
/// does anything else.
const LOADED: &str = "export default { fetch() { return new Response('42') } }";

/// A workerd that serves on a Unix socket. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Workerd {
    process: Child,
    folder: PathBuf,
}

impl Workerd {
    /// Starts the workerd of an npm folder.
    pub(crate) fn start(peers: &Path) -> Result<Self> {
        let program = ["node_modules/@cloudflare/workerd-linux-64/bin/workerd", "node_modules/workerd/bin/workerd"]
            .iter()
            .map(|name| peers.join(name))
            .find(|path| path.exists())
            .with_context(|| format!("{} has no workerd; run `npm install workerd` there", peers.display()))?;
        let folder = std::env::temp_dir().join(format!("enisle-workerd-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let socket = folder.join("s");
        fs::write(folder.join("main.js"), MAIN.replace("SCRIPT", &serde_json::to_string(LOADED)?))?;
        fs::write(folder.join("config.capnp"), CONFIG.replace("SOCKET", &socket.to_string_lossy()))?;
        let process = Command::new(program)
            .args(["serve", "--experimental"])
            .arg(folder.join("config.capnp"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log"))?)
            .spawn()
            .context("starting workerd")?;
        let mut workerd = Self { process, folder };
        let begun = Instant::now();
        loop {
            if let Ok((200, body)) = workerd.connect().and_then(|mut connection| connection.request("GET", "/", b"")) {
                if body != b"42" {
                    bail!("workerd answers {:?}", String::from_utf8_lossy(&body));
                }
                return Ok(workerd);
            }
            if workerd.process.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(30) {
                bail!("workerd did not start:\n{}", fs::read_to_string(workerd.folder.join("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.folder.join("s"))
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
