//! `GET /v1/tenants`, `GET` and `PUT /v1/tenants/{tenant}`: who there is, and what they may do.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::body::{RawBody, read_body, tell};
use super::camel_case;
use super::page::{PAGE_BYTES, Page, Wanted};
use super::peer::Peer;
use super::problem::Problem;
use crate::clock;
use crate::daemon::Daemon;
use crate::state::entry::Entry;
use crate::tenants::policy::{Policy, TenantName};
use crate::tenants::tenant::Tenant;

/// A policy is a few hundred bytes.
const MAX_POLICY_BYTES: usize = 64 * 1024;
/// A move with its reasons, of which an operator's may have so many bytes.
const PAST_BYTES: usize = 1024;

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    peer.operate(&daemon)?;
    let page = Page::of(wanted)?;
    let after = page.after.as_deref().map(str::parse::<TenantName>).transpose()?;
    let tenants = daemon.tenants_after(after.as_ref(), page.limit + 1);
    let asked = Arc::clone(&daemon);
    let write =
        move || page.write("tenants", tenants, |tenant| tenant.name.clone(), |tenant| show_row(tenant, &daemon));
    tell(PAGE_BYTES, peer.uid, &asked, write).await
}

pub(crate) async fn show(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name: TenantName = name.parse()?;
    peer.act_for(&name, &daemon)?;
    let tenant = daemon.known_tenant(&name);
    let tenant =
        tenant.ok_or_else(|| Problem::not_found(format!("tenant {name} has no policy and has run nothing yet")))?;
    tell_of(tenant, peer, &daemon).await
}

pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let name: TenantName = name.parse()?;
    peer.operate(&daemon)?;
    let RawBody { bytes, held: _held } = read_body(body, MAX_POLICY_BYTES, peer.uid, &daemon).await?;
    let policy: Policy = object(&bytes)?;
    policy.check(daemon.config.workers.max_memory_mb).map_err(|error| Problem::bad_request(error.to_string()))?;
    let tenant = daemon.tenant(&name, peer.uid)?;
    let held = daemon.supplies.scripts.take(peer.uid, policy.bytes())?;
    let set = camel_case(serde_json::to_value(&policy).unwrap_or_default());
    let entry = Entry::PolicyChanged { tenant: name.to_string(), policy: set, by_uid: peer.uid };
    let turn = daemon.writes.turn(peer.uid).await;
    let line = daemon.warden.recorder.room(peer.uid, &entry)?;
    let (keeper, whose) = (Arc::clone(&daemon), Arc::clone(&tenant));
    // Writing it waits for the disk.
    let write = move || {
        let kept = keeper.set_policy(&whose, policy, held, line);
        drop(turn);
        kept
    };
    let kept = tokio::task::spawn_blocking(write).await;
    let written = kept.map_err(|_| Problem::internal("writing the policy was interrupted"))??;
    // It may not be beside others any more.
    daemon.warden.ask_for_move(&tenant);
    written.wait().await?;
    tell_of(tenant, peer, &daemon).await
}

/// A tenant as that peer may see it. Its policy and its history may be long.
pub(super) async fn tell_of(tenant: Arc<Tenant>, peer: Peer, daemon: &Arc<Daemon>) -> Result<Response, Problem> {
    let policy = usize::try_from(tenant.policy().bytes()).unwrap_or(usize::MAX);
    let history = if peer.operates(daemon) { tenant.standing().history().len() * PAST_BYTES } else { 0 };
    let asked = Arc::clone(daemon);
    let write = move || {
        let shown = if peer.operates(&asked) { show_tenant(&tenant, &asked) } else { show_own(&tenant) };
        serde_json::to_vec(&shown).unwrap_or_default()
    };
    tell(policy.saturating_add(history), peer.uid, daemon, write).await
}

/// A small thing from its JSON object. (Serde would take an array for a struct as well, its fields
/// in order.)
pub(super) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(error.to_string())),
        Some(_) => Err(Problem::bad_request("the body has to be a JSON object")),
    }
}

/// Where it has to live, and why: the score, what it is made of, and how it came to this.
fn show_cordon(tenant: &Tenant, daemon: &Daemon) -> Value {
    let (rules, now) = (&daemon.config.cordon.rules, clock::now());
    let around = tenant.circumstances(daemon.warden.engine_is_outdated());
    let standing = tenant.standing();
    let contributions = standing.contributions(around, rules, now);
    let signals: Vec<_> = contributions
        .iter()
        .map(|known| {
            let weight = rules.weight(known.signal);
            json!({
                "signal": known.signal, "source": known.source, "points": tenths(known.points), "weight": weight.points,
                "halfLifeSecs": weight.half_life_secs, "count": known.count, "ageMs": known.age_ms,
                "certain": known.certain,
            })
        })
        .collect();
    json!({
        "level": standing.level(),
        "sinceUnixMs": standing.since(),
        "score": tenths(enisle_cordon::score::total(&contributions, rules)),
        "thresholds": { "watch": rules.watch, "solo": rules.solo, "sealed": rules.sealed, "expelled": rules.expelled },
        "signals": signals,
        "suspectedUntilUnixMs": standing.suspected_until(),
        "keptApart": tenant.kept_apart().map(|(alone, left)| json!({ "alone": alone, "forMs": u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })),
        "onProbation": tenant.on_probation().is_some(),
        "order": standing.order().map(|order| json!({
            "level": order.level, "reason": order.reason, "byUid": order.by_uid, "unixMs": order.at,
        })),
        "firstSeenUnixMs": standing.first_seen(),
        "history": standing.history(),
    })
}

