//! The tenant channel: the supervisor sends runs, the tenant's thread reports on them.
//!
//! ```text
//!             ┌─── Done ───┐
//!   (admitted)│            │
//!        ┌────▼───┐   ┌────┴────┐
//!  ─────▶│warming │   │ running │── Log* ──▶
//!        └────┬───┘   └────▲────┘
//!             │ Ready      │ the supervisor sent Run, Input, Env and Code
//!        ┌────▼───┐        │
//!        │  idle  ├────────┘
//!        └────────┘
//! ```
//!
//! A run comes in parts, `Run`, `Input`, `Env` and `Code` in that order, each a frame of its own,
//! so that the supervisor stores once what several runs share. For a run that keeps its isolate,
//! the supervisor sends the code only when the thread requests it with `Needs`.
//!
//! The supervisor may send a run while the thread still warms an isolate (the run waits in the
//! socket), but never a second one before `Done`. Closing the channel retires the tenant: the
//! thread disposes of all that it has, and its last frame is `Left`.

mod session;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::Limits;
use crate::{MAX_ERROR_BYTES, MAX_ERROR_NAME_BYTES, MAX_LOG_LINES, Outcome};

pub use session::{ProtocolError, Session};

/// Names a run: 128 random bits, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(pub u128);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run_{:032x}", self.0)
    }
}

/// From the supervisor to a tenant's thread.
pub type ToTenant = ToTenantOf<String, Vec<u8>>;
pub type Code = CodeOf<String, Vec<u8>>;
pub type Module = ModuleOf<Vec<u8>>;
pub type Input = InputOf<String>;
pub type Env = EnvOf<String>;

/// [`ToTenant`] with texts and bodies of any type that serializes as strings and bytes do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToTenantOf<Text, Body> {
    Run(Run),
    Input(InputOf<Text>),
    Env(EnvOf<Text>),
    Code(CodeOf<Text, Body>),
    /// Dispose of the isolate that is kept under this number.
    Forget(u64),
}

/// One run of one script: the part that is small and differs from run to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    pub id: RunId,
    /// The export that is the entry point.
    pub entrypoint: String,
    /// The method to call; `None` if the entry point is a function.
    pub method: Option<String>,
    /// The lower of policy and request, for each limit.
    pub limits: Limits,
    /// Whether `eval` and `new Function` work.
    pub allow_eval: bool,
    /// After the run the isolate is kept for the next run with this number, if memory allows.
    pub keep: Option<u64>,
}

/// What a run is called with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InputOf<Text> {
    /// JSON: an array.
    pub args: Text,
    /// JSON, passed as `ctx.props`.
    pub props: Text,
}

/// What a script is given besides its arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnvOf<Text> {
    pub json: Text,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum CodeOf<Text, Body> {
    /// One file: an ES module, or one expression that is a function.
    Short(Text),
    Modules {
        main: String,
        modules: Vec<ModuleOf<Body>>,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModuleOf<Body> {
    pub name: String,
    pub kind: ModuleKind,
    /// Source, text, JSON or bytes, as `kind` says.
    pub body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleKind {
    Js,
    Json,
    Text,
    Data,
}

/// From a tenant's thread to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromTenant {
    /// An isolate is warm: the next run starts at once. Carries the CPU time that the thread used
    /// since the end of the last run, to dispose of what was left and to make the isolate. In the
    /// first `Ready` that time is the cost of starting the thread. The tenant that takes the slot
    /// is charged for it.
    Ready {
        cpu_us: u64,
    },
    /// The thread keeps no isolate of the script that this run could use. It requests the script's
    /// code.
    Needs(RunId),
    Log(#[serde(deserialize_with = "few_lines")] Vec<LogLine>),
    Done(Box<Done>),
    /// V8 cannot continue and ends the process. This is the thread's last frame. `certain` means
    /// that the run was over its own heap limit and is the cause; otherwise a neighbour may have
    /// taken the memory.
    Aborting {
        id: RunId,
        certain: bool,
    },
    /// The tenant has moved out. Carries the CPU time that its thread used since it last reported.
    Left {
        cpu_us: u64,
    },
}

impl FromTenant {
    /// The first byte of an encoded `Log` or `Done`, by which the receiver identifies a large frame
    /// before reading it. No other frame may be large.
    pub const LOG_TAG: u8 = 2;
    pub const DONE_TAG: u8 = 3;
}

/// Decodes at most [`MAX_LOG_LINES`] lines, and refuses a frame with more. An empty line is a few
/// bytes in a frame, and many times that in memory.
fn few_lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LogLine>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<LogLine>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {MAX_LOG_LINES} lines")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Result<Vec<LogLine>, A::Error> {
            let mut read = Vec::new();
            while let Some(line) = lines.next_element()? {
                if read.len() == MAX_LOG_LINES {
                    return Err(serde::de::Error::invalid_length(read.len() + 1, &self));
                }
                read.push(line);
            }
            Ok(read)
        }
    }

    deserializer.deserialize_seq(Few)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since the start of the run.
    pub t_ms: u32,
    pub level: Level,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "LogLevel"))]
