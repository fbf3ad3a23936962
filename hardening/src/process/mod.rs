//! Processes and threads, as the kernel has them: starting one, what passes between two, what a
//! thread is made of.
//!
//! This room wraps system calls and knows nothing of tenants, keys or layers.
//!
//! | module | owns |
//! |---|---|
//! | [`spawn`] | a new process in namespaces of its own, by `clone3` and `execveat` |
//! | [`fds`] | descriptors over a socket |
//! | [`rights`] | descriptors that a client passes and nobody wants |
//! | [`thread`] | a tenant's thread: its stack, its clock |
//! | [`siginfo`] | what the kernel says of a fault |
//! | [`allocator`] | libc's allocator, told to give back what is freed |

pub mod allocator;
pub mod fds;
pub mod rights;
pub mod siginfo;
pub mod spawn;
pub mod thread;
