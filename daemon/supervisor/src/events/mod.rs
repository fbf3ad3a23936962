//! What happened, for operators: a bounded memory of events, whoever follows them, and the log.
//!
//! ```text
//! tell ─▶ course ─────────────────────────────────────────▶ ring, log (so many lines a second)
//!      ├▶ evidence ─▶ the first ones of a kind and source ─▶ ring, log, audit log
//!      │                ├ repetitions, counted ─ a second ─▶ the same, as one with a count
//!      │                └ too many that differ in a second ▶ audit log
//!      └▶ common ───▶ counted by kind and source ─ a second ▶ ring, log
//! ```

mod group;
mod log;
mod ring;
mod tally;
mod what;

pub(crate) use log::{Audit, Cursor, Events, Read};
#[cfg(test)]
pub(crate) use what::Class;
pub(crate) use what::What;
