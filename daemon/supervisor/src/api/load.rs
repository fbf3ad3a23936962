//! `POST /v1/tenants/{tenant}/load`: a script runs once, in a fresh isolate, and is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use base64::Engine;
use enisle_cordon::{Seen, Signal};
use enisle_wire::tenant::{Code, LogLine, Module, ModuleKind, Run, RunId, ScriptError};
use enisle_wire::{MAX_ARGS_BYTES, MAX_ENV_BYTES, MAX_MODULES, MAX_NAME_BYTES, Outcome};
use http_body_util::BodyExt;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::peer::Peer;
use super::problem::Problem;
use super::tenants::{micros_as_ms, too_many};
use crate::config::Api;
use crate::daemon::{Daemon, InFlight, Report};
use crate::job::Job;
use crate::policy::{Policy, TenantName, Wish};
use crate::tenant::Tenant;

/// What is said of a network that nothing grants.
const NO_NETWORK: &str = "globalOutbound can only be null: scripts have no network";
/// 64 MiB of modules as JSON: escapes lengthen source somewhat, base64 lengthens data by a third.
pub(super) const MAX_BODY_BYTES: usize = 96 << 20;
/// Parsing more than this is done off the threads that serve connections.
pub(super) const PARSE_INLINE_BYTES: usize = 256 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LoadRequest {
    code: Option<String>,
    main_module: Option<String>,
    modules: Option<Modules>,
    env: Option<Box<RawValue>>,
    entrypoint: Option<String>,
    method: Option<String>,
    args: Option<Box<RawValue>>,
    props: Option<Box<RawValue>>,
    #[serde(default)]
    limits: Wish,
    #[serde(default)]
    global_outbound: Option<serde_json::Value>,
}

/// Modules by name; a name that stands twice is an error, not whichever came last.
#[derive(Debug)]
pub(super) struct Modules(pub(super) BTreeMap<String, ModuleSpec>);

impl<'de> Deserialize<'de> for Modules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> Visitor<'de> for ByName {
            type Value = Modules;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("modules: an object, names to modules")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Modules, A::Error> {
                let mut modules = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if modules.contains_key(&name) {
                        return Err(serde::de::Error::custom(format_args!("module {name:?} stands twice")));
                    }
                    modules.insert(name, map.next_value()?);
                }
                Ok(Modules(modules))
            }
        }

        deserializer.deserialize_map(ByName)
    }
}

#[derive(Debug)]
pub(super) enum ModuleSpec {
    ByName(String),
    Kind(ModuleByKind),
}

/// By hand, because serde's untagged enums copy everything that they look at, and cannot keep JSON as it was written.
impl<'de> Deserialize<'de> for ModuleSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spec;

        impl<'de> Visitor<'de> for Spec {
            type Value = ModuleSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a module: a string, or an object with exactly one of js, json, text, data")
            }

            fn visit_str<E>(self, source: &str) -> Result<ModuleSpec, E> {
                Ok(ModuleSpec::ByName(source.to_owned()))
            }

            fn visit_string<E>(self, source: String) -> Result<ModuleSpec, E> {
                Ok(ModuleSpec::ByName(source))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModuleSpec, A::Error> {
                ModuleByKind::deserialize(MapAccessDeserializer::new(map)).map(ModuleSpec::Kind)
            }
        }

        deserializer.deserialize_any(Spec)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ModuleByKind {
    js: Option<String>,
    json: Option<Box<RawValue>>,
    text: Option<String>,
    /// Base64.
    data: Option<String>,
}

/// A whole body, within its cap.
pub(super) struct RawBody(pub(super) Bytes);

/// Reads a body that has to be whole within the configured time, and no larger than `cap`.
pub(super) async fn read_body(body: Body, cap: usize, api: &Api) -> Result<RawBody, Problem> {
    match tokio::time::timeout(Duration::from_secs(api.read_secs), collect(body, cap)).await {
        Ok(collected) => collected,
        Err(_) => Err(Problem::too_slow(format!("the body did not arrive within {} s", api.read_secs))),
    }
}

async fn collect(mut body: Body, cap: usize) -> Result<RawBody, Problem> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request(format!("the body ended early: {error}")))?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if bytes.len() + data.len() > cap {
            drop(bytes);
            discard(body).await;
            return Err(Problem::too_large(format!("the body is larger than {cap} bytes")));
        }
        bytes.extend_from_slice(data);
    }
    Ok(RawBody(bytes.into()))
}

