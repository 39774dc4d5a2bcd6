//! The archive that a backup writes and a restore reads: its limits, its table of contents, and what is left out of it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lock::LOCK_FILE;
use super::range_markers::DataComponent;
use super::{OpenError, accept_loss, manifest};

/// The table of contents, which is the archive's last entry.
pub(super) const CONTENTS_FILE: &str = "p2s2-backup.json";
/// The archive's format version; a later one is refused.
pub(super) const ARCHIVE_FORMAT: u32 = 1;
/// Limits of an archive: number of files and depth of folders. A data dir has a dozen files.
pub(super) const ARCHIVE_FILES_MAX: usize = 100_000;
pub(super) const ARCHIVE_DEPTH_MAX: usize = 16;

/// Why a backup was not made or not restored. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A backup never replaces a file.
    #[error("{0} exists already: choose another name")]
    Exists(PathBuf),
    /// The archive would become part of the next one.
    #[error("{0} lies in the data dir itself: choose a place outside of it")]
    InsideDataDir(PathBuf),
    /// The folder holds no database.
    #[error("{0} holds no database: is it the data dir?")]
    NoDatabase(PathBuf),
    /// A restore never mixes with existing files.
    #[error("{0} is not empty: restore into an empty or a new folder")]
    NotEmpty(PathBuf),
    /// Another process uses the data dir, or it cannot be locked.
    #[error(transparent)]
    Lock(#[from] super::lock::LockError),
    /// The archive is not one of ours, was truncated, or was tampered with.
    #[error("{file} is not a whole backup: {detail}")]
    BadArchive {
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A store of the data dir is lost, or has lost changes.
    #[error(transparent)]
    StoreLost(#[from] OpenError),
    /// A database could not be copied or is damaged.
    #[error("database {path}: {detail}")]
    Database { path: PathBuf, detail: String },
    /// The archive does not fit on the disk.
    #[error("no room is left on the disk of {0}: nothing was written; choose another place")]
    DiskFull(PathBuf),
    /// An error of the file system.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        error: io::Error,
    },
}

/// An entry of the table of contents.
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
    /// Attributes a full disk to the archive, the only file that is written.
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
    move |error| BackupError::Database { path: path.to_owned(), detail: super::error::one_line(&error) }
}

/// Whether a file belongs to the running process or to this particular data dir rather than to the data.
pub(super) fn is_excluded(name: &Path) -> bool {
    let text = name.to_string_lossy();
    [LOCK_FILE, CONTENTS_FILE].iter().any(|passing| name == Path::new(passing))
        || DataComponent::ALL
            .iter()
            .any(|component| name.file_name().is_some_and(|file| file == component.marker_file()))
        || text.starts_with(&format!("{LOCK_FILE}-"))
        || manifest::is_temporary(name)
        || accept_loss::is_moved_aside(name)
        || ["-wal", "-shm", "-journal", super::watermark::SUFFIX, ".log"].iter().any(|end| text.ends_with(end))
}
