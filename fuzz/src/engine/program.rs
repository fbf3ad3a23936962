//! One program: a list of statements. All programs have the same pool of variables, so almost every
//! statement is valid in every program. A program is generated, or is one of the corpus; then it is
//! mutated and crossed with others.

use fastrand::Rng;

use super::grammar::Grammar;
use super::tree::{self, Node};

const PRELUDE: &str = include_str!("js/prelude.js");
const EPILOGUE: &str = include_str!("js/epilogue.js");

/// The corpus: programs of our own, each named after what it exercises.
const CORPUS: [&str; 8] = [
    include_str!("../../corpus-js/arguments.js"),
    include_str!("../../corpus-js/bigint.js"),
    include_str!("../../corpus-js/classes.js"),
    include_str!("../../corpus-js/elements.js"),
    include_str!("../../corpus-js/escape.js"),
    include_str!("../../corpus-js/loops.js"),
    include_str!("../../corpus-js/regexp.js"),
    include_str!("../../corpus-js/typed.js"),
];

/// A program of the fuzzer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub statements: Vec<Node>,
    /// The program is compiled from a string, outside strict mode. (Modules are always strict.)
    pub sloppy: bool,
}

impl Program {
    /// A program of the given statements.
    pub fn of(text: &str) -> Self {
        Self { statements: tree::parse(text), sloppy: false }
    }

    /// Makes a program: half of them are generated, and half come from the corpus. Up to five
    /// mutations follow.
    pub fn make(rng: &mut Rng) -> Self {
        let mut program = if rng.bool() { Self::generate(rng) } else { Self::of(CORPUS[rng.usize(..CORPUS.len())]) };
        program.sloppy = rng.u8(..4) == 0;
        for _ in 0..rng.usize(..6) {
            program.mutate(rng);
        }
        program
    }

    fn generate(rng: &mut Rng) -> Self {
        let length = rng.usize(3..16);
        Self { statements: (0..length).map(|_| Grammar::get().statement(rng)).collect(), sloppy: false }
    }

    /// Changes one thing.
    fn mutate(&mut self, rng: &mut Rng) {
        let size = tree::size(&self.statements);
        if size == 0 {
            self.statements.push(Grammar::get().statement(rng));
            return;
        }
        let number = rng.usize(..size);
        let Some(old) = tree::get(&self.statements, number).cloned() else { return };
        let new = match rng.u8(..12) {
            0 => Vec::new(),
            1 => vec![old.clone(), old],
            2 => vec![old, Self::foreign(rng)],
            3 => vec![Self::foreign(rng)],
            4 => vec![old, Grammar::get().statement(rng)],
            5 if old.size() == 1 => {
                vec![wrapped(&format!("for (let k = 0; k < {}; k++) {{", Grammar::get().make("turns", rng)), old)]
            }
            _ => vec![changed(&old, rng)],
        };
        // A statement with `yield`, `super`, `return` or a part of a class may be invalid in
        // another place. Then the program does not compile, which all engines must report alike.
        tree::replace(&mut self.statements, number, new);
    }

    /// A statement from the corpus.
    fn foreign(rng: &mut Rng) -> Node {
        let other = tree::parse(CORPUS[rng.usize(..CORPUS.len())]);
        other[rng.usize(..other.len())].clone()
    }

    /// The program as the function that a run calls. If a statement throws, the next one follows.
    pub fn text(&self) -> String {
        let statements: String = self
            .statements
            .iter()
            .map(|node| format!("try {{\n{}\n}} catch (e) {{\nnote(e);\n}}\n", node.text()))
            .collect();
        let mode = if self.sloppy { "" } else { "\"use strict\";\n" };
        let whole = format!("async () => {{\n{mode}{PRELUDE}{statements}{EPILOGUE}}}");
        if self.sloppy { format!("() => (0, eval)({})()", serde_json::Value::String(whole)) } else { whole }
    }
}

fn wrapped(head: &str, node: Node) -> Node {
    Node::Block { arms: vec![(head.to_owned(), vec![node])], end: "}".to_owned() }
}

