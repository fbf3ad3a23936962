//! Decides when a tenant moves: a function of where it lives and how far out it must live.
//!
//! | the tenant's home | what the tenant does |
//! |---|---|
//! | too far in, or beside tenants it must be kept from | leaves, with or without a new home |
//! | in a process that is too old | the same, but its current run has unlimited time |
//! | at another level than wanted, but not too far in | leaves when another home is ready |
//! | in a process that holds too much memory | leaves when another home is ready |
//! | lost, and the tenant must live alone | gets another home before its next run |

use crate::Level;

/// How far out a tenant must live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The level that the tenant's standing demands. The tenant must not live further in.
    pub standing: Level,
    /// The level that everything together demands now, including temporary reasons to live alone.
    /// Never further in than `standing`.
    pub wanted: Level,
}

/// A home, as decisions on moves see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HomeFacts {
    pub level: Level,
    /// Its process is older than a process may be.
    pub is_old: bool,
    /// Its process holds more memory than the tenants in it explain, and this tenant has been asked
    /// to leave. It waits for another home.
    pub is_unwanted: bool,
    /// Its process holds another tenant that this tenant must be kept from.
    pub among_others: bool,
}

/// Where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// The tenant has no home.
    Nowhere,
    /// The home accepts no more runs: its process has died, or the tenant is leaving the home.
    Lost,
    In(HomeFacts),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Stay,
    /// The tenant may not run: it loses its homes.
    Expel,
    /// The tenant gets another home. If `outward`, its run in the old home has bounded time.
    Go {
        outward: bool,
    },
}

/// Whether and how a tenant leaves its home when there is no room for it elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Stays,
    /// It leaves, and its current run has unlimited time.
    InTime,
    /// It leaves, and its current run has bounded time.
    InHaste,
}

impl Needs {
    /// Whether `level` is further in than the tenant's standing allows.
    #[must_use]
    pub fn is_too_far_in(&self, level: Level) -> bool {
        level < self.standing
    }

    /// Whether the tenant should live elsewhere.
    #[must_use]
    pub fn is_misplaced(&self, home: &HomeFacts) -> bool {
        home.level != self.wanted || home.is_old || home.is_unwanted || home.among_others
    }

    /// Whether the tenant must leave soon, even if there is no other home for it.
    #[must_use]
    pub fn must_leave(&self, home: &HomeFacts) -> bool {
        self.is_too_far_in(home.level) || home.among_others
    }

    /// What the tenant does next, if there is room.
    #[must_use]
    pub fn next(&self, whereabouts: Whereabouts) -> Move {
        match whereabouts {
            _ if self.wanted == Level::Expelled => Move::Expel,
            Whereabouts::In(home) if self.is_misplaced(&home) => Move::Go { outward: home.level < self.wanted },
            Whereabouts::Lost if self.wanted.is_alone() => Move::Go { outward: false },
            // If the tenant has no home, its next run makes one.
            Whereabouts::In(_) | Whereabouts::Lost | Whereabouts::Nowhere => Move::Stay,
        }
    }

    /// What a tenant in `home` does when there is no room for it elsewhere. If moving would only be
    /// an improvement, the tenant stays.
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
    fn a_tenant_without_a_reason_to_move_stays() {
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
    fn a_tenant_that_need_not_move_also_stays_when_there_is_no_room() {
        for (needs, home) in everything().filter(|(needs, home)| needs.next(Whereabouts::In(*home)) == Move::Stay) {
            assert_eq!(needs.without_room(&home), Leave::Stays, "{needs:?} {home:?}");
        }
    }
}
