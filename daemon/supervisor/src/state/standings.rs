//! The database of standings: examined before it is opened, read once, committed to.
//!
//! A damaged database is quarantined; one that cannot be accessed at the moment is left as it is.
//!
//! After a failed commit the database's code refuses everything, so the database is closed and
//! opened again ([`Standings`]):
//!
//! ```text
//! Open ── a commit fails ──▶ Closed
//! Closed ── a second later: examined, opened, committed ──▶ Open
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use enisle_cordon::Standing;
use enisle_cordon::audit::{Head, MOST_LINES};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::files::{Folder, How, quarantine_name};
use crate::state::kept::{Kept, RecordError};
use crate::tenants::policy::TenantName;

pub(crate) const STANDINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("standings");
/// The last line of the audit log that was written, updated with every commit. It shows whether
/// lines are missing at the end of the log.
const HEAD: TableDefinition<'_, (), (u64, &str)> = TableDefinition::new("audit-head");
pub(crate) const DATABASE: &str = "standings.redb";

/// The shortest time between two examinations, each of which starts a process, however many notes
/// come.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How a database is examined before it is opened.
pub(crate) type Examine = fn(File) -> Result<(), Damage>;

/// The database, and what the writer needs to open it again.
pub(crate) struct Standings {
    folder: Folder,
    examine: Examine,
    state: State,
}

/// The result of a commit that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    Done,
    /// Nothing was written: the database stays closed for a moment.
    Waits,
}

enum State {
    Open(Database),
    Closed { until: Instant },
}

impl Standings {
    /// Opens the database and reads it.
    pub(crate) fn open(folder: &Folder, examine: Examine, kept: &mut Kept) -> Result<Self, RecordError> {
        let database = open_database(folder, examine, kept)?;
        let folder = folder.try_clone().map_err(|error| RecordError::Folder(folder.path().to_owned(), error))?;
        Ok(Self { folder, examine, state: State::Open(database) })
    }

    /// Writes the standings and the last line of the log, atomically. A database whose last commit
    /// failed is opened again first, once it has been closed for a moment.
    pub(crate) fn commit(
        &mut self,
        standings: &BTreeMap<TenantName, Option<Standing>>,
        head: &Head,
        now: Instant,
    ) -> Result<Commit, redb::Error> {
        let closed = State::Closed { until: now + OPEN_AGAIN_AFTER };
        let database = match std::mem::replace(&mut self.state, closed) {
            State::Open(database) => database,
            State::Closed { until } if until > now => {
                self.state = State::Closed { until };
                return Ok(Commit::Waits);
            }
            State::Closed { .. } => self.open_again()?,
        };
        commit(&database, standings, head)?;
        self.state = State::Open(database);
        Ok(Commit::Done)
    }

    /// Lets the next commit open a closed database at once, because that commit is the last
    /// attempt.
    pub(crate) fn hurry(&mut self) {
        if let State::Closed { until } = &mut self.state {
            *until = Instant::now();
        }
    }

    /// Examines the database and opens it. Damage found here is left to the next start, which
    /// handles it.
    fn open_again(&self) -> Result<Database, redb::Error> {
        (self.examine)(self.folder.open(DATABASE, How::Change)?)
            .map_err(|damage| io::Error::other(damage.to_string()))?;
        database_in(self.folder.open(DATABASE, How::Change)?)
    }
}

/// Opens the database and reads it. A damaged database is quarantined, and a new one is started.
fn open_database(folder: &Folder, examine: Examine, kept: &mut Kept) -> Result<Database, RecordError> {
    let path = || folder.path_of(DATABASE);
    let failed = |error: redb::Error| RecordError::Database(path(), error);
    let examined = match folder.open(DATABASE, How::Change) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Damage::Unknown(error.to_string())),
        Ok(file) => examine(file),
    };
    let opened = match examined {
        Ok(()) => return read_database(folder, kept).map_err(failed),
        Err(Damage::Broken(what)) => what,
        // The database may be intact, so nothing is touched.
        Err(Damage::Unknown(what)) => return Err(RecordError::Unexamined(path(), what)),
    };
    *kept = Kept { lost: true, ..Kept::default() };
    let moved = quarantine_name(folder, DATABASE).and_then(|name| folder.rename(DATABASE, &name).map(|()| name));
    let quarantined = moved.map_err(|error| RecordError::Folder(path(), error))?;
    kept.broken.push(format!(
        "the database of standings could not be read ({opened}); it was moved to {}, and tenants stand as the audit log says",
        folder.path_of(&quarantined).display()
    ));
    read_database(folder, kept).map_err(failed)
}

/// Reads a database as the daemon would, in a process of its own: the database's code panics on
/// some kinds of damage, which would end the daemon. That process has the file as its standard
/// input.
pub(crate) fn examine_apart(file: File) -> Result<(), Damage> {
    let unknown = |error: io::Error| Damage::Unknown(error.to_string());
    // This path runs the daemon's own code even if the daemon's file was replaced since the start.
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("--examine").stdin(Stdio::from(file)).stdout(Stdio::null()).stderr(Stdio::piped());
    let ended = command.output().map_err(unknown)?;
    let said = String::from_utf8_lossy(&ended.stderr).trim().escape_debug().to_string();
    match ended.status.code() {
        Some(0) => Ok(()),
        // A panic exits with 101, or aborts in a release build. Any other signal proves no damage.
        Some(code) if code == i32::from(BROKEN_EXIT) || code == 101 => Err(Damage::Broken(said)),
        None if ended.status.signal() == Some(nix::sys::signal::Signal::SIGABRT as i32) => Err(Damage::Broken(said)),
        _ => Err(Damage::Unknown(format!("{}: {said}", ended.status))),
    }
}

