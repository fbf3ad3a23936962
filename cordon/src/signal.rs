//! What counts against a tenant, and who measured it.
//!
//! Most signals are something that the kernel did or counted, something that the supervisor
//! observed itself, or a setting of the operator. A signal that only the worker reports is
//! *advisory*. All advisory signals together never bring a score to the threshold for `solo`,
//! because a worker may have been taken over.
//!
//! A signal needs one row of the table below, and the code that raises it. The row gives the
//! signal's name (in the API, in `[cordon.rules.signals]` and in the daemon's files) and its
//! default weight. A test checks SPECIFICATION.md's table against the rows.

use serde::{Deserialize, Serialize};

use crate::time::{DAY_SECS, HOUR_SECS, MINUTE_SECS};

/// Who measured a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Source {
    /// The kernel: a trap, an exit status, a clock or a counter.
    Kernel,
    /// The supervisor, from what it observes itself, such as the traffic on its channels.
    Supervisor,
    /// The operator: a policy or a setting.
    Operator,
    /// The worker itself: the signal is advisory.
    Worker,
}

/// What a signal is evidence of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// An act that no script does by accident, except a script that crashes the engine. Only
    /// evidence leads to `sealed` and beyond.
    Evidence,
    /// An act that costs the neighbours something. A process of its own is enough to stop that.
    Nuisance,
    /// A statement of the worker.
    Advisory,
    /// An event in the tenant's process that is not attributed to this tenant.
    Share,
    /// A fact about a tenant that is known before the tenant does anything.
    Prior,
}

/// How much one signal counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Points for each occurrence.
    pub points: f64,
    /// The time after which half of the points are left.
    pub half_life_secs: u64,
    /// The most that occurrences of this signal can add up to.
    pub most: f64,
}

macro_rules! signals {
    ($(
        $(#[doc = $doc:literal])+
        $signal:ident $name:literal: $source:ident, $kind:ident, takes worker $takes_worker:literal,
        points $points:literal, half-life $half_life_secs:expr, most $most:literal;
    )+) => {
        /// One thing that counts against a tenant.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum Signal {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $signal,)+
        }

        impl Signal {
            /// In the order of the table.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$signal),+];

            /// The name in the API, the configuration and the daemon's files.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$signal => $name,)+ }
            }

            #[must_use]
            pub const fn source(self) -> Source {
                match self { $(Self::$signal => Source::$source,)+ }
            }

            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$signal => Kind::$kind,)+ }
            }

            /// Whether the signal means the end of a worker, and so of the runs of all its
            /// tenants. If there were several tenants, the blame is uncertain: an attacker who can
            /// write anywhere can make a neighbour's thread fault.
            #[must_use]
            pub const fn takes_worker(self) -> bool {
                match self { $(Self::$signal => $takes_worker,)+ }
            }

            /// The weight if the configuration sets none.
            #[must_use]
            pub const fn default_weight(self) -> Weight {
                match self {
                    $(Self::$signal => Weight { points: $points, half_life_secs: $half_life_secs, most: $most },)+
                }
            }
        }
    };
}

