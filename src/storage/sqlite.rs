//! SQLite's connections: their settings, migrations, and our traits over them.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, MAIN_DB, OpenFlags, ToSql};

use super::manifest::Stage;
use super::value::EachRow;
use super::whole::{self, Identity, Place};
use super::{OpenError, Reader, Row, StoreError, Tx, Value, files};

/// How long to wait for a lock that another process holds: long enough for a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
/// `P2S2`, so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x5032_5332;
/// Prepared statements kept per connection: more than all rooms have.
const STATEMENTS: usize = 256;
/// Up to this size a file is checked page by page at start (some 1 GB/s); past it, damage is found
/// when it is met.
const CHECK_UP_TO_BYTES: i64 = 1 << 30;

/// A store's file, opened to be written.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// As the manifest and the file itself name it.
    pub(super) id: String,
    /// The number of its newest change.
    pub(super) number: u64,
}

/// Opens or creates the file, checks it, brings it to the newest schema, and names it in the manifest.
pub(super) fn open_writer(path: &Path, migrations: &[&str]) -> Result<Opened, OpenError> {
    if let Some(dir) = files::parent_of(path) {
        files::create_private_dir(dir).map_err(|error| OpenError::from_io(dir, &error))?;
    }
    let is_new = !check_absent_or_there(path)?;
    let place = Place::of(path)?;
    let mut id = None;
    if is_new {
        place.check_absent()?;
        id = Some(place.plan(None, true)?);
    }
    files::create_private_file(path).map_err(|error| OpenError::from_io(path, &error))?;
    let mark = place.mark();
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let connection = open_to_look(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    check_writable(&connection, path)?;
    open_log_to_owner(path);

    // Look before writing anything: what is not ours stays as it is.
    let checked = check(&connection, path, migrations.len() as u64, !whole::was_examined(path))
        .map_err(|error| place.explain(error))?;
    let id = match (id, place.stage()) {
        (Some(id), _) => id,
        (None, stage) => {
            place.check_present(checked.identity.as_ref(), mark)?;
            checked.check_known(path, migrations.len() as u64)?;
            match stage {
                Some((Stage::Kept | Stage::Adopting | Stage::Making, id)) => id.to_owned(),
                _ => place.plan(checked.identity.as_ref(), false)?,
            }
        }
    };
    // From here on it is whole, and its log may be moved into it when it is closed.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;

    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("its disk allows no write-ahead log (journal mode {mode}); choose a local disk");
        return Err(OpenError::Other { path: path.to_owned(), detail });
    }
    keep_plans(&connection).map_err(failed)?;
    for (name, value) in [
        ("synchronous", "FULL"),
        // macOS's plain fsync stops at the disk's own cache; elsewhere these two do nothing.
        ("fullfsync", "ON"),
        ("checkpoint_fullfsync", "ON"),
        ("foreign_keys", "ON"),
        // What a savepoint may have to put back stays in memory, not in a file.
        ("temp_store", "MEMORY"),
        // A WAL that one large transaction has blown up is cut back.
        ("journal_size_limit", "67108864"),
        ("cache_size", "-16384"),
    ] {
        connection.pragma_update(None, name, value).map_err(failed)?;
    }
    if checked.is_fresh {
        connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    }
    migrate(&connection, path, migrations)?;
    let number = Identity::settle(&connection, &id, migrations.len()).map_err(failed)?;
    // Only now may anything be acknowledged that this file holds.
    place.keep(&id, number)?;
    Ok(Opened { connection, id, number })
}

fn check_writable(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    if connection.is_readonly(MAIN_DB).map_err(|error| OpenError::from_sqlite(path, &error))? {
        // SQLite opens such a file all the same. Told before it makes a log that is as read-only.
        return Err(OpenError::Permission { path: path.to_owned(), detail: "it may only be read".to_owned() });
    }
    Ok(())
}

/// Opens a connection that cannot write, to a file that nobody here has opened, and checks it. Nothing
/// of the file is changed, nor of its log.
pub(super) fn open_view(path: &Path, known: u64) -> Result<Connection, OpenError> {
    let (connection, found) = look(path, known, false)?;
    connection
        .pragma_update(None, "query_only", "ON")
        .map_err(|error: rusqlite::Error| OpenError::from_sqlite(path, &error))?;
    if found < known {
        return Err(OpenError::Older { path: path.to_owned(), found, known });
    }
    Ok(connection)
}

