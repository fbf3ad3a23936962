//! The uid of a caller (`SO_PEERCRED`, so the kernel vouches for it), and what the rules let the
//! uid do.
//!
//! A handler takes the permission that it needs as an argument: [`Asking`], [`Operator`] or
//! [`ActingFor`]. Handlers that start a run or register a script take a [`Peer`] and leave the
//! check to `load::admit`, which reads and drops the body of a refused request.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts, Path, RawPathParams};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::config::Peer as Rule;
use crate::daemon::Daemon;
use crate::events::EventKind;
use crate::homes::pool::AdmitError;
use crate::runs::run::RunError;
use crate::tenants::policy::TenantName;
use crate::tenants::tenant::Expelled;

/// The user at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// A peer that may ask what this daemon is.
pub(crate) struct Asking(pub(crate) Peer);

/// A peer that may operate the daemon.
pub(crate) struct Operator(pub(crate) Peer);

/// A peer that may act for the tenant of the path.
pub(crate) struct ActingFor {
    pub(crate) peer: Peer,
    pub(crate) tenant: TenantName,
}

/// The tenant of the path.
pub(crate) struct Named(pub(crate) TenantName);

/// All parameters of the path. If one is not UTF-8, the answer is a problem, as for any other
/// error.
pub(crate) struct Segments<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(names) = path.map_err(|error| Problem::bad_request(error.body_text()))?;
        Ok(Self(names))
    }
}

impl<S: Sync> FromRequestParts<S> for Asking
where
    Arc<Daemon>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let peer = Peer::of(parts);
        peer.ask(&Arc::from_ref(state))?;
        Ok(Self(peer))
    }
}

impl<S: Sync> FromRequestParts<S> for Operator
where
    Arc<Daemon>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let peer = Peer::of(parts);
        peer.operate(&Arc::from_ref(state))?;
        Ok(Self(peer))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = RawPathParams::from_request_parts(parts, state).await;
        let path = path.map_err(|error| Problem::bad_request(error.body_text()))?;
        // Without a tenant in the route the name is empty, which is invalid.
        let name = path.iter().find(|(parameter, _)| *parameter == "tenant").map_or("", |(_, name)| name);
        Ok(Self(name.parse()?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ActingFor
where
    Arc<Daemon>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Named(tenant) = Named::from_request_parts(parts, state).await?;
        let peer = Peer::of(parts);
        peer.act_for(&tenant, &Arc::from_ref(state))?;
        Ok(Self { peer, tenant })
    }
}

impl Peer {
    fn of(parts: &Parts) -> Self {
        // The server adds the peer to every request; a request without a peer gets a uid without
        // rights.
        parts.extensions.get().copied().unwrap_or(Self { uid: u32::MAX })
    }

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

    /// Whether the uid is root's, the daemon's own, or named by a rule.
    pub(super) fn may_ask(self, rules: &[Rule]) -> bool {
        self.is_owner() || self.rules(rules).next().is_some()
    }

    fn may_operate(self, rules: &[Rule]) -> bool {
        self.is_owner() || self.rules(rules).any(|rule| rule.operate)
    }

    /// Checks that the peer may act for a tenant.
    pub(crate) fn act_for(self, tenant: &TenantName, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_act_for(tenant, &daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, format!("act for tenant {tenant}"), "tenants = [\"…\"]"))
    }

    /// Checks that the peer may ask what this daemon is: every uid that a rule names may.
    fn ask(self, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_ask(&daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, "ask what this daemon is".to_owned(), "tenants = [\"…\"]"))
    }

    /// Whether the peer gets an operator's view.
    pub(crate) fn operates(self, daemon: &Daemon) -> bool {
        self.may_operate(&daemon.config.peers)
    }

    /// Turns a run's error into a problem. Only operators learn why a tenant is expelled.
    pub(crate) fn run_problem(self, error: RunError, daemon: &Daemon) -> Problem {
        match error {
            RunError::Expelled(Expelled { tenant, .. })
            | RunError::Admit(AdmitError::Expelled(Expelled { tenant, .. }))
                if !self.operates(daemon) =>
            {
                Problem::expelled(format!(
                    "tenant {tenant} is expelled and no longer run; an operator can see why, and may let it back in"
                ))
            }
            error => error.into(),
        }
    }

    /// Checks that the peer may operate the daemon.
    fn operate(self, daemon: &Daemon) -> Result<(), Problem> {
        if self.may_operate(&daemon.config.peers) {
            return Ok(());
        }
        Err(self.denied(daemon, "operate the daemon".to_owned(), "operate = true"))
    }

    fn denied(self, daemon: &Daemon, what: String, grant: &str) -> Problem {
        let uid = self.uid;
        let detail = format!(
            "uid {uid} may not {what}; an operator can grant it in enisled.toml with [[peers]] uid = {uid}, {grant}"
        );
        daemon.events.emit(EventKind::Denied { uid, what });
        Problem::forbidden(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_that_is_not_text_is_answered_with_a_problem() {
        let route = axum::routing::get(async |Segments((_, _)): Segments<(String, String)>| "");
        let router = axum::Router::<()>::new().route("/{tenant}/{id}", route);
        for (path, status) in [("/a/%ff", 400), ("/%ff/a", 400), ("/a/%C3%A4", 200)] {
            let request = axum::extract::Request::get(path).body(axum::body::Body::empty()).unwrap();
            let answer = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            let is_problem = answer.headers()["content-type"] == "application/problem+json";
            assert_eq!(is_problem, status == 400, "{path}");
        }
    }

    fn rules() -> Vec<Rule> {
        vec![Rule {
            uid: 4_000_000,
            tenants: vec!["acme-*".parse().unwrap(), "solo".parse().unwrap()],
            operate: false,
            share_percent: None,
        }]
    }

    #[test]
    fn a_peer_acts_only_for_the_tenants_that_its_rules_name() {
        let peer = Peer { uid: 4_000_000 };
        for (name, allowed) in [("acme-1", true), ("solo", true), ("solo2", false), ("acme", false)] {
            assert_eq!(peer.may_act_for(&name.parse().unwrap(), &rules()), allowed, "{name}");
        }
        assert!(!peer.may_operate(&rules()) && peer.may_ask(&rules()));
    }

    #[test]
    fn a_peer_without_rules_may_do_nothing_and_root_everything() {
        let name = "acme-1".parse().unwrap();
        let stranger = Peer { uid: 4_000_001 };
        assert!(!stranger.may_act_for(&name, &rules()) && !stranger.may_ask(&rules()));
        assert!(Peer { uid: 0 }.may_act_for(&name, &[]) && Peer { uid: 0 }.may_operate(&[]));
    }
}
