//! The API, described once: what the daemon accepts and answers as types, its operations as a
//! table, the OpenAPI document generated from both, and clients of the daemon's socket.
//!
//! | module | owns |
//! |---|---|
//! | [`types`] | requests, answers, events and problems, one file per resource |
//! | [`bounds`] | the bounds of requests and answers |
//! | [`operations`] | every operation: method, path, permission, request and answers |
//! | [`openapi`] | the OpenAPI 3.1 document, generated from types and table (feature `schema`) |
//! | [`client`] | clients: asynchronous (feature `client`), blocking (feature `blocking`) |
//!
//! Without features, this crate is only the types and the table, which are all that the daemon
//! uses.
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

/// The API's version, which every answer carries in its `api-version` header.
pub const API_VERSION: &str = "1";

/// The OpenAPI document, as `GET /openapi.json` returns it. `cargo xtask generate` regenerates it.
pub const OPENAPI: &str = include_str!("../openapi.json");
