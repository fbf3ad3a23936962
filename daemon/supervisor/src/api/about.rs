//! `HEAD /_ping`, `GET /openapi.json`, `GET /v1/version`, `GET /v1/info`: what this daemon is and
//! what this machine gives it.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, header};
use enisle_api::{API_VERSION, OPENAPI};
use enisle_wire::Outcome;
use serde_json::{Map, Value, json};

use super::camel_case;
use super::peer::Peer;
use super::pieces::{self, Pace};
use super::problem::Problem;
use crate::clock;
use crate::daemon::Daemon;

pub(crate) async fn ping() -> &'static str {
    "enisled\n"
}

/// The API's description. It is part of the program, so it costs nothing to hold.
pub(crate) async fn document(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
) -> Result<([(HeaderName, &'static str); 1], Body), Problem> {
    peer.ask(&daemon)?;
    let body = pieces::whole(Pace::of(peer.uid, &daemon), Bytes::from_static(OPENAPI.as_bytes()));
    Ok(([(header::CONTENT_TYPE, "application/json")], body))
}

pub(crate) async fn version(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Value>, Problem> {
    peer.ask(&daemon)?;
    Ok(Json(json!({
        "enisled": env!("CARGO_PKG_VERSION"),
        "api": API_VERSION,
        "wire": enisle_wire::VERSION,
        // Known once a worker has started: the daemon itself does not contain V8.
        "v8": daemon.warden.engine(),
    })))
}

/// What concerns everybody who may run something; how the machine is secured, and how full it is,
/// is for operators.
pub(crate) async fn info(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Value>, Problem> {
    peer.ask(&daemon)?;
    let mut info = json!({
        "defaults": camel_case(serde_json::to_value(&daemon.config.defaults).unwrap_or_default()),
        "outcomes": Outcome::ALL.map(Outcome::as_str),
        "uptimeMs": u64::try_from(daemon.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "draining": daemon.is_draining(),
    });
    if let (true, Some(info)) = (peer.operates(&daemon), info.as_object_mut()) {
        info.extend(for_operators(&daemon));
    }
    Ok(Json(info))
}

fn for_operators(daemon: &Daemon) -> Map<String, Value> {
    let layers: Vec<_> = daemon
        .posture
        .findings
        .iter()
        .map(|finding| {
            let on = daemon.layers.has(finding.layer);
            let (here, layer) = (finding.on, finding.layer);
            json!({
                "layer": layer.name(),
                "on": on,
                "detail": if here && !on { "this machine has it, and the daemon does without" } else { &finding.detail },
                "protects": layer.protects(),
                "consequence": (!on).then(|| layer.without()),
                "remedy": (!here).then(|| layer.remedy()),
            })
        })
        .collect();
    let capacity = daemon.homes.pool.capacity;
    let (workers, residents) = daemon.homes.pool.counts();
    let parts = [
        (
            "posture",
            json!({
                "layers": layers,
                "keys": daemon.posture.keys,
                "shareWithoutKeys": capacity.share_without_keys,
                "consequence": consequence(daemon),
            }),
        ),
        ("counters", json!({ "on": daemon.counters.is_ok(), "detail": daemon.counters.as_ref().err() })),
        (
            "capacity",
            json!({
                "tenantsPerProcess": capacity.tenants_per_process(),
                "maxProcesses": daemon.homes.pool.bounds.processes,
                "maxAlone": daemon.homes.pool.bounds.alone,
            }),
        ),
        ("deaths", deaths(daemon)),
        (
            "counts",
            json!({
                "workers": workers,
                "residents": residents,
                "tenants": daemon.count_tenants(),
                "inFlight": daemon.in_flight(),
            }),
        ),
    ];
    parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect()
}

/// The deaths of processes that tenants were blamed for, by uid.
fn deaths(daemon: &Daemon) -> Value {
    let (rules, now) = (&daemon.config.cordon.rules.deaths, clock::monotonic());
    let held: Vec<_> = daemon
        .warden
        .held_against()
        .into_iter()
        .map(|(uid, deaths)| {
            json!({
                "uid": uid,
                "deaths": deaths.count(rules, now),
                "usedUp": deaths.is_used_up(rules, now),
                "clearInMs": deaths.clear_in_ms(now),
            })
        })
        .collect();
    json!({ "budget": rules.budget, "regainSecs": rules.regain_secs, "heldAgainst": held })
}

/// What the posture means for where tenants live, in a sentence.
fn consequence(daemon: &Daemon) -> String {
    let capacity = daemon.homes.pool.capacity;
    match (capacity.keys, capacity.share_without_keys) {
        (0, false) => "no protection keys: every tenant has a process of its own".to_owned(),
        (0, true) => format!(
            "no protection keys, and the configuration accepts it (share_without_keys): up to {} tenants share a process, \
             kept apart by cages alone",
            capacity.tenants_per_process()
        ),
        _ => format!(
            "up to {} tenants share a process, each in a cage with a protection key of its own",
            capacity.tenants_per_process()
        ),
    }
}
