//! What a script finds in its global object, in two halves: native functions, one file for each
//! subject, and the runtime that calls them, one file of JavaScript for each (`runtime/*.js`).
//!
//! A native keeps its state for a run in an isolate slot of its own type ([`console::Log`],
//! [`timers::Timers`], [`callbacks::Failures`]). A native knows its slot and the tenant's memory,
//! and must not know runs or resting isolates.

mod bytes;
pub(super) mod callbacks;
pub(super) mod console;
mod crypto;
pub(super) mod registry;
pub(super) mod runtime;
mod text;
pub(super) mod timers;
