//! The integration tests: each starts real processes, on a socket of its own.
//!
//! | module | what it covers |
//! |---|---|
//! | [`scripts`] | what a script can be and do, and what it returns |
//! | [`requests`] | bad input, rights, quotas, policies, events |
//! | [`api`] | answers match their description |
//! | [`hostile`] | a script that demands too much ends with its outcome, and its neighbours go on |
//! | [`cordon`] | orders, what a level means, and moves that lose no run |
//! | [`signals`] | what counts against a tenant, and how much |
//! | [`kept`] | isolates that are kept between the runs of a registered script |
//! | [`lifecycle`] | death and recovery, drain, sockets |
//! | [`confinement`] | what the kernel reports about a worker; workers that are badly confined |
//! | [`standby`] | places that are ready before a tenant needs one |
//! | [`first_use`] | what V8 and ICU create once in a process |
//! | [`examples`] | the API's examples for curl, Node.js and Python |
//! | [`evidence`] | which evidence survives whatever else happens, and what a peer may see |
//! | [`clock`] | what a script can learn about time |
//! | [`hashes`] | names whose hashes collide |
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
mod first_use;
mod hashes;
mod hostile;
mod kept;
mod lifecycle;
mod requests;
mod scripts;
mod signals;
mod standby;
mod surface;
