//! The configuration file. Every key is optional, except `uid` in `[[peers]]` and the three numbers
//! of a signal's weight (`cordon.rules.signals`). An unknown key is an error.

use std::io;
use std::path::{Path, PathBuf};

use enisle_cordon::Rules;
use enisle_hardening::{Layer, LayerSet};
use serde::{Deserialize, Serialize};

use enisle_wire::limits::SealedLimits;

use crate::files;
use crate::ranges::UIDS;
use crate::tenants::policy::{Policy, TenantPattern};

/// The keys of `enisled.toml`. The values here are the defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Layers without which the daemon does not start (names as in `enisle doctor`).
    pub(crate) required: Vec<String>,
    pub(crate) workers: Workers,
    pub(crate) cordon: Cordon,
    /// The policy of tenants that have none of their own.
    pub(crate) defaults: Policy,
    pub(crate) peers: Vec<Peer>,
    pub(crate) api: Api,
    pub(crate) audit: Audit,
}

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Audit {
    /// The largest size of the log's files together, in MiB; beyond it the oldest files are
    /// deleted.
    pub(crate) keep_mb: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { keep_mb: 256 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Workers {
    /// The worker program. If it is not given, the daemon uses the `enisle-worker` beside
    /// `enisled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<PathBuf>,
    /// The largest number of worker processes.
    pub(crate) max: usize,
    /// How many of them are started before a tenant needs one, while no tenants arrive. One more
    /// is started for each level at which tenants live alone. 0 switches standby off.
    pub(crate) standby: usize,
    /// The most memory that a policy may grant to a tenant, in MiB. The bound of a process's memory
    /// is computed from it.
    pub(crate) max_memory_mb: u32,
    /// How long a tenant may run nothing before it is moved out, in seconds.
    pub(crate) idle_secs: u64,
    /// Memory protection keys: with `auto` the daemon uses them if the machine has them, with
    /// `require` it does not start without them, with `off` it does not use them.
    pub(crate) keys: Keys,
    /// The age at which a worker process stops admitting tenants, in seconds. The process ends once
    /// its tenants are idle.
    pub(crate) max_age_secs: u64,
    /// Whether tenants may share a process on a machine without protection keys, where only their
    /// cages separate them.
    pub(crate) share_without_keys: bool,
    /// If the daemon runs as root, its workers run under this uid and the uids after it, one uid
    /// for each worker.
    pub(crate) uid_base: u32,
}

/// What to do about memory protection keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Keys {
    Auto,
    Require,
    Off,
}

/// How the daemon separates risky tenants from others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cordon {
    /// The largest number of single-tenant processes. The runs of further tenants that need one
    /// wait, and are refused if none becomes free.
    pub(crate) max_alone: usize,
    /// How long a run waits for room, in seconds. A run waits if its tenant must live alone or
    /// still has a run in an old home, or if the run's uid has no process. Other runs are refused
    /// at once.
    pub(crate) queue_secs: u64,
    /// How long a run may go on in a home that its tenant must leave, in seconds; then the run
    /// restarts in the new home. If the tenant leaves only to live further in, the run has
    /// unlimited time.
    pub(crate) drain_secs: u64,
    /// The oldest version of V8 without a known vulnerability (`15.2` is before `15.2.7`). An older
    /// version counts against every tenant that is not trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) v8_at_least: Option<V8Version>,
    /// The processor's counters of mispredicted branches: `auto` uses them if available, `off` does
    /// not.
    pub(crate) counters: Counters,
    /// The most that a run of a sealed tenant may use.
    pub(crate) sealed: SealedLimits,
    /// Thresholds, weights and times (`enisle_cordon::Rules`).
    pub(crate) rules: Rules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Counters {
    Auto,
    Off,
}

impl Cordon {
    /// Whether a version of V8 is older than `v8_at_least`.
    pub(crate) fn is_outdated(&self, v8: &str) -> bool {
        let parts = || v8.split('.').map_while(|part| part.split('-').next()?.parse().ok()).collect::<Vec<u32>>();
        self.v8_at_least.as_ref().is_some_and(|least| parts() < least.0)
    }
}

/// A version of V8: one to four numbers separated by periods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct V8Version(Vec<u32>);

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a version of V8, which is one to four numbers separated by periods, like 15.2.7")]
pub(crate) struct BadVersion(String);

impl TryFrom<String> for V8Version {
    type Error = BadVersion;

    fn try_from(text: String) -> Result<Self, BadVersion> {
        let part = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        match text.split('.').map(part).collect::<Option<Vec<u32>>>() {
            Some(parts) if parts.len() <= 4 => Ok(Self(parts)),
            _ => Err(BadVersion(text)),
        }
    }
}

impl From<V8Version> for String {
    fn from(V8Version(parts): V8Version) -> Self {
        parts.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
    }
}

/// What a uid may do. Root and the daemon's own uid may do everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    /// The tenants that this uid may act for: names, or beginnings of names followed by `*`.
    #[serde(default)]
    pub(crate) tenants: Vec<TenantPattern>,
    /// Whether this uid may operate the daemon: set policies, order cordon levels, and see the
    /// workers and events of all tenants.
    #[serde(default)]
    pub(crate) operate: bool,
    /// The most that this uid may hold of each pool that all clients share, in per cent of the
    /// pool. If it is not given, the uid may hold half of what the others leave free
    /// ([`crate::share`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share_percent: Option<u8>,
}

