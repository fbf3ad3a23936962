//! What the daemon keeps: the audit log, the database of standings, policies.
//!
//! Attacked: the reader of the audit chain, by lines with right hashes and wrong numbers, and by
//! whole chains with one byte, one line or the order changed; and the start of the daemon's
//! recorder, on state folders with damaged files. Oracles: every change inside a chain is found. A
//! start never panics, and reports what it could not read; the next start has nothing to report.
//! Without a database, tenants have the levels of a naive replay of the log. What was written is
//! read back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arbitrary::Unstructured;
use enisle_cordon::audit::{Head, Verifier, append};
use enisle_cordon::{Circumstances, Level, Rules, Seen, Signal, Standing, Time, decide};
use enisle_supervisor::seams;
use serde_json::{Value, json};

use super::bodies::json_value;
use crate::parsers::draw::{Draw, damaged, ensure, same};

/// Makes a folder for state: in memory, if this machine has `/dev/shm`.
pub(super) fn scratch() -> Result<tempfile::TempDir, String> {
    let made = if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
    made.map_err(|error| error.to_string())
}

fn line(head: &mut Head, entry: &Value) -> Result<String, String> {
    // The next line has the next number, and the format has no line after number `u64::MAX`.
    head.seq = head.seq.min(u64::MAX - 1);
    let (line, next) = append(head, 1_700_000_000_000 + head.seq % 1000, entry).map_err(|error| error.to_string())?;
    *head = next;
    Ok(line + "\n")
}

fn verify(text: &[u8]) -> Result<usize, String> {
    let mut verifier = Verifier::default();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = str::from_utf8(line).map_err(|error| error.to_string())?;
        let line = line.strip_suffix('\n').ok_or("a torn line")?;
        verifier.read(line).map_err(|error| error.to_string())?;
    }
    Ok(verifier.lines())
}

pub(in crate::parsers) fn audit_chain(u: &mut Unstructured<'_>) -> Result<(), String> {
    if u.rarely(3) {
        return hostile_chain(u);
    }
    let mut head = Head::default();
    let mut lines = Vec::new();
    for _ in 0..2 + u.below(4) {
        let entry = if u.flag() { json!(u.text(3)) } else { json!({ "hash": "\",\"hash\":\"", "n": u.number() }) };
        lines.push(line(&mut head, &entry)?);
    }
    same("a whole chain", &verify(lines.concat().as_bytes()), &Ok(lines.len()))?;
    let mut changed = lines.clone();
    let at = u.below(lines.len());
    let what = match u.below(4) {
        0 => {
            changed.remove(at);
            // Without its first or its last line, a chain is a shorter valid chain.
            if at == 0 || at + 1 == lines.len() { "nothing" } else { "a line removed" }
        }
        1 => {
            changed.insert(at, lines[u.below(lines.len())].clone());
            "a line put in"
        }
        2 => {
            changed.swap(at, (at + 1) % lines.len());
            "two lines exchanged"
        }
        _ => {
            let mut bytes = lines.concat().into_bytes();
            let byte = u.below(bytes.len());
            let by = 1 + u.below(255).to_le_bytes()[0] % 255;
            bytes[byte] ^= by;
            let found = verify(&bytes);
            return ensure(found.is_err(), || {
                format!("byte {byte} was changed by {by:#x}, and nobody notices: {}", String::from_utf8_lossy(&bytes))
            });
        }
    };
    let found = verify(changed.concat().as_bytes());
    ensure(found.is_err() == (what != "nothing"), || format!("{what} at {at}: {found:?}\n{}", changed.concat()))
}

/// Lines from an attacker who can compute hashes.
fn hostile_chain(u: &mut Unstructured<'_>) -> Result<(), String> {
    let (mut head, mut verifier, mut last) = (Head::default(), Verifier::default(), None::<Head>);
    for _ in 0..u.below(6) {
        if u.flag() {
            head.seq = u.number();
        }
        if u.rarely(4) {
            head.hash = u.text(3);
        }
        let text = line(&mut head, &json!(u.text(1)))?;
        let text = if u.rarely(3) { damaged(text.into_bytes(), u) } else { text.into_bytes() };
        let text = String::from_utf8_lossy(&text).into_owned();
        if verifier.read(text.trim_end_matches('\n')).is_ok() {
            let read = verifier.head().cloned().ok_or("a line without a number")?;
            let value: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let follows = last.is_none_or(|last| {
                last.seq.checked_add(1) == Some(read.seq) && value["prev"].as_str() == Some(last.hash.as_str())
            });
            ensure(follows, || format!("{text} does not follow the line before it"))?;
            last = Some(read);
        }
    }
    Ok(())
}

