//! What is waiting to be written to disk: bounded, shared by uid, and never a reason for the daemon
//! to block.
//!
//! A disk may be slower than the clients and tenants that cause lines. Standings replace each
//! other, so there is at most one for each tenant. A line of the audit log is one of three kinds:
//!
//! | kind | charged to | if its uid has no room |
//! |---|---|---|
//! | a decision (order, policy) | the client that decided | refused, without effect |
//! | evidence of a tenant | the uid that ran the tenant | kept; the uid's next run is refused |
//! | the daemon's own | not charged | kept |
//!
//! So no line is lost because of another uid. A uid exceeds its part by [`MOST_OVER`] only when the
//! disk has stopped; its evidence beyond that is only counted, by kind, and the count is a line of
//! the log itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_cordon::Standing;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use crate::share::{Exhausted, Held, Parts, Supply};
use crate::state::entry::Entry;
use crate::tenants::policy::TenantName;

/// The most bytes of waiting lines, while no uid exceeds its part.
const MOST_WAITING: u64 = 8 << 20;
/// How much a uid's evidence may exceed its part.
const MOST_OVER: u64 = 4 << 20;
/// What a line takes beside its text.
const LINE_BYTES: u64 = 256;
/// What the line of a move contains beside the reason of the order: score and signals.
const MOVE_BYTES: u64 = 2 << 10;
/// A run starts only if its uid has room for the evidence that the run may leave.
const RUN_BYTES: u64 = 16 << 10;
/// How often a failed write is retried.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// After this time a client is answered that its decision is not yet on disk.
const PATIENCE: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A line with reserved room.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) json: Box<RawValue>,
    _held: Option<Held>,
    written: Option<oneshot::Sender<()>>,
}

impl Line {
    /// Reports that the line is on disk to the client that waits for it, if one does.
    pub(crate) fn confirm(self) {
        if let Some(written) = self.written {
            let _ = written.send(());
        }
    }

    /// Fails the client's wait; the line itself is retried.
    pub(crate) fn delay(&mut self) {
        self.written = None;
    }
}

/// Why a decision was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("nothing was changed, because the audit log has no room for it: {0}")]
    Room(#[from] Exhausted),
    #[error(
        "nothing was changed, because uid {uid} has used up its part of the audit log for now: its orders and policies may \
         take {per_day} bytes a day (half of audit.keep_mb), and at most {burst} bytes at once"
    )]
    Allowance { uid: u32, per_day: u64, burst: u64 },
}

/// A decision is in force, but its line is not on disk.
#[derive(Debug, thiserror::Error)]
#[error(
    "the change is in force, but it is not in the audit log yet, and may not survive a restart: the disk is full or \
     too slow; see the daemon's log"
)]
pub(crate) struct NotWritten;

/// The line of a decision on its way to disk.
#[derive(Debug)]
#[must_use = "a decision is answered once it is on the disk"]
pub(crate) struct Written(oneshot::Receiver<()>);

impl Written {
    pub(crate) async fn wait(self) -> Result<(), NotWritten> {
        tokio::time::timeout(PATIENCE, self.0).await.ok().and_then(Result::ok).ok_or(NotWritten)
    }
}

/// How much of the log each uid may fill with decisions, which can be refused. The log deletes its
/// oldest lines, so a uid that fills the log deletes what others left.
#[derive(Debug)]
struct Allowance {
    per_day: u64,
    burst: u64,
    /// What each uid had left, and when that was computed.
    left: BTreeMap<u32, (u64, Instant)>,
}

impl Allowance {
    fn new(keep_bytes: u64) -> Self {
        Self { per_day: keep_bytes / 2, burst: keep_bytes / 16, left: BTreeMap::new() }
    }

    fn take(&mut self, uid: u32, bytes: u64, now: Instant) -> Result<(), Refused> {
        let (per_day, burst) = (self.per_day, self.burst);
        let (left, since) = self.left.entry(uid).or_insert((burst, now));
        let passed = now.saturating_duration_since(*since).as_millis();
        let more = passed.saturating_mul(per_day.into()) / DAY.as_millis();
        if more > 0 {
            (*left, *since) = (left.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)).min(burst), now);
        }
        *left = left.checked_sub(bytes).ok_or(Refused::Allowance { uid, per_day, burst })?;
        Ok(())
    }
}

/// What is written at one time.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) standings: BTreeMap<TenantName, Option<Standing>>,
    pub(crate) lines: VecDeque<Line>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.standings.is_empty() && self.lines.is_empty()
    }
}

