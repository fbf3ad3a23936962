//! `GET /v1/tenants`, `GET` and `PUT /v1/tenants/{tenant}`: the tenants, and what they may do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use enisle_api::bounds::{MAX_REASON_BYTES, PAGE_BYTES};
use enisle_api::types::cordon::{Cordon, KeptApart, SignalState, StandingOrder, Thresholds};
use enisle_api::types::policy::{Policy as ShownPolicy, Quota};
use enisle_api::types::tenant::{
    CordonRow, HomeView, OwnCordon, OwnTenant, OwnUsage, Tenant as Full, TenantRow, TenantUsage, TenantView,
};
use serde::de::DeserializeOwned;

use super::body::{RawBody, read_body, respond};
use super::page::{Page, PageQuery};
use super::peer::{ActingFor, Named, Operator, Peer};
use super::problem::Problem;
use crate::clock;
use crate::daemon::Daemon;
use crate::state::entry::Entry;
use crate::tenants::policy::{Policy, TenantName};
use crate::tenants::tenant::Tenant;

/// A policy usually has a few hundred bytes; with 100 secrets of 128 bytes it has some 13 KiB.
const MAX_POLICY_BYTES: usize = 64 * 1024;

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Operator(peer): Operator,
    wanted: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let page = Page::of(wanted)?;
    let after = page.after.as_deref().map(str::parse::<TenantName>).transpose()?;
    let tenants = daemon.tenants_after(after.as_ref(), page.limit + 1);
    let asked = Arc::clone(&daemon);
    let write =
        move || page.write("tenants", tenants, |tenant| tenant.name.clone(), |tenant| show_row(tenant, &daemon));
    respond(PAGE_BYTES, peer.uid, &asked, write).await
}

pub(crate) async fn show(
    State(daemon): State<Arc<Daemon>>,
    ActingFor { peer, tenant: name }: ActingFor,
) -> Result<Response, Problem> {
    let tenant = daemon.known_tenant(&name);
    let tenant =
        tenant.ok_or_else(|| Problem::not_found(format!("tenant {name} has no policy and has run nothing")))?;
    respond_with(tenant, peer, &daemon).await
}

pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
    Operator(peer): Operator,
    body: Body,
) -> Result<Response, Problem> {
    let RawBody { bytes, held: _held } = read_body(body, MAX_POLICY_BYTES, peer.uid, &daemon).await?;
    let policy: Policy = object(&bytes)?;
    policy.check(daemon.config.workers.max_memory_mb).map_err(|error| Problem::bad_request(error.to_string()))?;
    let tenant = daemon.tenant(&name, peer.uid)?;
    let held = daemon.supplies.scripts.take(peer.uid, policy.bytes())?;
    let set = serde_json::to_value(show_policy(&policy)).unwrap_or_default();
    let entry = Entry::PolicyChanged { tenant: name.to_string(), policy: set, by_uid: peer.uid };
    let turn = daemon.writes.turn(peer.uid).await;
    let line = daemon.warden.recorder.room(peer.uid, &entry)?;
    let (keeper, whose) = (Arc::clone(&daemon), Arc::clone(&tenant));
    // Writing the policy waits for the disk.
    let write = move || {
        let kept = keeper.set_policy(&whose, policy, held, line);
        drop(turn);
        kept
    };
    let kept = tokio::task::spawn_blocking(write).await;
    let written = kept.map_err(|_| Problem::internal("writing the policy was interrupted"))??;
    // The new policy may keep the tenant from sharing a process with its present neighbours.
    daemon.warden.ask_for_move(&tenant);
    written.wait().await?;
    respond_with(tenant, peer, &daemon).await
}

/// A tenant as the peer may see it. The tenant's policy and history may be long, so the answer is
/// charged for their length.
pub(super) async fn respond_with(tenant: Arc<Tenant>, peer: Peer, daemon: &Arc<Daemon>) -> Result<Response, Problem> {
    // A move in the history is charged as if it were an order with the longest reason.
    let policy = usize::try_from(tenant.policy().bytes()).unwrap_or(usize::MAX);
    let history = if peer.operates(daemon) { tenant.standing().history().len() * MAX_REASON_BYTES } else { 0 };
    let asked = Arc::clone(daemon);
    let write = move || {
        let shown = if peer.operates(&asked) {
            TenantView::Full(Box::new(show_tenant(&tenant, &asked)))
        } else {
            TenantView::Own(show_own(&tenant))
        };
        serde_json::to_vec(&shown).unwrap_or_default()
    };
    respond(policy.saturating_add(history), peer.uid, daemon, write).await
}

/// Parses a small JSON object. (For a struct, serde would also accept an array of the field values
/// in order.)
pub(super) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(error.to_string())),
        Some(_) => Err(Problem::bad_request("the body must be a JSON object")),
    }
}

/// A policy in its API form.
pub(super) fn show_policy(policy: &Policy) -> ShownPolicy {
    let Policy { limits, quota, owner, trust, secrets, allow_eval } = policy.clone();
    ShownPolicy {
        limits: limits.into(),
        quota: Quota { in_flight: quota.in_flight, per_second: quota.per_second, burst: quota.burst },
        owner,
        trust,
        secrets,
        allow_eval,
    }
}

