//! Generates a program, runs it in several engines and compares the outcomes. If they differ, the
//! program is made small.

use std::io;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::engines::{ALWAYS, Engine, IN_TURN, Node, Outcome};
use super::judge::{Verdict, differs_from_node, judge};
use super::minimise::minimise;
use super::program::Program;
use super::report::Report;
use super::tree;

/// Node.js runs one program in this many.
const NODE_EVERY: u64 = 4;
/// The most runs for making the program of a finding small.
const TRIES: usize = 600;
/// The most differences from Node.js that one run of the fuzzer keeps.
const MOST_NOTES: u64 = 20;
/// The most runs for making the program of such a difference small.
const NOTE_TRIES: usize = 200;
/// Features that an older Node.js lacks. A program that uses one is not run in Node.js.
const NEWER: [&str; 7] = [".union", ".symmetricDifference", ".groupBy", ".transfer", ".resize", "(?i:", "(?<h>b)"];
/// How much of a result a report shows.
const SHOWN_BYTES: usize = 400;

/// The engines. The worker of an engine starts when it is first needed.
#[derive(Debug)]
pub struct Differential {
    worker: PathBuf,
    always: Vec<Engine>,
    in_turn: Vec<Option<Engine>>,
    node: Option<([Node; 2], String)>,
}

impl Differential {
    /// Engines whose workers execute this program.
    ///
    /// # Errors
    /// A worker does not start.
    pub fn new(worker: &Path) -> io::Result<Self> {
        let always = ALWAYS.into_iter().map(|mode| Engine::new(mode, worker)).collect::<Result<_, _>>()?;
        let in_turn = IN_TURN.iter().map(|_| None).collect();
        Ok(Self { worker: worker.to_owned(), always, in_turn, node: Node::both() })
    }

    /// The engines for this iteration: those that run every program, and the one whose turn it is.
    fn engines(&mut self, iteration: u64) -> io::Result<Vec<&mut Engine>> {
        let turn = usize::try_from(iteration % IN_TURN.len() as u64).unwrap_or(0);
        let place = &mut self.in_turn[turn];
        if place.is_none() {
            *place = Some(Engine::new(IN_TURN[turn], &self.worker)?);
        }
        Ok(self.always.iter_mut().chain(place.as_mut()).collect())
    }

    /// Makes the program of this iteration, runs it in all its engines, and reports the verdict.
    ///
    /// # Errors
    /// An engine does not start.
    pub fn try_one(&mut self, iteration: u64, rng: &mut Rng, report: &mut Report) -> io::Result<()> {
        let program = Program::make(rng);
        let text = program.text();
        let outcomes = in_all(&mut self.engines(iteration)?, &text)?;
        let verdict = judge(&outcomes);
        report.tried.programs += 1;
        match verdict {
            Verdict::Agreed => {
                report.tried.agreed += 1;
                report.tried.threw += u64::from(outcomes.iter().any(|(_, o)| matches!(o, Outcome::Threw(_))));
            }
            Verdict::NotComparable => report.tried.not_comparable += 1,
            Verdict::Differed | Verdict::Died => self.found(iteration, &verdict, &program, &outcomes, report)?,
        }
        if verdict == Verdict::Agreed && iteration.is_multiple_of(NODE_EVERY) {
            self.compare_with_node(iteration, &program, &outcomes, report)?;
        }
        Ok(())
    }

    fn in_node(&mut self, text: &str) -> io::Result<Vec<(&'static str, Outcome)>> {
        let Some((both, _)) = &mut self.node else { return Ok(Vec::new()) };
        both.iter_mut().map(|node| Ok((node.name, node.run(text)?))).collect()
    }

