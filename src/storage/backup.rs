//! A live data dir in one archive, of one instant.
//!
//! Every database is locked for writing, in one fixed order; with all locks held, a second connection
//! of each opens a snapshot, and the small files beside them (certificate, keys) are read. Then the locks
//! are let go: servers write on while the snapshots are copied, so that a large backup holds nobody up. On a disk
//! that nobody can write to, the files are copied as they are: SQLite could not even read the log of one there.
//!
//! The archive is a plain tar: the files, then a table of contents with the size and SHA-256 of each, so that one
//! which was cut short or damaged is told from a whole one. It holds secrets: mode 600.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};
use serde::{Deserialize, Serialize};

pub use super::accept::{AcceptError, Accepted, accept_loss};
pub use super::jumps::{Part, STRETCHES, count_loss, first_stretch};
use super::lock::LOCK_FILE;
use super::restore::STAGING_DIR;
pub use super::restore::restore;
use super::{OpenError, accept, files, manifest, sqlite, whole};

/// The archive's last entry.
pub(super) const CONTENTS: &str = "p2s2-backup.json";
/// The archive's format; a later one is refused.
pub(super) const FORMAT: u32 = 1;
/// Most files in an archive, and deepest folder: a data dir has a dozen files.
pub(super) const FILES_MAX: usize = 100_000;
pub(super) const DEPTH_MAX: usize = 16;
/// Files up to this size are read while all writers wait; larger ones after.
const SMALL_BYTES: u64 = 1 << 20;
/// Pages copied between two calls of `progress`.
const PAGES_A_STEP: i32 = 1024;

