//! `cargo xtask imports`: checks which part of a program imports which, and that no files import
//! each other in a circle.
//!
//! A program is a house; its rooms are folders and files of its sources. A room may import from
//! itself and from the rooms that its row in the table names. Imports of tests (`#[cfg(test)]`) are
//! not checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::houses::{self, House, Room};
use crate::root;

pub(crate) fn run() -> Result<()> {
    let mut broken = Vec::new();
    for house in houses::ALL {
        let sources = Sources::read(&root().join(house.folder))?;
        let found = sources.look(house);
        broken.extend(found.into_iter().map(|finding| format!("{}/{finding}", house.folder)));
    }
    ensure!(broken.is_empty(), "{} imports break a rule:\n{}", broken.len(), broken.join("\n"));
    println!("ok  no import breaks a rule, and no files import each other in a circle");
    Ok(())
}

/// A module's path, without `crate`.
type Module = Vec<String>;

/// Every file of a program, and what it imports from the others.
#[derive(Debug, Default)]
struct Sources {
    files: BTreeMap<Module, PathBuf>,
    /// The file that imports and the file that it imports, with the first line that does so.
    imports: BTreeMap<(Module, Module), usize>,
}

impl Sources {
    fn read(folder: &Path) -> Result<Self> {
        let mut texts = BTreeMap::new();
        collect(folder, Path::new(""), &mut texts)?;
        Self::of(texts)
    }

    /// Reads the imports from the texts of files, which are given by path.
    fn of(texts: BTreeMap<PathBuf, String>) -> Result<Self> {
        let files = texts.keys().map(|path| (module_of(path), path.clone())).collect();
        let mut sources = Self { files, ..Self::default() };
        for (path, text) in &texts {
            let tokens: TokenStream = text.parse().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
            let module = module_of(path);
            let mut paths = Vec::new();
            gather(tokens, &module, &mut paths);
            for (path, line) in paths {
                if let Some(to) = sources.file_of(&path).filter(|to| *to != module) {
                    sources.imports.entry((module.clone(), to)).or_insert(line);
                }
            }
        }
        Ok(sources)
    }

    /// The file that a path leads to.
    fn file_of(&self, path: &[String]) -> Option<Module> {
        (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|module| self.files.contains_key(module))
    }

    fn look(&self, house: &House) -> Vec<String> {
        let mut found = Vec::new();
        let known: BTreeSet<_> = house.known.iter().map(|(from, to)| (module_at(from), module_at(to))).collect();
        for (from, to) in known.iter().filter(|import| !self.imports.contains_key(import)) {
            found.push(format!(
                "{} does not import {} any more: remove that from the known imports",
                show(from),
                show(to)
            ));
        }
        for ((from, to), line) in self.imports.iter().filter(|(import, _)| !known.contains(import)) {
            let file = self.files[from].display();
            let (Some(ours), Some(theirs)) = (house.room_of(from), house.room_of(to)) else {
                let (from, to) = (show(from), show(to));
                found.push(format!(
                    "{file}:{line}: the table in houses.rs lacks a row for {from}, for {to}, or for both"
                ));
                continue;
            };
            let fine = ours.name == theirs.name
                || ours.name.is_empty()
                || house.open.contains(&theirs.name)
                || ours.may.contains(&theirs.name);
            if !fine {
                found.push(format!(
                    "{file}:{line}: {} may not import {} ({}): {}",
                    ours.name,
                    theirs.name,
                    show(to),
                    ours.is
                ));
            }
        }
        if let Some(circle) = self.circle(&known) {
            let steps: Vec<_> = circle
                .iter()
                .zip(circle.iter().cycle().skip(1))
                .map(|(from, to)| {
                    let line = self.imports[&(from.clone(), to.clone())];
                    format!("{}:{line} imports {}", self.files[from].display(), show(to))
                })
                .collect();
            found.push(format!("a circle: {}", steps.join(", ")));
        }
        found
    }

    /// Files that import each other in a circle, if there are any.
    fn circle(&self, known: &BTreeSet<(Module, Module)>) -> Option<Vec<Module>> {
        let mut done = BTreeSet::new();
        self.files.keys().find_map(|file| self.circle_from(file, known, &mut Vec::new(), &mut done))
    }

