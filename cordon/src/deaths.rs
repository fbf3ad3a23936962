//! A uid's budget for the deaths of processes that its tenants are blamed for.
//!
//! A tenant that has killed a process lives alone for a while. But a peer with many names can kill
//! the next process under another name, and the neighbours lose their processes again and again.
//! So each uid also has a budget of deaths, which it regains over time. While the budget is used
//! up, every tenant of the uid that gets a new home is on probation, and lives alone until all
//! deaths are forgiven. So the number of processes that a neighbour loses is at most the budget
//! plus the number of deaths forgiven meanwhile. After that the neighbour lives alone too.
//!
//! ```text
//! clear ── deaths ──▶ within the budget ── deaths ──▶ used up
//!   ▲                      │  ▲                         │
//!   └───────── time ───────┘  └───────── time ──────────┘
//! ```
//!
//! The budget applies to every uid, even root: the neighbours that it protects are of the same uid,
//! since two uids never share a process. One tenant cannot use up the budget, because a tenant that
//! already lives alone costs nothing (`one_tenant_never_uses_up_a_budget` in `tests/model.rs`). No
//! tenant is refused because of deaths that others caused as long as the uid has a process that the
//! tenant may share, or may start another. The budget changes no tenant's standing.

use serde::{Deserialize, Serialize};

use crate::Level;
use crate::time::Time;

/// How many deaths of processes a uid may cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeathRules {
    /// With this many deaths not yet forgiven, the uid's new homes are single-tenant homes; 0
    /// switches this off.
    pub budget: u32,
    /// One death is forgiven each time this much time has passed.
    pub regain_secs: u64,
}

impl Default for DeathRules {
    fn default() -> Self {
        // A suspicion lasts ten minutes, so it takes at least two tenants to use up two deaths.
        // In the long run a neighbour can lose one process a minute, and with it one run, which
        // restarts.
        Self { budget: 2, regain_secs: 60 }
    }
}

/// At most this many budgets of deaths are remembered, so that a uid that stops is forgiven within
/// minutes.
const REMEMBERED: u32 = 5;

/// The deaths held against one uid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deaths {
    /// When the last of those deaths is forgiven.
    clear_at: Time,
}

impl Deaths {
    /// Charges the uid for a death that is blamed on a tenant. Until then the tenant's standing
    /// demanded `level`. If that level made the tenant live alone, the death costs nothing, because
    /// it cost no neighbour anything.
    pub fn blamed(&mut self, level: Level, rules: &DeathRules, now: Time) {
        if level == Level::Shared {
            let most = regain_ms(rules).saturating_mul((rules.budget * REMEMBERED).into());
            let clear_at = self.clear_at.max(now).plus(regain_ms(rules));
            self.clear_at = clear_at.min(now.plus(most));
        }
    }

    /// How many deaths are not forgiven yet.
    #[must_use]
    pub fn count(&self, rules: &DeathRules, now: Time) -> u64 {
        self.clear_at.since(now).div_ceil(regain_ms(rules))
    }

    /// Whether the budget is used up, so that the uid's new homes are single-tenant homes.
    #[must_use]
    pub fn is_used_up(&self, rules: &DeathRules, now: Time) -> bool {
        rules.budget > 0 && self.count(rules, now) >= rules.budget.into()
    }

    /// Whether all deaths are forgiven.
    #[must_use]
    pub fn is_clear(&self, now: Time) -> bool {
        self.clear_at <= now
    }

    /// Milliseconds until all deaths are forgiven.
    #[must_use]
    pub fn clear_in_ms(&self, now: Time) -> u64 {
        self.clear_at.since(now)
    }
}

fn regain_ms(rules: &DeathRules) -> u64 {
    rules.regain_secs.saturating_mul(1000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000);
    const MINUTE: u64 = 60_000;

    fn after(times: u32) -> Deaths {
        let mut deaths = Deaths::default();
        (0..times).for_each(|_| deaths.blamed(Level::Shared, &DeathRules::default(), START));
        deaths
    }

    #[test]
    fn a_budget_is_used_up_and_regained_one_a_minute() {
        let rules = DeathRules::default();
        let used_up = |times, ms| after(times).is_used_up(&rules, START.plus(ms));
        assert_eq!([used_up(0, 0), used_up(1, 0), used_up(2, 0)], [false, false, true]);
        assert_eq!([used_up(2, MINUTE - 1), used_up(2, MINUTE)], [true, false]);
        assert_eq!([used_up(3, MINUTE), used_up(3, 2 * MINUTE)], [true, false]);
        assert!(!after(2).is_clear(START.plus(2 * MINUTE - 1)) && after(2).is_clear(START.plus(2 * MINUTE)));
    }

    #[test]
    fn a_uid_that_stops_is_forgiven_within_minutes_however_many_deaths_it_caused() {
        let deaths = after(10_000);
        assert_eq!(deaths.count(&DeathRules::default(), START), 10);
        assert!(deaths.is_clear(START.plus(10 * MINUTE)));
    }

    #[test]
    fn a_tenant_that_lived_alone_costs_nothing() {
        let mut deaths = Deaths::default();
        for level in [Level::Solo, Level::Sealed] {
            deaths.blamed(level, &DeathRules::default(), START);
        }
        assert_eq!(deaths, Deaths::default());
    }

    #[test]
    fn a_budget_of_zero_is_never_used_up() {
        let rules = DeathRules { budget: 0, ..DeathRules::default() };
        let mut deaths = Deaths::default();
        (0..100).for_each(|_| deaths.blamed(Level::Shared, &rules, START));
        assert!(!deaths.is_used_up(&rules, START) && deaths.is_clear(START));
    }
}
