//! The integration tests: real processes, one socket each.
//!
//! | module | what it covers |
//! |---|---|
//! | [`scripts`] | what a script can be and do, and what it returns |
//! | [`requests`] | bad input, rights, quotas, policies, events |
//! | [`api`] | answers match their description |
//! | [`hostile`] | scripts that demand too much end with their outcome; their neighbours go on |
//! | [`cordon`] | orders, what a level means, and moves that lose no run |
//! | [`signals`] | what counts against a tenant, and how much |
//! | [`kept`] | isolates of registered scripts that are kept |
//! | [`lifecycle`] | death and recovery, drain, sockets |
//! | [`confinement`] | what the kernel reports about a worker, and badly confined workers |
//! | [`examples`] | the API's examples for curl, Node.js and Python |
//! | [`evidence`] | what remains of an attack whatever else happens, and what a peer learns of it |
//! | [`clock`] | what a script can learn about time |
//! | [`hashes`] | names that collide |
//! | [`surface`] | every property that a script finds |
//! | [`cli`] | the command line as a user types it |
//! | [`files`] | the daemon's files, and what other uids can do with them |
//! | [`check_config`] | `enisled --check-config` refuses what a start would refuse |

#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod api;
mod check_config;
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
mod signals;
mod surface;
