//! A store's file that is only looked at, beside its server or without one.

use std::path::Path;

use rusqlite::Connection;

use super::{OpenError, Reader, StoreError, sqlite};

/// Reads, and leaves no trace: neither the file is changed nor its log, not even a damaged one's.
#[derive(Debug)]
pub struct View {
    connection: Connection,
}

impl View {
    /// Opens a file that a [`Store`](super::Store) with the same `migrations` has made.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<View, OpenError> {
        Ok(View { connection: sqlite::open_view(path, migrations.len() as u64)? })
    }

    /// Reads one instant.
    ///
    /// # Errors
    /// What `f` answers, or why the file could not be read.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let result = sqlite::read_in(&self.connection, f);
        if !self.connection.is_autocommit() {
            // It failed; the next one is to see an instant of its own.
            sqlite::run(&self.connection, "ROLLBACK")?;
        }
        result
    }
}
