//! Decides from observations where a tenant must live.
//!
//! Three causes each demand a level, and the furthest out counts. By its score the tenant *earns* a
//! level, with hysteresis. A *suspicion* demands `solo`, for ten minutes up to a day after the
//! tenant killed a process, or may have. An operator's *order* demands any level.
//!
//! A tenant moves outward at once. The earned level moves inward one level at a time, each time
//! after a clean period. Only an operator can let an expelled tenant back in.

use serde::{Deserialize, Serialize};

use crate::Level;
use crate::rules::Rules;
use crate::score::{Contribution, Score, total};
use crate::signal::{Kind, Seen, Signal, Source};
use crate::time::Time;

/// How far the operator trusts a tenant's code, as its policy says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Trust {
    /// The operator vouches for the tenant's code. The tenant shares a process only with other
    /// trusted tenants.
    Trusted,
    #[default]
    Standard,
    /// The tenant's code is not vouched for: a free account, code that a model wrote.
    Untrusted,
}

/// Facts that count for or against a tenant, whatever it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Circumstances {
    pub trust: Trust,
    /// V8 is older than the operator demands.
    pub outdated_engine: bool,
}

/// An operator's order: the tenant lives at least this far out until the order is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub level: Level,
    pub reason: String,
    pub by_uid: u32,
    pub at: Time,
}

/// Why a tenant moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Reason {
    /// The tenant's score has reached a threshold.
    Score { score: f64, threshold: f64 },
    /// One part of the score.
    Signal { signal: Signal, source: Source, points: f64, count: u32, age_ms: u64 },
    /// The tenant has killed a process, or may have, and lives alone for a while.
    Suspected { until: Time },
    /// An operator ordered the move.
    Order { reason: String, by_uid: u32 },
    /// An operator has forgiven the tenant.
    Lifted { reason: String, by_uid: u32 },
    /// No evidence and no nuisance has counted against the tenant for this long.
    Clean { for_ms: u64, score: f64 },
    /// The suspicion is over.
    Unsuspected,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Stay,
    Move { from: Level, to: Level, reasons: Vec<Reason> },
    Expel { from: Level, reasons: Vec<Reason> },
}

/// A past move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Past {
    pub at: Time,
    pub from: Level,
    pub to: Level,
    pub reasons: Vec<Reason>,
}

/// How many moves are remembered with a tenant; the audit log has all of them.
const REMEMBERED: usize = 20;

/// A tenant's standing: what is remembered of it, even across restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    score: Score,
    /// The level at which the tenant must live.
    level: Level,
    /// The level that the tenant's score has earned, by itself.
    earned: Level,
    since: Time,
    /// When evidence or nuisance last counted against the tenant.
    marked: Time,
    suspected_until: Time,
    order: Option<Box<Order>>,
    first_seen: Time,
    /// The latest moment of a decision. An earlier time counts as this moment.
    latest: Time,
    history: Vec<Past>,
}

