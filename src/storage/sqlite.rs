//! A store in one SQLite file: how it is opened, checked and brought to the newest schema. Transactions on it are in
//! `writer`, queries in `reader`.

mod errors;
mod reader;
mod writer;

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use super::manifest::StoreState;
use super::store_identity::{self, StoreIdentity, StoreLocation};
use super::{OpenError, StoreError, files};
pub(super) use errors::one_line;
pub(super) use reader::{SqliteReader, open_reader};
pub(super) use writer::SqliteWriter;

/// How long to wait for a lock that another process holds: long enough for a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
/// `P2S2`, so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x5032_5332;
/// Statements that a connection keeps: more than all rooms have.
const STATEMENT_CACHE_CAPACITY: usize = 256;
/// Up to this size a file is checked page by page at start (about 1 GB/s); beyond it, damage is found when it is read.
const PAGE_CHECK_BYTES_MAX: i64 = 1 << 30;

pub(super) struct OpenedStore {
    pub(super) connection: Connection,
    /// The id in the manifest and in the file itself.
    pub(super) id: String,
    /// The generation that the file contains.
    pub(super) generation: u64,
}

/// Opens or creates the file, checks it, brings it to the newest schema, and lists it in the manifest.
pub(super) fn open_writer(path: &Path, migrations: &[&str]) -> Result<OpenedStore, OpenError> {
    if let Some(dir) = files::parent_of(path) {
        files::create_private_dir(dir).map_err(|error| OpenError::from_io(dir, &error))?;
    }
    let is_new = !store_exists(path)?;
    let location = StoreLocation::load(path)?;
    let mut id = None;
    if is_new {
        location.check_may_be_absent()?;
        id = Some(location.register(None, true)?);
    }
    files::create_private_file(path).map_err(|error| OpenError::from_io(path, &error))?;
    let watermark = location.read_watermark();
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let connection = open_without_checkpoint(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    check_writable(&connection, path)?;
    make_wal_owner_writable(path);

    // Check before writing anything: a file that is not ours stays as it is.
    let checked = check_file(&connection, path, migrations.len() as u64, !store_identity::take_pages_checked(path))
        .map_err(|error| location.explain_error(error))?;
    let id = match (id, location.manifest_state()) {
        (Some(id), _) => id,
        (None, state) => {
            location.check_identity(checked.identity.as_ref(), watermark)?;
            checked.check_not_newer(path, migrations.len() as u64)?;
            match state {
                Some((StoreState::Kept | StoreState::Adopting | StoreState::Making, id)) => id.to_owned(),
                _ => location.register(checked.identity.as_ref(), false)?,
            }
        }
    };
    // From here on the file is known to be intact, and its log may be moved into it on close.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;

    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("its disk allows no write-ahead log (journal mode {mode}); choose a local disk");
        return Err(OpenError::Other { path: path.to_owned(), detail });
    }
    use_stable_query_plans(&connection).map_err(failed)?;
    for (name, value) in [
        ("synchronous", "FULL"),
        // macOS's plain fsync stops at the disk's own cache; elsewhere these two do nothing.
        ("fullfsync", "ON"),
        ("checkpoint_fullfsync", "ON"),
        ("foreign_keys", "ON"),
        // What a savepoint may have to restore stays in memory, not in a file.
        ("temp_store", "MEMORY"),
        // A log that one large transaction has enlarged is truncated again.
        ("journal_size_limit", "67108864"),
        ("cache_size", "-16384"),
    ] {
        connection.pragma_update(None, name, value).map_err(failed)?;
    }
    if checked.is_fresh {
        connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    }
    migrate(&connection, path, migrations)?;
    let generation = StoreIdentity::write(&connection, &id, migrations.len()).map_err(failed)?;
    // Only from now on may anything be acknowledged that this file contains.
    location.mark_present(&id, generation)?;
    Ok(OpenedStore { connection, id, generation })
}

fn check_writable(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    if connection.is_readonly(MAIN_DB).map_err(|error| OpenError::from_sqlite(path, &error))? {
        // SQLite opens such a file all the same. Reported before SQLite creates a log that is read-only too.
        return Err(OpenError::Permission { path: path.to_owned(), detail: "it may only be read".to_owned() });
    }
    Ok(())
}

