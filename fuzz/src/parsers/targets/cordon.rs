//! Decisions about tenants: scores, levels, placement, deaths.
//!
//! Attacked: `cordon`, by observations and orders in any sequence and at any times (the clock may
//! even go back), and by arrivals and departures of tenants. Oracles: a model that decays every
//! signal at each step, and derives the level by the sentences of `cordon::decide`; a placement
//! that looks at every process; and the invariants of ARCHITECTURE.md. (That two uids never share a
//! process is not tested here: `homes::pool`, which is not pure, ensures it.)

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use enisle_cordon::place::bisect;
use enisle_cordon::{
    Bounds, CAGES_PER_PROCESS, Capacity, Case, Circumstances, Deaths, Kind, Level, Order, Placement, Process, Rules,
    Seen, Signal, Standing, Time, Traits, Trust, decide, place,
};

use crate::parsers::draw::{Draw, ensure, same};

const START: Time = Time(1_700_000_000_000);
const DAY_MS: u64 = 24 * 3600 * 1000;
/// If a score is this close to a threshold, either level is right.
const CLOSE: f64 = 1e-6;

/// A naive model of a tenant's standing.
#[derive(Debug)]
struct Model {
    /// For each signal, certain or not: the points, and how often it was seen.
    points: BTreeMap<(Signal, bool), (f64, u32)>,
    now: Time,
    marked: Time,
    since: Time,
    suspected_until: Time,
    earned: Level,
    level: Level,
    order: Option<Level>,
}

impl Model {
    fn new() -> Self {
        Self {
            points: BTreeMap::new(),
            now: START,
            marked: START,
            since: START,
            suspected_until: Time::default(),
            earned: Level::Shared,
            level: Level::Shared,
            order: None,
        }
    }

    /// Decays all points until `now`. An earlier time changes nothing.
    fn at(&mut self, now: Time, rules: &Rules) {
        let now = now.max(self.now);
        #[expect(clippy::cast_precision_loss, reason = "some years of milliseconds")]
        let passed = now.since(self.now) as f64;
        for ((signal, _), (points, _)) in &mut self.points {
            #[expect(clippy::cast_precision_loss, reason = "some years of seconds")]
            let half_life = rules.weight(*signal).half_life_secs as f64 * 1000.0;
            *points *= (-passed / half_life).exp2();
        }
        self.now = now;
    }

    fn see(&mut self, seen: Seen, rules: &Rules) {
        let weight = rules.weight(seen.signal);
        let (points, count) = self.points.entry((seen.signal, seen.certain)).or_default();
        (*points, *count) = ((*points + weight.points).min(weight.most), *count + 1);
        if matches!(seen.signal.kind(), Kind::Evidence | Kind::Nuisance) {
            self.marked = self.now;
        }
        if seen.signal.takes_worker() {
            let taken: u32 =
                self.points.iter().filter(|((signal, _), _)| signal.takes_worker()).map(|(_, (_, count))| count).sum();
            let times = (1..taken.min(9)).fold(1_u64, |times, _| times * 6);
            let secs = (rules.suspicion_secs * times).min(rules.back_after_secs);
            self.suspected_until = self.suspected_until.max(self.now.plus(secs * 1000));
        }
    }

