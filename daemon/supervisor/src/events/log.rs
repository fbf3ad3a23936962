//! Where events are emitted, kept and read.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::class::Class;
use super::group::{Group, Room};
use super::kind::{Event, EventKind};
use super::ring::Ring;
use super::tally::{Counted, Tally};
use crate::clock;
use crate::config::Peer;
use crate::logging;
use crate::share::{Held, Parts};

/// How many events are kept, by class.
const KEPT: [usize; 3] = [1024, 1024, 512];
/// How often counted events are reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How many events of one kind of evidence from one source are emitted individually in a second.
const EVIDENCE_AT_ONCE: u64 = 4;
/// How many different pieces of evidence are emitted in a second.
const MOST_EVIDENCE: u64 = 1024;
const MOST_COMMON: u64 = 64;
/// How many course events are logged in a second; further ones are only counted.
const COURSE_LINES: u64 = 100;

#[derive(Debug)]
struct Known {
    seq: u64,
    rings: [Ring; 3],
    evidence: Tally,
    common: Tally,
    /// The charges for the log lines of course events in this second, and how many lines were left
    /// out.
    course_lines: Vec<Option<Held>>,
    course_dropped: u64,
    course_room: Room,
}

#[derive(Debug)]
pub(crate) struct Events {
    known: Mutex<Known>,
    /// The number of the last event.
    last: watch::Sender<u64>,
    /// Notified by every event. [`Events::count`] then waits a second, and emits what was counted.
    counting: Notify,
    peers: Vec<Peer>,
    audit: Option<Arc<dyn Audit>>,
}

/// Where evidence is recorded.
pub(crate) trait Audit: fmt::Debug + Send + Sync {
    /// Records that an event happened `count` times. `uid` is the uid that ran or ordered what
    /// caused the event; `None` if the daemon itself caused it.
    fn write_down(&self, uid: Option<u32>, count: u64, event: serde_json::Value);
}

/// How far a reader has read.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cursor {
    pub(crate) seq: u64,
    /// For each class, the number within the class of the last event that was read.
    numbers: [u64; 3],
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Read {
    Event(Event),
    /// This many events of a class were dropped.
    Missed(Class, u64),
}

impl Events {
    pub(crate) fn new(peers: Vec<Peer>, audit: Option<Arc<dyn Audit>>) -> Self {
        let parts = Parts::new(&peers).without_owner();
        let known = Known {
            seq: 0,
            rings: KEPT.map(Ring::new),
            // No uid may use up this capacity, whatever part a rule grants.
            evidence: Tally::new(EVIDENCE_AT_ONCE, Room::new("different evidence", MOST_EVIDENCE, Parts::halves())),
            common: Tally::new(0, Room::new("different events", MOST_COMMON, parts.clone())),
            course_lines: Vec::new(),
            course_dropped: 0,
            course_room: Room::new("lines of the log", COURSE_LINES, parts),
        };
        let (known, last, counting) = (Mutex::new(known), watch::Sender::new(0), Notify::new());
        Self { known, last, counting, peers, audit }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, kind: &EventKind) -> Group {
        match kind.uid() {
            None => Group::Daemon,
            Some(uid) if self.peers.iter().any(|peer| peer.uid == uid) => Group::Uid(uid),
            Some(uid) if uid == 0 || uid == nix::unistd::geteuid().as_raw() => Group::Owner,
            Some(_) => Group::Strangers,
        }
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        // Followers stop at this event, so the counted ones must come before it.
        if matches!(kind, EventKind::Draining) {
            self.emit_counted();
        }
        let group = self.group(&kind);
        let mut known = self.lock();
        let class = kind.class();
        let counted = match class {
            Class::Course => Counted::Now(kind),
            Class::Evidence => known.evidence.count(kind, group),
            Class::Common => known.common.count(kind, group),
        };
        match counted {
            Counted::Now(kind) => self.push(&mut known, kind, 1, group),
            // The audit log gets every piece of evidence.
            Counted::NoPlace(kind) if class == Class::Evidence => self.write_down(&kind, 1),
            Counted::Later | Counted::NoPlace(_) => {}
        }
        drop(known);
        self.counting.notify_one();
    }

