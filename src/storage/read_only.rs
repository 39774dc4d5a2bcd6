use std::path::Path;

use super::engine::{ReadConnection, read_snapshot};
use super::sqlite::{self, SqliteReader};
use super::{OpenError, Reader, StoreError};

/// Reads a store's file, beside its server or without one, and leaves no trace: neither the file nor its log is
/// changed, even if they are damaged.
#[derive(Debug)]
pub struct ReadOnlyStore {
    connection: SqliteReader,
}

impl ReadOnlyStore {
    /// A [`Store`](super::Store) with the same `migrations` must have created it.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<ReadOnlyStore, OpenError> {
        Ok(ReadOnlyStore { connection: sqlite::open_read_only(path, migrations.len() as u64)? })
    }

    /// All queries see one snapshot.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let result = read_snapshot(&self.connection, f);
        // If `f` has failed, the next read needs a snapshot of its own.
        if !self.connection.reset() {
            return Err(StoreError::Unavailable("its last query could not be ended".to_owned()).into());
        }
        result
    }
}
