//! The range of every number in the configuration, in one table; only the limits of runs have their
//! ranges in `enisle_wire::limits`.
//!
//! The table is checked against the configuration as it would be written to a file. A number
//! without a range is therefore an error, so no number can be added to the configuration without a
//! range. Relations between numbers (thresholds that rise, a default under a ceiling) are checked
//! by the module that owns them.

use enisle_wire::limits::Limit;
use serde::Serialize;
use toml::Value;

use crate::tenants::policy;

const HOUR: u32 = 3600;
const YEAR: u32 = 366 * 24 * HOUR;
/// More of anything than is ever needed: page faults, messages, bytes, calls.
const MANY: u32 = 1_000_000_000;
/// The largest scores and weights; the default thresholds are between 20 and 180.
const POINTS: f64 = 1_000_000.0;
/// The least fraction that counts as more than nothing.
const LITTLE: f64 = 0.001;
/// How many uids are kept free for workers from `workers.uid_base` on (`Blueprint::ids`).
pub(crate) const UIDS: u32 = 60_000;

/// A key, and the least and the greatest value of its number. In a key, `*` stands for any name. A
/// list has the key `count` for the number of its elements; the keys of an element follow the
/// list's name, as `uid` does in `peers.uid`.
type Range = (&'static str, f64, f64);

/// A range of whole numbers.
const fn whole(key: &'static str, least: u32, most: u32) -> Range {
    (key, least as f64, most as f64)
}

/// The range of a number that is also part of a policy, with the same range in the API.
const fn of_policy(key: &'static str, (least, most): (u32, u32)) -> Range {
    whole(key, least, most)
}

/// The tables of the configuration whose keys are those of [`Limit`].
const LIMITS: [&str; 2] = ["defaults.limits.", "cordon.sealed."];

const RANGES: &[Range] = &[
    whole("required.count", 0, 100),
    whole("workers.max", 1, 10_000),
    whole("workers.standby", 0, 10_000),
    of_policy("workers.max_memory_mb", Limit::MemoryMb.range()),
    whole("workers.idle_secs", 0, YEAR),
    whole("workers.max_age_secs", 1, YEAR),
    // The uid is above those of system services, and there is room for the uids after it.
    whole("workers.uid_base", 1000, u32::MAX - 1 - UIDS),
    whole("cordon.max_alone", 0, 10_000),
    whole("cordon.queue_secs", 0, HOUR),
    whole("cordon.drain_secs", 1, HOUR),
    ("cordon.rules.watch", LITTLE, POINTS),
    ("cordon.rules.solo", LITTLE, POINTS),
    ("cordon.rules.sealed", LITTLE, POINTS),
    ("cordon.rules.expelled", LITTLE, POINTS),
    ("cordon.rules.back_below", LITTLE, POINTS),
    whole("cordon.rules.back_after_secs", 0, YEAR),
    whole("cordon.rules.suspicion_secs", 0, YEAR),
    whole("cordon.rules.unexplained_secs", 0, YEAR),
    ("cordon.rules.advisory_most", 0.0, POINTS),
    ("cordon.rules.share_most", 0.0, POINTS),
    ("cordon.rules.nuisance_most", 0.0, POINTS),
    whole("cordon.rules.new_for_secs", 0, YEAR),
    ("cordon.rules.signals.*.points", 0.0, POINTS),
    whole("cordon.rules.signals.*.half_life_secs", 1, YEAR),
    ("cordon.rules.signals.*.most", 0.0, POINTS),
    whole("cordon.rules.shape.window_ms", 100, 60_000),
    ("cordon.rules.shape.busy_share", 0.0, 1.0),
    ("cordon.rules.shape.busy_least", 0.0, 1.0),
    whole("cordon.rules.shape.busy_ms_per_run", 0, HOUR * 1000),
    whole("cordon.rules.shape.streak", 1, 1_000_000),
    whole("cordon.rules.shape.faults", 0, MANY),
    whole("cordon.rules.shape.faults_per_isolate", 0, MANY),
    ("cordon.rules.shape.minute_share", 0.0, 1.0),
    whole("cordon.rules.shape.messages", 0, MANY),
    whole("cordon.rules.shape.message_bytes", 0, MANY),
    ("cordon.rules.shape.regular", LITTLE, 1000.0),
    whole("cordon.rules.shape.log_bytes", 0, MANY),
    ("cordon.rules.shape.resident_times", LITTLE, 1000.0),
    whole("cordon.rules.shape.resident_spare_mb", 0, 1 << 20),
    ("cordon.rules.shape.mispredictions", LITTLE, 1000.0),
    whole("cordon.rules.shape.long_lived_secs", 0, YEAR),
    whole("cordon.rules.shape.long_lived_calls", 0, MANY),
    whole("cordon.rules.memory.near_percent", 0, 100),
    whole("cordon.rules.memory.pressed_percent", 0, 100),
    whole("cordon.rules.memory.outside_mb", 1, 1 << 20),
    whole("cordon.rules.memory.outside_tenant_mb", 0, 1 << 20),
    whole("cordon.rules.deaths.budget", 0, 1000),
    whole("cordon.rules.deaths.regain_secs", 1, HOUR),
    of_policy("defaults.quota.in_flight", policy::IN_FLIGHT),
    of_policy("defaults.quota.per_second", policy::PER_SECOND),
    of_policy("defaults.quota.burst", policy::PER_SECOND),
    of_policy("defaults.secrets.count", policy::SECRETS),
    whole("peers.count", 0, 1000),
    whole("peers.tenants.count", 0, 1000),
    // The highest number means "no uid" (chown(2)).
    whole("peers.uid", 0, u32::MAX - 1),
    whole("peers.share_percent", 1, 100),
    whole("audit.keep_mb", 16, 1 << 20),
    whole("api.connections", 1, 100_000),
    whole("api.read_secs", 1, HOUR),
    whole("api.write_secs", 1, HOUR),
    whole("api.drain_secs", 0, HOUR),
    whole("api.body_mb", 16, 1 << 20),
    whole("api.script_mb", 1, 1 << 20),
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum RangeError {
    #[error("{key} is {value}; it must be between {least} and {most}")]
    Outside { key: String, value: f64, least: f64, most: f64 },
    #[error("{0} is a number without a range (ranges.rs): a defect of enisled")]
    Unknown(String),
    #[error("the configuration cannot be serialized: {0}")]
    Unwritable(#[from] toml::ser::Error),
}

/// Checks that every number of a configuration is in its range.
pub(crate) fn check(config: &impl Serialize) -> Result<(), RangeError> {
    for (key, value) in numbers(config)? {
        let (least, most) = range_of(&key).ok_or_else(|| RangeError::Unknown(key.clone()))?;
        // This also refuses NaN, which is in no range.
        if !(least..=most).contains(&value) {
            return Err(RangeError::Outside { key, value, least, most });
        }
    }
    Ok(())
}

/// The range of the number with this key. The limits of runs have a table of their own.
fn range_of(key: &str) -> Option<(f64, f64)> {
    if let Some(limit) = LIMITS.iter().find_map(|table| key.strip_prefix(table)).and_then(Limit::of_key) {
        let (least, most) = limit.range();
        return Some((least.into(), most.into()));
    }
    let row = RANGES.iter().find(|(pattern, ..)| stands_for(pattern, key));
    row.map(|&(_, least, most)| (least, most))
}

fn stands_for(pattern: &str, key: &str) -> bool {
    let (mut pattern, mut key) = (pattern.split('.'), key.split('.'));
    loop {
        match (pattern.next(), key.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(found)) if expected == found => {}
            _ => return false,
        }
    }
}

/// Every number of a configuration, by its key.
fn numbers(config: &impl Serialize) -> Result<Vec<(String, f64)>, toml::ser::Error> {
    let (mut found, mut unseen) = (Vec::new(), vec![(String::new(), Value::try_from(config)?)]);
    while let Some((key, value)) = unseen.pop() {
        match value {
            Value::Integer(number) => found.push((key, number as f64)),
            Value::Float(number) => found.push((key, number)),
            Value::Table(table) => unseen.extend(table.into_iter().map(|(name, value)| {
                let below = if key.is_empty() { name } else { format!("{key}.{name}") };
                (below, value)
            })),
            Value::Array(elements) => {
                found.push((format!("{key}.count"), elements.len() as f64));
                unseen.extend(elements.into_iter().map(|element| (key.clone(), element)));
            }
            Value::String(_) | Value::Boolean(_) | Value::Datetime(_) => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The defaults, with one rule in `[[peers]]` and one signal's weight.
    fn whole_configuration() -> Config {
        let text = "[[peers]]\nuid = 1000\nshare_percent = 50\n[cordon.rules.signals.busy]\npoints = 1\nhalf_life_secs = 1\nmost = 1\n";
        toml::from_str(text).unwrap()
    }

    fn whole_keys() -> Vec<String> {
        numbers(&whole_configuration()).unwrap().into_iter().map(|(key, _)| key).collect()
    }

    /// The configuration with one number changed, read from text, as in the daemon. A change that
    /// cannot be written or read is an error, such as a list with a negative number of elements.
    fn with(key: &str, number: f64) -> Result<Config, String> {
        let mut tree = Value::try_from(whole_configuration()).unwrap();
        let mut at = &mut tree;
        let list = key.strip_suffix(".count");
        for name in list.unwrap_or(key).replace('*', "busy").split('.') {
            at = match at {
                Value::Array(elements) => elements[0].get_mut(name).unwrap(),
                table => table.get_mut(name).unwrap(),
            };
        }
        *at = match at {
            Value::Array(_) if number < 0.0 => return Err(key.to_owned()),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of elements")]
            Value::Array(elements) => {
                let element = elements.first().cloned().unwrap_or_else(|| "x".into());
                Value::Array(vec![element; number.min(100_000.0) as usize])
            }
            Value::Float(_) => Value::Float(number),
            #[expect(clippy::cast_possible_truncation, reason = "whole numbers")]
            _ => Value::Integer(number as i64),
        };
        toml::from_str(&toml::to_string(&tree).unwrap()).map_err(|error: toml::de::Error| error.to_string())
    }

    fn refusal(key: &str, number: f64) -> String {
        with(key, number)
            .and_then(|config| check(&config).map_err(|error| error.to_string()))
            .map_or_else(|error| error, |()| panic!("{key} = {number} was accepted"))
    }

    #[test]
    fn every_number_has_a_range_and_every_range_a_number() {
        let numbers = numbers(&whole_configuration()).unwrap();
        for (key, _) in &numbers {
            assert!(range_of(key).is_some(), "{key} has no range");
        }
        for (pattern, ..) in RANGES {
            assert!(numbers.iter().any(|(key, _)| stands_for(pattern, key)), "{pattern} is not a key");
        }
        for limit in Limit::ALL {
            let [defaults, sealed] =
                LIMITS.map(|table| numbers.iter().any(|(key, _)| *key == format!("{table}{}", limit.key())));
            assert!(defaults && sealed == limit.sealed().is_some(), "{}", limit.key());
        }
    }

    #[test]
    fn the_ends_of_a_range_are_accepted_and_values_beyond_are_refused_by_name() {
        let of_limits = whole_keys().into_iter().filter(|key| LIMITS.iter().any(|table| key.starts_with(table)));
        let rows = RANGES.iter().map(|&(key, least, most)| (key.to_owned(), least, most));
        for (key, least, most) in rows.chain(of_limits.map(|key| {
            let (least, most) = range_of(&key).unwrap();
            (key, least, most)
        })) {
            let key = key.as_str();
            for end in [least, most] {
                assert!(check(&with(key, end).unwrap()).is_ok(), "{key} = {end}");
            }
            let name = key.rsplit('.').next().unwrap();
            for beyond in [least - 1.0, most + 1.0, 9e18] {
                let refusal = refusal(key, beyond);
                assert!(refusal.contains(name), "{key} = {beyond}: {refusal}");
            }
        }
    }

    #[test]
    fn nan_and_infinities_are_refused() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(refusal("cordon.rules.solo", number).contains("cordon.rules.solo"));
        }
    }
}
