//! Makes programs from `grammar.txt`. Each row of that file is one way to make a part of a program.

use std::collections::HashMap;
use std::sync::OnceLock;

use fastrand::Rng;

use super::tree::{Node, parse};

const GRAMMAR: &str = include_str!("grammar.txt");

/// The parts of the fuzzer's programs.
#[derive(Debug)]
pub struct Grammar {
    /// For each name of a part, the ways to make it.
    parts: HashMap<&'static str, Vec<Way>>,
}

/// One way to make a part.
#[derive(Debug)]
struct Way {
    pieces: Vec<Piece>,
    /// The least depth of a part that is made this way.
    depth: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Part(&'static str),
    /// The name of a function of the pool, which this part defines.
    Defined,
    /// Nothing after this, in the same part, calls a function of the pool.
    Low,
}

/// How many functions the pool of variables has.
const FUNCTIONS: usize = 4;
/// The greatest depth of expressions and statements, as far as the grammar leaves a choice.
const DEPTH: u32 = 7;

/// Writes one statement.
struct Writer<'a> {
    grammar: &'a Grammar,
    rng: &'a mut Rng,
    text: String,
    /// Only functions with a lower number may be called.
    callable: usize,
}

impl Grammar {
    /// The grammar of `grammar.txt`.
    ///
    /// # Panics
    /// A row has no name, or every way to make a part needs that part again.
    pub fn get() -> &'static Self {
        static KNOWN: OnceLock<Grammar> = OnceLock::new();
        KNOWN.get_or_init(|| Self::read(GRAMMAR))
    }

    fn read(text: &'static str) -> Self {
        let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let rows: Vec<_> =
            rows.map(|row| row.split_once(": ").unwrap_or_else(|| panic!("{row:?} has no name"))).collect();
        let mut parts: HashMap<_, Vec<_>> = HashMap::new();
        for (name, _) in &rows {
            parts.entry(*name).or_default();
        }
        for (name, text) in &rows {
            let pieces = pieces(text, |name| parts.get_key_value(name).map(|(name, _)| *name));
            parts.entry(name).or_default().push(Way { pieces, depth: u32::MAX });
        }
        let mut grammar = Self { parts };
        grammar.measure();
        grammar
    }

    /// Finds the least depth of each way, beginning with the ways that contain no other part.
    fn measure(&mut self) {
        loop {
            let least: HashMap<_, _> = self.parts.keys().map(|name| (*name, self.least(name))).collect();
            let mut changed = false;
            for way in self.parts.values_mut().flatten() {
                let inner = way.pieces.iter().filter_map(|piece| match piece {
                    Piece::Part(name) => Some(least[name]),
                    _ => None,
                });
                let depth = inner.max().map_or(0, |deepest| deepest.saturating_add(1));
                changed |= depth < way.depth;
                way.depth = way.depth.min(depth);
            }
            if !changed {
                let endless = self.parts.keys().find(|name| self.least(name) == u32::MAX);
                assert!(endless.is_none(), "{endless:?} never ends");
                return;
            }
        }
    }

    fn least(&self, name: &str) -> u32 {
        self.parts[name].iter().map(|way| way.depth).min().unwrap_or(u32::MAX)
    }

    /// A statement, which may be a block.
    pub fn statement(&self, rng: &mut Rng) -> Node {
        parse(&self.make("stmt", rng)).into_iter().next().unwrap_or_else(|| Node::Line(";".to_owned()))
    }

    /// One part of a program, as text.
    pub fn make(&self, name: &str, rng: &mut Rng) -> String {
        let mut writer = Writer { grammar: self, rng, text: String::new(), callable: FUNCTIONS };
        writer.write(name, DEPTH);
        writer.text
    }
}

impl Writer<'_> {
    fn write(&mut self, name: &str, left: u32) {
        if name == "fvar" {
            return self.called();
        }
        let grammar = self.grammar;
        let ways = &grammar.parts[name];
        let least = grammar.least(name);
        // If no depth is left, only the shallowest ways fit.
        let fitting: Vec<_> = ways.iter().filter(|way| way.depth <= left.max(least)).collect();
        let way = fitting[self.rng.usize(..fitting.len())];
        let before = self.callable;
        for piece in &way.pieces {
            match piece {
                Piece::Text(text) => self.text.push_str(text),
                Piece::Part(name) => self.write(name, left.saturating_sub(1)),
                Piece::Defined => {
                    self.callable = self.rng.usize(..FUNCTIONS);
                    self.text.push_str(&format!("f{}", self.callable));
                }
                Piece::Low => self.callable = 0,
            }
        }
        self.callable = before;
    }

    fn called(&mut self) {
        let name = match self.callable {
            0 => "((p, q) => p)".to_owned(),
            most => format!("f{}", self.rng.usize(..most)),
        };
        self.text.push_str(&name);
    }
}

/// Splits a text of the grammar into pieces. `<` is special only before the name of a part.
fn pieces(text: &str, known: impl Fn(&str) -> Option<&'static str>) -> Vec<Piece> {
    let mut pieces = vec![Piece::Text(String::new())];
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let name = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')).map(|(name, _)| name);
        let part = match name {
            Some("fdef") => Some(Piece::Defined),
            Some("low") => Some(Piece::Low),
            Some(name) => known(name).map(Piece::Part),
            None => None,
        };
        match part {
            Some(part) => {
                rest = &rest[name.map_or(0, str::len) + 2..];
                pieces.extend([part, Piece::Text(String::new())]);
            }
            None => {
                let (taken, is) = if rest.starts_with("\\n") { (2, '\n') } else { (next.len_utf8(), next) };
                if let Some(Piece::Text(text)) = pieces.last_mut() {
                    text.push(is);
                }
                rest = &rest[taken..];
            }
        }
    }
    pieces.retain(|piece| *piece != Piece::Text(String::new()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_the_grammar_mentions_can_be_made() {
        let grammar = Grammar::get();
        let mut rng = Rng::with_seed(1);
        for name in grammar.parts.keys() {
            for _ in 0..20 {
                let made = grammar.make(name, &mut rng);
                // The name of a part without a row would stay in the text.
                let left = made.split('<').skip(1).find_map(|rest| rest.split_once('>')).map(|(name, _)| name);
                let is_name = |name: &str| name.len() > 2 && name.bytes().all(|byte| byte.is_ascii_lowercase());
                assert!(!left.is_some_and(is_name), "{name}: {made}");
            }
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_statement() {
        let of = |seed| Grammar::get().statement(&mut Rng::with_seed(seed)).text();
        assert_eq!(of(7), of(7));
        assert!((0..20).any(|seed| of(seed) != of(7)));
    }

    #[test]
    fn a_function_calls_only_functions_with_lower_numbers() {
        let grammar = Grammar::get();
        let mut rng = Rng::with_seed(3);
        for _ in 0..2000 {
            let made = grammar.make("fun", &mut rng);
            let defined = made.as_bytes()[1] - b'0';
            for number in defined..4 {
                assert!(!made[2..].contains(&format!("f{number}(")), "{made}");
            }
        }
    }
}
