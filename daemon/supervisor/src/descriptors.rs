//! Open files (`RLIMIT_NOFILE`): a pool that is not itself divided among uids.
//!
//! This pool must never be the first one that is exhausted. When the daemon starts, it counts what
//! every connection and every worker process needs, and allows only as many processes as the limit
//! leaves beside all connections. Connections and processes are divided among uids, and that
//! divides this pool as well.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{Config, STRANGERS_CONNECTIONS};

/// A connection: its socket, and a second descriptor that detects when the client hangs up.
const OF_CONNECTION: u64 = 2;
/// A worker process: both ends of its control channel during its start; both ends of its standard
/// error, also during its start; its page for faults; its pidfd, and the copy that is watched; and
/// one to inspect it.
const OF_PROCESS: u64 = 8;
/// A tenant in a process: both ends of its channel, until the worker has one; two counters.
const OF_TENANT: u64 = 4;
/// Everything else: the daemon's own files (20), files being written, processes that are ending (16
/// starts at one time, and the processes they replace).
const SPARE: u64 = 256;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorsError {
    #[error("the limit of open files (RLIMIT_NOFILE) cannot be read or raised: {0}")]
    Limit(nix::Error),
    #[error(
        "{least} open files are needed for api.connections = {connections} and one worker process, and the hard limit \
         is {limit}: raise it (ulimit -Hn, LimitNOFILE=), or lower api.connections"
    )]
    TooFew { least: u64, connections: usize, limit: u64 },
}

/// Raises the limit as far as the kernel allows without privileges; returns the new limit.
pub(crate) fn raise() -> Result<u64, DescriptorsError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(DescriptorsError::Limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(DescriptorsError::Limit)?;
    Ok(hard)
}

/// How many worker processes there may be: `workers.max`, or as many as the limit allows if that is
/// less.
pub(crate) fn processes(config: &Config, tenants_per_process: usize, limit: u64) -> Result<usize, DescriptorsError> {
    let connections = config.api.connections;
    let others = SPARE + OF_CONNECTION * (connections as u64 + STRANGERS_CONNECTIONS);
    let each = OF_PROCESS + OF_TENANT * tenants_per_process as u64;
    match limit.saturating_sub(others) / each {
        0 => Err(DescriptorsError::TooFew { least: others + each, connections, limit }),
        room => Ok(usize::try_from(room).unwrap_or(usize::MAX).min(config.workers.max)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(connections: usize, max: usize) -> Config {
        let mut config = Config::default();
        config.api.connections = connections;
        config.workers.max = max;
        config
    }

    #[test]
    fn there_are_as_many_processes_as_the_limit_allows() {
        let others = 256 + 2 * (100 + 8);
        for (limit, processes_expected) in [(others + 56, 1), (others + 3 * 56 - 1, 2), (1 << 20, 10)] {
            assert_eq!(processes(&with(100, 10), 12, limit).unwrap(), processes_expected, "{limit}");
        }
    }

    #[test]
    fn if_the_limit_allows_no_process_the_error_says_what_to_do() {
        let error = processes(&with(1024, 64), 12, 1024).unwrap_err().to_string();
        assert!(
            error.contains("2376") && error.contains("api.connections = 1024") && error.contains("ulimit"),
            "{error}"
        );
    }

    #[test]
    fn the_defaults_fit_the_limit_that_a_system_manager_sets() {
        // The first limit is systemd's, and the second one is the kernel's own.
        assert_eq!(processes(&Config::default(), 12, 524_288).unwrap(), 64);
        assert!(processes(&Config::default(), 12, 4096).unwrap() >= 16);
    }
}
