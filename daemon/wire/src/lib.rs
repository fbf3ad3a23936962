//! The frames between the supervisor and a worker process.
//!
//! Two kinds of channel, both Unix stream sockets made by the supervisor:
//!
//! * one *control* channel per worker process ([`control`]): start, admit, cancel, retire;
//! * one *tenant* channel per tenant thread ([`tenant`]): run, log, done. Whoever holds it speaks as that tenant.
//!
//! A frame is four bytes of length (little endian) and that many bytes of [postcard]. The length is compared with
//! the receiver's cap before a byte of the body is read, so nobody makes the other side allocate more than the
//! receiver chose. What comes out of a decoder is still only an *allegation*: the state machines
//! ([`control::Session`], [`tenant::Session`]) say whether it was that peer's turn to say it.
//!
//! [postcard]: https://postcard.jamesmunns.com/wire-format
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")
)]

pub mod control;
pub mod frame;
pub mod limits;
pub mod outcome;
pub mod tenant;

pub use frame::{FrameError, append, decode, encode, read_frame, write_frame};
pub use outcome::Outcome;

/// Bumped with every change of a frame; both sides come from one build, so there is nothing to negotiate.
pub const VERSION: u16 = 6;

const MIB: usize = 1 << 20;

/// All modules of one script together: what Dynamic Workers allow.
pub const MAX_CODE_BYTES: usize = limits::Limit::CodeBytes.most() as usize;
/// `env` as JSON: what Dynamic Workers allow.
pub const MAX_ENV_BYTES: usize = MIB;
/// `args` and `props` as JSON, each.
pub const MAX_ARGS_BYTES: usize = 8 * MIB;
/// The most that a policy may grant as output of one run.
pub const MAX_OUTPUT_BYTES: usize = limits::Limit::OutputBytes.most() as usize;
/// Modules of one script.
pub const MAX_MODULES: usize = 10_000;
/// Bytes of a module's name; the longest path that Linux takes.
pub const MAX_NAME_BYTES: usize = 4096;

/// Scripts of one tenant whose isolates stay between runs at one time.
pub const MOST_KEPT: usize = 8;

/// The largest part of a run, its code: all modules with their names, and room for the small
/// fields.
pub const MAX_TO_TENANT_BYTES: usize = MAX_CODE_BYTES + MAX_MODULES * 64 + 8 * MIB;
/// Lines of the log in one frame.
pub const MAX_LOG_LINES: usize = 1024;
/// The name of an error that is passed on.
pub const MAX_ERROR_NAME_BYTES: usize = 256;
/// Message and stack of an error that is passed on, each.
pub const MAX_ERROR_BYTES: usize = 32 * 1024;
/// A result at its largest, with its error and usage.
pub const MAX_FROM_TENANT_BYTES: usize = MAX_OUTPUT_BYTES + MIB;
/// A startup snapshot (some 1 MiB) is the largest thing that a worker says on its control channel.
pub const MAX_FROM_WORKER_BYTES: usize = 16 * MIB;
/// What a worker that hosts tenants says there is small.
pub const MAX_FROM_HOST_BYTES: usize = 4 * 1024;
/// What the supervisor says on a control channel is small.
pub const MAX_TO_WORKER_BYTES: usize = 64 * 1024;