/// An entry of the log, most often a decision about a tenant.
fn decision(u: &mut Unstructured<'_>) -> Value {
    let tenant = ["a", "b", "../c"][u.below(3)];
    let level = |u: &mut Unstructured<'_>| *u.pick(&Level::ALL);
    match u.below(5) {
        0 => json!({ "decision": "moved", "tenant": tenant, "from": level(u), "to": level(u), "reasons": [] }),
        1 => json!({ "decision": "ordered", "tenant": tenant, "level": level(u), "reason": u.text(1), "byUid": 7 }),
        2 => json!({ "decision": "lifted", "tenant": tenant, "reason": "r", "byUid": 7 }),
        3 => json!({ "decision": "broken", "what": u.text(1) }),
        _ => json!({ "decision": "seen", "count": 1, "event": { "event": "crashed" } }),
    }
}

/// The level of each tenant by the log alone: the higher level of its last move and its last order.
fn replayed(decisions: &[Value]) -> BTreeMap<String, Level> {
    let read = |level: &Value| level.as_str().and_then(|level| level.parse().ok()).unwrap_or(Level::Shared);
    let (mut moved, mut ordered) = (BTreeMap::new(), BTreeMap::new());
    for decision in decisions {
        let Some(tenant) = decision["tenant"].as_str().filter(|tenant| seams::is_tenant_name(tenant)) else { continue };
        match decision["decision"].as_str() {
            Some("moved") => drop(moved.insert(tenant, read(&decision["to"]))),
            Some("ordered") => drop(ordered.insert(tenant, read(&decision["level"]))),
            Some("lifted") => {
                moved.remove(tenant);
                ordered.remove(tenant);
            }
            _ => {}
        }
    }
    let mut levels: BTreeMap<String, Level> = BTreeMap::new();
    for (tenant, level) in moved.into_iter().chain(ordered) {
        let known = levels.entry(tenant.to_owned()).or_default();
        *known = level.max(*known);
    }
    levels.retain(|_, level| *level != Level::Shared);
    levels
}

fn levels(kept: &seams::Kept) -> BTreeMap<String, Level> {
    let level = |standing: &Value| standing["level"].as_str().and_then(|level| level.parse().ok()).unwrap_or_default();
    let levels = kept.standings.iter().map(|(tenant, standing)| (tenant.clone(), level(standing)));
    levels.filter(|(_, level)| *level != Level::Shared).collect()
}

fn folder(state: &Path, name: &str) -> Result<std::path::PathBuf, String> {
    use std::os::unix::fs::DirBuilderExt;
    let path = state.join(name);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

/// The target `replay`: the recorder starts on a log without a database.
pub(in crate::parsers) fn replay(u: &mut Unstructured<'_>) -> Result<(), String> {
    let state = scratch()?;
    let log = folder(state.path(), "audit")?.join("audit.jsonl");
    let (mut head, mut text, mut decisions) = (Head::default(), String::new(), Vec::new());
    let whole = !u.rarely(4);
    for _ in 0..1 + u.below(8) {
        let decision = decision(u);
        if !whole && u.rarely(4) {
            head.seq = u.number();
        }
        text += &line(&mut head, &decision)?;
        decisions.push(decision);
    }
    let mut bytes = text.into_bytes();
    if !whole {
        bytes = damaged(bytes, u);
    }
    fs::write(&log, &bytes).map_err(|error| error.to_string())?;
    let kept = seams::keep_records(state.path(), &[])?;
    if whole {
        same(&format!("the levels by {decisions:?}"), &levels(&kept), &replayed(&decisions))?;
    } else {
        ensure(verify(&bytes).is_ok() || !kept.broken.is_empty(), || {
            format!("damage is not reported: {}", String::from_utf8_lossy(&bytes))
        })?;
    }
    settled(state.path(), &kept)
}

/// Checks that the next start reads the same state and has nothing to report.
fn settled(state: &Path, before: &seams::Kept) -> Result<(), String> {
    let after = seams::keep_records(state, &[])?;
    same("complaints at the next start", &after.broken, &Vec::new())?;
    same("standings at the next start", &after.standings, &before.standings)?;
    same("the last line at the next start", &after.last_line, &before.last_line)
}

/// The target `records`: the recorder starts on a database that is damaged.
pub(in crate::parsers) fn records(u: &mut Unstructured<'_>) -> Result<(), String> {
    let state = scratch()?;
    let mut standing = Standing::new(Time(1_700_000_000_000));
    decide(
        &mut standing,
        &[Seen::certain(Signal::HardKill)],
        Circumstances::default(),
        &Rules::default(),
        Time(1_700_000_000_001),
    );
    seams::keep_records(state.path(), &[("a", standing.clone()), ("b", standing.clone()), ("-", standing.clone())])?;
    let written = seams::keep_records(state.path(), &[])?;
    let expected = serde_json::to_value(&standing).unwrap_or_default();
    let all = ["a", "b"].map(|name| (name.to_owned(), expected.clone()));
    same("what was written", &written.standings, &BTreeMap::from(all))?;
    if u.rarely(4) {
        return odd_row(state.path(), &written, u);
    }
    let database = state.path().join("standings.redb");
    let mut bytes = fs::read(&database).map_err(|error| error.to_string())?;
    // Most of the file is empty. Damage matters only in the parts that are not.
    let used: Vec<usize> =
        (0..bytes.len()).step_by(64).filter(|at| bytes[*at..].iter().take(64).any(|byte| *byte != 0)).collect();
    for _ in 0..1 + u.below(4) {
        let at = u.pick(&used) + u.below(64);
        match u.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(u.below(64)).for_each(|byte| *byte = 0),
            2 => bytes.iter_mut().skip(at).zip(u.take(8)).for_each(|(byte, new)| *byte = *new),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << u.below(8)),
        }
    }
    fs::write(&database, &bytes).map_err(|error| error.to_string())?;
    let Ok(kept) = seams::keep_records(state.path(), &[]) else { return Ok(()) };
    for (name, standing) in &kept.standings {
        ensure(["a", "b"].contains(&name.as_str()), || format!("a tenant {name:?} that never was"))?;
        ensure(*standing == expected, || format!("{name} is read as {standing}, and was written as {expected}"))?;
    }
    ensure(kept.standings.len() == 2 || !kept.broken.is_empty(), || format!("lost and not reported: {kept:?}"))?;
    settled(state.path(), &kept)
}

