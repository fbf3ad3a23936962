//! What a tenant may do: its policy, set by an operator, kept in the state folder; and a request's wishes under it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enisle_cordon::Trust;
use enisle_wire::tenant::Limits as WireLimits;
use enisle_wire::{MAX_CODE_BYTES, MAX_OUTPUT_BYTES};
use serde::{Deserialize, Serialize, Serializer};

use crate::files::{Folder, How};
use crate::record::aside;

/// A tenant's name: what a path of the API, a line of a log and a file of the state folder can carry without escaping.
/// Its copies share one text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TenantName(Arc<str>);

impl Serialize for TenantName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

const MAX_NAME_BYTES: usize = 64;

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

/// Tenants that a rule is about: one, or all whose names begin so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TenantPattern {
    beginning: String,
    /// Names may go on behind the beginning.
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

    /// How exactly it says whom it is about: the longer the better, and a name best.
    pub(crate) fn exactness(&self) -> (bool, usize) {
        (!self.open, self.beginning.len())
    }
}

/// A tenant's policy. In the configuration file keys are `snake_case`, in the API `camelCase`; both are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    pub(crate) limits: Limits,
    pub(crate) quota: Quota,
    /// Whose it is: tenants that hold secrets share a process with nobody else's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// How well its code is known: `trusted`, `standard`, `untrusted`. Only the like share a process.
    pub(crate) trust: Trust,
    /// Entries of `env` that are secrets. A sealed tenant does not get them.
    pub(crate) secrets: Vec<String>,
    /// `eval` and `new Function` work.
    #[serde(alias = "allowEval")]
    pub(crate) allow_eval: bool,
}

/// What one run may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    #[serde(alias = "cpuMs")]
    pub(crate) cpu_ms: u32,
    #[serde(alias = "wallMs")]
    pub(crate) wall_ms: u32,
    /// For the heap, and once more for array buffers.
    #[serde(alias = "memoryMb")]
    pub(crate) memory_mb: u32,
    #[serde(alias = "outputBytes")]
    pub(crate) output_bytes: u32,
    #[serde(alias = "logBytes")]
    pub(crate) log_bytes: u32,
    #[serde(alias = "logLines")]
    pub(crate) log_lines: u32,
    pub(crate) timers: u32,
    /// All modules together.
    #[serde(alias = "codeBytes")]
    pub(crate) code_bytes: u32,
    /// Accepted for the sake of Dynamic Workers' code; nothing makes requests yet.
    #[serde(alias = "subRequests")]
    pub(crate) sub_requests: u32,
}

/// What a tenant may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Quota {
    /// Runs that are queued or running.
    #[serde(alias = "inFlight")]
    pub(crate) in_flight: u32,
    /// Runs a second, over time.
    #[serde(alias = "perSecond")]
    pub(crate) per_second: u32,
    /// Runs at once after a pause.
    pub(crate) burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms: 1000,
            wall_ms: 10_000,
            memory_mb: 128,
            output_bytes: 1 << 20,
            log_bytes: 256 << 10,
            log_lines: 1000,
            timers: 1000,
            code_bytes: MOST_CODE_BYTES,
            sub_requests: 50,
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { in_flight: 64, per_second: 1000, burst: 2000 }
    }
}

/// The frames' bounds, as policies count.
const MOST_CODE_BYTES: u32 = 64 << 20;
const MOST_OUTPUT_BYTES: u32 = 16 << 20;
const _: () = assert!(MOST_CODE_BYTES as usize == MAX_CODE_BYTES && MOST_OUTPUT_BYTES as usize == MAX_OUTPUT_BYTES);

/// The least and the most of each number of a policy, in the API and in the configuration
/// (`ranges`). Five minutes of CPU time and an hour of patience are what Dynamic Workers allow at
/// most, and what a connection outlives.
pub(crate) const CPU_MS: (u32, u32) = (1, 300_000);
pub(crate) const WALL_MS: (u32, u32) = (1, 3_600_000);
/// V8 does not start in less. Heap, buffers and one largest allocation have to fit the 4 GiB of a
/// cage.
pub(crate) const MEMORY_MB: (u32, u32) = (MIN_MEMORY_MB, 1024);
pub(crate) const OUTPUT_BYTES: (u32, u32) = (1, MOST_OUTPUT_BYTES);
pub(crate) const LOG_BYTES: (u32, u32) = (0, 8 << 20);
pub(crate) const LOG_LINES: (u32, u32) = (0, 100_000);
pub(crate) const TIMERS: (u32, u32) = (0, 100_000);
pub(crate) const CODE_BYTES: (u32, u32) = (1, MOST_CODE_BYTES);
pub(crate) const SUB_REQUESTS: (u32, u32) = (0, 1_000_000);
pub(crate) const IN_FLIGHT: (u32, u32) = (1, 10_000);
pub(crate) const PER_SECOND: (u32, u32) = (1, 1_000_000);
const MIN_MEMORY_MB: u32 = 8;
/// A policy is told, kept and compared as a whole: what it names has bounds as well.
pub(crate) const SECRETS: (u32, u32) = (0, 100);
const NAME_BYTES: (u32, u32) = (0, 128);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}, which is not between {least} and {most}")]
pub(crate) struct PolicyError {
    key: &'static str,
    value: u32,
    least: u32,
    most: u32,
}