/// Standings are read once and written in commits, so a cache of the database's pages is of little
/// use.
const CACHE_BYTES: usize = 8 << 20;

/// The exit status of the examining process if the database is damaged.
pub(crate) const BROKEN_EXIT: u8 = 3;

/// What is wrong with a database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It is damaged.
    #[error("it is damaged: {0}")]
    Broken(String),
    /// It could not be examined.
    #[error("it could not be examined: {0}")]
    Unknown(String),
}

/// Whether an error of the database means that the file is damaged, rather than inaccessible at the
/// moment.
pub(crate) fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
        redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo => false,
        _ => true,
    }
}

/// What the examining process does: reads everything, and changes no standing.
pub(crate) fn examine(file: File) -> Result<(), redb::Error> {
    // An empty file would be turned into a database.
    if file.metadata()?.len() == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut database = database_in(file)?;
    database.check_integrity()?;
    match database.begin_read()?.open_table(STANDINGS) {
        Ok(table) => table.iter()?.try_for_each(|row| row.map(drop)).map_err(redb::Error::from),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn database_in(file: File) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)?)
}

fn read_database(folder: &Folder, kept: &mut Kept) -> Result<Database, redb::Error> {
    let mut database = database_in(folder.open(DATABASE, How::Keep)?)?;
    if !database.check_integrity()? {
        tracing::warn!(file = %folder.path_of(DATABASE).display(), "the database of standings was not closed cleanly, and was repaired");
    }
    let writing = database.begin_write()?;
    let mut unreadable = Vec::new();
    let head = writing.open_table(HEAD)?.get(())?.map(|head| {
        let (seq, hash) = head.value();
        Head { seq, hash: hash.to_owned() }
    });
    kept.head = head.filter(|head| head.seq <= MOST_LINES);
    {
        let mut table = writing.open_table(STANDINGS)?;
        for row in table.iter()? {
            let (name, value) = row?;
            match (name.value().parse::<TenantName>(), serde_json::from_slice(value.value())) {
                (Ok(name), Ok(standing)) => drop(kept.standings.insert(name, standing)),
                _ => unreadable.push((name.value().to_owned(), value.value().to_vec())),
            }
        }
        for (name, _) in &unreadable {
            table.remove(name.as_str())?;
        }
    }
    for (name, value) in unreadable {
        let saved = quarantine_name(folder, "standing.json").and_then(|file| {
            folder.open(&file, How::New)?.write_all(&value)?;
            Ok(folder.path_of(&file).display().to_string())
        });
        let saved = saved.unwrap_or_else(|error| format!("lost: {error}"));
        kept.broken.push(format!(
            "the standing of {name:?} could not be read; the tenant starts without one (the old data: {saved})"
        ));
    }
    writing.commit()?;
    Ok(database)
}

fn commit(
    database: &Database,
    standings: &BTreeMap<TenantName, Option<Standing>>,
    head: &Head,
) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(HEAD)?.insert((), (head.seq, head.hash.as_str()))?;
    {
        let mut table = writing.open_table(STANDINGS)?;
        for (tenant, standing) in standings {
            match standing {
                Some(standing) => {
                    let value = serde_json::to_vec(standing).map_err(|error| redb::Error::Io(error.into()))?;
                    table.insert(tenant.as_str(), value.as_slice())?;
                }
                None => drop(table.remove(tenant.as_str())?),
            }
        }
    }
    Ok(writing.commit()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use enisle_cordon::Time;
    use redb::StorageBackend;

    use super::*;

    /// A file that refuses writes while its disk is full.
    #[derive(Debug)]
    struct Full(FileBackend, Arc<AtomicBool>);

    impl StorageBackend for Full {
        fn len(&self) -> Result<u64, io::Error> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> Result<(), io::Error> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            if self.1.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(offset, data)
        }
    }

    #[test]
    fn after_a_failed_commit_the_database_is_opened_again_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path()).unwrap();
        let examined: Examine = |file| examine(file).map_err(|error| Damage::Broken(error.to_string()));
        let mut standings = Standings::open(&folder, examined, &mut Kept::default()).unwrap();
        let is_full = Arc::new(AtomicBool::new(false));
        standings.state = State::Closed { until: Instant::now() };
        let file = FileBackend::new(folder.open(DATABASE, How::Change).unwrap()).unwrap();
        let database = Database::builder().create_with_backend(Full(file, Arc::clone(&is_full))).unwrap();
        standings.state = State::Open(database);

        let one = |name: &str| BTreeMap::from([(name.parse().unwrap(), Some(Standing::new(Time(7))))]);
        let head = |seq| Head { seq, ..Head::default() };
        let now = Instant::now();
        assert_eq!(standings.commit(&one("before"), &head(1), now).unwrap(), Commit::Done);
        is_full.store(true, Ordering::Relaxed);
        assert!(standings.commit(&one("full"), &head(2), now).is_err());
        is_full.store(false, Ordering::Relaxed);
        // Notes that arrive meanwhile do not reopen the database sooner.
        assert_eq!(standings.commit(&one("full"), &head(2), now).unwrap(), Commit::Waits);
        let later = now + OPEN_AGAIN_AFTER;
        assert_eq!(standings.commit(&one("full"), &head(2), later).unwrap(), Commit::Done);
        assert_eq!(standings.commit(&one("after"), &head(3), later).unwrap(), Commit::Done);
        drop(standings);
        let mut kept = Kept::default();
        drop(Standings::open(&folder, examined, &mut kept).unwrap());
        assert_eq!((kept.standings.len(), kept.head, kept.broken.len()), (3, Some(head(3)), 0));
    }
}