impl Standing {
    /// The standing of a tenant that was never seen before.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            score: Score::default(),
            level: Level::Shared,
            earned: Level::Shared,
            since: now,
            marked: now,
            suspected_until: Time::default(),
            order: None,
            first_seen: now,
            latest: now,
            history: Vec::new(),
        }
    }

    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Since when the tenant has had this level.
    #[must_use]
    pub fn since(&self) -> Time {
        self.since
    }

    #[must_use]
    pub fn order(&self) -> Option<&Order> {
        self.order.as_deref()
    }

    #[must_use]
    pub fn first_seen(&self) -> Time {
        self.first_seen
    }

    /// When the suspicion ends; `None` if the tenant was not under suspicion at the last decision.
    #[must_use]
    pub fn suspected_until(&self) -> Option<Time> {
        (self.suspected_until > self.latest).then_some(self.suspected_until)
    }

    #[must_use]
    pub fn history(&self) -> &[Past] {
        &self.history
    }

    /// Forgets all but the `last` most recent moves.
    pub fn forget_moves_but(&mut self, last: usize) {
        let over = self.history.len().saturating_sub(last);
        if over > 0 {
            self.history.drain(..over);
            self.history.shrink_to_fit();
        }
    }

    /// Whether nothing is known about the tenant except that it exists: it may be forgotten.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.score.is_empty() && self.level == Level::Shared && self.order.is_none() && self.history.is_empty()
    }

    /// Whether nothing is known about the tenant but a few points: it may be forgotten if there is
    /// no room for all tenants.
    #[must_use]
    pub fn is_slight(&self, rules: &Rules, now: Time) -> bool {
        let points: f64 = self.score.contributions(rules, now.max(self.latest)).map(|known| known.points).sum();
        self.level == Level::Shared && self.order.is_none() && self.history.is_empty() && points < rules.watch
    }

    /// The score, signal by signal, largest first.
    #[must_use]
    pub fn contributions(&self, circumstances: Circumstances, rules: &Rules, now: Time) -> Vec<Contribution> {
        let now = now.max(self.latest);
        let mut list: Vec<_> = self.score.contributions(rules, now).collect();
        let known = circumstances.trust == Trust::Trusted;
        let new = now.since(self.first_seen) < rules.new_for_secs.saturating_mul(1000);
        for (signal, holds) in [
            (Signal::New, new && !known),
            (Signal::Untrusted, circumstances.trust == Trust::Untrusted),
            (Signal::OutdatedEngine, circumstances.outdated_engine && !known),
        ] {
            if holds {
                let (points, source) = (rules.weight(signal).points, signal.source());
                list.push(Contribution { signal, source, certain: true, points, count: 1, age_ms: 0 });
            }
        }
        list.sort_by(|one, other| other.points.total_cmp(&one.points));
        list
    }

    /// Whether the tenant may have attacked a neighbour, or may have been framed by one.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.score.has_doubtful_evidence()
    }

    /// The score at the moment `now`.
    #[must_use]
    pub fn score(&self, circumstances: Circumstances, rules: &Rules, now: Time) -> f64 {
        total(&self.contributions(circumstances, rules, now), rules)
    }

    /// Takes an operator's order. The order applies until it is lifted or replaced, and never keeps
    /// the tenant further in than its score demands.
    pub fn command(&mut self, order: Order, circumstances: Circumstances, rules: &Rules, now: Time) -> Decision {
        self.order = Some(Box::new(order));
        decide(self, &[], circumstances, rules, now)
    }

    /// An operator forgives everything: order, score and suspicion.
    pub fn forgive(&mut self, reason: String, by_uid: u32, now: Time) -> Decision {
        let now = now.max(self.latest);
        self.latest = now;
        self.score = Score::default();
        self.order = None;
        self.earned = Level::Shared;
        self.suspected_until = Time::default();
        self.set_level(Level::Shared, vec![Reason::Lifted { reason, by_uid }], now)
    }

    /// Sets the tenant's level, and remembers the reasons.
    fn set_level(&mut self, to: Level, reasons: Vec<Reason>, now: Time) -> Decision {
        let from = self.level;
        if to == from {
            return Decision::Stay;
        }
        self.level = to;
        self.since = now;
        if self.history.len() == REMEMBERED {
            self.history.remove(0);
        }
        self.history.push(Past { at: now, from, to, reasons: reasons.clone() });
        if to == Level::Expelled { Decision::Expel { from, reasons } } else { Decision::Move { from, to, reasons } }
    }
}

