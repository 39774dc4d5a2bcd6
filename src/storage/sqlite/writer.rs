//! Transactions on a store's file.
//!
//! **The generation** advances about once a second, as part of a transaction that is made anyway, and once more when
//! the last changes are not covered yet. Once that transaction is synced, the generation is written to the watermark
//! (`watermark.rs`): everything committed before it is then known to be on disk. Advancing it in each transaction would
//! cost every one of them a page.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection};

use super::super::engine::{Change, ChangeFailure, WriteConnection};
use super::super::value::RowCallback;
use super::super::watermark::WatermarkWriter;
use super::super::{OpenError, Reader, StoreError, Tx, Value};
use super::reader::{each_row, prepare};
use super::{OpenedStore, execute_cached, file_name_of, one_line, open_writer, store_error};

/// The time between two generations, and so the largest age of changes whose loss would go unnoticed.
const GENERATION_INTERVAL: Duration = Duration::from_secs(1);
/// Closing waits so long for readers in other processes before it gives up its checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(1);

/// The only connection that changes the file.
pub struct SqliteWriter {
    connection: Connection,
    schema_version: usize,
    /// The pages of a failed commit may still be in the log; see [`SqliteWriter::discard_failed_commit`].
    has_failed_commit: bool,
    watermark: WatermarkWriter,
    /// The store's generation on disk.
    generation: u64,
    /// The generation that the watermark says.
    marked_generation: u64,
    /// When the generation last advanced or was due to.
    generation_advanced_at: Option<Instant>,
    /// Changes were committed since the generation advanced.
    has_commits_since: bool,
}

impl SqliteWriter {
    /// See [`Store::open`](crate::storage::Store::open).
    pub(in crate::storage) fn open(path: &Path, migrations: &[&str]) -> Result<SqliteWriter, OpenError> {
        let OpenedStore { connection, id, generation } = open_writer(path, migrations)?;
        let mut watermark = WatermarkWriter::new(path, id);
        // The generation is on disk already; this creates a missing watermark and repairs a torn one.
        watermark.set(generation);
        Ok(SqliteWriter {
            connection,
            schema_version: migrations.len(),
            has_failed_commit: false,
            watermark,
            generation,
            marked_generation: generation,
            generation_advanced_at: None,
            has_commits_since: false,
        })
    }

    /// Works within the open transaction; returns the generation that is valid after the commit.
    fn advance_generation_if_due(&mut self, is_alone: bool) -> Result<Option<u64>, StoreError> {
        let now = Instant::now();
        if !is_alone && self.generation_advanced_at.is_some_and(|at| now < at + GENERATION_INTERVAL) {
            return Ok(None);
        }
        // Set even if the update fails, so that it is not tried again with each transaction.
        self.generation_advanced_at = Some(now);
        let next = self.generation + 1;
        let update = || {
            let mut statement = self.connection.prepare_cached("UPDATE store_identity SET number = ?1")?;
            statement.execute([next as i64])
        };
        match update() {
            Ok(1) => Ok(Some(next)),
            Ok(rows) => {
                let file = file_name_of(&self.connection);
                Err(StoreError::Corrupt(format!("{file}: {rows} rows name the store instead of one")))
            }
            Err(error) => Err(store_error(&self.connection, &error)),
        }
    }

    /// `is_alone` if the transaction has no changes.
    fn commit_with_generation(&mut self, is_alone: bool) -> Result<(), StoreError> {
        let generation = match self.advance_generation_if_due(is_alone) {
            Ok(generation) => generation,
            Err(error) => {
                self.roll_back();
                return Err(error);
            }
        };
        if let Err(error) = self.execute("COMMIT") {
            self.roll_back();
            self.has_failed_commit = true;
            // Now if possible, else before the next transaction.
            if let Err(error) = self.discard_failed_commit() {
                log::warn!("after a failed commit: {error}");
            }
            return Err(match error {
                error @ (StoreError::Unavailable(_) | StoreError::Corrupt(_)) => error,
                // Which change caused it is not known; for the others it only means to try again.
                error => StoreError::Unavailable(format!("the commit failed: {error}")),
            });
        }
        self.has_commits_since = generation.is_none();
        self.generation = generation.unwrap_or(self.generation);
        Ok(())
    }

    /// Makes sure that no trace of a failed commit can come back. If the sync of the log failed, its frames may be in
    /// it and valid although no reader sees them; after a power cut they would count as committed. The next commit
    /// overwrites the first of them, which invalidates the checksums of the rest. So a commit that changes nothing has
    /// to succeed before anything else is stored.
    fn discard_failed_commit(&mut self) -> Result<(), StoreError> {
        if !self.connection.is_autocommit() {
            self.execute("ROLLBACK")?;
        }
        if self.has_failed_commit {
            self.execute(&format!("PRAGMA user_version = {}", self.schema_version))?;
            self.has_failed_commit = false;
        }
        Ok(())
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        execute_cached(&self.connection, sql)
    }
}

impl WriteConnection for SqliteWriter {
    fn begin(&mut self) -> Result<(), StoreError> {
        self.discard_failed_commit()?;
        self.execute("BEGIN IMMEDIATE")
    }