    fn compare_with_node(
        &mut self,
        iteration: u64,
        program: &Program,
        ours: &[(&'static str, Outcome)],
        report: &mut Report,
    ) -> io::Result<()> {
        let text = program.text();
        if NEWER.iter().any(|name| text.contains(name)) {
            return Ok(());
        }
        let node = self.in_node(&text)?;
        report.tried.with_node += u64::from(!node.is_empty());
        if differs_from_node(ours, &node) {
            report.tried.node_differs += 1;
            if report.tried.node_differs <= MOST_NOTES {
                let least = minimise(program, NOTE_TRIES, |program| self.only_node_differs(&program.text()));
                let ours = in_all(&mut [&mut self.always[0]], &least.text())?;
                let node = self.in_node(&least.text())?;
                let seen = self.described(&[ours, node].concat());
                let statements = tree::text(&least.statements);
                report.keep("other-version", iteration, &format!("{seen}\n{statements}"), &least.text());
            }
        }
        Ok(())
    }

    fn only_node_differs(&mut self, text: &str) -> bool {
        let ours = in_all(&mut [&mut self.always[0]], text);
        ours.is_ok_and(|ours| self.in_node(text).is_ok_and(|node| differs_from_node(&ours, &node)))
    }

    /// Makes the program smaller while the verdict stays the same, and keeps it in a file.
    fn found(
        &mut self,
        iteration: u64,
        verdict: &Verdict,
        program: &Program,
        outcomes: &[(&'static str, Outcome)],
        report: &mut Report,
    ) -> io::Result<()> {
        let mut again = 0;
        let mut engines = self.engines(iteration)?;
        for _ in 0..3 {
            // A fresh worker each time, because the cause may be something that an earlier program
            // left behind.
            engines.iter_mut().try_for_each(|engine| engine.restart())?;
            again += u32::from(judge(&in_all(&mut engines, &program.text())?) == *verdict);
        }
        let shows = |program: &Program| in_all(&mut engines, &program.text()).is_ok_and(|o| judge(&o) == *verdict);
        let least = if again > 0 { minimise(program, TRIES, shows) } else { program.clone() };
        let last = in_all(&mut engines, &least.text())?;
        let shown = if judge(&last) == *verdict { &last[..] } else { outcomes };
        let node = self.in_node(&least.text())?;
        let what = if *verdict == Verdict::Died { "died" } else { "differed" };
        let seen = format!(
            "{what}: {} of 3 times again, in fresh workers\n{}\nThe statements between prelude and epilogue{}:\n{}",
            again,
            self.described(&[shown, &node].concat()),
            if least.sloppy { ", not in strict mode" } else { "" },
            tree::text(&least.statements),
        );
        report.found(what, iteration, &seen, &least.text());
        Ok(())
    }

    /// For each engine, its version, its flags and its outcome.
    fn described(&self, outcomes: &[(&'static str, Outcome)]) -> String {
        let from = first_difference(outcomes);
        let line = |(name, outcome): &(&'static str, Outcome)| {
            let mode = ALWAYS.iter().chain(&IN_TURN).find(|mode| mode.name == *name);
            let of = match (mode, &self.node) {
                (Some(mode), _) => {
                    let sealed = if mode.sealed { " --jitless" } else { "" };
                    format!("V8 {} {}{sealed}", self.always[0].v8, mode.flags)
                }
                (None, Some((_, version))) => format!("V8 {version}"),
                (None, None) => String::new(),
            };
            let text = format!("{outcome:?}");
            let (first, last) = (from.min(text.len()), (from + SHOWN_BYTES).min(text.len()));
            let shown = &text[text.floor_char_boundary(first)..text.floor_char_boundary(last)];
            format!("{name} ({of}): {shown}")
        };
        outcomes.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A position a little before the first difference.
fn first_difference(outcomes: &[(&'static str, Outcome)]) -> usize {
    let texts: Vec<_> = outcomes.iter().map(|(_, outcome)| format!("{outcome:?}")).collect();
    let common = |other: &String| texts[0].bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    let differ = texts.iter().filter(|other| **other != texts[0]).map(common).min();
    differ.unwrap_or(0).saturating_sub(SHOWN_BYTES / 4)
}

/// Runs a program in all engines at the same time.
pub fn in_all(engines: &mut [&mut Engine], text: &str) -> io::Result<Vec<(&'static str, Outcome)>> {
    for engine in engines.iter_mut() {
        engine.send(text)?;
    }
    Ok(engines.iter_mut().map(|engine| (engine.mode.name, engine.outcome())).collect())
}
