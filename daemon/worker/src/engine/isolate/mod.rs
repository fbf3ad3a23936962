//! Resting isolates: made from the startup snapshot ([`snapshot`]), entered only for a run
//! ([`resting`]), or kept between the runs of a script ([`shelf`]).
//!
//! This module owns every isolate from its creation to its disposal. It knows natives and modules,
//! which it passes to V8, and must not know what a run is.

pub(crate) mod resting;
pub(crate) mod shelf;
pub(crate) mod snapshot;
