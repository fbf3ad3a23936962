//! What a script finds in its global object, in two halves: functions of ours, a file a subject,
//! and the runtime that calls them, a file of JavaScript for each (`runtime/*.js`).
//!
//! What a native keeps for a run lies in a slot of the isolate, of a type of its own
//! ([`console::Log`], [`timers::Timers`], [`callbacks::Failures`]). A native knows its slot and the
//! tenant's memory, and may not know runs or isolates at rest.

mod bytes;
pub(super) mod callbacks;
pub(super) mod console;
mod crypto;
pub(super) mod registry;
pub(super) mod runtime;
mod text;
pub(super) mod timers;
