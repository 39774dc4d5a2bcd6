//! Everything is unpacked and checked in a folder inside the data dir, and moved to its place only when all of it is
//! valid and synced. If the restore is killed in between, that folder remains, and no server starts on it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OpenFlags};

use super::archive::{
    ARCHIVE_DEPTH_MAX, ARCHIVE_FILES_MAX, ARCHIVE_FORMAT, ArchiveContents, BackupError, CONTENTS_FILE, database_error,
    io_error, is_excluded,
};
use super::lock::{DataDirLock, LOCK_FILE, STAGING_DIR};
use super::manifest::{MANIFEST_FILE, Manifest, ManifestEntry, StoreState};
use super::range_markers::{self, DataComponent};
use super::{OpenError, files, id_ranges, integrity, sqlite};

/// Far more than [`ARCHIVE_FILES_MAX`] files need.
const CONTENTS_BYTES_MAX: u64 = 64 << 20;

/// Unpacks a backup into an empty or missing folder and checks every byte and every database of it. Numbers continue
/// beyond those handed out after the backup. After an error the folder is as it was.
pub fn restore(file: &Path, data_dir: &Path) -> Result<(), BackupError> {
    let archive = File::open(file).map_err(io_error(file))?;
    let was_there = data_dir.symlink_metadata().is_ok();
    // Checked before a lock file is created in what may be no data dir, and again once no other process can use it.
    if was_there {
        check_empty(data_dir)?;
    }
    let lock = DataDirLock::acquire_for_restore(data_dir)?;
    check_empty(data_dir)?;
    let mut rollback = RestoreRollback { data_dir, was_there, moved_files: Vec::new(), is_armed: true };
    let staging = data_dir.join(STAGING_DIR);
    files::create_private_dir(&staging).map_err(io_error(&staging))?;

    let mut names = unpack(archive, file, &staging)?;
    let created = assign_store_ids(&staging, &names)?;
    names.extend(created.manifests);
    // The markers first, so that there is never a state with the databases but without them.
    for name in created.range_markers.into_iter().chain(names) {
        let place = data_dir.join(&name);
        if let Some(folder) = files::parent_of(&place) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        rollback.moved_files.push(name.clone());
        std::fs::rename(staging.join(&name), &place).map_err(io_error(&place))?;
        if let Some(folder) = files::parent_of(&place) {
            files::sync_dir(folder).map_err(io_error(folder))?;
        }
    }
    std::fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
    files::sync_dir(data_dir).map_err(io_error(data_dir))?;
    rollback.is_armed = false;
    drop(lock);
    Ok(())
}

/// Files that were not in the archive.
#[derive(Default)]
struct CreatedFiles {
    manifests: Vec<PathBuf>,
    range_markers: Vec<PathBuf>,
}

/// Checks the unpacked stores, gives each a new id, and writes the manifest of each folder that has stores, and its
/// range markers. An archive of an earlier version has no manifest, and its stores have no ids: the next start assigns
/// them.
fn assign_store_ids(staging: &Path, names: &[PathBuf]) -> Result<CreatedFiles, BackupError> {
    let mut folders: BTreeMap<PathBuf, Vec<ManifestEntry>> = BTreeMap::from([(PathBuf::new(), Vec::new())]);
    for name in names.iter().filter(|name| name.extension().is_some_and(|extension| extension == "db")) {
        let id = check_database(&staging.join(name), name)?;
        let folder = name.parent().unwrap_or(Path::new("")).to_owned();
        let file = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = folders.entry(folder).or_default();
        entries.extend(id.map(|id| ManifestEntry { file, id, state: StoreState::Kept, requires_watermark: false }));
    }
    let mut created = CreatedFiles::default();
    for (folder, entries) in folders {
        let dir = staging.join(&folder);
        let failed =
            |error: OpenError| BackupError::Database { path: folder.join(MANIFEST_FILE), detail: error.to_string() };
        // Its list of stores describes the data dir that was backed up; its last id range applies here too.
        let archived = Manifest::read(&dir).map_err(failed)?;
        let range = id_ranges::id_range_after_restore(&dir, archived.as_ref()).map_err(failed)?;
        for component in DataComponent::ALL {
            range_markers::write_range_marker(&dir, *component, range)?;
            created.range_markers.push(folder.join(component.marker_file()));
        }
        if entries.is_empty() && archived.is_none() {
            continue;
        }
        Manifest::new(range, entries).write(&dir).map_err(io_error(&dir))?;
        if archived.is_none() {
            created.manifests.push(folder.join(MANIFEST_FILE));
        }
    }
    Ok(created)
}

fn check_empty(data_dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(data_dir).map_err(io_error(data_dir))? {
        if entry.map_err(io_error(data_dir))?.file_name() != LOCK_FILE {
            return Err(BackupError::NotEmpty(data_dir.to_owned()));
        }
    }
    Ok(())
}

