//! Names of tenants and scripts, and the patterns of `[[peers]]`.
//!
//! Attacked: the checks of names that appear later in file names, paths of the API and lines of the
//! log. Oracle: the rule that the error message states, spelt out by character.

use arbitrary::Unstructured;
use enisle_supervisor::seams;

use crate::parsers::draw::{Draw, same};

/// The rule: 1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or digit.
fn is_name(text: &str) -> bool {
    let mut characters = text.chars();
    let letter = |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9');
    characters.next().is_some_and(letter)
        && characters.all(|c| letter(c) || matches!(c, '.' | '_' | '-'))
        && text.chars().count() <= 64
}

fn name(u: &mut Unstructured<'_>) -> String {
    match u.below(4) {
        0 => "a".repeat(60 + u.below(8)),
        1 => String::from_utf8_lossy(u.take(70)).into_owned(),
        2 => format!("acme-{}", u.text(2)),
        _ => ["a", "A.b", "0_-", ".a", "-a", "a b", "ａ", "a\u{301}"][u.below(8)].to_owned(),
    }
}

pub(in crate::parsers) fn names(u: &mut Unstructured<'_>) -> Result<(), String> {
    let (name, mut pattern) = (name(u), name(u));
    if u.flag() {
        pattern.push('*');
    }
    same(&format!("{name:?} is a name"), &seams::is_tenant_name(&name), &is_name(&name))?;
    let beginning = pattern.strip_suffix('*');
    let expected = match beginning {
        Some("") => Some(true),
        Some(beginning) => is_name(beginning).then(|| name.starts_with(beginning)),
        None => is_name(&pattern).then(|| name == pattern),
    };
    same(&format!("{pattern:?} covers {name:?}"), &seams::pattern_covers(&pattern, &name), &expected)
}
