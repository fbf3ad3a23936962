//! The V8 edge: the only part of the worker with `unsafe`.
//!
//! Rooms, of which each imports only those below it (`cargo xtask imports` holds them to that):
//!
//! | room | owns |
//! |---|---|
//! | [`start`] | V8's flags and its start, before there is a tenant |
//! | [`run`] | one run, from its frame to its end; the time that it sees |
//! | [`isolate`] | isolates at rest, the snapshot that they are made from, those that stay |
//! | [`natives`] | what a script finds in its global object: our functions, and the runtime that calls them (`runtime/*.js`) |
//! | [`modules`] | a script's modules: compiled, linked and imported by exact name |
//! | [`memory`] | where memory comes from, whose it is, which key it carries, how much of it there may be |
//! | [`last_words`] | what is said when V8 cannot go on |
//! | [`values`] | texts and errors between V8 and us |
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