/// Opens a store that is there and checks it, also against the manifest and its mark; its schema version too.
/// Nothing of the file is changed, nor of its log. Where it `is_to_be_written` it must be writable, and of this
/// data dir; one that is only looked at may lie anywhere.
pub(super) fn look(path: &Path, known: u64, is_to_be_written: bool) -> Result<(Connection, u64), OpenError> {
    check_log(path)?;
    let place = Place::of(path)?;
    let mark = place.mark();
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    // As a writer where that is allowed: who may only read cannot take away the scratch files it needed.
    let connection = open_to_look(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    if is_to_be_written {
        check_writable(&connection, path)?;
    }
    let checked = check(&connection, path, known, true);
    // Who may only read a file makes what belongs beside it just as read-only, which the server could not
    // use.
    open_log_to_owner(path);
    let checked = checked.map_err(|error| place.explain(error))?;
    if is_to_be_written || place.has_manifest() {
        place.check_present(checked.identity.as_ref(), mark)?;
    }
    checked.check_known(path, known)?;
    Ok((connection, checked.found))
}

/// A connection that leaves the log beside the file as it is when it is closed: SQLite's own way is to
/// move it into the file, whatever that has become, and remove it.
pub(super) fn open_to_look(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Where there is none, nothing can be moved, and what this connection makes goes away with it.
    let has_log = !files::is_absent(&files::beside(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// A statement stays as it was prepared, whatever its parameters are: SQLite would compile many of them anew
/// at each change, in hope of a better plan for just that value. We keep no statistics to find one by.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// SQLite throws the log of an empty file away. The file was not empty when that log was written.
pub(super) fn has_only_a_log(path: &Path) -> bool {
    files::is_absent(path) && !files::is_absent(&files::beside(path, "-wal"))
}

fn check_log(path: &Path) -> Result<(), OpenError> {
    if has_only_a_log(path) {
        let detail = "it is missing or empty, but its log beside it (-wal) is not".to_owned();
        return Err(OpenError::Corrupt { path: path.to_owned(), detail });
    }
    Ok(())
}

/// Whether there is a file with anything in it; what can be no store is an error.
pub(super) fn check_absent_or_there(path: &Path) -> Result<bool, OpenError> {
    if path.is_dir() {
        return Err(OpenError::Other { path: path.to_owned(), detail: "it is a folder".to_owned() });
    }
    check_log(path)?;
    Ok(!files::is_absent(path))
}

/// What SQLite keeps beside a file has the file's own mode: read-only ones would outlive that mode.
fn open_log_to_owner(path: &Path) {
    for ending in ["-wal", "-shm"] {
        let path = files::beside(path, ending);
        if let Err(error) = files::let_owner_write(&path) {
            log::warn!("{}: {error}", path.display());
        }
    }
}

/// What a look at a file has found.
struct Checked {
    /// Its schema version.
    found: u64,
    /// It is nobody's yet.
    is_fresh: bool,
    identity: Option<Identity>,
}

impl Checked {
    /// Whether it is not of a later version. To be asked once it is known whose file it is: that of another store
    /// may well have more versions.
    fn check_known(&self, path: &Path, known: u64) -> Result<(), OpenError> {
        if self.found > known {
            return Err(OpenError::Newer { path: path.to_owned(), found: self.found, known });
        }
        Ok(())
    }
}

/// Whether a file is ours, and whole. `known` is only for what is said of it.
fn check(connection: &Connection, path: &Path, known: u64, with_pages: bool) -> Result<Checked, OpenError> {
    // All that is asked here is right: an error that is not the disk's is the file's.
    let failed = |error: rusqlite::Error| match OpenError::from_sqlite(path, &error) {
        OpenError::Other { path, detail } => OpenError::Corrupt { path, detail },
        known => known,
    };
    let found = schema_version(connection).map_err(failed)?;
    let tables: i64 =
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let owner: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(failed)?;
    let is_fresh = tables == 0 && found == 0 && owner == 0;
    if !is_fresh && owner != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0)).map_err(failed)?;
    let identity = Identity::of(connection).map_err(failed)?;
    let corrupt = |detail: String| OpenError::Corrupt { path: path.to_owned(), detail };
    if encoding != "UTF-8" {
        return Err(corrupt(format!("its header says that its text is {encoding}")));
    }
    if let Some(identity) = &identity
        && identity.schema != found
    {
        let newer = if found > known { ", as of a newer version" } else { "" };
        let (said, is) = (found as i64, identity.schema);
        return Err(corrupt(format!("its header says schema {said}{newer}, but it is {is}")));
    }
    if with_pages {
        check_pages(connection, path)?;
    }
    Ok(Checked { found, is_fresh, identity })
}

/// Runs `f` in a read transaction: all its queries see one instant.
pub(super) fn read_in<T, E: From<StoreError>>(
    connection: &Connection,
    f: impl FnOnce(&dyn Reader) -> Result<T, E>,
) -> Result<T, E> {
    run(connection, "BEGIN")?;
    let result = f(&SqliteReader(connection))?;
    run(connection, "COMMIT")?;
    Ok(result)
}

/// Runs a statement that answers nothing.
pub(super) fn run(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    let run = || connection.prepare_cached(sql)?.raw_execute();
    run().map(|_rows| ()).map_err(|error| failure(connection, &error))
}

/// An error of a connection, with the name of its file.
pub(super) fn failure(connection: &Connection, error: &rusqlite::Error) -> StoreError {
    StoreError::from_sqlite(file_of(connection), error)
}

/// The name of a connection's file, without the way to it: it may be told to anybody.
pub(super) fn file_of(connection: &Connection) -> &str {
    let name = connection.path().and_then(|path| Path::new(path).file_name());
    name.and_then(|name| name.to_str()).unwrap_or("the store")
}

/// Opens a connection that cannot write, to a file that [`open_writer`] has opened.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        keep_plans(&connection)?;
        connection.pragma_update(None, "query_only", "ON")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(connection)
    };
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    open().map_err(|error| StoreError::from_sqlite(&file, &error))
}

