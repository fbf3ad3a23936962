//! Properties of the engine that hold for any observations, in any order, at any times.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use enisle_cordon::{
    Bounds, CAGES_PER_PROCESS, Capacity, Circumstances, DeathRules, Deaths, Decision, Kind, Level, Placement, Process,
    Rules, Seen, Signal, Source, Standing, Time, Traits, Trust, decide, place,
};
use proptest::prelude::*;

const START: Time = Time(1_700_000_000_000);
const DAY: u64 = 24 * 3600 * 1000;

fn signals(from: impl Fn(Signal) -> bool) -> impl Strategy<Value = Signal> {
    let wanted: Vec<_> = Signal::ALL.into_iter().filter(|s| s.kind() != Kind::Prior && from(*s)).collect();
    proptest::sample::select(wanted)
}

fn circumstances() -> impl Strategy<Value = Circumstances> {
    let trust = prop_oneof![Just(Trust::Trusted), Just(Trust::Standard), Just(Trust::Untrusted)];
    (trust, any::<bool>()).prop_map(|(trust, outdated_engine)| Circumstances { trust, outdated_engine })
}

/// What is observed (perhaps nothing), and how much time has passed since the step before.
fn steps() -> impl Strategy<Value = Vec<(Option<Seen>, u64)>> {
    let seen = (signals(|_| true), any::<bool>())
        .prop_map(|(signal, alone)| if alone { Seen::certain(signal) } else { Seen::in_company(signal) });
    let pause = prop_oneof![0_u64..2000, 0..DAY, 0..40 * DAY];
    proptest::collection::vec((proptest::option::of(seen), pause), 1..80)
}

