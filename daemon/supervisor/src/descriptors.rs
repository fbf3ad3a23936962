//! Open files (`RLIMIT_NOFILE`): one pool behind all others, which knows no uids.
//!
//! It must never be the one that is empty. What every connection and every worker process may need
//! is counted before the daemon starts, and there are only as many processes as the limit has room
//! for beside all connections. Connections and processes are shared by uid, and so is this pool.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{Config, STRANGERS_CONNECTIONS};

/// A connection: its socket, and the descriptor by which its end is noticed.
const OF_CONNECTION: u64 = 2;
/// A worker process: its control channel, both ends while it starts; what it prints, the same; its
/// page for faults, its pidfd, and the one that is watched; and one to look at it.
const OF_PROCESS: u64 = 8;
/// A tenant in a process: its channel, both ends until the worker has the other one; two counters.
const OF_TENANT: u64 = 4;
/// All else: the daemon's own files (20), those that are being written, processes that are ending
/// (16 starts at one time, and what they replace).
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

/// Raises the limit as far as the kernel lets anybody; what it is then.
pub(crate) fn raise() -> Result<u64, DescriptorsError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(DescriptorsError::Limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(DescriptorsError::Limit)?;
    Ok(hard)
}

/// How many worker processes there may be: `workers.max`, or as many as the limit has room for.
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
    fn there_are_as_many_processes_as_the_limit_has_room_for() {
        let others = 256 + 2 * (100 + 8);
        for (limit, processes_expected) in [(others + 56, 1), (others + 3 * 56 - 1, 2), (1 << 20, 10)] {
            assert_eq!(processes(&with(100, 10), 12, limit).unwrap(), processes_expected, "{limit}");
        }
    }

    #[test]
    fn where_there_is_no_room_for_a_process_the_sentence_says_what_to_do() {
        let error = processes(&with(1024, 64), 12, 1024).unwrap_err().to_string();
        assert!(
            error.contains("2376") && error.contains("api.connections = 1024") && error.contains("ulimit"),
            "{error}"
        );
    }

    #[test]
    fn the_defaults_fit_where_a_system_manager_has_set_the_limit() {
        // systemd's, and the kernel's own.
        assert_eq!(processes(&Config::default(), 12, 524_288).unwrap(), 64);
        assert!(processes(&Config::default(), 12, 4096).unwrap() >= 16);
    }
}
