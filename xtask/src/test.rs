//! `cargo xtask test`: style, then every test. What CI runs.

use anyhow::Result;
use clap::Args;

use crate::{cargo, check, v8};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the tests, no style checks.
    #[arg(long)]
    only_tests: bool,
    /// Also the slow checks that CI runs nightly: the archive's checksums and its probe.
    #[arg(long)]
    slow: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let archive = v8::or_explain()?;
    println!("V8: {} ({})", archive.dir.display(), archive.because);
    if !options.only_tests {
        check(cargo(&archive).args(["fmt", "--all", "--check"]))?;
        check(cargo(&archive).args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    }
    check(cargo(&archive).args(["test", "--workspace", "--no-fail-fast"]))?;
    if options.slow {
        v8::run(v8::V8::Verify)?;
    }
    Ok(())
}
