//! `GET /v1/workers`: the worker processes.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use enisle_api::bounds::PAGE_BYTES;
use enisle_api::types::worker::Worker;

use super::body::respond;
use super::page::{Page, PageQuery};
use super::peer::Operator;
use super::problem::Problem;
use crate::daemon::Daemon;
use crate::homes::entries::Listed;

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Operator(peer): Operator,
    wanted: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let page = Page::of(wanted)?;
    let after = page.after.as_deref().map(str::parse::<u64>).transpose();
    let after = after.map_err(|error| Problem::bad_request(format!("after is not a worker id: {error}")))?;
    let mut workers = daemon.homes.pool.list();
    workers.retain(|listed| after.is_none_or(|after| listed.worker.id > after));
    workers.sort_unstable_by_key(|listed| listed.worker.id);
    workers.truncate(page.limit + 1);
    respond(PAGE_BYTES, peer.uid, &daemon, move || page.write("workers", workers, |listed| listed.worker.id, show))
        .await
}

fn show(listed: &Listed) -> Worker {
    let pid = listed.worker.pid.as_raw();
    Worker {
        id: listed.worker.id,
        pid,
        cordon: listed.worker.level,
        tenants: listed.tenants.clone(),
        places_used: listed.slots_used,
        places_ready: listed.standby,
        rss_bytes: rss_bytes(pid),
        committed_bytes: listed.worker.committed_bytes(),
        bound_bytes: listed.worker.bound,
        age_ms: u64::try_from(listed.worker.started_at.elapsed().as_millis()).unwrap_or(u64::MAX),
        v8: listed.worker.v8.clone(),
    }
}

/// Resident memory as reported by the kernel (`VmRSS`, proc_pid_status(5)); `None` if the process
/// has just ended.
fn rss_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}
