//! The engines that a program runs in: workers of this build, each with another mode of V8, and
//! Node.js.
//!
//! A mode with flags runs an altered copy of the worker (`enisle_tests::altered`). The copy has
//! V8's own flags for fuzzing in place of [`UNTIMED_FLAGS`], which only decide when garbage is
//! collected. No mode uses `--fuzzing`: that flag makes wrong uses of V8's natives syntax harmless,
//! and no program here uses that syntax.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use enisle_hardening::fault::Kind as FaultKind;
use enisle_hardening::{Layer, LayerSet, Posture};
use enisle_tests::rig::{End, Rig, Workshop};
use enisle_tests::{UNTIMED_FLAGS, altered, is_alive, wait};
use enisle_wire::control::OUT_OF_MEMORY_EXIT;
use enisle_wire::limits::Limits;
use enisle_wire::tenant::{Code, Done, Env, Input, Run, RunId};
use enisle_wire::{FrameError, Outcome as RunOutcome};
use nix::sys::wait::WaitStatus;
use serde_json::Value;
use tempfile::TempPath;

/// A mode of V8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub name: &'static str,
    /// The flags in place of [`UNTIMED_FLAGS`]. If they are empty, the worker keeps its own.
    pub flags: &'static str,
    /// Without a compiler, as for a sealed tenant.
    pub sealed: bool,
}

/// Keeps the prelude's functions that write the trace out of the optimising compilers. In modes
/// that compile early, programs would otherwise take ten times as long.
pub(super) const SPARED: &str = " --turbo-filter=-zz* --maglev-filter=-zz*";

const fn mode(name: &'static str, flags: &'static str) -> Mode {
    Mode { name, flags, sealed: false }
}

/// The modes that run every program: production's two kinds of worker, and one that compiles early.
pub const ALWAYS: [Mode; 3] = [
    mode("production", ""),
    Mode { sealed: true, ..mode("sealed", "") },
    mode("early", "--jit-fuzzing --no-lazy-feedback-allocation"),
];

/// Each program also runs in one of these modes, in turn.
pub const IN_TURN: [Mode; 6] = [
    mode("sparkplug", "--always-sparkplug --stress-lazy-source-positions --no-maglev --no-turbofan"),
    mode("maglev", "--jit-fuzzing --maglev-as-top-tier --stress-maglev --no-lazy-feedback-allocation"),
    mode("deoptimised", "--jit-fuzzing --deopt-every-n-times=31 --no-lazy-feedback-allocation"),
    mode("moved", "--jit-fuzzing --stress-compaction --stress-scavenge=40 --stress-flush-code"),
    mode("inlined", "--jit-fuzzing --stress-inline --assert-types --maglev-assert-types --turbo-verify"),
    mode("scheduled", "--jit-fuzzing --turbo-stress-instruction-scheduling --always-osr"),
];

/// The outcome of a program in one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The program returned this result.
    Computed(String),
    /// The program does not compile, or an exception was not caught. This is the error's name.
    Threw(String),
    /// The result depends on something that engines may choose: how deep the stack is, or how much
    /// memory is left.
    InDoubt,
    /// A limit ended the program, its process ran out of memory, or there was no answer in time.
    Limited(String),
    /// The process or its thread ended, or the run had an outcome that no program may have.
    Died(String),
}

/// Limits of a run. They are enough, in any mode, for any program here that ends by itself.
const LIMITS: Limits = Limits { cpu_ms: 200, wall_ms: 3_000, memory_mb: 64, ..Limits::DEFAULT };
/// Longer than the limits allow. The rig has no supervisor, so nothing else ends a run in a builtin
/// that V8 does not interrupt.
const PATIENCE: Duration = Duration::from_secs(4);
/// A worker is replaced after this many programs.
const PROGRAMS_OF_A_WORKER: u32 = 3_000;

/// Workers of one mode, one after the other.
#[derive(Debug)]
pub struct Engine {
    pub mode: Mode,
    workshop: Workshop,
    layers: LayerSet,
    worker: Option<Rig>,
    programs: u32,
    pub v8: String,
    _altered: Option<TempPath>,
}

impl Engine {
    /// An engine of this mode, whose workers execute this program.
    ///
    /// # Errors
    /// The worker does not start.
    pub fn new(mode: Mode, program: &Path) -> io::Result<Self> {
        let posture = Posture::probe().layers();
        // If the kernel lacks the layer for sealed workers, V8 gets the flag directly.
        let told = match mode.flags {
            _ if mode.sealed && !posture.has(Layer::DenyWriteExecute) => "--jitless".to_owned(),
            "" => String::new(),
            flags => format!("{flags}{SPARED}"),
        };
        let altered = (!told.is_empty()).then(|| altered(program, &[(UNTIMED_FLAGS, &told)]));
        let workshop = Workshop::open(altered.as_deref().unwrap_or(program), posture.unsealed())?;
        let layers = if mode.sealed { posture } else { posture.unsealed() };
        Ok(Self { mode, workshop, layers, worker: None, programs: 0, v8: String::new(), _altered: altered })
    }