/// What a secret costs beside its name.
const SECRET_BYTES: usize = 64;

impl Policy {
    /// What it holds beside its numbers.
    pub(crate) fn bytes(&self) -> u64 {
        let secrets = self.secrets.iter().map(|name| name.len() + SECRET_BYTES).sum::<usize>();
        (secrets + self.owner.as_ref().map_or(0, String::len)) as u64
    }

    /// Whether every value is one that the daemon can hold to.
    pub(crate) fn check(&self, max_memory_mb: u32) -> Result<(), PolicyError> {
        let (limits, quota) = (&self.limits, &self.quota);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let longest = self.secrets.iter().map(String::len).max().unwrap_or_default();
        for (key, value, (least, most)) in [
            ("cpuMs", limits.cpu_ms, CPU_MS),
            ("wallMs", limits.wall_ms, WALL_MS),
            ("memoryMb", limits.memory_mb, (MEMORY_MB.0, max_memory_mb)),
            ("outputBytes", limits.output_bytes, OUTPUT_BYTES),
            ("logBytes", limits.log_bytes, LOG_BYTES),
            ("logLines", limits.log_lines, LOG_LINES),
            ("timers", limits.timers, TIMERS),
            ("codeBytes", limits.code_bytes, CODE_BYTES),
            ("subRequests", limits.sub_requests, SUB_REQUESTS),
            ("inFlight", quota.in_flight, IN_FLIGHT),
            ("perSecond", quota.per_second, PER_SECOND),
            ("burst", quota.burst, PER_SECOND),
            ("the number of secrets", count(self.secrets.len()), SECRETS),
            ("the number of bytes of a secret's name", count(longest), NAME_BYTES),
            ("the number of bytes of owner", count(self.owner.as_ref().map_or(0, String::len)), NAME_BYTES),
        ] {
            if value < least || value > most {
                return Err(PolicyError { key, value, least, most });
            }
        }
        Ok(())
    }
}

impl Limits {
    /// The lower of these and of what a run has already.
    pub(crate) fn under(&self, run: WireLimits) -> WireLimits {
        WireLimits {
            cpu_ms: run.cpu_ms.min(self.cpu_ms),
            wall_ms: run.wall_ms.min(self.wall_ms),
            memory_mb: run.memory_mb.min(self.memory_mb),
            output_bytes: run.output_bytes.min(self.output_bytes),
            log_bytes: run.log_bytes.min(self.log_bytes),
            log_lines: run.log_lines.min(self.log_lines),
            timers: run.timers.min(self.timers),
        }
    }
}

/// The limits that a request names; the lower of request and policy holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Wish {
    cpu_ms: Option<u32>,
    wall_ms: Option<u32>,
    memory_mb: Option<u32>,
    output_bytes: Option<u32>,
    log_bytes: Option<u32>,
    log_lines: Option<u32>,
    timers: Option<u32>,
    pub(crate) code_bytes: Option<u32>,
    /// See [`Limits::sub_requests`].
    sub_requests: Option<u32>,
}

