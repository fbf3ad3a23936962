//! The API: one file a resource, each parse, then act.
//!
//! | file | calls |
//! |---|---|
//! | [`about`] | `HEAD /_ping`, `GET /v1/version`, `GET /v1/info` |
//! | [`load`] | `POST /v1/tenants/{tenant}/load` |
//! | [`scripts`] | `PUT`, `GET`, `DELETE /v1/tenants/{tenant}/scripts/{id}`, `POST …/run` |
//! | [`tenants`] | `GET /v1/tenants`, `GET`, `PUT /v1/tenants/{tenant}` |
//! | [`cordon`] | `PUT`, `DELETE /v1/tenants/{tenant}/cordon`, `GET /v1/audit` |
//! | [`workers`] | `GET /v1/workers` |
//! | [`events`] | `GET /v1/events` |
//! | [`body`], [`code`], [`answer`] | bodies, scripts in them, answers, each held once |
//! | [`problem`] | every error, as RFC 9457 |
//! | [`page`] | long lists, a page at a time |
//! | [`pieces`] | long answers, in pieces between which others have their turn |
//! | [`peer`] | who is calling, and what the policy lets them do |

mod about;
mod answer;
mod body;
mod code;
mod cordon;
mod events;
mod load;
mod page;
pub(crate) mod peer;
mod pieces;
pub(crate) mod problem;
mod scripts;
mod tenants;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use axum::routing::{get, post};

use crate::daemon::Daemon;
use problem::Problem;

/// The API's version, as `HEAD /_ping` tells it.
pub(crate) const API_VERSION: &str = "1";

pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/_ping", get(about::ping))
        .route("/v1/version", get(about::version))
        .route("/v1/info", get(about::info))
        .route("/v1/tenants", get(tenants::list))
        .route("/v1/tenants/{tenant}", get(tenants::show).put(tenants::put))
        .route("/v1/tenants/{tenant}/cordon", axum::routing::put(cordon::put).delete(cordon::lift))
        .route("/v1/audit", get(cordon::audit))
        .route("/v1/tenants/{tenant}/scripts/{id}", get(scripts::show_one).put(scripts::put).delete(scripts::forget))
        .route("/v1/tenants/{tenant}/scripts/{id}/run", post(scripts::run))
        .route("/v1/tenants/{tenant}/load", post(load::load))
        .route("/v1/workers", get(workers::list))
        .route("/v1/events", get(events::list))
        .fallback(|| async { Problem::not_found("there is no such resource; GET /v1/info and the README list them") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(axum::middleware::map_response(name_version))
        .with_state(daemon)
}

async fn name_version(mut response: Response) -> Response {
    response.headers_mut().insert(HeaderName::from_static("api-version"), HeaderValue::from_static(API_VERSION));
    response
}

/// A value with its keys in camelCase: configuration and API share types, and each keeps its own custom.
fn camel_case(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (camel(&key), camel_case(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(camel_case).collect()),
        other => other,
    }
}

fn camel(key: &str) -> String {
    let mut parts = key.split('_');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_camel_case_at_every_depth() {
        let value = serde_json::json!({"cpu_ms": [{"log_bytes": 1}]});
        assert_eq!(camel_case(value), serde_json::json!({"cpuMs": [{"logBytes": 1}]}));
    }
}