    fn circle_from<'a>(
        &'a self,
        file: &'a Module,
        known: &BTreeSet<(Module, Module)>,
        way: &mut Vec<&'a Module>,
        done: &mut BTreeSet<&'a Module>,
    ) -> Option<Vec<Module>> {
        if let Some(begin) = way.iter().position(|before| *before == file) {
            return Some(way[begin..].iter().map(|module| (*module).clone()).collect());
        }
        if done.contains(file) {
            return None;
        }
        way.push(file);
        let next = self.imports.keys().filter(|import| import.0 == *file && !known.contains(import)).map(|(_, to)| to);
        let circle = next.into_iter().find_map(|to| self.circle_from(to, known, way, done));
        way.pop();
        done.insert(file);
        circle
    }
}

impl House {
    fn room_of(&self, module: &[String]) -> Option<&Room> {
        let path = module.join("/");
        let holds = |room: &&Room| {
            room.name.is_empty() && path.is_empty()
                || path == room.name
                || !room.name.is_empty() && path.strip_prefix(room.name).is_some_and(|rest| rest.starts_with('/'))
        };
        self.rooms.iter().filter(holds).max_by_key(|room| room.name.len())
    }
}

fn module_at(path: &str) -> Module {
    path.split('/').map(str::to_owned).collect()
}

fn show(module: &[String]) -> String {
    if module.is_empty() { "crate".to_owned() } else { module.join("::") }
}

fn collect(folder: &Path, below: &Path, texts: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let read = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let Some(name) = path.file_name() else { bail!("{} has no name", path.display()) };
        let below = below.join(name);
        if path.is_dir() {
            collect(&path, &below, texts)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            texts.insert(below, text);
        }
    }
    Ok(())
}

fn module_of(path: &Path) -> Module {
    let mut parts: Vec<_> = path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "main" | "lib")) {
        parts.pop();
    }
    parts
}

/// Finds every path in the tokens that begins with `crate`, `super` or `self`. Resolves it from
/// `module`, and notes its line. Leaves out the items that follow `#[cfg(test)]`.
fn gather(tokens: TokenStream, module: &[String], found: &mut Vec<(Module, usize)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_for_tests(&tokens[at..]) {
            at = after_item(&tokens, at + 2);
            continue;
        }
        if is_visibility(&tokens[at..]) {
            at += 2;
            continue;
        }
        let line = tokens[at].span().start().line;
        let begins = at == 0 || !is_colon(&tokens[at - 1]);
        match &tokens[at] {
            TokenTree::Ident(word) if begins && matches!(word.to_string().as_str(), "crate" | "super" | "self") => {
                at = path(&tokens, at, Vec::new(), &mut |path| {
                    found.extend(resolve(path, module).map(|path| (path, line)));
                });
            }
            TokenTree::Group(group) => {
                gather(group.stream(), module, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads a path, or a tree of paths, that begins at `at`. Returns the index of the token after it.
fn path(tokens: &[TokenTree], mut at: usize, mut read: Vec<String>, found: &mut dyn FnMut(&[String])) -> usize {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(word)) => read.push(word.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                for part in inner.split(|token| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',')) {
                    path(part, 0, read.clone(), found);
                }
                return at + 1;
            }
            // This is `*`, or the generic arguments of a method's path.
            _ => break,
        }
        at += 1;
        if !(tokens.get(at).is_some_and(is_colon) && tokens.get(at + 1).is_some_and(is_colon)) {
            break;
        }
        at += 2;
    }
    found(&read);
    at
}

/// The same path from the crate's root. `None` for a path that leads out of the crate.
fn resolve(path: &[String], module: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        _ => module.split_last()?.1.to_vec(),
    };
    let mut rest = rest.iter().peekable();
    while rest.next_if(|word| *word == "super").is_some() {
        base.pop();
    }
    base.extend(rest.filter(|word| *word != "self").cloned());
    Some(base)
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(mark) if mark.as_char() == ':')
}

fn is_for_tests(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(mark), TokenTree::Group(group), ..]
        if mark.as_char() == '#' && group.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// `pub(super)`, `pub(in crate::homes)`: the visibility of an item, which is not an import.
