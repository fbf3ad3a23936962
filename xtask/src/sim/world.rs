//! The simulated machine: tenants, processes, a clock, and the engine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use enisle_cordon::place::bisect;
use enisle_cordon::{
    Bounds, CAGES_PER_PROCESS, Capacity, Case, Circumstances, Decision, Level, MAX_TENANTS_PER_PROCESS, Placement,
    Process, Rules, Sample, Seen, Shape, Signal, Standing, Time, Traits, decide, place,
};
use fastrand::Rng;

use super::behaviour::{Act, BURST, DRAWN, KINDS, Kind, Label, policy};

pub(super) const DAY: u64 = 24 * 3600 * 1000;
const START: Time = Time(1_700_000_000_000);
/// The capacity of a machine with fifteen keys.
const CAPACITY: Capacity =
    Capacity { keys: MAX_TENANTS_PER_PROCESS, cages: CAGES_PER_PROCESS, share_without_keys: false };

pub(super) struct Tenant {
    pub(super) kind: &'static Kind,
    standing: Standing,
    traits: Traits,
    around: Circumstances,
    home: u32,
    /// Until when the tenant is suspected after the death of a process. Without a case it lives
    /// alone until then, with a case it lives with half of its former neighbours.
    suspected: Option<(Option<Case>, Time)>,
    pub(super) first_act: Option<Time>,
    /// When the first decision after the tenant's first act cordoned the tenant.
    pub(super) cordoned: Option<Time>,
    /// Whether the tenant has ended a process itself.
    pub(super) took: bool,
    pub(super) worst: Level,
    pub(super) most_score: f64,
}

#[derive(Debug, Default)]
struct Home {
    level: Level,
    residents: BTreeSet<usize>,
    slots_used: usize,
}

/// The result of a simulation.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) decisions: usize,
    /// Three numbers for the end of every day: of all processes, of processes with one isolated
    /// tenant, and of tenants that deserve such a process.
    pub(super) days: Vec<(usize, usize, usize)>,
    /// Hours that benign tenants spent beside a hostile tenant after its first act, summed over all
    /// benign tenants.
    pub(super) exposed_hours: f64,
}

pub(super) struct World<'a> {
    rules: &'a Rules,
    rng: Rng,
    pub(super) now: Time,
    pub(super) tenants: Vec<Tenant>,
    homes: BTreeMap<u32, Home>,
    next_home: u32,
    deaths: u64,
    due: BinaryHeap<Reverse<(Time, usize, usize)>>,
    pub(super) tally: Tally,
}

impl<'a> World<'a> {
    /// A number of tenants in the proportions of [`KINDS`], each in a home.
    pub(super) fn new(tenants: usize, rules: &'a Rules, seed: u64) -> Self {
        let mut world = World {
            rules,
            rng: Rng::with_seed(seed),
            now: START,
            tenants: Vec::new(),
            homes: BTreeMap::new(),
            next_home: 0,
            deaths: 0,
            due: BinaryHeap::new(),
            tally: Tally::default(),
        };
        let mut kinds: Vec<_> =
            KINDS.iter().flat_map(|kind| std::iter::repeat_n(kind, (kind.of_10k * tenants).div_ceil(10_000))).collect();
        world.rng.shuffle(&mut kinds);
        for (index, kind) in kinds.into_iter().take(tenants).enumerate() {
            let (trust, owner) = policy(index);
            let (holds_secrets, around) = (owner.is_some(), Circumstances { trust, outdated_engine: false });
            let traits = Traits { owner, trust, holds_secrets, ..Traits::default() };
            world.tenants.push(Tenant {
                kind,
                standing: Standing::new(START),
                traits,
                around,
                home: u32::MAX,
                suspected: None,
                first_act: None,
                cordoned: None,
                took: false,
                worst: Level::Shared,
                most_score: 0.0,
            });
            for act in 0..kind.acts.len() {
                world.schedule(index, act);
            }
        }
        world.settle_everybody();
        world
    }

    /// Simulates a number of days.
    pub(super) fn run(&mut self, days: u64) {
        for day in 1..=days {
            let end = START.plus(day * DAY);
            while let Some(Reverse((at, tenant, act))) = self.due.pop() {
                if at >= end {
                    self.due.push(Reverse((at, tenant, act)));
                    break;
                }
                self.now = at;
                self.perform(tenant, act);
            }
            self.now = end;
            for tenant in 0..self.tenants.len() {
                self.see(tenant, &[]);
            }
            // Tenants leave workers that are a day old.
            self.settle_everybody();
            self.count_day();
        }
    }

    /// Schedules the next time that a tenant does an act: drawn at random, at the act's rate.
    fn schedule(&mut self, tenant: usize, act: usize) {
        let rate = self.tenants[tenant].kind.acts[act].0;
        let days = -(1.0 - self.rng.f64()).ln() / rate;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some days in milliseconds")]
        let pause = (days * DAY as f64) as u64;
        self.due.push(Reverse((self.now.plus(pause), tenant, act)));
    }