    fn push(&self, known: &mut Known, kind: EventKind, count: u64, group: Group) {
        let class = kind.class();
        known.seq += 1;
        let event = Event { seq: known.seq, unix_ms: clock::unix_ms(), count, kind };
        let [evidence, course, common] = &mut known.rings;
        let ring = match class {
            Class::Evidence => evidence,
            Class::Course => course,
            Class::Common => common,
        };
        ring.push(event.clone(), group);
        self.last.send_replace(event.seq);
        let json = serde_json::to_string(&event).unwrap_or_default();
        match class {
            Class::Evidence => {
                tracing::info!(target: logging::EVIDENCE, event = %json, "event");
                self.write_down(&event.kind, event.count);
            }
            Class::Course => match known.course_room.take(group) {
                Ok(line) => {
                    known.course_lines.push(line);
                    tracing::info!(event = %json, "event");
                }
                Err(_) => known.course_dropped += 1,
            },
            // Such events are few: one a second for each kind and source.
            Class::Common => tracing::info!(event = %json, "event"),
        }
    }

    /// Writes an event to the audit log, if events of its kind are recorded there.
    fn write_down(&self, kind: &EventKind, count: u64) {
        if let Some(audit) = self.audit.as_ref().filter(|_| kind.is_audited()) {
            audit.write_down(kind.uid(), count, serde_json::to_value(kind).unwrap_or_default());
        }
    }