    fn run_change(&mut self, change: Change, independent: bool) -> Result<(), ChangeFailure> {
        let mut tx = SqliteTx::new(&self.connection, independent);
        let result = panic::catch_unwind(AssertUnwindSafe(|| change(&mut tx)))
            .unwrap_or_else(|_| Err(StoreError::Invalid("a change panicked".to_owned())));
        // SQLite ends the whole transaction after some errors (disk full, I/O), whatever the change does about them.
        if self.connection.is_autocommit() {
            let reason = match result {
                Err(error @ (StoreError::Unavailable(_) | StoreError::Corrupt(_))) => error,
                _ => StoreError::Unavailable("the transaction was rolled back".to_owned()),
            };
            return Err(ChangeFailure::Transaction(reason));
        }
        match result {
            Ok(()) => tx.release_savepoint().map_err(ChangeFailure::Transaction),
            Err(error) if !tx.can_roll_back() => {
                let error = StoreError::Unavailable(format!("a change that others build on failed: {error}"));
                Err(ChangeFailure::Transaction(error))
            }
            Err(error) => {
                tx.roll_back().map_err(ChangeFailure::Transaction)?;
                Err(ChangeFailure::Change(error))
            }
        }
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.commit_with_generation(false)
    }

    fn roll_back(&mut self) {
        // If this fails the transaction is still open, and `discard_failed_commit` tries again before the next one.
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            log::error!("rolling back: {error}");
        }
    }

    fn after_callbacks(&mut self) {
        if self.generation != self.marked_generation {
            self.watermark.set(self.generation);
            self.marked_generation = self.generation;
        }
    }

    fn upkeep_due_at(&self) -> Option<Instant> {
        self.generation_advanced_at.filter(|_| self.has_commits_since).map(|at| at + GENERATION_INTERVAL)
    }

    /// Advances the generation in a transaction of its own, when no other came in time. If it fails it is tried again
    /// with the next transaction, or after a while.
    fn upkeep(&mut self) {
        self.generation_advanced_at = Some(Instant::now());
        match self.begin().and_then(|()| self.commit_with_generation(true)) {
            Ok(()) => self.after_callbacks(),
            Err(error) => log::debug!("the store's number was not counted on: {error}"),
        }
    }

    /// Moves the write-ahead log into the file. The checkpoint is not needed for safety: the log is on disk and is read
    /// at the next start. So it does not wait long for other readers (a backup, an admin command).
    fn close(self: Box<Self>) {
        let file = file_name_of(&self.connection).to_owned();
        let warn = |error: rusqlite::Error| log::warn!("{file}: {}", one_line(&error));
        self.connection.busy_timeout(CHECKPOINT_TIMEOUT).unwrap_or_else(warn);
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())).unwrap_or_else(warn);
        self.connection.close().unwrap_or_else(|(_connection, error)| warn(error));
    }
}

/// One change inside the writer's transaction.
struct SqliteTx<'c> {
    connection: &'c Connection,
    /// Its writes can be rolled back by themselves.
    has_savepoint: bool,
    /// A change that has written nothing yet needs no savepoint.
    is_savepoint_open: Cell<bool>,
    has_written: Cell<bool>,
}

impl<'c> SqliteTx<'c> {
    /// A change with a savepoint pays for it and can be rolled back; another one can, once it has written anything,
    /// only be rolled back with its whole transaction.
    fn new(connection: &'c Connection, has_savepoint: bool) -> SqliteTx<'c> {
        SqliteTx { connection, has_savepoint, is_savepoint_open: Cell::new(false), has_written: Cell::new(false) }
    }

    fn prepare(&self, sql: &str, parameters: &[Value<'_>]) -> Result<CachedStatement<'c>, StoreError> {
        // SQLite ends the whole transaction after some errors. A later statement would be committed at once and alone.
        if self.connection.is_autocommit() {
            return Err(StoreError::Unavailable("the transaction was rolled back".to_owned()));
        }
        let statement = prepare(self.connection, sql, parameters)?;
        if self.has_savepoint && !self.is_savepoint_open.get() && !statement.readonly() {
            self.run("SAVEPOINT change")?;
            self.is_savepoint_open.set(true);
        }
        Ok(statement)
    }

    fn run(&self, sql: &str) -> Result<(), StoreError> {
        execute_cached(self.connection, sql)
    }

    fn release_savepoint(&self) -> Result<(), StoreError> {
        if self.is_savepoint_open.get() { self.run("RELEASE change") } else { Ok(()) }
    }

    /// [`roll_back`](SqliteTx::roll_back) leaves no trace. (A statement that failed left none by itself.)
    fn can_roll_back(&self) -> bool {
        self.has_savepoint || !self.has_written.get()
    }

    /// Rolls back nothing but the change's own writes.
    fn roll_back(&self) -> Result<(), StoreError> {
        if self.is_savepoint_open.get() {
            self.run("ROLLBACK TO change")?;
            self.run("RELEASE change")?;
        }
        Ok(())
    }
}

impl Reader for SqliteTx<'_> {
    fn query(&self, sql: &str, parameters: &[Value<'_>], each: &mut RowCallback<'_>) -> Result<(), StoreError> {
        let mut statement = self.prepare(sql, parameters)?;
        // A statement with RETURNING has written as soon as it has begun.
        self.has_written.set(self.has_written.get() || !statement.readonly());
        each_row(self.connection, &mut statement, each)
    }
}

impl Tx for SqliteTx<'_> {
    fn execute(&mut self, sql: &str, parameters: &[Value<'_>]) -> Result<u64, StoreError> {
        let rows = self.prepare(sql, parameters)?.raw_execute();
        self.has_written.set(self.has_written.get() || rows.is_ok());
        rows.map(|rows| rows as u64).map_err(|error| store_error(self.connection, &error))
    }
}