proptest! {
    /// A tenant moves inward one level at a time, after a clean period with a low score or when its
    /// suspicion ends, and never from `expelled`. If its score is at or over the threshold for
    /// `expelled`, it can only move to `expelled`.
    #[test]
    fn tenants_move_only_as_the_rules_allow(steps in steps(), around in circumstances()) {
        let (rules, mut standing, mut now) = (Rules::default(), Standing::new(START), START);
        let mut last_mark = START;
        for (seen, pause) in steps {
            now = now.plus(pause);
            let before = standing.level();
            let decision = decide(&mut standing, seen.as_slice(), around, &rules, now);
            if seen.is_some_and(|seen| matches!(seen.signal.kind(), Kind::Evidence | Kind::Nuisance)) {
                last_mark = now;
            }
            let after = standing.level();
            let score = standing.score(around, &rules, now);
            let reasons = match &decision {
                Decision::Stay => {
                    prop_assert_eq!(before, after);
                    continue;
                }
                Decision::Move { from, to, reasons } => {
                    prop_assert_eq!((*from, *to), (before, after));
                    reasons
                }
                Decision::Expel { from, reasons } => {
                    prop_assert_eq!((*from, Level::Expelled), (before, after));
                    reasons
                }
            };
            prop_assert!(!reasons.is_empty(), "a decision without a reason");
            prop_assert_ne!(before, Level::Expelled, "only an operator lets an expelled tenant back in");
            if after < before {
                prop_assert_eq!(after, before.inward());
                let suspicion_over = before == Level::Solo && score < rules.solo;
                let clean = now.since(last_mark) >= rules.back_after_secs * 1000 && score < rules.back_below;
                prop_assert!(clean || suspicion_over);
            }
            prop_assert!(score < rules.expelled || after == Level::Expelled);
        }
    }

    /// A tenant cannot lower its score: no observation takes points away.
    #[test]
    fn no_observation_lowers_a_score_or_moves_a_tenant_inward(steps in steps(), around in circumstances()) {
        let (rules, mut standing, mut now) = (Rules::default(), Standing::new(START), START);
        for (seen, pause) in steps {
            now = now.plus(pause);
            decide(&mut standing, &[], around, &rules, now);
            let (score, level) = (standing.score(around, &rules, now), standing.level());
            decide(&mut standing, seen.as_slice(), around, &rules, now);
            prop_assert!(standing.score(around, &rules, now) >= score - 1e-6);
            prop_assert!(standing.level() >= level);
        }
    }

    /// Signals that a neighbour may have caused never raise a tenant's score to the threshold for
    /// `solo`, and never move it beyond `solo`: an attacker cannot push a neighbour out. A worker's
    /// advisory signals about the tenant do not change that.
    #[test]
    fn neighbours_cannot_push_a_tenant_over_the_threshold(
        beside in proptest::collection::vec((signals(|s| s.takes_worker() || s.kind() == Kind::Share), 0..DAY), 1..200),
        own in proptest::collection::vec(signals(|s| s.kind() == Kind::Advisory), 0..20),
        around in circumstances(),
    ) {
        let (rules, mut standing, mut now) = (Rules::default(), Standing::new(START), START);
        decide(&mut standing, &own.into_iter().map(Seen::certain).collect::<Vec<_>>(), around, &rules, now);
        for (signal, pause) in beside {
            now = now.plus(pause);
            decide(&mut standing, &[Seen::in_company(signal)], around, &rules, now);
            prop_assert!(standing.score(around, &rules, now) < rules.solo);
            prop_assert!(standing.level() <= Level::Solo);
        }
        // Its suspicion ends by itself.
        decide(&mut standing, &[], around, &rules, now.plus(rules.back_after_secs * 1000));
        prop_assert_eq!(standing.level(), Level::Shared);
    }

    /// A worker's allegations by themselves never move a tenant.
    #[test]
    fn allegations_of_a_worker_never_move_a_tenant(
        said in proptest::collection::vec((signals(|s| s.source() == Source::Worker), 0_u64..1000), 0..200),
        around in circumstances(),
    ) {
        let (rules, mut standing, mut now) = (Rules::default(), Standing::new(START), START);
        for (signal, pause) in said {
            now = now.plus(pause);
            prop_assert_eq!(decide(&mut standing, &[Seen::certain(signal)], around, &rules, now), Decision::Stay);
        }
    }

    /// A single tenant never uses up its uid's budget, however often it kills its process. So it
    /// cannot force the uid's other tenants to live alone.
    #[test]
    fn one_tenant_never_uses_up_a_budget(
        seen in proptest::collection::vec((signals(Signal::takes_worker), any::<bool>(), 0..20 * 60_000_u64), 1..80),
        around in circumstances(),
    ) {
        let (rules, mut standing, mut now) = (Rules::default(), Standing::new(START), START);
        let mut deaths = Deaths::default();
        for (signal, alone, pause) in seen {
            now = now.plus(pause);
            decide(&mut standing, &[], around, &rules, now);
            deaths.blamed(standing.level(), &rules.deaths, now);
            prop_assert!(!deaths.is_used_up(&rules.deaths, now));
            let seen = if alone { Seen::certain(signal) } else { Seen::in_company(signal) };
            decide(&mut standing, &[seen], around, &rules, now);
        }
    }

    /// If a uid's tenants kill one process after another, each under a new name, a neighbour loses
    /// at most as many processes as the budget allows deaths, plus one for each death that could be
    /// forgiven meanwhile. Once the budget is used up, the neighbour's next home is a single-tenant
    /// home, and the neighbour stays alone until all deaths are forgiven.
    #[test]
    fn new_names_cost_a_neighbour_at_most_the_budget_plus_the_forgiven_deaths(
        deeds in proptest::collection::vec((0..3 * 60_000_u64, any::<bool>()), 1..300),
        budget in 1_u32..6,
    ) {
        let rules = DeathRules { budget, ..DeathRules::default() };
        let (mut deaths, mut now) = (Deaths::default(), START);
        let (mut alone, mut lost) = (false, 0);
        for (pause, beside_it) in deeds {
            now = now.plus(pause);
            alone &= !deaths.is_clear(now);
            deaths.blamed(Level::Shared, &rules, now);
            if beside_it && !alone {
                lost += 1;
                alone = deaths.is_used_up(&rules, now);
            }
            let forgiven = now.since(START) / (rules.regain_secs * 1000);
            prop_assert!(lost <= u64::from(budget) + forgiven);
        }
    }

    /// A restart changes nothing: a standing that was written and read back leads to the same
    /// decisions as one that was not.
    #[test]
    fn a_standing_survives_a_restart(steps in steps(), restart_at in 0_usize..80, around in circumstances()) {
        let (rules, mut now) = (Rules::default(), START);
        let (mut kept, mut restarted) = (Standing::new(START), Standing::new(START));
        for (at, (seen, pause)) in steps.into_iter().enumerate() {
            now = now.plus(pause);
            if at == restart_at {
                restarted = serde_json::from_str(&serde_json::to_string(&restarted).unwrap()).unwrap();
            }
            let one = decide(&mut kept, seen.as_slice(), around, &rules, now);
            prop_assert_eq!(one, decide(&mut restarted, seen.as_slice(), around, &rules, now));
        }
    }

    /// While the clock is behind the latest time that it has shown, a tenant is judged as of that
    /// latest time, so setting the clock back does not lower a score.
    #[test]
    fn a_clock_that_goes_back_does_not_help_a_tenant(
        steps in proptest::collection::vec((proptest::option::of(signals(|_| true)), 0..20 * DAY), 1..50),
    ) {
        let (rules, around) = (Rules::default(), Circumstances::default());
        let (mut jumping, mut monotonic, mut latest) = (Standing::new(START), Standing::new(START), START);
        for (signal, at) in steps {
            let now = START.plus(at);
            latest = latest.max(now);
            let seen: Vec<_> = signal.into_iter().map(Seen::certain).collect();
            let decided = decide(&mut jumping, &seen, around, &rules, now);
            prop_assert_eq!(decided, decide(&mut monotonic, &seen, around, &rules, latest));
        }
    }

    /// In any order of arrivals and at any load, no tenant shares a process with a tenant that it
    /// may not share with, or with one that lives alone; no process uses more slots than it has;
    /// and no bound is exceeded.
    #[test]
    fn placement_keeps_tenants_apart(
        tenants in proptest::collection::vec((traits(), proptest::sample::select(Level::ALL.to_vec()), any::<bool>()), 0..120),
        keys in 0_usize..20,
        processes_most in 1_usize..20,
        alone_most in 0_usize..6,
    ) {
        let capacity = Capacity { keys, cages: CAGES_PER_PROCESS, share_without_keys: false };
        let bounds = Bounds { processes: processes_most, alone: alone_most };
        let mut processes: Vec<Process<usize>> = Vec::new();
        for (tenant, level, leaves) in tenants {
            let id = match place(&tenant, level, &processes, capacity, bounds) {
                Placement::Into(id) => id,
                Placement::New(level) => {
                    let id = processes.len();
                    processes.push(Process { id, level, tenants: Vec::new(), busy: 0, slots_used: 0 });
                    id
                }
                Placement::Full => {
                    prop_assert!(processes.len() >= processes_most);
                    continue;
                }
                Placement::FullAlone => {
                    prop_assert!(level.is_alone());
                    continue;
                }
                Placement::Refused => {
                    prop_assert_eq!(level, Level::Expelled);
                    continue;
                }
            };
            prop_assert_eq!(processes[id].level, level);
            prop_assert!(processes[id].tenants.iter().all(|other| tenant.may_share_with(other)));
            prop_assert!(processes[id].tenants.iter().all(|other| tenant.on_probation == other.on_probation));
            processes[id].slots_used += 1;
            if !leaves {
                processes[id].tenants.push(tenant);
            }
        }
        prop_assert!(processes.len() <= processes_most);
        prop_assert!(processes.iter().filter(|process| process.level.is_alone()).count() <= alone_most);
        for process in processes {
            let bound = if process.level.is_alone() { 1 } else { capacity.tenants_per_process() };
            prop_assert!(process.slots_used <= bound);
        }
    }
}

fn traits() -> impl Strategy<Value = Traits> {
    let owner = proptest::option::of(proptest::sample::select(vec!["a".to_owned(), "b".to_owned()]));
    let trust = prop_oneof![Just(Trust::Trusted), Just(Trust::Standard), Just(Trust::Untrusted)];
    let case = proptest::option::of((0_u64..2, 0_u8..2).prop_map(|(death, half)| enisle_cordon::Case { death, half }));
    let doubtful = any::<bool>();
    let parts = (owner, trust, any::<bool>(), any::<bool>(), doubtful, case, any::<bool>());
    parts.prop_map(|(owner, trust, holds_secrets, watched, doubtful, case, on_probation)| Traits {
        owner,
        trust,
        holds_secrets,
        watched,
        doubtful,
        case,
        on_probation,
    })
}
