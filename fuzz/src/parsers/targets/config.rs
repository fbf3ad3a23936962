//! Configuration files.
//!
//! Attacked: the reader of `enisled.toml`, by the printed defaults with lines changed, removed and
//! added, and by raw text. The keys come from the printed defaults, so a new key is fuzzed without
//! being named here. Oracle: a configuration that is accepted can be printed, and the printed text
//! is read back as an equal configuration.

use arbitrary::Unstructured;
use enisle_supervisor::seams;

use super::records::scratch;
use crate::parsers::draw::{Draw, damaged, ensure, same};

const VALUES: [&str; 38] = [
    "0",
    "1",
    "-1",
    "16",
    "100",
    "1000",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "0.5",
    "-0.0",
    "1e300",
    "inf",
    "-inf",
    "nan",
    "0x10",
    "1_000",
    "true",
    "false",
    "\"\"",
    "\"auto\"",
    "\"off\"",
    "\"require\"",
    "\"trusted\"",
    "\"15.2\"",
    "\"15..2\"",
    "\"+1.2\"",
    "\"/bin/x\"",
    "[]",
    "[\"acme-*\", \"a\"]",
    "[1, [2]]",
    "{}",
    "{ points = 1, half_life_secs = 1, most = 2 }",
    "1979-05-27T07:32:00Z",
    "'''\nx'''",
    "\"\\u0000\"",
];

/// Keys that the printed defaults lack, because they have no default: table, key and values.
const OPTIONAL: [(&str, &str, &[&str]); 6] = [
    ("[workers]", "program", &["\"/bin/x\"", "\"\"", "\"a\\u0000b\""]),
    ("[cordon]", "v8_at_least", &["\"15.2.7\"", "\"1.2.3.4\"", "\"1.2.3.4.5\"", "\"01\"", "\"4294967296\""]),
    ("[defaults]", "owner", &["\"o\\u0001\"", "\"\""]),
    ("[defaults]", "allowEval", &["true"]),
    ("[defaults.limits]", "cpuMs", &["5"]),
    (
        "[cordon.rules.signals]",
        "busy",
        &["{ points = 1, half_life_secs = 1, most = 2 }", "{ points = 3, half_life_secs = 0, most = 1 }"],
    ),
];

const TABLES: [&str; 5] = [
    "[[peers]]\nuid = 1000\n",
    "[[peers]]\nuid = 7\ntenants = [\"acme-*\", \"*\"]\noperate = true\nshare_percent = 50\n",
    "[[peers]]\nuid = 1900000001\n",
    "[cordon.rules.signals.busy]\npoints = 5.5\nhalf_life_secs = 3\nmost = 1e3\n",
    "[nothing]\n",
];

pub(in crate::parsers) fn config(u: &mut Unstructured<'_>) -> Result<(), String> {
    let text = match u.below(3) {
        0 => String::from_utf8_lossy(u.rest()).into_owned(),
        1 => changed(u),
        _ => {
            let text = changed(u).into_bytes();
            String::from_utf8_lossy(&damaged(text, u)).into_owned()
        }
    };
    let read = seams::config(&text);
    if u.rarely(8) {
        let folder = scratch()?;
        let path = folder.path().join("enisled.toml");
        std::fs::write(&path, &text).map_err(|error| error.to_string())?;
        same("read from a file", &seams::config_file(&path).as_ref().ok(), &read.as_ref().ok())?;
    }
    let Ok(accepted) = read else { return Ok(()) };
    outdated(&accepted, u)?;
    let printed = accepted.print().map_err(|error| format!("accepted and cannot be printed: {error}\n{text}"))?;
    let again = seams::config(&printed).map_err(|error| format!("printed and is refused: {error}\n{printed}"))?;
    ensure(again == accepted, || format!("{text}\nis printed and read back as another configuration:\n{printed}"))?;
    same("printed again", &again.print()?, &printed)
}

/// A worker reports its version of V8, so it may be any text. A version is never older than itself.
fn outdated(accepted: &seams::Accepted, u: &mut Unstructured<'_>) -> Result<(), String> {
    let number = |u: &mut Unstructured<'_>| u32::try_from(u.number() >> 33).unwrap_or(0);
    let version: Vec<_> = (0..=u.below(4)).map(|_| number(u).to_string()).collect();
    let least =
        format!("[cordon]\nv8_at_least = \"{}\"", version.iter().take(4).cloned().collect::<Vec<_>>().join("."));
    if let Ok(demanding) = seams::config(&least) {
        ensure(!demanding.is_outdated(&format!("{}-enisle", version.join("."))), || format!("{least}: {version:?}"))?;
        ensure(demanding.is_outdated("no version") || version.is_empty(), || format!("{least}: no version is enough"))?;
    }
    let _ = accepted.is_outdated(&u.text(4));
    Ok(())
}

/// The printed defaults with a few lines changed.
fn changed(u: &mut Unstructured<'_>) -> String {
    let printed = seams::config("").and_then(|defaults| defaults.print()).unwrap_or_default();
    let mut lines: Vec<String> = printed.lines().map(str::to_owned).collect();
    for _ in 0..u.below(4) {
        let at = u.below(lines.len());
        let key = lines[at].split_once(" = ").map(|(key, _)| key.to_owned());
        match (u.below(5), key) {
            (0, _) => drop(lines.remove(at)),
            (1, _) => lines.insert(at, (*u.pick(&TABLES)).to_owned()),
            (2, Some(key)) => lines.insert(at, format!("{key}x = 1")),
            (3, Some(key)) => lines[at] = format!("{key} = {}", u.number()),
            (_, Some(key)) => lines[at] = format!("{key} = {}", u.pick(&VALUES)),
            (_, None) => {}
        }
    }
    for _ in 0..u.below(3) {
        let (table, key, values) = u.pick(&OPTIONAL);
        let Some(at) = lines.iter().position(|line| line == table) else { continue };
        lines.insert(at + 1, format!("{key} = {}", u.pick(values)));
    }
    // The printed `peers = []` and a table `[[peers]]` would define the same key twice.
    if u.flag() {
        lines.retain(|line| !line.starts_with("peers ="));
    }
    // At the end, these tables do not cut off the keys of another table.
    for _ in 0..u.below(3) {
        lines.push((*u.pick(&TABLES)).to_owned());
    }
    lines.join("\n")
}
