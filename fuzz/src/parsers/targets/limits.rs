//! Limits of a run, in policies and in requests.
//!
//! Attacked: the reader and the arithmetic of `enisle_wire::limits`, by objects with every limit in
//! both spellings, and with names and numbers that are repeated, unknown or out of range. Oracle: a
//! map from names to numbers. Both must accept the same objects, and report the same limit as the
//! first out of range. If policy and request both give a limit, the lower number applies.

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use enisle_wire::limits::{Limit, Limits, RequestedLimits, Shown};
use enisle_wire::tenant::ScriptError;
use enisle_wire::{MAX_ERROR_BYTES, MAX_ERROR_NAME_BYTES};

use crate::parsers::draw::{Draw, ensure, same};

/// The value of each limit; `None` if a name is unknown or appears twice.
type Read = Option<BTreeMap<Limit, u32>>;

/// An object of limits in JSON, and its values for a reader of both spellings, and for a reader of
/// the API's spelling alone.
fn object(u: &mut Unstructured<'_>) -> (String, Read, Read) {
    let (mut entries, mut both, mut camel) = (Vec::new(), Some(BTreeMap::new()), Some(BTreeMap::new()));
    for _ in 0..u.below(6) {
        let (limit, value) = (*u.pick(&Limit::ALL), u.small());
        let name = match u.below(8) {
            0 => "cpu",
            1..4 => limit.key(),
            _ => limit.name(),
        };
        entries.push(format!("\"{name}\":{value}"));
        for (read, known) in [(&mut both, [limit.key(), limit.name()]), (&mut camel, [limit.name(); 2])] {
            let fresh = read.as_mut().is_some_and(|read| known.contains(&name) && read.insert(limit, value).is_none());
            if !fresh {
                *read = None;
            }
        }
    }
    (format!("{{{}}}", entries.join(",")), both, camel)
}

pub(in crate::parsers) fn limits(u: &mut Unstructured<'_>) -> Result<(), String> {
    let (text, policy, _) = object(u);
    let found = serde_json::from_str::<Limits>(&text).ok();
    let known = policy
        .map(|given| Limit::ALL.map(|limit| (limit, given.get(&limit).copied().unwrap_or_else(|| limit.default()))));
    same(&text, &found.map(|found| Limit::ALL.map(|limit| (limit, found.get(limit)))), &known)?;
    let (Some(policy), Some(known)) = (found, known) else { return Ok(()) };
    let ceiling = u.small();
    let fits = |(limit, value): &(Limit, u32)| {
        let (least, most) = limit.range();
        (least..=if *limit == Limit::MemoryMb { ceiling } else { most }).contains(value)
    };
    let first = known.iter().find(|known| !fits(known)).map(|(limit, value)| (limit.name(), *value));
    same(&text, &policy.check(ceiling).err().map(|error| (error.name, error.value)), &first)?;
    asked(u, &policy)?;
    let shown = serde_json::to_value(Shown::from(policy)).map_err(|error| error.to_string())?;
    for (limit, value) in known {
        same(limit.name(), &shown[limit.name()].as_u64(), &Some(value.into()))?;
        same("by key", &Limit::of_key(limit.key()), &Some(limit))?;
        let said = limit.exceeded(value);
        ensure(said.contains(limit.name()) && said.contains(&value.to_string()), || said.clone())?;
    }
    error(u)
}

/// The limits that a request asks for, under a policy.
fn asked(u: &mut Unstructured<'_>, policy: &Limits) -> Result<(), String> {
    let (text, _, asked) = object(u);
    let found = serde_json::from_str::<RequestedLimits>(&text).ok();
    let all = asked.as_ref().map(|asked| Limit::ALL.map(|limit| asked.get(&limit).copied()));
    same(&text, &found.map(|found| Limit::ALL.map(|limit| found.get(limit))), &all)?;
    let (Some(found), Some(asked)) = (found, asked) else { return Ok(()) };
    let below = asked.iter().any(|(limit, value)| *value < limit.range().0);
    same(&text, &found.check().is_err(), &below)?;
    let under = found.under(policy);
    let lower = Limit::ALL.map(|limit| asked.get(&limit).map_or(u32::MAX, |asked| *asked).min(policy.get(limit)));
    same(&text, &Limit::ALL.map(|limit| under.get(limit)), &lower)?;
    same("lower", &under.lower(policy), &under)
}

/// A script's error is cut to its bounds, and never inside a character.
fn error(u: &mut Unstructured<'_>) -> Result<(), String> {
    let long = |u: &mut Unstructured<'_>| u.text(4).repeat(u.below(3000));
    let whole = ScriptError { name: long(u), message: long(u), stack: u.flag().then(|| long(u)) };
    let cut = whole.clone().bounded();
    let fits = |cut: &str, whole: &str, most: usize| {
        whole.starts_with(cut) && cut.len() <= most && (cut.len() == whole.len() || cut.len() + 4 > most)
    };
    let stack = match (&cut.stack, &whole.stack) {
        (Some(cut), Some(whole)) => fits(cut, whole, MAX_ERROR_BYTES),
        (cut, whole) => cut.is_none() && whole.is_none(),
    };
    let rest =
        fits(&cut.name, &whole.name, MAX_ERROR_NAME_BYTES) && fits(&cut.message, &whole.message, MAX_ERROR_BYTES);
    ensure(stack && rest, || format!("{} bytes of name, {} of message", cut.name.len(), cut.message.len()))
}
