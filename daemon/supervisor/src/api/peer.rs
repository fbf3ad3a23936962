//! Who is calling (`SO_PEERCRED`, so the kernel says it), and what the policy lets them do.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::problem::Problem;
use crate::config::Peer as Rule;
use crate::daemon::{Daemon, RunError};
use crate::events::What;
use crate::policy::TenantName;

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // The server puts it into every request; a request without it is nobody's.
        Ok(parts.extensions.get().copied().unwrap_or(Self { uid: u32::MAX }))
    }
}

impl Peer {
    fn is_owner(self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }

    fn rules(self, rules: &[Rule]) -> impl Iterator<Item = &Rule> {
        rules.iter().filter(move |rule| rule.uid == self.uid)
    }

    fn may_act_for(self, tenant: &TenantName, rules: &[Rule]) -> bool {
        let mut patterns = self.rules(rules).flat_map(|rule| &rule.tenants);
        self.is_owner() || patterns.any(|pattern| pattern.covers(tenant.as_str()))
    }

    /// Whether a rule names it, or it needs none.
    pub(super) fn may_ask(self, rules: &[Rule]) -> bool {
        self.is_owner() || self.rules(rules).next().is_some()
    }

    fn may_operate(self, rules: &[Rule]) -> bool {
        self.is_owner() || self.rules(rules).any(|rule| rule.operate)
    }

    /// Asks to act for a tenant.
    pub(crate) fn act_for(self, tenant: &TenantName, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_act_for(tenant, &daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, format!("act for tenant {tenant}"), "tenants = [\"…\"]"))
    }

    /// Asks what this daemon is, which anybody may whom a rule names.
    pub(crate) fn ask(self, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_ask(&daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, "ask what this daemon is".to_owned(), "tenants = [\"…\"]"))
    }

    /// Whether what it is shown is an operator's view.
    pub(crate) fn operates(self, daemon: &Daemon) -> bool {
        self.may_operate(&daemon.config.peers)
    }

    /// Why a run was not begun. Why a tenant is expelled is for operators.
    pub(crate) fn told(self, error: RunError, daemon: &Daemon) -> Problem {
        match error {
            RunError::Expelled { tenant, .. } if !self.operates(daemon) => Problem::expelled(format!(
                "tenant {tenant} is expelled and not run any more; an operator sees why, and may let it in again"
            )),
            error => error.into(),
        }
    }

    /// Asks to operate the daemon.
    pub(crate) fn operate(self, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_operate(&daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, "operate the daemon".to_owned(), "operate = true"))
    }

    fn denied(self, daemon: &Daemon, what: String, grant: &str) -> Problem {
        let uid = self.uid;
        let detail = format!(
            "uid {uid} may not {what}; an operator grants it in enisled.toml with [[peers]] uid = {uid}, {grant}"
        );
        daemon.events.tell(What::Denied { uid, what });
        Problem::forbidden(detail)
    }
}

/// The uid that acts for a tenant, by the rule that names it most exactly; none if no rule does.
pub(crate) fn whose(rules: &[Rule], tenant: &str) -> Option<u32> {
    let patterns = rules.iter().flat_map(|rule| rule.tenants.iter().map(|pattern| (pattern, rule.uid)));
    let matching = patterns.filter(|(pattern, _)| pattern.covers(tenant));
    matching.max_by_key(|(pattern, _)| pattern.exactness()).map(|(_, uid)| uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<Rule> {
        vec![Rule {
            uid: 4_000_000,
            tenants: vec!["acme-*".parse().unwrap(), "solo".parse().unwrap()],
            operate: false,
            share_percent: None,
        }]
    }

    #[test]
    fn a_peer_acts_for_the_tenants_that_its_rules_name_and_no_others() {
        let peer = Peer { uid: 4_000_000 };
        for (name, allowed) in [("acme-1", true), ("solo", true), ("solo2", false), ("acme", false)] {
            assert_eq!(peer.may_act_for(&name.parse().unwrap(), &rules()), allowed, "{name}");
        }
        assert!(!peer.may_operate(&rules()) && peer.may_ask(&rules()));
    }

    #[test]
    fn a_tenant_is_whose_rule_names_it_most_exactly() {
        let rule = |uid, pattern: &str| Rule { tenants: vec![pattern.parse().unwrap()], uid, ..rules().remove(0) };
        let rules = [rule(1, "*"), rule(2, "acme-*"), rule(3, "acme-x")];
        for (tenant, uid) in [("acme-x", 3), ("acme-y", 2), ("acme-", 2), ("other", 1)] {
            assert_eq!(whose(&rules, tenant), Some(uid), "{tenant}");
        }
        assert_eq!(whose(&rules[1..], "other"), None);
    }

    #[test]
    fn a_peer_without_rules_may_nothing_and_root_everything() {
        let name = "acme-1".parse().unwrap();
        let stranger = Peer { uid: 4_000_001 };
        assert!(!stranger.may_act_for(&name, &rules()) && !stranger.may_ask(&rules()));
        assert!(Peer { uid: 0 }.may_act_for(&name, &[]) && Peer { uid: 0 }.may_operate(&[]));
    }
}
