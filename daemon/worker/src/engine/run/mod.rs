//! One run: from its frame to its end ([`execute`]), inside its isolate ([`script`],
//! [`event_loop`]), the report of how it ended ([`outcome`], [`describe`]), and the time that it
//! sees ([`clock`]).
//!
//! This module owns what lives as long as a run. It is the outermost module of the engine: it may
//! import all others except `start`, and none of them imports it.

pub(crate) mod clock;
mod describe;
mod event_loop;
pub(crate) mod execute;
mod outcome;
mod script;
pub(crate) mod state;
