//! One run: from its frame to its end ([`execute`]), inside its isolate ([`script`],
//! [`event_loop`]), what is said of how it ended ([`outcome`], [`describe`]), and the time that it
//! sees ([`clock`]).
//!
//! This room owns what lives as long as a run. It is the outermost one of the engine: it may know
//! all others, and none of them knows it.

pub(crate) mod clock;
mod describe;
mod event_loop;
pub(crate) mod execute;
mod outcome;
mod script;
pub(crate) mod state;
