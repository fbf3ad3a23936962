//! What confines a worker process, step by step, and what proves from outside that it is confined.
//!
//! | module | owns |
//! |---|---|
//! | [`layers`] | the names of the layers and what each is for |
//! | [`posture`] | which of them this machine has |
//! | [`process`] | starting processes, descriptors between them, threads |
//! | [`jail`] | the steps that a worker takes before V8 starts |
//! | [`islands`] | where in a worker's address space each tenant lives, and by which key |
//! | [`fault`] | signals that end a worker, and the record of the first one |
//! | [`filter`] | the filters of a worker and of a tenant's thread, from `policy/` |
//! | [`verify`] | what the supervisor reads about a worker before it admits a tenant there |
//! | [`paths`] | where daemon and command line find each other by default |
//!
//! This crate and the worker's V8 edge are the only ones with `unsafe`.

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