/// The statement, with one token of its first line replaced. A variable may be replaced by a
/// variable of another type, any other token by a token of the same kind.
fn changed(node: &Node, rng: &mut Rng) -> Node {
    match node {
        Node::Line(line) => Node::Line(with_another_token(line, rng)),
        Node::Block { arms, end } => {
            let mut arms = arms.clone();
            arms[0].0 = with_another_token(&arms[0].0, rng);
            Node::Block { arms, end: end.clone() }
        }
    }
}

/// The kinds of tokens that can be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Number,
    Variable,
    Operator,
}

fn with_another_token(line: &str, rng: &mut Rng) -> String {
    let found = tokens(line);
    // With another bound, a loop might not end in time. Such a program shows nothing.
    let is_loop = ["for ", "l: for ", "while ", "} while "].iter().any(|word| line.starts_with(word));
    if found.is_empty() || is_loop {
        return line.to_owned();
    }
    let (kind, range) = found[rng.usize(..found.len())].clone();
    let grammar = Grammar::get();
    let new = match kind {
        Token::Number if line.as_bytes().get(range.end) == Some(&b'n') => rng.u32(..).to_string(),
        Token::Number => grammar.make(if rng.bool() { "small" } else { "edge" }, rng),
        Token::Variable => {
            let kinds = ["numvar", "numvar", "strvar", "arrvar", "typvar", "objvar", "anyvar", "fvarold", "bigvar"];
            grammar.make(kinds[rng.usize(..kinds.len())], rng)
        }
        Token::Operator => grammar.make("numop", rng),
    };
    let new = if new.starts_with('-') { format!("({new})") } else { new };
    format!("{}{new}{}", &line[..range.start], &line[range.end..])
}

/// The tokens of a line that can be replaced. They are not in strings and not part of names.
fn tokens(line: &str) -> Vec<(Token, std::ops::Range<usize>)> {
    let bytes = line.as_bytes();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.');
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            quote @ (b'"' | b'\'' | b'`') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            byte if is_word(&byte) => {
                at += bytes[at..].iter().take_while(|byte| is_word(byte)).count();
                let word = &line[start..at];
                let digits = word.bytes().take_while(u8::is_ascii_digit).count();
                let pool =
                    word.len() == 2 && word.as_bytes()[0].is_ascii_lowercase() && word.as_bytes()[1].is_ascii_digit();
                if digits == word.len() || (digits + 1 == word.len() && word.ends_with('n')) {
                    found.push((Token::Number, start..start + digits));
                } else if pool {
                    found.push((Token::Variable, start..at));
                }
            }
            b'+' | b'-' | b'*' | b'%' | b'&' | b'|' | b'^' => {
                at += 1;
                // A binary operator has spaces on both sides.
                if start > 0 && bytes[start - 1] == b' ' && bytes.get(at) == Some(&b' ') {
                    found.push((Token::Operator, start..at));
                }
            }
            _ => at += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_read_and_written_without_loss() {
        for text in CORPUS {
            let nodes = tree::parse(text);
            assert!(nodes.len() > 3, "{text}");
            assert_eq!(tree::parse(&tree::text(&nodes)), nodes);
        }
    }

    #[test]
    fn tokens_are_found_outside_strings_and_names() {
        let line = "n0 = a1[12] * \"n3 + 4\" + Math.log2(x0 - 7n)";
        let found: Vec<_> = tokens(line).into_iter().map(|(kind, range)| (kind, &line[range])).collect();
        let expected = [
            (Token::Variable, "n0"),
            (Token::Variable, "a1"),
            (Token::Number, "12"),
            (Token::Operator, "*"),
            (Token::Operator, "+"),
            (Token::Variable, "x0"),
            (Token::Operator, "-"),
            (Token::Number, "7"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_program_is_the_same_each_time_it_is_made_from_its_seed() {
        let of = |seed| Program::make(&mut Rng::with_seed(seed)).text();
        for seed in 0..200 {
            assert_eq!(of(seed), of(seed));
        }
        assert!((0..20).any(|seed| of(seed) != of(7)));
    }
}
