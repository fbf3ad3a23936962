//! An operator that gives orders and sets policies. A decision that was answered with 200 holds,
//! also after a restart. A decision that was refused with 503 has not taken effect. Any other
//! decision may or may not have taken effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use enisle_api::client::encoded;
use serde_json::{Value, json};

use super::load::{Client, Habit, Heard, World};
use super::oracle::HOSTILE;

const PAUSE_MS: std::ops::Range<u64> = 50..500;

/// The values that the daemon may report for the reason of a tenant's order, or for its owner;
/// `None` if it may have no order or no owner.
type Possible = BTreeSet<Option<String>>;

/// What the daemon may report for each tenant.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    orders: BTreeMap<usize, Possible>,
    owners: BTreeMap<usize, Possible>,
    given: u64,
}

/// Whether a decision has taken effect, by the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
    Maybe,
}

/// Updates the possible values after one decision.
fn learn(possible: &mut Possible, decision: Option<String>, taken: Taken) {
    match taken {
        Taken::Yes => *possible = [decision].into(),
        Taken::No => {}
        Taken::Maybe => {
            possible.insert(decision);
        }
    }
}

/// Checks that the daemon reports one of the possible values. From then on, only that value is
/// possible.
fn settle(possible: &mut Possible, said: Option<String>) -> Result<(), String> {
    if !possible.contains(&said) {
        return Err(format!("the daemon says {said:?}, and only {possible:?} can be"));
    }
    *possible = [said].into();
    Ok(())
}

impl Orders {
    /// Gives orders and sets policies until the load is over.
    pub(crate) fn give(&mut self, world: &World, mut client: Client<'_>, random: &mut fastrand::Rng) {
        let ordered: Vec<_> =
            (0..world.tenants.len()).filter(|number| world.tenants[*number].habit == Habit::Ordered).collect();
        while world.loaded.load(Ordering::SeqCst) {
            let tenant = ordered[random.usize(..ordered.len())];
            self.decide(world, &mut client, tenant, random);
            thread::sleep(Duration::from_millis(random.u64(PAUSE_MS)));
        }
    }

    fn decide(&mut self, world: &World, client: &mut Client<'_>, number: usize, random: &mut fastrand::Rng) {
        let tenant = &world.tenants[number];
        self.given += 1;
        let word = format!("{HOSTILE} {}", self.given);
        let path = format!("/v1/tenants/{}", tenant.name);
        let initially = || Possible::from([None]);
        let orders = self.orders.entry(number).or_insert_with(initially);
        match random.u32(0..10) {
            0..2 => {
                let body = json!({ "owner": word }).to_string();
                let taken = taken(world, client.ask("PUT", &path, body.as_bytes()), &[]);
                learn(self.owners.entry(number).or_insert_with(initially), Some(word), taken);
            }
            2..6 => {
                tenant.is_expelled.store(0, Ordering::SeqCst);
                let path = format!("{path}/cordon?reason={}", encoded(&word));
                // 404: the daemon does not know the tenant, so the tenant has no order.
                let taken = taken(world, client.ask("DELETE", &path, b""), &[404]);
                learn(orders, None, taken);
                if taken == Taken::Yes {
                    tenant.may_be_expelled.store(false, Ordering::SeqCst);
                }
            }
            level => {
                let level = ["solo", "solo", "sealed", "expelled"][level as usize - 6];
                tenant.is_expelled.store(0, Ordering::SeqCst);
                if level == "expelled" {
                    tenant.may_be_expelled.store(true, Ordering::SeqCst);
                    tenant.expulsions.fetch_add(1, Ordering::SeqCst);
                }
                let body = json!({ "level": level, "reason": word }).to_string();
                let taken = taken(world, client.ask("PUT", &format!("{path}/cordon"), body.as_bytes()), &[]);
                learn(orders, Some(word), taken);
                if level == "expelled" && taken == Taken::Yes {
                    tenant.is_expelled.store(self.given, Ordering::SeqCst);
                }
            }
        }
    }

    /// Compares the daemon's description of every tenant with the possible values. `described`
    /// returns the description, or `None` if the daemon does not know the tenant.
    pub(crate) fn compare(&mut self, world: &World, described: impl Fn(&str) -> anyhow::Result<Option<Value>>) {
        for (number, possible) in &mut self.orders {
            let tenant = &world.tenants[*number];
            let said = match described(&tenant.name) {
                Ok(said) => said.unwrap_or_default(),
                Err(error) => return world.found("orders", format!("{error:#}")),
            };
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let check = |what: &str, possible: &mut Possible, value: &Value| {
                if let Err(error) = settle(possible, text(value)) {
                    world.found("orders", format!("{what} of {}: {error}", tenant.name));
                }
            };
            check("the order", possible, &said["cordon"]["order"]["reason"]);
            let owners = self.owners.entry(*number).or_insert_with(|| [None].into());
            check("the owner", owners, &said["policy"]["owner"]);
            let expelled = said["cordon"]["order"]["level"] == "expelled";
            tenant.may_be_expelled.store(expelled, Ordering::SeqCst);
            tenant.is_expelled.store(if expelled { self.given } else { 0 }, Ordering::SeqCst);
        }
    }
}

/// Reads the answer to a decision. `but` lists further statuses that mean that there was nothing to
/// decide.
fn taken(world: &World, heard: Heard, but: &[u16]) -> Taken {
    let (life, answer, disturbed) = match heard {
        Heard::Answer { life, answer, disturbed } => (life, answer, disturbed),
        Heard::Lost { .. } => return Taken::Maybe,
        Heard::NotSent => return Taken::No,
    };
    let excused = disturbed.at_all || world.lives.is_doomed(life);
    match answer.status {
        200 => Taken::Yes,
        503 if excused => Taken::No,
        // The decision is in force, but is not written yet or could not be written.
        500 if excused => Taken::Maybe,
        status if but.contains(&status) => Taken::No,
        status => {
            world.found("answer", format!("a decision: {status} {}", String::from_utf8_lossy(&answer.body)));
            Taken::Maybe
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(word: &str) -> Option<String> {
        Some(word.to_owned())
    }

    #[test]
    fn a_decision_that_was_confirmed_must_hold() {
        let mut possible = Possible::from([None]);
        learn(&mut possible, some("a"), Taken::Yes);
        assert!(settle(&mut possible.clone(), None).is_err());
        assert!(settle(&mut possible.clone(), some("b")).is_err());
        assert_eq!(settle(&mut possible, some("a")), Ok(()));
    }

    #[test]
    fn a_decision_that_was_refused_must_not_hold_and_an_unconfirmed_one_may() {
        let mut possible = Possible::from([None]);
        learn(&mut possible, some("a"), Taken::No);
        assert!(settle(&mut possible.clone(), some("a")).is_err());
        learn(&mut possible, some("b"), Taken::Maybe);
        assert_eq!(settle(&mut possible.clone(), None), Ok(()));
        assert_eq!(settle(&mut possible, some("b")), Ok(()));
        // The daemon reported "b", so nothing else is possible any more.
        assert!(settle(&mut possible, None).is_err());
    }
}
