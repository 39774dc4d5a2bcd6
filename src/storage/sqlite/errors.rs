use std::path::Path;

use rusqlite::ErrorCode;

use super::super::{OpenError, StoreError};

impl StoreError {
    /// Names the file, because a data dir has several. It is not `From`, which would put rusqlite into the public
    /// interface.
    pub(in crate::storage) fn from_sqlite(file: &str, error: &rusqlite::Error) -> StoreError {
        let text = format!("{file}: {}", one_line(error));
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::Constraint(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(text),
            Some(ErrorCode::DiskFull) => StoreError::Unavailable(format!("{file}: the disk is full")),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Unavailable(format!("{file}: another process holds its lock (a backup?)"))
            }
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::FileLockingProtocolFailed,
            ) => StoreError::Unavailable(text),
            _ => StoreError::Invalid(text),
        }
    }
}

impl OpenError {
    pub(in crate::storage) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> OpenError {
        let (path, detail) = (path.to_owned(), one_line(error));
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, detail },
            Some(ErrorCode::DiskFull) => OpenError::DiskFull { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path },
            Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => OpenError::Permission { path, detail },
            Some(ErrorCode::SystemIoFailure) => OpenError::Disk { path, detail },
            _ => OpenError::Other { path, detail },
        }
    }
}

/// SQLite's messages quote statements, which have lines.
pub(in crate::storage) fn one_line(error: &rusqlite::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