/// A row that is no standing, or no tenant's, costs no other row, is reported, and is kept apart.
fn odd_row(state: &Path, before: &seams::Kept, u: &mut Unstructured<'_>) -> Result<(), String> {
    let name = if u.flag() { "c".to_owned() } else { u.text(3) };
    let value = if u.flag() { u.take(40).to_vec() } else { json_value(u, 2).into_bytes() };
    if before.standings.contains_key(&name) {
        return Ok(());
    }
    seams::put_row(state, &name, &value)?;
    let kept = seams::keep_records(state, &[])?;
    let mut others = kept.standings.clone();
    let is_read = others.remove(&name).is_some();
    same("the other rows", &others, &before.standings)?;
    ensure(is_read != kept.broken.iter().any(|said| said.contains(&format!("{name:?}"))), || {
        format!("{name:?} with {value:?} is read ({is_read}), and the daemon reports {:?}", kept.broken)
    })?;
    settled(state, &kept)
}

/// The target `policies`: reads a folder of policies.
pub(in crate::parsers) fn policies(u: &mut Unstructured<'_>) -> Result<(), String> {
    let state = scratch()?;
    let tenants = folder(state.path(), "tenants")?;
    let mut files = BTreeMap::new();
    for _ in 0..1 + u.below(3) {
        let name = ["a.json", "b.json", "-x.json", "c.txt", ".new", "a.broken"][u.below(6)];
        let keys = ["allow_eval", "allowEval", "limits", "quota", "owner", "trust", "secrets", "set_by", "x"];
        let entry = |u: &mut Unstructured<'_>| format!("\"{}\": {}", u.pick(&keys), json_value(u, 2));
        let entries: Vec<_> = (0..u.below(4)).map(|_| entry(u)).collect();
        let bytes = if u.rarely(4) { u.take(60).to_vec() } else { format!("{{{}}}", entries.join(",")).into_bytes() };
        fs::write(tenants.join(name), &bytes).map_err(|error| error.to_string())?;
        files.insert(name, bytes);
    }
    let read = seams::policies(state.path(), 256)?;
    for (name, bytes) in &files {
        let Some(tenant) = name.strip_suffix(".json") else { continue };
        let is_there = tenants.join(name).exists();
        ensure(is_there == read.contains_key(tenant), || {
            format!("{name} is {is_there} and was read as {:?}", read.get(tenant))
        })?;
        let is_object = serde_json::from_slice::<Value>(bytes).is_ok_and(|value| value.is_object());
        ensure(is_object || !is_there, || format!("{} is a policy", String::from_utf8_lossy(bytes)))?;
    }
    ensure(read.keys().all(|name| files.contains_key(format!("{name}.json").as_str())), || format!("{read:?}"))?;
    same("the next start", &seams::policies(state.path(), 256)?, &read)
}
