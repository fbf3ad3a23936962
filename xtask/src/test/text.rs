//! `cargo xtask text`: comments end at column 100, and a long Rust file says why it is long.
//!
//! rustfmt holds code to its width and does not change comments. `v8/` is excluded: its texts
//! belong to V8, or are generated.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::root;

/// The last column of a comment.
const COLUMNS: usize = 100;
/// The longest Rust file that needs no reason.
const LINES: usize = 500;
/// The words, in a file's head comment, that permit a longer file.
const REASON: &str = "This file is long because ";

pub(crate) fn run() -> Result<()> {
    let files = files()?;
    let mut found = Vec::new();
    for path in files.iter().filter(|path| Comments::of(path).is_some()) {
        let text = fs::read_to_string(root().join(path)).with_context(|| format!("reading {}", path.display()))?;
        found.extend(wide_comments(path, &text));
        found.extend(too_long(path, &text));
    }
    ensure!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
    println!("ok  no comment goes beyond column {COLUMNS}, and every file of more than {LINES} lines says why");
    Ok(())
}

/// How a language marks a line that is nothing but a comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comments {
    Slashes,
    Hash,
}

impl Comments {
    /// How a file marks comments, judged by its name; `None` for a file whose comments are not
    /// checked.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("rs" | "js" | "mjs") => Some(Self::Slashes),
            Some("sh" | "toml" | "py") => Some(Self::Hash),
            _ => (path.starts_with(".ci") || name == ".editorconfig").then_some(Self::Hash),
        }
    }

    /// The text of a comment line; `None` for any other line.
    fn text(self, line: &str) -> Option<&str> {
        let line = line.trim_start();
        match self {
            Self::Slashes => line.strip_prefix("//").map(|text| text.trim_start_matches(['/', '!'])),
            Self::Hash => line.strip_prefix('#').filter(|text| !text.starts_with('!')),
        }
    }
}

/// The comment lines that are too wide, except those that cannot be wrapped: lines of one word,
/// such as an address.
fn wide_comments(path: &Path, text: &str) -> Vec<String> {
    let Some(comments) = Comments::of(path) else { return Vec::new() };
    let lines = text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, line, comments.text(line)?)));
    lines
        .filter(|(_, line, said)| {
            let can_be_wrapped = said.split_whitespace().nth(1).is_some();
            line.chars().count() > COLUMNS && can_be_wrapped
        })
        .map(|(number, line, _)| {
            let columns = line.chars().count();
            format!("{}:{number}: a comment of {columns} columns; it must end at column {COLUMNS}", path.display())
        })
        .collect()
}

/// A Rust file that is long and does not say why.
fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let is_rust = path.extension().is_some_and(|ending| ending == "rs");
    let head = text.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("");
    (is_rust && lines > LINES && !head.contains(REASON)).then(|| {
        format!(
            "{}:1: {lines} lines; a file of more than {LINES} must be split, or its head must say \"{REASON}…\"",
            path.display()
        )
    })
}

/// Every file of the checkout, as a sorted list of relative paths. Leaves out `v8/`, built files,
/// and hidden folders other than those of Cargo and CI.
pub(super) fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(Path::new(""), &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = root().join(folder);
    for entry in fs::read_dir(&here).with_context(|| format!("reading {}", here.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let is_skipped = name == "target" || path == Path::new("v8") || name.starts_with('.');
            if !is_skipped || [".cargo", ".ci"].contains(&name.as_str()) {
                collect(&path, files)?;
            }
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(name: &str, line: &str) -> bool {
        !wide_comments(Path::new(name), &format!("{line}\n")).is_empty()
    }

    #[test]
    fn a_comment_beyond_the_last_column_is_named_with_its_line() {
        let comment = format!("    /// {}", "word ".repeat(18));
        let found = wide_comments(Path::new("a/b.rs"), &format!("fn f() {{}}\n{comment}x\n{comment}xxxxx\n"));
        assert_eq!(found, ["a/b.rs:3: a comment of 103 columns; it must end at column 100"]);
    }

    #[test]
    fn every_language_has_its_own_mark() {
        let words = "word ".repeat(21);
        for (name, mark) in
            [("a.rs", "//!"), ("a.js", "//"), ("a.mjs", "  //"), ("a.sh", "#"), ("a.toml", "#"), (".ci/run", " #")]
        {
            assert!(wide(name, &format!("{mark} {words}")), "{name}");
            assert!(!wide(name, &format!("{mark} {}", &words[..90])), "{name}");
        }
        assert!(!wide("a.rs", &format!("let x = \"{words}\"; // y")), "code is rustfmt's");
        assert!(!wide("a.sh", &format!("#!/bin/{words}")), "the first line of a script is not a comment");
        assert!(!wide("a.md", &format!("# {words}")), "a document is not checked");
    }

    #[test]
    fn columns_are_characters() {
        assert!(!wide("a.rs", &format!("// {}", "é ".repeat(48))));
    }

    #[test]
    fn what_cannot_be_wrapped_may_be_wider() {
        assert!(wide("a.rs", &format!("//! | {} |", "word ".repeat(30))), "a cell of a table can be shorter");
        assert!(!wide("a.rs", &format!("// https://{}", "x".repeat(120))));
    }

    #[test]
    fn a_long_file_without_a_reason_is_named() {
        let code = "fn f() {}\n".repeat(LINES);
        let long = |head: &str| too_long(Path::new("a.rs"), &format!("{head}\n{code}"));
        assert!(long("//! A protocol.").expect("it is named").starts_with("a.rs:1: 501 lines; "));
        assert_eq!(long("//! A protocol. This file is long because a\n//! table is."), None);
        assert_eq!(too_long(Path::new("a.rs"), &code), None, "500 lines need no reason");
        assert_eq!(too_long(Path::new("a.js"), &code.repeat(2)), None, "only Rust is checked");
    }
}
