//! The V8 edge: the only part of the worker with `unsafe`.
//!
//! Each module imports only modules below it (`cargo xtask imports` checks that):
//!
//! | module | owns |
//! |---|---|
//! | [`start`] | V8's flags and its start, before the first tenant |
//! | [`run`] | one run, from its frame to its end; the time that it sees |
//! | [`isolate`] | resting isolates, the snapshot, isolates that are kept between runs |
//! | [`natives`] | native functions, and the runtime that calls them (`runtime/*.js`) |
//! | [`modules`] | a script's modules: compiled, linked and imported by exact name |
//! | [`memory`] | where a tenant's memory comes from, its key, and its limit |
//! | [`last_words`] | what a thread reports when V8 cannot continue |
//! | [`values`] | texts and errors that pass between V8 and the worker |
//! | [`kernel`] | random bytes, and the end of the process |

#[cfg(feature = "attack-natives")]
pub(crate) mod attack;
pub(crate) mod isolate;
mod kernel;
mod last_words;
pub(crate) mod memory;
mod modules;
mod natives;
pub(crate) mod run;
pub(crate) mod start;
mod values;
