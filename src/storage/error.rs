//! What can go wrong with a store, in one line each, for the person who reads it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why a change or a query did not come about. Nothing was changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It could not be stored or read now (disk full, I/O error, locked, closed): try again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// More waits than the store takes on: try again.
    #[error("the store is busy: too much waits for it")]
    Busy,
    /// The file is damaged.
    #[error("the store's file is damaged: {0}; restore a backup")]
    Corrupt(String),
    /// A rule of the tables (unique, foreign key, check) forbids it.
    #[error("a rule of the store forbids it: {0}")]
    Constraint(String),
    /// A rule of the one who made the change forbids it; for closures to answer.
    #[error("refused: {0}")]
    Refused(String),
    /// A statement, a parameter or a stored value is not what this program expects: a mistake in it.
    #[error("the store was used wrongly: {0}")]
    Invalid(String),
}

impl StoreError {
    /// For chained changes after one that failed.
    pub(super) fn superseded() -> StoreError {
        StoreError::Unavailable("an earlier change that this one builds on was not stored".to_owned())
    }

    pub(super) fn closed() -> StoreError {
        StoreError::Unavailable("it is closed".to_owned())
    }

    /// Not `From`: that would put rusqlite into the public interface.
    pub(super) fn from_sqlite(error: &rusqlite::Error) -> StoreError {
        let text = one_line(error);
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::Constraint(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(text),
            Some(ErrorCode::DiskFull) => StoreError::Unavailable("the disk is full".to_owned()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Unavailable("another process holds its lock (a backup?)".to_owned())
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

/// Why a store's file could not be opened. It was left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no SQLite database, or its header is damaged.
    #[error(
        "{path} is not a database, or its beginning is damaged: move it away, or restore a backup into an empty data dir"
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// A database, but not one of ours.
    #[error("{path} is another program's database: choose another data dir")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("{path} is damaged ({detail}): keep a copy of it and restore a backup into an empty data dir")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// A later version of this program has written the file.
    #[error(
        "{path} was written by a newer version of this program (schema {found}, this one knows {known}): use that version"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's schema version.
        found: u64,
        /// The newest schema version that is known here.
        known: u64,
    },
    /// An earlier version of this program has written the file, and here it is only looked at.
    #[error(
        "{path} was written by an older version of this program (schema {found}, this one knows {known}): start the server on it once"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The file's schema version.
        found: u64,
        /// The newest schema version that is known here.
        known: u64,
    },
    /// The disk fails, which SQLite tells of a full one too where it is about to map or lengthen a file.
    #[error("the disk of {path} does not read or write ({detail}): see whether it is full (df) or failing (dmesg)")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// No room is left on the disk.
    #[error("no room is left on the disk of {path}: free some and start again")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The file or its folder may not be read and written.
    #[error("no permission to read and write {path} ({detail}): run as its owner or choose another data dir")]
    Permission {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Another process holds the file's lock for longer than we wait.
    #[error("{path} stayed locked by another process (a backup?): start again when it has ended")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A step from one schema version to the next failed.
    #[error("{path} could not be brought to schema {version} ({detail}): it was left as it was")]
    Migration {
        /// The file.
        path: PathBuf,
        /// The version that was to be reached.
        version: u64,
        /// What SQLite said.
        detail: String,
    },
    /// Anything else that the system said.
    #[error("{path} could not be opened: {detail}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
}

impl OpenError {
    pub(super) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> OpenError {
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

    pub(super) fn from_io(path: &Path, error: &std::io::Error) -> OpenError {
        use std::io::ErrorKind;
        let (path, detail) = (path.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => OpenError::Permission { path, detail },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => OpenError::DiskFull { path },
            _ => OpenError::Other { path, detail },
        }
    }
}

/// SQLite's messages quote statements, which have lines.
pub(super) fn one_line(error: &rusqlite::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
