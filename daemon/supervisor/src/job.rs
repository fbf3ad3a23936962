//! A run on its way to a worker: encoded once, sent again if the worker dies, and changed for a home that gives less.

use std::sync::Arc;

use enisle_wire::frame::HEADER_BYTES;
use enisle_wire::tenant::{Limits, Run, RunId, ToTenant};
use enisle_wire::{FrameError, MAX_TO_TENANT_BYTES, decode, encode};
use serde_json::value::RawValue;

use crate::policy;

#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: RunId,
    pub(crate) limits: Limits,
    /// Its isolate stays, for runs with that number.
    pub(crate) keeps: Option<u64>,
    /// The `Run` frame.
    pub(crate) frame: Arc<[u8]>,
}

impl Job {
    /// Encodes a run.
    ///
    /// # Errors
    /// It is larger than any run may be.
    pub(crate) fn new(run: Run) -> Result<Self, FrameError> {
        let (id, limits, keeps) = (run.id, run.limits, run.keep);
        let frame = encode(&ToTenant::Run(Box::new(run)), MAX_TO_TENANT_BYTES)?;
        Ok(Self { id, limits, keeps, frame: frame.into() })
    }

    /// The same run as a sealed worker gets it: under lower limits, without the entries of `env` that are secrets, without code
    /// from strings.
    /// `None` if it is no run at all, which nobody makes.
    pub(crate) fn sealed(&self, limits: &policy::Limits, secrets: &[String]) -> Option<Self> {
        let body = self.frame.get(HEADER_BYTES..).unwrap_or_default();
        let Ok(ToTenant::Run(mut run)) = decode(body) else { return None };
        run.limits = limits.under(self.limits);
        run.allow_eval = false;
        run.env = without(&run.env, secrets);
        Self::new(*run).ok()
    }
}

/// A JSON object without some of its entries; the others as they were written. Nothing at all if it is none.
fn without(env: &str, secrets: &[String]) -> String {
    let entries = serde_json::from_str::<std::collections::BTreeMap<String, Box<RawValue>>>(env);
    let Ok(mut entries) = entries else { return "{}".to_owned() };
    entries.retain(|name, _| !secrets.contains(name));
    serde_json::to_string(&entries).unwrap_or_else(|_| "{}".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_and_nothing_else_is_changed() {
        let secrets = ["KEY".to_owned()];
        assert_eq!(without(r#"{"KEY":"x","n":1.50,"o":{"KEY":2}}"#, &secrets), r#"{"n":1.50,"o":{"KEY":2}}"#);
        assert_eq!(without("no json", &secrets), "{}");
    }
}