    fn score(&self, around: Circumstances, rules: &Rules) -> f64 {
        let mut by_kind: BTreeMap<&str, f64> = BTreeMap::new();
        let mut count = |certain: bool, kind: Kind, points: f64| {
            let kind = match (certain, kind) {
                (false, _) => "doubtful",
                (_, Kind::Evidence) => "evidence",
                (_, Kind::Nuisance | Kind::Prior) => "nuisance",
                (_, Kind::Share) => "share",
                (_, Kind::Advisory) => "advisory",
            };
            *by_kind.entry(kind).or_default() += points;
        };
        self.points.iter().for_each(|((signal, certain), (points, _))| count(*certain, signal.kind(), *points));
        let trusted = around.trust == Trust::Trusted;
        for (signal, holds) in [
            (Signal::New, !trusted && self.now.since(START) < rules.new_for_secs * 1000),
            (Signal::Untrusted, around.trust == Trust::Untrusted),
            (Signal::OutdatedEngine, !trusted && around.outdated_engine),
        ] {
            if holds {
                count(true, Kind::Prior, rules.weight(signal).points);
            }
        }
        let of = |kind: &str| by_kind.get(kind).copied().unwrap_or_default();
        let own = of("evidence") + of("nuisance").min(rules.nuisance_most);
        let all = own + of("doubtful") + of("share").min(rules.share_most) + of("advisory").min(rules.advisory_most);
        // Points that other tenants may have caused never lead to `solo`.
        if own >= rules.solo { own } else { all.min(rules.solo - 1.0).max(own) }
    }

    /// The level by the rules; `None` if the score is too close to a threshold to say.
    fn decide(&mut self, around: Circumstances, rules: &Rules) -> Option<Level> {
        self.points.retain(|_, (points, _)| *points >= 0.05);
        let score = self.score(around, rules);
        let steps = [rules.back_below, rules.solo, rules.sealed, rules.expelled];
        if steps.iter().any(|step| (score - step).abs() < CLOSE) {
            return None;
        }
        let by_score = Level::ALL[steps[1..].iter().filter(|step| score >= **step).count()];
        let clean = self.now.since(self.marked.max(self.since)) >= rules.back_after_secs * 1000;
        if by_score > self.earned {
            self.earned = by_score;
        } else if clean && score < rules.back_below && self.earned != Level::Expelled {
            self.earned = self.earned.inward();
        }
        let suspicion = if self.suspected_until > self.now { Level::Solo } else { Level::Shared };
        let level = self.earned.max(suspicion).max(self.order.unwrap_or_default());
        if level != self.level {
            (self.level, self.since) = (level, self.now);
        }
        Some(level)
    }
}

pub(in crate::parsers) fn standing(u: &mut Unstructured<'_>) -> Result<(), String> {
    let signals: Vec<_> = Signal::ALL.into_iter().filter(|signal| signal.kind() != Kind::Prior).collect();
    let rules = Rules::default();
    let trust = *u.pick(&[Trust::Standard, Trust::Trusted, Trust::Untrusted]);
    let around = Circumstances { trust, outdated_engine: u.flag() };
    let (mut standing, mut model, mut now) = (Standing::new(START), Model::new(), START);
    while !u.is_empty() {
        now = match u.below(6) {
            0 => Time(now.0.saturating_sub(u.below(1 << 30) as u64)),
            1 => now.plus(40 * DAY_MS),
            2 => now.plus(u.below(usize::try_from(DAY_MS).unwrap_or(1)) as u64),
            _ => now.plus(u.below(2000) as u64),
        };
        model.at(now, &rules);
        match u.below(8) {
            6 => {
                let level = *u.pick(&Level::ALL);
                let order = Order { level, reason: u.text(1), by_uid: 0, at: now };
                standing.command(order, around, &rules, now);
                model.order = Some(level);
            }
            7 if u.flag() => {
                standing.forgive("x".to_owned(), 0, now);
                model.points.clear();
                (model.order, model.earned, model.suspected_until) = (None, Level::Shared, Time::default());
                if model.level != Level::Shared {
                    (model.level, model.since) = (Level::Shared, model.now);
                }
                same("forgiven", &standing.level(), &Level::Shared)?;
                continue;
            }
            _ => {
                let seen: Vec<_> =
                    (0..u.below(3)).map(|_| Seen { signal: *u.pick(&signals), certain: u.flag() }).collect();
                decide(&mut standing, &seen, around, &rules, now);
                seen.into_iter().for_each(|seen| model.see(seen, &rules));
            }
        }
        let Some(level) = model.decide(around, &rules) else { return Ok(()) };
        same(&format!("the level by {model:?}"), &standing.level(), &level)?;
        let (found, expected) = (standing.score(around, &rules, now), model.score(around, &rules));
        ensure((found - expected).abs() < CLOSE, || format!("the score is {found}, expected {expected} by {model:?}"))?;
        // A restart changes nothing: the standing is read back as it was written.
        let text = serde_json::to_string(&standing).map_err(|error| error.to_string())?;
        let again: Standing = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        same("read back", &again, &standing)?;
    }
    Ok(())
}

