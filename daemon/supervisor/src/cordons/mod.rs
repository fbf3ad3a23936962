//! What is observed of tenants, and the decisions that follow.

pub(crate) mod counters;
pub(crate) mod meter;
pub(crate) mod warden;
