//! What confines a worker process, step by step, and what proves from outside that it does.
//!
//! | module | owns |
//! |---|---|
//! | [`layers`] | the names of the layers and what each is for |
//! | [`posture`] | which of them this machine has |
//! | [`spawn`] | a new process in namespaces of its own, by `clone3` and `execveat` |
//! | [`fds`] | descriptors over a socket |
//! | [`jail`] | the steps that a worker takes before V8 starts |
//! | [`seccomp`] | the filter that it takes on after V8 has started, from `policy/worker.json` |
//! | [`verify`] | what the supervisor reads about a worker before it trusts it with a tenant |
//! | [`mpk`] | memory protection keys |
//! | [`thread`] | a tenant thread's clock and signal stack |
//!
//! This crate and the worker's V8 edge are the only ones with `unsafe`.

pub mod fds;
pub mod jail;
pub mod layers;
pub mod mpk;
pub mod posture;
pub mod seccomp;
pub mod spawn;
pub mod thread;
pub mod verify;

pub use layers::{Layer, LayerSet};
pub use posture::Posture;
