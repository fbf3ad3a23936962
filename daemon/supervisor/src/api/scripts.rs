//! `PUT`, `GET`, `DELETE /v1/tenants/{tenant}/scripts/{id}` and `POST …/run`: a script whose
//! isolate is kept between its runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use enisle_api::types::script::Script as Shown;
use enisle_wire::MAX_ARGS_BYTES;
use enisle_wire::tenant::{Run, RunId};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::answer::answer;
use super::body::{MAX_BODY_BYTES, RawBody, read_body, work};
use super::code::{Frames, code, name, requested_limits};
use super::load::{Admitted, admit, no_network};
use super::peer::{ActingFor, Peer, Segments};
use super::problem::Problem;
use crate::daemon::Daemon;
use crate::homes::job::Job;
use crate::json_text::fields;
use crate::share::{Supply, charged};
use crate::tenants::in_flight::InFlight;
use crate::tenants::policy::{Policy, TenantName};
use crate::tenants::scripts::{NewScript, OVERHEAD_BYTES, RegisterError, Script};
use crate::tenants::tenant::Tenant;
use enisle_wire::limits::RequestedLimits;

/// The fields of a script, and of a call.
const SCRIPT: [&str; 6] = ["code", "mainModule", "modules", "env", "limits", "globalOutbound"];
const CALL: [&str; 5] = ["entrypoint", "method", "args", "props", "limits"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegisterQuery {
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

/// An id must fit into a path without escaping, so it follows the rules of tenant names.
fn id_of(id: &str) -> Result<String, Problem> {
    let known: Result<TenantName, _> = id.parse();
    let said =
        |_| Problem::bad_request(format!("{id:?} is not a valid script id: ids follow the rules of tenant names"));
    Ok(known.map_err(said)?.to_string())
}

fn show(id: String, script: &Script) -> Shown {
    Shown { id, version: script.version, bytes: script.bytes() as u64, runs: script.runs.load(Ordering::Relaxed) }
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
    Segments((name, id)): Segments<(String, String)>,
    wanted: Result<Query<RegisterQuery>, QueryRejection>,
    body: Body,
) -> Result<(StatusCode, Json<Shown>), Problem> {
    let id = id_of(&id)?;
    let Query(wanted) = wanted.map_err(|error| {
        Problem::bad_request(format!("{error}; the only parameter is replace; replace=1 replaces other content"))
    })?;
    // Registering is checked like a run: it takes a place in the quota, and an expelled tenant may
    // not do it.
    let (Admitted { tenant, in_flight }, body) = admit(body, &name, peer, &daemon).await?;
    let body = read_body(body, MAX_BODY_BYTES, peer.uid, &daemon).await?;
    let (policy, scripts) = (tenant.policy(), daemon.supplies.scripts.clone());
    let bytes = body.bytes.len();
    let parsed = move || {
        let _in_flight = in_flight;
        new_script(body, &policy, &scripts)
    };
    let new = work(bytes, peer.uid, &daemon, parsed).await?.ok_or_else(|| no_network(&daemon, &tenant, peer.uid))?;
    let known = tenant.scripts().get(&id);
    let script = tenant.scripts().register(&id, new, wanted.replace != 0)?;
    let status = match known {
        Some(known) if known.key == script.key => StatusCode::OK,
        Some(_) => {
            forget_isolates(&daemon, &tenant);
            StatusCode::CREATED
        }
        None => StatusCode::CREATED,
    };
    Ok((status, Json(show(id, &script))))
}

/// Returns `None` if the script asks for a network.
fn new_script(
    RawBody { bytes, held }: RawBody,
    policy: &Policy,
    scripts: &Supply,
) -> Result<Option<NewScript>, Problem> {
    let [short, main, modules, env, limits, outbound] = fields(&bytes, SCRIPT)?;
    let limits = requested_limits(limits)?;
    if outbound.is_some() {
        return Ok(None);
    }
    let mut frames = Frames::default();
    frames.push_env(env)?;
    let code_at = frames.push_code(code(short, main, modules, policy, &limits)?)?.start;
    let (frames, digest) = (frames.into_bytes(), Sha256::digest(&bytes).into());
    // From now on the frames are held as a script, which is charged to another supply.
    let _held = scripts.take(held.uid(), OVERHEAD_BYTES + frames.len() as u64)?;
    let limits = (limits != RequestedLimits::default()).then(|| Box::new(limits));
    Ok(Some(NewScript { frames: frames.into(), code_at, limits, digest, _held }))
}

pub(crate) async fn show_one(
    State(daemon): State<Arc<Daemon>>,
    ActingFor { tenant, .. }: ActingFor,
    Segments((_, id)): Segments<(String, String)>,
) -> Result<Json<Shown>, Problem> {
    let (_, script) = find(&daemon, &tenant, &id)?;
    Ok(Json(show(id, &script)))
}

pub(crate) async fn forget(
    State(daemon): State<Arc<Daemon>>,
    ActingFor { tenant, .. }: ActingFor,
    Segments((_, id)): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (tenant, _) = find(&daemon, &tenant, &id)?;
    if tenant.scripts().remove(&id).is_some() {
        forget_isolates(&daemon, &tenant);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Has the isolates of versions that are no longer registered disposed of.
fn forget_isolates(daemon: &Daemon, tenant: &Tenant) {
    // No home is found here while another task has the lock of the tenant's current home. Usually
    // the tenant is then moving, and its next home begins without isolates. If instead a run is
    // just entering the home, old isolates may stay until the next change of a script or the end of
    // the home.
    if let Some(home) = daemon.homes.current_home(&tenant.name) {
        home.forget_replaced();
    }
}

pub(crate) async fn run(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Segments((name, id)): Segments<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let (Admitted { tenant, in_flight }, body) = admit(body, &name, peer, &daemon).await?;
    // The body holds the arguments, and small fields beside them.
    let body = read_body(body, 2 * MAX_ARGS_BYTES + (1 << 20), peer.uid, &daemon).await?;
    let (_, script) = find(&daemon, &tenant.name, &id)?;
    let (run, policy, running) = (daemon.next_run_id(), tenant.policy(), Arc::clone(&script));
    let bytes = body.bytes.len();
    let made = move || job(body, run, &running, &policy, in_flight);
    let report = daemon
        .run(work(bytes, peer.uid, &daemon, made).await?)
        .await
        .map_err(|error| peer.run_problem(error, &daemon))?;
    script.runs.fetch_add(1, Ordering::Relaxed);
    if tenant.scripts().get(&id).is_none_or(|present| present.key != script.key) {
        forget_isolates(&daemon, &tenant);
    }
    Ok(answer(report, peer, &daemon))
}

fn job(
    RawBody { mut bytes, held }: RawBody,
    id: RunId,
    script: &Arc<Script>,
    policy: &Policy,
    in_flight: InFlight,
) -> Result<Job, Problem> {
    if bytes.trim_ascii().is_empty() {
        bytes = b"{}".to_vec();
    }
    let [entrypoint, method, args, props, limits] = fields(&bytes, CALL)?;
    let limits = requested_limits(limits)?;
    // Each limit is the lowest of the policy's, the script's and the run's.
    let run = Run {
        id,
        entrypoint: name("entrypoint", entrypoint)?.unwrap_or_else(|| "default".to_owned()),
        method: name("method", method)?,
        limits: limits.under(&script.limits().under(&policy.limits)),
        allow_eval: policy.allow_eval,
        keep: Some(script.key),
    };
    let mut frames = Frames::default();
    frames.push_input(args, props)?;
    let input = frames.into_bytes();
    drop(bytes);
    let (env, code) = script.frames();
    Ok(Job { run, input: charged(input, held), env, code, in_flight: Arc::new(in_flight) })
}

#[cfg(test)]
mod tests {
    use enisle_api::openapi::fields_of;
    use enisle_api::types::run::RunRequest;
    use enisle_api::types::script::ScriptRequest;

    use super::*;
    use crate::api::described::reads_the_query_of;

    #[test]
    fn the_fields_of_requests_are_the_documented_ones() {
        assert_eq!(fields_of::<ScriptRequest>(), SCRIPT.map(str::to_owned).into());
        assert_eq!(fields_of::<RunRequest>(), CALL.map(str::to_owned).into());
        reads_the_query_of::<RegisterQuery>("registerScript");
    }
}
