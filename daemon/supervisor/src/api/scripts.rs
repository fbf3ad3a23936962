//! `PUT`, `GET`, `DELETE /v1/tenants/{tenant}/scripts/{id}` and `POST …/run`: a script that stays warm between its runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use enisle_wire::tenant::{Run, RunId};
use enisle_wire::{MAX_ARGS_BYTES, MAX_ENV_BYTES};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::load::{
    Admitted, Answer, MAX_BODY_BYTES, Modules, PARSE_INLINE_BYTES, RawBody, admit_with, answer, code, json as value,
    name, no_network, object, read_body, reserve,
};
use super::peer::Peer;
use super::problem::Problem;
use super::tenants::too_many;
use crate::daemon::Daemon;
use crate::job::Job;
use crate::policy::{Policy, TenantName, Wish};
use crate::script::{Draft, RegisterError, Script};
use crate::tenant::Tenant;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ScriptRequest {
    code: Option<String>,
    main_module: Option<String>,
    modules: Option<Modules>,
    env: Option<Box<RawValue>>,
    #[serde(default)]
    limits: Wish,
    #[serde(default)]
    global_outbound: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RunRequest {
    entrypoint: Option<String>,
    method: Option<String>,
    args: Option<Box<RawValue>>,
    props: Option<Box<RawValue>>,
    #[serde(default)]
    limits: Wish,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    #[serde(default)]
    replace: u8,
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Other(_) => Self::conflict(error.to_string()),
            RegisterError::TooMany | RegisterError::TooLarge(_) => Self::too_large(error.to_string()),
        }
    }
}

/// An id is what a path can carry without escaping, as a tenant's name is.
fn id_of(id: &str) -> Result<String, Problem> {
    let known: Result<TenantName, _> = id.parse();
    let said = |_| Problem::bad_request(format!("{id:?} cannot be a script's id: it is made as a tenant's name is"));
    Ok(known.map_err(said)?.to_string())
}

fn show(id: &str, script: &Script) -> Value {
    json!({
        "id": id,
        "version": script.version,
        "bytes": script.bytes,
        "runs": script.runs.load(Ordering::Relaxed),
    })
}

fn find(daemon: &Daemon, name: &TenantName, id: &str) -> Result<(Arc<Tenant>, Arc<Script>), Problem> {
    let found = daemon.known_tenant(name).and_then(|tenant| {
        let script = tenant.scripts().get(id)?;
        Some((tenant, script))
    });
    found.ok_or_else(|| {
        Problem::not_found(format!(
            "tenant {name} has no script {id}: register it with PUT; the daemon forgets scripts when it ends"
        ))
    })
}

pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path((name, id)): Path<(String, String)>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let name: TenantName = name.parse()?;
    peer.act_for(&name, &daemon)?;
    let id = id_of(&id)?;
    let Query(wanted) =
        wanted.map_err(|error| Problem::bad_request(format!("{error}; the one parameter is replace=1")))?;
    let tenant = daemon.tenant(&name).ok_or_else(too_many)?;
    // As a run: within the quota, and not for one that is expelled.
    let _in_flight = daemon.begin(&tenant)?;
    let _memory = reserve(hyper::body::Body::size_hint(&body).upper(), &daemon).await?;
    let RawBody(bytes) = read_body(body, MAX_BODY_BYTES, &daemon.config.api).await?;
    let (policy, budget) = (tenant.policy(), Arc::clone(&daemon.script_memory));
    let draft = if bytes.len() <= PARSE_INLINE_BYTES {
        draft(&bytes, &policy, &budget)?
    } else {
        let drafted = tokio::task::spawn_blocking(move || draft(&bytes, &policy, &budget)).await;
        drafted.map_err(|_| Problem::internal("parsing was interrupted"))??
    };
    let draft = draft.ok_or_else(|| no_network(&daemon, &tenant))?;
    let known = tenant.scripts().get(&id);
    let script = tenant.scripts().register(&id, draft, wanted.replace != 0)?;
    let status = match known {
        Some(known) if known.key == script.key => StatusCode::OK,
        Some(replaced) => {
            forget_isolate(&tenant, replaced.key);
            StatusCode::CREATED
        }
        None => StatusCode::CREATED,
    };
    Ok((status, Json(show(&id, &script))))
}

