//! What one run may use: the one table of limits.
//!
//! A row here and the code that enforces it are all that a limit needs. The frames, policies,
//! requests, the configuration with its ranges, the limits of sealed tenants, the API's description
//! and the table of SPECIFICATION.md come from this table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident $limit:ident $name:literal: $unit:ident,
        default $default:expr, from $least:expr, to $most:expr, sealed $sealed:expr, over it $over:literal;
    )+) => {
        /// What one run may use. Keys are `snake_case` in files and `camelCase` in the API
        /// ([`Shown`]); both are read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits {
            $($(#[doc = $doc])+ #[serde(alias = $name)] pub $field: u32,)+
        }

        /// [`Limits`] in the form of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[cfg_attr(feature = "schema", schemars(rename = "Limits"))]
        pub struct Shown {
            $($(#[doc = $doc])+
            #[serde(rename = $name)]
            #[cfg_attr(feature = "schema", schemars(range(min = $least, max = $most)))]
            pub $field: u32,)+
        }

        /// Limits that a policy sets or that a run requests. For each limit of a run, the lower of
        /// the run's and the policy's applies.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields)]
        pub struct RequestedLimits {
            $($(#[doc = $doc])+
            #[serde(rename = $name, skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(range(min = $least)))]
            pub $field: Option<u32>,)+
        }

        /// Names one limit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit {
            $($(#[doc = $doc])+ $limit,)+
        }

        impl Limit {
            pub const ALL: [Self; [$($default),+].len()] = [$(Self::$limit),+];

            /// Its name in the API.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$limit => $name,)+ }
            }

            /// Its key in files.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self { $(Self::$limit => stringify!($field),)+ }
            }

            #[must_use]
            pub const fn unit(self) -> Unit {
                match self { $(Self::$limit => Unit::$unit,)+ }
            }

            #[must_use]
            pub const fn default(self) -> u32 {
                match self { $(Self::$limit => $default,)+ }
            }

            /// The lowest and the highest value.
            #[must_use]
            pub const fn range(self) -> (u32, u32) {
                match self { $(Self::$limit => ($least, $most),)+ }
            }

            /// The highest value for a sealed tenant. `None` if only the tenant's policy bounds it.
            #[must_use]
            pub const fn sealed(self) -> Option<u32> {
                match self { $(Self::$limit => $sealed,)+ }
            }

            /// What happens to a run that exceeds the limit, for the documentation.
            #[must_use]
            pub const fn over_it(self) -> &'static str {
                match self { $(Self::$limit => $over,)+ }
            }
        }

        impl Default for Limits {
            fn default() -> Self {
                Self::DEFAULT
            }
        }

        impl Limits {
            pub const DEFAULT: Self = Self { $($field: $default,)+ };

            #[must_use]
            pub const fn get(&self, limit: Limit) -> u32 {
                match limit { $(Limit::$limit => self.$field,)+ }
            }

            const fn get_mut(&mut self, limit: Limit) -> &mut u32 {
                match limit { $(Limit::$limit => &mut self.$field,)+ }
            }
        }

        impl RequestedLimits {
            #[cfg(test)]
            const fn get_mut(&mut self, limit: Limit) -> &mut Option<u32> {
                match limit { $(Limit::$limit => &mut self.$field,)+ }
            }

            #[must_use]
            pub const fn get(&self, limit: Limit) -> Option<u32> {
                match limit { $(Limit::$limit => self.$field,)+ }
            }
        }

        impl From<Limits> for Shown {
            fn from(Limits { $($field),+ }: Limits) -> Self {
                Self { $($field),+ }
            }
        }
    };
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Ms,
    MiB,
    Bytes,
    Count,
}

const MIB: u32 = 1 << 20;

limits! {
    /// CPU time, in milliseconds.
    cpu_ms CpuMs "cpuMs": Ms, default 1000, from 1, to 300_000, sealed Some(250), over it "`exceededCpu`";
    /// Time from the run's arrival to its end, in milliseconds.
    wall_ms WallMs "wallMs": Ms, default 10_000, from 1, to 3_600_000, sealed Some(5000), over it "`exceededWall`";
    /// MiB for the heap, and as much again for memory outside it.
    memory_mb MemoryMb "memoryMb": MiB, default 128, from 8, to 1024, sealed Some(64), over it "`exceededMemory`; a buffer: `RangeError` in the script";
    /// Bytes of the result.
    output_bytes OutputBytes "outputBytes": Bytes, default MIB, from 1, to 16 * MIB, sealed None, over it "`exceededOutput`";
    /// Bytes of the log.
    log_bytes LogBytes "logBytes": Bytes, default 256 << 10, from 0, to 8 * MIB, sealed None, over it "the rest is dropped, `truncated` is true";
    /// Lines of the log.
    log_lines LogLines "logLines": Count, default 1000, from 0, to 100_000, sealed None, over it "the rest is dropped, `truncated` is true";
    /// Timers pending at one time.
    timers Timers "timers": Count, default 1000, from 0, to 100_000, sealed Some(100), over it "`RangeError` in the script";
    /// Bytes of all modules together.
    code_bytes CodeBytes "codeBytes": Bytes, default 64 * MIB, from 1, to 64 * MIB, sealed None, over it "413";
    /// Requests that a run may make. Accepted; nothing makes requests yet.
    sub_requests SubRequests "subRequests": Count, default 50, from 0, to 1_000_000, sealed None, over it "nothing makes requests yet";
    /// Calls that a run may wait for at one time. Accepted; nothing makes calls yet.
    concurrent_calls ConcurrentCalls "concurrentCalls": Count, default 6, from 1, to 1000, sealed None, over it "nothing makes calls yet";
}