/// Reads on without keeping anything, within reason: a connection that is closed with unread bytes is reset, and a client
/// whose connection is reset never reads why.
async fn discard(mut body: Body) {
    let mut left = MAX_BODY_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

pub(crate) async fn load(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Answer>, Problem> {
    let (admitted, body) = admit_with(body, &name, peer, &daemon).await?;
    let Admitted { tenant, in_flight, _memory } = admitted;
    let RawBody(bytes) = read_body(body, MAX_BODY_BYTES, &daemon.config.api).await?;
    let (id, policy) = (daemon.next_run_id(), tenant.policy());
    let job = if bytes.len() <= PARSE_INLINE_BYTES {
        parse(&bytes, id, &policy)
    } else {
        let parsed = tokio::task::spawn_blocking(move || parse(&bytes, id, &policy)).await;
        parsed.map_err(|_| Problem::internal("parsing was interrupted"))?
    };
    let job = job.map_err(|problem| if problem.is(NO_NETWORK) { no_network(&daemon, &tenant) } else { problem })?;
    let report = daemon.run(&in_flight, job).await?;
    Ok(Json(answer(report)))
}

/// A network that the policy does not grant was asked for.
pub(super) fn no_network(daemon: &Daemon, tenant: &Arc<Tenant>) -> Problem {
    daemon.warden.saw(tenant, &[Seen::certain(Signal::DeniedEgress)]);
    Problem::bad_request(NO_NETWORK)
}

/// What a load holds from before its body is read until its run has ended.
pub(super) struct Admitted {
    pub(super) tenant: Arc<Tenant>,
    pub(super) in_flight: InFlight,
    /// A body lives on as the frame that is sent, and perhaps sent again.
    _memory: Option<OwnedSemaphorePermit>,
}

async fn admit(name: &str, announced: Option<u64>, peer: Peer, daemon: &Arc<Daemon>) -> Result<Admitted, Problem> {
    let name: TenantName = name.parse()?;
    peer.act_for(&name, daemon)?;
    let tenant = daemon.tenant(&name).ok_or_else(too_many)?;
    let in_flight = daemon.begin(&tenant)?;
    let _memory = reserve(announced, daemon).await?;
    Ok(Admitted { tenant, in_flight, _memory })
}

/// Admits a run before its body is read; the body of one that is refused is read all the same, and forgotten.
pub(super) async fn admit_with(
    body: Body,
    name: &str,
    peer: Peer,
    daemon: &Arc<Daemon>,
) -> Result<(Admitted, Body), Problem> {
    let announced = hyper::body::Body::size_hint(&body).upper();
    match admit(name, announced, peer, daemon).await {
        Ok(admitted) => Ok((admitted, body)),
        Err(problem) => {
            let _ = tokio::time::timeout(Duration::from_secs(daemon.config.api.read_secs), discard(body)).await;
            Err(problem)
        }
    }
}

/// Room for a body and for the run that is made of it. Small ones are not counted: the number of connections bounds them.
pub(super) async fn reserve(announced: Option<u64>, daemon: &Daemon) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let announced = announced.unwrap_or(u64::MAX).min(MAX_BODY_BYTES as u64);
    if announced <= PARSE_INLINE_BYTES as u64 {
        return Ok(None);
    }
    let mb = u32::try_from(announced.div_ceil(1 << 20)).unwrap_or(u32::MAX).saturating_mul(2);
    let waited = tokio::time::timeout(
        Duration::from_secs(daemon.config.api.read_secs),
        Arc::clone(&daemon.body_mb).acquire_many_owned(mb),
    );
    match waited.await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(Problem::unavailable("too many large requests at one time (api.body_mb)")),
    }
}

/// A JSON object. (Serde would take an array for a struct as well, its fields in order.)
pub(super) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(error.to_string())),
        Some(_) => Err(Problem::bad_request("the body has to be a JSON object")),
    }
}

/// From bytes to a job that can be sent, or to what is wrong with them.
fn parse(bytes: &[u8], id: RunId, policy: &Policy) -> Result<Job, Problem> {
    let request: LoadRequest = object(bytes)?;
    request.limits.check().map_err(|error| Problem::bad_request(format!("limits.{error}")))?;
    if request.global_outbound.is_some() {
        return Err(Problem::bad_request(NO_NETWORK));
    }
    let code =
        code(request.code, request.main_module, request.modules.map(|modules| modules.0), policy, &request.limits)?;
    let limits = request.limits.under(&policy.limits);
    let run = Run {
        id,
        code,
        entrypoint: name("entrypoint", request.entrypoint.as_deref().unwrap_or("default"))?,
        method: request.method.map(|method| name("method", &method)).transpose()?,
        args: json("args", request.args, "[]", '[', "an array", MAX_ARGS_BYTES)?,
        env: json("env", request.env, "{}", '{', "an object", MAX_ENV_BYTES)?,
        props: json("props", request.props, "{}", '{', "an object", MAX_ARGS_BYTES)?,
        limits,
        allow_eval: policy.allow_eval,
        keep: None,
    };
    Job::new(run).map_err(|error| Problem::too_large(error.to_string()))
}