/// `None` if it asks for a network.
fn draft(bytes: &[u8], policy: &Policy, budget: &Arc<Semaphore>) -> Result<Option<Draft>, Problem> {
    let request: ScriptRequest = object(bytes)?;
    request.limits.check().map_err(|error| Problem::bad_request(format!("limits.{error}")))?;
    if request.global_outbound.is_some() {
        return Ok(None);
    }
    let modules = request.modules.map(|modules| modules.0);
    let code = code(request.code, request.main_module, modules, policy, &request.limits)?;
    let env = value("env", request.env, "{}", '{', "an object", MAX_ENV_BYTES)?;
    let draft = Draft::new(bytes, code, env, request.limits, budget);
    let full =
        || Problem::unavailable("all registered scripts together have as much memory as they may (api.script_mb)");
    draft.map(Some).ok_or_else(full)
}

pub(crate) async fn show_one(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let name: TenantName = name.parse()?;
    peer.act_for(&name, &daemon)?;
    let (_, script) = find(&daemon, &name, &id)?;
    Ok(Json(show(&id, &script)))
}

pub(crate) async fn forget(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let name: TenantName = name.parse()?;
    peer.act_for(&name, &daemon)?;
    let (tenant, _) = find(&daemon, &name, &id)?;
    let removed = tenant.scripts().remove(&id);
    if let Some(removed) = removed {
        forget_isolate(&tenant, removed.key);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Has the isolate of a version disposed of that is not registered any more, if it is kept anywhere.
fn forget_isolate(tenant: &Arc<Tenant>, key: u64) {
    let tenant = Arc::clone(tenant);
    // Whether the client waits for it or not.
    tokio::spawn(async move {
        let home = tenant.home.lock().await.clone();
        if let Some(home) = home {
            home.forget(key);
        }
    });
}

pub(crate) async fn run(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path((name, id)): Path<(String, String)>,
    body: Body,
) -> Result<Json<Answer>, Problem> {
    let (admitted, body) = admit_with(body, &name, peer, &daemon).await?;
    let Admitted { tenant, in_flight, .. } = &admitted;
    // Arguments, and names of no length to speak of.
    let RawBody(bytes) = read_body(body, 2 * MAX_ARGS_BYTES + (1 << 20), &daemon.config.api).await?;
    let (_, script) = find(&daemon, &tenant.name, &id)?;
    let (run, policy, running) = (daemon.next_run_id(), tenant.policy(), Arc::clone(&script));
    let job = if bytes.len() + script.bytes <= PARSE_INLINE_BYTES {
        job(&bytes, run, &running, &policy)?
    } else {
        let made = tokio::task::spawn_blocking(move || job(&bytes, run, &running, &policy)).await;
        made.map_err(|_| Problem::internal("parsing was interrupted"))??
    };
    let report = daemon.run(in_flight, job).await?;
    script.runs.fetch_add(1, Ordering::Relaxed);
    if tenant.scripts().get(&id).is_none_or(|present| present.key != script.key) {
        forget_isolate(tenant, script.key);
    }
    Ok(Json(answer(report)))
}

fn job(bytes: &[u8], id: RunId, script: &Script, policy: &Policy) -> Result<Job, Problem> {
    let request = if bytes.trim_ascii().is_empty() { RunRequest::default() } else { object::<RunRequest>(bytes)? };
    request.limits.check().map_err(|error| Problem::bad_request(format!("limits.{error}")))?;
    // The lowest of three: the policy's, the script's, the run's.
    let run = Run {
        id,
        code: script.code.clone(),
        entrypoint: name("entrypoint", request.entrypoint.as_deref().unwrap_or("default"))?,
        method: request.method.map(|method| name("method", &method)).transpose()?,
        args: value("args", request.args, "[]", '[', "an array", MAX_ARGS_BYTES)?,
        env: script.env.clone(),
        props: value("props", request.props, "{}", '{', "an object", MAX_ARGS_BYTES)?,
        limits: policy.limits.under(request.limits.under(&script.limits.as_policy(&policy.limits))),
        allow_eval: policy.allow_eval,
        keep: Some(script.key),
    };
    Job::new(run).map_err(|error| Problem::too_large(error.to_string()))
}
