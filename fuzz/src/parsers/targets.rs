//! The targets, one row each. The head of each file here says what its targets attack, and how
//! their oracles judge.

mod bodies;
mod config;
mod cordon;
mod filter;
mod http;
mod inspection;
mod kernel;
mod limits;
mod names;
mod records;
mod shares;
mod wire;

use arbitrary::Unstructured;

/// Code that is fuzzed, with its oracle.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name on the command line, and of the corpus.
    pub name: &'static str,
    /// Runs one case, made from these bytes.
    ///
    /// # Errors
    /// What was expected, and what was seen.
    pub run: fn(&mut Unstructured<'_>) -> Result<(), String>,
    /// How many new cases the smoke test runs: as many as take a few seconds.
    pub smoke: u32,
}

macro_rules! targets {
    ($($name:literal $run:path, $smoke:literal;)+) => {
        /// Every target.
        pub const TARGETS: &[Target] = &[$(Target { name: $name, run: $run, smoke: $smoke }),+];
    };
}

targets! {
    "to-tenant" wire::to_tenant, 1000;
    "from-tenant" wire::from_tenant, 3000;
    "to-worker" wire::to_worker, 3000;
    "from-worker" wire::from_worker, 3000;
    "tenant-session" wire::tenant_session, 4000;
    "worker-session" wire::worker_session, 4000;
    "http" http::http, 12000;
    "load-body" bodies::load_body, 4000;
    "json-text" bodies::json_text, 4000;
    "answer" bodies::answer, 1000;
    "config" config::config, 3000;
    "filter" filter::filter, 600;
    "smaps" kernel::smaps, 3000;
    "proc-stat" kernel::proc_stat, 3000;
    "inspection" inspection::inspection, 2000;
    "fault-page" kernel::fault_page, 3000;
    "audit-chain" records::audit_chain, 2000;
    "replay" records::replay, 150;
    "records" records::records, 150;
    "policies" records::policies, 400;
    "standing" cordon::standing, 1000;
    "placement" cordon::placement, 3000;
    "deaths" cordon::deaths, 3000;
    "shares" shares::shares, 3000;
    "limits" limits::limits, 2000;
    "names" names::names, 4000;
}