    /// Replaces the worker.
    ///
    /// # Errors
    /// The new worker does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        self.stop();
        let mut rig = self.workshop.start(self.layers, 1)?;
        rig.admit()?;
        rig.tenants()[0].set_patience(PATIENCE)?;
        self.v8.clone_from(&rig.v8);
        (self.worker, self.programs) = (Some(rig), 0);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(rig) = self.worker.take() {
            rig.kill();
            rig.end();
        }
    }

    /// Sends a program, which is a function expression.
    ///
    /// # Errors
    /// No worker starts, or it does not take the program.
    pub fn send(&mut self, program: &str) -> io::Result<()> {
        if self.worker.is_none() || self.programs >= PROGRAMS_OF_A_WORKER {
            self.restart()?;
        }
        self.programs += 1;
        let run = Run {
            id: RunId(0),
            entrypoint: "default".to_owned(),
            method: None,
            limits: LIMITS,
            allow_eval: true,
            keep: None,
        };
        let input = Input { args: "[]".to_owned(), props: "{}".to_owned() };
        let rig = self.worker.as_mut().expect("it was started");
        rig.tenants()[0].send_parts(run, input, Env { json: "{}".to_owned() }, Code::Short(program.to_owned()))
    }

    /// Waits until the program that was sent ends.
    pub fn outcome(&mut self) -> Outcome {
        let Some(rig) = self.worker.as_mut() else { return Outcome::Died("no worker".to_owned()) };
        match rig.tenants()[0].done() {
            Ok(done) => of_done(*done),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stop();
                Outcome::Limited("no answer in time".to_owned())
            }
            Err(_) => self.death(),
        }
    }

    /// Says how the process ended whose channel was closed, and removes its worker.
    fn death(&mut self) -> Outcome {
        let Some(rig) = self.worker.take() else { return Outcome::Died("no worker".to_owned()) };
        if !wait::within(Duration::from_secs(2), || !is_alive(rig.pid())) {
            rig.kill();
            rig.end();
            return Outcome::Died("its thread ended, and the process did not".to_owned());
        }
        of_end(&rig.end())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn of_done(done: Done) -> Outcome {
    match (done.outcome, done.result, done.error) {
        (RunOutcome::Ok, Some(result), _) => computed(result),
        (RunOutcome::Exception, _, Some(error)) if error.message.contains("call stack") => Outcome::InDoubt,
        (RunOutcome::Exception, _, Some(error)) => Outcome::Threw(error.name),
        (
            outcome @ (RunOutcome::ExceededCpu
            | RunOutcome::ExceededWall
            | RunOutcome::ExceededMemory
            | RunOutcome::ExceededOutput),
            ..,
        ) => Outcome::Limited(outcome.to_string()),
        (outcome, _, error) => Outcome::Died(format!("{outcome}: {error:?}")),
    }
}

/// Results are compared as text and not parsed, because they may contain escapes of lone
/// surrogates, which `serde_json` refuses. The program's epilogue puts `doubt` first.
fn computed(result: String) -> Outcome {
    let is_in_doubt = result.starts_with("{\"doubt\":\"") && !result.starts_with("{\"doubt\":\"\",");
    if is_in_doubt { Outcome::InDoubt } else { Outcome::Computed(result) }
}

fn of_end(end: &End) -> Outcome {
    match (end.fault.map(|fault| fault.kind), end.status) {
        (Some(FaultKind::OutOfMemory), _) | (_, Some(WaitStatus::Exited(_, OUT_OF_MEMORY_EXIT))) => {
            Outcome::Limited("its process ran out of memory".to_owned())
        }
        (Some(fault), status) => Outcome::Died(format!("{fault:?}, {status:?}")),
        (None, status) => Outcome::Died(format!("{status:?}")),
    }
}

/// Node.js, whose V8 is another version.
#[derive(Debug)]
pub struct Node {
    pub name: &'static str,
    arguments: &'static [&'static str],
    process: Option<(Child, ChildStdin, mpsc::Receiver<String>)>,
}

const NODE: &str = include_str!("js/node.js");

impl Node {
    /// Both modes of the Node.js that is installed, if there is one, and its version.
    pub fn both() -> Option<([Self; 2], String)> {
        let version = Command::new("node").args(["-p", "process.versions.v8"]).output().ok()?;
        let node = |name, arguments| Self { name, arguments, process: None };
        let both = [node("node", &[]), node("node --jitless", &["--jitless"])];
        version.status.success().then(|| (both, String::from_utf8_lossy(&version.stdout).trim().to_owned()))
    }

    fn start(&self) -> io::Result<(Child, ChildStdin, mpsc::Receiver<String>)> {
        let mut command = Command::new("node");
        command.args(self.arguments).args(["--no-warnings", "-e", NODE]).env("TZ", "UTC").env_remove("NODE_OPTIONS");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let input = child.stdin.take().ok_or_else(|| io::Error::other("no input"))?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
        let (send, lines) = mpsc::channel();
        // This thread ends with the process.
        std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
        Ok((child, input, lines))
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// Node.js does not start.
    pub fn run(&mut self, program: &str) -> io::Result<Outcome> {
        let (mut child, mut input, lines) = match self.process.take() {
            Some(process) => process,
            None => self.start()?,
        };
        let sent = writeln!(input, "{}", Value::String(program.to_owned())).and_then(|()| input.flush());
        let answer = sent.ok().and_then(|()| lines.recv_timeout(PATIENCE).ok());
        let Some(answer) = answer.and_then(|line| serde_json::from_str::<Value>(&line).ok()) else {
            let died = child.try_wait()?;
            child.kill()?;
            child.wait()?;
            return Ok(died.map_or_else(
                || Outcome::Limited("no answer in time".to_owned()),
                |status| Outcome::Died(status.to_string()),
            ));
        };
        self.process = Some((child, input, lines));
        Ok(match (answer["result"].as_str(), answer["threw"].as_str()) {
            (_, Some("RangeError")) => Outcome::InDoubt,
            (_, Some(name)) => Outcome::Threw(name.to_owned()),
            (Some(result), None) => computed(result.to_owned()),
            (None, None) => Outcome::Limited("no end in time".to_owned()),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((mut child, ..)) = self.process.take() {
            // The process may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