/// A value outside the range of its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, which is not between {least} and {most}")]
pub struct OutOfRange {
    pub name: &'static str,
    pub value: u32,
    pub least: u32,
    pub most: u32,
}

impl Limit {
    /// The limit with this key in files.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.key() == key)
    }

    /// The highest value.
    #[must_use]
    pub const fn most(self) -> u32 {
        self.range().1
    }

    /// The message for a run that exceeded a limit of `most`.
    #[must_use]
    pub fn exceeded(self, most: u32) -> String {
        let name = self.name();
        match self {
            Self::CpuMs => format!("the run used its {most} ms of CPU time (limits.{name})"),
            Self::WallMs => format!("the run took longer than {most} ms (limits.{name})"),
            Self::MemoryMb => format!("the run needed more than {most} MiB of memory (limits.{name})"),
            _ => format!("the run went over its {most} (limits.{name})"),
        }
    }
}

/// The limits as SPECIFICATION.md shows them.
#[cfg(any(test, feature = "schema"))]
mod documented {
    use super::{Limit, Unit};

    impl Limit {
        /// Its row in SPECIFICATION.md.
        #[must_use]
        pub fn row(self) -> String {
            let number = |value| grouped(value, self.unit());
            let (name, over, (least, most)) = (self.name(), self.over_it(), self.range());
            let sealed = self.sealed().map(number).unwrap_or_default();
            let (default, least, most) = (number(self.default()), number(least), number(most));
            format!("| `{name}` | {default} | {least} to {most} | {sealed} | {over} |")
        }
    }

    fn grouped(value: u32, unit: Unit) -> String {
        if unit == Unit::Bytes && value >= 1 << 20 {
            return format!("{} MiB", value >> 20);
        }
        if unit == Unit::Bytes && value >= 1 << 10 {
            return format!("{} KiB", value >> 10);
        }
        let mut digits = value.to_string();
        for at in (1..digits.len()).rev().filter(|at| (digits.len() - at).is_multiple_of(3)).collect::<Vec<_>>() {
            digits.insert(at, ',');
        }
        digits
    }
}

impl Limits {
    /// The lower of both, for each limit.
    #[must_use]
    pub fn lower(mut self, others: &Self) -> Self {
        for limit in Limit::ALL {
            let own = self.get_mut(limit);
            *own = (*own).min(others.get(limit));
        }
        self
    }

    /// Checks that every limit is in its range, with at most `max_memory_mb` of memory.
    ///
    /// # Errors
    /// The first limit that is out of its range.
    pub fn check(&self, max_memory_mb: u32) -> Result<(), OutOfRange> {
        Limit::ALL.into_iter().try_for_each(|limit| {
            let (least, most) = limit.range();
            let most = if limit == Limit::MemoryMb { max_memory_mb } else { most };
            let (name, value) = (limit.name(), self.get(limit));
            if (least..=most).contains(&value) { Ok(()) } else { Err(OutOfRange { name, value, least, most }) }
        })
    }
}

impl RequestedLimits {
    /// Checks that no limit is below its range. A limit above the policy's is not an error, because
    /// the lower of the two applies.
    ///
    /// # Errors
    /// The first limit that is below its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        Limit::ALL.into_iter().try_for_each(|limit| {
            let (name, least, most) = (limit.name(), limit.range().0, u32::MAX);
            match self.get(limit).filter(|value| *value < least) {
                Some(value) => Err(OutOfRange { name, value, least, most }),
                None => Ok(()),
            }
        })
    }

    /// The limits of a run that requests these: for each limit, the lower of the policy's and the
    /// requested one.
    #[must_use]
    pub fn under(&self, policy: &Limits) -> Limits {
        let mut limits = *policy;
        for limit in Limit::ALL {
            if let Some(requested) = self.get(limit) {
                let own = limits.get_mut(limit);
                *own = (*own).min(requested);
            }
        }
        limits
    }
}

