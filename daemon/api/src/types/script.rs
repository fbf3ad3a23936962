//! `PUT`, `GET /v1/tenants/{tenant}/scripts/{id}`: a script whose isolate is kept between its runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::policy::RequestedLimits;

/// A script: either `code`, or `mainModule` and `modules`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ScriptRequest {
    /// A single file: an ES module, or one expression that is a function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The name of the module to run first, which must be JavaScript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_module: Option<String>,
    /// At most 10,000, by name; a name has 1 to 4,096 bytes and no control characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules: Option<BTreeMap<String, Module>>,
    /// The script's `env`; at most 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Map<String, Value>>,
    /// For each limit, the lower of this value and the policy's applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RequestedLimits>,
    /// Must be null: scripts have no network. Anything else is refused, and counts as a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "()"))]
    pub global_outbound: Option<()>,
}

/// A module: its source as a string, with its kind given by the ending of its name (`.js`, `.mjs`,
/// `.json`, `.txt`), or an object that names the kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Module {
    ByEnding(String),
    Typed(TypedModule),
}

/// A module with its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum TypedModule {
    /// An ES module.
    Js(String),
    /// Any value but null.
    Json(Value),
    Text(String),
    /// Bytes, in base64.
    Data(String),
}

/// A registered script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Script {
    pub id: String,
    /// Counts from 1; rises each time the id gets other content.
    pub version: u64,
    pub bytes: u64,
    /// How many runs of the script have ended.
    pub runs: u64,
}
