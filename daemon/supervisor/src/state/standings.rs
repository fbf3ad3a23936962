//! The database of standings: examined before it is opened, read once, committed to.
//!
//! What is damaged is moved aside, and what cannot be had at the moment is left as it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use enisle_cordon::Standing;
use enisle_cordon::audit::Head;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::state::files::{Folder, How};
use crate::state::recorder::{Kept, RecordError, aside};
use crate::tenants::policy::TenantName;

pub(crate) const STANDINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("standings");
/// What was written last, with every commit: that lines are missing at the end of the audit log is found by it.
const HEAD: TableDefinition<'_, (), (u64, &str)> = TableDefinition::new("audit-head");
pub(crate) const DATABASE: &str = "standings.redb";

/// Opens the database and reads it. One that cannot be read is moved aside, and a new one begun.
pub(crate) fn open_database(
    folder: &Folder,
    examine: impl Fn(File) -> Result<(), Damage>,
    kept: &mut Kept,
) -> Result<Database, RecordError> {
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
        // It may be as whole as ever: nothing is touched.
        Err(Damage::Unknown(what)) => return Err(RecordError::Unexamined(path(), what)),
    };
    *kept = Kept { lost: true, ..Kept::default() };
    let moved = aside(folder, DATABASE).and_then(|aside| folder.rename(DATABASE, &aside).map(|()| aside));
    let aside = moved.map_err(|error| RecordError::Folder(path(), error))?;
    kept.broken.push(format!(
        "the database of standings could not be read ({opened}); it is now {}, and tenants stand as the audit log says",
        folder.path_of(&aside).display()
    ));
    read_database(folder, kept).map_err(failed)
}

/// Reads a database as the daemon would, in a process of its own: the database's code panics at some kinds of damage, which is
/// the end of whoever asked. That process has the file as its standard input.
pub(crate) fn examine_apart(file: File) -> Result<(), Damage> {
    let unknown = |error: io::Error| Damage::Unknown(error.to_string());
    let program = std::env::current_exe().map_err(unknown)?;
    let mut command = std::process::Command::new(program);
    command.arg("--examine").stdin(Stdio::from(file)).stdout(Stdio::null()).stderr(Stdio::piped());
    let ended = command.output().map_err(unknown)?;
    let said = String::from_utf8_lossy(&ended.stderr).trim().escape_debug().to_string();
    match ended.status.code() {
        Some(0) => Ok(()),
        // A panic, which in a release is an abort; any other signal is somebody else's doing.
        Some(code) if code == i32::from(BROKEN_EXIT) || code == 101 => Err(Damage::Broken(said)),
        None if ended.status.signal() == Some(nix::sys::signal::Signal::SIGABRT as i32) => Err(Damage::Broken(said)),
        _ => Err(Damage::Unknown(format!("{}: {said}", ended.status))),
    }
}

/// Standings are read once, and written in commits: what the database keeps of its pages is of
/// little use.
const CACHE_BYTES: usize = 8 << 20;

/// How the process that examines a database ends if that is broken.
pub(crate) const BROKEN_EXIT: u8 = 3;

/// What is wrong with a database.
#[derive(Debug)]
pub(crate) enum Damage {
    /// It is damaged.
    Broken(String),
    /// That could not be found out.
    Unknown(String),
}

/// Whether an error of the database's says that the file is damaged, and not that it cannot be had at the moment.
pub(crate) fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
        redb::Error::DatabaseAlreadyOpen => false,
        _ => true,
    }
}

/// What the process of its own does: reads everything, and changes no standing.
pub(crate) fn examine(file: File) -> Result<(), redb::Error> {
    // An empty one would be made a database.
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
        tracing::warn!(file = %folder.path_of(DATABASE).display(), "the database of standings was not closed well, and was repaired");
    }
    let writing = database.begin_write()?;
    let mut unreadable = Vec::new();
    kept.head = writing.open_table(HEAD)?.get(())?.map(|head| {
        let (seq, hash) = head.value();
        Head { seq, hash: hash.to_owned() }
    });
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
        let saved = aside(folder, "standing.json").and_then(|file| {
            folder.open(&file, How::New)?.write_all(&value)?;
            Ok(folder.path_of(&file).display().to_string())
        });
        let saved = saved.unwrap_or_else(|error| format!("lost: {error}"));
        kept.broken
            .push(format!("the standing of {name:?} could not be read; it begins anew (what was there: {saved})"));
    }
    writing.commit()?;
    Ok(database)
}

/// Writes how tenants stand and the last line of the log, whole or not at all.
pub(crate) fn commit(
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
