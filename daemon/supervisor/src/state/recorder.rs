//! What outlives the daemon: how every tenant stands, and the audit log of every decision.
//!
//! One thread writes both, so that the daemon never waits for the disk. A client that decides
//! something is answered once the decision is written. Standings are in an embedded database with
//! atomic commits; the log is a chain of lines (`enisle_cordon::audit`). Failed writes are retried.
//! A file that is damaged at the start is reported and quarantined, never overwritten.
//!
//! This file is long because its tests damage each file that is kept, and share their helpers.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use enisle_cordon::Standing;
use enisle_cordon::audit::Head;
use nix::fcntl::{Flock, FlockArg};

use crate::events::Audit;
use crate::files::{Folder, How};
use crate::share::{Exhausted, Parts};
use crate::state::audit_log::{self, Log};
use crate::state::entry::Entry;
use crate::state::kept::{Kept, RecordError};
use crate::state::notes::{Batch, Line, Notes, Refused, Written};
use crate::state::replay::replay;
use crate::state::standings::{Commit, Examine, Standings, examine_apart};
use crate::tenants::policy::TenantName;

/// The names of the audit log's folder and of the lock file, in the state folder.
pub(crate) const FOLDER: &str = "audit";
pub(crate) const LOCK: &str = "lock";

/// The handle to the thread that writes.
#[derive(Debug)]
pub(crate) struct Recorder {
    notes: Arc<Notes>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    head: Arc<Mutex<Head>>,
    folder: PathBuf,
    /// Keeps other daemons out of the state folder.
    _lock: Flock<File>,
}

impl Recorder {
    /// Reads what was kept, and starts the writer.
    pub(crate) fn open(state: &Folder, keep_mb: u64, parts: Parts) -> Result<(Self, Kept), RecordError> {
        Self::open_keeping(state, keep_mb << 20, parts, examine_apart)
    }

    pub(crate) fn open_keeping(
        state: &Folder,
        keep_bytes: u64,
        parts: Parts,
        examine: Examine,
    ) -> Result<(Self, Kept), RecordError> {
        let lock = lock(state)?;
        let path = state.path_of(FOLDER);
        let failed = |error| RecordError::Folder(path.clone(), error);
        let folder = state.make_below(FOLDER).map_err(failed)?;
        audit_log::check(&folder).map_err(failed)?;
        let mut kept = Kept::default();
        let mut standings = Standings::open(state, examine, &mut kept)?;
        let known = kept.head.take();
        let (fresh, after) = (known.is_none(), known.as_ref().map_or(0, |known| known.seq));
        let complaints = kept.broken.len();
        let mut log = Log::open(folder, known, keep_bytes, &mut kept.broken).map_err(failed)?;
        if fresh && log.head.seq > 0 && !kept.lost {
            kept.broken.push("the database of standings is gone; tenants stand as the audit log says".to_owned());
            kept.lost = true;
        }
        // A broken log may have lines after the line from which it continues.
        let is_behind = after < log.head.seq || kept.broken.len() > complaints;
        let replayed = match is_behind || kept.lost {
            true => replay(&log.folder, after, &mut kept).map_err(failed)?,
            false => BTreeSet::new(),
        };
        if !replayed.is_empty() && !kept.lost {
            tracing::warn!(
                after,
                up_to = log.head.seq,
                tenants = replayed.len(),
                "the daemon ended before the last lines of the audit log were in the database of standings; these tenants stand as the log says"
            );
        }
        let head = Arc::new(Mutex::new(log.head.clone()));
        let notes = Arc::new(Notes::new(parts, keep_bytes));
        let (shown, taken) = (Arc::clone(&head), CloseOnDrop(Arc::clone(&notes)));
        let writer = move || {
            let mut left = Batch::default();
            while let Some(batch) = taken.0.take(!left.is_empty()) {
                left.standings.extend(batch.standings);
                left.lines.extend(batch.lines);
                write(&mut standings, &mut log, &mut left, &shown);
            }
            if !left.is_empty() {
                standings.hurry();
                write(&mut standings, &mut log, &mut left, &shown);
            }
            if !left.is_empty() {
                let (lines, tenants) = (left.lines.len(), left.standings.len());
                tracing::error!(lines, tenants, "the daemon ends, but could not write everything to disk");
            }
        };
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(writer);
        let thread = Mutex::new(Some(thread.map_err(RecordError::Thread)?));
        let recorder = Self { notes, thread, head, folder: path, _lock: lock };
        for (tenant, standing) in kept.standings.iter().filter(|(tenant, _)| replayed.contains(tenant)) {
            recorder.stands(tenant, standing, false);
        }
        for what in &kept.broken {
            recorder.seen(None, &Entry::Broken { what: what.clone() });
        }
        Ok((recorder, kept))
    }

