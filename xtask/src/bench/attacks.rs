//! `cargo xtask bench attacks`: the attacks on the daemon. Meanwhile the daemon must answer other
//! clients within its figures.

use anyhow::Result;

use crate::{cargo, check, target, v8, vm};

pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let archive = v8::find()?;
    // Some attacks need the worker with attack natives, which no release has.
    vm::Programs::build(&archive)?;
    let mut attacks = cargo(&archive);
    attacks.args(["test", "--profile", "harness", "-p", "enisle-tests", "--test", "attacks", "--", "--bench"]);
    if let Some(only) = only {
        attacks.args(["--only", only]);
    }
    check(attacks.env("ENISLE_REQUIRE", "root").env(enisle_tests::PROGRAMS_VARIABLE, target().join("harness")))
}
