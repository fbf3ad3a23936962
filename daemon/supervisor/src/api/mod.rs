//! The API: one file per resource; each handler parses, then acts.
//!
//! | file | what it is for |
//! |---|---|
//! | [`about`] | `HEAD /_ping`, `GET /openapi.json`, `GET /v1/version`, `GET /v1/info` |
//! | [`load`] | `POST /v1/tenants/{tenant}/load` |
//! | [`scripts`] | `PUT`, `GET`, `DELETE /v1/tenants/{tenant}/scripts/{id}`, `POST …/run` |
//! | [`tenants`] | `GET /v1/tenants`, `GET`, `PUT /v1/tenants/{tenant}` |
//! | [`cordon`] | `PUT`, `DELETE /v1/tenants/{tenant}/cordon`, `GET /v1/audit` |
//! | [`workers`] | `GET /v1/workers` |
//! | [`events`] | `GET /v1/events` |
//! | [`body`], [`code`], [`answer`] | bodies, the scripts in them, and answers, each held once |
//! | [`problem`] | every error, as RFC 9457 |
//! | [`server`] | the socket and its connections |
//! | [`page`] | long lists, a page at a time |
//! | [`pieces`] | long answers, in pieces, so that other clients get their turn |
//! | [`peer`] | the caller's uid, and what the rules let it do |
//! | `described` | tests: routes, requests and problems match `enisle-api` |

mod about;
pub(crate) mod answer;
mod body;
mod code;
mod cordon;
#[cfg(test)]
mod described;
mod events;
pub(crate) mod load;
mod page;
pub(crate) mod peer;
mod pieces;
pub(crate) mod problem;
mod scripts;
pub(crate) mod server;
mod tenants;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};

use enisle_api::API_VERSION;

use crate::daemon::Daemon;
use problem::Problem;

pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    let routes = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    routes
        .fallback(|| async { Problem::not_found("there is no such resource; GET /openapi.json lists them") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(axum::middleware::map_response(name_version))
        .with_state(daemon)
}

/// Every route. `described` checks that the routes are the operations of `enisle-api`.
fn routes<S>() -> [(&'static str, MethodRouter<S>); 13]
where
    S: Clone + Send + Sync + 'static,
    Arc<Daemon>: FromRef<S>,
{
    [
        ("/_ping", get(about::ping)),
        ("/openapi.json", get(about::document)),
        ("/v1/version", get(about::version)),
        ("/v1/info", get(about::info)),
        ("/v1/tenants", get(tenants::list)),
        ("/v1/tenants/{tenant}", get(tenants::show).put(tenants::put)),
        ("/v1/tenants/{tenant}/cordon", axum::routing::put(cordon::put).delete(cordon::lift)),
        ("/v1/audit", get(cordon::audit)),
        ("/v1/tenants/{tenant}/scripts/{id}", get(scripts::show_one).put(scripts::put).delete(scripts::forget)),
        ("/v1/tenants/{tenant}/scripts/{id}/run", post(scripts::run)),
        ("/v1/tenants/{tenant}/load", post(load::load)),
        ("/v1/workers", get(workers::list)),
        ("/v1/events", get(events::list)),
    ]
}

async fn name_version(mut response: Response) -> Response {
    response.headers_mut().insert(HeaderName::from_static("api-version"), HeaderValue::from_static(API_VERSION));
    response
}
