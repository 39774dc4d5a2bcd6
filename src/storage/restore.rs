//! From an archive back to a data dir.
//!
//! Everything is unpacked and checked in a folder inside the data dir, and moves to its place only when
//! all of it is good and synced. Killed in between, that folder remains, and no server starts on it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OpenFlags};

use super::backup::{
    BackupError, DEPTH_MAX, FILES_MAX, FORMAT, MANIFEST, Manifest, database_error, io_error, is_passing,
};
use super::lock::{DataDirLock, LOCK_FILE};
use super::{files, sqlite};

/// Where a restore works, inside the data dir.
pub(super) const STAGING_DIR: &str = ".restoring";
/// The largest manifest that is read: far more than [`FILES_MAX`] files need.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What has numbers of its own in a data dir, and may be served by a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The trade room.
    Trade,
    /// The shop's product database.
    Product,
    /// The shop's customer database.
    Customer,
}

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::Trade, Part::Product, Part::Customer];

    /// The file that says that the data dir was restored, until this part has taken note. Each has its own,
    /// so that none takes note for another.
    pub(super) fn mark(self) -> &'static str {
        match self {
            Part::Trade => "restored-trade",
            Part::Product => "restored-product",
            Part::Customer => "restored-customer",
        }
    }
}

/// Whether the data dir comes from a backup and this part has not taken note of that yet.
///
/// Numbers that were handed out after the backup's instant are in no file: whoever sees the mark moves
/// every counter of that part whose numbers are never used twice far ahead, has that on disk, and only then
/// calls [`clear_restored_mark`].
pub fn restored_mark(data_dir: &Path, part: Part) -> bool {
    data_dir.join(part.mark()).exists()
}

/// Removes the part's mark, durably.
///
/// # Errors
/// The system's; the mark may still be there, and the counters then jump once more.
pub fn clear_restored_mark(data_dir: &Path, part: Part) -> io::Result<()> {
    match std::fs::remove_file(data_dir.join(part.mark())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.and_then(|()| files::sync_dir(data_dir)),
    }
}

/// Unpacks a backup into an empty or missing folder and checks every byte and every database of it.
///
/// # Errors
/// What stands in the way; then the folder is as it was.
pub fn restore(file: &Path, data_dir: &Path) -> Result<(), BackupError> {
    let archive = File::open(file).map_err(io_error(file))?;
    let was_there = data_dir.symlink_metadata().is_ok();
    // Before a lock file is put into someone's folder, and again once nobody else can be at it.
    if was_there {
        check_empty(data_dir)?;
    }
    let lock = DataDirLock::take_for_restore(data_dir)?;
    check_empty(data_dir)?;
    let mut undo = Undo { data_dir, was_there, moved: Vec::new(), active: true };
    let staging = data_dir.join(STAGING_DIR);
    files::create_private_dir(&staging).map_err(io_error(&staging))?;

    let names = unpack(archive, file, &staging)?;
    for name in names.iter().filter(|name| name.extension().is_some_and(|extension| extension == "db")) {
        check_database(&staging.join(name), name)?;
    }
    let marks = Part::ALL.map(|part| PathBuf::from(part.mark()));
    for mark in &marks {
        let mark = staging.join(mark);
        files::create_private_file(&mark).map_err(io_error(&mark))?;
    }
    // The marks first: no state in which the databases are there and they are not.
    for name in marks.into_iter().chain(names) {
        let place = data_dir.join(&name);
        if let Some(folder) = files::parent_of(&place) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        undo.moved.push(name.clone());
        std::fs::rename(staging.join(&name), &place).map_err(io_error(&place))?;
        if let Some(folder) = files::parent_of(&place) {
            files::sync_dir(folder).map_err(io_error(folder))?;
        }
    }
    std::fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
    files::sync_dir(data_dir).map_err(io_error(data_dir))?;
    undo.active = false;
    drop(lock);
    Ok(())
}

fn check_empty(data_dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(data_dir).map_err(io_error(data_dir))? {
        if entry.map_err(io_error(data_dir))?.file_name() != LOCK_FILE {
            return Err(BackupError::NotEmpty(data_dir.to_owned()));
        }
    }
    Ok(())
}

