//! Fuzzing. A *generator* makes input, a *target* runs it, an *oracle* says whether what came of it
//! may be. Everything is decided by a seed, so that a finding can be had again.
//!
//! | module | what is attacked | with what |
//! |---|---|---|
//! | [`parsers`] | what reads bytes of others: frames, requests, files | bytes, in this process |
//! | [`escape`] | the confinement of a worker | attackers' programs, with attack natives |
//! | [`engine`] | V8 | scripts, compiled and interpreted |
//! | [`chaos`] | the daemon under load | death, full disks, stopped processes, clocks |
//!
//! `cargo xtask fuzz` and `cargo xtask chaos` build the programs and start this one.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

mod budget;
pub mod chaos;
pub mod engine;
pub mod escape;
mod finding;
pub mod parsers;

pub use budget::Budget;
pub use finding::Finding;
