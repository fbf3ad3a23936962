//! What a tenant may do: its policy, set by an operator and kept in the state folder.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enisle_api::bounds::{MAX_NAME_BYTES, MAX_POLICY_NAME_BYTES, MAX_SECRETS};
use enisle_cordon::Trust;
use enisle_wire::limits::{Limits, OutOfRange};
use serde::{Deserialize, Serialize, Serializer};

use crate::files::{Folder, How, quarantine_name};

/// A tenant's name: text that an API path, a log line and a file name can carry without escaping.
/// Copies share one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TenantName(Arc<str>);

impl Serialize for TenantName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tenant's name has 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ - and begins with a letter or digit"
)]
pub(crate) struct BadName;

impl FromStr for TenantName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let ordinary = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if ordinary && begins_well && name.len() <= MAX_NAME_BYTES { Ok(Self(name.into())) } else { Err(BadName) }
    }
}

impl std::fmt::Display for TenantName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TenantName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The tenants that a rule applies to: one, or all whose names begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TenantPattern {
    beginning: String,
    /// Further characters may follow the beginning.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a tenant's name nor the beginning of one followed by *; {BadName}")]
pub(crate) struct BadPattern(String);

impl FromStr for TenantPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let (beginning, open) = text.strip_suffix('*').map_or((text, false), |beginning| (beginning, true));
        let named = beginning.parse::<TenantName>().is_ok() || (open && beginning.is_empty());
        if named { Ok(Self { beginning: beginning.to_owned(), open }) } else { Err(BadPattern(text.to_owned())) }
    }
}

impl TryFrom<String> for TenantPattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        text.parse()
    }
}

impl From<TenantPattern> for String {
    fn from(TenantPattern { beginning, open }: TenantPattern) -> Self {
        beginning + if open { "*" } else { "" }
    }
}

impl TenantPattern {
    pub(crate) fn covers(&self, tenant: &str) -> bool {
        if self.open { tenant.starts_with(&self.beginning) } else { tenant == self.beginning }
    }

    /// How specific the pattern is. A longer pattern is more specific than a shorter one, and a
    /// full name is the most specific.
    pub(crate) fn exactness(&self) -> (bool, usize) {
        (!self.open, self.beginning.len())
    }
}

/// A tenant's policy. Its keys are `snake_case` in the configuration file and `camelCase` in the
/// API; both are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    pub(crate) limits: Limits,
    pub(crate) quota: Quota,
    /// The tenant's owner. Tenants that hold secrets share a process only with tenants of the same
    /// owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// How well its code is known: `trusted`, `standard`, `untrusted`. Only tenants of equal trust
    /// share a process.
    pub(crate) trust: Trust,
    /// The entries of `env` that are secrets. A sealed tenant does not get them.
    pub(crate) secrets: Vec<String>,
    /// Whether `eval` and `new Function` work.
    #[serde(alias = "allowEval")]
    pub(crate) allow_eval: bool,
}

/// How much a tenant may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Quota {
    /// Runs queued or running.
    #[serde(alias = "inFlight")]
    pub(crate) in_flight: u32,
    /// Runs per second, over time.
    #[serde(alias = "perSecond")]
    pub(crate) per_second: u32,
    /// Runs that may start at once after a pause.
    pub(crate) burst: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { in_flight: 64, per_second: 1000, burst: 2000 }
    }
}

/// The ranges of the numbers that are not limits of a run, in the API and in the configuration
/// (`ranges`).
pub(crate) const IN_FLIGHT: (u32, u32) = (1, 10_000);
pub(crate) const PER_SECOND: (u32, u32) = (1, 1_000_000);
/// A policy is sent, stored and compared as a whole, so the number and length of its names are
/// bounded too.
pub(crate) const SECRETS: (u32, u32) = (0, MAX_SECRETS);
const NAME_BYTES: (u32, u32) = (0, MAX_POLICY_NAME_BYTES);

/// What a secret costs beside its name.
const SECRET_BYTES: usize = 64;

impl Policy {
    /// The bytes of the policy's names, which the uid that set the policy is charged for.
    pub(crate) fn bytes(&self) -> u64 {
        let secrets = self.secrets.iter().map(|name| name.len() + SECRET_BYTES).sum::<usize>();
        (secrets + self.owner.as_ref().map_or(0, String::len)) as u64
    }

