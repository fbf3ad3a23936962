//! What the daemon accepts and answers, as types, one file per resource.
//!
//! The daemon takes requests apart by hand, so that a request costs its own bytes and no more; its
//! tests compare the fields that it reads with these types. It answers with these types, except for
//! runs and events: runs are written piece by piece, events are stored in a smaller form, and tests
//! compare what is written with these types.
//!
//! A request is described as a client should write it. A client should leave an optional field out
//! and not write `null`. Where it can, the daemon nevertheless treats `null` as a missing field. In
//! answers, a field that may be `null` is always there; a field that may be left out says so with
//! `skip_serializing_if`.

pub mod about;
pub mod audit;
pub mod cordon;
pub mod event;
pub mod policy;
pub mod problem;
pub mod run;
pub mod script;
pub mod tenant;
pub mod worker;
