//! Backs up a data dir, even while it is in use, into one archive of one instant.
//!
//! Every database is locked for writing, in a fixed order. With all locks held, a second connection of each opens a
//! snapshot, and the small files beside them (certificate, keys) are read. Then servers write on while the snapshots
//! are copied. On a read-only file system the files are copied as they are, because SQLite could not even read a log
//! there.
//!
//! The archive is a plain tar: the files, then a table of contents with the size and SHA-256 of each, so that a
//! truncated or damaged archive is recognised. It holds secrets: mode 600.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};

pub use super::accept_loss::{AcceptLossError, AcceptedLoss, accept_loss};
pub use super::archive::BackupError;
use super::archive::{
    ARCHIVE_DEPTH_MAX, ARCHIVE_FILES_MAX, ARCHIVE_FORMAT, ArchiveContents, ArchivedFile, CONTENTS_FILE, database_error,
    io_error, is_excluded,
};
pub use super::id_ranges::{first_id_range, start_new_id_range};
use super::lock::STAGING_DIR;
pub use super::range_markers::{DataComponent, ID_RANGE_MAX};
pub use super::restore::restore;
use super::{files, integrity, manifest, sqlite};

/// Larger files are read once the writers go on.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;
/// Pages copied between two calls of `progress`.
const PAGES_PER_STEP: i32 = 1024;

/// Copies a data dir into one new archive. `progress` is called with the bytes done and the total.
pub fn backup(data_dir: &Path, out_file: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BackupError> {
    if out_file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(out_file.to_owned()));
    }
    let folder = files::parent_of(out_file).unwrap_or(Path::new("."));
    let real = |dir: &Path| dir.canonicalize().map_err(io_error(dir));
    if real(folder)?.starts_with(real(data_dir)?) {
        return Err(BackupError::InsideDataDir(out_file.to_owned()));
    }
    let (databases, others) = list_files(data_dir)?;
    if databases.is_empty() {
        return Err(BackupError::NoDatabase(data_dir.to_owned()));
    }
    check_stores_present(data_dir, &databases)?;
    let scratch = ScratchDir::new(folder, out_file).map_err(|error| error.or_archive_disk_full(out_file))?;

    let (locks, snapshots) = if is_on_read_only_disk(&data_dir.join(&databases[0])) {
        let copy = |name: &PathBuf| DatabaseSnapshot::copy_read_only(data_dir, name, &scratch);
        let snapshots = databases.iter().map(copy).collect::<Result<Vec<_>, _>>();
        (Vec::new(), snapshots.map_err(|error| error.or_archive_disk_full(out_file))?)
    } else {
        let locks =
            databases.iter().map(|name| lock_for_writing(&data_dir.join(name))).collect::<Result<Vec<_>, _>>()?;
        let take = |name: &PathBuf| DatabaseSnapshot::begin(data_dir, name);
        (locks, databases.iter().map(take).collect::<Result<Vec<_>, _>>()?)
    };
    let mut small = Vec::new();
    let mut large = Vec::new();
    for name in others {
        let path = data_dir.join(&name);
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let metadata = file.metadata().map_err(io_error(&path))?;
        if metadata.len() > SMALL_FILE_BYTES_MAX {
            large.push((name, file, metadata));
        } else {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(io_error(&path))?;
            small.push((name, bytes, mode_of(&metadata)));
        }
    }
    drop(locks);

    let archive = write_archive(&scratch, small, large, snapshots, progress)
        .map_err(|error| error.or_archive_disk_full(out_file))?;
    // A link, unlike a rename, never replaces what another process has put there meanwhile.
    match std::fs::hard_link(&archive, out_file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(out_file.to_owned()));
        }
        // Not every file system has hard links.
        Err(_) if !out_file.exists() => std::fs::rename(&archive, out_file).map_err(io_error(out_file))?,
        result => result.map_err(io_error(out_file))?,
    }
    drop(scratch);
    files::sync_dir(folder).map_err(io_error(folder))
}

type SmallFile = (PathBuf, Vec<u8>, u32);
type LargeFile = (PathBuf, File, std::fs::Metadata);

