//! The warden takes in observations of tenants, and has the pure engine decide. If a tenant must
//! move, the warden queues the tenant's standing, emits an event, queues the line for the audit
//! log, and asks for the move, in that order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enisle_cordon::place::bisect;
use enisle_cordon::{Because, Case, Deaths, Decision, Kind, Level, Order, Seen, Signal, Standing, decide};
use tokio::sync::mpsc;

use crate::clock;
use crate::config::Cordon;
use crate::events::{EventKind, Events};
use crate::state::entry::Entry;
use crate::state::notes::{Refused, Written};
use crate::state::recorder::Recorder;
use crate::tenants::tenant::Tenant;

/// The process in which something happened, for the event and the line of the audit log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) worker: u64,
    pub(crate) uid: u32,
}

#[derive(Debug)]
pub(crate) struct Warden {
    pub(crate) events: Arc<Events>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) cordon: Cordon,
    /// Whether V8 is older than the operator demands.
    outdated_engine: AtomicBool,
    /// The version of V8 of the last worker that started.
    engine: Mutex<Option<String>>,
    /// Tenants that may need to move.
    moves: mpsc::UnboundedSender<Arc<Tenant>>,
    deaths: AtomicU64,
    /// The deaths held against each uid; an entry is removed once all of its deaths are forgiven.
    blamed: Mutex<BTreeMap<u32, Deaths>>,
}

impl Warden {
    pub(crate) fn new(
        events: Arc<Events>,
        cordon: Cordon,
        recorder: Arc<Recorder>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Arc<Tenant>>) {
        let (moves, asked) = mpsc::unbounded_channel();
        let outdated_engine = AtomicBool::new(false);
        let (engine, deaths) = (Mutex::default(), AtomicU64::new(0));
        let blamed = Mutex::default();
        let warden = Self { events, cordon, recorder, outdated_engine, engine, moves, deaths, blamed };
        (Arc::new(warden), asked)
    }

    pub(crate) fn engine_is_outdated(&self) -> bool {
        self.outdated_engine.load(Ordering::Relaxed)
    }

    /// A worker has started, with that version of V8.
    pub(crate) fn note_engine(&self, v8: &str) {
        self.outdated_engine.store(self.cordon.is_outdated(v8), Ordering::Relaxed);
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(v8.to_owned());
    }

    /// The version of V8, once a worker has started.
    pub(crate) fn engine(&self) -> Option<String> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in observations of a tenant that a uid ran.
    pub(crate) fn saw(&self, tenant: &Arc<Tenant>, uid: u32, seen: &[Seen]) {
        let around = tenant.circumstances(self.engine_is_outdated());
        let decision = decide(&mut tenant.standing(), seen, around, &self.cordon.rules, clock::now());
        // Evidence is recorded now, the rest with the next round.
        if seen.iter().any(|seen| seen.signal.kind() == Kind::Evidence) {
            self.write_down(tenant);
        } else if !seen.is_empty() {
            tenant.unwritten.store(true, Ordering::Relaxed);
        }
        self.carry_out(tenant, uid, decision);
    }

    /// Applies the passing of time: scores have decayed, a suspicion may be over. Records what has
    /// changed.
    pub(crate) fn look_after(&self, tenant: &Arc<Tenant>) {
        if tenant.standing().is_blank() && !tenant.unwritten.load(Ordering::Relaxed) {
            return;
        }
        self.saw(tenant, tenant.charged_to(), &[]);
        if tenant.unwritten.swap(false, Ordering::Relaxed) {
            self.write_down(tenant);
        }
    }

    fn write_down(&self, tenant: &Tenant) {
        self.recorder.stands(&tenant.name, &tenant.standing(), tenant.has_policy.load(Ordering::Relaxed));
    }

