//! What the daemon accepts and answers, as types: a file a resource.
//!
//! The daemon takes requests apart by hand, so that a request costs its own bytes and no more, and
//! its tests compare the fields that it reads with these. It answers with these types, but for runs
//! and events: it writes runs piece by piece, keeps events in a smaller form, and its tests compare
//! what it writes with these. A request is described as a client should
//! write it: fields that may be left out are not `null`, although the daemon reads `null` as left
//! out where it can. In answers, what may be `null` is always there; what is left out instead says
//! so with `skip_serializing_if`.

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
