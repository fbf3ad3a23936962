//! One machine: built, booted, and watched until it powers off.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::INIT;
use crate::{Files, Guest, Kernel, VmError, file_error};

const EMULATOR: &str = "qemu-system-x86_64";
/// The beginning of the emulator's command line (`setpriv(1)`, of util-linux). It makes the
/// emulator end with the process that started it, however that process ends.
const LEASH: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// How many lines of output an error shows.
const TAIL_LINES: usize = 100;

/// What the machine boots into.
#[derive(Debug, Clone)]
enum Root {
    /// Files in the machine's memory; the first process is `init.sh`.
    Files { files: Files, guest: Box<Guest>, command: String },
    /// A raw disk image with an init of its own. What the machine writes to the image is discarded
    /// at the end.
    Image(PathBuf),
}

/// A machine that has not started yet.
#[derive(Debug, Clone)]
pub struct Machine {
    kernel: Kernel,
    root: Root,
    processors: u32,
    memory_mib: u32,
    kernel_arguments: Vec<String>,
    time_limit: Duration,
}

/// The result of a machine that powered off by itself.
#[derive(Debug, Clone)]
pub struct Report {
    /// The command's exit status.
    pub status: i32,
    /// The command's output, from both of its streams.
    pub output: String,
    /// The output of the kernel and the first process.
    pub console: String,
    /// From power on to power off.
    pub elapsed: Duration,
}

impl Machine {
    /// A machine that holds `files` in its memory, is set up as `guest` says, and runs `command`
    /// with busybox's shell.
    #[must_use]
    pub fn with_files(kernel: &Kernel, files: &Files, guest: Guest, command: &str) -> Self {
        let root = Root::Files { files: files.clone(), guest: Box::new(guest), command: command.to_owned() };
        Self::new(kernel, root)
    }

    /// A machine that boots from a raw disk image. Its init must print on the second serial port
    /// (`/dev/ttyS1`), write an exit status to the third and power off.
    #[must_use]
    pub fn with_image(kernel: &Kernel, image: &Path) -> Self {
        Self::new(kernel, Root::Image(image.to_owned()))
    }

    fn new(kernel: &Kernel, root: Root) -> Self {
        Self {
            kernel: kernel.clone(),
            root,
            processors: 2,
            memory_mib: 2048,
            kernel_arguments: Vec::new(),
            time_limit: Duration::from_secs(120),
        }
    }

    #[must_use]
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds an argument, such as `nopku`, to the kernel's command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.kernel_arguments.push(argument.to_owned());
        self
    }

    /// How long the machine may take, from power on to power off.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Boots the machine, hands each line that its command prints to `on_line`, and waits until it
    /// has powered off.
    ///
    /// # Errors
    /// The machine could not be made or started, was not done within its time limit, or ended
    /// without an exit status.
    pub fn run(&self, mut on_line: impl FnMut(&str)) -> Result<Report, VmError> {
        let folder =
            tempfile::Builder::new().prefix("enisle-vm-").tempdir().map_err(file_error("a temporary folder"))?;
        let (console, status) = (folder.path().join("console"), folder.path().join("status"));
        let mut emulator = self.emulator(folder.path())?;
        emulator.arg("-serial").arg(format!("file:{}", console.display()));
        emulator.arg("-serial").arg("stdio");
        emulator.arg("-serial").arg(format!("file:{}", status.display()));
        let begun = Instant::now();
        let complaints = folder.path().join("complaints");
        emulator.stderr(File::create(&complaints).map_err(file_error(&complaints))?);
        let mut child = Running::start(&mut emulator)?;
        let mut output = String::new();
        let in_time = child.lines(begun + self.time_limit, |line| {
            on_line(line);
            output.push_str(line);
            output.push('\n');
        });
        drop(child);
        // A file that was never written is shown as empty.
        let text =
            |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let (console, complaints) = (text(&console), text(&complaints));
        let tail = || {
            let (output, console) = (last_lines(&output), last_lines(&console));
            format!("{output}\n--- the kernel:\n{console}\n--- the emulator:\n{complaints}")
        };
        if !in_time {
            return Err(VmError::TimeLimit { limit: self.time_limit, tail: tail() });
        }
        let status = fs::read_to_string(status).ok().and_then(|text| text.trim().parse().ok());
        let Some(status) = status else { return Err(VmError::NoStatus { tail: tail() }) };
        Ok(Report { status, output, console, elapsed: begun.elapsed() })
    }

    /// The emulator's command line, without the serial ports.
    fn emulator(&self, folder: &Path) -> Result<Command, VmError> {
        let mut append = "console=ttyS0 panic=-1 loglevel=4".to_owned();
        if !is_installed(EMULATOR) {
            return Err(VmError::Missing { what: EMULATOR.to_owned() });
        }
        File::open(&self.kernel.image).map_err(file_error(&self.kernel.image))?;
        let [leash, arguments @ ..] = LEASH;
        let mut emulator = Command::new(leash);
        emulator.args(arguments).arg(EMULATOR);
        emulator.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"]);
        emulator.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        emulator.arg("-smp").arg(self.processors.to_string());
        emulator.arg("-m").arg(format!("{}M", self.memory_mib));
        emulator.arg("-kernel").arg(&self.kernel.image);
        match &self.root {
            Root::Files { files, guest, command } => {
                let path = folder.join("files.cpio");
                let mut files = files.clone();
                files.text("/init", INIT);
                files.text("/vm/settings", &guest.settings());
                files.text("/vm/command", command);
                let mut archive = std::io::BufWriter::new(File::create(&path).map_err(file_error(&path))?);
                files.write_to(&mut archive)?;
                archive.flush().map_err(file_error(&path))?;
                emulator.arg("-initrd").arg(path);
            }
            Root::Image(image) => {
                let initrd = self.kernel.initrd.as_ref();
                let missing = || VmError::NoInitrd { release: self.kernel.release.clone() };
                emulator.arg("-initrd").arg(initrd.ok_or_else(missing)?);
                // A comma in a name would begin the next option, so it is doubled.
                let file = image.display().to_string().replace(',', ",,");
                emulator.arg("-drive").arg(format!("file={file},format=raw,if=virtio,snapshot=on"));
                append += " root=/dev/vda rw";
            }
        }
        for argument in &self.kernel_arguments {
            append.push(' ');
            append.push_str(argument);
        }
        emulator.arg("-append").arg(append);
        Ok(emulator)
    }
}

/// A machine that is on. It ends when this value is dropped.
struct Running(Child);

impl Running {
    fn start(emulator: &mut Command) -> Result<Self, VmError> {
        emulator.stdin(Stdio::null()).stdout(Stdio::piped());
        emulator.spawn().map(Self).map_err(VmError::Emulator)
    }

    /// Reads lines until the machine is off. Returns false if it was still on at `deadline`.
    fn lines(&mut self, deadline: Instant, mut on_line: impl FnMut(&str)) -> bool {
        let Some(stdout) = self.0.stdout.take() else { return true };
        let (sender, receiver) = mpsc::channel();
        // The thread ends with the emulator, at the latest when `self` is dropped.
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // Endless output must not extend a machine's time limit.
                Ok(_) if Instant::now() > deadline => return false,
                Ok(line) => on_line(&line),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // For a machine that has powered off, this only collects the process.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}