#[derive(Debug, Default)]
struct Waiting {
    batch: Batch,
    /// Lines that were dropped since the last batch was taken, by kind.
    lost: BTreeMap<String, u64>,
    /// Lines that were dropped since the start.
    lost_ever: u64,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Notes {
    waiting: Mutex<Waiting>,
    woken: Condvar,
    room: Supply,
    /// What is kept beyond a uid's part. It reduces no other uid's part.
    over: Supply,
    allowance: Mutex<Allowance>,
    parts: Parts,
}

impl Notes {
    pub(crate) fn new(parts: Parts, keep_bytes: u64) -> Self {
        let room = "the bytes of lines that wait for the audit log";
        Self {
            waiting: Mutex::default(),
            woken: Condvar::new(),
            // Root has a part of the room like any uid: root's orders must not cause the orders of
            // others to be refused.
            room: Supply::new(room, MOST_WAITING, parts.clone().without_owner()),
            over: Supply::new(room, u64::MAX, Parts::halves()),
            allowance: Mutex::new(Allowance::new(keep_bytes)),
            parts,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records how a tenant stands from now on; `None` if there is nothing to remember. Returns
    /// false once the writer has ended.
    pub(crate) fn stands(&self, tenant: TenantName, standing: Option<Standing>) -> bool {
        let mut waiting = self.lock();
        waiting.batch.standings.insert(tenant, standing);
        self.woken.notify_one();
        !waiting.closed
    }

    /// Reserves room for what a client decides, before it takes effect.
    pub(crate) fn room(&self, uid: u32, entry: &Entry, now: Instant) -> Result<Line, Refused> {
        let json = text_of(entry);
        // If the tenant moves because of the decision, the move is another line, which repeats the
        // reason.
        let bytes = 2 * bytes_of(&json);
        let held = self.room.take(uid, bytes + MOVE_BYTES)?;
        if !self.parts.has_all(uid) {
            self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(uid, bytes, now)?;
        }
        Ok(Line { json, _held: Some(held), written: None })
    }

    /// Queues the line of a decision, which takes effect now.
    pub(crate) fn decided(&self, mut line: Line) -> (Written, bool) {
        let (send, receive) = oneshot::channel();
        line.written = Some(send);
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.batch.lines.push_back(line);
        }
        self.woken.notify_one();
        (Written(receive), !waiting.closed)
    }

    /// Records evidence of what the uid ran, or of the daemon itself, which cannot be refused.
    /// Returns false once the writer has ended.
    pub(crate) fn seen(&self, uid: Option<u32>, entry: &Entry) -> bool {
        let json = text_of(entry);
        let bytes = bytes_of(&json);
        let held = match uid {
            None => Ok(None),
            Some(uid) => self.room.take(uid, bytes).map(Some).or_else(|exhausted| {
                let fits = self.over.held_by(uid).saturating_add(bytes) <= MOST_OVER;
                if fits { Ok(Some(self.over.keep(uid, bytes))) } else { Err(exhausted) }
            }),
        };
        let mut waiting = self.lock();
        match held {
            Ok(held) if !waiting.closed => waiting.batch.lines.push_back(Line { json, _held: held, written: None }),
            _ => {
                *waiting.lost.entry(entry.kind()).or_default() += 1;
                waiting.lost_ever += 1;
            }
        }
        self.woken.notify_one();
        !waiting.closed
    }

    /// Checks that there is room for the evidence that a run of the uid may leave.
    pub(crate) fn may_run(&self, uid: u32) -> Result<(), Exhausted> {
        self.room.take(uid, RUN_BYTES).map(drop)
    }

    /// Waits for something to write. If something `is_left` that could not be written, waits only
    /// for a moment. Returns `None` once the notes are closed and nothing is left.
    pub(crate) fn take(&self, is_left: bool) -> Option<Batch> {
        let idle = |waiting: &mut Waiting| waiting.batch.is_empty() && !waiting.closed;
        let mut waiting = if is_left {
            let woken = self.woken.wait_timeout_while(self.lock(), TRY_AGAIN_EVERY, idle);
            woken.unwrap_or_else(PoisonError::into_inner).0
        } else {
            self.woken.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner)
        };
        let (mut batch, ended) = (std::mem::take(&mut waiting.batch), waiting.closed);
        let kinds = std::mem::take(&mut waiting.lost);
        drop(waiting);
        if !kinds.is_empty() {
            tracing::error!(?kinds, "lines of the audit log were lost: the disk has stopped or is too slow");
            batch.lines.push_back(Line { json: text_of(&Entry::Lost { kinds }), _held: None, written: None });
        }
        (!ended || !batch.is_empty()).then_some(batch)
    }

    /// How many lines were dropped since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost_ever
    }

    /// Closes the queue: called when the daemon ends, and when the writer has ended. The writer
    /// still gets what is left.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.woken.notify_all();
    }
}

/// An entry as it is written. Every entry serialises.
fn text_of(entry: &Entry) -> Box<RawValue> {
    to_raw_value(entry).unwrap_or_default()
}

