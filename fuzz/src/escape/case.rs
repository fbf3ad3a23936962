//! A finding as a file, which becomes a row of `tests/escape`, and how the finding is made small.
//!
//! ```text
//! // invariant: canaries
//! // seed: 42
//! // said: …
//! // attacker: kept runs 0
//! attack.syscall(11n, page(v(0, 'buffer')), 4096n)
//! ```
//!
//! Each line after an `attacker` line is a statement of that attacker's program. The attackers run
//! one after the other, and all invariants must hold meanwhile.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::ledger::Broken;
use super::program::{Op, Program};

const ATTACKER_LINE: &str = "// attacker: kept runs ";

/// The programs of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub programs: Vec<Program>,
}

impl Case {
    /// The file's text.
    #[must_use]
    pub fn text(&self, broken: &Broken, seed: u64) -> String {
        let said: String = broken.said.chars().filter(|letter| !letter.is_control()).take(400).collect();
        let mut text = format!("// invariant: {}\n// seed: {seed}\n// said: {said}\n", broken.invariant);
        for program in &self.programs {
            let _ = writeln!(text, "{ATTACKER_LINE}{}", program.kept_runs);
            program.ops.iter().for_each(|op| {
                let _ = writeln!(text, "{}", op.script());
            });
        }
        text
    }

    /// Reads the text of a case.
    ///
    /// # Errors
    /// The text has no attacker, or a number of runs cannot be read.
    pub fn read(text: &str) -> io::Result<Self> {
        let mut programs: Vec<Program> = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(kept) = line.strip_prefix(ATTACKER_LINE) {
                let kept_runs = kept.trim().parse().map_err(io::Error::other)?;
                programs.push(Program { ops: Vec::new(), kept_runs });
            } else if let Some(program) = programs.last_mut().filter(|_| !line.starts_with("//")) {
                program.ops.push(Op::Language { class: "case".into(), text: line.to_owned() });
            }
        }
        if programs.is_empty() {
            return Err(io::Error::other(format!("a case has at least one line {ATTACKER_LINE:?}N")));
        }
        Ok(Self { programs })
    }

    /// Writes the case to a file in a folder. Returns the file's path.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, folder: &Path, broken: &Broken, seed: u64) -> io::Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}-{seed:016x}.js", broken.invariant));
        fs::write(&path, self.text(broken, seed))?;
        Ok(path)
    }
}

/// Makes a list of programs smaller while `fails` is true for it. Drops whole programs first and
/// then statements, in runs that get shorter by half. Calls `fails` at most `most` times.
pub fn minimised(programs: &[Program], most: usize, mut fails: impl FnMut(&[Program]) -> bool) -> Vec<Program> {
    let (mut best, mut asked) = (programs.to_vec(), 0);
    let mut try_it = |candidate: &[Program]| {
        asked += 1;
        asked <= most && fails(candidate)
    };
    // One of the last programs alone is most often enough.
    if let Some(alone) = best.iter().rev().take(4).map(|last| vec![last.clone()]).find(|alone| try_it(alone)) {
        best = alone;
    } else if !try_it(&best) {
        // The finding needed several attackers at a time, or chance.
        return best;
    }
    best = shortened(&best, &mut |candidate| try_it(candidate));
    for at in 0..best.len() {
        let ops = shortened(&best[at].ops, &mut |ops| {
            let mut candidate = best.clone();
            candidate[at].ops = ops.to_vec();
            try_it(&candidate)
        });
        best[at].ops = ops;
    }
    best
}

/// Drops halves of a list, then quarters and so on, while the rest still `fails`. Returns the
/// shortest list found.
fn shortened<T: Clone>(list: &[T], fails: &mut impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = list.to_vec();
    let mut step = best.len() / 2;
    while step > 0 {
        let mut at = 0;
        while at < best.len() && best.len() > 1 {
            let mut candidate = best.clone();
            candidate.drain(at..(at + step).min(best.len()));
            if !candidate.is_empty() && fails(&candidate) {
                best = candidate;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(text: &str) -> Op {
        Op::Language { class: "case".into(), text: text.to_owned() }
    }

    fn program(ops: &[&str]) -> Program {
        Program { ops: ops.iter().map(|text| op(text)).collect(), kept_runs: 0 }
    }

    #[test]
    fn a_case_is_read_back_as_it_was_written() {
        let case = Case { programs: vec![program(&["a()", "b()"]), Program { kept_runs: 2, ..program(&["c()"]) }] };
        let broken = Broken::new("canaries", "x\ny");
        assert_eq!(Case::read(&case.text(&broken, 7)).unwrap(), case);
        assert!(Case::read("a()").is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = case.write(folder.path(), &broken, 7).unwrap();
        assert_eq!(Case::read(&fs::read_to_string(path).unwrap()).unwrap(), case);
    }

    #[test]
    fn what_a_failure_does_not_need_is_dropped() {
        let all = [program(&["a", "b"]), program(&["c", "bad", "d", "e", "f"]), program(&["g"]), program(&["h"])];
        let fails = |programs: &[Program]| programs.iter().any(|program| program.ops.contains(&op("bad")));
        assert_eq!(minimised(&all, 100, fails), [program(&["bad"])]);
    }

    #[test]
    fn a_failure_that_does_not_come_again_leaves_everything() {
        let all = [program(&["a", "b"]), program(&["c"])];
        assert_eq!(minimised(&all, 100, |_| false), all);
    }
}
