//! What counts against a tenant, and who says so.
//!
//! A signal is something that the kernel did or counted, or that the supervisor saw for itself. What a worker says of its
//! own tenant is *advisory*: all of it together stays below every threshold, for a worker may have been taken over.

use serde::{Deserialize, Serialize};

/// Who measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Source {
    /// A trap, an exit status, a clock or a counter of the kernel's.
    Kernel,
    /// The supervisor, from what went over its own channels.
    Supervisor,
    /// A person's word, or what a person has set.
    Operator,
    /// The worker's own word: advisory.
    Worker,
}

/// What it is evidence of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// No script does it by accident, or only one that breaks the engine. It alone leads to `sealed` and further.
    Evidence,
    /// It costs the neighbours: a process of its own is all that it takes.
    Nuisance,
    /// The worker's word.
    Advisory,
    /// It happened beside this tenant, not by it.
    Share,
    /// What is known of a tenant before it does anything.
    Prior,
}

/// One thing that counts. The numbers are in [`crate::rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Signal {
    /// A system call that the filter refuses.
    RefusedCall,
    /// Memory behind a closed protection key, or a key open that should not be.
    ClosedKey,
    /// An address on another tenant's island.
    ForeignAddress,
    /// A frame out of turn, too long, or for somebody else.
    Protocol,
    /// A bad address of its own, or an illegal instruction.
    Crash,
    /// V8 gave up on a check of its own.
    EngineAbort,
    /// V8 ran out of memory and took its process along.
    OutOfMemory,
    /// A run did not end when it was told to, and its process was ended.
    HardKill,
    /// A window in which its thread did nothing but compute, for few runs.
    Busy,
    /// A minute of computing with hardly a word, the shape of a Spectre attack.
    ComputeOnly,
    /// A window of page faults far beyond what its runs need.
    Paging,
    /// More resident memory on its island than its limits explain.
    Resident,
    /// Mispredicted branches beyond the usual, by the processor's counters.
    Mispredictions,
    /// Many small messages at regular times, the shape of a clock made of messages.
    RemoteTiming,
    /// An isolate that lives long and is called much.
    LongLived,
    /// More console output than anybody reads.
    LogFlood,
    /// A request for a network that its policy does not grant.
    DeniedEgress,
    /// A run over its memory.
    NearMemory,
    /// An import of something that is not there.
    DeniedImport,
    /// Code from strings, where the policy forbids it.
    DeniedCode,
    /// More timers than its limit.
    TimerFlood,
    /// A neighbour attacked or crashed beside it.
    CoTenant,
    /// A process that it was in died, and nobody knows whose doing it was.
    Unattributed,
    /// Known for less than a day.
    New,
    /// Its policy says that nobody vouches for its code.
    Untrusted,
    /// V8 is older than the operator says it has to be.
    OutdatedEngine,
}

impl Signal {
    pub const ALL: [Self; 26] = [
        Self::RefusedCall,
        Self::ClosedKey,
        Self::ForeignAddress,
        Self::Protocol,
        Self::Crash,
        Self::EngineAbort,
        Self::OutOfMemory,
        Self::HardKill,
        Self::Busy,
        Self::ComputeOnly,
        Self::Paging,
        Self::Resident,
        Self::Mispredictions,
        Self::RemoteTiming,
        Self::LongLived,
        Self::LogFlood,
        Self::DeniedEgress,
        Self::NearMemory,
        Self::DeniedImport,
        Self::DeniedCode,
        Self::TimerFlood,
        Self::CoTenant,
        Self::Unattributed,
        Self::New,
        Self::Untrusted,
        Self::OutdatedEngine,
    ];

    #[must_use]
    pub fn source(self) -> Source {
        match self {
            Self::RefusedCall
            | Self::ClosedKey
            | Self::ForeignAddress
            | Self::Crash
            | Self::EngineAbort
            | Self::OutOfMemory
            | Self::Busy
            | Self::ComputeOnly
            | Self::Paging
            | Self::Resident
            | Self::Mispredictions => Source::Kernel,
            Self::Protocol
            | Self::HardKill
            | Self::RemoteTiming
            | Self::LongLived
            | Self::LogFlood
            | Self::DeniedEgress
            | Self::CoTenant
            | Self::Unattributed
            | Self::New => Source::Supervisor,
            Self::NearMemory | Self::DeniedImport | Self::DeniedCode | Self::TimerFlood => Source::Worker,
            Self::Untrusted | Self::OutdatedEngine => Source::Operator,
        }
    }

    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::RefusedCall | Self::ClosedKey | Self::ForeignAddress | Self::Protocol | Self::Crash => Kind::Evidence,
            Self::EngineAbort
            | Self::OutOfMemory
            | Self::HardKill
            | Self::Busy
            | Self::ComputeOnly
            | Self::Paging
            | Self::Resident
            | Self::Mispredictions
            | Self::RemoteTiming
            | Self::LongLived
            | Self::LogFlood
            | Self::DeniedEgress => Kind::Nuisance,
            Self::NearMemory | Self::DeniedImport | Self::DeniedCode | Self::TimerFlood => Kind::Advisory,
            Self::CoTenant | Self::Unattributed => Kind::Share,
            Self::New | Self::Untrusted | Self::OutdatedEngine => Kind::Prior,
        }
    }

    /// It ended the process of whoever was there. In company it cannot be known for certain whose doing it was: who can write
    /// anywhere can make a neighbour's thread stumble.
    #[must_use]
    pub fn takes_worker(self) -> bool {
        self.kind() == Kind::Evidence || matches!(self, Self::EngineAbort | Self::OutOfMemory | Self::HardKill)
    }
}

/// One signal, as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub signal: Signal,
    /// Nobody else was there who could have caused it.
    pub certain: bool,
}

impl Seen {
    #[must_use]
    pub fn certain(signal: Signal) -> Self {
        Self { signal, certain: true }
    }

    /// It happened in a process with others in it.
    #[must_use]
    pub fn in_company(signal: Signal) -> Self {
        Self { signal, certain: !signal.takes_worker() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_advisory_and_nothing_else_is() {
        for signal in Signal::ALL {
            assert_eq!(signal.source() == Source::Worker, signal.kind() == Kind::Advisory, "{signal:?}");
        }
    }

    #[test]
    fn the_list_is_complete_and_in_order() {
        assert!(Signal::ALL.is_sorted());
        assert_eq!(Signal::ALL.last(), Some(&Signal::OutdatedEngine));
    }
}
