//! What happened, for operators: events in bounded memory, their followers, and the log.
//!
//! ```text
//! emit ─▶ course ─────────────────────────────────────────▶ ring, log (bounded lines a second)
//!      ├▶ evidence ─▶ the first ones of a kind and source ─▶ ring, log, audit log
//!      │                ├ repetitions, counted ─ a second ─▶ the same, as one with a count
//!      │                └ too many that differ in a second ▶ audit log
//!      └▶ common ───▶ counted by kind and source ─ a second ▶ ring, log
//! ```

mod class;
mod group;
mod kind;
mod log;
mod ring;
mod tally;

#[cfg(test)]
pub(crate) use class::Class;
pub(crate) use kind::EventKind;
pub(crate) use log::{Audit, Cursor, Events, Read};
