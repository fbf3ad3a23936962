//! Replays at the start what the audit log has and the database of standings lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use enisle_cordon::audit::Verifier;
use enisle_cordon::{Circumstances, Level, Order, Rules, Standing, Time};
use serde::Deserialize;

use crate::clock;
use crate::files::Folder;
use crate::state::audit_log::every_file;
use crate::state::entry::Entry;
use crate::state::kept::Kept;
use crate::tenants::policy::TenantName;

/// Brings the standings up to the end of the audit log: applies the lines after the number `after`,
/// which the database lacks. Orders are given and lifted again. A tenant that was moved further out
/// than its standing then demands is kept there by an order of the daemon's own, until an operator
/// lifts that order. Returns the tenants whose lines were replayed.
pub(crate) fn replay(folder: &Folder, after: u64, kept: &mut Kept) -> io::Result<BTreeSet<TenantName>> {
    let mut decisions = Vec::new();
    let mut first = None;
    for file in every_file(folder)? {
        for text in String::from_utf8_lossy(&folder.read(&file)?).lines() {
            let Ok(Numbered { seq, unix_ms }) = serde_json::from_str(text) else { continue };
            if seq <= after {
                continue;
            }
            first = Some(first.map_or(seq, |first: u64| first.min(seq)));
            if let Ok(Decided { entry }) = serde_json::from_str(text) {
                decisions.push((seq, Time(unix_ms), entry, Verifier::default().read(text).is_ok()));
            }
        }
    }
    if let Some(first) = first.filter(|first| after > 0 && *first > after + 1) {
        let (from, to) = (after + 1, first - 1);
        kept.broken.push(format!(
            "lines {from} to {to} of the audit log are gone, and the database of standings does not know them"
        ));
    }
    decisions.sort_by_key(|(seq, ..)| *seq);
    let mut levels: BTreeMap<TenantName, Level> = BTreeMap::new();
    let mut changed = BTreeSet::new();
    for (_, at, entry, whole) in decisions {
        let (Entry::Moved { tenant, .. } | Entry::Ordered { tenant, .. } | Entry::Lifted { tenant, .. }) = &entry
        else {
            continue;
        };
        let Ok(tenant) = tenant.parse::<TenantName>() else { continue };
        changed.insert(tenant.clone());
        let standing = kept.standings.entry(tenant.clone()).or_insert_with(|| Standing::new(at));
        match entry {
            Entry::Moved { to, .. } => {
                let level = levels.entry(tenant.clone()).or_default();
                // A line that was tampered with may claim that a tenant was let back in.
                *level = if whole { to } else { to.max(*level) };
            }
            Entry::Ordered { level, reason, by_uid, .. } if whole || level > standing.level() => {
                standing.command(Order { level, reason, by_uid, at }, Circumstances::default(), &Rules::default(), at);
            }
            Entry::Lifted { reason, by_uid, .. } if whole => {
                standing.forgive(reason, by_uid, at);
                levels.remove(&tenant);
            }
            _ => {}
        }
    }
    let at = Time(clock::unix_ms());
    for (tenant, level) in levels {
        if let Some(standing) = kept.standings.get_mut(&tenant).filter(|standing| level > standing.level()) {
            let reason = match kept.lost {
                true => "as it was when the database of standings was lost",
                false => "as it was when the daemon ended before it had written the standings",
            };
            let order = Order { level, reason: reason.to_owned(), by_uid: nix::unistd::geteuid().as_raw(), at };
            standing.command(order, Circumstances::default(), &Rules::default(), at);
        }
    }
    kept.standings.retain(|tenant, standing| !(changed.contains(tenant) && standing.is_blank()));
    Ok(changed)
}

/// The number and time of a line of the audit log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Numbered {
    seq: u64,
    unix_ms: u64,
}

/// The decision of a line.
#[derive(Deserialize)]
pub(crate) struct Decided {
    pub(crate) entry: Entry,
}
