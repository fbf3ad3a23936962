//! One round of chaos, in every run of the tests. `cargo xtask chaos` runs more rounds.
#![forbid(unsafe_code)]

use enisle_fuzz::Budget;
use enisle_fuzz::chaos::{Options, run};

#[test]
fn a_disturbed_daemon_agrees_with_its_clients_and_recovers() {
    let budget = Budget { minutes: 0.3, seed: Some(15), from: 0 };
    let nothing_found = run(&Options { budget, schedule: None, clock: false });
    nothing_found.unwrap();
}