fn traits(u: &mut Unstructured<'_>) -> Traits {
    let case = |u: &mut Unstructured<'_>| Case { death: u.below(2) as u64, half: u8::from(u.flag()) };
    Traits {
        owner: [None, Some("a"), Some("b")][u.below(3)].map(str::to_owned),
        trust: *u.pick(&[Trust::Standard, Trust::Trusted, Trust::Untrusted]),
        holds_secrets: u.rarely(3),
        watched: u.rarely(3),
        doubtful: u.rarely(4),
        case: u.rarely(4).then(|| case(u)),
        on_probation: u.rarely(4),
    }
}

/// Whether two tenants may share a process, by the sentences at the top of `cordon::place`.
fn are_alike(one: &Traits, other: &Traits) -> bool {
    let secrets = |holder: &Traits, other: &Traits| {
        !holder.holds_secrets
            || (!holder.watched && !other.watched && holder.owner.is_some() && holder.owner == other.owner)
    };
    one.trust == other.trust
        && one.watched == other.watched
        && one.case == other.case
        && one.on_probation == other.on_probation
        && !(one.doubtful && other.doubtful)
        && secrets(one, other)
        && secrets(other, one)
}

pub(in crate::parsers) fn placement(u: &mut Unstructured<'_>) -> Result<(), String> {
    let capacity =
        Capacity { keys: u.below(20), cages: [CAGES_PER_PROCESS, 1, 0][u.below(3)], share_without_keys: u.flag() };
    let bounds = Bounds { processes: u.below(12), alone: u.below(6) };
    let most = most_of(capacity)?;
    let mut processes: Vec<Process<usize>> = Vec::new();
    while !u.is_empty() {
        if u.rarely(4) && !processes.is_empty() {
            // A tenant leaves; its slot is not used again.
            let at = u.below(processes.len());
            processes[at].tenants.pop();
            continue;
        }
        let (tenant, level) = (traits(u), *u.pick(&Level::ALL));
        beside(&tenant, &traits(u))?;
        halves(u.below(14))?;
        let open = |process: &Process<usize>| match level {
            Level::Shared => {
                process.level == Level::Shared
                    && process.slots_used < most
                    && process.tenants.iter().all(|other| are_alike(&tenant, other))
            }
            Level::Expelled => false,
            alone => process.level == alone && process.slots_used == 0,
        };
        let candidates: Vec<_> = processes.iter().filter(|process| open(process)).collect();
        let alone = processes.iter().filter(|process| process.level.is_alone()).count();
        let found = place(&tenant, level, &processes, capacity, bounds);
        let shown = || format!("{tenant:?} of {level} among {processes:?} with {capacity:?} and {bounds:?}: {found:?}");
        let id = match found {
            Placement::Into(id) => {
                let busy = candidates.iter().map(|process| process.busy / 4).min();
                let taken = candidates.iter().find(|process| process.id == id);
                ensure(taken.is_some_and(|taken| Some(taken.busy / 4) == busy), shown)?;
                id
            }
            Placement::New(new) => {
                let room = processes.len() < bounds.processes && (!level.is_alone() || alone < bounds.alone);
                ensure(new == level && candidates.is_empty() && room && level != Level::Expelled, shown)?;
                processes.push(Process { id: processes.len(), level, tenants: Vec::new(), busy: 0, slots_used: 0 });
                processes.len() - 1
            }
            Placement::Full => {
                ensure(candidates.is_empty() && processes.len() >= bounds.processes, shown)?;
                continue;
            }
            Placement::FullAlone => {
                ensure(candidates.is_empty() && level.is_alone() && alone >= bounds.alone, shown)?;
                continue;
            }
            Placement::Refused => {
                ensure(level == Level::Expelled, shown)?;
                continue;
            }
        };
        processes[id].busy = u.below(9);
        processes[id].slots_used += 1;
        processes[id].tenants.push(tenant);
        let used = if processes[id].level.is_alone() { 1 } else { most };
        ensure(processes[id].slots_used <= used, || format!("a slot is used twice: {:?}", processes[id]))?;
    }
    Ok(())
}

