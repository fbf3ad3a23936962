//! Processes and threads at the level of the kernel: starting a process, passing descriptors
//! between two processes, the parts of a thread.
//!
//! This module wraps system calls. It must not use islands, keys or layers.
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