    /// Takes an operator's order. It takes effect only if there is room to record it.
    pub(crate) fn command(
        &self,
        tenant: &Arc<Tenant>,
        level: Level,
        reason: String,
        by_uid: u32,
    ) -> Result<Written, Refused> {
        let name = tenant.name.to_string();
        let entry = Entry::Ordered { tenant: name.clone(), level, reason: reason.clone(), by_uid };
        let line = self.recorder.room(by_uid, &entry)?;
        let around = tenant.circumstances(self.engine_is_outdated());
        let order = Order { level, reason: reason.clone(), by_uid, at: clock::now() };
        let decision = tenant.standing().command(order, around, &self.cordon.rules, clock::now());
        // The standing is queued before its line. Otherwise a commit could contain the line's
        // number without the standing: after a crash the line would not be replayed, and the order
        // would be lost.
        self.write_down(tenant);
        let written = self.recorder.decided(line);
        self.events.emit(EventKind::Ordered { tenant: name, level, reason, by_uid });
        self.carry_out(tenant, by_uid, decision);
        Ok(written)
    }

    /// An operator forgives everything: order, score, suspicion. It takes effect only if there is
    /// room to record it.
    pub(crate) fn forgive(&self, tenant: &Arc<Tenant>, reason: String, by_uid: u32) -> Result<Written, Refused> {
        let name = tenant.name.to_string();
        let entry = Entry::Lifted { tenant: name.clone(), reason: reason.clone(), by_uid };
        let line = self.recorder.room(by_uid, &entry)?;
        let decision = tenant.standing().forgive(reason.clone(), by_uid, clock::now());
        tenant.clear_suspicion();
        self.write_down(tenant);
        let written = self.recorder.decided(line);
        self.events.emit(EventKind::Lifted { tenant: name, reason, by_uid });
        self.carry_out(tenant, by_uid, decision);
        self.ask_for_move(tenant);
        Ok(written)
    }

    /// Records a decision, emits its event and asks for the move. `uid` is the uid that ran the
    /// tenant, or gave the order.
    fn carry_out(&self, tenant: &Arc<Tenant>, uid: u32, decision: Decision) {
        let (from, to, reasons) = match decision {
            Decision::Stay => return,
            Decision::Move { from, to, reasons } => (from, to, reasons),
            Decision::Expel { from, reasons } => (from, Level::Expelled, reasons),
        };
        self.write_down(tenant);
        let name = tenant.name.to_string();
        self.events.emit(EventKind::Cordoned { tenant: name.clone(), uid, from, to, reasons: reasons.clone() });
        self.recorder.seen(Some(uid), &Entry::Moved { tenant: name, from, to, reasons });
        self.ask_for_move(tenant);
    }

    /// Has the tenant moved, if it does not live where it must.
    pub(crate) fn ask_for_move(&self, tenant: &Arc<Tenant>) {
        let _ = self.moves.send(Arc::clone(tenant));
    }

    /// A uid's process died, and one of its tenants is blamed, with or without certainty. If the
    /// signal is evidence, the other tenants of the process get a few points.
    pub(crate) fn saw_death(&self, culprit: &Arc<Tenant>, uid: u32, seen: Seen, others: &[Arc<Tenant>]) {
        self.hold_against(uid, culprit.standing().level());
        self.saw(culprit, uid, &[seen]);
        if seen.signal.kind() == Kind::Evidence {
            for other in others {
                self.saw(other, uid, &[Seen::certain(Signal::CoTenant)]);
            }
        }
    }

    fn blamed(&self) -> MutexGuard<'_, BTreeMap<u32, Deaths>> {
        self.blamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges the uid for a death that is blamed on one of its tenants, which lived at that level
    /// until then.
    fn hold_against(&self, uid: u32, level: Level) {
        let (rules, now) = (&self.cordon.rules.deaths, clock::monotonic());
        let mut blamed = self.blamed();
        blamed.retain(|_, deaths| !deaths.is_clear(now));
        let deaths = blamed.entry(uid).or_default();
        let before = deaths.is_used_up(rules, now);
        deaths.blamed(level, rules, now);
        if !before && deaths.is_used_up(rules, now) {
            let (count, clear_in_ms) = (deaths.count(rules, now), deaths.clear_in_ms(now));
            self.events.emit(EventKind::BudgetUsedUp { uid, deaths: count, clear_in_ms });
        }
    }