/// This process must not have opened the file. Neither it nor its log is changed.
pub(super) fn open_read_only(path: &Path, known: u64) -> Result<SqliteReader, OpenError> {
    let (connection, found) = open_checked(path, known, false)?;
    connection
        .pragma_update(None, "query_only", "ON")
        .map_err(|error: rusqlite::Error| OpenError::from_sqlite(path, &error))?;
    if found < known {
        return Err(OpenError::OlderSchema { path: path.to_owned(), found, known });
    }
    Ok(SqliteReader::new(connection))
}

/// Opens an existing store and checks it, also against the manifest and its watermark; returns its schema version too.
/// Neither the file nor its log is changed. With `for_writing` it must be writable and belong to this data dir;
/// otherwise it may lie anywhere.
pub(super) fn open_checked(path: &Path, known: u64, for_writing: bool) -> Result<(Connection, u64), OpenError> {
    check_no_orphaned_wal(path)?;
    let location = StoreLocation::load(path)?;
    let watermark = location.read_watermark();
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    // As a writer where that is allowed: one that may only read cannot remove the scratch files that it needed.
    let connection = open_without_checkpoint(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    if for_writing {
        check_writable(&connection, path)?;
    }
    let checked = check_file(&connection, path, known, true);
    // SQLite gives the files beside a read-only database the same mode, and the server could not use them.
    make_wal_owner_writable(path);
    let checked = checked.map_err(|error| location.explain_error(error))?;
    if for_writing || location.manifest.is_some() {
        location.check_identity(checked.identity.as_ref(), watermark)?;
    }
    checked.check_not_newer(path, known)?;
    Ok((connection, checked.schema))
}

/// Leaves the log beside the file as it is when the connection is closed. By default SQLite moves it into the file,
/// whatever that has become, and removes it.
pub(super) fn open_without_checkpoint(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Without a log nothing can be moved, and SQLite removes the one that this connection creates.
    let has_log = !files::is_missing_or_empty(&files::with_suffix(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
    Ok(connection)
}

/// SQLite would otherwise recompile many statements at each change, hoping for a better plan for just those parameters;
/// we keep no statistics to find one by.
fn use_stable_query_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// SQLite discards the log of an empty file, but the file was not empty when that log was written.
pub(super) fn has_orphaned_wal(path: &Path) -> bool {
    files::is_missing_or_empty(path) && !files::is_missing_or_empty(&files::with_suffix(path, "-wal"))
}

fn check_no_orphaned_wal(path: &Path) -> Result<(), OpenError> {
    if has_orphaned_wal(path) {
        let detail = "it is missing or empty, but its log beside it (-wal) is not".to_owned();
        return Err(OpenError::Corrupt { path: path.to_owned(), detail });
    }
    Ok(())
}

/// Whether there is a file that is not empty; an error if it cannot be a store.
pub(super) fn store_exists(path: &Path) -> Result<bool, OpenError> {
    if path.is_dir() {
        return Err(OpenError::Other { path: path.to_owned(), detail: "it is a folder".to_owned() });
    }
    check_no_orphaned_wal(path)?;
    Ok(!files::is_missing_or_empty(path))
}

/// SQLite gives the files beside a database the mode of that database: read-only ones would outlive that mode.
fn make_wal_owner_writable(path: &Path) {
    for ending in ["-wal", "-shm"] {
        let path = files::with_suffix(path, ending);
        if let Err(error) = files::make_owner_writable(&path) {
            log::warn!("{}: {error}", path.display());
        }
    }
}

struct CheckedFile {
    schema: u64,
    /// It is empty and belongs to no program yet.
    is_fresh: bool,
    identity: Option<StoreIdentity>,
}

impl CheckedFile {
    /// Call it once it is known whose file it is: another store may well have more versions.
    fn check_not_newer(&self, path: &Path, known: u64) -> Result<(), OpenError> {
        if self.schema > known {
            return Err(OpenError::NewerSchema { path: path.to_owned(), found: self.schema, known });
        }
        Ok(())
    }
}

/// Whether it is ours and intact. `known` is only used in error texts.
fn check_file(
    connection: &Connection,
    path: &Path,
    known: u64,
    check_all_pages: bool,
) -> Result<CheckedFile, OpenError> {
    // All statements here are valid: an error that is not the disk's is the file's.
    let failed = |error: rusqlite::Error| match OpenError::from_sqlite(path, &error) {
        OpenError::Other { path, detail } => OpenError::Corrupt { path, detail },
        known => known,
    };
    let schema = schema_version(connection).map_err(failed)?;
    let tables: i64 =
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let owner: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(failed)?;
    let is_fresh = tables == 0 && schema == 0 && owner == 0;
    if !is_fresh && owner != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0)).map_err(failed)?;
    let identity = StoreIdentity::read(connection).map_err(failed)?;
    let corrupt = |detail: String| OpenError::Corrupt { path: path.to_owned(), detail };
    if encoding != "UTF-8" {
        return Err(corrupt(format!("its header says that its text is {encoding}")));
    }
    if let Some(identity) = &identity
        && identity.schema != schema
    {
        let newer = if schema > known { ", as of a newer version" } else { "" };
        let (said, is) = (schema as i64, identity.schema);
        return Err(corrupt(format!("its header says schema {said}{newer}, but it is {is}")));
    }
    if check_all_pages {
        check_pages(connection, path)?;
    }
    Ok(CheckedFile { schema, is_fresh, identity })
}

fn execute_cached(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    let run = || connection.prepare_cached(sql)?.raw_execute();
    run().map(|_rows| ()).map_err(|error| store_error(connection, &error))
}

fn store_error(connection: &Connection, error: &rusqlite::Error) -> StoreError {
    StoreError::from_sqlite(file_name_of(connection), error)
}

/// The name without its path, so that it may be shown to anybody.
fn file_name_of(connection: &Connection) -> &str {
    let name = connection.path().and_then(|path| Path::new(path).file_name());
    name.and_then(|name| name.to_str()).unwrap_or("the store")
}

fn schema_version(connection: &Connection) -> rusqlite::Result<u64> {
    // A negative version is none of ours; as unsigned it is newer than all known ones.
    connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).map(|version| version as u64)
}

