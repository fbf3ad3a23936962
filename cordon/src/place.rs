//! Decides which process a tenant goes to.
//!
//! Keys and cages isolate the tenants of a process from each other; placement decides which tenants
//! rely on that. A tenant shares a process only with tenants of equal trust; a watched tenant only
//! with watched ones; a suspect of a death only with suspects of the same half; a tenant on
//! probation ([`crate::deaths`]) only with others on probation. Two doubtful tenants never share.
//! A tenant that holds secrets shares only with unwatched tenants of its own owner.

use crate::Level;
use crate::decide::Trust;

/// The most tenants that one process may hold, however many keys there are.
///
/// A processor has 15 keys besides key 0. V8 takes one for JIT pages, one is the fault page's, and
/// one stays in reserve. If a machine has keys, its [`Capacity::keys`] is at most this.
pub const MAX_TENANTS_PER_PROCESS: usize = 12;

/// How many cages fit a process. Each takes 1376 GiB, of 47 bits of address space. 93 were
/// measured, and the difference is a margin.
pub const CAGES_PER_PROCESS: usize = 90;

/// What the machine offers for isolating the tenants of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// How many keys the tenants of one process can have.
    pub keys: usize,
    /// How many cages fit one process.
    pub cages: usize,
    /// The operator accepts that tenants share a process with cages only, without keys.
    pub share_without_keys: bool,
}

impl Capacity {
    /// How many tenants one process may hold: the smallest of keys, cages and
    /// [`MAX_TENANTS_PER_PROCESS`], but at least one. If there are no keys and the operator accepts
    /// sharing without them, keys do not count.
    #[must_use]
    pub fn tenants_per_process(self) -> usize {
        let apart = if self.share_without_keys && self.keys == 0 { MAX_TENANTS_PER_PROCESS } else { self.keys };
        apart.min(self.cages).clamp(1, MAX_TENANTS_PER_PROCESS)
    }
}

/// How many processes there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub processes: usize,
    /// How many of those processes may be for tenants that live alone.
    pub alone: usize,
}

/// One half of the tenants that were in a process when it died an unattributed death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Case {
    /// Which death.
    pub death: u64,
    /// Which half.
    pub half: u8,
}

/// What decides which tenants a tenant may share a process with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traits {
    /// The tenant's owner, if its policy names one.
    pub owner: Option<String>,
    pub trust: Trust,
    pub holds_secrets: bool,
    /// Its score is at or over the threshold for being watched.
    pub watched: bool,
    /// It may have attacked a neighbour. Two such tenants never share a process: each could be
    /// blamed for what the other does.
    pub doubtful: bool,
    /// The half that it belongs to, while it is a suspect of an unattributed death.
    pub case: Option<Case>,
    /// Its home was made while its uid's budget of deaths was used up. It shares a process only if
    /// there was no room for a single-tenant home.
    pub on_probation: bool,
}

impl Traits {
    /// Whether the two may share a process.
    #[must_use]
    pub fn may_share_with(&self, other: &Self) -> bool {
        let same_owner = self.owner.is_some() && self.owner == other.owner;
        let secrets = self.holds_secrets || other.holds_secrets;
        self.trust == other.trust
            && self.watched == other.watched
            && self.case == other.case
            && self.on_probation == other.on_probation
            && !(self.doubtful && other.doubtful)
            && (!secrets || (same_owner && !self.watched))
    }
}

impl Traits {
    /// Whether `self` must leave a process that it shares with `other`.
    ///
    /// Every tenant must leave tenants of another trust. A suspect must leave tenants outside its
    /// half, and a tenant with secrets must leave tenants of other owners. A watched tenant must
    /// leave tenants with secrets, and all tenants if it has secrets of its own. Placement
    /// (`may_share_with`) is stricter: for example, it always keeps watched and unwatched tenants
    /// apart. If that difference alone counted here, a tenant could drive out its neighbours by
    /// becoming watched.
    #[must_use]
    pub fn must_leave(&self, other: &Self) -> bool {
        let same_owner = self.owner.is_some() && self.owner == other.owner;
        self.trust != other.trust
            || (self.case.is_some() && self.case != other.case)
            || (self.holds_secrets && !same_owner)
            || (self.watched && (self.holds_secrets || other.holds_secrets))
    }
}

/// A worker process, as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process<Id> {
    pub id: Id,
    pub level: Level,
    /// The tenants that it holds now.
    pub tenants: Vec<Traits>,
    /// How many of those tenants have a run in progress or on its way.
    pub busy: usize,
    /// How many slots were ever used: a cage and a key are never reused, so a slot is used up for
    /// good.
    pub slots_used: usize,
}