/// The archive is synced and lies in the scratch folder; returns its path.
fn write_archive(
    scratch: &ScratchDir,
    small: Vec<SmallFile>,
    large: Vec<LargeFile>,
    snapshots: Vec<DatabaseSnapshot>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, BackupError> {
    let mut meter = ProgressMeter { done: 0, total: 0, report: progress };
    // A database is copied twice: out of the file, and into the archive.
    meter.total = snapshots.iter().map(|snapshot| 2 * snapshot.bytes).sum::<u64>()
        + small.iter().map(|(_, bytes, _)| bytes.len() as u64).sum::<u64>()
        + large.iter().map(|(_, _, metadata)| metadata.len()).sum::<u64>();

    let archive = scratch.dir.join("archive");
    let file = files::private_file_options().write(true).create_new(true).open(&archive).map_err(io_error(&archive))?;
    let mut writer = ArchiveWriter {
        tar: tar::Builder::new(file),
        contents: ArchiveContents { format: ARCHIVE_FORMAT, files: Vec::new() },
    };
    for (name, bytes, mode) in &small {
        writer.add(name, &mut bytes.as_slice(), bytes.len() as u64, *mode, &mut meter)?;
    }
    for (name, mut file, metadata) in large {
        writer.add(&name, &mut file, metadata.len(), mode_of(&metadata), &mut meter)?;
    }
    for snapshot in snapshots {
        let copy = scratch.dir.join("database");
        snapshot.copy_to(&copy, &mut meter)?;
        let mut file = File::open(&copy).map_err(io_error(&copy))?;
        let size = file.metadata().map_err(io_error(&copy))?.len();
        writer.add(&snapshot.name, &mut file, size, 0o600, &mut meter)?;
        std::fs::remove_file(&copy).map_err(io_error(&copy))?;
    }
    writer.finish().and_then(|file| file.sync_all()).map_err(io_error(&archive))?;
    Ok(archive)
}

/// Databases and other files, relative to the data dir, each sorted.
fn list_files(data_dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), BackupError> {
    let (mut databases, mut others) = (Vec::new(), Vec::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = data_dir.join(&folder);
        for entry in std::fs::read_dir(&path).map_err(io_error(&path))? {
            let entry = entry.map_err(io_error(&path))?;
            let name = folder.join(entry.file_name());
            // Links are not followed; a link, socket or pipe is no part of the data.
            let kind = entry.file_type().map_err(io_error(&path))?;
            if kind.is_dir() && name.components().count() < ARCHIVE_DEPTH_MAX && name != Path::new(STAGING_DIR) {
                folders.push(name);
            } else if kind.is_file() && !is_excluded(&name) {
                let is_database = name.extension().is_some_and(|extension| extension == "db");
                if is_database { databases.push(name) } else { others.push(name) }
            }
        }
        if databases.len() + others.len() > ARCHIVE_FILES_MAX {
            let error = io::Error::other(format!("more than {ARCHIVE_FILES_MAX} files: is it the data dir?"));
            return Err(BackupError::Io { path: data_dir.to_owned(), error });
        }
    }
    databases.sort();
    others.sort();
    Ok((databases, others))
}

/// A backup without a store that the manifests name would hide the loss.
fn check_stores_present(data_dir: &Path, databases: &[PathBuf]) -> Result<(), BackupError> {
    let folders: BTreeSet<&Path> = databases.iter().filter_map(|name| name.parent()).chain([Path::new("")]).collect();
    for folder in folders {
        manifest::check_stores_present(&data_dir.join(folder))?;
    }
    Ok(())
}

/// To be called only while this process has not opened the file: closing it again would drop SQLite's locks.
fn is_on_read_only_disk(path: &Path) -> bool {
    let opened = File::options().write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

fn lock_for_writing(path: &Path) -> Result<Connection, BackupError> {
    let refused = |detail: &str| BackupError::Database { path: path.to_owned(), detail: detail.to_owned() };
    if sqlite::has_orphaned_wal(path) {
        return Err(refused("it is empty, but its log beside it (-wal) is not"));
    }
    let failed = database_error(path);
    let connection = sqlite::open_without_checkpoint(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(&failed)?;
    if connection.is_readonly(MAIN_DB).map_err(&failed)? {
        return Err(refused("it may only be read: run as its owner"));
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    integrity::check_backup_source(path, &connection)?;
    Ok(connection)
}

/// Its read transaction began while all databases were locked.
struct DatabaseSnapshot {
    name: PathBuf,
    path: PathBuf,
    connection: Connection,
    bytes: u64,
}

impl DatabaseSnapshot {
    fn begin(data_dir: &Path, name: &Path) -> Result<DatabaseSnapshot, BackupError> {
        let path = data_dir.join(name);
        let take = || {
            let connection = sqlite::open_without_checkpoint(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.execute_batch("BEGIN")?;
            // The first read takes the snapshot.
            connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_row| Ok(()))?;
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            Ok((connection, (pages * page_bytes) as u64))
        };
        let (connection, bytes) = take().map_err(database_error(&path))?;
        Ok(DatabaseSnapshot { name: name.to_owned(), path, connection, bytes })
    }

    /// Copies the file and its log, which no process can be changing.
    fn copy_read_only(data_dir: &Path, name: &Path, scratch: &ScratchDir) -> Result<DatabaseSnapshot, BackupError> {
        let path = data_dir.join(name);
        if sqlite::has_orphaned_wal(&path) {
            let detail = "it is empty, but its log beside it (-wal) is not".to_owned();
            return Err(BackupError::Database { path, detail });
        }
        let copy = scratch.dir.join(name);
        if let Some(folder) = files::parent_of(&copy) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        for suffix in ["", "-wal"] {
            let (from, to) = (files::with_suffix(&path, suffix), files::with_suffix(&copy, suffix));
            let copied = || {
                let mut to = files::private_file_options().write(true).create_new(true).open(&to)?;
                io::copy(&mut File::open(&from)?, &mut to)
            };
            match copied() {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {
                    std::fs::remove_file(&to).map_err(io_error(&to))?;
                }
                result => drop(result.map_err(io_error(&to))?),
            }
        }
        let snapshot = DatabaseSnapshot::begin(&scratch.dir, name).map_err(|error| match error {
            // Report the original file, not the copy.
            BackupError::Database { detail, .. } => BackupError::Database { path: path.clone(), detail },
            other => other,
        })?;
        integrity::check_backup_source(&path, &snapshot.connection)?;
        Ok(DatabaseSnapshot { path, ..snapshot })
    }

    fn copy_to(&self, copy: &Path, meter: &mut ProgressMeter<'_>) -> Result<(), BackupError> {
        let of_source = database_error(&self.path);
        // Only the copy is written to.
        let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => BackupError::DiskFull(copy.to_owned()),
            _ => of_source(error),
        };
        files::create_private_file(copy).map_err(io_error(copy))?;
        let mut target = Connection::open(copy).map_err(&failed)?;
        // An incomplete copy is thrown away: it needs no journal and no sync.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(&failed)?;
        let before = meter.done;
        {
            let backup = Backup::new(&self.connection, &mut target).map_err(&failed)?;
            loop {
                let step = backup.step(PAGES_PER_STEP).map_err(&failed)?;
                let progress = backup.progress();
                let copied = u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0);
                let all = u64::try_from(progress.pagecount).unwrap_or(0).max(1);
                meter.set(before + self.bytes * copied / all);
                match step {
                    StepResult::Done => break,
                    StepResult::More => {}
                    // No other process has the target, and the snapshot is ours: waiting would never end.
                    _ => {
                        let detail = "it is locked".to_owned();
                        return Err(BackupError::Database { path: self.path.clone(), detail });
                    }
                }
            }
        }
        target.close().map_err(|(_connection, error)| failed(error))
    }
}

struct ProgressMeter<'p> {
    done: u64,
    total: u64,
    report: &'p mut dyn FnMut(u64, u64),
}

impl ProgressMeter<'_> {
    fn set(&mut self, done: u64) {
        self.done = done;
        (self.report)(done.min(self.total), self.total);
    }
}

