//! `cargo xtask bench attacks`: the attacks on the daemon, which is held to its figures.

use anyhow::Result;

use crate::{build_release, cargo, check, v8};

pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let archive = v8::find()?;
    let release = build_release(&archive)?;
    let mut attacks = cargo(&archive);
    attacks.args(["test", "--profile", "harness", "-p", "enisle-tests", "--test", "attacks", "--", "--bench"]);
    if let Some(only) = only {
        attacks.args(["--only", only]);
    }
    check(attacks.env("ENISLE_REQUIRE", "root").env(enisle_tests::PROGRAMS_VARIABLE, release))
}