fn bytes_of(json: &RawValue) -> u64 {
    json.get().len() as u64 + LINE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Peer;

    fn notes() -> Notes {
        let peer = |uid| Peer { uid, tenants: Vec::new(), operate: true, share_percent: None };
        Notes::new(Parts::new(&[peer(7), peer(8)]), 1 << 40)
    }

    fn crashed(n: usize) -> Entry {
        Entry::Seen { count: 1, event: serde_json::json!({ "event": "crashed", "tenant": format!("t-{n}") }) }
    }

    fn order(by_uid: u32) -> Entry {
        Entry::Lifted { tenant: "t".into(), reason: "x".repeat(1000), by_uid }
    }

    /// As many decisions as there is room for.
    fn decide(notes: &Notes, uid: u32) -> usize {
        let now = Instant::now();
        let decided = (0..100_000).map_while(|_| Some(notes.decided(notes.room(uid, &order(uid), now).ok()?)));
        decided.count()
    }

    #[test]
    fn a_uid_that_decides_too_much_is_refused_and_displaces_nothing() {
        let notes = notes();
        let most = decide(&notes, 7);
        assert!((500..5000).contains(&most), "{most}");
        assert!(notes.room(7, &order(7), Instant::now()).is_err());
        // There is still room for decisions of another uid and of root, for evidence of tenants,
        // and for the daemon's own lines.
        let (others, roots) = (decide(&notes, 8), decide(&notes, 0));
        assert!(others > most / 3 && roots > most / 6, "{most} {others} {roots}");
        for n in 0..1000 {
            assert!(
                notes.seen(Some(7), &crashed(n)) && notes.seen(Some(8), &crashed(n)) && notes.seen(None, &crashed(n))
            );
        }
        assert_eq!(notes.lost(), 0);
        assert_eq!(notes.take(false).unwrap().lines.len(), most + others + roots + 3000);
        assert!(decide(&notes, 7) > most / 2, "there is room again");
    }

    #[test]
    fn evidence_is_kept_beyond_its_uids_part_but_that_uid_can_run_nothing_more() {
        let notes = notes();
        let fits = (0..100_000).take_while(|n| notes.seen(Some(7), &crashed(*n)) && notes.may_run(7).is_ok()).count();
        assert!(notes.may_run(7).is_err() && notes.may_run(8).is_ok() && notes.may_run(0).is_ok());
        // The uid's runs in progress may still leave evidence.
        (0..1000).for_each(|n| assert!(notes.seen(Some(7), &crashed(n))));
        assert_eq!(notes.lost(), 0);
        assert_eq!(notes.take(false).unwrap().lines.len(), fits + 1001);
        assert!(notes.may_run(7).is_ok());
    }

    #[test]
    fn lines_dropped_because_the_disk_has_stopped_are_counted_by_kind_in_the_log() {
        let notes = notes();
        (0..100_000).for_each(|n| assert!(notes.seen(Some(7), &crashed(n))));
        let lost = notes.lost();
        assert!(lost > 50_000 && notes.seen(Some(8), &crashed(0)) && notes.lost() == lost);
        let batch = notes.take(false).unwrap();
        let last: Entry = serde_json::from_str(batch.lines.back().unwrap().json.get()).unwrap();
        let Entry::Lost { kinds } = last else { panic!("{last:?}") };
        assert_eq!(kinds, BTreeMap::from([("crashed".to_owned(), lost)]));
    }

    #[test]
    fn decisions_fill_no_more_than_their_part_of_the_log() {
        let now = Instant::now();
        let mut allowance = Allowance::new(256 << 20);
        assert!(allowance.take(7, 16 << 20, now).is_ok() && allowance.take(8, 16 << 20, now).is_ok());
        assert!(allowance.take(7, 1, now).is_err());
        let taken = (0..24 * 60).map(|minute| now + Duration::from_secs(60 * minute));
        let taken = taken.filter(|at| allowance.take(7, 128 << 10, *at).is_ok()).count() as u64 * (128 << 10);
        assert!(((120 << 20)..=(128 << 20)).contains(&taken), "{taken} in a day");
        // Root has no allowance to exceed.
        let notes = Notes::new(Parts::new(&[]), 0);
        assert!(notes.room(0, &order(0), now).is_ok());
        assert!(matches!(notes.room(7, &order(7), now), Err(Refused::Allowance { .. })));
    }

    #[test]
    fn only_a_tenants_last_standing_is_waiting() {
        let notes = notes();
        let name: TenantName = "t".parse().unwrap();
        for _ in 0..100_000 {
            notes.stands(name.clone(), None);
        }
        assert_eq!(notes.take(false).unwrap().standings.len(), 1);
    }

    #[tokio::test]
    async fn closed_notes_hand_over_what_is_left_and_report_that_the_writer_has_ended() {
        let notes = notes();
        let line = || notes.room(0, &order(0), Instant::now()).unwrap();
        let (first, _) = notes.decided(line());
        notes.close();
        let mut batch = notes.take(false).unwrap();
        batch.lines.pop_front().unwrap().confirm();
        first.wait().await.unwrap();
        let (second, open) = notes.decided(line());
        assert!(notes.take(false).is_none() && !open && second.wait().await.is_err());
    }
}
