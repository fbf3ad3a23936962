//! What a script finds in its global object besides the language, in two halves: native functions,
//! one file for each subject, and the runtime that calls them, in JavaScript (`runtime/*.js`).
//!
//! During a run, natives and callbacks find their state in slots of the isolate, one for each type
//! of state ([`console::Log`], [`timers::Timers`], [`callbacks::Failures`]). They use that state
//! and the tenant's memory, and must not depend on runs or resting isolates.

mod bytes;
pub(super) mod callbacks;
pub(super) mod console;
mod crypto;
pub(super) mod registry;
pub(super) mod runtime;
mod text;
pub(super) mod timers;
