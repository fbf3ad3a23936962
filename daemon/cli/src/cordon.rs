//! `enisle inspect TENANT` and `enisle cordon TENANT …`: a tenant's standing, and an operator's
//! order about it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use enisle_api::client::{Client, encoded};
use enisle_api::types::cordon::{Cordon, CordonRequest, SignalState};
use enisle_api::types::policy::Policy;
use enisle_api::types::tenant::{HomeView, TenantView};
use enisle_cordon::Level;
use enisle_cordon::decide::{Past, Reason};
use serde::Serialize;

use crate::show::{self, one_line, word};
use crate::{Failure, segment};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Change {
    /// The tenant's name.
    tenant: String,
    /// The lowest cordon level that the tenant may have from now on: solo, sealed or expelled.
    #[arg(group = "what")]
    level: Option<Level>,
    /// Lift the order, and forgive what has counted against the tenant.
    #[arg(long, group = "what")]
    lift: bool,
    /// The reason, which is written to the audit log.
    #[arg(long)]
    reason: String,
}

pub(crate) async fn change(change: Change, client: &Client, as_json: bool) -> Result<u8, Failure> {
    let path = format!("/v1/tenants/{}/cordon", segment(&change.tenant)?);
    let tenant = match change.level {
        Some(level) => {
            let order = serde_json::to_vec(&CordonRequest { level, reason: change.reason });
            let order = order.map_err(|error| Failure::Usage(format!("this is not a valid order: {error}")))?;
            client.put(&path, order).await?
        }
        None => client.delete(&format!("{path}?reason={}", encoded(&change.reason))).await?,
    };
    if as_json {
        show::json(&tenant)?;
    } else {
        let level = match tenant.read::<TenantView>()? {
            TenantView::Full(tenant) => tenant.cordon.level,
            TenantView::Own(tenant) => tenant.cordon.level,
        };
        outln!("{} is {level} from now on", change.tenant);
    }
    Ok(0)
}

pub(crate) fn inspect(tenant: &TenantView) {
    for line in describe(tenant, SystemTime::now()) {
        outln!("{}", one_line(&line));
    }
}

/// The lines for people: the tenant's standing, its usage, its home and its policy.
fn describe(tenant: &TenantView, now: SystemTime) -> Vec<String> {
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    match tenant {
        TenantView::Full(tenant) => {
            let (name, usage) = (&tenant.name, &tenant.usage);
            let mut lines = stands(name, &tenant.cordon, now_ms);
            lines.push(used(usage.runs, &usage.cpu_ms, &usage.outcomes));
            lines.extend([lives(tenant.resident.as_ref()), policy(&tenant.policy)]);
            lines
        }
        // The reasons and the home are shown to operators only.
        TenantView::Own(tenant) => {
            let (cordon, usage) = (&tenant.cordon, &tenant.usage);
            let since = age(now_ms.saturating_sub(cordon.since_unix_ms));
            vec![
                format!("{}: {} for {since}", tenant.name, cordon.level),
                used(usage.runs, &usage.cpu_ms, &usage.outcomes),
                lives(None),
                policy(&tenant.policy),
            ]
        }
    }
}

/// A tenant's standing, and how it came about.
fn stands(name: &str, cordon: &Cordon, now_ms: u64) -> Vec<String> {
    let ago = |at: u64| age(now_ms.saturating_sub(at));
    let left = |until: u64| age(until.saturating_sub(now_ms));
    let levels = &cordon.thresholds;
    let mut lines = vec![format!(
        "{name}: {} for {}, score {:?} (watched from {:?}, solo {:?}, sealed {:?}, expelled {:?})",
        cordon.level,
        ago(cordon.since_unix_ms),
        cordon.score,
        levels.watch,
        levels.solo,
        levels.sealed,
        levels.expelled,
    )];
    if let Some(order) = &cordon.order {
        let (level, uid, ago) = (order.level, order.by_uid, ago(order.unix_ms));
        lines.push(format!("  ordered  {level} by uid {uid} {ago} ago: {}", order.reason));
    }
    if let Some(until) = cordon.suspected_until_unix_ms {
        lines.push(format!("  suspected for {} more: it ended a process, or may have", left(until)));
    }
    if let Some(apart) = &cordon.kept_apart {
        let with = if apart.alone { "alone" } else { "with half of its former neighbours" };
        let left = age(apart.for_ms);
        lines.push(format!("  kept {with} for {left} more: a process that it lived in died for an unknown reason"));
    }
    if cordon.on_probation {
        lines.push("  on probation: it got its home while its uid's budget of deaths was used up".to_owned());
    }
    if !cordon.signals.is_empty() {
        lines.push(format!(
            "  {:<16} {:<10} {:>7} {:>7} {:>6} {:>8}  HALF-LIFE",
            "SIGNAL", "SOURCE", "POINTS", "WEIGHT", "TIMES", "LAST"
        ));
    }
    lines.extend(cordon.signals.iter().map(signal));
    for Past { at, from, to, reasons } in cordon.history.iter().rev() {
        let reasons: Vec<_> = reasons.iter().map(in_words).collect();
        lines.push(format!("  {:>8} ago {from} -> {to}: {}", ago(at.0), reasons.join(", ")));
    }
    lines
}

