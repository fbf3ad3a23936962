//! The frames between the supervisor and a worker process.
//!
//! Two kinds of channel, both Unix stream sockets made by the supervisor:
//!
//! * one *control* channel per worker process ([`control`]): start, admit, cancel, retire;
//! * one *tenant* channel per tenant thread ([`tenant`]): run, log, done. Whatever holds this
//!   channel speaks as that tenant.
//!
//! A frame is its length in four bytes (little endian) and a body of that length in [postcard]. The
//! receiver compares the length with its cap before it reads a byte of the body. So a sender cannot
//! make the receiver allocate more than the cap. A decoded frame is still only an *allegation*: the
//! state machines ([`control::Session`], [`tenant::Session`]) decide whether the peer was entitled
//! to send the frame.
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

/// Incremented with every change of a frame. Both sides come from one build, so nothing is
/// negotiated.
pub const VERSION: u16 = 6;

const MIB: usize = 1 << 20;

/// All modules of one script together: the limit of Dynamic Workers.
pub const MAX_CODE_BYTES: usize = limits::Limit::CodeBytes.most() as usize;
/// `env` as JSON: the limit of Dynamic Workers.
pub const MAX_ENV_BYTES: usize = MIB;
/// `args` and `props` as JSON, each.
pub const MAX_ARGS_BYTES: usize = 8 * MIB;
/// The most output that a policy may grant to one run.
pub const MAX_OUTPUT_BYTES: usize = limits::Limit::OutputBytes.most() as usize;
/// Modules of one script.
pub const MAX_MODULES: usize = 10_000;
/// Bytes of a module's name: the longest path that Linux accepts.
pub const MAX_NAME_BYTES: usize = 4096;

/// How many scripts of one tenant may have a kept isolate at one time.
pub const MOST_KEPT: usize = 8;

/// The largest frame to a tenant is a run's code: all modules, 64 bytes for the name of each on
/// average, and a margin for the small fields.
pub const MAX_TO_TENANT_BYTES: usize = MAX_CODE_BYTES + MAX_MODULES * 64 + 8 * MIB;
/// Log lines in one frame.
pub const MAX_LOG_LINES: usize = 1024;
/// The name of a reported error.
pub const MAX_ERROR_NAME_BYTES: usize = 256;
/// Message and stack of a reported error, each.
pub const MAX_ERROR_BYTES: usize = 32 * 1024;
/// The largest frame from a tenant is a result, with its error and usage.
pub const MAX_FROM_TENANT_BYTES: usize = MAX_OUTPUT_BYTES + MIB;
/// A startup snapshot (about 1 MiB) is the largest frame that a worker sends on its control
/// channel.
pub const MAX_FROM_WORKER_BYTES: usize = 16 * MIB;
/// A worker that hosts tenants sends only small control frames.
pub const MAX_FROM_HOST_BYTES: usize = 4 * 1024;
/// The supervisor sends only small control frames.
pub const MAX_TO_WORKER_BYTES: usize = 64 * 1024;
