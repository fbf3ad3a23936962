//! Fuzzing. A *generator* makes input, a *target* runs the input, and an *oracle* says whether the
//! result is right. A seed decides the random choices, so that a run can be repeated or resumed.
//!
//! | module | what is attacked | with what |
//! |---|---|---|
//! | [`parsers`] | the code that reads frames, requests and files from others | bytes |
//! | [`escape`] | the confinement of a worker | attackers' programs, with attack natives |
//! | [`engine`] | V8 and the worker's natives | scripts, compiled and interpreted |
//! | [`chaos`] | the daemon under load | killed and stopped processes, full disks, clocks |
//!
//! `cargo xtask fuzz` and `cargo xtask chaos` build the programs under test and `enisle-fuzz`, and
//! start `enisle-fuzz`.
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
