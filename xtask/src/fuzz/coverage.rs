//! Measures which lines of the parsers their fuzzer reaches.
//!
//! The fuzzer is built with the compiler's own coverage (`-C instrument-coverage`) and runs its
//! smoke test: the corpora and a bounded number of new cases. `llvm-profdata` and `llvm-cov` read
//! the counts. Both tools must be of the compiler's version of LLVM. Debian has them (`llvm-22` for
//! LLVM 22), and rustup has them as its component `llvm-tools`. Tests are not compiled in, so they
//! are neither counted nor run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{cargo, check, output, root, target, v8};

/// How much of each area the fuzzer must reach, in per cent of the area's lines.
const LEAST_PERCENT: u64 = 90;

/// The areas, each with its files and folders.
const AREAS: [(&str, &[&str]); 4] = [
    ("wire", &["daemon/wire/src/"]),
    ("api", &["daemon/supervisor/src/api/"]),
    (
        "policy",
        &[
            "hardening/src/filter.rs",
            "daemon/supervisor/src/tenants/policy.rs",
            "cordon/src/decide.rs",
            "cordon/src/score.rs",
            "cordon/src/place.rs",
            "cordon/src/deaths.rs",
            "cordon/src/time.rs",
        ],
    ),
    (
        "parsers",
        &[
            "cordon/src/audit.rs",
            "daemon/supervisor/src/config.rs",
            "daemon/supervisor/src/json_text.rs",
            "daemon/supervisor/src/ranges.rs",
            "daemon/supervisor/src/state/replay.rs",
            "daemon/supervisor/src/state/standings.rs",
            "daemon/supervisor/src/workers/violation.rs",
            "hardening/src/fault/reading.rs",
            "hardening/src/islands/tags.rs",
            "hardening/src/islands/zone.rs",
        ],
    ),
];

pub(super) fn run() -> Result<()> {
    let [profdata, cov] = ["llvm-profdata", "llvm-cov"].map(tool);
    let (profdata, cov) = (profdata?, cov?);
    let folder = target().join("coverage");
    let archive = v8::find()?;
    println!("building the fuzzer with coverage");
    let build = ["build", "--quiet", "--profile", "harness", "-p", "enisle-fuzz", "--bin", "enisle-fuzz"];
    let mut building = cargo(&archive);
    building.args(build).arg("--target-dir").arg(&folder).env("RUSTFLAGS", "-C instrument-coverage");
    // Build scripts are instrumented too, and would leave their counts where they run.
    check(building.env("LLVM_PROFILE_FILE", folder.join("build-%p.profraw")))?;
    let (fuzzer, counts, merged) =
        (folder.join("harness/enisle-fuzz"), folder.join("fuzz.profraw"), folder.join("fuzz.profdata"));
    check(Command::new(&fuzzer).args(["parsers", "--smoke"]).env("LLVM_PROFILE_FILE", &counts))?;
    check(Command::new(profdata).args(["merge", "-sparse", "-o"]).arg(&merged).arg(&counts))?;
    let mut export = Command::new(cov);
    export.args(["export", "-summary-only", "-instr-profile"]).arg(&merged).arg(&fuzzer);
    let report: Value = serde_json::from_str(&output(&mut export)?).context("the report of llvm-cov")?;
    judge(&files(&report))
}

/// For each file, how many lines it has and how many of them were reached.
type Lines = BTreeMap<PathBuf, (u64, u64)>;

fn files(report: &Value) -> Lines {
    let files = report["data"][0]["files"].as_array().into_iter().flatten();
    let lines = |file: &Value| {
        let (path, lines) = (Path::new(file["filename"].as_str()?), &file["summary"]["lines"]);
        let path = path.strip_prefix(root()).ok()?.to_path_buf();
        Some((path, (lines["count"].as_u64()?, lines["covered"].as_u64()?)))
    };
    files.filter_map(lines).collect()
}

fn judge(files: &Lines) -> Result<()> {
    let mut short = Vec::new();
    for (area, places) in AREAS {
        let of_area = |path: &Path| places.iter().any(|place| path.to_string_lossy().starts_with(place));
        let (mut there, mut reached) = (0, 0);
        for (path, (count, covered)) in files.iter().filter(|(path, _)| of_area(path)) {
            println!("  {:52} {covered:5} of {count:5} {:4} %", path.display().to_string(), percent(*covered, *count));
            there += count;
            reached += covered;
        }
        ensure!(there > 0, "the report has no line of {area}; its table of files is out of date");
        println!("{area}: {reached} of {there} lines, {} %", percent(reached, there));
        if percent(reached, there) < LEAST_PERCENT {
            short.push(area);
        }
    }
    ensure!(short.is_empty(), "less than {LEAST_PERCENT} % of the lines are reached of: {}", short.join(", "));
    Ok(())
}

fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole.max(1)
}

/// A tool of the compiler's version of LLVM.
fn tool(name: &str) -> Result<PathBuf> {
    let rustc = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let version = rustc.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or_default();
    let major = version.split('.').next().unwrap_or_default();
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let rustups = Path::new(sysroot.trim()).join("lib/rustlib/x86_64-unknown-linux-gnu/bin").join(name);
    let names = [rustups, format!("{name}-{major}").into(), name.into()];
    let fits = |tool: &PathBuf| {
        let said = Command::new(tool).arg("--version").output();
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(&format!("version {major}.")))
    };
    match names.into_iter().find(fits) {
        Some(tool) => Ok(tool),
        None => bail!("{name} of LLVM {major} is missing: install Debian's llvm-{major}, or rustup's llvm-tools"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_that_is_reached_too_little_or_has_no_line_fails() {
        let whole = |covered| -> Lines {
            AREAS.iter().flat_map(|(_, places)| *places).map(|place| (PathBuf::from(place), (100, covered))).collect()
        };
        assert!(judge(&whole(90)).is_ok());
        assert!(judge(&whole(89)).unwrap_err().to_string().contains("wire, api, policy, parsers"));
        assert!(judge(&Lines::new()).is_err());
    }
}