/// Where a tenant goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement<Id> {
    /// Into this process.
    Into(Id),
    /// Into a new process of this level.
    New(Level),
    /// Nowhere: the bound on processes is reached.
    Full,
    /// Nowhere: the bound on processes for tenants that live alone is reached.
    FullAlone,
    /// Nowhere: the tenant is expelled.
    Refused,
}

/// Placement counts the busy tenants of a process in groups of this many, and prefers the process
/// with fewer full groups.
const BUSY_TOGETHER: usize = 4;

/// Places one tenant.
///
/// A tenant that lives alone always gets a process that no tenant was in before. A tenant that
/// shares goes to a process that has an unused slot and whose tenants it may share with. Among the
/// least busy of these, the fullest is preferred, so that processes fill up and others become
/// empty and can end.
pub fn place<Id: Copy + Ord>(
    tenant: &Traits,
    level: Level,
    processes: &[Process<Id>],
    capacity: Capacity,
    bounds: Bounds,
) -> Placement<Id> {
    let fits = |process: &&Process<Id>| match level {
        Level::Shared => {
            process.level == Level::Shared
                && process.slots_used < capacity.tenants_per_process()
                && process.tenants.iter().all(|other| tenant.may_share_with(other))
        }
        // A process in which no slot was ever used is as good as a new one.
        Level::Solo | Level::Sealed => process.level == level && process.slots_used == 0,
        Level::Expelled => false,
    };
    let preferred = |process: &&Process<Id>| {
        (std::cmp::Reverse(process.busy / BUSY_TOGETHER), process.tenants.len(), std::cmp::Reverse(process.id))
    };
    let alone = processes.iter().filter(|process| process.level.is_alone()).count();
    match processes.iter().filter(fits).max_by_key(preferred) {
        _ if level == Level::Expelled => Placement::Refused,
        Some(process) => Placement::Into(process.id),
        None if level.is_alone() && alone >= bounds.alone => Placement::FullAlone,
        None if processes.len() >= bounds.processes => Placement::Full,
        None => Placement::New(level),
    }
}