fn signal(state: &SignalState) -> String {
    let SignalState { points, weight, count, .. } = state;
    let in_company = if state.certain { "" } else { "  in company: perhaps caused by a neighbour" };
    format!(
        "  {:<16} {:<10} {points:>7?} {weight:>7?} {count:>6} {:>8}  {}{in_company}",
        word(&state.signal),
        word(&state.source),
        age(state.age_ms),
        age(state.half_life_secs * 1000),
    )
}

fn used(runs: u64, cpu_ms: &impl Serialize, outcomes: &impl Serialize) -> String {
    format!("  runs {runs}, {} ms of CPU, outcomes {}", json(cpu_ms), json(outcomes))
}

fn lives(home: Option<&HomeView>) -> String {
    match home {
        Some(HomeView { worker, pid, cordon, .. }) => format!("  lives in worker {worker} (pid {pid}), {cordon}"),
        None => "  lives nowhere at the moment".to_owned(),
    }
}

fn policy(policy: &Policy) -> String {
    format!("  policy {}", json(policy))
}

/// The value as JSON, with its keys in order.
fn json(value: &impl Serialize) -> String {
    serde_json::to_value(value).unwrap_or_default().to_string()
}

/// One reason of a decision.
fn in_words(reason: &Reason) -> String {
    match reason {
        Reason::Score { score, threshold } => format!("score {score:.0} of {threshold:?}"),
        Reason::Signal { signal, points, .. } => format!("{} {points:.0}", word(signal)),
        Reason::Suspected { .. } => "suspected".to_owned(),
        Reason::Unsuspected => "no longer suspected".to_owned(),
        Reason::Order { reason, by_uid } => format!("ordered by uid {by_uid}: {reason}"),
        Reason::Lifted { reason, by_uid } => format!("uid {by_uid} lifted it: {reason}"),
        Reason::Clean { for_ms, .. } => format!("clean for {}", age(*for_ms)),
    }
}

/// A duration, in the largest unit of which it has at least two.
fn age(ms: u64) -> String {
    let secs = Duration::from_millis(ms).as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use enisle_api::types::policy::Limits;
    use serde_json::json;

    use super::*;

    #[test]
    fn ages_are_short() {
        assert_eq!([0, 119_000, 120_000, 7_200_000, 172_800_000].map(age), ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_tenant_is_described_with_its_reasons() {
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let policy = json!({ "limits": Limits::from(enisle_wire::limits::Limits::default()),
            "quota": { "inFlight": 1, "perSecond": 1, "burst": 1 }, "trust": "standard", "secrets": [],
            "allowEval": false });
        let tenant = json!({ "name": "t", "policy": policy, "inFlight": 0, "resident": null,
            "cordon": { "level": "sealed", "sinceUnixMs": 1000, "score": 100.0,
            "thresholds": { "watch": 30.0, "solo": 60.0, "sealed": 90.0, "expelled": 180.0 },
            "signals": [{ "signal": "refusedCall", "source": "kernel", "points": 100.0, "weight": 100.0, "count": 1,
                          "ageMs": 2000, "halfLifeSecs": 2_592_000, "certain": true }],
            "suspectedUntilUnixMs": null, "keptApart": null, "onProbation": false, "order": null,
            "firstSeenUnixMs": 1000,
            "history": [{ "at": 1000, "from": "shared", "to": "sealed",
                          "reasons": [{ "because": "score", "score": 100.4, "threshold": 90.0 }] }] },
            "usage": { "runs": 3, "begun": 3, "fenced": 0, "cpuMs": 1.5, "outcomes": { "violation": 1, "ok": 2 } } });
        let tenant = serde_json::from_value(tenant).unwrap();
        let lines = describe(&tenant, at(61)).join("\n");
        for part in [
            "t: sealed for 60 s, score 100.0",
            "refusedCall      kernel",
            "30 d",
            "shared -> sealed: score 100 of 90.0",
            r#"  runs 3, 1.5 ms of CPU, outcomes {"ok":2,"violation":1}"#,
        ] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
    }
}