    /// Checks that every value is one that the daemon can enforce.
    pub(crate) fn check(&self, max_memory_mb: u32) -> Result<(), OutOfRange> {
        let (limits, quota) = (&self.limits, &self.quota);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let longest = self.secrets.iter().map(String::len).max().unwrap_or_default();
        limits.check(max_memory_mb)?;
        for (name, value, (least, most)) in [
            ("inFlight", quota.in_flight, IN_FLIGHT),
            ("perSecond", quota.per_second, PER_SECOND),
            ("burst", quota.burst, PER_SECOND),
            ("the number of secrets", count(self.secrets.len()), SECRETS),
            ("the number of bytes of a secret's name", count(longest), NAME_BYTES),
            ("the number of bytes of owner", count(self.owner.as_ref().map_or(0, String::len)), NAME_BYTES),
        ] {
            if value < least || value > most {
                return Err(OutOfRange { name, value, least, most });
            }
        }
        Ok(())
    }
}

/// The folder of policies, in the state folder.
pub(crate) const FOLDER: &str = "tenants";

/// The policies that operators have set, one file each.
#[derive(Debug)]
pub(crate) struct Store {
    /// One writer at a time: the temporary file, which is written and then renamed, has a fixed
    /// name.
    folder: Mutex<Folder>,
}

/// A policy as stored, and the uid that set it, which is charged for the policy's names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeptPolicy {
    pub(crate) policy: Policy,
    /// `None` in a file that an operator wrote by hand.
    pub(crate) set_by: Option<u32>,
}

/// The key of that uid in the file.
const SET_BY: &str = "set_by";

/// The temporary file.
const NEW: &str = ".new";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0} cannot be used for the daemon's state: {1}")]
    Folder(PathBuf, io::Error),
    #[error("the policy could not be written to {0}: {1}")]
    Write(PathBuf, io::Error),
}

impl Store {
    /// Reads every policy in the state folder. A file that is not a valid policy is quarantined,
    /// and logged.
    pub(crate) fn open(
        state: &Folder,
        max_memory_mb: u32,
    ) -> Result<(Self, BTreeMap<TenantName, KeptPolicy>), StoreError> {
        let failed = |error| StoreError::Folder(state.path_of(FOLDER), error);
        let folder = state.make_below(FOLDER).map_err(failed)?;
        let mut policies = BTreeMap::new();
        for file in folder.names().map_err(failed)? {
            let Some(name) = file.strip_suffix(".json") else { continue };
            match read_policy(&folder, &file, name, max_memory_mb) {
                Ok((name, policy)) => drop(policies.insert(name, policy)),
                Err(why) => {
                    let path = folder.path_of(&file);
                    tracing::error!(file = %path.display(), %why, "a policy cannot be read; it is quarantined and the tenant has the default");
                    quarantine(&folder, &file, &format!("{name}.broken")).map_err(failed)?;
                }
            }
        }
        Ok((Self { folder: Mutex::new(folder) }, policies))
    }

    /// Writes one policy, whole or not at all. No other policy is written until the returned guard
    /// is dropped.
    pub(crate) fn put(
        &self,
        name: &TenantName,
        policy: &Policy,
        set_by: u32,
    ) -> Result<MutexGuard<'_, Folder>, StoreError> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = format!("{name}.json");
        let write = || {
            // A leftover of a daemon that was killed. Something that cannot be removed, such as a
            // folder, is not the daemon's.
            if folder.has(NEW)? && folder.remove(NEW).is_err() {
                quarantine(&folder, NEW, &format!("{NEW}.broken"))?;
            }
            let mut file = folder.open(NEW, How::New)?;
            let mut text = serde_json::to_value(policy)?;
            if let Some(keys) = text.as_object_mut() {
                keys.insert(SET_BY.to_owned(), set_by.into());
            }
            file.write_all(&serde_json::to_vec_pretty(&text)?)?;
            file.sync_all()?;
            folder.rename(NEW, &kept)
        };
        write().map_err(|error| StoreError::Write(folder.path_of(&kept), error))?;
        Ok(folder)
    }
}

/// Renames a damaged file to `name` or, if that is taken, to a free name that begins with it.
fn quarantine(folder: &Folder, file: &str, name: &str) -> io::Result<()> {
    let free = if folder.has(name)? { quarantine_name(folder, name)? } else { name.to_owned() };
    folder.rename(file, &free)
}

