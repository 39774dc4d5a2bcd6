use std::path::Path;

use rusqlite::Connection;

use super::{OpenError, Reader, StoreError, sqlite};

/// Reads a store's file, beside its server or without one, and leaves no trace: neither the file nor its log is
/// changed, even if they are damaged.
#[derive(Debug)]
pub struct ReadOnlyStore {
    connection: Connection,
}

impl ReadOnlyStore {
    /// A [`Store`](super::Store) with the same `migrations` must have created it.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<ReadOnlyStore, OpenError> {
        Ok(ReadOnlyStore { connection: sqlite::open_read_only(path, migrations.len() as u64)? })
    }

    /// All queries see one snapshot.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let result = sqlite::read_transaction(&self.connection, f);
        if !self.connection.is_autocommit() {
            // `f` failed inside the transaction; the next read needs a snapshot of its own.
            sqlite::execute_cached(&self.connection, "ROLLBACK")?;
        }
        result
    }
}
