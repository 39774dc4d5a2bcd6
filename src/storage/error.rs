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
    #[error("the store's file is damaged: {0}; restore a backup into an empty data dir")]
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

    /// A value that was read from a file and is none of those that this program writes there.
    pub(super) fn in_row_of(self, file: &str) -> StoreError {
        match self {
            StoreError::Invalid(detail) => StoreError::Corrupt(format!("{file}: {detail}")),
            other => other,
        }
    }

    pub(super) fn closed() -> StoreError {
        StoreError::Unavailable("it is closed".to_owned())
    }

    /// What SQLite says of a file, which is named: a data dir has several. Not `From`: that would put rusqlite
    /// into the public interface.
    pub(super) fn from_sqlite(file: &str, error: &rusqlite::Error) -> StoreError {
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

/// Why a store's file could not be opened. It was left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no SQLite database, or its header is damaged.
    #[error("{path} is not a database, or its beginning is damaged: {}", way_out(.path))]
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
    /// The data dir's manifest names the file, and it is not there.
    #[error("{path} is missing or empty, but this data dir had it{detail}: {}", way_out(.path))]
    Missing {
        /// The file.
        path: PathBuf,
        /// What shows that it was there; may be empty.
        detail: String,
    },
    /// The file is one of ours, but not the one that belongs there.
    #[error("{path} is not the store that belongs there ({detail}): put that one back; or {}", way_out(.path))]
    Stranger {
        /// The file.
        path: PathBuf,
        /// What it is.
        detail: String,
    },
    /// The file is whole, but older than what is known to have been on the disk.
    #[error(
        "{path} has lost changes that were on the disk (it holds number {holds} and had number {mark}: its log (-wal) \
         is lost or damaged, or this is an older copy): {}", way_out(.path)
    )]
    Behind {
        /// The file.
        path: PathBuf,
        /// The number of the newest change in it.
        holds: u64,
        /// The number of the newest change that was known to be on disk.
        mark: u64,
    },
    /// The file's mark was there, and is gone.
    #[error(
        "{path}-mark is missing: it tells whether {path} holds all that was on the disk, so it may have lost something \
         (a copy of a data dir has to be one of all its files): put it back; or {}", way_out(.path)
    )]
    Unmarked {
        /// The file that it stands beside.
        path: PathBuf,
    },
    /// The manifest of the data dir cannot be used.
    #[error("{path} cannot be used ({detail}): {}", way_out(.path))]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file is damaged.
    #[error("{path} is damaged ({detail}): {}", way_out(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// A later version of this program has written the file.
    #[error(
        "{path} was written by a newer version of this program (schema {found}, this one knows {known}): use that \
         version; or {}", way_out(.path)
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

/// What to do about a file that is lost or damaged.
fn way_out(path: &Path) -> String {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let dir = super::files::parent_of(path).unwrap_or(Path::new(".")).display();
    format!(
        "restore a backup into an empty data dir, or accept the loss by `p2s2 admin accept-loss {file} --data-dir {dir}`"
    )
}

impl OpenError {
    /// Whether the file, or something of it, is gone: what an operator may accept.
    pub fn is_loss(&self) -> bool {
        use OpenError::{Behind, Corrupt, Foreign, Manifest, Missing, Newer, NotADatabase, Stranger, Unmarked};
        matches!(
            self,
            Missing { .. }
                | Stranger { .. }
                | Behind { .. }
                | Unmarked { .. }
                | Manifest { .. }
                | NotADatabase { .. }
                | Corrupt { .. }
                | Foreign { .. }
                | Newer { .. }
        )
    }

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
