//! `PUT`, `DELETE /v1/tenants/{tenant}/cordon`: an operator's order. `GET /v1/audit`: where the
//! audit log is, and its last line.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use enisle_api::bounds::MAX_REASON_BYTES;
use enisle_api::types::audit::AuditHead;
use enisle_cordon::Level;
use serde::Deserialize;

use super::body::{RawBody, read_body};
use super::peer::{Named, Operator};
use super::problem::Problem;
use super::tenants::{object, respond_with};
use crate::daemon::Daemon;
use crate::state::notes::{NotWritten, Refused};

/// An order is a level and a sentence.
const MAX_ORDER_BYTES: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    level: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LiftQuery {
    reason: Option<String>,
}

fn reason(text: &str) -> Result<String, Problem> {
    match text.trim() {
        "" => Err(Problem::bad_request("reason must not be empty: it is written to the audit log")),
        text if text.len() > MAX_REASON_BYTES => {
            Err(Problem::too_large(format!("reason has {} bytes; at most {MAX_REASON_BYTES} are allowed", text.len())))
        }
        text => Ok(text.to_owned()),
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::unavailable(refused.to_string())
    }
}

impl From<NotWritten> for Problem {
    fn from(error: NotWritten) -> Self {
        Self::internal(error.to_string())
    }
}

pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
    Operator(peer): Operator,
    body: Body,
) -> Result<Response, Problem> {
    let RawBody { bytes, held: _held } = read_body(body, MAX_ORDER_BYTES, peer.uid, &daemon).await?;
    let order: Order = object(&bytes)?;
    let reason = reason(&order.reason)?;
    let Ok(level) = order.level.parse::<Level>() else {
        let detail = format!("level is {:?}; it must be solo, sealed or expelled", order.level);
        return Err(Problem::bad_request(detail));
    };
    if level == Level::Shared {
        return Err(Problem::bad_request(
            "an order keeps a tenant out, so level must be solo, sealed or expelled; to let it back in, lift the order \
             (DELETE, or enisle cordon TENANT --lift)",
        ));
    }
    let tenant = daemon.tenant(&name, peer.uid)?;
    daemon.warden.command(&tenant, level, reason, peer.uid)?.wait().await?;
    respond_with(tenant, peer, &daemon).await
}

pub(crate) async fn lift(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
    Operator(peer): Operator,
    lift: Result<Query<LiftQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(lift) = lift.map_err(|error| Problem::bad_request(format!("{error}; the only parameter is reason")))?;
    let reason = reason(&lift.reason.unwrap_or_default())?;
    let tenant = daemon.known_tenant(&name);
    let tenant = tenant.ok_or_else(|| Problem::not_found(format!("tenant {name} is not known")))?;
    daemon.warden.forgive(&tenant, reason, peer.uid)?.wait().await?;
    respond_with(tenant, peer, &daemon).await
}

/// The folder of the log and its last line on disk, with which `enisle audit verify` compares the
/// files. Also how many lines were dropped because the disk was too slow.
pub(crate) async fn audit(State(daemon): State<Arc<Daemon>>, _: Operator) -> Json<AuditHead> {
    let recorder = &daemon.warden.recorder;
    let (folder, head) = (recorder.folder().display().to_string(), recorder.head());
    Json(AuditHead { folder, seq: head.seq, hash: head.hash, lost: recorder.lost() })
}

#[cfg(test)]
mod tests {
    use enisle_api::openapi::fields_of;
    use enisle_api::types::cordon::CordonRequest;

    use super::*;
    use crate::api::described::{known_by, reads_the_query_of};

    #[test]
    fn the_fields_of_an_order_are_the_documented_ones() {
        let problem = serde_json::to_value(object::<Order>(br#"{"unknown": 1}"#).unwrap_err()).unwrap();
        assert_eq!(known_by(problem["detail"].as_str().unwrap()), fields_of::<CordonRequest>());
        reads_the_query_of::<LiftQuery>("liftCordon");
    }
}