    /// Emits what was counted in the second that is over.
    pub(crate) fn emit_counted(&self) {
        let mut known = self.lock();
        for (class, (counted, others)) in
            [(Class::Evidence, known.evidence.take()), (Class::Common, known.common.take())]
        {
            for (kind, count) in counted {
                let group = self.group(&kind);
                self.push(&mut known, kind, count, group);
            }
            if others > 0 {
                self.push(&mut known, EventKind::Others { class }, others, Group::Daemon);
            }
        }
        known.course_lines.clear();
        let dropped = std::mem::take(&mut known.course_dropped);
        drop(known);
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "events of this second are not in the log, because there were too many; see /v1/events"
            );
        }
    }

    /// Emits once a second what was counted, for as long as the daemon lives.
    pub(crate) async fn count(&self) {
        loop {
            self.counting.notified().await;
            tokio::time::sleep(REPORT_EVERY).await;
            self.emit_counted();
        }
    }

    /// The next event for a reader, in the order of emission.
    pub(crate) fn next(&self, Cursor { seq, numbers }: &mut Cursor) -> Option<Read> {
        let known = self.lock();
        let rings = Class::ALL.into_iter().zip(&known.rings).zip(numbers);
        let next = rings.filter_map(|((class, ring), number)| Some((class, number, ring.after(*seq)?)));
        let (class, number, kept) = next.min_by_key(|(_, _, kept)| kept.event.seq)?;
        let missed = kept.number - 1 - *number;
        if missed > 0 {
            *number += missed;
            return Some(Read::Missed(class, missed));
        }
        *number = kept.number;
        *seq = kept.event.seq;
        Some(Read::Event(kept.event.clone()))
    }

    /// The number of the last event, with a notification of every new one.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::kind::Source;

    fn events() -> Events {
        let peer = |uid, tenants: &str| Peer {
            uid,
            tenants: vec![tenants.parse().unwrap()],
            operate: false,
            share_percent: None,
        };
        Events::new(vec![peer(7, "bad-*"), peer(8, "good-*")], None)
    }

    fn denied(uid: u32) -> EventKind {
        EventKind::Denied { uid, what: "operate the daemon".to_owned() }
    }

    fn crashed(tenant: &str) -> EventKind {
        crashed_of(if tenant.starts_with("good") { 8 } else { 7 }, tenant)
    }

    fn crashed_of(uid: u32, tenant: &str) -> EventKind {
        let (tenant, what, pc) = (Some(tenant.to_owned()), "it crashed".to_owned(), "0x0".to_owned());
        EventKind::Crashed { worker: 1, pid: 1, uid, tenant, what, pc, room_mb: 1, blame: "inCompany" }
    }

    fn all(events: &Events) -> Vec<Event> {
        let of = |read| match read {
            Read::Event(event) => Some(event),
            Read::Missed(..) => None,
        };
        read(events, &mut Cursor::default(), usize::MAX).into_iter().filter_map(of).collect()
    }

    fn read(events: &Events, cursor: &mut Cursor, most: usize) -> Vec<Read> {
        std::iter::from_fn(|| events.next(cursor)).take(most).collect()
    }

    #[test]
    fn a_reader_gets_old_and_new_events_without_gap_or_repeat() {
        let (events, mut cursor) = (events(), Cursor::default());
        events.emit(EventKind::Draining);
        assert_eq!(read(&events, &mut cursor, 9).len(), 1);
        events.emit(EventKind::Draining);
        assert!(matches!(read(&events, &mut cursor, 9).as_slice(), [Read::Event(Event { seq: 2, .. })]));
        assert!(read(&events, &mut cursor, 9).is_empty());
    }

    #[test]
    fn a_flood_of_one_class_displaces_no_other_and_numbers_have_no_gaps() {
        let events = events();
        events.emit(crashed("good-1"));
        events.emit(EventKind::Started { version: "1" });
        for n in 0..5000 {
            events.emit(EventKind::WorkerRetired { worker: n, pid: 1, uid: 7 });
            events.emit(denied(5003));
            if n % 100 == 0 {
                events.emit_counted();
            }
        }
        events.emit_counted();
        let all = all(&events);
        assert_eq!(all.iter().filter(|event| matches!(event.kind, EventKind::Crashed { .. })).count(), 1);
        let denials: Vec<_> = all.iter().filter(|event| matches!(event.kind, EventKind::Denied { .. })).collect();
        assert_eq!(denials.iter().map(|event| event.count).sum::<u64>(), 5000);
        let mut cursor = Cursor::default();
        let mut seen = 0;
        loop {
            let read = read(&events, &mut cursor, 100);
            if read.is_empty() {
                break;
            }
            seen += read.into_iter().map(|read| if let Read::Missed(_, count) = read { count } else { 1 }).sum::<u64>();
        }
        assert_eq!(Some(seen), all.last().map(|event| event.seq));
    }

    #[test]
    fn a_tenant_that_floods_evidence_displaces_only_its_own() {
        let events = events();
        events.emit(crashed("good-1"));
        events.emit(EventKind::PolicyChanged { tenant: "x".into(), by_uid: 0 });
        for n in 0..5000 {
            events.emit(crashed(&format!("bad-{n}")));
            if n % 100 == 0 {
                events.emit_counted();
            }
        }
        let all = all(&events);
        assert_eq!(all.len(), KEPT[0]);
        let is_good = |event: &&Event| event.kind.source() == Source::Tenant("good-1".into());
        assert_eq!(all.iter().filter(is_good).count(), 1);
        assert!(all.iter().any(|event| matches!(event.kind, EventKind::PolicyChanged { .. })));
    }

    #[test]
    fn a_uid_that_floods_course_events_leaves_lines_and_room_for_others() {
        let events = events();
        let retired = |uid| EventKind::WorkerRetired { worker: 1, pid: 1, uid };
        events.emit(retired(8));
        for uid in [7, 0, 5003].into_iter().cycle().take(9000) {
            events.emit(retired(uid));
        }
        {
            let known = events.lock();
            let lines = |group| known.course_room.take(group).is_ok();
            assert!(lines(Group::Uid(8)) && lines(Group::Daemon) && known.course_dropped > 8000);
            assert!(!lines(Group::Uid(7)) && !lines(Group::Owner) && !lines(Group::Strangers));
        }
        assert!(all(&events).iter().any(|event| matches!(event.kind, EventKind::WorkerRetired { uid: 8, .. })));
        events.emit_counted();
        assert!(events.lock().course_room.take(Group::Uid(7)).is_ok(), "a new second");
    }

    #[test]
    fn all_uids_without_a_rule_count_as_one() {
        let events = events();
        events.emit(EventKind::RunEnded { tenant: "good-1".into(), uid: 8, run: "run_1".into(), outcome: "violation" });
        for uid in 10_000..12_000 {
            events.emit(denied(uid));
            if uid % 100 == 0 {
                events.emit(EventKind::RunEnded {
                    tenant: "good-2".into(),
                    uid: 8,
                    run: "run_2".into(),
                    outcome: "violation",
                });
                events.emit_counted();
            }
        }
        let ended = |tenant: &str| {
            let of = |event: &&Event| event.kind.source() == Source::Tenant(tenant.into());
            all(&events).iter().filter(of).count()
        };
        assert_eq!((ended("good-1"), ended("good-2")), (1, 20));
    }

    #[test]
    fn evidence_is_emitted_at_once_and_its_repetitions_with_a_count() {
        let events = events();
        for _ in 0..100 {
            events.emit(crashed("bad-1"));
        }
        assert_eq!(all(&events).len(), 4);
        events.emit_counted();
        assert_eq!(all(&events).iter().map(|event| event.count).sum::<u64>(), 100);
    }

    #[test]
    fn evidence_without_a_tenant_belongs_to_the_workers_uid_and_each_worker_has_its_own_event() {
        let events = events();
        events.emit(crashed("good-1"));
        for n in 0..5000 {
            let findings = vec!["a page without its key".to_owned()];
            events.emit(EventKind::Mistagged { worker: n, pid: 1, uid: 7, findings });
            if n % 100 == 0 {
                events.emit_counted();
            }
        }
        events.emit(EventKind::Mistagged { worker: 5000, pid: 1, uid: 8, findings: Vec::new() });
        let all = all(&events);
        let of = |source| all.iter().filter(|event| event.kind.source() == source).count();
        assert_eq!((of(Source::Uid(7)), of(Source::Uid(8)), of(Source::Tenant("good-1".into()))), (KEPT[0] - 2, 1, 1));
        assert!(all.iter().all(|event| event.count == 1), "no two workers are one event");
    }

    #[test]
    fn evidence_belongs_to_the_uid_that_ran_the_tenant() {
        let events = events();
        events.emit(crashed_of(8, "bad-1"));
        for n in 0..5000 {
            events.emit(crashed_of(7, &format!("bad-{n}")));
            if n % 100 == 0 {
                events.emit_counted();
            }
        }
        let all = all(&events);
        assert_eq!(all.iter().filter(|event| event.kind.uid() == Some(8)).count(), 1);
    }

    #[test]
    fn the_audit_log_has_all_different_evidence_of_a_second_however_much_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _) = crate::state::recorder::Recorder::open(
            &crate::files::Folder::make(dir.path()).unwrap(),
            256,
            Parts::halves(),
        )
        .unwrap();
        let recorder = Arc::new(recorder);
        let events = Events::new(events().peers, Some(recorder.clone()));
        let tenants: Vec<_> = (0..3000).map(|n| format!("bad-{n}")).collect();
        tenants.iter().for_each(|tenant| events.emit(crashed(tenant)));
        events.emit_counted();
        recorder.close();
        let log = std::fs::read_to_string(dir.path().join("audit/audit.jsonl")).unwrap();
        assert!(tenants.iter().all(|tenant| log.contains(&format!("\"{tenant}\""))) && recorder.lost() == 0);
        assert!(all(&events).iter().any(|event| matches!(event.kind, EventKind::Others { .. })));
    }
}