/// Where the tenant must live, and why: its score, the signals that the score consists of, and its
/// history.
fn show_cordon(tenant: &Tenant, daemon: &Daemon) -> Cordon {
    let (rules, now) = (&daemon.config.cordon.rules, clock::now());
    let around = tenant.circumstances(daemon.warden.engine_is_outdated());
    let standing = tenant.standing();
    let contributions = standing.contributions(around, rules, now);
    let signals = contributions.iter().map(|known| {
        let weight = rules.weight(known.signal);
        SignalState {
            signal: known.signal,
            source: known.source,
            points: tenths(known.points),
            weight: weight.points,
            half_life_secs: weight.half_life_secs,
            count: known.count,
            age_ms: known.age_ms,
            certain: known.certain,
        }
    });
    Cordon {
        level: standing.level(),
        since_unix_ms: standing.since().0,
        score: tenths(enisle_cordon::score::total(&contributions, rules)),
        thresholds: Thresholds { watch: rules.watch, solo: rules.solo, sealed: rules.sealed, expelled: rules.expelled },
        signals: signals.collect(),
        suspected_until_unix_ms: standing.suspected_until().map(|until| until.0),
        kept_apart: tenant.kept_apart().map(|apart| KeptApart { alone: apart.alone, for_ms: millis(apart.left) }),
        on_probation: tenant.on_probation().is_some(),
        order: standing.order().map(|order| StandingOrder {
            level: order.level,
            reason: order.reason.clone(),
            by_uid: order.by_uid,
            unix_ms: order.at.0,
        }),
        first_seen_unix_ms: standing.first_seen().0,
        history: standing.history().to_vec(),
    }
}

/// The view of a tenant for a peer that acts for it: nothing about others or the machine, and
/// nothing that would reveal how to stay just below the next level.
fn show_own(tenant: &Tenant) -> OwnTenant {
    let usage = tenant.usage_so_far();
    let standing = tenant.standing();
    OwnTenant {
        name: tenant.name.to_string(),
        policy: show_policy(&tenant.policy()),
        in_flight: tenant.in_flight(),
        cordon: OwnCordon { level: standing.level(), since_unix_ms: standing.since().0 },
        usage: OwnUsage { runs: usage.runs(), cpu_ms: usage.cpu_us / 1000, outcomes: usage.outcomes() },
    }
}

/// The view of a tenant for an operator.
fn show_tenant(tenant: &Tenant, daemon: &Daemon) -> Full {
    Full {
        name: tenant.name.to_string(),
        policy: show_policy(&tenant.policy()),
        in_flight: tenant.in_flight(),
        cordon: show_cordon(tenant, daemon),
        resident: show_home(daemon, tenant),
        usage: show_usage(tenant),
    }
}

/// A tenant in a list: without its policy and history, which may be long.
fn show_row(tenant: &Tenant, daemon: &Daemon) -> TenantRow {
    let around = tenant.circumstances(daemon.warden.engine_is_outdated());
    let cordon = {
        let standing = tenant.standing();
        let score = standing.score(around, &daemon.config.cordon.rules, clock::now());
        CordonRow { level: standing.level(), since_unix_ms: standing.since().0, score: tenths(score) }
    };
    TenantRow {
        name: tenant.name.to_string(),
        in_flight: tenant.in_flight(),
        cordon,
        resident: show_home(daemon, tenant),
        usage: show_usage(tenant),
    }
}

fn show_home(daemon: &Daemon, tenant: &Tenant) -> Option<HomeView> {
    let home = daemon.homes.current_home(&tenant.name)?;
    Some(HomeView {
        worker: home.worker.id,
        pid: home.worker.pid.as_raw(),
        cordon: home.worker.level,
        warm: home.is_idle(),
        unused_ms: millis(home.unused_for()),
    })
}

fn show_usage(tenant: &Tenant) -> TenantUsage {
    let usage = tenant.usage_so_far();
    TenantUsage {
        runs: usage.runs(),
        begun: usage.begun,
        fenced: usage.fenced,
        cpu_ms: micros_as_ms(usage.cpu_us),
        outcomes: usage.outcomes(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
    use enisle_api::types::policy::{PolicyRequest, RequestedLimits, RequestedQuota};

    use super::*;
    use crate::api::described::known_by;

    /// The API's names: configuration files have other names for the same fields.
    fn known(body: &str) -> BTreeSet<String> {
        let problem = serde_json::to_value(object::<Policy>(body.as_bytes()).unwrap_err()).unwrap();
        known_by(problem["detail"].as_str().unwrap()).into_iter().filter(|name| !name.contains('_')).collect()
    }

    #[test]
    fn the_fields_of_a_policy_are_the_documented_ones() {
        assert_eq!(known(r#"{"unknown": 1}"#), fields_of::<PolicyRequest>());
        assert_eq!(known(r#"{"limits": {"unknown": 1}}"#), fields_of::<RequestedLimits>());
        assert_eq!(known(r#"{"quota": {"unknown": 1}}"#), fields_of::<RequestedQuota>());
    }

    #[test]
    fn a_policy_can_be_set_as_it_is_shown() {
        let owner = Some("o".to_owned());
        for policy in [Policy::default(), Policy { owner, secrets: vec!["s".to_owned()], ..Policy::default() }] {
            let shown = serde_json::to_value(show_policy(&policy)).unwrap();
            let request: PolicyRequest = serde_json::from_value(shown).unwrap();
            assert_eq!(object::<Policy>(&serde_json::to_vec(&request).unwrap()).unwrap(), policy);
        }
    }
}
