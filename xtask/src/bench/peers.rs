//! Other ways to run a script in a place of its own. Each is measured where it is installed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::sample::private_mib;
use super::workerd::Workerd;
use crate::http::Connection;
use crate::{check, output};

/// The peers that are installed.
#[derive(Debug)]
pub(super) struct Peers {
    peers: Vec<Peer>,
    /// A container whose Node waits for its standard input to end.
    waiting: Option<Vec<String>>,
    /// What runc reads of its containers.
    bundles: TempDir,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    how: How,
}

#[derive(Debug)]
enum How {
    /// A command that is started for each run, and ends with it.
    Process(Vec<String>),
    Workerd(Connection, #[expect(dead_code, reason = "it ends when it is dropped")] Workerd),
    InNode(InNode),
}

pub(super) const RUNC_NODE: &str = "runc, Node";

/// Folders of the host that a container sees, so that it finds Node and its libraries.
const SHOWN: [&str; 3] = ["/usr", "/lib", "/lib64"];

/// Answers each line that it reads with the nanoseconds that a run took.
const LOOP: &str = "require('readline').createInterface({ input: process.stdin }).on('line', () => {
    const begun = process.hrtime.bigint();
    if (once() !== 42) process.exit(1);
    console.log(String(process.hrtime.bigint() - begun));
});";

const ISOLATED_VM: &str = "const { Isolate } = require('isolated-vm');
const once = () => {
    const isolate = new Isolate({ memoryLimit: 128 });
    const result = isolate.createContextSync().evalSync('(() => 42)()');
    isolate.dispose();
    return result;
};";

const QUICKJS: &str = "let once;
require('quickjs-emscripten').getQuickJS().then((QuickJS) => {
    once = () => {
        const context = QuickJS.newContext();
        const made = context.unwrapResult(context.evalCode('(() => 42)()'));
        const result = context.getNumber(made);
        made.dispose();
        context.dispose();
        return result;
    };
});";

impl Peer {
    pub(super) fn is_a_process_each(&self) -> bool {
        matches!(self.how, How::Process(_))
    }

    /// Times a run.
    pub(super) fn time(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        match &mut self.how {
            How::Process(command) => drop(output(&mut of(command)?)?),
            How::Workerd(connection, _) => drop(connection.request("GET", "/", b"")?),
            How::InNode(program) => return program.run(),
        }
        Ok(begun.elapsed())
    }
}