/// Why a backup was not made or not restored. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A backup never replaces a file.
    #[error("{0} exists already: choose another name")]
    Exists(PathBuf),
    /// The archive would become part of the next one.
    #[error("{0} lies in the data dir itself: choose a place outside of it")]
    Inside(PathBuf),
    /// There is nothing to back up.
    #[error("{0} holds no database: is it the data dir?")]
    NoData(PathBuf),
    /// A restore never mixes with what is there.
    #[error("{0} is not empty: restore into an empty or a new folder")]
    NotEmpty(PathBuf),
    /// A server runs on it, or the like.
    #[error(transparent)]
    Lock(#[from] super::lock::LockError),
    /// The archive is not one of ours, was cut short, or was tampered with.
    #[error("{file} is not a whole backup: {detail}")]
    BadArchive {
        /// The archive.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A store of the data dir is lost, or has lost something.
    #[error(transparent)]
    Lost(#[from] OpenError),
    /// A database could not be copied or is damaged.
    #[error("database {path}: {detail}")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// The archive does not fit.
    #[error("no room is left on the disk of {0}: nothing was written; choose another place")]
    NoRoom(PathBuf),
    /// What the system said.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// One line of the table of contents.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ContentsFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) format: u32,
    pub(super) files: Vec<ContentsFile>,
}

impl BackupError {
    /// The same, but of the archive where only that can be meant: what is read needs no room.
    fn at(self, out_file: &Path) -> BackupError {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            BackupError::NoRoom(_) => BackupError::NoRoom(out_file.to_owned()),
            BackupError::Io { error, .. } if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
                BackupError::NoRoom(out_file.to_owned())
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

/// Copies a data dir, live or not, into one new archive. `progress` is told bytes done and in all.
///
/// # Errors
/// What stands in the way; then there is no archive.
pub fn backup(data_dir: &Path, out_file: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BackupError> {
    if out_file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(out_file.to_owned()));
    }
    let folder = files::parent_of(out_file).unwrap_or(Path::new("."));
    let real = |dir: &Path| dir.canonicalize().map_err(io_error(dir));
    if real(folder)?.starts_with(real(data_dir)?) {
        return Err(BackupError::Inside(out_file.to_owned()));
    }
    let (databases, others) = list(data_dir)?;
    if databases.is_empty() {
        return Err(BackupError::NoData(data_dir.to_owned()));
    }
    check_all_there(data_dir, &databases)?;
    let scratch = Scratch::new(folder, out_file).map_err(|error| error.at(out_file))?;

    let (locks, snapshots) = if is_on_read_only_disk(&data_dir.join(&databases[0])) {
        let copy = |name: &PathBuf| Snapshot::of_read_only(data_dir, name, &scratch);
        let snapshots = databases.iter().map(copy).collect::<Result<Vec<_>, _>>();
        (Vec::new(), snapshots.map_err(|error| error.at(out_file))?)
    } else {
        let locks = databases.iter().map(|name| lock(&data_dir.join(name))).collect::<Result<Vec<_>, _>>()?;
        let take = |name: &PathBuf| Snapshot::take(data_dir, name);
        (locks, databases.iter().map(take).collect::<Result<Vec<_>, _>>()?)
    };
    let mut small = Vec::new();
    let mut large = Vec::new();
    for name in others {
        let path = data_dir.join(&name);
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let metadata = file.metadata().map_err(io_error(&path))?;
        if metadata.len() > SMALL_BYTES {
            large.push((name, file, metadata));
        } else {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(io_error(&path))?;
            small.push((name, bytes, mode_of(&metadata)));
        }
    }
    drop(locks);

    let archive = write_archive(&scratch, small, large, snapshots, progress).map_err(|error| error.at(out_file))?;
    // A link, unlike a rename, never replaces what another has put there meanwhile.
    match std::fs::hard_link(&archive, out_file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(out_file.to_owned()));
        }
        // Not every file system has links.
        Err(_) if !out_file.exists() => std::fs::rename(&archive, out_file).map_err(io_error(out_file))?,
        result => result.map_err(io_error(out_file))?,
    }
    drop(scratch);
    files::sync_dir(folder).map_err(io_error(folder))
}

type SmallFile = (PathBuf, Vec<u8>, u32);
type LargeFile = (PathBuf, File, std::fs::Metadata);

/// Writes and syncs the whole archive, in the scratch folder; where it is.
fn write_archive(
    scratch: &Scratch,
    small: Vec<SmallFile>,
    large: Vec<LargeFile>,
    snapshots: Vec<Snapshot>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, BackupError> {
    let mut meter = Meter { done: 0, total: 0, tell: progress };
    // A database is copied twice: out of the file, and into the archive.
    meter.total = snapshots.iter().map(|snapshot| 2 * snapshot.bytes).sum::<u64>()
        + small.iter().map(|(_, bytes, _)| bytes.len() as u64).sum::<u64>()
        + large.iter().map(|(_, _, metadata)| metadata.len()).sum::<u64>();

    let archive = scratch.dir.join("archive");
    let file = files::private().write(true).create_new(true).open(&archive).map_err(io_error(&archive))?;
    let mut writer = Archive { tar: tar::Builder::new(file), contents: Contents { format: FORMAT, files: Vec::new() } };
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
fn list(data_dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), BackupError> {
    let (mut databases, mut others) = (Vec::new(), Vec::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = data_dir.join(&folder);
        for entry in std::fs::read_dir(&path).map_err(io_error(&path))? {
            let entry = entry.map_err(io_error(&path))?;
            let name = folder.join(entry.file_name());
            // Not followed: a link, socket or pipe is no part of the data.
            let kind = entry.file_type().map_err(io_error(&path))?;
            if kind.is_dir() && name.components().count() < DEPTH_MAX && name != Path::new(STAGING_DIR) {
                folders.push(name);
            } else if kind.is_file() && !is_passing(&name) {
                let is_database = name.extension().is_some_and(|extension| extension == "db");
                if is_database { databases.push(name) } else { others.push(name) }
            }
        }
        if databases.len() + others.len() > FILES_MAX {
            let error = io::Error::other(format!("more than {FILES_MAX} files: is it the data dir?"));
            return Err(BackupError::Io { path: data_dir.to_owned(), error });
        }
    }
    databases.sort();
    others.sort();
    Ok((databases, others))
}

/// Whether a file belongs to the running process or to this very data dir, not to the data.
pub(super) fn is_passing(name: &Path) -> bool {
    let text = name.to_string_lossy();
    [LOCK_FILE, CONTENTS].iter().any(|passing| name == Path::new(passing))
        || Part::ALL.iter().any(|part| name.file_name().is_some_and(|file| file == part.note()))
        || text.starts_with(&format!("{LOCK_FILE}-"))
        || manifest::is_scratch(name)
        || accept::is_aside(name)
        || ["-wal", "-shm", "-journal", super::mark::ENDING, ".log"].iter().any(|end| text.ends_with(end))
}

/// Whether all stores are there that the manifests beside them name: a backup of the rest would hide the loss.
fn check_all_there(data_dir: &Path, databases: &[PathBuf]) -> Result<(), BackupError> {
    let folders: BTreeSet<&Path> = databases.iter().filter_map(|name| name.parent()).chain([Path::new("")]).collect();
    for folder in folders {
        manifest::check_all_there(&data_dir.join(folder))?;
    }
    Ok(())
}

/// Whether nobody can write to the disk of a file. It is not opened by anybody here yet.
fn is_on_read_only_disk(path: &Path) -> bool {
    let opened = File::options().write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

fn lock(path: &Path) -> Result<Connection, BackupError> {
    let refused = |detail: &str| BackupError::Database { path: path.to_owned(), detail: detail.to_owned() };
    if sqlite::has_only_a_log(path) {
        return Err(refused("it is empty, but its log beside it (-wal) is not"));
    }
    let failed = database_error(path);
    let connection = sqlite::open_to_look(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(&failed)?;
    if connection.is_readonly(MAIN_DB).map_err(&failed)? {
        return Err(refused("it may only be read: run as its owner"));
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    whole::check_snapshot(path, &connection)?;
    Ok(connection)
}

/// A connection whose read transaction began while all databases were locked.
struct Snapshot {
    name: PathBuf,
    path: PathBuf,
    connection: Connection,
    bytes: u64,
}

impl Snapshot {
    fn take(data_dir: &Path, name: &Path) -> Result<Snapshot, BackupError> {
        let path = data_dir.join(name);
        let take = || {
            let connection = sqlite::open_to_look(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.execute_batch("BEGIN")?;
            // The first read takes the snapshot.
            connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_row| Ok(()))?;
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            Ok((connection, (pages * page_bytes) as u64))
        };
        let (connection, bytes) = take().map_err(database_error(&path))?;
        Ok(Snapshot { name: name.to_owned(), path, connection, bytes })
    }

    /// A copy of the file and its log, which nobody can be changing.
    fn of_read_only(data_dir: &Path, name: &Path, scratch: &Scratch) -> Result<Snapshot, BackupError> {
        let path = data_dir.join(name);
        if sqlite::has_only_a_log(&path) {
            let detail = "it is empty, but its log beside it (-wal) is not".to_owned();
            return Err(BackupError::Database { path, detail });
        }
        let copy = scratch.dir.join(name);
        if let Some(folder) = files::parent_of(&copy) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        for ending in ["", "-wal"] {
            let (from, to) = (files::beside(&path, ending), files::beside(&copy, ending));
            let copied = || {
                let mut to = files::private().write(true).create_new(true).open(&to)?;
                io::copy(&mut File::open(&from)?, &mut to)
            };
            match copied() {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !ending.is_empty() => {
                    std::fs::remove_file(&to).map_err(io_error(&to))?;
                }
                result => drop(result.map_err(io_error(&to))?),
            }
        }
        let snapshot = Snapshot::take(&scratch.dir, name).map_err(|error| match error {
            // Of the file that it is a copy of.
            BackupError::Database { detail, .. } => BackupError::Database { path: path.clone(), detail },
            other => other,
        })?;
        whole::check_snapshot(&path, &snapshot.connection)?;
        Ok(Snapshot { path, ..snapshot })
    }

    fn copy_to(&self, copy: &Path, meter: &mut Meter<'_>) -> Result<(), BackupError> {
        let of_source = database_error(&self.path);
        // Only the copy is written to.
        let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => BackupError::NoRoom(copy.to_owned()),
            _ => of_source(error),
        };
        files::create_private_file(copy).map_err(io_error(copy))?;
        let mut target = Connection::open(copy).map_err(&failed)?;
        // A copy that is cut short is thrown away: it needs no journal and no sync.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(&failed)?;
        let before = meter.done;
        {
            let backup = Backup::new(&self.connection, &mut target).map_err(&failed)?;
            loop {
                let step = backup.step(PAGES_A_STEP).map_err(&failed)?;
                let progress = backup.progress();
                let copied = u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0);
                let all = u64::try_from(progress.pagecount).unwrap_or(0).max(1);
                meter.set(before + self.bytes * copied / all);
                match step {
                    StepResult::Done => break,
                    StepResult::More => {}
                    // Nobody else has the target, and the snapshot is ours: this would never end.
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

struct Meter<'p> {
    done: u64,
    total: u64,
    tell: &'p mut dyn FnMut(u64, u64),
}

impl Meter<'_> {
    fn set(&mut self, done: u64) {
        self.done = done;
        (self.tell)(done.min(self.total), self.total);
    }
}

struct Archive {
    tar: tar::Builder<File>,
    contents: Contents,
}

impl Archive {
    fn add(
        &mut self,
        name: &Path,
        from: &mut dyn Read,
        size: u64,
        mode: u32,
        meter: &mut Meter<'_>,
    ) -> Result<(), BackupError> {
        let text = name.to_str().ok_or_else(|| BackupError::Io {
            path: name.to_owned(),
            error: io::Error::other("its name is not UTF-8"),
        })?;
        let mut source = Hashed { from: &mut from.take(size), hash: Context::new(&SHA256), read: 0, meter };
        self.tar.append_data(&mut header(size, mode), name, &mut source).map_err(io_error(name))?;
        if source.read != size {
            let error = io::Error::other("it became shorter while it was copied");
            return Err(BackupError::Io { path: name.to_owned(), error });
        }
        let sha256 = crate::model::secret::hex(source.hash.finish().as_ref());
        self.contents.files.push(ContentsFile { name: text.replace('\\', "/"), size, sha256 });
        Ok(())
    }

    fn finish(mut self) -> io::Result<File> {
        let contents = serde_json::to_vec_pretty(&self.contents)?;
        self.tar.append_data(&mut header(contents.len() as u64, 0o600), CONTENTS, contents.as_slice())?;
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

/// Counts, hashes and tells of what goes through.
struct Hashed<'s, 'p> {
    from: &'s mut dyn Read,
    hash: Context,
    read: u64,
    meter: &'s mut Meter<'p>,
}

impl Read for Hashed<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.read += read as u64;
        self.meter.set(self.meter.done + read as u64);
        Ok(read)
    }
}

/// A private folder beside the archive, for what is not finished; goes away with what is in it.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new(folder: &Path, out_file: &Path) -> Result<Scratch, BackupError> {
        let name = out_file.file_name().unwrap_or_default().to_string_lossy();
        let dir = folder.join(format!(".{name}.{}.partial", std::process::id()));
        if dir.exists() {
            // Of a process that had our number and died.
            std::fs::remove_dir_all(&dir).map_err(io_error(&dir))?;
        }
        files::create_private_dir(&dir).map_err(io_error(&dir))?;
        Ok(Scratch { dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("{}: {error}", self.dir.display());
        }
    }
}