pub(super) fn name(what: &str, name: &str) -> Result<String, Problem> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!(
            "{what} is {:?}; it has to have 1 to {MAX_NAME_BYTES} bytes and no control characters",
            name.chars().take(100).collect::<String>()
        )));
    }
    Ok(name.to_owned())
}

/// One JSON value, passed on as the client wrote it.
pub(super) fn json(
    what: &str,
    value: Option<Box<RawValue>>,
    otherwise: &str,
    first: char,
    kind: &str,
    cap: usize,
) -> Result<String, Problem> {
    let Some(value) = value else { return Ok(otherwise.to_owned()) };
    let text = value.get();
    if text.len() > cap {
        return Err(Problem::too_large(format!("{what} has {} bytes; the most is {cap}", text.len())));
    }
    if !text.starts_with(first) {
        return Err(Problem::bad_request(format!("{what} has to be {kind}")));
    }
    Ok(text.to_owned())
}

pub(super) fn code(
    short: Option<String>,
    main: Option<String>,
    modules: Option<BTreeMap<String, ModuleSpec>>,
    policy: &Policy,
    wish: &Wish,
) -> Result<Code, Problem> {
    let cap = wish.code_bytes.unwrap_or(u32::MAX).min(policy.limits.code_bytes) as usize;
    let too_large =
        |bytes: usize| Problem::too_large(format!("the code has {bytes} bytes; the most is {cap} (limits.codeBytes)"));
    match (short, main, modules) {
        (Some(source), None, None) if source.len() > cap => Err(too_large(source.len())),
        (Some(source), None, None) => Ok(Code::Short(source)),
        (None, Some(main), Some(specs)) => {
            if specs.len() > MAX_MODULES {
                return Err(Problem::too_large(format!(
                    "there are {} modules; the most is {MAX_MODULES}",
                    specs.len()
                )));
            }
            let modules = specs.into_iter().map(|(name, spec)| module(name, spec)).collect::<Result<Vec<_>, _>>()?;
            match modules.iter().find(|module| module.name == main).map(|module| module.kind) {
                Some(ModuleKind::Js) => {}
                Some(_) => return Err(Problem::bad_request(format!("the main module {main:?} is not JavaScript"))),
                None => {
                    return Err(Problem::bad_request(format!("mainModule is {main:?}, and modules has no such name")));
                }
            }
            let bytes = modules.iter().map(|module| module.body.len()).sum();
            if bytes > cap { Err(too_large(bytes)) } else { Ok(Code::Modules { main, modules }) }
        }
        (Some(_), _, _) => Err(Problem::bad_request("give either code, or mainModule and modules, not both")),
        (None, Some(_), None) => Err(Problem::bad_request("mainModule needs modules beside it")),
        (None, None, Some(_)) => {
            Err(Problem::bad_request("modules needs mainModule beside it: the name of the first to run"))
        }
        (None, None, None) => Err(Problem::bad_request("there is no script: give code, or mainModule and modules")),
    }
}

fn module(name_given: String, spec: ModuleSpec) -> Result<Module, Problem> {
    let name = name("the name of a module", &name_given)?;
    let one_of = || Problem::bad_request(format!("module {name:?} has to have exactly one of js, json, text, data"));
    let (kind, body) = match spec {
        ModuleSpec::ByName(source) => (kind_by_ending(&name)?, source.into_bytes()),
        ModuleSpec::Kind(ModuleByKind { js: Some(source), json: None, text: None, data: None }) => {
            (ModuleKind::Js, source.into_bytes())
        }
        ModuleSpec::Kind(ModuleByKind { js: None, json: Some(value), text: None, data: None }) => {
            (ModuleKind::Json, value.get().as_bytes().to_vec())
        }
        ModuleSpec::Kind(ModuleByKind { js: None, json: None, text: Some(text), data: None }) => {
            (ModuleKind::Text, text.into_bytes())
        }
        ModuleSpec::Kind(ModuleByKind { js: None, json: None, text: None, data: Some(data) }) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(data);
            let bytes = bytes
                .map_err(|error| Problem::bad_request(format!("the data of module {name:?} is not base64: {error}")))?;
            (ModuleKind::Data, bytes)
        }
        ModuleSpec::Kind(_) => return Err(one_of()),
    };
    Ok(Module { name, kind, body })
}

