//! How far out a tenant lives, and beside whom: pure policy over values.
//!
//! No I/O, no clock, no threads: whoever asks passes what is known, and gets an answer with its reason. This version
//! knows two levels, `shared` and `solo`; scoring by behaviour and the levels further out come later.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The most tenants that one process may hold, however many keys there are.
///
/// 15 keys, less one that V8 takes for JIT pages, less two in reserve.
pub const MAX_TENANTS_PER_PROCESS: usize = 12;

/// How far out a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A process with other tenants.
    Shared,
    /// A process of its own.
    Solo,
}

impl Level {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Solo => "solo",
        }
    }
}

/// What the machine offers for keeping tenants of one process apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Keys that tenants of one process can have.
    pub keys: usize,
    /// Cages that fit one process.
    pub cages: usize,
    /// The operator accepts tenants side by side with cages alone, without keys.
    pub share_without_keys: bool,
}

impl Capacity {
    /// Tenants that one process may hold: the fewest of keys, cages and [`MAX_TENANTS_PER_PROCESS`], and one where
    /// there is nothing to keep two apart.
    #[must_use]
    pub fn tenants_per_process(self) -> usize {
        let apart = if self.share_without_keys && self.keys == 0 { MAX_TENANTS_PER_PROCESS } else { self.keys };
        apart.min(self.cages).clamp(1, MAX_TENANTS_PER_PROCESS)
    }
}

/// A worker process, as far as placement is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process<Id> {
    pub id: Id,
    pub level: Level,
    /// Tenants that it holds now.
    pub residents: usize,
    /// Places that were ever used: a cage and a key are never handed on, so a place is spent for good.
    pub places_used: usize,
}

/// Where a tenant goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement<Id> {
    /// Into this process.
    Into(Id),
    /// Into a new process of this level.
    New(Level),
    /// Nowhere: there are as many processes as there may be.
    Full,
}

/// Places one tenant.
///
/// A `solo` tenant always gets a process that nobody was in before it. A `shared` one joins the fullest process that
/// still has an unused place, so that processes fill up and empty ones can end.
pub fn place<Id: Copy + Ord>(
    level: Level,
    processes: &[Process<Id>],
    capacity: Capacity,
    max_processes: usize,
) -> Placement<Id> {
    let fits = |process: &&Process<Id>| match level {
        Level::Shared => process.level == Level::Shared && process.places_used < capacity.tenants_per_process(),
        // A spare process that was started ahead is as good as a new one.
        Level::Solo => process.level == Level::Solo && process.places_used == 0,
    };
    match processes.iter().filter(fits).max_by_key(|process| (process.residents, std::cmp::Reverse(process.id))) {
        Some(process) => Placement::Into(process.id),
        None if processes.len() >= max_processes => Placement::Full,
        None => Placement::New(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWELVE: Capacity = Capacity { keys: 14, cages: 90, share_without_keys: false };
    const NO_KEYS: Capacity = Capacity { keys: 0, ..TWELVE };

    #[test]
    fn without_keys_a_process_holds_one_tenant() {
        assert_eq!(NO_KEYS.tenants_per_process(), 1);
    }

    #[test]
    fn without_keys_an_operator_may_choose_to_share() {
        assert_eq!(Capacity { share_without_keys: true, ..NO_KEYS }.tenants_per_process(), MAX_TENANTS_PER_PROCESS);
    }

    #[test]
    fn few_keys_are_the_bound_even_where_sharing_without_keys_is_allowed() {
        assert_eq!(Capacity { keys: 3, cages: 90, share_without_keys: true }.tenants_per_process(), 3);
    }

    #[test]
    fn many_keys_do_not_raise_the_bound_over_twelve() {
        assert_eq!(TWELVE.tenants_per_process(), 12);
    }

    #[test]
    fn a_spent_place_is_not_used_again() {
        let spent = Process { id: 1, level: Level::Shared, residents: 0, places_used: 12 };
        assert_eq!(place(Level::Shared, &[spent], TWELVE, 8), Placement::New(Level::Shared));
    }

    #[test]
    fn a_solo_tenant_never_joins_a_shared_process() {
        let empty = Process { id: 1, level: Level::Shared, residents: 0, places_used: 0 };
        assert_eq!(place(Level::Solo, &[empty], TWELVE, 8), Placement::New(Level::Solo));
    }

    #[test]
    fn the_bound_on_processes_holds() {
        let full = Process { id: 1, level: Level::Solo, residents: 1, places_used: 1 };
        assert_eq!(place(Level::Shared, &[full], TWELVE, 1), Placement::Full);
    }

    proptest! {
        /// Whoever comes in whatever order, nobody shares without the means to be kept apart, and no place is reused.
        #[test]
        fn placement_never_overfills(
            levels in proptest::collection::vec(prop_oneof![Just(Level::Shared), Just(Level::Solo)], 0..100),
            keys in 0_usize..20,
            max_processes in 1_usize..20,
        ) {
            let capacity = Capacity { keys, cages: 90, share_without_keys: false };
            let mut processes: Vec<Process<usize>> = Vec::new();
            for level in levels {
                let id = match place(level, &processes, capacity, max_processes) {
                    Placement::Into(id) => id,
                    Placement::New(level) => {
                        processes.push(Process { id: processes.len(), level, residents: 0, places_used: 0 });
                        processes.len() - 1
                    }
                    Placement::Full => {
                        prop_assert!(processes.len() >= max_processes);
                        continue;
                    }
                };
                prop_assert_eq!(processes[id].level, level);
                processes[id].residents += 1;
                processes[id].places_used += 1;
            }
            for process in processes {
                let bound = if process.level == Level::Solo { 1 } else { capacity.tenants_per_process() };
                prop_assert!(process.places_used <= bound);
            }
        }
    }
}
