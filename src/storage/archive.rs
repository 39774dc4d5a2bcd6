//! What a backup writes and a restore reads.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lock::LOCK_FILE;
use super::range_markers::DataComponent;
use super::{OpenError, accept_loss, manifest};

/// The archive's last entry.
pub(super) const CONTENTS_FILE: &str = "p2s2-backup.json";
/// A later format is refused.
pub(super) const ARCHIVE_FORMAT: u32 = 1;
/// A data dir has a dozen files.
pub(super) const ARCHIVE_FILES_MAX: usize = 100_000;
pub(super) const ARCHIVE_DEPTH_MAX: usize = 16;

/// After an error, nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A backup never replaces a file.
    #[error("{0} exists already: choose another name")]
    Exists(PathBuf),
    /// The archive would become part of the next one.
    #[error("{0} lies in the data dir itself: choose a place outside of it")]
    InsideDataDir(PathBuf),
    #[error("{0} holds no database: is it the data dir?")]
    NoDatabase(PathBuf),
    /// A restore never mixes with existing files.
    #[error("{0} is not empty: restore into an empty or a new folder")]
    NotEmpty(PathBuf),
    #[error(transparent)]
    Lock(#[from] super::lock::LockError),
    /// It is not one of ours, was truncated, or was tampered with.
    #[error("{file} is not a whole backup: {detail}")]
    BadArchive { file: PathBuf, detail: String },
    /// A store is lost, or has lost changes.
    #[error(transparent)]
    StoreLost(#[from] OpenError),
    #[error("database {path}: {detail}")]
    Database { path: PathBuf, detail: String },
    #[error("no room is left on the disk of {0}: nothing was written; choose another place")]
    DiskFull(PathBuf),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ArchivedFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ArchiveContents {
    pub(super) format: u32,
    pub(super) files: Vec<ArchivedFile>,
}

impl BackupError {
    /// The archive is the only file that is written.
    pub(super) fn or_archive_disk_full(self, out_file: &Path) -> BackupError {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            BackupError::DiskFull(_) => BackupError::DiskFull(out_file.to_owned()),
            BackupError::Io { error, .. } if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
                BackupError::DiskFull(out_file.to_owned())
            }
            other => other,
        }
    }
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    move |error| BackupError::Io { path: path.to_owned(), error }
}

pub(super) fn database_error(path: &Path) -> impl Fn(rusqlite::Error) -> BackupError + '_ {
    move |error| BackupError::Database { path: path.to_owned(), detail: super::sqlite::one_line(&error) }
}

/// Such a file belongs to the running process or to this particular data dir rather than to the data.
pub(super) fn is_excluded(name: &Path) -> bool {
    let text = name.to_string_lossy();
    [LOCK_FILE, CONTENTS_FILE].iter().any(|passing| name == Path::new(passing))
        || DataComponent::ALL
            .iter()
            .any(|component| name.file_name().is_some_and(|file| file == component.marker_file().as_str()))
        || text.starts_with(&format!("{LOCK_FILE}-"))
        || manifest::is_temporary(name)
        || accept_loss::is_moved_aside(name)
        || ["-wal", "-shm", "-journal", super::watermark::SUFFIX, ".log"].iter().any(|end| text.ends_with(end))
}
