//! Resting isolates: how they are made from the startup snapshot ([`snapshot`]), entered for a run
//! ([`resting`]), and kept between the runs of a script ([`shelf`]).
//!
//! This module owns every isolate of a tenant from its creation to its disposal. It passes natives
//! and modules to V8, and must not depend on runs.

pub(crate) mod resting;
pub(crate) mod shelf;
pub(crate) mod snapshot;
