//! How a run ended: the one word for it in the API, the logs, the events and the command line.

use serde::{Deserialize, Serialize};

/// How a run ended. The names are those of workerd's `outcome.capnp`, if it has an equivalent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Outcome {
    /// The entry point's value is the result.
    Ok,
    /// The script threw, did not compile, or returned a value that JSON cannot carry.
    Exception,
    /// The run used up `limits.cpuMs` of its thread's CPU time.
    ExceededCpu,
    /// `limits.wallMs` passed.
    ExceededWall,
    /// The run needed more than `limits.memoryMb` of heap or of buffers.
    ExceededMemory,
    /// The result was larger than `limits.outputBytes`.
    ExceededOutput,
    /// The client disconnected or canceled the run.
    Canceled,
    /// The worker process died, and the run was not restarted again.
    WorkerLost,
    /// A layer stopped an attack.
    Violation,
    /// A fault of enisle's own.
    InternalError,
}

impl Outcome {
    /// Every outcome, in the order of the enum.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Exception,
        Self::ExceededCpu,
        Self::ExceededWall,
        Self::ExceededMemory,
        Self::ExceededOutput,
        Self::Canceled,
        Self::WorkerLost,
        Self::Violation,
        Self::InternalError,
    ];

    /// The word that the API uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Exception => "exception",
            Self::ExceededCpu => "exceededCpu",
            Self::ExceededWall => "exceededWall",
            Self::ExceededMemory => "exceededMemory",
            Self::ExceededOutput => "exceededOutput",
            Self::Canceled => "canceled",
            Self::WorkerLost => "workerLost",
            Self::Violation => "violation",
            Self::InternalError => "internalError",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_readme_describes_every_outcome_and_no_other() {
        let readme = include_str!("../../../README.md");
        let table = readme.split("\n| outcome |").nth(1).unwrap().split("\n\n").next().unwrap();
        let firsts = table.lines().skip(1).filter_map(|row| row.split('|').nth(1));
        let described: BTreeSet<_> = firsts.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        assert_eq!(described, Outcome::ALL.map(Outcome::as_str).into_iter().collect());
    }
}