    fn noted(&self, taken: bool) {
        // After `close`, no note is taken, and that is not an error.
        let ended = self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if !taken && !ended {
            tracing::error!("the thread that keeps records has ended: nothing more is recorded");
        }
    }

    /// Records how a tenant stands from now on. A blank standing is forgotten, unless the tenant is
    /// `known` by a policy: then the time when it was first seen is worth keeping.
    pub(crate) fn stands(&self, tenant: &TenantName, standing: &Standing, known: bool) {
        let worth = (known || !standing.is_blank()).then(|| standing.clone());
        self.noted(self.notes.stands(tenant.clone(), worth));
    }

    /// Forgets a tenant.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.noted(self.notes.stands(tenant.clone(), None));
    }

    /// Reserves room for what a client decides, before it takes effect. Without room the decision
    /// is refused.
    pub(crate) fn room(&self, uid: u32, entry: &Entry) -> Result<Line, Refused> {
        self.notes.room(uid, entry, Instant::now())
    }

    /// Queues the line of a decision, which takes effect now. The client is answered once the line
    /// is written.
    pub(crate) fn decided(&self, line: Line) -> Written {
        let (written, taken) = self.notes.decided(line);
        self.noted(taken);
        written
    }

    /// Records what cannot be refused: evidence of what the uid ran or ordered; without a uid, a
    /// line of the daemon's own.
    pub(crate) fn seen(&self, uid: Option<u32>, entry: &Entry) {
        self.noted(self.notes.seen(uid, entry));
    }

    /// Checks that there is room for the evidence that a run of the uid may leave.
    pub(crate) fn may_run(&self, uid: u32) -> Result<(), Exhausted> {
        self.notes.may_run(uid)
    }

    /// How many lines of the audit log were lost since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.notes.lost()
    }

    /// The last line of the audit log that is on disk.
    pub(crate) fn head(&self) -> Head {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the audit log is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes what is left, and ends the writer.
    pub(crate) fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.notes.close();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Closes the notes however the writer ends, so that every caller with a note learns of the end.
struct CloseOnDrop(Arc<Notes>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Locks the state folder, so that no other daemon uses it.
fn lock(state: &Folder) -> Result<Flock<File>, RecordError> {
    let file = state.open(LOCK, How::Keep).map_err(|error| RecordError::Folder(state.path_of(LOCK), error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| RecordError::Taken(state.path().to_owned()))
}

impl Audit for Recorder {
    fn write_down(&self, uid: Option<u32>, count: u64, event: serde_json::Value) {
        self.seen(uid, &Entry::Seen { count, event });
    }
}

/// One round of the writer: the lines of the log in order, then each tenant's last standing in one
/// commit. Notes that cannot be written stay for the next round. A client that waits for a line is
/// answered once the line is in the log, whether or not the standings were written: at the next
/// start, lines that the log has and the database lacks are replayed.
fn write(standings: &mut Standings, log: &mut Log, left: &mut Batch, shown: &Mutex<Head>) {
    let mut written = Vec::new();
    if let Err(error) = log.append(&mut left.lines, &mut written) {
        tracing::error!(%error, lines = left.lines.len(), "the audit log cannot be written; the daemon will retry");
    }
    *shown.lock().unwrap_or_else(PoisonError::into_inner) = log.head.clone();
    match standings.commit(&left.standings, &log.head, Instant::now()) {
        Ok(Commit::Done) => left.standings.clear(),
        Ok(Commit::Waits) => {}
        Err(error) => {
            let tenants = left.standings.len();
            tracing::error!(%error, tenants, "the standings could not be written; the daemon will retry");
        }
    }
    written.into_iter().for_each(Line::confirm);
    left.lines.iter_mut().for_each(Line::delay);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use enisle_cordon::audit::Verifier;
    use enisle_cordon::{Circumstances, Level, Rules, Seen, Signal, Time, decide};

    use redb::{Database, ReadableDatabase};

    use crate::state::audit_log::{CURRENT, every_file};
    use crate::state::replay::Decided;
    use crate::state::standings::{DATABASE, Damage, STANDINGS, examine, is_damage};

    impl Recorder {
        fn open_with(state_dir: &Path, examine: Examine) -> Result<(Self, Kept), RecordError> {
            Self::open_keeping(&state(state_dir), 1 << 30, Parts::halves(), examine)
        }

        /// A line of the daemon's own.
        fn wrote(&self, entry: Entry) {
            self.seen(None, &entry);
        }
    }

    fn state(dir: &Path) -> Folder {
        Folder::make(dir).unwrap()
    }

    /// How a tenant stands according to the database, without the log.
    fn standing_of(database: &Database, tenant: &str) -> Option<Standing> {
        let table = database.begin_read().ok()?.open_table(STANDINGS).ok()?;
        let value = table.get(tenant).ok()??;
        serde_json::from_slice(value.value()).ok()
    }

    fn sealed() -> Standing {
        let mut standing = Standing::new(Time(5));
        let seen = [Seen::certain(Signal::RefusedCall)];
        decide(&mut standing, &seen, Circumstances::default(), &Rules::default(), Time(6));
        standing
    }

    /// A test catches a panic, and starts no process.
    fn examine_here(file: File) -> Result<(), Damage> {
        let damage = |error: redb::Error| match is_damage(&error) {
            true => Damage::Broken(error.to_string()),
            false => Damage::Unknown(error.to_string()),
        };
        let examined = std::panic::catch_unwind(|| examine(file).map_err(damage));
        examined.unwrap_or_else(|_| Err(Damage::Broken("it panicked".to_owned())))
    }

    fn entry(level: Level) -> Entry {
        Entry::Ordered { tenant: "t".into(), level, reason: "why".into(), by_uid: 0 }
    }

    fn lines(folder: &Path) -> Vec<String> {
        fs::read_to_string(folder.join("audit").join(CURRENT)).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn standings_and_the_chain_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let name: TenantName = "t".parse().unwrap();
        for round in 0..2 {
            let (recorder, kept) = Recorder::open_with(dir.path(), examine_here).unwrap();
            assert_eq!((kept.standings.len(), kept.broken.len()), (round, 0));
            recorder.stands(&name, &sealed(), false);
            recorder.wrote(entry(Level::Solo));
            recorder.close();
            assert_eq!(recorder.head().seq, round as u64 + 1);
        }
        let mut verifier = Verifier::default();
        lines(dir.path()).iter().for_each(|line| verifier.read(line).unwrap());
        assert_eq!(verifier.lines(), 2);
        let database = Database::open(dir.path().join("standings.redb")).unwrap();
        assert_eq!(standing_of(&database, "t"), Some(sealed()));
    }

    #[test]
    fn a_blank_standing_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let name: TenantName = "t".parse().unwrap();
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        recorder.stands(&name, &sealed(), false);
        recorder.stands(&name, &Standing::new(Time(1)), false);
        recorder.close();
        drop(recorder);
        assert!(Recorder::open_with(dir.path(), examine_here).unwrap().1.standings.is_empty());
    }

    #[test]
    fn a_damaged_database_is_reported_and_quarantined_or_read_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("standings.redb");
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        recorder.stands(&"t".parse().unwrap(), &sealed(), false);
        recorder.close();
        drop(recorder);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by((whole.len() / 40).max(1)).chain([0, 9, 64, 200]) {
            let mut bytes = whole.clone();
            let end = (at + 64).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
            fs::write(&path, &bytes).unwrap();
            let mut kept = Kept::default();
            drop(Standings::open(&state(dir.path()), examine_here, &mut kept).unwrap());
            let as_it_was = kept.standings.values().next() == Some(&sealed());
            assert!(as_it_was || kept.broken.len() == 1, "byte {at}: {kept:?}");
        }
        fs::write(&path, b"no database at all").unwrap();
        let mut kept = Kept::default();
        drop(Standings::open(&state(dir.path()), examine_here, &mut kept).unwrap());
        assert_eq!(kept.broken.len(), 1);
    }

    #[test]
    fn an_unreadable_standing_is_quarantined_and_the_others_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        recorder.stands(&"t".parse().unwrap(), &sealed(), false);
        recorder.close();
        {
            let database = Database::open(&path).unwrap();
            let writing = database.begin_write().unwrap();
            writing.open_table(STANDINGS).unwrap().insert("u", b"{}".as_slice()).unwrap();
            writing.commit().unwrap();
        }
        for broken in [1, 0] {
            let mut kept = Kept::default();
            drop(Standings::open(&state(dir.path()), examine_here, &mut kept).unwrap());
            assert_eq!((kept.standings.len(), kept.broken.len()), (1, broken));
        }
    }

    #[test]
    fn a_changed_log_is_quarantined_and_its_chain_continues() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        for level in [Level::Solo, Level::Sealed, Level::Expelled] {
            recorder.wrote(entry(level));
        }
        recorder.close();
        drop(recorder);
        let path = dir.path().join("audit").join(CURRENT);
        let forged = fs::read_to_string(&path).unwrap().replace("\"level\":\"sealed\"", "\"level\":\"shared\"");
        fs::write(&path, forged).unwrap();
        let (recorder, kept) = Recorder::open_with(dir.path(), examine_here).unwrap();
        assert!(kept.broken.first().is_some_and(|broken| broken.contains("line 2")), "{kept:?}");
        recorder.close();
        // The next line continues the last one that was written, according to the database.
        assert!(lines(dir.path())[0].starts_with("{\"seq\":4,"));
    }

    #[test]
    fn a_large_file_is_rotated_and_named_by_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("audit");
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        let long = Entry::Broken { what: "x".repeat(1 << 20) };
        (0..10).for_each(|_| recorder.wrote(long.clone()));
        recorder.close();
        drop(recorder);
        let rotated = folder.join("audit-000000000001.jsonl");
        let mut verifier = Verifier::default();
        for file in [rotated, folder.join(CURRENT)] {
            fs::read_to_string(file).unwrap().lines().for_each(|line| verifier.read(line).unwrap());
        }
        assert_eq!(verifier.lines(), 10);
        assert_eq!(Recorder::open_with(dir.path(), examine_here).unwrap().0.head().seq, 10);
    }

    #[test]
    fn the_oldest_files_are_deleted_and_the_chain_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("audit");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("audit.jsonl.broken-1-0"), vec![b'x'; 9 << 20]).unwrap();
        let (recorder, _) =
            Recorder::open_keeping(&state(dir.path()), 26 << 20, Parts::halves(), examine_here).unwrap();
        let long = Entry::Broken { what: "x".repeat(1 << 20) };
        (0..30).for_each(|_| recorder.wrote(long.clone()));
        recorder.close();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.iter().any(|name| name == "audit.jsonl.broken-1-0"), "it is deleted last: {names:?}");
        let mut verifier = Verifier::default();
        let mut deleted = Vec::new();
        for name in names.iter().filter(|name| name.to_str().is_some_and(|name| name.ends_with(".jsonl"))).rev() {
            for line in fs::read_to_string(folder.join(name)).unwrap().lines() {
                if let Ok(Decided { entry: Entry::Deleted { through, .. } }) = serde_json::from_str(line) {
                    deleted.extend(through);
                }
                let _ = verifier.read(line);
            }
        }
        let oldest = fs::read_to_string(folder.join(names.first().unwrap())).unwrap();
        let mut first = Verifier::default();
        first.read(oldest.lines().next().unwrap()).unwrap();
        assert!(deleted.contains(first.before().unwrap()), "{deleted:?} {:?}", first.before());
        let total: u64 = names.iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum();
        assert!(total <= 26 << 20, "{total}");
        // With a lower bound at the next start, the quarantined file is deleted as well.
        drop(recorder);
        Recorder::open_keeping(&state(dir.path()), 10 << 20, Parts::halves(), examine_here).unwrap().0.close();
        assert_eq!(every_file(&state(&folder)).unwrap(), [CURRENT]);
    }

    #[test]
    fn a_torn_line_is_cut_off_and_missing_lines_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit").join(CURRENT);
        let open = || Recorder::open_with(dir.path(), examine_here).unwrap();
        let (recorder, _) = open();
        for level in [Level::Solo, Level::Sealed] {
            recorder.wrote(entry(level));
        }
        recorder.close();
        drop(recorder);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole.clone() + "{\"seq\":3,\"pr").unwrap();
        let (recorder, kept) = open();
        assert!(matches!(kept.broken.as_slice(), [torn] if torn.contains("half written")), "{kept:?}");
        recorder.close();
        drop(recorder);
        // The report of the torn line is the third line.
        let mut verifier = Verifier::default();
        lines(dir.path()).iter().for_each(|line| verifier.read(line).unwrap());
        assert_eq!(verifier.lines(), 3);
        let first = whole.lines().next().unwrap().to_owned() + "\n";
        fs::write(&path, first).unwrap();
        let (recorder, kept) = open();
        assert!(matches!(kept.broken.as_slice(), [missing] if missing.contains("missing at its end")), "{kept:?}");
        recorder.close();
    }

    #[test]
    fn tenants_stay_out_even_if_the_database_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        for (tenant, to) in [("a", Level::Solo), ("a", Level::Expelled), ("b", Level::Solo), ("b", Level::Shared)] {
            recorder.wrote(Entry::Moved { tenant: tenant.into(), from: Level::Shared, to, reasons: Vec::new() });
        }
        recorder.close();
        drop(recorder);
        fs::write(dir.path().join(DATABASE), b"no database at all").unwrap();
        // The database is damaged, read once more, damaged together with the log, and deleted.
        for round in 0..4 {
            let log = dir.path().join("audit").join(CURRENT);
            match round {
                2 => {
                    fs::write(dir.path().join(DATABASE), b"no database at all").unwrap();
                    let forged = fs::read_to_string(&log).unwrap().replace("\"from\":\"shared\"", "\"from\":\"solo\"");
                    fs::write(&log, forged).unwrap();
                }
                3 => fs::remove_file(dir.path().join(DATABASE)).unwrap(),
                _ => {}
            }
            let (recorder, kept) = Recorder::open_with(dir.path(), examine_here).unwrap();
            assert_eq!(kept.standings.values().next().map(Standing::level), Some(Level::Expelled), "round {round}");
            recorder.close();
        }
        let (_, kept) = Recorder::open_with(dir.path(), examine_here).unwrap();
        let levels: Vec<_> = kept.standings.iter().map(|(name, known)| (name.to_string(), known.level())).collect();
        // The line that let b back in was changed, so it is not trusted.
        assert_eq!(levels, [("a".to_owned(), Level::Expelled), ("b".to_owned(), Level::Solo)]);
    }

    #[test]
    fn decisions_that_only_the_log_has_are_in_force_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let (path, before) = (dir.path().join(DATABASE), dir.path().join("before"));
        let ordered =
            |tenant: &str, level| Entry::Ordered { tenant: tenant.into(), level, reason: "why".into(), by_uid: 7 };
        let moved =
            |tenant: &str, to| Entry::Moved { tenant: tenant.into(), from: Level::Shared, to, reasons: Vec::new() };
        let lifted = |tenant: &str| Entry::Lifted { tenant: tenant.into(), reason: "why".into(), by_uid: 7 };
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        recorder.stands(&"known".parse().unwrap(), &sealed(), false);
        recorder.wrote(moved("known", Level::Sealed));
        recorder.close();
        drop(recorder);
        fs::copy(&path, &before).unwrap();
        let (recorder, _) = Recorder::open_with(dir.path(), examine_here).unwrap();
        for entry in [
            ordered("a", Level::Expelled),
            moved("a", Level::Expelled),
            ordered("b", Level::Solo),
            ordered("c", Level::Expelled),
            lifted("c"),
            moved("d", Level::Expelled),
            moved("d", Level::Solo),
        ] {
            recorder.wrote(entry);
        }
        recorder.close();
        drop(recorder);
        // As if the last commits had never happened.
        fs::copy(&before, &path).unwrap();
        for _ in 0..2 {
            let (recorder, kept) = Recorder::open_with(dir.path(), examine_here).unwrap();
            let stand = |name: &str| kept.standings.get(&name.parse().unwrap()).map_or(Level::Shared, Standing::level);
            let levels = ["a", "b", "c", "d", "known"].map(stand);
            assert_eq!(levels, [Level::Expelled, Level::Solo, Level::Shared, Level::Solo, Level::Sealed]);
            let order = kept.standings.get(&"a".parse().unwrap()).and_then(Standing::order).cloned().unwrap();
            assert_eq!((order.by_uid, order.reason.as_str()), (7, "why"));
            assert_eq!(kept.standings.get(&"known".parse().unwrap()), Some(&sealed()));
            assert!(kept.broken.is_empty(), "{kept:?}");
            // The second time, the decisions are in the database.
            recorder.close();
        }
    }

    #[test]
    fn a_state_folder_belongs_to_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Recorder::open_with(dir.path(), examine_here).unwrap();
        assert!(matches!(Recorder::open_with(dir.path(), examine_here), Err(RecordError::Taken(_))));
    }
}
