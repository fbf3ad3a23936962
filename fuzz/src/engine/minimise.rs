//! Makes a program smaller while it still shows the finding. First, runs of statements are left
//! out, from long runs to short ones. Then single statements at all depths are left out, and blocks
//! are replaced by the statements in them.

use super::program::Program;
use super::tree::{self, Node};

/// The smallest program found that `shows` accepts. Calls `shows` at most `tries` times.
pub fn minimise(program: &Program, tries: usize, mut shows: impl FnMut(&Program) -> bool) -> Program {
    let mut best = program.clone();
    let mut left = tries;
    let mut accepted = |statements: Vec<Node>, best: &mut Program| {
        let candidate = Program { statements, sloppy: best.sloppy };
        left = match left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        let is_one = shows(&candidate);
        if is_one {
            *best = candidate;
        }
        is_one
    };
    // Runs of statements at the outermost level, from long to short.
    let mut length = best.statements.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < best.statements.len() {
            let mut statements = best.statements.clone();
            statements.drain(at..(at + length).min(best.statements.len()));
            if !accepted(statements, &mut best) {
                at += length;
            }
        }
        if length == 1 {
            break;
        }
        length = length.div_ceil(2);
    }
    // Single statements at all depths, until no more can be left out.
    loop {
        let before = best.statements.clone();
        let mut number = 0;
        while number < tree::size(&best.statements) {
            let mut smaller = Vec::new();
            if let Some(node) = tree::get(&best.statements, number) {
                smaller.push(Vec::new());
                if let Node::Block { arms, .. } = node {
                    smaller.extend(arms.iter().map(|(_, body)| body.clone()));
                }
            }
            let went = smaller.into_iter().any(|others| {
                let mut statements = best.statements.clone();
                tree::replace(&mut statements, number, others);
                statements != best.statements && accepted(statements, &mut best)
            });
            if !went {
                number += 1;
            }
        }
        if best.statements == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_the_finding_stays_and_the_rest_goes() {
        let text =
            "out(1);\nif (x0) {\nout(2);\nfor (;;) {\nbad();\nout(3);\n}\n} else {\nout(4);\n}\nout(5);\nworse();";
        let shows = |program: &Program| {
            let text = tree::text(&program.statements);
            text.contains("bad()") && text.contains("worse()")
        };
        let least = minimise(&Program::of(text), 1000, shows);
        assert_eq!(tree::text(&least.statements), "bad();\nworse();");
    }

    #[test]
    fn it_stops_when_its_tries_are_used_up() {
        let program = Program::of(&"out(1);\n".repeat(100));
        let mut tried = 0;
        let least = minimise(&program, 10, |_| {
            tried += 1;
            false
        });
        assert_eq!((least, tried), (program, 10));
    }
}