/// The files are synced, and verified against the table of contents.
fn unpack(archive: File, file: &Path, staging: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let bad_archive = |detail: String| BackupError::BadArchive { file: file.to_owned(), detail };
    // The user may have named any file by mistake: until it is known to be ours, none of its content is quoted.
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            bad_archive("it is no archive of this program, or it is damaged".to_owned())
        }
        io::ErrorKind::UnexpectedEof => bad_archive("it was cut short, or is no archive of this program".to_owned()),
        kind => BackupError::Io { path: file.to_owned(), error: kind.into() },
    };
    let foreign_entry = || bad_archive("it holds what no backup of this program holds".to_owned());
    let mut unpacked: HashMap<String, (PathBuf, u64, String)> = HashMap::new();
    let mut contents: Option<ArchiveContents> = None;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        if contents.is_some() {
            return Err(bad_archive("something follows its table of contents".to_owned()));
        }
        let name = entry.path().map_err(unreadable)?.into_owned();
        let display_name = name.display().to_string();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(foreign_entry());
        }
        if name == Path::new(CONTENTS_FILE) {
            let read: Result<ArchiveContents, _> = serde_json::from_reader(entry.take(CONTENTS_BYTES_MAX));
            contents = Some(read.map_err(|_| bad_archive("its table of contents is damaged".to_owned()))?);
            continue;
        }
        let is_plain = name.components().all(|component| matches!(component, Component::Normal(_)));
        let depth = name.components().count();
        if !is_plain || depth == 0 || depth > ARCHIVE_DEPTH_MAX || is_excluded(&name) || name.starts_with(STAGING_DIR) {
            return Err(foreign_entry());
        }
        if unpacked.len() >= ARCHIVE_FILES_MAX {
            return Err(bad_archive(format!("it has more than {ARCHIVE_FILES_MAX} files")));
        }
        let target = staging.join(&name);
        if let Some(folder) = files::parent_of(&target) {
            files::create_private_dir(folder).map_err(io_error(folder))?;
        }
        let (size, sha256) = write_file(&mut entry, &target).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => foreign_entry(),
            io::ErrorKind::UnexpectedEof => unreadable(error),
            _ => BackupError::Io { path: target.clone(), error },
        })?;
        unpacked.insert(display_name.replace('\\', "/"), (name, size, sha256));
    }
    let Some(contents) = contents else {
        return Err(bad_archive(
            "it has no table of contents: it was cut short, or is no backup of this program".to_owned(),
        ));
    };
    if contents.format != ARCHIVE_FORMAT {
        return Err(bad_archive(format!("its format is {}, this version reads {ARCHIVE_FORMAT}", contents.format)));
    }
    let mut names = Vec::new();
    for listed in contents.files {
        match unpacked.remove(&listed.name) {
            Some((name, size, sha256)) if size == listed.size && sha256 == listed.sha256 => names.push(name),
            Some(_) => return Err(bad_archive(format!("{:?} is damaged", listed.name))),
            None => return Err(bad_archive(format!("{:?} is missing", listed.name))),
        }
    }
    if let Some(name) = unpacked.keys().next() {
        return Err(bad_archive(format!("{name:?} is not in its table of contents")));
    }
    Ok(names)
}

/// The file is synced, and private whatever the archive says; returns its size and SHA-256.
fn write_file(source: &mut dyn Read, target: &Path) -> io::Result<(u64, String)> {
    let mut file = files::private_file_options().write(true).create_new(true).open(target)?;
    let mut hash = Context::new(&SHA256);
    let mut size = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read])?;
        size += read as u64;
    }
    file.sync_all()?;
    Ok((size, crate::model::secret::hex(hash.finish().as_ref())))
}

/// Returns the new id that the database was given, if it has an identity row.
fn check_database(path: &Path, name: &Path) -> Result<Option<String>, BackupError> {
    let failed = database_error(name);
    let check = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let problem = sqlite::run_integrity_check(&connection, "integrity_check")?;
        let id = if problem.is_none() { integrity::assign_new_id(&connection)? } else { None };
        connection.close().map_err(|(_connection, error)| error)?;
        Ok((problem, id))
    };
    match check().map_err(failed)? {
        (None, id) => {
            // Closing has moved the log into the file; whether SQLite syncs it depends on its settings.
            File::options().write(true).open(path).and_then(|file| file.sync_all()).map_err(io_error(path))?;
            Ok(id)
        }
        (Some(detail), _) => Err(BackupError::Database { path: name.to_owned(), detail }),
    }
}

/// Undoes on drop what a failed restore has put into the data dir.
struct RestoreRollback<'d> {
    data_dir: &'d Path,
    was_there: bool,
    moved_files: Vec<PathBuf>,
    is_armed: bool,
}

impl Drop for RestoreRollback<'_> {
    fn drop(&mut self) {
        if !self.is_armed {
            return;
        }
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cleaning up {}: {error}", self.data_dir.display());
            }
            _ => {}
        };
        for name in &self.moved_files {
            gone(std::fs::remove_file(self.data_dir.join(name)));
            // The folders that it created, the deepest first.
            for folder in name.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
                // Fails while something else is in it; the last file of it gets here again.
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