/// Writes the archive's files below `staging`, synced, and holds them against the manifest.
fn unpack(archive: File, file: &Path, staging: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let bad = |detail: String| BackupError::BadArchive { file: file.to_owned(), detail };
    // Any file may be named by mistake: as long as it is not known to be ours, nothing of it is quoted.
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            bad("it is no archive of this program, or it is damaged".to_owned())
        }
        io::ErrorKind::UnexpectedEof => bad("it was cut short, or is no archive of this program".to_owned()),
        kind => BackupError::Io { path: file.to_owned(), error: kind.into() },
    };
    let stranger = || bad("it holds what no backup of this program holds".to_owned());
    let mut found: HashMap<String, (PathBuf, u64, String)> = HashMap::new();
    let mut manifest: Option<Manifest> = None;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        if manifest.is_some() {
            return Err(bad("something follows its table of contents".to_owned()));
        }
        let name = entry.path().map_err(unreadable)?.into_owned();
        let shown = name.display().to_string();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(stranger());
        }
        if name == Path::new(MANIFEST) {
            let read: Result<Manifest, _> = serde_json::from_reader(entry.take(MANIFEST_BYTES_MAX));
            manifest = Some(read.map_err(|_| bad("its table of contents is damaged".to_owned()))?);
            continue;
        }
        let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        let depth = name.components().count();
        if !plain || depth == 0 || depth > DEPTH_MAX || is_passing(&name) || name.starts_with(STAGING_DIR) {
            return Err(stranger());
        }
        if found.len() >= FILES_MAX {
            return Err(bad(format!("it has more than {FILES_MAX} files")));
        }
        let place = staging.join(&name);
        if let Some(folder) = files::parent_of(&place) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        let mode = entry.header().mode().map_err(unreadable)?;
        let (size, sha256) = write_file(&mut entry, &place, mode).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => stranger(),
            io::ErrorKind::UnexpectedEof => unreadable(error),
            _ => BackupError::Io { path: place.clone(), error },
        })?;
        found.insert(shown.replace('\\', "/"), (name, size, sha256));
    }
    let Some(manifest) = manifest else {
        return Err(bad("it has no table of contents: it was cut short, or is no backup of this program".to_owned()));
    };
    if manifest.format != FORMAT {
        return Err(bad(format!("its format is {}, this version reads {FORMAT}", manifest.format)));
    }
    let mut names = Vec::new();
    for listed in manifest.files {
        match found.remove(&listed.name) {
            Some((name, size, sha256)) if size == listed.size && sha256 == listed.sha256 => names.push(name),
            Some(_) => return Err(bad(format!("{:?} is damaged", listed.name))),
            None => return Err(bad(format!("{:?} is missing", listed.name))),
        }
    }
    if let Some(name) = found.keys().next() {
        return Err(bad(format!("{name:?} is not in its table of contents")));
    }
    Ok(names)
}

/// Writes and syncs one new file; its size and SHA-256.
fn write_file(from: &mut dyn Read, place: &Path, mode: u32) -> io::Result<(u64, String)> {
    let mut to = files::private().write(true).create_new(true).open(place)?;
    let mut hash = Context::new(&SHA256);
    let mut size = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        size += read as u64;
    }
    #[cfg(unix)]
    to.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777))?;
    #[cfg(not(unix))]
    let _unix_only = mode; // Windows has no such modes
    to.sync_all()?;
    Ok((size, crate::model::secret::hex(hash.finish().as_ref())))
}

fn check_database(path: &Path, name: &Path) -> Result<(), BackupError> {
    let failed = database_error(name);
    let check = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let found = sqlite::integrity(&connection, "integrity_check")?;
        connection.close().map_err(|(_connection, error)| error)?;
        Ok(found)
    };
    match check().map_err(failed)? {
        None => Ok(()),
        Some(detail) => Err(BackupError::Database { path: name.to_owned(), detail }),
    }
}

/// Takes back what a restore that failed has put into the data dir.
struct Undo<'d> {
    data_dir: &'d Path,
    was_there: bool,
    moved: Vec<PathBuf>,
    active: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.active {
            return;
        }
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cleaning up {}: {error}", self.data_dir.display());
            }
            _ => {}
        };
        for name in &self.moved {
            gone(std::fs::remove_file(self.data_dir.join(name)));
            // The folders that it made, the deepest first.
            for folder in name.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
                // Fails while something else is in it; the last file of it gets there again.
                let _still_used = std::fs::remove_dir(self.data_dir.join(folder));
            }
        }
        gone(std::fs::remove_file(self.data_dir.join(LOCK_FILE)));
        // Last: as long as it is there, no server starts on what is left.
        gone(std::fs::remove_dir_all(self.data_dir.join(STAGING_DIR)));
        if !self.was_there {
            gone(std::fs::remove_dir(self.data_dir));
        }
    }
}