    fn perform(&mut self, tenant: usize, index: usize) {
        self.schedule(tenant, index);
        let (label, act) = (self.tenants[tenant].kind.label, self.tenants[tenant].kind.acts[index].1);
        if self.tenants[tenant].standing.level() == Level::Expelled {
            return;
        }
        if label != Label::Benign {
            self.tenants[tenant].first_act.get_or_insert(self.now);
        }
        match act {
            Act::Compute { secs, share, messages, runs } => {
                let secs = if secs == DRAWN { self.burst() } else { secs };
                let window_ms = self.rules.shape.window_ms;
                let portion = |of_a_second: u64| of_a_second * window_ms / 1000;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds of a second")]
                let ran_ms = portion((share * 1000.0) as u64);
                self.work(tenant, secs, |last| Sample {
                    runs: last.runs + portion(runs),
                    ran_ms: last.ran_ms + ran_ms,
                    messages: enisle_cordon::shape::Messages {
                        count: last.messages.count + portion(messages),
                        ..last.messages
                    },
                    ..last
                });
            }
            Act::Page { secs } => self.work(tenant, secs, |last| Sample { faults: last.faults + 20_000, ..last }),
            Act::Take(signal) => {
                self.tenants[tenant].took = true;
                self.take(tenant, signal);
            }
            Act::TakeInCompany(signal) => {
                if !self.beside(tenant).is_empty() {
                    self.tenants[tenant].took = true;
                    self.take(tenant, signal);
                }
            }
            Act::TakeUnseen(signal) => {
                self.tenants[tenant].took = true;
                self.take_unseen(tenant, signal);
            }
            Act::Push => {
                let beside = self.beside(tenant);
                if !beside.is_empty() {
                    let victim = beside[self.rng.usize(..beside.len())];
                    self.take(victim, Signal::ClosedKey);
                }
            }
            Act::Say(signal) => self.see(tenant, &[Seen::certain(signal)]),
        }
    }