signals! {
    /// A system call that the filter refuses.
    RefusedCall "refusedCall": Kernel, Evidence, takes worker true, points 100.0, half-life 30 * DAY_SECS, most 300.0;
    /// An access through a closed protection key, or a key that is open and should not be.
    ClosedKey "closedKey": Kernel, Evidence, takes worker true, points 100.0, half-life 30 * DAY_SECS, most 300.0;
    /// An access to an address on another tenant's island.
    ForeignAddress "foreignAddress": Kernel, Evidence, takes worker true, points 80.0, half-life 30 * DAY_SECS, most 240.0;
    /// A breach of the protocol: for example a frame out of turn, or a frame that is too long.
    Protocol "protocol": Supervisor, Evidence, takes worker true, points 100.0, half-life 30 * DAY_SECS, most 300.0;
    // Every engine has bugs, so crashes alone seal a tenant, and do not expel it.
    /// A fault at an address that belongs to no other tenant, or in the allocator.
    Crash "crash": Kernel, Evidence, takes worker true, points 60.0, half-life 7 * DAY_SECS, most 120.0;
    // V8 also aborts on arrays that are too long, which is a mere bug in a script. So this signal
    // never seals a tenant.
    /// V8 aborted on a failed check.
    EngineAbort "engineAbort": Kernel, Nuisance, takes worker true, points 60.0, half-life 7 * DAY_SECS, most 80.0;
    // Each of the next two kinds restarts the runs of all neighbours, so two within a half-life
    // lead to `solo` if both are certain.
    /// V8 ran out of memory and took its process down.
    OutOfMemory "outOfMemory": Kernel, Nuisance, takes worker true, points 40.0, half-life 6 * HOUR_SECS, most 80.0;
    /// A run did not end when it was terminated, so its process was ended.
    HardKill "hardKill": Supervisor, Nuisance, takes worker true, points 40.0, half-life DAY_SECS, most 80.0;
    // A window is half a second. Windows count from the fourth in a row on, so four seconds lead to
    // `solo`. The half-life is short: a busy hour must not count against a tenant for long.
    /// A window in which the thread did little but compute, in runs that are not short; or a minute
    /// in which it computed at half a processor.
    Busy "busy": Kernel, Nuisance, takes worker false, points 12.0, half-life 10 * MINUTE_SECS, most 70.0;
    /// A minute of computing with hardly a message, the shape of a Spectre attack.
    ComputeOnly "computeOnly": Kernel, Nuisance, takes worker false, points 10.0, half-life 2 * HOUR_SECS, most 40.0;
    /// A window with far more page faults than the tenant's runs need.
    Paging "paging": Kernel, Nuisance, takes worker false, points 12.0, half-life 10 * MINUTE_SECS, most 70.0;
    /// More resident memory on the tenant's island than the tenant's limits explain.
    Resident "resident": Kernel, Nuisance, takes worker false, points 20.0, half-life HOUR_SECS, most 60.0;
    /// Mispredicted branches above the usual rate, by the processor's counters.
    Mispredictions "mispredictions": Kernel, Nuisance, takes worker false, points 20.0, half-life 2 * HOUR_SECS, most 80.0;
    /// Many small messages at regular intervals, which can serve as a clock.
    RemoteTiming "remoteTiming": Supervisor, Nuisance, takes worker false, points 5.0, half-life HOUR_SECS, most 30.0;
    /// An isolate that lives long and is called often.
    LongLived "longLived": Supervisor, Nuisance, takes worker false, points 5.0, half-life 2 * HOUR_SECS, most 20.0;
    /// More console output than any reader could use.
    LogFlood "logFlood": Supervisor, Nuisance, takes worker false, points 4.0, half-life HOUR_SECS, most 20.0;
    // The client asks for the network in a field of the request; the script cannot.
    /// A request for a network that the tenant's policy does not grant.
    DeniedEgress "deniedEgress": Supervisor, Nuisance, takes worker false, points 8.0, half-life DAY_SECS, most 20.0;
    /// A run over its memory limit.
    NearMemory "nearMemory": Worker, Advisory, takes worker false, points 5.0, half-life 6 * HOUR_SECS, most 15.0;
    /// An import of a module that does not exist.
    DeniedImport "deniedImport": Worker, Advisory, takes worker false, points 5.0, half-life DAY_SECS, most 15.0;
    /// Code from strings, where the policy forbids it.
    DeniedCode "deniedCode": Worker, Advisory, takes worker false, points 3.0, half-life 6 * HOUR_SECS, most 15.0;
    /// More timers than the limit.
    TimerFlood "timerFlood": Worker, Advisory, takes worker false, points 4.0, half-life HOUR_SECS, most 20.0;
    // An attacker can to some degree choose its neighbours, so an attack says little about them.
    /// Another tenant in the same process attacked or crashed.
    CoTenant "coTenant": Supervisor, Share, takes worker false, points 5.0, half-life 30 * DAY_SECS, most 15.0;
    /// A process that the tenant was in died an unattributed death.
    Unattributed "unattributed": Supervisor, Share, takes worker false, points 5.0, half-life 7 * DAY_SECS, most 15.0;
    /// The tenant has been known for less than a day.
    New "new": Supervisor, Prior, takes worker false, points 10.0, half-life DAY_SECS, most 10.0;
    /// The tenant's policy says that its code is not vouched for.
    Untrusted "untrusted": Operator, Prior, takes worker false, points 10.0, half-life DAY_SECS, most 10.0;
    /// V8 is older than the version that the operator requires.
    OutdatedEngine "outdatedEngine": Operator, Prior, takes worker false, points 20.0, half-life DAY_SECS, most 20.0;
}

/// One signal, as observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub signal: Signal,
    /// No other tenant was there that could have caused the signal.
    pub certain: bool,
}

impl Seen {
    #[must_use]
    pub fn certain(signal: Signal) -> Self {
        Self { signal, certain: true }
    }

    /// A signal seen in a process with other tenants. If it ends the worker, it is not certain.
    #[must_use]
    pub fn in_company(signal: Signal) -> Self {
        Self { signal, certain: !signal.takes_worker() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_from_a_worker_are_advisory() {
        for signal in Signal::ALL {
            assert_eq!(signal.source() == Source::Worker, signal.kind() == Kind::Advisory, "{signal:?}");
        }
    }

    #[test]
    fn a_signal_is_written_and_read_by_its_name() {
        for signal in Signal::ALL {
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.name());
            assert_eq!(serde_json::from_value::<Signal>(signal.name().into()).unwrap(), signal);
        }
    }

    #[test]
    fn all_evidence_ends_a_process() {
        for signal in Signal::ALL {
            assert!(signal.takes_worker() || signal.kind() != Kind::Evidence, "{signal:?}");
        }
    }

    /// A duration in the largest unit that divides it.
    fn time(secs: u64) -> String {
        let (unit, name) = [(DAY_SECS, "d"), (HOUR_SECS, "h"), (MINUTE_SECS, "min"), (1, "s")]
            .into_iter()
            .find(|(unit, _)| secs.is_multiple_of(*unit))
            .unwrap();
        format!("{} {name}", secs / unit)
    }

    #[test]
    fn the_specification_has_this_table() {
        let specification = include_str!("../../SPECIFICATION.md");
        let (_, after) = specification.split_once("| signal | source | kind | points | half-life |").unwrap();
        let rows: Vec<_> = after.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), Signal::ALL.len());
        for (signal, row) in Signal::ALL.into_iter().zip(rows) {
            let word = |value: serde_json::Value| value.as_str().unwrap().to_owned();
            let source = word(serde_json::to_value(signal.source()).unwrap());
            let kind = word(serde_json::to_value(signal.kind()).unwrap());
            let Weight { points, half_life_secs, most } = signal.default_weight();
            let begin =
                format!("| `{}` | {source} | {kind} | {points} | {} | {most} | ", signal.name(), time(half_life_secs));
            assert!(row.starts_with(&begin), "SPECIFICATION.md has\n{row}\nwhere it should have\n{begin}...");
        }
    }
}
