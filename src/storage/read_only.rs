//! Read-only access to a store's file, beside its server or without one.

use std::path::Path;

use rusqlite::Connection;

use super::{OpenError, Reader, StoreError, sqlite};

/// Reads a store without leaving a trace: neither the file nor its log is changed, even if they are damaged.
#[derive(Debug)]
pub struct ReadOnlyStore {
    connection: Connection,
}

impl ReadOnlyStore {
    /// Opens a file that a [`Store`](super::Store) with the same `migrations` has created.
    ///
    /// # Errors
    /// A one-line instruction for the operator.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<ReadOnlyStore, OpenError> {
        Ok(ReadOnlyStore { connection: sqlite::open_read_only(path, migrations.len() as u64)? })
    }

    /// Runs queries against one snapshot.
    ///
    /// # Errors
    /// What `f` returns, or why the file could not be read.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let result = sqlite::read_transaction(&self.connection, f);
        if !self.connection.is_autocommit() {
            // `f` failed inside the transaction; the next read needs a snapshot of its own.
            sqlite::execute_cached(&self.connection, "ROLLBACK")?;
        }
        result
    }
}