    /// The length of a benign burst: log-normal, by the Box-Muller transform.
    fn burst(&mut self) -> f64 {
        let (one, two) = (1.0 - self.rng.f64(), self.rng.f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        BURST.0 * (BURST.1 * normal).exp()
    }

    /// Feeds the engine one window after another until the work is done. If the tenant is moved
    /// meanwhile, it goes on in its new home.
    fn work(&mut self, tenant: usize, secs: f64, next: impl Fn(Sample) -> Sample) {
        let begun = self.now;
        let (mut shape, mut sample) = (Shape::default(), Sample { at: self.now, ..Sample::default() });
        shape.observe(sample, &self.rules.shape);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousand seconds")]
        for _ in 0..(secs * 1000.0) as u64 / self.rules.shape.window_ms {
            self.now = self.now.plus(self.rules.shape.window_ms);
            sample = Sample { at: self.now, ..next(sample) };
            let seen: Vec<_> = shape.observe(sample, &self.rules.shape).into_iter().map(Seen::certain).collect();
            if !seen.is_empty() {
                self.see(tenant, &seen);
            }
        }
        // The clock goes back, because other tenants act meanwhile, at times of their own.
        self.now = begun;
    }

    fn beside(&self, tenant: usize) -> Vec<usize> {
        let home = self.homes.get(&self.tenants[tenant].home);
        home.into_iter().flat_map(|home| &home.residents).copied().filter(|other| *other != tenant).collect()
    }

    /// A tenant ends its process. Every tenant in it needs another process.
    fn take(&mut self, tenant: usize, signal: Signal) {
        let alone = self.homes.get(&self.tenants[tenant].home).is_none_or(|home| home.slots_used <= 1);
        let others = self.beside(tenant);
        self.homes.remove(&self.tenants[tenant].home);
        self.see(tenant, &[if alone { Seen::certain(signal) } else { Seen::in_company(signal) }]);
        for other in &others {
            if signal.kind() == enisle_cordon::Kind::Evidence {
                self.see(*other, &[Seen::certain(Signal::CoTenant)]);
            }
            self.settle(*other);
        }
        self.settle(tenant);
    }

    fn take_unseen(&mut self, tenant: usize, signal: Signal) {
        let mut there = self.beside(tenant);
        there.push(tenant);
        there.sort_unstable();
        let alone = self.homes.get(&self.tenants[tenant].home).is_none_or(|home| home.slots_used <= 1);
        if alone {
            return self.take(tenant, signal);
        }
        self.homes.remove(&self.tenants[tenant].home);
        self.deaths += 1;
        let until = self.now.plus(self.rules.unexplained_secs * 1000);
        for (who, case) in there.iter().zip(bisect(there.len(), self.deaths)) {
            self.tenants[*who].suspected = Some((case, until));
            self.see(*who, &[Seen::certain(Signal::Unattributed)]);
            self.settle(*who);
        }
    }

    /// Reports signals to the engine, and carries out its decision.
    fn see(&mut self, index: usize, seen: &[Seen]) {
        let (now, rules) = (self.now, self.rules);
        let tenant = &mut self.tenants[index];
        let decision = decide(&mut tenant.standing, seen, tenant.around, rules, now);
        if !seen.is_empty() {
            let score = tenant.standing.score(tenant.around, rules, now);
            tenant.most_score = tenant.most_score.max(score);
            tenant.traits.watched = score >= rules.watch;
            tenant.traits.doubtful = tenant.standing.is_doubtful();
        }
        if decision == Decision::Stay {
            return;
        }
        self.tally.decisions += 1;
        let level = tenant.standing.level();
        tenant.worst = tenant.worst.max(level);
        if level > Level::Shared && tenant.first_act.is_some() {
            tenant.cordoned.get_or_insert(now);
        }
        self.settle(index);
    }

    fn wanted(&mut self, index: usize) -> Level {
        let now = self.now;
        let tenant = &mut self.tenants[index];
        if tenant.suspected.is_some_and(|(_, until)| until <= now) {
            tenant.suspected = None;
        }
        tenant.traits.case = tenant.suspected.and_then(|(case, _)| case);
        let alone = tenant.suspected.is_some_and(|(case, _)| case.is_none());
        tenant.standing.level().max(if alone { Level::Solo } else { Level::Shared })
    }

    /// Moves a tenant to the home that it must have, unless it is there.
    fn settle(&mut self, index: usize) {
        let level = self.wanted(index);
        let home = self.tenants[index].home;
        if let Some(present) = self.homes.get_mut(&home) {
            if present.level == level {
                return;
            }
            present.residents.remove(&index);
            self.expose(home);
            if self.homes.get(&home).is_some_and(|home| home.residents.is_empty()) {
                self.homes.remove(&home);
            }
        }
        // A tenant that must live alone joins no process, and no tenant joins a process whose slots
        // are used up.
        let open = |home: &&Home| {
            level == Level::Shared && home.level == level && home.slots_used < CAPACITY.tenants_per_process()
        };
        let process = |(id, home): (&u32, &Home)| {
            let tenants = home.residents.iter().map(|who| self.tenants[*who].traits.clone()).collect();
            Process { id: *id, level, tenants, busy: 0, slots_used: home.slots_used }
        };
        let processes: Vec<_> = self.homes.iter().filter(|(_, home)| open(home)).map(process).collect();
        let bounds = Bounds { processes: usize::MAX, alone: usize::MAX };
        let id = match place(&self.tenants[index].traits, level, &processes, CAPACITY, bounds) {
            Placement::Into(id) => id,
            Placement::New(level) => {
                self.next_home += 1;
                self.homes.insert(self.next_home, Home { level, ..Home::default() });
                self.next_home
            }
            Placement::Full | Placement::FullAlone | Placement::Refused => u32::MAX,
        };
        self.tenants[index].home = id;
        if let Some(home) = self.homes.get_mut(&id) {
            home.residents.insert(index);
            home.slots_used += 1;
        }
    }

    /// All tenants move into new processes, as they do once a day.
    fn settle_everybody(&mut self) {
        let ids: Vec<_> = self.homes.keys().copied().collect();
        ids.into_iter().for_each(|home| self.expose(home));
        self.homes.clear();
        // The order is random, because a tenant's traits follow from its index.
        let mut order: Vec<_> = (0..self.tenants.len()).collect();
        self.rng.shuffle(&mut order);
        for index in order {
            self.settle(index);
        }
    }

    /// When tenants part, adds up how long benign ones have been beside a hostile one that had
    /// begun to act.
    fn expose(&mut self, home: u32) {
        let Some(home) = self.homes.get(&home) else { return };
        let acted = home.residents.iter().filter_map(|who| {
            let tenant = &self.tenants[*who];
            (tenant.kind.label == Label::Hostile).then_some(tenant.first_act?)
        });
        let Some(since) = acted.min() else { return };
        let benign = home.residents.iter().filter(|who| self.tenants[**who].kind.label == Label::Benign).count();
        #[expect(clippy::cast_precision_loss, reason = "hours of some weeks")]
        let hours = self.now.since(since).min(DAY) as f64 / 3_600_000.0 * benign as f64;
        self.tally.exposed_hours += hours;
    }

    fn count_day(&mut self) {
        let alone = self.homes.values().filter(|home| home.level.is_alone()).count();
        let deserving = self.tenants.iter().filter(|tenant| {
            let acted = tenant.kind.label != Label::Benign && tenant.first_act.is_some();
            acted && tenant.standing.level() != Level::Expelled
        });
        let deserving = deserving.count();
        self.tally.days.push((self.homes.len(), alone, deserving));
    }
}
