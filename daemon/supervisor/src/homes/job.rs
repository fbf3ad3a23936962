//! A run on its way to a worker, in the parts that are sent: each part is encoded once, sent again
//! if the worker dies, and held in memory once, however many runs share it.

use std::sync::Arc;

use axum::body::Bytes;
use enisle_wire::frame::HEADER_BYTES;
use enisle_wire::limits::Limits;
use enisle_wire::tenant::{Env, Run, ToTenant};
use enisle_wire::{FrameError, MAX_TO_TENANT_BYTES, decode, encode};

use crate::json_text::{entries, is_named};
use crate::share::{Exhausted, charged};
use crate::tenants::in_flight::InFlight;

#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) run: Run,
    /// The `Input` frame.
    pub(crate) input: Bytes,
    /// The `Env` frame.
    pub(crate) env: Bytes,
    /// The `Code` frame.
    pub(crate) code: Bytes,
    /// The run's place in the quota. It is given back when the last copy of the job is dropped.
    pub(crate) in_flight: Arc<InFlight>,
}

impl Job {
    /// The parts that are sent at once, in order. The code is not among them if the home may have
    /// an isolate of the script.
    pub(crate) fn parts(&self) -> Result<Vec<Bytes>, FrameError> {
        let run = encode(&ToTenant::Run(self.run.clone()), MAX_TO_TENANT_BYTES)?;
        let mut parts = vec![run.into(), self.input.clone(), self.env.clone()];
        if self.run.keep.is_none() {
            parts.push(self.code.clone());
        }
        Ok(parts)
    }

    /// The same run as a sealed worker gets it: with lower limits, without the secrets in `env`,
    /// without code from strings. A new `env` is charged to the uid that asked for the run.
    pub(crate) fn sealed(mut self, limits: &Limits, secrets: &[String]) -> Result<Self, Unsealable> {
        self.run.limits = self.run.limits.lower(limits);
        self.run.allow_eval = false;
        if secrets.is_empty() {
            return Ok(self);
        }
        let mut held = self.in_flight.answer();
        held.grow(self.env.len() as u64)?;
        let body = self.env.get(HEADER_BYTES..).unwrap_or_default();
        let Ok(ToTenant::Env(Env { json })) = decode(body) else { return Err(Unsealable::NoEnv) };
        let env = encode(&ToTenant::Env(Env { json: without(&json, secrets) }), MAX_TO_TENANT_BYTES)?;
        self.env = charged(env, held);
        Ok(self)
    }
}

/// Why a run could not be prepared for a sealed worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsealable {
    #[error(transparent)]
    NoRoom(#[from] Exhausted),
    #[error("its env frame is not an env")]
    NoEnv,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A JSON object without some of its entries, the others unchanged; `{}` if `env` is not an object.
fn without(env: &str, secrets: &[String]) -> String {
    let mut kept = String::from("{");
    let read = entries(env.as_bytes(), |name, value| {
        if !secrets.iter().any(|secret| is_named(name, secret)) {
            let comma = if kept.len() > 1 { "," } else { "" };
            kept.extend([comma, name.get(), ":", value.get()]);
        }
        Ok(())
    });
    kept.push('}');
    if read.is_ok() { kept } else { "{}".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_and_nothing_else_is_changed() {
        let secrets = ["KEY".to_owned()];
        let env = r#"{"KEY":"x","n":1.50,"\u004bEY":3,"o":{"KEY":2}}"#;
        assert_eq!(without(env, &secrets), r#"{"n":1.50,"o":{"KEY":2}}"#);
        assert_eq!(without("not JSON", &secrets), "{}");
    }
}
