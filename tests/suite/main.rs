//! The integration tests: real processes, one socket each.
//!
//! | module | what it is about |
//! |---|---|
//! | [`scripts`] | what a script can be and do, and what comes back |
//! | [`requests`] | bad input, rights, quotas, policies, events |
//! | [`api`] | that answers are as they are described |
//! | [`hostile`] | scripts that want too much: each ends with its outcome, and its neighbours go on |
//! | [`cordon`] | who is moved, why, and that a move loses nothing |
//! | [`kept`] | isolates of registered scripts that stay warm |
//! | [`lifecycle`] | death and recovery, drain, sockets |
//! | [`confinement`] | what the kernel says of a worker, and workers that are not what they should be |
//! | [`examples`] | the API's examples for curl, Node.js and Python |
//! | [`evidence`] | what is left of an attack whatever else happens, and what a peer is told |
//! | [`clock`] | what a script can learn of the time |
//! | [`hashes`] | names that collide |
//! | [`surface`] | every property that a script finds |
//! | [`cli`] | the command line as a user types it |
//! | [`files`] | what the daemon keeps, and who else gets at it |

#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod api;
mod cli;
mod clock;
mod confinement;
mod cordon;
mod evidence;
mod examples;
mod files;
mod hashes;
mod hostile;
mod kept;
mod lifecycle;
mod requests;
mod scripts;
mod surface;
