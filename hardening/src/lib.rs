//! What confines a worker process, step by step, and what proves from outside that it does.
//!
//! | module | owns |
//! |---|---|
//! | [`layers`] | the names of the layers and what each is for |
//! | [`posture`] | which of them this machine has |
//! | [`spawn`] | a new process in namespaces of its own, by `clone3` and `execveat` |
//! | [`fds`] | descriptors over a socket |
//! | [`rights`] | descriptors that a client passes and nobody wants |
//! | [`jail`] | the steps that a worker takes before V8 starts |
//! | [`seccomp`] | the filters that it takes on after V8 has started, and those of a tenant's thread, from `policy/` |
//! | [`verify`] | what the supervisor reads about a worker before it trusts it with a tenant |
//! | [`islands`] | where in a worker's address space each tenant lives |
//! | [`mpk`] | memory protection keys, and which of them a thread has open |
//! | [`tags`] | the oracle: whether every page of every island carries the key that it should |
//! | [`sealed`] | what later threads go by, in a page that is read-only before the first tenant |
//! | [`fault`] | signals that end a worker, and the record of the first one |
//! | [`thread`] | a tenant's thread: its stack, its clock |
//! | [`places`] | where daemon and command line find each other when nobody says |
//!
//! This crate and the worker's V8 edge are the only ones with `unsafe`.

pub mod allocator;
pub mod fault;
pub mod fds;
pub mod islands;
pub mod jail;
pub mod layers;
pub mod mpk;
pub mod places;
pub mod posture;
pub mod rights;
pub mod sealed;
pub mod seccomp;
pub mod spawn;
pub mod tags;
pub mod thread;
pub mod verify;

pub use layers::{Layer, LayerSet};
pub use posture::Posture;
