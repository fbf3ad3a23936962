//! `POST /v1/tenants/{tenant}/load`, `POST …/scripts/{id}/run`: a run, and its result.

use enisle_cordon::Level;
use enisle_wire::Outcome;
use enisle_wire::tenant::Level as LogLevel;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::policy::RequestedLimits;
use super::script::ScriptRequest;

/// A script that runs once, in a fresh isolate, and is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct LoadRequest {
    #[serde(flatten)]
    pub script: ScriptRequest,
    #[serde(flatten)]
    pub call: Call,
}

/// A run of a registered script. An empty body means `{}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct RunRequest {
    #[serde(flatten)]
    pub call: Call,
    /// For each limit the lowest value applies: this one, the script's or the policy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RequestedLimits>,
}

/// What is called, and with which arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Call {
    /// The export that is the entry point; `default` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// The method of the entry point. An entry point that is a function needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// At most 8 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<Value>>,
    /// Passed to the script as `ctx.props`; at most 8 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub props: Option<Map<String, Value>>,
}

/// The result of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Answer {
    /// The run's id: `run_` and 32 hexadecimal digits.
    pub id: String,
    pub outcome: Outcome,
    /// What the entry point returned, byte for byte; left out if it did not return.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Value"))]
    pub result: Option<Box<RawValue>>,
    /// Left out if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ScriptError>,
    /// What the script wrote to its console.
    pub logs: Vec<LogLine>,
    /// Whether log lines may be missing: because of `limits.logBytes` or `limits.logLines`, because
    /// memory was short, or because the run did not end by itself.
    pub truncated: bool,
    pub usage: RunUsage,
    /// The cordon level at which the run took place.
    pub cordon: Level,
}

/// Reads a result that is present, even if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ScriptError {
    pub name: String,
    pub message: String,
    /// Positions in the script's own modules; left out if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
}

/// A line that a script wrote to its console.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// Milliseconds since the run began, by the script's own clock.
    pub t_ms: u32,
    pub level: LogLevel,
    pub text: String,
}

/// What a run used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunUsage {
    /// Processor time.
    pub cpu_ms: Millis,
    pub wall_ms: Millis,
    /// Microseconds from the run's arrival in its worker to the call of the entry point. Rounded
    /// down to whole milliseconds, except for operators.
    pub startup_us: u64,
    /// Microseconds that the run waited for a home. Rounded down to whole milliseconds, except for
    /// operators.
    pub queued_us: u64,
    /// Rounded up to whole mebibytes, except for operators.
    pub peak_heap_bytes: u64,
}

/// Milliseconds. Operators get three decimals. Other peers get whole milliseconds, because a finer
/// figure would be a clock.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Millis {
    Whole(u64),
    Exact(f64),
}