fn check_pages(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(failed)?;
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(failed)?;
    if pages.saturating_mul(page_bytes) > PAGE_CHECK_BYTES_MAX {
        log::info!("{}: too large to be checked at start", path.display());
        return Ok(());
    }
    match run_integrity_check(connection, "quick_check") {
        Ok(None) => Ok(()),
        Ok(Some(detail)) => Err(OpenError::Corrupt { path: path.to_owned(), detail }),
        Err(error) => Err(failed(error)),
    }
}

/// Runs `quick_check` or `integrity_check`; returns the first problem.
pub(super) fn run_integrity_check(connection: &Connection, check: &str) -> rusqlite::Result<Option<String>> {
    let result: String = connection.query_row(&format!("PRAGMA {check}(1)"), [], |row| row.get(0))?;
    Ok((result != "ok").then(|| result.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Each migration is in one transaction with the version it reaches: a crash between two leaves a file of a known
/// version.
fn migrate(connection: &Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    for (step, sql) in migrations.iter().enumerate() {
        let version = step as u64 + 1;
        let run = || -> rusqlite::Result<()> {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            // Read under the lock: another process may be migrating too.
            if schema_version(connection)? < version {
                connection.execute_batch(sql)?;
                connection.pragma_update(None, "user_version", version as i64)?;
                if store_identity::has_identity_table(connection)? {
                    connection.execute("UPDATE store_identity SET schema = ?1", [version as i64])?;
                }
            }
            connection.execute_batch("COMMIT")
        };
        if let Err(error) = run() {
            if !connection.is_autocommit()
                && let Err(error) = connection.execute_batch("ROLLBACK")
            {
                log::warn!("{}: rolling back a migration: {}", path.display(), one_line(&error));
            }
            return Err(match OpenError::from_sqlite(path, &error) {
                OpenError::Other { path, detail } => OpenError::Migration { path, version, detail },
                known => known,
            });
        }
    }
    Ok(())
}
