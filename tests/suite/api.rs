//! The daemon's answers match their description (`enisle-api`).

use enisle_api::OPENAPI;
use enisle_api::types::about::{Info, Version};
use enisle_api::types::audit::AuditHead;
use enisle_api::types::event::EventLine;
use enisle_api::types::problem::Problem;
use enisle_api::types::run::Answer;
use enisle_api::types::script::Script;
use enisle_api::types::tenant::{TenantPage, TenantView};
use enisle_api::types::worker::WorkerPage;
use enisle_tests::{Daemon, SHARING};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::evidence::{GUEST, STRANGER, ask_as, with_guest};

/// Parses an answer as its described type, and asserts that no field is lost.
#[track_caller]
fn described<T: DeserializeOwned + Serialize>(answer: &[u8]) -> T {
    let shown = String::from_utf8_lossy(answer);
    let read: T = serde_json::from_slice(answer).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let (was, is): (Value, _) = (serde_json::from_slice(answer).expect("JSON"), serde_json::to_value(&read));
    assert_eq!(is.expect("it is written"), was);
    read
}

#[test]
fn answers_to_an_operator_match_their_description() {
    let daemon = Daemon::start(SHARING);
    let ask = |method: &str, path: &str, body: &Value| {
        let answer = daemon.request(method, path, body.to_string().as_bytes());
        (answer.status, answer.body)
    };
    let get = |path: &str| daemon.request("GET", path, b"").body;
    let policy = json!({ "owner": "o", "secrets": ["s"], "quota": { "burst": 9 } });
    described::<TenantView>(&ask("PUT", "/v1/tenants/t", &policy).1);
    for (status, version) in [(201, 1), (200, 1)] {
        let (answered, script) = ask("PUT", "/v1/tenants/t/scripts/s", &json!({ "code": "n => n" }));
        assert_eq!((answered, described::<Script>(&script).version), (status, version));
    }
    let code = json!({ "code": "() => { console.log('x'); throw new Error('y') }" });
    for (path, body) in [("scripts/s/run", json!({ "args": [null] })), ("load", code)] {
        described::<Answer>(&ask("POST", &format!("/v1/tenants/t/{path}"), &body).1);
    }
    let order = json!({ "level": "solo", "reason": "r" });
    described::<TenantView>(&ask("PUT", "/v1/tenants/u/cordon", &order).1);
    described::<Answer>(&ask("POST", "/v1/tenants/u/load", &json!({ "code": "() => 1" })).1);
    for tenant in ["t", "u"] {
        let view = described::<TenantView>(&get(&format!("/v1/tenants/{tenant}")));
        assert!(matches!(view, TenantView::Full(tenant) if tenant.resident.is_some()));
    }
    assert_eq!(described::<TenantPage>(&get("/v1/tenants?limit=1")).next.as_deref(), Some("t"));
    assert_eq!(described::<TenantPage>(&get("/v1/tenants?after=t")).tenants.len(), 1);
    assert!(described::<WorkerPage>(&get("/v1/workers?limit=1")).next.is_some());
    described::<Version>(&get("/v1/version"));
    assert!(described::<Info>(&get("/v1/info")).posture.is_some());
    assert!(described::<AuditHead>(&get("/v1/audit")).seq > 0);
    described::<Script>(&get("/v1/tenants/t/scripts/s"));
    described::<TenantView>(&daemon.request("DELETE", "/v1/tenants/u/cordon?reason=r", b"").body);
    described::<Problem>(&get("/v1/tenants/nobody"));
    let events = get("/v1/events");
    let events = events.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    assert!(events.map(described::<EventLine>).count() > 5);
}

#[test]
fn answers_to_a_peer_match_their_description() {
    let Some(daemon) = with_guest() else { return };
    let get = |path: &str| ask_as(&daemon, GUEST, "GET", path, "").body;
    let run = ask_as(&daemon, GUEST, "POST", "/v1/tenants/guest-1/load", r#"{"code": "() => 1"}"#);
    described::<Answer>(&run.body);
    assert!(matches!(described(&get("/v1/tenants/guest-1")), TenantView::Own(_)));
    assert!(described::<Info>(&get("/v1/info")).posture.is_none());
    assert_eq!(described::<Problem>(&get("/v1/workers")).status, 403);
}

#[test]
fn the_document_is_served_to_every_uid_that_a_rule_names() {
    let Some(daemon) = with_guest() else { return };
    let document = ask_as(&daemon, GUEST, "GET", "/openapi.json", "");
    assert!(document.head.to_ascii_lowercase().contains("content-type: application/json"), "{}", document.head);
    assert!(document.body == OPENAPI.as_bytes());
    assert_eq!(ask_as(&daemon, STRANGER, "GET", "/openapi.json", "").status, 403);
}
