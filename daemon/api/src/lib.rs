//! The API, described once: what the daemon accepts and answers as types, its operations as a
//! table, the OpenAPI document that both make, and clients of the daemon's socket.
//!
//! | module | owns |
//! |---|---|
//! | [`types`] | requests, answers, events and problems, a file a resource |
//! | [`bounds`] | numbers that a request or an answer keeps to |
//! | [`operations`] | every operation: method, path, who may, what goes in and comes out |
//! | [`openapi`] | the OpenAPI 3.1 document made of them (feature `schema`) |
//! | [`client`] | clients: asynchronous (feature `client`), blocking (feature `blocking`) |
//!
//! Without features there are the types and the table alone: the daemon has nothing else of it.
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")
)]

pub mod bounds;
#[cfg(any(feature = "client", feature = "blocking"))]
pub mod client;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod operations;
pub mod types;

pub use operations::{OPERATIONS, Operation};

/// The API's version, as every answer tells it in `api-version`.
pub const API_VERSION: &str = "1";

/// The OpenAPI document, as `GET /openapi.json` answers it. `cargo xtask openapi` renews it.
pub const OPENAPI: &str = include_str!("../openapi.json");