/// The command, without an environment.
fn of(command: &[String]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("a command has a program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).stderr(Stdio::null());
    Ok(command)
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn is_installed(program: &str) -> bool {
    PATH.split(':').any(|folder| Path::new(folder).join(program).exists())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

impl Peers {
    /// Starts those that are installed. `folder` is a folder in which `npm install` was run.
    pub(super) fn start(folder: Option<&Path>) -> Result<Self> {
        let mut peers = Self { peers: Vec::new(), waiting: None, bundles: tempfile::tempdir()? };
        let Some(folder) = folder else {
            println!("other ways to run a script were not measured: --peers FOLDER");
            return Ok(peers);
        };
        let mut missing = Vec::new();
        let mut add = |name, how: Option<How>| match how {
            Some(how) => peers.peers.push(Peer { name, how }),
            None => missing.push(name),
        };
        let node = is_installed("node");
        add("Node, a process for each run", node.then(|| How::Process(words("node -e 42"))));
        add("bubblewrap, Node", (node && is_installed("bwrap")).then(|| How::Process(bubblewrap())));
        let bundles = peers.bundles.path();
        let container = |is_installed: bool, name: &str, command: &[&str]| {
            is_installed.then(|| bundle(&bundles.join(name), command)).transpose()
        };
        let runc = is_installed("runc");
        let waiting = container(runc && node, "waiting", &["/usr/bin/node", "-e", "process.stdin.resume()"])?;
        add(RUNC_NODE, container(runc && node, "node", &["/usr/bin/node", "-e", "42"])?.map(How::Process));
        let busybox = Path::new(BUSYBOX).exists();
        add("runc, a static program", container(runc && busybox, "static", &[BUSYBOX, "true"])?.map(How::Process));
        add(
            "workerd's Worker Loader",
            match Workerd::start(folder) {
                Ok(workerd) => Some(How::Workerd(workerd.connect()?, workerd)),
                Err(error) => {
                    println!("workerd does not start: {error:#}");
                    None
                }
            },
        );
        let modules = folder.join("node_modules");
        let in_node = |module: &str, code: &str| {
            (node && modules.join(module).exists()).then(|| InNode::start(folder, code)).transpose()
        };
        add("isolated-vm, inside Node", in_node("isolated-vm", ISOLATED_VM)?.map(How::InNode));
        add("QuickJS (quickjs-emscripten), inside Node", in_node("quickjs-emscripten", QUICKJS)?.map(How::InNode));
        if !missing.is_empty() {
            println!("not installed, and so not measured: {}", missing.join("; "));
        }
        peers.waiting = waiting;
        Ok(peers)
    }

    pub(super) fn each(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut()
    }

    /// The private memory of a Node in a container, in MiB, if both are installed. While
    /// the peers inside Node run, the pages of Node's program are not counted, as those of a
    /// worker's are not.
    pub(super) fn runc_memory(&self) -> Result<Option<f64>> {
        let Some(command) = &self.waiting else { return Ok(None) };
        let mut child = of(command)?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let measured = settled_node(child.id());
        drop(child.stdin.take());
        child.wait()?;
        measured.map(Some)
    }
}

/// The private memory of the Node that a process has started, once it does not grow any more.
fn settled_node(parent: u32) -> Result<f64> {
    const STEADY: Duration = Duration::from_millis(300);
    let (begun, mut last) = (Instant::now(), (0.0, Instant::now()));
    while begun.elapsed() < Duration::from_secs(30) {
        if let Some(mib) = node_below(parent).and_then(|pid| private_mib(pid).ok()) {
            if (mib - last.0).abs() > 0.1 {
                last = (mib, Instant::now());
            } else if last.1.elapsed() > STEADY {
                return Ok(mib);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("Node did not settle in its container")
}

fn node_below(parent: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> =
        children.flat_map(|of_thread| words(&of_thread)).filter_map(|pid| pid.parse().ok()).collect();
    children.into_iter().find_map(|pid| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        if program.ends_with("node") { Some(u64::from(pid)) } else { node_below(pid) }
    })
}

fn bubblewrap() -> Vec<String> {
    let shown = SHOWN.iter().flat_map(|folder| words(&format!("--ro-bind {folder} {folder}"))).collect();
    let options = words("bwrap --unshare-all --die-with-parent --proc /proc --dev /dev");
    [options, shown, words("node -e 42")].concat()
}

const BUSYBOX: &str = "/usr/bin/busybox";

/// A command that runs a program in a container of runc's own kind, with the folders of the host.
fn bundle(folder: &Path, program: &[&str]) -> Result<Vec<String>> {
    fs::create_dir_all(folder.join("rootfs"))?;
    check(Command::new("runc").arg("spec").current_dir(folder).env("PATH", PATH))?;
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(program);
    let mounts = config["mounts"].as_array_mut().context("runc's specification has mounts")?;
    mounts.extend(
        SHOWN
            .iter()
            .map(|shown| json!({ "destination": shown, "source": shown, "type": "bind", "options": ["bind", "ro"] })),
    );
    fs::write(file, config.to_string())?;
    let name = format!("enisle-bench-{}-{}", std::process::id(), folder.file_name().unwrap_or_default().display());
    let folder: PathBuf = folder.into();
    Ok([words("runc run --bundle"), vec![folder.display().to_string(), name]].concat())
}

/// A program of Node that runs a script whenever it reads a line.
#[derive(Debug)]
struct InNode {
    process: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl InNode {
    fn start(folder: &Path, code: &str) -> Result<Self> {
        let mut command = of(&[words("node -e"), vec![format!("{code}\n{LOOP}")]].concat())?;
        let mut process = command
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting Node")?;
        let answers = BufReader::new(process.stdout.take().context("Node has a standard output")?);
        Ok(Self { ask: process.stdin.take(), process, answers })
    }

    fn run(&mut self) -> Result<Duration> {
        self.ask.as_mut().context("Node has a standard input")?.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "Node has ended");
        Ok(Duration::from_nanos(answer.trim().parse()?))
    }
}

impl Drop for InNode {
    fn drop(&mut self) {
        // Node ends at the end of its standard input.
        drop(self.ask.take());
        let _ = self.process.wait();
    }
}
