//! `POST /v1/tenants/{tenant}/load`: a script runs once, in a fresh isolate, and is forgotten.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use enisle_cordon::{Seen, Signal};
use enisle_wire::tenant::{Run, RunId};

use super::answer::answer;
use super::body::{MAX_BODY_BYTES, RawBody, discard, read_body, work};
use super::code::{Frames, code, name, requested_limits};
use super::peer::{Peer, Segments};
use super::problem::Problem;
use crate::daemon::Daemon;
use crate::homes::job::Job;
use crate::json_text::fields;
use crate::share::charged;
use crate::tenants::in_flight::InFlight;
use crate::tenants::policy::{Policy, TenantName};
use crate::tenants::tenant::Tenant;

/// The answer to a request for a network, which no policy grants.
const NO_NETWORK: &str = "globalOutbound must be null: scripts have no network";

pub(crate) async fn load(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Segments(name): Segments<String>,
    body: Body,
) -> Result<Response, Problem> {
    let (Admitted { tenant, in_flight }, body) = admit(body, &name, peer, &daemon).await?;
    let body = read_body(body, MAX_BODY_BYTES, peer.uid, &daemon).await?;
    let (id, policy) = (daemon.next_run_id(), tenant.policy());
    let made = work(body.bytes.len(), peer.uid, &daemon, move || parse(body, id, &policy, in_flight)).await;
    let job =
        made.map_err(|problem| if problem.is(NO_NETWORK) { no_network(&daemon, &tenant, peer.uid) } else { problem })?;
    let report = daemon.run(job).await.map_err(|error| peer.run_problem(error, &daemon))?;
    Ok(answer(report, peer, &daemon))
}

/// Records that a request asked for a network, and returns the problem.
pub(super) fn no_network(daemon: &Daemon, tenant: &Arc<Tenant>, uid: u32) -> Problem {
    daemon.warden.saw(tenant, uid, &[Seen::certain(Signal::DeniedEgress)]);
    Problem::bad_request(NO_NETWORK)
}

/// A run that was admitted before its body is read.
pub(super) struct Admitted {
    pub(super) tenant: Arc<Tenant>,
    pub(super) in_flight: InFlight,
}

/// Admits a run before its body is read. The body of a refused run is read and dropped, up to a
/// bound that depends on the uid's rights.
pub(super) async fn admit(
    body: Body,
    name: &str,
    peer: Peer,
    daemon: &Arc<Daemon>,
) -> Result<(Admitted, Body), Problem> {
    let admitted = || {
        let name: TenantName = name.parse()?;
        peer.act_for(&name, daemon)?;
        let tenant = daemon.tenant(&name, peer.uid)?;
        let in_flight = daemon.begin(&tenant, peer.uid).map_err(|error| peer.run_problem(error, daemon))?;
        Ok(Admitted { tenant, in_flight })
    };
    match admitted() {
        Ok(admitted) => Ok((admitted, body)),
        Err(problem) => {
            discard(body, peer.uid, daemon).await;
            Err(problem)
        }
    }
}

/// Turns a body into a job that can be sent, or says what is wrong with the body.
fn parse(RawBody { bytes, held }: RawBody, id: RunId, policy: &Policy, in_flight: InFlight) -> Result<Job, Problem> {
    let (run, frames, [input, env, code]) = read(&bytes, id, policy)?;
    drop(bytes);
    let frames = charged(frames, held);
    let [input, env, code] = [input, env, code].map(|place| frames.slice(place));
    Ok(Job { run, input, env, code, in_flight: Arc::new(in_flight) })
}

type Place = std::ops::Range<usize>;

/// A run, its frames one after another, and the ranges of the input, `env` and code frames.
pub(crate) fn read(bytes: &[u8], id: RunId, policy: &Policy) -> Result<(Run, Vec<u8>, [Place; 3]), Problem> {
    let [short, main, modules, env, entrypoint, method, args, props, limits, outbound] = fields(
        bytes,
        ["code", "mainModule", "modules", "env", "entrypoint", "method", "args", "props", "limits", "globalOutbound"],
    )?;
    let limits = requested_limits(limits)?;
    if outbound.is_some() {
        return Err(Problem::bad_request(NO_NETWORK));
    }
    let run = Run {
        id,
        entrypoint: name("entrypoint", entrypoint)?.unwrap_or_else(|| "default".to_owned()),
        method: name("method", method)?,
        limits: limits.under(&policy.limits),
        allow_eval: policy.allow_eval,
        keep: None,
    };
    let mut frames = Frames::default();
    // The small frames come first, so that an error in them is reported before the code is copied.
    let (input, env) = (frames.push_input(args, props)?, frames.push_env(env)?);
    let code = frames.push_code(code(short, main, modules, policy, &limits)?)?;
    Ok((run, frames.into_bytes(), [input, env, code]))
}

#[cfg(test)]
mod tests {
    use enisle_api::openapi::fields_of;
    use enisle_api::types::policy::RequestedLimits;
    use enisle_api::types::run::{Call, LoadRequest};
    use enisle_api::types::script::{Module, ScriptRequest, TypedModule};
    use serde_json::json;

