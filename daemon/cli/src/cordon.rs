//! `enisle inspect TENANT` and `enisle cordon TENANT …`: how a tenant stands, and an operator's word about it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use enisle_cordon::Level;
use serde_json::{Value, json};

use crate::Failure;
use crate::client::{Client, encoded, segment};
use crate::show::{self, one_line};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Change {
    /// The tenant's name.
    tenant: String,
    /// At least so far out from now on: solo, sealed or expelled.
    #[arg(group = "what")]
    level: Option<Level>,
    /// Let it in again, and forgive what has counted against it.
    #[arg(long, group = "what")]
    lift: bool,
    /// Why; it is written to the audit log.
    #[arg(long)]
    reason: String,
}

pub(crate) async fn change(change: Change, client: &Client, as_json: bool) -> Result<u8, Failure> {
    let path = format!("/v1/tenants/{}/cordon", segment(&change.tenant)?);
    let tenant = match change.level {
        Some(level) => {
            let body = json!({ "level": level, "reason": change.reason }).to_string();
            client.put(&path, body.into_bytes()).await?
        }
        None => client.delete(&format!("{path}?reason={}", encoded(&change.reason))).await?,
    };
    if as_json {
        show::json(&tenant)?;
    } else {
        outln!("{} is {} from now on", change.tenant, text(&tenant.value()?["cordon"]["level"]));
    }
    Ok(0)
}

pub(crate) fn inspect(tenant: &Value) {
    for line in describe(tenant, SystemTime::now()) {
        outln!("{}", one_line(&line));
    }
}

/// For people: where it lives, why, and what it has used.
fn describe(tenant: &Value, now: SystemTime) -> Vec<String> {
    let (cordon, thresholds) = (&tenant["cordon"], &tenant["cordon"]["thresholds"]);
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let ago = |at: &Value| age(now_ms.saturating_sub(at.as_u64().unwrap_or(now_ms)));
    let mut first =
        format!("{}: {} for {}", text(&tenant["name"]), text(&cordon["level"]), ago(&cordon["sinceUnixMs"]));
    // Only operators are told.
    if thresholds.is_object() {
        first += &format!(
            ", score {} (watched from {}, solo {}, sealed {}, expelled {})",
            cordon["score"], thresholds["watch"], thresholds["solo"], thresholds["sealed"], thresholds["expelled"],
        );
    }
    let mut lines = vec![first];
    if let Some(order) = cordon["order"].as_object() {
        lines.push(format!(
            "  ordered  {} by uid {} {} ago: {}",
            text(&order["level"]),
            order["byUid"],
            ago(&order["unixMs"]),
            text(&order["reason"])
        ));
    }
    if let Some(until) = cordon["suspectedUntilUnixMs"].as_u64() {
        lines.push(format!(
            "  suspected for {} more: it has ended a process, or may have",
            age(until.saturating_sub(now_ms))
        ));
    }
    if let Some(apart) = cordon["keptApart"].as_object() {
        let with = if apart["alone"] == true { "alone" } else { "with half of those who were there" };
        let left = age(apart["forMs"].as_u64().unwrap_or(0));
        lines.push(format!("  kept {with} for {left} more: a process that it was in died, and nobody knows why"));
    }
    if cordon["onProbation"] == true {
        lines.push("  on probation: it has a new home, and its uid's budget of deaths was used up".to_owned());
    }
    let signals = cordon["signals"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !signals.is_empty() {
        lines.push(format!(
            "  {:<16} {:<10} {:>7} {:>7} {:>6} {:>8}  HALF-LIFE",
            "SIGNAL", "SOURCE", "POINTS", "WEIGHT", "TIMES", "LAST"
        ));
    }
    for signal in signals {
        lines.push(format!(
            "  {:<16} {:<10} {:>7} {:>7} {:>6} {:>8}  {}{}",
            text(&signal["signal"]),
            text(&signal["source"]),
            signal["points"].to_string(),
            signal["weight"].to_string(),
            signal["count"].to_string(),
            age(signal["ageMs"].as_u64().unwrap_or(0)),
            age(signal["halfLifeSecs"].as_u64().unwrap_or(0) * 1000),
            if signal["certain"] == false { "  in company: perhaps another's doing" } else { "" },
        ));
    }
    for past in cordon["history"].as_array().into_iter().flatten().rev() {
        let reasons: Vec<_> = past["reasons"].as_array().into_iter().flatten().map(in_words).collect();
        lines.push(format!(
            "  {:>8} ago {} -> {}: {}",
            ago(&past["at"]),
            text(&past["from"]),
            text(&past["to"]),
            reasons.join(", ")
        ));
    }
    let usage = &tenant["usage"];
    lines.push(format!("  runs {}, {} ms of CPU, outcomes {}", usage["runs"], usage["cpuMs"], usage["outcomes"]));
    match tenant["resident"].as_object() {
        Some(home) => {
            lines.push(format!("  lives in worker {} (pid {}), {}", home["worker"], home["pid"], text(&home["cordon"])))
        }
        None => lines.push("  lives nowhere at the moment".to_owned()),
    }
    lines.push(format!("  policy {}", tenant["policy"]));
    lines
}

/// One reason of a decision.
fn in_words(reason: &Value) -> String {
    match text(&reason["because"]).as_str() {
        "score" => format!("score {:.0} of {}", reason["score"].as_f64().unwrap_or(0.0), reason["threshold"]),
        "signal" => format!("{} {:.0}", text(&reason["signal"]), reason["points"].as_f64().unwrap_or(0.0)),
        "suspected" => "suspected".to_owned(),
        "unsuspected" => "no longer suspected".to_owned(),
        "order" => format!("uid {} said so: {}", reason["byUid"], text(&reason["reason"])),
        "lifted" => format!("uid {} lifted it: {}", reason["byUid"], text(&reason["reason"])),
        "clean" => format!("clean for {}", age(reason["forMs"].as_u64().unwrap_or(0))),
        _ => reason.to_string(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A duration, in the largest unit that it has two of.
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
    use super::*;

    #[test]
    fn ages_are_short() {
        assert_eq!([0, 119_000, 120_000, 7_200_000, 172_800_000].map(age), ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_tenant_is_described_with_its_reasons() {
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let tenant = json!({ "name": "t", "cordon": { "level": "sealed", "sinceUnixMs": 1000, "score": 100.0,
            "thresholds": { "watch": 30, "solo": 60, "sealed": 90, "expelled": 180 },
            "signals": [{ "signal": "refusedCall", "source": "kernel", "points": 100.0, "weight": 100.0, "count": 1,
                          "ageMs": 2000, "halfLifeSecs": 2_592_000, "certain": true }],
            "history": [{ "at": 1000, "from": "shared", "to": "sealed",
                          "reasons": [{ "because": "score", "score": 100.4, "threshold": 90.0 }] }] } });
        let lines = describe(&tenant, at(61)).join("\n");
        for part in [
            "t: sealed for 60 s, score 100.0",
            "refusedCall      kernel",
            "30 d",
            "shared -> sealed: score 100 of 90.0",
        ] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
    }
}
