//! Decides when a tenant moves: a function of where it lives and how far out it must live.
//!
//! | its home | what follows |
//! |---|---|
//! | too far in, or beside tenants it must be kept from | it leaves, with or without a new home |
//! | in a process that is too old | the same, but its current run has unlimited time |
//! | further out than it must be | it leaves when another home is ready |
//! | in a process that holds too much | the same |
//! | lost, and it must live alone | it gets another one before its next run |

use crate::Level;

/// How far out a tenant must live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// By its standing: it must not live further in.
    pub standing: Level,
    /// By everything that applies now, its own protection included; never further in than its
    /// standing.
    pub wanted: Level,
}

/// A home, as decisions on moves see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HomeFacts {
    pub level: Level,
    /// Its process is older than a process may be.
    pub is_old: bool,
    /// Its process holds more than its tenants explain, and this tenant must leave.
    pub is_unwanted: bool,
    /// Its process has a tenant that this one must be kept from.
    pub among_others: bool,
}

/// Where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It has no home.
    Nowhere,
    /// Its home accepts no more runs: its process has died, or the tenant is leaving it.
    Lost,
    In(HomeFacts),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Stay,
    /// It may not run.
    Expel,
    /// It gets another home. If `outward`, its run in the old one has bounded time.
    Go {
        outward: bool,
    },
}

/// How it leaves a home without room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Stays,
    /// Its current run has unlimited time.
    InTime,
    /// Its current run has bounded time.
    InHaste,
}

impl Needs {
    /// Whether it must not live that far in.
    #[must_use]
    pub fn is_too_far_in(&self, level: Level) -> bool {
        level < self.standing
    }

    /// Whether it should live elsewhere.
    #[must_use]
    pub fn is_misplaced(&self, home: &HomeFacts) -> bool {
        home.level != self.wanted || home.is_old || home.is_unwanted || home.among_others
    }

    /// Whether it must leave even without another home.
    #[must_use]
    pub fn must_leave(&self, home: &HomeFacts) -> bool {
        self.is_too_far_in(home.level) || home.among_others
    }

    #[must_use]
    pub fn next(&self, whereabouts: Whereabouts) -> Move {
        match whereabouts {
            _ if self.wanted == Level::Expelled => Move::Expel,
            Whereabouts::In(home) if self.is_misplaced(&home) => Move::Go { outward: home.level < self.wanted },
            Whereabouts::Lost if self.wanted.is_alone() => Move::Go { outward: false },
            // Its next run finds a home by itself.
            Whereabouts::In(_) | Whereabouts::Lost | Whereabouts::Nowhere => Move::Stay,
        }
    }

    /// What follows without room for another home. If moving would only be an improvement,
    /// the tenant stays.
    #[must_use]
    pub fn without_room(&self, home: &HomeFacts) -> Leave {
        match (self.must_leave(home), home.is_old) {
            (true, _) => Leave::InHaste,
            (false, true) => Leave::InTime,
            (false, false) => Leave::Stays,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [bool; 2] = [false, true];

    fn all_needs() -> Vec<Needs> {
        let levels = Level::ALL.into_iter();
        let needs = levels.flat_map(|standing| Level::ALL.map(|wanted| Needs { standing, wanted }));
        needs.filter(|needs| needs.standing <= needs.wanted).collect()
    }

    fn all_homes() -> Vec<HomeFacts> {
        let levels = [Level::Shared, Level::Solo, Level::Sealed].into_iter();
        let of = |level, is_old, is_unwanted, among_others| HomeFacts { level, is_old, is_unwanted, among_others };
        levels
            .flat_map(|level| BOTH.map(|old| (level, old)))
            .flat_map(|(level, old)| BOTH.map(|unwanted| (level, old, unwanted)))
            .flat_map(|(level, old, unwanted)| BOTH.map(|others| of(level, old, unwanted, others)))
            .collect()
    }

    fn everything() -> impl Iterator<Item = (Needs, HomeFacts)> {
        all_needs().into_iter().flat_map(|needs| all_homes().into_iter().map(move |home| (needs, home)))
    }

    fn good(level: Level) -> HomeFacts {
        HomeFacts { level, is_old: false, is_unwanted: false, among_others: false }
    }

    #[test]
    fn a_tenant_that_lives_where_it_must_stays() {
        for needs in all_needs().into_iter().filter(|needs| needs.wanted != Level::Expelled) {
            assert_eq!(needs.next(Whereabouts::In(good(needs.wanted))), Move::Stay);
            assert_eq!(needs.next(Whereabouts::Nowhere), Move::Stay);
        }
    }

    #[test]
    fn a_tenant_that_must_leave_moves_and_does_not_wait_for_room() {
        for (needs, home) in everything().filter(|(needs, home)| needs.must_leave(home)) {
            assert_ne!(needs.next(Whereabouts::In(home)), Move::Stay, "{needs:?} {home:?}");
            assert_eq!(needs.without_room(&home), Leave::InHaste, "{needs:?} {home:?}");
        }
    }

    #[test]
    fn a_tenant_that_is_too_far_out_or_in_too_large_a_process_waits_for_room() {
        let needs = Needs { standing: Level::Shared, wanted: Level::Shared };
        for home in [good(Level::Sealed), HomeFacts { is_unwanted: true, ..good(Level::Shared) }] {
            assert_eq!(needs.next(Whereabouts::In(home)), Move::Go { outward: false });
            assert_eq!(needs.without_room(&home), Leave::Stays);
        }
        let old = HomeFacts { is_old: true, ..good(Level::Shared) };
        assert_eq!(
            (needs.next(Whereabouts::In(old)), needs.without_room(&old)),
            (Move::Go { outward: false }, Leave::InTime)
        );
    }

    #[test]
    fn a_tenant_isolated_for_its_own_protection_moves_outward_but_need_not_leave() {
        let needs = Needs { standing: Level::Shared, wanted: Level::Solo };
        let shared = good(Level::Shared);
        assert_eq!(needs.next(Whereabouts::In(shared)), Move::Go { outward: true });
        assert_eq!(needs.without_room(&shared), Leave::Stays);
    }

    #[test]
    fn a_lost_single_tenant_home_is_replaced_at_once_and_a_shared_one_by_the_next_run() {
        let lost = |wanted| Needs { standing: Level::Shared, wanted }.next(Whereabouts::Lost);
        assert_eq!((lost(Level::Shared), lost(Level::Solo)), (Move::Stay, Move::Go { outward: false }));
    }

    #[test]
    fn an_expelled_tenant_lives_nowhere_whatever_its_home_is() {
        let needs = Needs { standing: Level::Shared, wanted: Level::Expelled };
        let homes = all_homes().into_iter().map(Whereabouts::In);
        for whereabouts in homes.chain([Whereabouts::Nowhere, Whereabouts::Lost]) {
            assert_eq!(needs.next(whereabouts), Move::Expel);
        }
    }

    #[test]
    fn every_home_that_is_good_enough_to_stay_in_is_good_enough_to_wait_in() {
        for (needs, home) in everything().filter(|(needs, home)| needs.next(Whereabouts::In(*home)) == Move::Stay) {
            assert_eq!(needs.without_room(&home), Leave::Stays, "{needs:?} {home:?}");
        }
    }
}