fn read_policy(
    folder: &Folder,
    file: &str,
    name: &str,
    max_memory_mb: u32,
) -> Result<(TenantName, KeptPolicy), String> {
    let name = name.parse().map_err(|error: BadName| error.to_string())?;
    let text = folder.read(file).map_err(|error| error.to_string())?;
    let mut text: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let set_by = text.as_object_mut().and_then(|keys| keys.remove(SET_BY));
    let set_by = serde_json::from_value(set_by.unwrap_or_default()).map_err(|error| format!("{SET_BY}: {error}"))?;
    let mut policy: Policy = serde_json::from_value(text).map_err(|error| error.to_string())?;
    // The operator may have lowered `workers.max_memory_mb` since; the rest of the policy still
    // applies.
    policy.limits.memory_mb = policy.limits.memory_mb.min(max_memory_mb);
    policy.check(max_memory_mb).map_err(|error| error.to_string())?;
    Ok((name, KeptPolicy { policy, set_by }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use enisle_wire::limits::RequestedLimits;

    use super::*;

    fn open(state: &std::path::Path) -> (Store, BTreeMap<TenantName, KeptPolicy>) {
        Store::open(&Folder::make(state).unwrap(), 256).unwrap()
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "-a", "a\0", "ä", &"a".repeat(65)] {
            assert_eq!(bad.parse::<TenantName>(), Err(BadName), "{bad:?}");
        }
        assert!("acme-1.prod_x".parse::<TenantName>().is_ok());
    }

    #[test]
    fn the_lower_of_two_limits_wins() {
        let policy = Limits { cpu_ms: 100, wall_ms: 500, ..Limits::default() };
        let requested = RequestedLimits { cpu_ms: Some(50), wall_ms: Some(900), ..RequestedLimits::default() };
        let limits = requested.under(&policy);
        assert_eq!((limits.cpu_ms, limits.wall_ms, limits.timers), (50, 500, policy.timers));
    }

    #[test]
    fn the_names_in_a_policy_are_bounded() {
        let refusal = |policy: Policy| policy.check(256).map_err(|error| error.to_string());
        let secrets = |count, bytes| Policy { secrets: vec!["s".repeat(bytes); count], ..Policy::default() };
        let owner = |bytes| Policy { owner: Some("o".repeat(bytes)), ..Policy::default() };
        for largest in [secrets(100, 128), owner(128)] {
            assert_eq!(refusal(largest), Ok(()));
        }
        for (policy, word) in [(secrets(101, 1), "secrets"), (secrets(1, 129), "secret's name"), (owner(129), "owner")]
        {
            assert!(refusal(policy).unwrap_err().contains(word));
        }
    }

    #[test]
    fn a_policy_survives_a_restart_and_a_broken_one_is_quarantined() {
        let dir = tempfile::tempdir().unwrap();
        let (store, none) = open(dir.path());
        assert!(none.is_empty());
        let name: TenantName = "a".parse().unwrap();
        let policy = Policy { allow_eval: true, ..Policy::default() };
        drop(store.put(&name, &policy, 7).unwrap());
        fs::write(dir.path().join("tenants/b.json"), "{\"limits\": 3}").unwrap();
        // A policy that an operator wrote by hand.
        fs::write(dir.path().join("tenants/c.json"), "{\"allow_eval\": true}").unwrap();
        let (_, read) = open(dir.path());
        let by_hand = KeptPolicy { policy: policy.clone(), set_by: None };
        let kept = KeptPolicy { policy, set_by: Some(7) };
        assert_eq!(read, BTreeMap::from([(name, kept), ("c".parse().unwrap(), by_hand)]));
        assert!(dir.path().join("tenants/b.broken").exists());
    }

    #[test]
    fn a_planted_link_is_neither_written_through_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        let (victim, tenants) = (dir.path().join("victim"), dir.path().join("tenants"));
        fs::write(&victim, r#"{"allow_eval": true}"#).unwrap();
        std::os::unix::fs::symlink(&victim, tenants.join(".new")).unwrap();
        std::os::unix::fs::symlink(&victim, tenants.join("evil.json")).unwrap();
        drop(store.put(&"a".parse().unwrap(), &Policy::default(), 7).unwrap());
        assert_eq!(fs::read_to_string(&victim).unwrap(), r#"{"allow_eval": true}"#);
        let (_, read) = open(dir.path());
        assert_eq!(read.into_keys().collect::<Vec<_>>(), ["a".parse().unwrap()]);
        // If the folder was replaced meanwhile, policies still go to the folder that was opened.
        fs::rename(&tenants, dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink(dir.path(), &tenants).unwrap();
        drop(store.put(&"b".parse().unwrap(), &Policy::default(), 7).unwrap());
        assert!(dir.path().join("away/b.json").exists() && !dir.path().join("b.json").exists());
        let tenants = dir.path().join("away");
        // A leftover of a daemon that was killed does not prevent writing.
        fs::write(tenants.join(".new"), "half").unwrap();
        drop(store.put(&"a".parse().unwrap(), &Policy::default(), 7).unwrap());
    }
}
