//! Each error is a single line for the person who reads it.

use std::path::{Path, PathBuf};

/// After an error, nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or fails, or the store is locked or closed: try again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Too many changes or queries are waiting: try again.
    #[error("the store is busy: too much waits for it")]
    Busy,
    #[error("the store's file is damaged: {0}; restore a backup into an empty data dir")]
    Corrupt(String),
    /// A rule of the tables is violated: unique, foreign key or check.
    #[error("a rule of the store forbids it: {0}")]
    Constraint(String),
    /// The closure that makes the change has refused it.
    #[error("refused: {0}")]
    Rejected(String),
    /// A statement, a parameter or a stored value is not what this program expects: a programming error.
    #[error("the store was used wrongly: {0}")]
    Invalid(String),
}

impl StoreError {
    /// What chained changes get after one that failed.
    pub(super) fn superseded() -> StoreError {
        StoreError::Unavailable("an earlier change that this one builds on was not stored".to_owned())
    }

    /// An unexpected stored value is damage of the file that it was read from.
    pub(super) fn into_corruption_of(self, file: &str) -> StoreError {
        match self {
            StoreError::Invalid(detail) => StoreError::Corrupt(format!("{file}: {detail}")),
            other => other,
        }
    }

    pub(super) fn closed() -> StoreError {
        StoreError::Unavailable("it is closed".to_owned())
    }
}

/// After an error, the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is not a database, or its beginning is damaged: {}", recovery_advice(.path))]
    NotADatabase { path: PathBuf },
    #[error("{path} is another program's database: choose another data dir")]
    Foreign { path: PathBuf },
    /// The data dir's manifest names the file.
    #[error("{path} is missing or empty, but this data dir had it{detail}: {}", recovery_advice(.path))]
    Missing {
        path: PathBuf,
        /// What shows that it was there; may be empty.
        detail: String,
    },
    /// The file is one of ours, but not the one that belongs there.
    #[error("{path} is not the store that belongs there ({detail}): put that one back; or {}", recovery_advice(.path))]
    WrongStore { path: PathBuf, detail: String },
    /// The file is intact, but older than what is known to have been on disk.
    #[error(
        "{path} has lost changes that were on the disk (it holds number {stored} and had number {watermark}: its log (-wal) \
         is lost or damaged, or this is an older copy): {}", recovery_advice(.path)
    )]
    BehindWatermark {
        path: PathBuf,
        /// The generation in the file.
        stored: u64,
        /// The generation that was known to be on disk.
        watermark: u64,
    },
    #[error(
        "{path}-mark is missing: it tells whether {path} holds all that was on the disk, so it may have lost something \
         (a copy of a data dir has to be one of all its files): put it back; or {}", recovery_advice(.path)
    )]
    MissingWatermark {
        /// The file that it stands beside.
        path: PathBuf,
    },
    #[error("{path} cannot be used ({detail}): {}", recovery_advice(.path))]
    Manifest { path: PathBuf, detail: String },
    #[error("{path} is damaged ({detail}): {}", recovery_advice(.path))]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "{path} was written by a newer version of this program (schema {found}, this one knows {known}): use that \
         version; or {}", recovery_advice(.path)
    )]
    NewerSchema { path: PathBuf, found: u64, known: u64 },
    /// An earlier version of this program has written the file, and it is opened read-only.
    #[error(
        "{path} was written by an older version of this program (schema {found}, this one knows {known}): start the server on it once"
    )]
    OlderSchema { path: PathBuf, found: u64, known: u64 },
    /// SQLite also reports a full disk this way when it is about to map or lengthen a file.
    #[error("the disk of {path} does not read or write ({detail}): see whether it is full (df) or failing (dmesg)")]
    Disk { path: PathBuf, detail: String },
    #[error("no room is left on the disk of {path}: free some and start again")]
    DiskFull { path: PathBuf },
    #[error("no permission to read and write {path} ({detail}): run as its owner or choose another data dir")]
    Permission { path: PathBuf, detail: String },
    /// Another process held the lock until the timeout.
    #[error("{path} stayed locked by another process (a backup?): start again when it has ended")]
    Locked { path: PathBuf },
    #[error("{path} could not be brought to schema {version} ({detail}): it was left as it was")]
    Migration {
        path: PathBuf,
        /// The version that was to be reached.
        version: u64,
        detail: String,
    },
    #[error("{path} could not be opened: {detail}")]
    Other { path: PathBuf, detail: String },
}

/// What to do about a file that is lost or damaged.
fn recovery_advice(path: &Path) -> String {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let dir = super::files::parent_of(path).unwrap_or(Path::new(".")).display();
    format!(
        "restore a backup into an empty data dir, or accept the loss by `p2s2 admin accept-loss {file} --data-dir {dir}`"
    )
}

impl OpenError {
    /// The file, or part of its content, is gone: a loss that an operator may accept.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            OpenError::Missing { .. }
                | OpenError::WrongStore { .. }
                | OpenError::BehindWatermark { .. }
                | OpenError::MissingWatermark { .. }
                | OpenError::Manifest { .. }
                | OpenError::NotADatabase { .. }
                | OpenError::Corrupt { .. }
                | OpenError::Foreign { .. }
                | OpenError::NewerSchema { .. }
        )
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