impl Wish {
    /// Whether every limit is one that a run can have; one that is over the policy's is no error, the lower one holds.
    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        for (key, value, least) in
            [("cpuMs", self.cpu_ms, 1), ("wallMs", self.wall_ms, 1), ("memoryMb", self.memory_mb, MIN_MEMORY_MB)]
        {
            if let Some(value) = value.filter(|value| *value < least) {
                return Err(PolicyError { key, value, least, most: u32::MAX });
            }
        }
        Ok(())
    }

    /// A policy whose limits are these where they are lower.
    pub(crate) fn as_policy(&self, policy: &Limits) -> Limits {
        let WireLimits { cpu_ms, wall_ms, memory_mb, output_bytes, log_bytes, log_lines, timers } = self.under(policy);
        Limits { cpu_ms, wall_ms, memory_mb, output_bytes, log_bytes, log_lines, timers, ..policy.clone() }
    }

    /// The limits of one run.
    pub(crate) fn under(&self, policy: &Limits) -> WireLimits {
        let lower = |wish: Option<u32>, policy: u32| wish.map_or(policy, |wish| wish.min(policy));
        WireLimits {
            cpu_ms: lower(self.cpu_ms, policy.cpu_ms).max(1),
            wall_ms: lower(self.wall_ms, policy.wall_ms).max(1),
            memory_mb: lower(self.memory_mb, policy.memory_mb).max(MIN_MEMORY_MB.min(policy.memory_mb)),
            output_bytes: lower(self.output_bytes, policy.output_bytes),
            log_bytes: lower(self.log_bytes, policy.log_bytes),
            log_lines: lower(self.log_lines, policy.log_lines),
            timers: lower(self.timers, policy.timers),
        }
    }
}

/// Where policies are kept in the state folder.
pub(crate) const FOLDER: &str = "tenants";

/// The policies that operators have set, a file each.
#[derive(Debug)]
pub(crate) struct Store {
    /// One writer at a time: the file that is written and then renamed has one name.
    folder: Mutex<Folder>,
}

/// A policy as it is kept, and the uid that set it: what it holds is charged to that uid.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeptPolicy {
    pub(crate) policy: Policy,
    /// None in a file that an operator wrote.
    pub(crate) set_by: Option<u32>,
}

/// The key of that uid in the file.
const SET_BY: &str = "set_by";

/// The file that is written.
const NEW: &str = ".new";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0} cannot be used for the daemon's state: {1}")]
    Folder(PathBuf, io::Error),
    #[error("the policy could not be written to {0}: {1}")]
    Write(PathBuf, io::Error),
}

impl Store {
    /// Reads every policy in the state folder. A file that is no policy is moved aside and told of.
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
                    tracing::error!(file = %path.display(), %why, "a policy cannot be read; moved aside, the tenant has the default");
                    move_aside(&folder, &file, &format!("{name}.broken")).map_err(failed)?;
                }
            }
        }
        Ok((Self { folder: Mutex::new(folder) }, policies))
    }

    /// Writes one policy, whole or not at all. Another is not written before what is returned is
    /// dropped.
    pub(crate) fn put(
        &self,
        name: &TenantName,
        policy: &Policy,
        set_by: u32,
    ) -> Result<MutexGuard<'_, Folder>, StoreError> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = format!("{name}.json");
        let write = || {
            // What a daemon that was killed has left; a folder was left by somebody else.
            if folder.has(NEW)? && folder.remove(NEW).is_err() {
                move_aside(&folder, NEW, &format!("{NEW}.broken"))?;
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

/// Under that name, or, if it is taken, one that begins so.
fn move_aside(folder: &Folder, file: &str, name: &str) -> io::Result<()> {
    let free = if folder.has(name)? { aside(folder, name)? } else { name.to_owned() };
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
    // The operator may have lowered the ceiling since; that is no reason to forget the rest.
    policy.limits.memory_mb = policy.limits.memory_mb.min(max_memory_mb);
    policy.check(max_memory_mb).map_err(|error| error.to_string())?;
    Ok((name, KeptPolicy { policy, set_by }))
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let wish = Wish { cpu_ms: Some(50), wall_ms: Some(900), ..Wish::default() };
        let limits = wish.under(&policy);
        assert_eq!((limits.cpu_ms, limits.wall_ms, limits.timers), (50, 500, policy.timers));
    }

    #[test]
    fn what_a_policy_names_has_bounds() {
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
    fn a_policy_survives_a_restart_and_a_broken_one_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (store, none) = open(dir.path());
        assert!(none.is_empty());
        let name: TenantName = "a".parse().unwrap();
        let policy = Policy { allow_eval: true, ..Policy::default() };
        drop(store.put(&name, &policy, 7).unwrap());
        fs::write(dir.path().join("tenants/b.json"), "{\"limits\": 3}").unwrap();
        // One that an operator wrote.
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
        // A folder that is exchanged meanwhile is not written to.
        fs::rename(&tenants, dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink(dir.path(), &tenants).unwrap();
        drop(store.put(&"b".parse().unwrap(), &Policy::default(), 7).unwrap());
        assert!(dir.path().join("away/b.json").exists() && !dir.path().join("b.json").exists());
        let tenants = dir.path().join("away");
        // What a daemon that was killed has left is in nobody's way.
        fs::write(tenants.join(".new"), "half").unwrap();
        drop(store.put(&"a".parse().unwrap(), &Policy::default(), 7).unwrap());
    }
}
