//! A program as a tree of lines. Mutation and minimisation work on this tree, so that they need no
//! parser of JavaScript.
//!
//! A line that ends with `{` opens a block, and a line that begins with `}` closes it. A line that
//! does both (`} else {`) begins the block's next arm. The generator and the corpus write programs
//! that way.

/// A statement of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Line(String),
    Block {
        /// Each arm has its first line, such as `if (x) {` or `} else {`, and its statements.
        arms: Vec<(String, Vec<Node>)>,
        /// The line that closes the block.
        end: String,
    },
}

impl Node {
    /// The statement as lines of a program.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        self.lines(&mut lines);
        lines.join("\n")
    }

    fn lines<'a>(&'a self, lines: &mut Vec<&'a str>) {
        match self {
            Self::Line(line) => lines.push(line),
            Self::Block { arms, end } => {
                for (head, body) in arms {
                    lines.push(head);
                    body.iter().for_each(|node| node.lines(lines));
                }
                lines.push(end);
            }
        }
    }

    /// How many statements the node has at all depths, itself included.
    pub fn size(&self) -> usize {
        match self {
            Self::Line(_) => 1,
            Self::Block { arms, .. } => 1 + arms.iter().map(|(_, body)| size(body)).sum::<usize>(),
        }
    }
}

/// How many statements there are at all depths.
pub fn size(nodes: &[Node]) -> usize {
    nodes.iter().map(Node::size).sum()
}

/// Statements as a program's text.
pub fn text(nodes: &[Node]) -> String {
    nodes.iter().map(Node::text).collect::<Vec<_>>().join("\n")
}

/// Statements from a program's text. A block that is not closed ends at the end of the text.
pub fn parse(text: &str) -> Vec<Node> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    let mut nodes = Vec::new();
    while let Some(line) = lines.next() {
        nodes.push(statement(line, &mut lines));
    }
    nodes
}

fn statement<'a>(line: &str, lines: &mut impl Iterator<Item = &'a str>) -> Node {
    if !line.ends_with('{') {
        return Node::Line(line.to_owned());
    }
    let mut arms = vec![(line.to_owned(), Vec::new())];
    loop {
        let line = lines.next().unwrap_or("}");
        if !line.starts_with('}') {
            let inner = statement(line, lines);
            arms.iter_mut().last().expect("it began with one").1.push(inner);
        } else if line.ends_with('{') {
            arms.push((line.to_owned(), Vec::new()));
        } else {
            return Node::Block { arms, end: line.to_owned() };
        }
    }
}

/// The statement with this number, counted through all depths.
pub fn get(nodes: &[Node], mut number: usize) -> Option<&Node> {
    for node in nodes {
        if number == 0 {
            return Some(node);
        }
        if number < node.size() {
            let Node::Block { arms, .. } = node else { return None };
            number -= 1;
            for (_, body) in arms {
                if number < size(body) {
                    return get(body, number);
                }
                number -= size(body);
            }
        }
        number -= node.size();
    }
    None
}

/// Replaces the statement with this number, counted through all depths, by others.
pub fn replace(nodes: &mut Vec<Node>, mut number: usize, others: Vec<Node>) {
    for at in 0..nodes.len() {
        if number == 0 {
            nodes.splice(at..=at, others);
            return;
        }
        let within = nodes[at].size();
        if number < within {
            let Node::Block { arms, .. } = &mut nodes[at] else { return };
            number -= 1;
            for (_, body) in arms {
                if number < size(body) {
                    return replace(body, number, others);
                }
                number -= size(body);
            }
            return;
        }
        number -= within;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "x0 = 1;\nif (x0) {\nout(1);\n} else {\nfor (;;) {\nbreak;\n}\nout(2);\n}\nout(3);";

    #[test]
    fn what_is_read_is_written_again() {
        let nodes = parse(PROGRAM);
        assert_eq!((text(&nodes).as_str(), nodes.len(), size(&nodes)), (PROGRAM, 3, 7));
    }

    #[test]
    fn statements_are_counted_and_replaced_at_all_depths() {
        let nodes = parse(PROGRAM);
        let firsts: Vec<_> = (0..8)
            .map(|number| get(&nodes, number).map(|node| node.text().lines().next().unwrap_or("").to_owned()))
            .collect();
        let expected = ["x0 = 1;", "if (x0) {", "out(1);", "for (;;) {", "break;", "out(2);", "out(3);"];
        assert_eq!(firsts, expected.map(|line| Some(line.to_owned())).into_iter().chain([None]).collect::<Vec<_>>());
        for (number, line) in expected.iter().enumerate() {
            let mut without = nodes.clone();
            replace(&mut without, number, Vec::new());
            assert_eq!(size(&without), 7 - get(&nodes, number).map_or(0, Node::size), "{line}");
            assert!(!text(&without).contains(line), "{line}");
        }
    }

    #[test]
    fn a_block_that_is_not_closed_is_closed_at_the_end() {
        assert_eq!(text(&parse("if (1) {\nout(1);")), "if (1) {\nout(1);\n}");
    }
}
