//! `cargo xtask documents`: checks that links in documents lead somewhere, and that the catalogues
//! in `docs/` match the code and the tests.
//!
//! The check needs no network, because it does not follow links to other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use enisle_cordon::Signal;
use enisle_cordon::rules::Rules;
use enisle_cordon::signal::Kind;

use super::text::files;
use crate::root;

pub(crate) fn run() -> Result<()> {
    let files = files()?;
    let mut documents = BTreeMap::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        documents.insert(path.clone(), read(path)?);
    }
    let mut found = dead_links(&documents, |path| root().join(path).exists());
    found.extend(signals(&documents[Path::new("docs/signals.md")], |path| read(Path::new(path)).ok()));
    let mut cases = read(Path::new("tests/escape/cases.rs"))?;
    for path in files.iter().filter(|path| path.starts_with("tests/attacks")) {
        cases += &read(path)?;
    }
    found.extend(attacks(&documents, &cases));
    ensure!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
    println!("ok  no link of {} documents is dead, and the catalogues are complete", documents.len());
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("reading {}", path.display()))
}

/// The lines of a document that are not in a block of code, each with its number.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_block = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        (!in_block && !is_fence).then_some((index + 1, line))
    })
}

/// A line without what is between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The targets of a line's links: `[text](target)`.
fn links(line: &str) -> Vec<String> {
    let line = without_code(line);
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchors that a document's headings make: in lower case, spaces as hyphens, without
/// punctuation. The second heading of a name gets `-1`, the third `-2`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts = BTreeMap::new();
    let headings = prose(text)
        .filter_map(|(_, line)| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    headings
        .map(|heading| {
            let letters = heading.trim().to_lowercase();
            let kept = letters.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            let anchor: String = kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect();
            let count: &mut u32 = counts.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
        })
        .collect()
}

/// Links to files that do not exist, or to headings that their document does not have.
fn dead_links(documents: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (document, text) in documents {
        let all = prose(text).flat_map(|(number, line)| links(line).into_iter().map(move |link| (number, link)));
        for (number, link) in all.filter(|(_, link)| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { document.clone() } else { beside(document, file) };
            let lives = match (documents.get(&target), anchor) {
                (Some(text), Some(anchor)) => anchors(text).contains(anchor),
                (Some(_), None) => true,
                (None, _) => exists(&target),
            };
            if !lives {
                found.push(format!("{}:{number}: the link to {link} is dead", document.display()));
            }
        }
    }
    found
}

/// A path that a document names, relative to the checkout.
fn beside(document: &Path, file: &str) -> PathBuf {
    let mut path = document.parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir if !path.pop() => path.push(".."),
            Component::ParentDir | Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

/// The cells of a row of a table, without their backticks.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().replace('`', "")).collect())
}

/// Where the catalogue of signals differs from the engine's table. Compares all cells of a row but
/// the one that says when the signal is seen, and checks that the file in the last cell mentions
/// the signal.
fn signals(document: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let rows: Vec<_> = document.lines().filter_map(cells).filter(|row| row.len() == 8).skip(2).collect();
    let rules = Rules::default();
    let mut found = Vec::new();
    let expected: Vec<_> = Signal::ALL.iter().map(|signal| row_of(*signal, &rules)).collect();
    for (signal, expected) in Signal::ALL.iter().zip(&expected) {
        let Some(row) = rows.iter().find(|row| row[0] == expected[0]) else {
            found.push(format!("docs/signals.md: no row for {}: {}", expected[0], expected.join(" | ")));
            continue;
        };
        if row[..6] != *expected {
            found.push(format!("docs/signals.md: {} must be {}", row[..6].join(" | "), expected.join(" | ")));
        }
        let mentions = read(&row[7]).is_some_and(|text| text.contains(&format!("Signal::{signal:?}")));
        if !mentions {
            found.push(format!("docs/signals.md: {} does not mention Signal::{signal:?}", row[7]));
        }
    }
    let names: Vec<_> = rows.iter().map(|row| &row[0]).collect();
    if found.is_empty() && !names.iter().copied().eq(expected.iter().map(|row| &row[0])) {
        found.push("docs/signals.md: its rows are not in the order of Signal::ALL, or one has no signal".to_owned());
    }
    found
}

/// What the first six cells of a signal must be.
fn row_of(signal: Signal, rules: &Rules) -> Vec<String> {
    let word = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let weight = rules.weight(signal);
    let mut row = vec![
        word(serde_json::to_value(signal)),
        word(serde_json::to_value(signal.source())),
        word(serde_json::to_value(signal.kind())),
        weight.points.to_string(),
    ];
    // A prior counts while it holds: it neither fades nor adds up.
    let fades = signal.kind() != Kind::Prior;
    row.push(if fades { duration(weight.half_life_secs) } else { String::new() });
    row.push(if fades { weight.most.to_string() } else { String::new() });
    row
}

/// Writes a duration in the largest unit that divides it, except that one day is 24 hours.
fn duration(secs: u64) -> String {
    match secs {
        secs if secs.is_multiple_of(86_400) && secs > 86_400 => format!("{} d", secs / 86_400),
        secs if secs.is_multiple_of(3600) => format!("{} h", secs / 3600),
        secs if secs.is_multiple_of(60) => format!("{} min", secs / 60),
        secs => format!("{secs} s"),
    }
}

/// Where the catalogue of attacks differs from the tests' cases, and which codes other documents
/// cite although the catalogue lacks them.
fn attacks(documents: &BTreeMap<PathBuf, String>, cases: &str) -> Vec<String> {
    let catalogue = Path::new("docs/attacks.md");
    let first_cells = documents[catalogue].lines().filter_map(cells).filter(|row| row.len() == 4);
    let mut rows = BTreeSet::new();
    let mut found = Vec::new();
    for code in first_cells.filter_map(|row| code(&row[0])) {
        if !rows.insert(code.clone()) {
            found.push(format!("docs/attacks.md: {code} has two rows"));
        }
    }
    let tested: BTreeSet<_> = cases.split('"').skip(1).step_by(2).filter_map(code).collect();
    found.extend(tested.difference(&rows).map(|code| format!("docs/attacks.md: no row for {code}, which has a test")));
    found.extend(rows.difference(&tested).map(|code| format!("docs/attacks.md: {code} has no test")));
    for (document, text) in documents.iter().filter(|(document, _)| *document != catalogue) {
        for (number, line) in prose(text) {
            let cited = line.split(|letter: char| !letter.is_ascii_alphanumeric()).filter_map(code);
            let missing = cited.filter(|code| !rows.contains(code));
            found.extend(
                missing.map(|code| format!("{}:{number}: {code} is not in docs/attacks.md", document.display())),
            );
        }
    }
    found
}

/// The code of an attack that a text begins with: `M02 buffer` is M02, `S6b homes` is S6. Returns
/// `None` for a text that begins otherwise.
fn code(text: &str) -> Option<String> {
    let word = text.split(' ').next()?;
    let letter = word.chars().next().filter(|letter| "MFNS".contains(*letter))?;
    let rest = &word[1..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let behind = &rest[digits.len()..];
    let is_code = match letter {
        'S' => {
            (1..=2).contains(&digits.len())
                && behind.len() <= 1
                && behind.chars().all(|letter| letter.is_ascii_lowercase())
        }
        _ => digits.len() == 2 && behind.is_empty(),
    };
    is_code.then(|| format!("{letter}{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(texts: &[(&str, &str)]) -> BTreeMap<PathBuf, String> {
        texts.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect()
    }

    #[test]
    fn the_documents_of_this_tree_are_fine() {
        run().unwrap();
    }

    #[test]
    fn a_dead_link_is_named_with_its_line() {
        let documents = documents(&[
            ("A.md", "# A: *first* part\n[b](docs/b.md) [x](https://example.org/y)\n[c](gone.md) `[d](d.md)`\n"),
            (
                "docs/b.md",
                "## Two `words`\n## Two words\n[a](../A.md#a-first-part) [here](#two-words-1)\n[no](#three)\n",
            ),
            ("docs/c.md", "```\n[x](gone.md)\n# three\n```\n[f](../src/f.rs) [up](../../x) [no](#three)\n"),
        ]);
        let found = dead_links(&documents, |path| path == Path::new("src/f.rs"));
        assert_eq!(
            found,
            [
                "A.md:3: the link to gone.md is dead",
                "docs/b.md:4: the link to #three is dead",
                "docs/c.md:5: the link to ../../x is dead",
                "docs/c.md:5: the link to #three is dead",
            ]
        );
    }

    /// A complete table, as the engine has it.
    fn table() -> String {
        let rows = Signal::ALL.iter().map(|signal| {
            format!("| `{}` | when | `{signal:?}.rs` |\n", row_of(*signal, &Rules::default()).join(" | "))
        });
        let head =
            "| signal | source | kind | points | half-life | most | when | in |\n|---|---|---|---|---|---|---|---|\n";
        head.to_owned() + &rows.collect::<String>()
    }

    fn mentioned(path: &str) -> Option<String> {
        Some(format!("Signal::{}", path.strip_suffix(".rs")?))
    }

    #[test]
    fn a_catalogue_of_signals_that_is_as_the_engine_says_is_fine() {
        assert_eq!(signals(&table(), mentioned), Vec::<String>::new());
    }

    #[test]
    fn a_wrong_number_of_a_signal_is_named() {
        let wrong =
            table().replace("crash | kernel | evidence | 60 | 7 d | 120", "crash | kernel | evidence | 61 | 7 d | 120");
        let expected = "docs/signals.md: crash | kernel | evidence | 61 | 7 d | 120 must be crash | kernel | evidence | 60 | 7 d | 120";
        assert_eq!(signals(&wrong, mentioned), [expected]);
    }

    #[test]
    fn a_missing_row_a_row_too_many_and_a_wrong_file_are_named() {
        let without: String =
            table().lines().filter(|line| !line.contains("`crash")).map(|line| format!("{line}\n")).collect();
        assert!(signals(&without, mentioned)[0].starts_with("docs/signals.md: no row for crash"));
        let more = table() + "| `loud | kernel | share | 1 | 1 h | 2` | when | `x.rs` |\n";
        assert!(signals(&more, mentioned)[0].contains("one has no signal"));
        let gone = signals(&table(), |path| mentioned(path).filter(|_| path != "Crash.rs"));
        assert_eq!(gone, ["docs/signals.md: Crash.rs does not mention Signal::Crash"]);
    }

    #[test]
    fn attacks_without_a_row_a_test_or_an_entry_are_named() {
        let documents = documents(&[
            (
                "docs/attacks.md",
                "| M01 | a | b | c |\n| M02 | a | b | c |\n| M02 | a | b | c |\n| S6 | a | b | c |\n| S9 | a | b | c |\n",
            ),
            ("A.md", "`S6b homes`, M01 to M04, S390x, MIT, UTF8\n"),
        ]);
        let cases =
            r#"attack("M01", "x") Case { id: "S6a names" } Case { id: "S6b homes" } check("M02 a", "M in") id: "N01""#;
        assert_eq!(
            attacks(&documents, cases),
            [
                "docs/attacks.md: M02 has two rows",
                "docs/attacks.md: no row for N01, which has a test",
                "docs/attacks.md: S9 has no test",
                "A.md:1: M04 is not in docs/attacks.md",
            ]
        );
    }
}
