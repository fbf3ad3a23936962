//! What confines a worker process, step by step, and what proves from outside that it is confined.
//!
//! | module | owns |
//! |---|---|
//! | [`layers`] | the names of the layers and what each is for |
//! | [`posture`] | which layers this machine has |
//! | [`process`] | starting processes, passing descriptors, threads |
//! | [`jail`] | the steps that a worker takes before V8 starts |
//! | [`islands`] | where in a worker's address space each tenant lives, and with which key |
//! | [`fault`] | signals that end a worker, and the record of the first one |
//! | [`filter`] | the system call filters of a worker and of a tenant's thread |
//! | [`verify`] | what the supervisor reads about a worker before it admits a tenant there |
//! | [`paths`] | the default paths that the daemon and the command line share |
//!
//! `unsafe` is allowed in this crate, in the worker's V8 edge (`daemon/worker/src/engine`), and in
//! the two V8 programs in `daemon/worker/examples`, and nowhere else.

pub mod fault;
pub mod filter;
pub mod islands;
pub mod jail;
pub mod layers;
pub mod paths;
pub mod posture;
pub mod process;
pub mod verify;

pub use layers::{Layer, LayerSet};
pub use posture::Posture;