/// Bisects the tenants that were in a process which died an unattributed death. Each half stays
/// together, apart from all other tenants; a half of one tenant lives alone (`None`). If the
/// process of a half dies an unattributed death too, that half is bisected: after a few deaths the
/// tenant responsible is alone.
#[must_use]
pub fn bisect(suspects: usize, death: u64) -> Vec<Option<Case>> {
    let first = suspects.div_ceil(2);
    (0..suspects)
        .map(|index| {
            let (half, size) = if index < first { (0, first) } else { (1, suspects - first) };
            (size > 1).then_some(Case { death, half })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWELVE: Capacity = Capacity { keys: 14, cages: CAGES_PER_PROCESS, share_without_keys: false };
    const NO_KEYS: Capacity = Capacity { keys: 0, ..TWELVE };
    const EIGHT: Bounds = Bounds { processes: 8, alone: 4 };

    fn process(id: u32, level: Level, tenants: Vec<Traits>) -> Process<u32> {
        let slots_used = tenants.len();
        Process { id, level, tenants, busy: 0, slots_used }
    }

    #[test]
    fn without_keys_a_process_holds_one_tenant_unless_an_operator_chooses_to_share() {
        assert_eq!(NO_KEYS.tenants_per_process(), 1);
        assert_eq!(Capacity { share_without_keys: true, ..NO_KEYS }.tenants_per_process(), MAX_TENANTS_PER_PROCESS);
        assert_eq!(Capacity { keys: 3, cages: 90, share_without_keys: true }.tenants_per_process(), 3);
        assert_eq!(TWELVE.tenants_per_process(), 12);
    }

    #[test]
    fn a_used_slot_is_not_used_again() {
        let used_up = Process { slots_used: 12, ..process(1, Level::Shared, Vec::new()) };
        assert_eq!(place(&Traits::default(), Level::Shared, &[used_up], TWELVE, EIGHT), Placement::New(Level::Shared));
    }

    #[test]
    fn a_tenant_that_lives_alone_never_joins_a_process_that_was_used() {
        let used = Process { slots_used: 1, ..process(2, Level::Solo, Vec::new()) };
        let processes = [process(1, Level::Shared, Vec::new()), used];
        assert_eq!(place(&Traits::default(), Level::Solo, &processes, TWELVE, EIGHT), Placement::New(Level::Solo));
        assert_eq!(place(&Traits::default(), Level::Sealed, &processes, TWELVE, EIGHT), Placement::New(Level::Sealed));
    }

    #[test]
    fn the_bounds_hold_and_a_risky_tenant_never_shares_for_lack_of_room() {
        let full = [process(1, Level::Solo, vec![Traits::default()])];
        let one = Bounds { processes: 1, alone: 1 };
        assert_eq!(place(&Traits::default(), Level::Shared, &full, TWELVE, one), Placement::Full);
        let shared = process(2, Level::Shared, vec![Traits::default()]);
        let both = [full[0].clone(), shared];
        let bounds = Bounds { processes: 9, alone: 1 };
        assert_eq!(place(&Traits::default(), Level::Sealed, &both, TWELVE, bounds), Placement::FullAlone);
        assert_eq!(place(&Traits::default(), Level::Expelled, &both, TWELVE, bounds), Placement::Refused);
    }

    #[test]
    fn secrets_stay_with_their_owner() {
        let holder =
            |owner: Option<&str>| Traits { owner: owner.map(str::to_owned), holds_secrets: true, ..Traits::default() };
        assert!(holder(Some("a")).may_share_with(&holder(Some("a"))));
        assert!(!holder(Some("a")).may_share_with(&holder(Some("b"))));
        assert!(!holder(None).may_share_with(&holder(None)), "their owners are unknown");
        assert!(!holder(Some("a")).may_share_with(&Traits::default()));
        assert!(!Traits::default().may_share_with(&holder(Some("a"))));
    }

    #[test]
    fn two_doubtful_tenants_never_share_a_process() {
        let suspect = Traits { watched: true, doubtful: true, ..Traits::default() };
        assert!(!suspect.may_share_with(&suspect));
        assert!(suspect.may_share_with(&Traits { watched: true, ..Traits::default() }));
    }

    #[test]
    fn a_tenant_on_probation_never_shares_with_tenants_that_are_not() {
        let tenant = Traits { on_probation: true, ..Traits::default() };
        let processes =
            [process(1, Level::Shared, vec![Traits::default()]), process(2, Level::Shared, vec![tenant.clone()])];
        assert_eq!(place(&tenant, Level::Shared, &processes, TWELVE, EIGHT), Placement::Into(2));
        assert_eq!(place(&Traits::default(), Level::Shared, &processes, TWELVE, EIGHT), Placement::Into(1));
        let full = Bounds { processes: 1, alone: 0 };
        assert_eq!(place(&tenant, Level::Shared, &processes[..1], TWELVE, full), Placement::Full);
    }

    #[test]
    fn one_of_two_tenants_that_may_no_longer_share_leaves() {
        let plain = Traits::default();
        let watched = Traits { watched: true, ..Traits::default() };
        let holder = Traits { owner: Some("a".into()), holds_secrets: true, ..Traits::default() };
        assert!(!plain.must_leave(&watched) && !watched.must_leave(&plain), "being watched evicts neither");
        assert!(watched.must_leave(&holder) && holder.must_leave(&watched));
        assert!(holder.must_leave(&plain) && !plain.must_leave(&holder));
        let suspect = Traits { case: Some(Case { death: 1, half: 0 }), ..Traits::default() };
        assert!(suspect.must_leave(&plain) && !plain.must_leave(&suspect) && !suspect.must_leave(&suspect));
        let sibling = Traits { owner: Some("a".into()), watched: true, ..Traits::default() };
        assert!(sibling.must_leave(&holder) && !holder.must_leave(&sibling));
    }

    #[test]
    fn the_fuller_process_is_preferred_unless_it_is_busy() {
        let three = process(1, Level::Shared, vec![Traits::default(); 3]);
        let one = process(2, Level::Shared, vec![Traits::default()]);
        let busy = Process { busy: 4, tenants: vec![Traits::default(); 5], slots_used: 5, ..three.clone() };
        let tenant = Traits::default();
        assert_eq!(place(&tenant, Level::Shared, &[one.clone(), three], TWELVE, EIGHT), Placement::Into(1));
        assert_eq!(place(&tenant, Level::Shared, &[one, busy], TWELVE, EIGHT), Placement::Into(2));
    }

    #[test]
    fn the_tenant_responsible_is_alone_after_a_few_deaths() {
        let (mut suspects, mut deaths) = (12, 0);
        while suspects > 1 {
            let cases = bisect(suspects, deaths);
            assert_eq!(cases.len(), suspects);
            let together = cases.iter().filter(|case| case.is_some() && **case == cases[0]).count();
            suspects = together.max(1);
            deaths += 1;
        }
        assert_eq!(deaths, 4);
        assert_eq!(bisect(2, 1), [None, None]);
    }
}
