//! `HEAD /_ping`, `GET /openapi.json`, `GET /v1/version`, `GET /v1/info`: what this daemon is and
//! what this machine provides.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, header};
use enisle_api::types::about::{
    Capacity, Counters, Counts, DeathBudget, HeldAgainst, Info, LayerState, Posture, Version,
};
use enisle_api::{API_VERSION, OPENAPI};
use enisle_wire::Outcome;

use super::peer::Asking;
use super::pieces::{self, Pace};
use super::tenants::show_policy;
use crate::clock;
use crate::daemon::Daemon;
use crate::homes::pool;

pub(crate) async fn ping() -> &'static str {
    "enisled\n"
}

/// The API's description. It is part of the program, so serving it takes no memory.
pub(crate) async fn document(
    State(daemon): State<Arc<Daemon>>,
    Asking(peer): Asking,
) -> ([(HeaderName, &'static str); 1], Body) {
    let body = pieces::whole(Pace::of(peer.uid, &daemon), Bytes::from_static(OPENAPI.as_bytes()));
    ([(header::CONTENT_TYPE, "application/json")], body)
}

pub(crate) async fn version(State(daemon): State<Arc<Daemon>>, _: Asking) -> Json<Version> {
    Json(Version {
        enisled: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        wire: enisle_wire::VERSION,
        // The version is known once a worker has started: the daemon itself does not contain V8.
        v8: daemon.warden.engine(),
    })
}

/// Every peer that may ask gets the default policy, the outcomes, the uptime, and whether the
/// daemon is draining. Only operators also see how the machine is secured, and how full the daemon
/// is.
pub(crate) async fn info(State(daemon): State<Arc<Daemon>>, Asking(peer): Asking) -> Json<Info> {
    let operates = peer.operates(&daemon);
    let for_operators = operates.then_some(&daemon);
    Json(Info {
        defaults: show_policy(&daemon.config.defaults),
        outcomes: Outcome::ALL.to_vec(),
        uptime_ms: u64::try_from(daemon.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        draining: daemon.is_draining(),
        posture: for_operators.map(|daemon| posture(daemon)),
        counters: for_operators
            .map(|daemon| Counters { on: daemon.counters.is_ok(), detail: daemon.counters.as_ref().err().cloned() }),
        capacity: for_operators.map(|daemon| Capacity {
            tenants_per_process: daemon.homes.pool.capacity.tenants_per_process(),
            max_processes: daemon.homes.pool.bounds.processes,
            max_alone: daemon.homes.pool.bounds.alone,
        }),
        deaths: for_operators.map(|daemon| deaths(daemon)),
        counts: for_operators.map(|daemon| counts(daemon)),
    })
}

fn posture(daemon: &Daemon) -> Posture {
    let layers = daemon.posture.findings.iter().map(|finding| {
        let (here, layer) = (finding.on, finding.layer);
        let on = daemon.layers.has(layer);
        let detail =
            if here && !on { "this machine has it, but the daemon does not use it" } else { finding.detail.as_str() };
        LayerState {
            layer: layer.name().to_owned(),
            on,
            detail: detail.to_owned(),
            protects: layer.protects().to_owned(),
            consequence: (!on).then(|| layer.without().to_owned()),
            remedy: (!here).then(|| layer.remedy().to_owned()),
        }
    });
    Posture {
        layers: layers.collect(),
        keys: daemon.posture.keys,
        share_without_keys: daemon.homes.pool.capacity.share_without_keys,
        consequence: consequence(daemon),
    }
}

fn counts(daemon: &Daemon) -> Counts {
    let pool::Counts { workers, standby, tenants: residents } = daemon.homes.pool.counts();
    Counts { workers, standby, residents, tenants: daemon.count_tenants(), in_flight: daemon.in_flight() }
}

/// For each uid, the process deaths that count against it because one of its tenants was blamed.
fn deaths(daemon: &Daemon) -> DeathBudget {
    let (rules, now) = (&daemon.config.cordon.rules.deaths, clock::monotonic());
    let held = daemon.warden.held_against().into_iter().map(|(uid, deaths)| HeldAgainst {
        uid,
        deaths: deaths.count(rules, now),
        used_up: deaths.is_used_up(rules, now),
        clear_in_ms: deaths.clear_in_ms(now),
    });
    DeathBudget { budget: rules.budget, regain_secs: rules.regain_secs, held_against: held.collect() }
}

/// What the posture means for where tenants live, in a sentence.
fn consequence(daemon: &Daemon) -> String {
    let capacity = daemon.homes.pool.capacity;
    match (capacity.keys, capacity.share_without_keys) {
        (0, false) => "no protection keys: every tenant has a process of its own".to_owned(),
        (0, true) => format!(
            "no protection keys, and the configuration accepts it (share_without_keys): up to {} tenants share a process, \
             kept apart only by cages",
            capacity.tenants_per_process()
        ),
        _ => format!(
            "up to {} tenants share a process, each in a cage with a protection key of its own",
            capacity.tenants_per_process()
        ),
    }
}
