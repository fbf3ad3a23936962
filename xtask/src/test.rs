//! `cargo xtask test`: style, every test, and that no release has the natives of the attack harness. What CI runs.

use std::fs;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{cargo, check, root, v8};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the tests, no style checks and no release build.
    #[arg(long)]
    only_tests: bool,
    /// Also the slow checks that CI runs nightly: ten thousand rounds and a minute of attacks, the archive's checksums and its
    /// probe.
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
    if !options.only_tests {
        no_release_has_natives(&archive)?;
    }
    if options.slow {
        let attacks = ["test", "-p", "enisle-tests", "--test", "escape", "--", "--rounds", "10000", "--soak", "60"];
        check(cargo(&archive).args(attacks))?;
        v8::run(v8::V8::Verify)?;
    }
    Ok(())
}

/// What every native of the attack harness has in its name.
const NATIVE: &[u8] = b"attack_probe_";

/// The release does not build with the natives, and without them has none of their symbols; the harness's worker has them,
/// or the search would prove nothing.
fn no_release_has_natives(archive: &v8::Archive) -> Result<()> {
    let worker = ["build", "--quiet", "--release", "-p", "enisle-worker", "--bin"];
    check(cargo(archive).args(worker).arg("enisle-worker"))?;
    let refused =
        cargo(archive).args(worker).args(["enisle-worker-attack", "--features", "attack-natives"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("no release can have it"),
        "a release with attack-natives has to be refused:\n{said}"
    );
    let holds_natives = |program: &str| -> Result<bool> {
        let bytes = fs::read(root().join("target").join(program)).with_context(|| format!("reading {program}"))?;
        Ok(bytes.windows(NATIVE.len()).any(|window| window == NATIVE))
    };
    ensure!(holds_natives("debug/enisle-worker-attack")?, "the harness's worker has no natives that could be found");
    ensure!(!holds_natives("release/enisle-worker")?, "the release has natives to attack it with");
    println!("ok  no release has the natives of the attack harness");
    Ok(())
}