fn schema_version(connection: &Connection) -> rusqlite::Result<u64> {
    // A negative version is none of ours; as unsigned it is newer than all we know.
    connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).map(|version| version as u64)
}

fn check_pages(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(failed)?;
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(failed)?;
    if pages.saturating_mul(page_bytes) > CHECK_UP_TO_BYTES {
        log::info!("{}: too large to be checked at start", path.display());
        return Ok(());
    }
    match integrity(connection, "quick_check") {
        Ok(None) => Ok(()),
        Ok(Some(detail)) => Err(OpenError::Corrupt { path: path.to_owned(), detail }),
        Err(error) => Err(failed(error)),
    }
}

/// Runs `quick_check` or `integrity_check`; what it found first, or nothing if all is well.
pub(super) fn integrity(connection: &Connection, check: &str) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row(&format!("PRAGMA {check}(1)"), [], |row| row.get(0))?;
    Ok((found != "ok").then(|| found.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Each step in a transaction of its own, together with the version it reaches: a crash between two
/// steps leaves a file of a known version.
fn migrate(connection: &Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    for (step, sql) in migrations.iter().enumerate() {
        let version = step as u64 + 1;
        let run = || -> rusqlite::Result<()> {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            // Asked under the lock: another process may be migrating too.
            if schema_version(connection)? < version {
                connection.execute_batch(sql)?;
                connection.pragma_update(None, "user_version", version as i64)?;
                if whole::has_identity(connection)? {
                    connection.execute("UPDATE store_identity SET schema = ?1", [version as i64])?;
                }
            }
            connection.execute_batch("COMMIT")
        };
        if let Err(error) = run() {
            if !connection.is_autocommit()
                && let Err(error) = connection.execute_batch("ROLLBACK")
            {
                log::warn!("{}: rolling back a migration: {}", path.display(), super::error::one_line(&error));
            }
            return Err(match OpenError::from_sqlite(path, &error) {
                OpenError::Other { path, detail } => OpenError::Migration { path, version, detail },
                known => known,
            });
        }
    }
    Ok(())
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Value::Int(number) => ValueRef::Integer(number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
            Value::Null => ValueRef::Null,
        }))
    }
}

/// A prepared statement with its parameters in place.
fn prepare<'c>(
    connection: &'c Connection,
    sql: &str,
    parameters: &[Value<'_>],
) -> Result<CachedStatement<'c>, StoreError> {
    let failed = |error: rusqlite::Error| failure(connection, &error);
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    // One that is missing would silently be NULL.
    let wanted = statement.parameter_count();
    if wanted != parameters.len() {
        return Err(StoreError::Invalid(format!(
            "{} parameters for a statement with {wanted}: {sql}",
            parameters.len()
        )));
    }
    for (place, parameter) in (1..).zip(parameters) {
        // SQLite numbers them by first appearance, PostgreSQL by name: both must agree. Every
        // statement runs in tests, so that asking there is enough.
        if cfg!(debug_assertions) && statement.parameter_name(place) != Some(&format!("${place}")) {
            return Err(StoreError::Invalid(format!("parameters out of order: {sql}")));
        }
        statement.raw_bind_parameter(place, parameter).map_err(failed)?;
    }
    Ok(statement)
}

fn each_row(
    connection: &Connection,
    statement: &mut CachedStatement<'_>,
    each: &mut EachRow<'_>,
) -> Result<(), StoreError> {
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(|error| failure(connection, &error))? {
        each(&Row { sqlite: row }).map_err(|error| error.in_row_of(file_of(connection)))?;
    }
    Ok(())
}