    use super::*;
    use crate::api::described::known_by;

    fn parsed(body: &str) -> Result<Run, String> {
        read(body.as_bytes(), RunId(1), &Policy::default())
            .map(|(run, ..)| run)
            .map_err(|problem| serde_json::to_value(problem).unwrap()["detail"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn an_invalid_request_is_explained() {
        for (body, word) in [
            ("", "EOF"),
            ("[]", "JSON object"),
            ("{}", "no script"),
            (r#"{"code": "1", "cod": 2}"#, "cod"),
            (r#"{"code": "1", "mainModule": "a.js"}"#, "not both"),
            (r#"{"mainModule": "a.js", "modules": {"b.js": ""}}"#, "no such name"),
            (r#"{"mainModule": "a.json", "modules": {"a.json": "1"}}"#, "not JavaScript"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": {"js": "", "text": ""}}}"#, "exactly one"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": 3}}"#, "must be a string"),
            (r#"{"mainModule": "a.ts", "modules": {"a.ts": ""}}"#, "TypeScript"),
            (r#"{"mainModule": "a\u0000.js", "modules": {"a\u0000.js": ""}}"#, "control characters"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": "", "b": {"data": "?"}}}"#, "base64"),
            (r#"{"code": "1", "args": {}}"#, "args must be an array"),
            (r#"{"code": "1", "env": []}"#, "env must be an object"),
            (r#"{"code": "1", "globalOutbound": "x"}"#, "no network"),
            (r#"{"code": "1", "limits": {"cpu": 1}}"#, "cpu"),
            (r#"{"code": "1", "limits": {"cpuMs": -1}}"#, "-1"),
            (r#"{"code": "1", "limits": {"cpuMs": 0}}"#, "limits.cpuMs is 0"),
            (r#"{"code": "1", "limits": {"memoryMb": 4}}"#, "limits.memoryMb is 4"),
            (r#"{"mainModule": "a.js", "modules": {"a.js": "", "a.js": ""}}"#, "appears twice"),
            ("{\"code\": \"\\ud800\"}", "surrogate"),
        ] {
            let detail = parsed(body).expect_err(body);
            assert!(detail.contains(word), "{body} -> {detail}");
        }
    }

    #[test]
    fn the_fields_of_a_request_are_the_documented_ones() {
        let known = |body: &str| known_by(&parsed(body).unwrap_err());
        assert_eq!(known(r#"{"unknown": 1}"#), fields_of::<LoadRequest>());
        assert_eq!(known(r#"{"limits": {"unknown": 1}}"#), fields_of::<RequestedLimits>());
        let module = known(r#"{"mainModule": "a.js", "modules": {"a.js": {"unknown": 1}}}"#);
        assert_eq!(module, fields_of::<TypedModule>());
    }

    /// The request has every field of the type except `code`, which excludes `modules`, and
    /// `globalOutbound`.
    #[test]
    fn a_request_serialised_from_the_type_is_accepted() {
        let script = ScriptRequest {
            main_module: Some("a.js".to_owned()),
            modules: Some(
                [
                    ("a.js", Module::ByEnding("export default 1".to_owned())),
                    ("b", Module::Typed(TypedModule::Js(String::new()))),
                    ("c", Module::Typed(TypedModule::Json(json!([1])))),
                    ("d", Module::Typed(TypedModule::Text(String::new()))),
                    ("e", Module::Typed(TypedModule::Data("AAE=".to_owned()))),
                ]
                .map(|(name, module)| (name.to_owned(), module))
                .into(),
            ),
            env: Some(serde_json::Map::new()),
            limits: Some(RequestedLimits { cpu_ms: Some(50), ..RequestedLimits::default() }),
            ..ScriptRequest::default()
        };
        let (entrypoint, method) = (Some("e".to_owned()), Some("m".to_owned()));
        let call = Call { entrypoint, method, args: Some(vec![json!(1)]), props: Some(serde_json::Map::new()) };
        let request = LoadRequest { script, call };
        let written = serde_json::to_string(&request).unwrap();
        let run = parsed(&written).unwrap();
        assert_eq!((run.limits.cpu_ms, run.entrypoint.as_str(), run.method.as_deref()), (50, "e", Some("m")));
        assert_eq!(serde_json::from_str::<LoadRequest>(&written).unwrap(), request);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        assert!(read(b"{\"code\": \"\xff\"}", RunId(1), &Policy::default()).is_err());
    }

    #[test]
    fn the_request_of_the_documentation_is_accepted() {
        let body = r#"{ "mainModule": "main.js",
            "modules": { "main.js": "export default {}", "d.txt": "t", "j": {"json": [1]}, "b": {"data": "AAE="} },
            "env": { "factor": 2 }, "method": "run", "args": [{ "n": 21 }], "globalOutbound": null,
            "limits": { "cpuMs": 50, "wallMs": 10000, "memoryMb": 64, "subRequests": 50 } }"#;
        assert_eq!(parsed(body).map(|run| run.limits.cpu_ms), Ok(50));
    }
}