struct ArchiveWriter {
    tar: tar::Builder<File>,
    contents: ArchiveContents,
}

impl ArchiveWriter {
    fn add(
        &mut self,
        name: &Path,
        from: &mut dyn Read,
        size: u64,
        mode: u32,
        meter: &mut ProgressMeter<'_>,
    ) -> Result<(), BackupError> {
        let text = name.to_str().ok_or_else(|| BackupError::Io {
            path: name.to_owned(),
            error: io::Error::other("its name is not UTF-8"),
        })?;
        let mut source =
            HashingReader { from: &mut from.take(size), hash: Context::new(&SHA256), read_bytes: 0, meter };
        self.tar.append_data(&mut header(size, mode), name, &mut source).map_err(io_error(name))?;
        if source.read_bytes != size {
            let error = io::Error::other("it became shorter while it was copied");
            return Err(BackupError::Io { path: name.to_owned(), error });
        }
        let sha256 = crate::model::secret::hex(source.hash.finish().as_ref());
        self.contents.files.push(ArchivedFile { name: text.replace('\\', "/"), size, sha256 });
        Ok(())
    }

    fn finish(mut self) -> io::Result<File> {
        let contents = serde_json::to_vec_pretty(&self.contents)?;
        self.tar.append_data(&mut header(contents.len() as u64, 0o600), CONTENTS_FILE, contents.as_slice())?;
        let mut file = self.tar.into_inner()?;
        file.flush()?;
        Ok(file)
    }
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header
}

#[cfg(unix)]
fn mode_of(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
}

#[cfg(not(unix))]
fn mode_of(_metadata: &std::fs::Metadata) -> u32 {
    0o600
}

struct HashingReader<'s, 'p> {
    from: &'s mut dyn Read,
    hash: Context,
    read_bytes: u64,
    meter: &'s mut ProgressMeter<'p>,
}

impl Read for HashingReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.read_bytes += read as u64;
        self.meter.set(self.meter.done + read as u64);
        Ok(read)
    }
}

/// A private folder beside the archive; removed with its content on drop.
struct ScratchDir {
    dir: PathBuf,
}

impl ScratchDir {
    fn new(folder: &Path, out_file: &Path) -> Result<ScratchDir, BackupError> {
        let name = out_file.file_name().unwrap_or_default().to_string_lossy();
        let dir = folder.join(format!(".{name}.{}.partial", std::process::id()));
        if dir.exists() {
            // Left by a process that had the same id and died.
            std::fs::remove_dir_all(&dir).map_err(io_error(&dir))?;
        }
        files::create_private_dir(&dir).map_err(io_error(&dir))?;
        Ok(ScratchDir { dir })
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("{}: {error}", self.dir.display());
        }
    }
}