fn is_visibility(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Ident(word), TokenTree::Group(group), ..] = tokens else { return false };
    let inner: Vec<_> = group.stream().into_iter().map(|token| token.to_string()).collect();
    let inner: Vec<_> = inner.iter().map(String::as_str).collect();
    word == "pub" && matches!(inner.as_slice(), ["crate" | "super" | "self"] | ["in", ..])
}

/// The index of the token after the item that begins at `at`.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let is_use = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word == "use");
    let mut braces_end = true;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        braces_end &= !is_use(token);
        match token {
            TokenTree::Punct(mark) if mark.as_char() == ';' => return index + 1,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && braces_end => return index + 1,
            _ => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::super::houses::room;
    use super::*;

    const HOUSE: House = House {
        folder: "",
        rooms: &[
            room("", &[], "it starts the daemon"),
            room("homes", &["workers"], "it puts tenants into processes"),
            room("workers", &[], "it knows slots, not tenants"),
            room("workers/deep", &["workers"], "a room in a room"),
            room("clock", &[], "what time it is"),
        ],
        open: &["clock"],
        known: &[("workers/old", "homes/pool")],
    };

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let known = [("workers/old.rs", "use crate::homes::pool;"), ("homes/pool.rs", "use crate::workers::old;")];
        let known = known.iter().filter(|(path, _)| files.iter().all(|(other, _)| other != path));
        let texts = known.chain(files).map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        Sources::of(texts).unwrap().look(&HOUSE)
    }

    #[test]
    fn what_the_table_allows_is_fine() {
        let found = findings(&[
            ("main.rs", "mod homes; use crate::workers::slot::Slot;"),
            ("homes/pool.rs", "use crate::{clock::now, workers::slot::{self, Slot}}; use super::home::Home;"),
            ("homes/home.rs", "fn f() { crate::clock::now() }"),
            (
                "workers/slot.rs",
                "//! `crate::homes` is not imported here.\n#[cfg(test)]\nmod tests { use crate::homes::pool; }",
            ),
            ("workers/deep/x.rs", "use super::super::slot::Slot;"),
            ("workers/shown.rs", "pub(in crate::homes::home) struct S { pub(super) x: u8 }"),
            ("clock.rs", ""),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_line_that_breaks_a_rule_is_named() {
        for (text, line) in [
            ("\nuse crate::homes::pool::Pool;", 2),
            ("\n\nuse crate::{clock, homes::pool::{self, Pool}};", 3),
            ("fn f() {\n    let x = super::super::homes::pool::f();\n}", 2),
            ("fn f() { println!(\"{}\",\n crate::homes::pool::NAME) }", 2),
            ("#[cfg(test)]\nuse crate::{clock::now};\n#[cfg(test)]\nmod tests;\nuse crate::homes::pool;", 5),
        ] {
            let found = findings(&[("homes/pool.rs", ""), ("workers/slot.rs", text), ("clock.rs", "")]);
            let expected = format!(
                "workers/slot.rs:{line}: workers may not import homes (homes::pool): it knows slots, not tenants"
            );
            assert_eq!(found, [expected], "{text}");
        }
    }

    #[test]
    fn a_circle_of_files_is_named_with_its_lines() {
        let found = findings(&[
            ("homes/a.rs", "use super::b::B;"),
            ("homes/b.rs", "\nuse crate::homes::c;"),
            ("homes/c.rs", "\n\nuse super::a::A;"),
            ("homes/d.rs", "use super::a::A;"),
        ]);
        assert_eq!(
            found,
            ["a circle: homes/a.rs:1 imports homes::b, homes/b.rs:2 imports homes::c, homes/c.rs:3 imports homes::a"]
        );
    }

    #[test]
    fn a_known_import_that_is_gone_is_named() {
        let found = findings(&[("workers/old.rs", "")]);
        assert_eq!(found, ["workers::old does not import homes::pool any more: remove that from the known imports"]);
    }

    #[test]
    fn a_file_without_a_room_is_named() {
        let found = findings(&[("clock.rs", ""), ("elsewhere.rs", "use crate::clock::now;")]);
        let lacks = "the table in houses.rs lacks a row for elsewhere, for clock, or for both";
        assert_eq!(found, [format!("elsewhere.rs:1: {lacks}")]);
    }
}