/// How many connections there may be from all uids that no rule names, in addition to
/// `api.connections`.
pub(crate) const STRANGERS_CONNECTIONS: u64 = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    /// The largest number of open connections; further ones are refused.
    pub(crate) connections: usize,
    /// How long a request's head and its body may each take to arrive, in seconds.
    pub(crate) read_secs: u64,
    /// The memory of all clients together for bodies, for the runs made of them, and for answers
    /// that are not yet sent, in MiB.
    pub(crate) body_mb: usize,
    /// The memory of all tenants together for registered scripts and for the names in policies, in
    /// MiB.
    pub(crate) script_mb: usize,
    /// How long a client may take to read an answer, in seconds, before it is disconnected. A
    /// client that follows events is disconnected if it reads nothing for that long.
    pub(crate) write_secs: u64,
    /// How long runs in flight may take to finish when the daemon ends, in seconds.
    pub(crate) drain_secs: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Every machine on which the daemon can run at all has these layers.
            required: [Layer::Rlimits, Layer::Capabilities, Layer::NoNewPrivileges, Layer::Seccomp]
                .map(|layer| layer.name().to_owned())
                .to_vec(),
            workers: Workers::default(),
            cordon: Cordon::default(),
            defaults: Policy::default(),
            peers: Vec::new(),
            api: Api::default(),
            audit: Audit::default(),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            program: None,
            max: 64,
            standby: 2,
            max_memory_mb: 256,
            idle_secs: 300,
            keys: Keys::Auto,
            max_age_secs: 24 * 60 * 60,
            share_without_keys: false,
            // This is above the ranges that systemd and container managers hand out (systemd's
            // UIDS-GIDS.md).
            uid_base: 1_900_000_000,
        }
    }
}

impl Default for Cordon {
    fn default() -> Self {
        Self {
            // Half of all processes: well-behaved tenants keep the other half.
            max_alone: 32,
            queue_secs: 5,
            drain_secs: 10,
            v8_at_least: None,
            counters: Counters::Auto,
            sealed: SealedLimits::default(),
            rules: Rules::default(),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { connections: 1024, body_mb: 256, script_mb: 128, read_secs: 30, write_secs: 30, drain_secs: 10 }
    }
}

/// Enough for a thousand rules of a thousand bytes.
const MOST_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{path} cannot be read: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Parse { path: PathBuf, error: toml::de::Error },
    #[error("{path}: {error}")]
    Layer { path: PathBuf, error: enisle_hardening::layers::UnknownLayer },
    #[error("{path}: {error}")]
    Policy { path: PathBuf, error: enisle_wire::limits::OutOfRange },
    #[error("{path}: cordon.rules: {error}")]
    Rules { path: PathBuf, error: enisle_cordon::rules::RulesError },
    #[error(
        "{path}: [[peers]] uid {uid} is among the uids of workers ({first} to {last}), so no client may have it; move \
         workers.uid_base"
    )]
    PeerOfWorkers { path: PathBuf, uid: u32, first: u32, last: u32 },
    #[error("{path}: {error}")]
    Range { path: PathBuf, error: crate::ranges::RangeError },
}

