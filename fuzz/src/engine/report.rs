//! The counts and findings of a run of the fuzzer, and the files with its findings.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Finding;

/// The run ends after this many findings, so that somebody looks at them first.
pub const MOST_FINDINGS: usize = 20;

/// The counts of what was tried, and of the outcomes.
#[derive(Debug, Default)]
pub struct Tried {
    pub programs: u64,
    /// Programs on which at least two engines agreed.
    pub agreed: u64,
    /// How many of the programs in `agreed` do not compile, or ended with an exception.
    pub threw: u64,
    /// Programs whose result is in doubt, or that a limit ended in too many engines.
    pub not_comparable: u64,
    /// Programs that also ran in Node.js, and how many of them differ there, in both its modes.
    pub with_node: u64,
    pub node_differs: u64,
    /// Calls of functions of the global object, and how many functions there are.
    pub calls: u64,
    pub functions: u64,
    pub module_maps: u64,
    /// How the runs of calls and of modules ended.
    pub outcomes: BTreeMap<String, u64>,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { programs, agreed, threw, not_comparable, with_node, node_differs, .. } = self;
        let Self { calls, functions, module_maps, outcomes, .. } = self;
        write!(
            f,
            "{programs} programs ({agreed} agreed, of which {threw} threw; {not_comparable} not comparable; \
             {node_differs} of {with_node} differ in Node.js), {calls} calls of {functions} functions, \
             {module_maps} maps of modules {outcomes:?}"
        )
    }
}

/// One run of the fuzzer.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub tried: Tried,
    pub findings: Vec<Finding>,
    folder: PathBuf,
    begun: Instant,
    printed: Instant,
}

const PRINT_EVERY: Duration = Duration::from_secs(10);

impl Report {
    pub fn new(seed: u64, folder: &Path) -> Self {
        let now = Instant::now();
        let folder = folder.to_owned();
        Self { seed, tried: Tried::default(), findings: Vec::new(), folder, begun: now, printed: now }
    }

    /// Prints the counts every [`PRINT_EVERY`].
    pub fn at(&mut self, iteration: u64) {
        if self.printed.elapsed() >= PRINT_EVERY {
            self.printed = Instant::now();
            self.print(iteration);
        }
    }

    pub fn print(&self, iteration: u64) {
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("iteration {iteration}, {seconds:.0} s: {}", self.tried);
    }

    /// Writes a file with a comment that says what was seen, and with the script that shows it.
    pub fn keep(&self, what: &str, iteration: u64, seen: &str, script: &str) -> PathBuf {
        let file = self.folder.join(format!("{what}-{}-{iteration}.js", self.seed));
        let again = format!("cargo xtask fuzz engine --seed {} --from {iteration} --count 1", self.seed);
        let comment = format!("{}\nAgain: {again}", seen.replace("*/", "* /"));
        let written =
            fs::create_dir_all(&self.folder).and_then(|()| fs::write(&file, format!("/*\n{comment}\n*/\n{script}\n")));
        if let Err(error) = written {
            println!("{} cannot be written: {error}", file.display());
        }
        file
    }

    /// Notes a finding, prints it and writes its file.
    pub fn found(&mut self, what: &str, iteration: u64, seen: &str, script: &str) {
        let file = self.keep(what, iteration, seen, script);
        let first = seen.lines().next().unwrap_or_default();
        let said = format!("iteration {iteration}: {first}; see {}", file.display());
        let finding = Finding { what: what.to_owned(), seed: self.seed, said };
        println!("{finding}");
        self.findings.push(finding);
    }
}