/// The kind of a module that was given as a string.
fn kind_by_ending(name: &str) -> Result<ModuleKind, Problem> {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("js" | "mjs") => Ok(ModuleKind::Js),
        Some("json") => Ok(ModuleKind::Json),
        Some("txt") => Ok(ModuleKind::Text),
        Some("ts" | "tsx" | "jsx") => Err(Problem::bad_request(format!(
            "module {name:?}: TypeScript and JSX are not run; compile it to JavaScript first"
        ))),
        Some("wasm") => Err(Problem::bad_request(format!("module {name:?}: WebAssembly is not run"))),
        _ => Err(Problem::bad_request(format!(
            "module {name:?} is a string, so its name has to end in .js, .mjs, .json or .txt; or say its kind: {{\"js\": …}}"
        ))),
    }
}

/// What a run came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    id: String,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
    logs: Vec<Line>,
    truncated: bool,
    usage: Usage,
    cordon: &'static str,
}

#[derive(Debug, Serialize)]
struct Failure {
    name: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    t_ms: u32,
    level: enisle_wire::tenant::Level,
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    cpu_ms: f64,
    wall_ms: f64,
    startup_us: u64,
    queued_us: u64,
    peak_heap_bytes: u64,
}

pub(super) fn answer(report: Report) -> Answer {
    let Report { id, finished, level } = report;
    let usage = Usage {
        cpu_ms: micros_as_ms(finished.usage.cpu_us),
        wall_ms: micros_as_ms(finished.usage.wall_us),
        startup_us: finished.usage.startup_us,
        queued_us: u64::try_from(finished.queued.as_micros()).unwrap_or(u64::MAX),
        peak_heap_bytes: finished.usage.peak_heap_bytes,
    };
    let logs = finished.logs.into_iter().map(|LogLine { t_ms, level, text }| Line { t_ms, level, text }).collect();
    Answer {
        id: id.to_string(),
        outcome: finished.outcome,
        result: finished.result,
        error: finished.error.map(|ScriptError { name, message, stack }| Failure { name, message, stack }),
        logs,
        truncated: finished.truncated,
        usage,
        cordon: level.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> Result<Job, String> {
        parse(body.as_bytes(), RunId(1), &Policy::default())
            .map_err(|problem| serde_json::to_value(problem).unwrap()["detail"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        for (body, word) in [
            ("", "EOF"),
            ("[]", "JSON object"),
            ("{}", "no script"),
            (r#"{"code": "1", "cod": 2}"#, "cod"),
            (r#"{"code": "1", "mainModule": "a.js"}"#, "not both"),
            (r#"{"mainModule": "a.js", "modules": {"b.js": ""}}"#, "no such name"),
            (r#"{"mainModule": "a.json", "modules": {"a.json": "1"}}"#, "not JavaScript"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": {"js": "", "text": ""}}}"#, "exactly one"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": 3}}"#, "a module: a string"),
            (r#"{"mainModule": "a.ts", "modules": {"a.ts": ""}}"#, "TypeScript"),
            (r#"{"mainModule": "a\u0000.js", "modules": {"a\u0000.js": ""}}"#, "control characters"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": "", "b": {"data": "?"}}}"#, "base64"),
            (r#"{"code": "1", "args": {}}"#, "args has to be an array"),
            (r#"{"code": "1", "env": []}"#, "env has to be an object"),
            (r#"{"code": "1", "globalOutbound": "x"}"#, "no network"),
            (r#"{"code": "1", "limits": {"cpu": 1}}"#, "cpu"),
            (r#"{"code": "1", "limits": {"cpuMs": -1}}"#, "-1"),
            (r#"{"code": "1", "limits": {"cpuMs": 0}}"#, "limits.cpuMs is 0"),
            (r#"{"code": "1", "limits": {"memoryMb": 4}}"#, "limits.memoryMb is 4"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": "", "a.js": ""}}"#, "stands twice"),
            ("{\"code\": \"\\ud800\"}", "hex escape"),
        ] {
            let detail = parsed(body).expect_err(body);
            assert!(detail.contains(word), "{body} -> {detail}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        assert!(parse(b"{\"code\": \"\xff\"}", RunId(1), &Policy::default()).is_err());
    }

    #[test]
    fn a_request_as_in_the_documentation_is_taken() {
        let body = r#"{ "mainModule": "main.js",
            "modules": { "main.js": "export default {}", "d.txt": "t", "j": {"json": [1]}, "b": {"data": "AAE="} },
            "env": { "factor": 2 }, "method": "run", "args": [{ "n": 21 }], "globalOutbound": null,
            "limits": { "cpuMs": 50, "wallMs": 10000, "memoryMb": 64, "subRequests": 50 } }"#;
        assert_eq!(parsed(body).map(|job| job.limits.cpu_ms), Ok(50));
    }
}