impl Config {
    /// Reads the file at `path`. Without a path, returns the defaults.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let read = files::read_settings(path, MOST_BYTES).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        let text = read.map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::parse(&text, path)
    }

    /// Reads the text of the file at `path`.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse { path: path.to_owned(), error })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let path = || path.to_owned();
        crate::ranges::check(self).map_err(|error| ConfigError::Range { path: path(), error })?;
        let workers = self.workers.uid_base..=self.workers.uid_base + UIDS;
        if let Some(Peer { uid, .. }) = self.peers.iter().find(|peer| workers.contains(&peer.uid)) {
            let (first, last) = workers.into_inner();
            return Err(ConfigError::PeerOfWorkers { path: path(), uid: *uid, first, last });
        }
        self.required_layers().map_err(|error| ConfigError::Layer { path: path(), error })?;
        self.defaults.check(self.workers.max_memory_mb).map_err(|error| ConfigError::Policy { path: path(), error })?;
        self.cordon.rules.check().map_err(|error| ConfigError::Rules { path: path(), error })?;
        Ok(())
    }

    pub(crate) fn required_layers(&self) -> Result<LayerSet, enisle_hardening::layers::UnknownLayer> {
        let required: LayerSet = self.required.iter().map(|name| name.parse::<Layer>()).collect::<Result<_, _>>()?;
        Ok(if self.workers.keys == Keys::Require { required.with(Layer::Keys) } else { required })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
        let error = parse("[workers]\nmaximum = 3\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("maximum") && error.contains("max_memory_mb"), "{error}");
    }

    #[test]
    fn required_keys_are_a_required_layer() {
        let config = parse("[workers]\nkeys = \"require\"\n").unwrap();
        assert!(config.required_layers().unwrap().has(Layer::Keys));
        assert!(!Config::default().required_layers().unwrap().has(Layer::Keys));
        assert!(parse("[workers]\nkeys = \"on\"\n").unwrap_err().contains("require"));
    }

    #[test]
    fn cordon_rules_are_read_and_checked() {
        let config =
            parse("[cordon]\nv8_at_least = \"15.2\"\n[cordon.rules]\nsolo = 50\n[cordon.rules.shape]\nstreak = 9\n");
        let cordon = config.unwrap().cordon;
        assert!((cordon.rules.solo - 50.0).abs() < 1e-9 && cordon.rules.shape.streak == 9);
        for (v8, outdated) in
            [("15.1.9", true), ("15.2", false), ("15.2.0.7-rusty", false), ("14.9", true), ("16.0", false)]
        {
            assert_eq!(cordon.is_outdated(v8), outdated, "{v8}");
        }
        assert!(parse("[cordon.rules]\nsolo = 95\n").unwrap_err().contains("cordon.rules: the thresholds must rise"));
        assert!(parse("[cordon.rules.signals.crush]\npoints = 1\n").unwrap_err().contains("crush"));
    }

    #[test]
    fn text_that_is_not_a_version_of_v8_is_refused() {
        for bad in ["fifteen", "v99.0", "99.99999999999.0", "", "15.", ".2", "15.2-rusty", "+1", "1.2.3.4.5"] {
            let error = parse(&format!("[cordon]\nv8_at_least = {bad:?}\n")).unwrap_err();
            assert!(error.contains("v8_at_least") && error.contains("not a version of V8"), "{bad}: {error}");
        }
        assert!(parse("[cordon]\nv8_at_least = \"15.2.7.1\"\n").is_ok());
    }

    #[test]
    fn a_rule_names_tenants_only_by_possible_names() {
        let rule = |tenant: &str| parse(&format!("[[peers]]\nuid = 5\ntenants = [{tenant:?}]\n"));
        for bad in ["ac*me", "", "**", "a b", "../x", "-a*", "*a", "a*b*", &"a".repeat(65), &("a".repeat(65) + "*")] {
            let error = rule(bad).unwrap_err();
            assert!(error.contains("tenants") && error.contains("followed by *"), "{bad}: {error}");
        }
        for good in ["*", "acme", "acme-*", &("a".repeat(64) + "*")] {
            assert!(rule(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_peer_may_not_have_a_workers_uid() {
        let rule = |uid: u32| parse(&format!("[workers]\nuid_base = 5000000\n[[peers]]\nuid = {uid}\n"));
        for workers in [5_000_000, 5_000_001, 5_060_000] {
            let error = rule(workers).unwrap_err();
            assert!(error.contains("5000000 to 5060000") && error.contains("workers.uid_base"), "{workers}: {error}");
        }
        assert!(rule(4_999_999).is_ok() && rule(5_060_001).is_ok());
    }

    #[test]
    fn an_unknown_layer_is_refused() {
        assert!(parse("required = [\"apparmor\"]").unwrap_err().contains("no layer"));
    }

    #[test]
    fn the_printed_configuration_is_read_back_unchanged() {
        let config = Config {
            peers: vec![Peer {
                uid: 7,
                tenants: vec!["a-*".parse().unwrap()],
                operate: false,
                share_percent: Some(60),
            }],
            cordon: Cordon { v8_at_least: Some(V8Version(vec![15, 2])), ..Cordon::default() },
            ..Config::default()
        };
        assert_eq!(parse(&toml::to_string(&config).unwrap()), Ok(config));
    }

    #[test]
    fn a_default_policy_over_the_ceiling_is_refused() {
        assert!(
            parse("[workers]\nmax_memory_mb = 64\n[defaults.limits]\nmemory_mb = 65\n").unwrap_err().contains("memory")
        );
    }
}