    /// Whether the uid's budget of deaths is used up, so that its tenants' new homes are on
    /// probation.
    pub(crate) fn has_used_up(&self, uid: u32) -> bool {
        self.blamed().get(&uid).is_some_and(|deaths| deaths.is_used_up(&self.cordon.rules.deaths, clock::monotonic()))
    }

    /// Whether no death is held against that uid.
    pub(crate) fn has_forgiven(&self, uid: u32) -> bool {
        self.blamed().get(&uid).is_none_or(|deaths| deaths.is_clear(clock::monotonic()))
    }

    /// Every uid with the deaths held against it.
    pub(crate) fn held_against(&self) -> Vec<(u32, Deaths)> {
        let (now, blamed) = (clock::monotonic(), self.blamed());
        blamed.iter().filter(|(_, deaths)| !deaths.is_clear(now)).map(|(uid, deaths)| (*uid, *deaths)).collect()
    }

    /// A process died, and its death is unattributed: its tenants are bisected, and each gets a few
    /// points. If the process broke the protocol, or its pages did not carry their keys, an
    /// attacker controlled the whole process; then each tenant is alone for a while.
    pub(crate) fn saw_unexplained_death(&self, tenants: &[Arc<Tenant>], signal: Signal, scene: Scene) {
        if matches!(signal, Signal::Protocol | Signal::ClosedKey) {
            let alone: Vec<_> = tenants.iter().map(|tenant| (Arc::clone(tenant), None)).collect();
            self.keep_apart(&alone, Because::UnexplainedDeath, scene);
        } else {
            self.bisect(tenants, Because::UnexplainedDeath, scene);
        }
        for tenant in tenants {
            self.saw(tenant, scene.uid, &[Seen::certain(Signal::Unattributed)]);
        }
    }

    /// Bisects suspects: one of them is responsible, so each half is kept apart from all other
    /// tenants for a while.
    pub(crate) fn bisect(&self, tenants: &[Arc<Tenant>], because: Because, scene: Scene) {
        let death = self.deaths.fetch_add(1, Ordering::Relaxed);
        let halves = tenants.iter().cloned().zip(bisect(tenants.len(), death)).collect::<Vec<_>>();
        self.keep_apart(&halves, because, scene);
    }

    /// Keeps tenants apart for a while, each alone or with those of its case. The tenants'
    /// standings do not change: it is not known that they did anything.
    pub(crate) fn keep_apart(&self, tenants: &[(Arc<Tenant>, Option<Case>)], because: Because, scene: Scene) {
        if tenants.is_empty() {
            return;
        }
        let for_secs = self.cordon.rules.unexplained_secs;
        let (mut alone, mut halves) = (Vec::new(), [const { Vec::new() }; 2]);
        for (tenant, case) in tenants {
            tenant.suspect(*case, for_secs);
            let name = tenant.name.to_string();
            let group = case.and_then(|case| halves.get_mut(usize::from(case.half)));
            group.unwrap_or(&mut alone).push(name.clone());
            self.events.emit(EventKind::KeptApart {
                tenant: name,
                uid: scene.uid,
                alone: case.is_none(),
                because,
                for_secs,
            });
            self.ask_for_move(tenant);
        }
        let halves: Vec<_> = halves.into_iter().filter(|half| !half.is_empty()).collect();
        let apart = Entry::Apart { worker: scene.worker, because, alone, halves, for_secs };
        self.recorder.seen(Some(scene.uid), &apart);
    }

    /// The standing of a tenant that was never seen before.
    pub(crate) fn newcomer() -> Standing {
        Standing::new(clock::now())
    }
}