/// Placement is at least as strict as the rule for leaving: if one of two tenants must leave the
/// other, placement does not put them together.
fn beside(one: &Traits, other: &Traits) -> Result<(), String> {
    let leaves = one.must_leave(other) || other.must_leave(one);
    ensure(!leaves || !one.may_share_with(other), || format!("{one:?} shares with {other:?} and must leave"))
}

/// How many tenants may share a process.
fn most_of(capacity: Capacity) -> Result<usize, String> {
    let most = capacity.tenants_per_process();
    let can_keep_apart = if capacity.keys == 0 && capacity.share_without_keys { 12 } else { capacity.keys };
    same("tenants of a process", &most, &can_keep_apart.min(capacity.cages).clamp(1, 12))?;
    Ok(most)
}

/// Each suspect is in one of two halves, whose sizes differ by at most one. A half of one suspect
/// has no `Case`, because that suspect lives alone.
fn halves(suspects: usize) -> Result<(), String> {
    let halves = bisect(suspects, 7);
    let of = |half| halves.iter().filter(|case| **case == Some(Case { death: 7, half })).count();
    let sizes = [suspects.div_ceil(2), suspects / 2].map(|size| if size > 1 { size } else { 0 });
    same("the halves", &(halves.len(), [of(0), of(1)]), &(suspects, sizes))
}

/// The target `deaths`: a uid's deaths are forgiven one after the other.
pub(in crate::parsers) fn deaths(u: &mut Unstructured<'_>) -> Result<(), String> {
    let mut rules = Rules::default().deaths;
    (rules.budget, rules.regain_secs) = (u32::try_from(u.below(6)).unwrap_or(0), 1 + u.below(120) as u64);
    let (mut deaths, mut now, mut forgiven_at) = (Deaths::default(), START, Vec::<Time>::new());
    while !u.is_empty() {
        now = now.plus(u.below(200_000) as u64);
        let level = *u.pick(&[Level::Shared, Level::Shared, Level::Solo, Level::Sealed]);
        deaths.blamed(level, &rules, now);
        forgiven_at.retain(|at| *at > now);
        let next = forgiven_at.last().copied().unwrap_or(now).plus(rules.regain_secs * 1000);
        // At most five times the budget is remembered.
        let most = now.plus(rules.regain_secs * 1000 * u64::from(rules.budget) * 5);
        if level == Level::Shared && next <= most {
            forgiven_at.push(next);
        } else if level == Level::Shared {
            forgiven_at.retain(|at| *at < most);
            if rules.budget > 0 {
                forgiven_at.push(most);
            }
        }
        let clear = forgiven_at.last().copied().unwrap_or(now);
        same("clear", &(deaths.is_clear(now), deaths.clear_in_ms(now)), &(clear <= now, clear.since(now)))?;
        let count = clear.since(now).div_ceil(rules.regain_secs * 1000);
        same("the count", &deaths.count(&rules, now), &count)?;
        same("used up", &deaths.is_used_up(&rules, now), &(rules.budget > 0 && count >= rules.budget.into()))?;
    }
    Ok(())
}