/// What whoever acts for a tenant sees of it: nothing of others, of the machine, or of what would
/// tell how to stay just below the next cordon.
fn show_own(tenant: &Tenant) -> Value {
    let usage = tenant.usage_so_far();
    let standing = tenant.standing();
    json!({
        "name": tenant.name,
        "policy": camel_case(serde_json::to_value(&*tenant.policy()).unwrap_or_default()),
        "inFlight": tenant.in_flight(),
        "cordon": { "level": standing.level(), "sinceUnixMs": standing.since() },
        "usage": { "runs": usage.runs(), "cpuMs": usage.cpu_us / 1000, "outcomes": usage.outcomes() },
    })
}

/// The same for operators.
fn show_tenant(tenant: &Tenant, daemon: &Daemon) -> Value {
    json!({
        "name": tenant.name,
        "policy": camel_case(serde_json::to_value(&*tenant.policy()).unwrap_or_default()),
        "inFlight": tenant.in_flight(),
        "cordon": show_cordon(tenant, daemon),
        "resident": show_residence(daemon, tenant),
        "usage": show_usage(tenant),
    })
}

/// A tenant among others in a list: without what may be long, its policy and its history.
fn show_row(tenant: &Tenant, daemon: &Daemon) -> Value {
    let around = tenant.circumstances(daemon.warden.engine_is_outdated());
    let cordon = {
        let standing = tenant.standing();
        let score = standing.score(around, &daemon.config.cordon.rules, clock::now());
        json!({ "level": standing.level(), "sinceUnixMs": standing.since(), "score": tenths(score) })
    };
    json!({
        "name": tenant.name,
        "inFlight": tenant.in_flight(),
        "cordon": cordon,
        "resident": show_residence(daemon, tenant),
        "usage": show_usage(tenant),
    })
}

fn show_residence(daemon: &Daemon, tenant: &Tenant) -> Option<Value> {
    let home = daemon.homes.current_home(&tenant.name)?;
    Some(json!({
        "worker": home.worker.id,
        "pid": home.worker.pid.as_raw(),
        "cordon": home.worker.level.as_str(),
        "warm": home.is_idle(),
        "unusedMs": u64::try_from(home.unused_for().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn show_usage(tenant: &Tenant) -> Value {
    let usage = tenant.usage_so_far();
    json!({
        "runs": usage.runs(), "begun": usage.begun, "fenced": usage.fenced, "cpuMs": micros_as_ms(usage.cpu_us),
        "outcomes": usage.outcomes(),
    })
}

fn tenths(points: f64) -> f64 {
    (points * 10.0).round() / 10.0
}

/// Milliseconds with three decimals.
pub(super) fn micros_as_ms(micros: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
    let micros = micros as f64;
    micros / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use enisle_api::openapi::fields_of;
    use enisle_api::types::policy::{self, PolicyRequest, RequestedLimits, RequestedQuota};

    use super::*;
    use crate::api::described::known_by;

    /// As the API writes them: configuration files have other names for the same fields.
    fn known(body: &str) -> BTreeSet<String> {
        let problem = serde_json::to_value(object::<Policy>(body.as_bytes()).unwrap_err()).unwrap();
        known_by(problem["detail"].as_str().unwrap()).into_iter().filter(|name| !name.contains('_')).collect()
    }

    #[test]
    fn the_fields_of_a_policy_are_those_that_are_described() {
        assert_eq!(known(r#"{"unknown": 1}"#), fields_of::<PolicyRequest>());
        assert_eq!(known(r#"{"limits": {"unknown": 1}}"#), fields_of::<RequestedLimits>());
        assert_eq!(known(r#"{"quota": {"unknown": 1}}"#), fields_of::<RequestedQuota>());
    }

    #[test]
    fn a_policy_is_shown_as_it_is_described_and_can_be_set_as_it_is_shown() {
        let owner = Some("o".to_owned());
        for policy in [Policy::default(), Policy { owner, secrets: vec!["s".to_owned()], ..Policy::default() }] {
            let shown = camel_case(serde_json::to_value(&policy).unwrap());
            let read: policy::Policy = serde_json::from_value(shown.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), shown);
            let request: PolicyRequest = serde_json::from_value(shown).unwrap();
            assert_eq!(object::<Policy>(&serde_json::to_vec(&request).unwrap()).unwrap(), policy);
        }
    }
}