pub enum Level {
    Debug,
    Log,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    pub id: RunId,
    pub outcome: Outcome,
    /// JSON, with [`Outcome::Ok`].
    pub result: Option<String>,
    pub error: Option<ScriptError>,
    /// Whether log lines were dropped.
    pub truncated: bool,
    pub usage: Usage,
    pub advice: Advice,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptError {
    pub name: String,
    pub message: String,
    /// Positions are in the tenant's own files.
    pub stack: Option<String>,
}

impl ScriptError {
    /// Cuts an error to the size that is passed on.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let cut = |text: &mut String, most| text.truncate(text.floor_char_boundary(most));
        cut(&mut self.name, MAX_ERROR_NAME_BYTES);
        cut(&mut self.message, MAX_ERROR_BYTES);
        self.stack.iter_mut().for_each(|stack| cut(stack, MAX_ERROR_BYTES));
        self
    }

    fn is_bounded(&self) -> bool {
        let stack = self.stack.as_ref().map_or(0, String::len);
        self.name.len() <= MAX_ERROR_NAME_BYTES && self.message.len().max(stack) <= MAX_ERROR_BYTES
    }
}

/// What a run used, as claimed by the worker: metering, never evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the thread since its last report. It includes reading the run and, after a long
    /// run, disposing of what it left.
    pub cpu_us: u64,
    pub wall_us: u64,
    /// Microseconds from the arrival of the run to the call of the entry point.
    pub startup_us: u64,
    pub peak_heap_bytes: u64,
}

/// What a script attempted in vain, as claimed by the worker: it counts a little, and never much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// Imports of modules that do not exist.
    pub imports: u32,
    /// Code from strings, where that is not allowed.
    pub code: u32,
    /// Timers over the limit.
    pub timers: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn done(id: u128) -> FromTenant {
        FromTenant::Done(Box::new(Done {
            id: RunId(id),
            outcome: Outcome::Ok,
            result: None,
            error: None,
            truncated: false,
            usage: Usage::default(),
            advice: Advice::default(),
        }))
    }

    pub(super) fn line(text: &str) -> LogLine {
        LogLine { t_ms: 0, level: Level::Log, text: text.to_owned() }
    }

    #[test]
    fn the_end_of_a_run_is_known_by_its_first_byte() {
        let bytes = crate::encode(&done(1), 1000).unwrap_or_default();
        assert_eq!(bytes.get(crate::frame::HEADER_BYTES), Some(&FromTenant::DONE_TAG));
    }

    #[test]
    fn a_frame_with_more_lines_than_a_worker_sends_at_once_does_not_decode() {
        for (lines, fits) in [(MAX_LOG_LINES, true), (MAX_LOG_LINES + 1, false)] {
            let frame = crate::encode(&FromTenant::Log(vec![line(""); lines]), 1 << 20);
            let read = frame.and_then(|frame| crate::read_frame::<FromTenant>(&mut frame.as_slice(), 1 << 20));
            assert_eq!(read.is_ok(), fits);
        }
    }
}