/// Takes in observations, and decides where the tenant must live from now on.
pub fn decide(
    standing: &mut Standing,
    seen: &[Seen],
    circumstances: Circumstances,
    rules: &Rules,
    now: Time,
) -> Decision {
    let now = now.max(standing.latest);
    standing.latest = now;
    for Seen { signal, certain } in seen {
        standing.score.add(*signal, *certain, rules, now);
        if matches!(signal.kind(), Kind::Evidence | Kind::Nuisance) {
            standing.marked = now;
        }
        // A tenant that was alone is suspected too: its next process might hold other tenants.
        if signal.takes_worker() {
            // Each suspicion lasts six times as long as the one before, up to the clean period.
            let times = standing.score.processes_taken().saturating_sub(1).min(8);
            let secs = rules.suspicion_secs.saturating_mul(6_u64.pow(times)).min(rules.back_after_secs);
            standing.suspected_until = standing.suspected_until.max(now.plus(secs.saturating_mul(1000)));
        }
    }
    standing.score.tidy(rules, now);
    let contributions = standing.contributions(circumstances, rules, now);
    let score = total(&contributions, rules);

    let (by_score, threshold) = [
        (Level::Expelled, rules.expelled),
        (Level::Sealed, rules.sealed),
        (Level::Solo, rules.solo),
        (Level::Shared, 0.0),
    ]
    .into_iter()
    .find(|(_, threshold)| score >= *threshold)
    .unwrap_or((Level::Shared, 0.0));
    let mut reasons = Vec::new();
    let clean_for = now.since(standing.marked.max(standing.since));
    if by_score > standing.earned {
        standing.earned = by_score;
        reasons.push(Reason::Score { score, threshold });
        reasons.extend(contributions.iter().filter(|known| known.points >= 1.0).map(|known| Reason::Signal {
            signal: known.signal,
            source: known.source,
            points: known.points,
            count: known.count,
            age_ms: known.age_ms,
        }));
    } else if (Level::Solo..Level::Expelled).contains(&standing.earned)
        && score < rules.back_below
        && clean_for >= rules.back_after_secs.saturating_mul(1000)
    {
        standing.earned = standing.earned.inward();
        reasons.push(Reason::Clean { for_ms: clean_for, score });
    }
    let suspected = standing.suspected_until > now;
    let suspicion = if suspected { Level::Solo } else { Level::Shared };
    let ordered = standing.order.as_ref().map_or(Level::Shared, |order| order.level);
    let to = standing.earned.max(suspicion).max(ordered);
    if reasons.is_empty() && to != standing.level {
        reasons.push(match standing.order() {
            Some(order) if ordered == to => Reason::Order { reason: order.reason.clone(), by_uid: order.by_uid },
            _ if suspected => Reason::Suspected { until: standing.suspected_until },
            _ => Reason::Unsuspected,
        });
    }
    standing.set_level(to, reasons, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_700_000_000_000);
    const DAY: u64 = 24 * 3600 * 1000;
    const KNOWN: Circumstances = Circumstances { trust: Trust::Trusted, outdated_engine: false };

    fn see(standing: &mut Standing, seen: Seen, after_ms: u64) -> Decision {
        decide(standing, &[seen], KNOWN, &Rules::default(), START.plus(after_ms))
    }

    fn look(standing: &mut Standing, after_ms: u64) -> Decision {
        decide(standing, &[], KNOWN, &Rules::default(), START.plus(after_ms))
    }

    #[test]
    fn a_violation_seals_and_a_second_one_expels_for_good() {
        let mut standing = Standing::new(START);
        let first = see(&mut standing, Seen::certain(Signal::RefusedCall), 0);
        assert!(matches!(&first, Decision::Move { to: Level::Sealed, reasons, .. } if reasons.len() >= 2), "{first:?}");
        assert!(matches!(see(&mut standing, Seen::certain(Signal::RefusedCall), 1), Decision::Expel { .. }));
        assert_eq!(look(&mut standing, 1000 * DAY), Decision::Stay);
        assert_eq!(standing.level(), Level::Expelled);
        assert!(matches!(standing.forgive("paid".into(), 0, START), Decision::Move { to: Level::Shared, .. }));
    }

    #[test]
    fn in_company_a_violation_causes_a_suspicion_that_ends() {
        let mut standing = Standing::new(START);
        let first = see(&mut standing, Seen::in_company(Signal::ClosedKey), 0);
        assert!(matches!(first, Decision::Move { to: Level::Solo, .. }), "{first:?}");
        assert!(standing.score(KNOWN, &Rules::default(), START) < Rules::default().solo);
        assert_eq!(look(&mut standing, 599_999), Decision::Stay);
        assert!(matches!(look(&mut standing, 600_000), Decision::Move { to: Level::Shared, .. }));
    }

    #[test]
    fn a_tenant_that_kills_a_process_is_kept_apart_even_if_it_was_alone() {
        let mut standing = Standing::new(START);
        see(&mut standing, Seen::certain(Signal::HardKill), 0);
        assert_eq!(standing.level(), Level::Solo);
        assert!(matches!(look(&mut standing, 600_000), Decision::Move { to: Level::Shared, .. }));
    }

    #[test]
    fn the_same_violation_is_certain_if_the_tenant_is_alone() {
        let mut standing = Standing::new(START);
        see(&mut standing, Seen::in_company(Signal::ClosedKey), 0);
        let second = see(&mut standing, Seen::certain(Signal::ClosedKey), 1000);
        assert!(matches!(second, Decision::Move { from: Level::Solo, to: Level::Sealed, .. }), "{second:?}");
    }

    #[test]
    fn a_tenant_moves_inward_one_level_at_a_time_each_time_after_a_clean_day() {
        let mut standing = Standing::new(START);
        see(&mut standing, Seen::certain(Signal::HardKill), 0);
        see(&mut standing, Seen::certain(Signal::HardKill), 0);
        assert_eq!(standing.level(), Level::Solo);
        assert_eq!(look(&mut standing, DAY), Decision::Stay, "clean, but its score is 40");
        assert!(matches!(look(&mut standing, 3 * DAY), Decision::Move { to: Level::Shared, .. }));
        let mut sealed = Standing::new(START);
        see(&mut sealed, Seen::certain(Signal::ClosedKey), 0);
        assert_eq!(look(&mut sealed, 60 * DAY), Decision::Stay, "its score is 25");
        assert!(matches!(look(&mut sealed, 90 * DAY), Decision::Move { to: Level::Solo, .. }));
        assert_eq!(look(&mut sealed, 90 * DAY + 1), Decision::Stay);
        assert!(matches!(look(&mut sealed, 91 * DAY), Decision::Move { to: Level::Shared, .. }));
    }

    #[test]
    fn an_order_applies_at_any_score_and_never_keeps_a_tenant_further_in() {
        let mut standing = Standing::new(START);
        let order = |level| Order { level, reason: "looks odd".into(), by_uid: 0, at: START };
        let rules = Rules::default();
        let ordered = standing.command(order(Level::Solo), KNOWN, &rules, START);
        assert!(matches!(&ordered, Decision::Move { to: Level::Solo, reasons, .. }
            if matches!(reasons.as_slice(), [Reason::Order { reason, .. }] if reason == "looks odd")));
        assert_eq!(look(&mut standing, 100 * DAY), Decision::Stay);
        let further = see(&mut standing, Seen::certain(Signal::Protocol), 100 * DAY);
        assert!(matches!(further, Decision::Move { to: Level::Sealed, .. }));
    }

    #[test]
    fn a_standing_is_read_back_unchanged() {
        let mut standing = Standing::new(START);
        see(&mut standing, Seen::in_company(Signal::ClosedKey), 5);
        see(&mut standing, Seen::certain(Signal::Busy), 6);
        let text = serde_json::to_string(&standing).unwrap();
        assert_eq!(serde_json::from_str::<Standing>(&text).unwrap(), standing);
    }
}