/// A connection that reads. In a transaction all its queries see one instant.
pub(super) struct SqliteReader<'c>(pub(super) &'c Connection);

impl Reader for SqliteReader<'_> {
    fn query(&self, sql: &str, parameters: &[Value<'_>], each: &mut EachRow<'_>) -> Result<(), StoreError> {
        each_row(self.0, &mut prepare(self.0, sql, parameters)?, each)
    }
}

/// One change inside the writer's transaction.
pub(super) struct SqliteTx<'c> {
    connection: &'c Connection,
    /// Whether what it writes can be taken back by itself.
    guarded: bool,
    /// A change that has written nothing yet needs no savepoint.
    savepoint: Cell<bool>,
    wrote: Cell<bool>,
}

impl<'c> SqliteTx<'c> {
    /// A `guarded` change pays for a savepoint and can be undone; another one can only be undone with
    /// its whole transaction, once it has written anything.
    pub(super) fn new(connection: &'c Connection, guarded: bool) -> SqliteTx<'c> {
        SqliteTx { connection, guarded, savepoint: Cell::new(false), wrote: Cell::new(false) }
    }

    fn prepare(&self, sql: &str, parameters: &[Value<'_>]) -> Result<CachedStatement<'c>, StoreError> {
        // SQLite ends the whole transaction after some errors. Whatever ran then would be committed
        // at once and alone.
        if self.connection.is_autocommit() {
            return Err(StoreError::Unavailable("the transaction was rolled back".to_owned()));
        }
        let statement = prepare(self.connection, sql, parameters)?;
        if self.guarded && !self.savepoint.get() && !statement.readonly() {
            self.run("SAVEPOINT change")?;
            self.savepoint.set(true);
        }
        Ok(statement)
    }

    fn run(&self, sql: &str) -> Result<(), StoreError> {
        run(self.connection, sql)
    }

    /// Keeps what the change wrote.
    pub(super) fn keep(&self) -> Result<(), StoreError> {
        if self.savepoint.get() { self.run("RELEASE change") } else { Ok(()) }
    }

    /// Whether [`undo`](SqliteTx::undo) leaves no trace. (A statement that failed left none by itself.)
    pub(super) fn can_undo(&self) -> bool {
        self.guarded || !self.wrote.get()
    }

    /// Takes back what the change wrote, and nothing else.
    pub(super) fn undo(&self) -> Result<(), StoreError> {
        if self.savepoint.get() {
            self.run("ROLLBACK TO change")?;
            self.run("RELEASE change")?;
        }
        Ok(())
    }
}

impl Reader for SqliteTx<'_> {
    fn query(&self, sql: &str, parameters: &[Value<'_>], each: &mut EachRow<'_>) -> Result<(), StoreError> {
        let mut statement = self.prepare(sql, parameters)?;
        // One that writes and answers (RETURNING) has written as soon as it has begun.
        self.wrote.set(self.wrote.get() || !statement.readonly());
        each_row(self.connection, &mut statement, each)
    }
}

impl Tx for SqliteTx<'_> {
    fn execute(&mut self, sql: &str, parameters: &[Value<'_>]) -> Result<u64, StoreError> {
        let rows = self.prepare(sql, parameters)?.raw_execute();
        self.wrote.set(self.wrote.get() || rows.is_ok());
        rows.map(|rows| rows as u64).map_err(|error| failure(self.connection, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    const TERMS: &str = "CREATE TABLE terms (kind BIGINT NOT NULL, term TEXT NOT NULL, price BIGINT NOT NULL,
         PRIMARY KEY (kind, term, price)) WITHOUT ROWID";
    const RANGE: &str = "SELECT price FROM terms WHERE kind = $1 AND term > $2 AND term <= $3 ORDER BY price LIMIT $4";

    #[test]
    fn other_parameters_compile_nothing_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("terms.db");
        let compiled = |connection: &Connection| {
            for kind in 0..5_i64 {
                let values = [kind.into(), Value::from("a"), Value::from("b"), (kind + 1).into()];
                each_row(connection, &mut prepare(connection, RANGE, &values).unwrap(), &mut |_| Ok(())).unwrap();
            }
            connection.prepare_cached(RANGE).unwrap().get_status(StatementStatus::RePrepare)
        };
        let writer = open_writer(&path, &[TERMS]).unwrap().connection;
        assert_eq!((compiled(&writer), compiled(&open_reader(&path).unwrap())), (0, 0));
        // Without it, they do: else there would be nothing to turn off.
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false).unwrap();
        writer.flush_prepared_statement_cache();
        assert!(compiled(&writer) > 0);
    }
}
