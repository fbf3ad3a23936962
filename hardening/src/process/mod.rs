//! Processes and threads at the level of the kernel: starting one, passing descriptors between two,
//! the parts of a thread.
//!
//! This module wraps system calls and knows nothing of tenants, keys or layers.
//!
//! | module | owns |
//! |---|---|
//! | [`spawn`] | a new process in namespaces of its own, by `clone3` and `execveat` |
//! | [`fds`] | descriptors over a socket |
//! | [`rights`] | descriptors that a client passes unasked |
//! | [`thread`] | a tenant's thread: its stack, its clock |
//! | [`siginfo`] | what the kernel reports about a fault |
//! | [`allocator`] | libc's allocator, configured to give back what is freed |

pub mod allocator;
pub mod fds;
pub mod rights;
pub mod siginfo;
pub mod spawn;
pub mod thread;

/// A page of memory on x86-64.
pub const PAGE_BYTES: usize = 4096;
