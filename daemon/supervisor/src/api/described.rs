//! Compares the daemon's routes and its problems with what `enisle-api` declares. The fields of
//! requests and answers are compared beside the code that reads and writes them, with the help of
//! this module, and in the integration tests.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRef, Query, Request};
use axum::http::StatusCode;
use axum::{Router, middleware};
use enisle_api::OPERATIONS;
use enisle_api::operations::Method;
use enisle_api::types::problem::ProblemKind;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use super::problem::Problem;
use super::routes;
use crate::daemon::Daemon;
use crate::runs::run::RunError;
use crate::share::{Exhausted, Parts, Supply};
use crate::tenants::quota::OverQuota;

/// The names in backquotes after the first `expected` of an error about an unknown field: the known
/// fields.
pub(super) fn known_by(complaint: &str) -> BTreeSet<String> {
    let names = complaint.split_once("expected").map(|(_, names)| names).unwrap_or_default();
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Asserts that the parameters of a query type are those of an operation.
#[track_caller]
pub(super) fn reads_the_query_of<T: DeserializeOwned + std::fmt::Debug>(id: &str) {
    let error = Query::<T>::try_from_uri(&"/?unknown=1".parse().unwrap()).unwrap_err();
    // The error of a query has the complaint as its source.
    let complaint = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let operation = OPERATIONS.iter().find(|operation| operation.id == id).unwrap();
    let described: BTreeSet<_> = operation.query.iter().map(|parameter| parameter.name.to_owned()).collect();
    assert_eq!(known_by(&complaint), described, "{complaint}");
}

/// A state without a daemon, for routes whose handlers never run.
#[derive(Clone)]
struct NoDaemon;

impl FromRef<NoDaemon> for Arc<Daemon> {
    fn from_ref(_: &NoDaemon) -> Self {
        panic!("a handler ran")
    }
}

#[tokio::test]
async fn the_routes_are_the_operations() {
    let methods = Method::ALL.map(Method::as_str).into_iter().chain(["PATCH", "OPTIONS", "TRACE", "CONNECT"]);
    let mut answered = BTreeSet::new();
    for (path, route) in routes::<NoDaemon>() {
        // Replaces the handler, if the method has one.
        let reached = middleware::from_fn(async |_: Request, _| Ok::<_, Infallible>(StatusCode::IM_A_TEAPOT));
        let router = Router::new().route(path, route.route_layer(reached)).with_state(NoDaemon);
        for method in methods.clone() {
            let uri = path.replace(['{', '}'], "");
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            if router.clone().oneshot(request).await.unwrap().status() == StatusCode::IM_A_TEAPOT {
                answered.insert((path, method));
            }
        }
    }
    let described = OPERATIONS.iter().map(|operation| (operation.path, operation.method.as_str()));
    assert_eq!(answered, described.collect());
}

#[test]
fn every_problem_has_a_documented_kind() {
    let answer = RunError::Answer { bytes: 1, why: exhausted() };
    let problems = [
        Problem::bad_request("d"),
        Problem::forbidden("d"),
        Problem::expelled("d"),
        Problem::not_found("d"),
        Problem::method_not_allowed(),
        Problem::too_slow("d"),
        Problem::conflict("d"),
        Problem::too_large("d"),
        RunError::Quota(OverQuota::InFlight(1)).into(),
        Problem::internal("d"),
        Problem::unavailable("d"),
        answer.into(),
    ];
    for (problem, kind) in problems.into_iter().zip(ProblemKind::ALL) {
        let bytes = serde_json::to_vec(&problem).unwrap();
        let read: enisle_api::types::problem::Problem = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_vec(&read).unwrap(), bytes);
        let (status, _, title) = kind.parts();
        assert_eq!((read.status, read.kind, read.title.as_str()), (status, kind.urn(), title));
        let retry = axum::response::IntoResponse::into_response(problem).headers().contains_key("retry-after");
        assert_eq!(retry, kind.says_when_to_retry(), "{kind:?}");
    }
}

fn exhausted() -> Exhausted {
    Supply::new("units", 1, Parts::new(&[])).take(0, 2).unwrap_err()
}
