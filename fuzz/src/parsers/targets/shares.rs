//! The pools that clients share.
//!
//! Attacked: `share::Supply`, the type behind every pool. Uids with and without rules take, take
//! more and give back, in any order. Oracle: the sentences of SPECIFICATION, *What clients share*,
//! over a list of who holds what. A uid may hold half of what the others leave free, or the part
//! that its rule grants. Root without a rule may hold all that is left. Nothing beyond that is
//! granted, nothing within it is refused, and what is given back is free.

use std::sync::LazyLock;

use arbitrary::Unstructured;
use enisle_supervisor::seams::{self, Accepted, Shares};

use crate::parsers::draw::{Draw, same};

/// Uids that have a rule, with the percentage that the rule grants, if it names one.
const RULES: [(u32, Option<u64>); 4] = [(7, None), (8, Some(30)), (9, Some(100)), (10, Some(1))];
const STRANGER: u32 = 11;

static CONFIG: LazyLock<Accepted> = LazyLock::new(|| {
    let rule = |(uid, percent): (u32, Option<u64>)| {
        let percent = percent.map(|percent| format!("share_percent = {percent}\n")).unwrap_or_default();
        format!("[[peers]]\nuid = {uid}\n{percent}")
    };
    seams::config(&RULES.map(rule).concat()).expect("rules as the documentation has them")
});

/// The most that a uid may hold, given what the others hold.
fn most(uid: u32, whole: u64, holdings: &[(u32, u64)]) -> u64 {
    let others: u64 = holdings.iter().filter(|(other, _)| *other != uid).map(|(_, units)| units).sum();
    let left = whole - others;
    match RULES.iter().find(|(named, _)| *named == uid) {
        Some((_, Some(percent))) => left.min(whole * percent / 100),
        None if uid == 0 => left,
        _ => left.div_ceil(2),
    }
}

pub(in crate::parsers) fn shares(u: &mut Unstructured<'_>) -> Result<(), String> {
    let whole = u.below(1 << 20) as u64;
    let mut shares = Shares::new(&CONFIG, whole);
    let mut holdings: Vec<(u32, u64)> = Vec::new();
    while !u.is_empty() {
        let at = u.below(holdings.len());
        if u.rarely(3) && !holdings.is_empty() {
            let left = if u.flag() { 0 } else { u.below(1 << 20) as u64 };
            shares.give_back(at, left);
            if left == 0 {
                holdings.swap_remove(at);
            } else {
                holdings[at].1 = holdings[at].1.min(left);
            }
        } else {
            let uid = *u.pick(&[0, 7, 8, 9, 10, STRANGER]);
            let has: u64 = holdings.iter().filter(|(other, _)| *other == uid).map(|(_, units)| units).sum();
            let most = most(uid, whole, &holdings);
            // Often exactly what the uid may still take, or one more.
            let units = match u.below(4) {
                0 => most.saturating_sub(has),
                1 => most.saturating_sub(has) + 1,
                2 => u.number(),
                _ => u.below(1 << 16) as u64,
            };
            let more_of = u.flag().then_some(at).filter(|at| holdings.get(*at).is_some_and(|(other, _)| *other == uid));
            let fits = has.checked_add(units).is_some_and(|all| all <= most);
            same(
                &format!("{units} for {uid} of {whole} beside {holdings:?}"),
                &shares.take(uid, units, more_of),
                &fits,
            )?;
            match more_of {
                _ if !fits => {}
                Some(at) => holdings[at].1 += units,
                None => holdings.push((uid, units)),
            }
        }
        same("the holdings", &shares.holdings(), &holdings)?;
        let free = whole - holdings.iter().map(|(_, units)| units).sum::<u64>();
        let uid = *u.pick(&[0, 7, 8, 9, 10, STRANGER]);
        same("what is free", &shares.free(uid), &(free, most(uid, whole, &holdings)))?;
    }
    Ok(())
}