/// The most that a sealed tenant's runs may use. For some limits this is less than the policy
/// allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, u32>", into = "BTreeMap<String, u32>")]
pub struct SealedLimits(Limits);

impl Default for SealedLimits {
    fn default() -> Self {
        let mut limits = Limits::default();
        for limit in Limit::ALL {
            *limits.get_mut(limit) = limit.sealed().unwrap_or(u32::MAX);
        }
        Self(limits)
    }
}

impl SealedLimits {
    #[must_use]
    pub fn get(&self, limit: Limit) -> u32 {
        self.0.get(limit)
    }

    /// For each limit, the lower of this one and the policy's.
    #[must_use]
    pub fn lower(&self, limits: Limits) -> Limits {
        limits.lower(&self.0)
    }
}

/// A key that is not one of a sealed tenant's limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not one of a sealed tenant's limits, which are {known}", known = known())]
pub struct UnknownLimit(String);

fn known() -> String {
    let sealed = Limit::ALL.into_iter().filter(|limit| limit.sealed().is_some());
    sealed.map(Limit::key).collect::<Vec<_>>().join(", ")
}

impl TryFrom<BTreeMap<String, u32>> for SealedLimits {
    type Error = UnknownLimit;

    fn try_from(written: BTreeMap<String, u32>) -> Result<Self, UnknownLimit> {
        let mut limits = Self::default();
        for (key, value) in written {
            let limit = Limit::of_key(&key).filter(|limit| limit.sealed().is_some());
            *limits.0.get_mut(limit.ok_or(UnknownLimit(key))?) = value;
        }
        Ok(limits)
    }
}

impl From<SealedLimits> for BTreeMap<String, u32> {
    fn from(SealedLimits(limits): SealedLimits) -> Self {
        let sealed = Limit::ALL.into_iter().filter(|limit| limit.sealed().is_some());
        sealed.map(|limit| (limit.key().to_owned(), limits.get(limit))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_its_range_and_values_outside_a_range_are_refused() {
        assert_eq!(Limits::default().check(1024), Ok(()));
        for limit in Limit::ALL {
            let (least, most) = limit.range();
            assert!((least..=most).contains(&limit.default()), "{}", limit.name());
            let with = |value| {
                let mut limits = Limits::default();
                *limits.get_mut(limit) = value;
                limits.check(1024)
            };
            assert!(with(least).is_ok() && with(most).is_ok() && with(most + 1).is_err(), "{}", limit.name());
            let Some(below) = least.checked_sub(1) else { continue };
            assert_eq!(with(below).unwrap_err().name, limit.name());
            let request: RequestedLimits = requested(limit, below);
            assert_eq!(request.check().unwrap_err().name, limit.name());
        }
    }

    #[test]
    fn the_lower_of_request_and_policy_holds() {
        for limit in Limit::ALL {
            let (policy, default) = (Limits::default(), limit.default());
            assert_eq!(requested(limit, default + 1).under(&policy), policy);
            let lower = requested(limit, default - 1).under(&policy);
            assert_eq!(lower.get(limit), default - 1);
            assert_eq!((lower.lower(&policy), policy.lower(&lower)), (lower, lower));
        }
    }

    fn requested(limit: Limit, value: u32) -> RequestedLimits {
        let mut request = RequestedLimits::default();
        *request.get_mut(limit) = Some(value);
        request
    }

    #[test]
    fn sealed_tenants_have_less_and_their_limits_are_written_by_name() {
        let sealed = SealedLimits::default();
        assert_eq!(
            sealed.lower(Limits::default()),
            Limits { cpu_ms: 250, wall_ms: 5000, memory_mb: 64, timers: 100, ..Limits::default() }
        );
        let written = BTreeMap::from(sealed);
        assert_eq!(written.len(), Limit::ALL.into_iter().filter(|limit| limit.sealed().is_some()).count());
        assert_eq!(SealedLimits::try_from(written), Ok(sealed));
        let one = SealedLimits::try_from(BTreeMap::from([("cpu_ms".to_owned(), 7)])).unwrap();
        assert_eq!(one.lower(Limits::default()), Limits { cpu_ms: 7, ..sealed.lower(Limits::default()) });
        assert!(SealedLimits::try_from(BTreeMap::from([("code_bytes".to_owned(), 7)])).is_err());
    }

    #[test]
    fn the_specification_has_this_table() {
        let specification = include_str!("../../../SPECIFICATION.md");
        let table = Limit::ALL.map(Limit::row).join("\n");
        assert!(specification.contains(&table), "SPECIFICATION.md is out of date; run cargo xtask generate");
    }
}
