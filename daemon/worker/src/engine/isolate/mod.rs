//! Isolates at rest: made from the startup snapshot ([`snapshot`]), entered only for a run
//! ([`resting`]), or kept between the runs of a script ([`shelf`]).
//!
//! This room owns every isolate from its making to its disposal. It knows natives and modules,
//! which it hands to V8, and may not know what a run is.

pub(crate) mod resting;
pub(crate) mod shelf;
pub(crate) mod snapshot;
