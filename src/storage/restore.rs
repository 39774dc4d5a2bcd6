//! From an archive back to a data dir.
//!
//! Everything is unpacked and checked in a folder inside the data dir, and moves to its place only when
//! all of it is good and synced. Killed in between, that folder remains, and no server starts on it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OpenFlags};

use super::backup::{
    BackupError, CONTENTS, Contents, DEPTH_MAX, FILES_MAX, FORMAT, database_error, io_error, is_passing,
};
use super::jumps::Part;
use super::lock::{DataDirLock, LOCK_FILE};
use super::manifest::{Entry, MANIFEST_FILE, Manifest, Stage};
use super::{OpenError, files, jumps, sqlite, whole};

/// Where a restore works, inside the data dir.
pub(super) const STAGING_DIR: &str = ".restoring";
/// The largest table of contents that is read: far more than [`FILES_MAX`] files need.
const CONTENTS_BYTES_MAX: u64 = 64 << 20;

/// Unpacks a backup into an empty or missing folder and checks every byte and every database of it. Numbers go on
/// past those that were given out after the backup.
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

    let mut names = unpack(archive, file, &staging)?;
    let made = name_stores(&staging, &names)?;
    names.extend(made.manifests);
    // The notes first: no state in which the databases are there and they are not.
    for name in made.notes.into_iter().chain(names) {
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

/// Files that were not in the archive.
#[derive(Default)]
struct Made {
    manifests: Vec<PathBuf>,
    notes: Vec<PathBuf>,
}

/// Checks the stores that were unpacked, gives each an id of its own (it is not the one that was backed up), and
/// writes the manifest of each folder that has some, and the notes of its parts. An archive of an earlier version has
/// no manifest, and its stores have no ids: the next start gives them.
fn name_stores(staging: &Path, names: &[PathBuf]) -> Result<Made, BackupError> {
    let mut folders: BTreeMap<PathBuf, Vec<Entry>> = BTreeMap::from([(PathBuf::new(), Vec::new())]);
    for name in names.iter().filter(|name| name.extension().is_some_and(|extension| extension == "db")) {
        let id = check_database(&staging.join(name), name)?;
        let folder = name.parent().unwrap_or(Path::new("")).to_owned();
        let file = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = folders.entry(folder).or_default();
        entries.extend(id.map(|id| Entry { file, id, state: Stage::Kept, marked: false }));
    }
    let mut made = Made::default();
    for (folder, entries) in folders {
        let dir = staging.join(&folder);
        let failed =
            |error: OpenError| BackupError::Database { path: folder.join(MANIFEST_FILE), detail: error.to_string() };
        // What it says of stores is of the data dir that was backed up; how often numbers have jumped holds here.
        let archived = Manifest::read(&dir).map_err(failed)?;
        let stretch = jumps::after_restore(&dir, archived.as_ref()).map_err(failed)?;
        for part in Part::ALL {
            jumps::note(&dir, part, stretch)?;
            made.notes.push(folder.join(part.note()));
        }
        if entries.is_empty() && archived.is_none() {
            continue;
        }
        Manifest::new(stretch, entries).write(&dir).map_err(io_error(&dir))?;
        if archived.is_none() {
            made.manifests.push(folder.join(MANIFEST_FILE));
        }
    }
    Ok(made)
}

fn check_empty(data_dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(data_dir).map_err(io_error(data_dir))? {
        if entry.map_err(io_error(data_dir))?.file_name() != LOCK_FILE {
            return Err(BackupError::NotEmpty(data_dir.to_owned()));
        }
    }
    Ok(())
}

/// Writes the archive's files below `staging`, synced, and holds them against the table of contents.
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
    let mut contents: Option<Contents> = None;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        if contents.is_some() {
            return Err(bad("something follows its table of contents".to_owned()));
        }
        let name = entry.path().map_err(unreadable)?.into_owned();
        let shown = name.display().to_string();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(stranger());
        }
        if name == Path::new(CONTENTS) {
            let read: Result<Contents, _> = serde_json::from_reader(entry.take(CONTENTS_BYTES_MAX));
            contents = Some(read.map_err(|_| bad("its table of contents is damaged".to_owned()))?);
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
        let (size, sha256) = write_file(&mut entry, &place).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => stranger(),
            io::ErrorKind::UnexpectedEof => unreadable(error),
            _ => BackupError::Io { path: place.clone(), error },
        })?;
        found.insert(shown.replace('\\', "/"), (name, size, sha256));
    }
    let Some(contents) = contents else {
        return Err(bad("it has no table of contents: it was cut short, or is no backup of this program".to_owned()));
    };
    if contents.format != FORMAT {
        return Err(bad(format!("its format is {}, this version reads {FORMAT}", contents.format)));
    }
    let mut names = Vec::new();
    for listed in contents.files {
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

/// Writes and syncs one new file, private whatever the archive says of it; its size and SHA-256.
fn write_file(from: &mut dyn Read, place: &Path) -> io::Result<(u64, String)> {
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
    to.sync_all()?;
    Ok((size, crate::model::secret::hex(hash.finish().as_ref())))
}

/// The id that a whole database was given, if it has one.
fn check_database(path: &Path, name: &Path) -> Result<Option<String>, BackupError> {
    let failed = database_error(name);
    let check = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let found = sqlite::integrity(&connection, "integrity_check")?;
        let id = if found.is_none() { whole::rename_restored(&connection)? } else { None };
        connection.close().map_err(|(_connection, error)| error)?;
        Ok((found, id))
    };
    match check().map_err(failed)? {
        (None, id) => {
            // Closing has moved the log into the file; that it is synced does not hang on how SQLite is set.
            File::options().write(true).open(path).and_then(|file| file.sync_all()).map_err(io_error(path))?;
            Ok(id)
        }
        (Some(detail), _) => Err(BackupError::Database { path: name.to_owned(), detail }),
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
