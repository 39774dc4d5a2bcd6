//! An operator lets the server start again without a lost store, and no number is handed out twice.
//!
//! A kill at any point does no harm: first come the markers that move numbers to a new range, then what is left of the
//! store is moved aside, and last, in one step, the manifest stops requiring what is lost. Until then no server starts,
//! and the command can be repeated.

use std::io;
use std::path::{Path, PathBuf};

use super::integrity::ExpectedStore;
use super::lock::{DataDirLock, LockError};
use super::manifest::{MANIFEST_FILE, Manifest, ManifestEntry, StoreState, new_store_id};
use super::range_markers::{self, DataComponent};
use super::store_identity::{StoreIdentity, StoreLocation};
use super::{OpenError, files, id_ranges, sqlite, watermark};

/// Files beside a database.
const COMPANION_SUFFIXES: [&str; 4] = ["-wal", "-shm", "-journal", watermark::SUFFIX];
/// It stands between a file's name and the number under which it was moved aside.
const LOST_SUFFIX: &str = ".lost-";
/// How often a file of one name can be moved aside.
const LOST_COPIES_MAX: u32 = 10_000;

/// After an error, nothing that a start needs has changed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptLossError {
    #[error("{0} is whole: there is nothing to accept")]
    NothingLost(PathBuf),
    /// The name is not that of a store that this data dir has or had.
    #[error("{file} is no store of the data dir {dir}: name one of the files that a start refused")]
    UnknownStore {
        dir: PathBuf,
        /// The name that was given.
        file: String,
    },
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store cannot be examined, so it is not known whether anything is lost.
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

#[derive(Debug, PartialEq, Eq)]
pub enum AcceptedLoss {
    /// The next start does it; the remains were moved aside to these paths.
    WillBeRecreated(Vec<PathBuf>),
    /// It stays as it is, without the lost changes. Holds the path of a copy of its unreadable log, if there was one.
    StoreKept(Option<PathBuf>),
    /// It was made from the stores that are there.
    ManifestRebuilt,
}

/// Accepts that a store of a data dir is lost, or has lost changes. `stores` are all that a data dir may have;
/// `secrets` authenticate what only the lost store knew, and are moved aside too. After an error it can be tried again.
pub fn accept_loss(
    dir: &Path,
    file: &str,
    stores: &[ExpectedStore<'_>],
    secrets: &[&str],
) -> Result<AcceptedLoss, AcceptLossError> {
    let not_ours = || AcceptLossError::UnknownStore { dir: dir.to_owned(), file: file.to_owned() };
    let io_error = |error| AcceptLossError::Io { path: dir.to_owned(), error };
    // Checked before a lock file is created in a folder that may not be a data dir.
    let mut ours = stores.iter().flat_map(|store| [&store.file].into_iter().chain(store.companions));
    if !ours.any(|file| dir.join(file).exists()) && !dir.join(MANIFEST_FILE).exists() {
        return Err(not_ours());
    }
    let _locks = [
        DataDirLock::acquire(dir)?,
        DataDirLock::acquire_component(dir, DataComponent::Product)?,
        DataDirLock::acquire_component(dir, DataComponent::Customer)?,
    ];
    if file == MANIFEST_FILE {
        return rebuild_manifest(dir, stores);
    }
    let store = stores.iter().find(|store| store.file == file).ok_or_else(not_ours)?;
    let path = dir.join(file);
    let manifest = Manifest::read(dir)?;
    let loss = match find_loss(&path, store)? {
        Some(loss) => loss,
        // Neither there nor in the manifest. If there is no manifest, or one that does not know everything that is
        // there, the store may be lost all the same.
        None if files::is_missing_or_empty(&path) => {
            let is_known = |name: &str| manifest.as_ref().is_some_and(|known| known.entry(name).is_some());
            let is_unnamed = |other: &str| !files::is_missing_or_empty(&dir.join(other)) && !is_known(other);
            let signs = stores.iter().map(|other| &other.file).chain(store.companions);
            if is_known(file) || !signs.into_iter().any(|sign| is_unnamed(sign)) {
                return Err(not_ours());
            }
            // The evidence of the loss may be moved aside next: from here on the manifest shows it.
            Manifest::update(dir, |manifest| manifest.set_state(file, &new_store_id(), StoreState::Kept))?;
            OpenError::Missing { path: path.clone(), detail: String::new() }
        }
        None => return Err(AcceptLossError::NothingLost(path)),
    };
    let is_named = manifest.as_ref().is_some_and(|known| known.entry(file).is_some());
    if matches!(loss, OpenError::Manifest { .. }) || (matches!(loss, OpenError::Foreign { .. }) && !is_named) {
        return Err(loss.into());
    }
    if let Some(component) = DataComponent::of_store(file) {
        id_ranges::start_new_id_range(dir, component)?;
    }
    for secret in secrets {
        move_aside(dir, secret).map_err(io_error)?;
    }
    if let OpenError::BehindWatermark { .. } | OpenError::MissingWatermark { .. } = loss {
        let log = files::with_suffix(&path, "-wal");
        let copy = if files::is_missing_or_empty(&log) { None } else { Some(copy_aside(dir, &log).map_err(io_error)?) };
        // The watermark goes last: as long as it is ahead of the store, no server starts.
        Manifest::update(dir, |manifest| manifest.set_requires_watermark(file, false))?;
        watermark::remove(&path).map_err(io_error)?;
        return Ok(AcceptedLoss::StoreKept(copy));
    }
    let mut aside = move_aside(dir, file).map_err(io_error)?.map_or_else(Vec::new, |name| vec![name]);
    for suffix in COMPANION_SUFFIXES {
        aside.extend(move_aside(dir, &format!("{file}{suffix}")).map_err(io_error)?);
    }
    Manifest::update(dir, |manifest| {
        let id = manifest.entry(file).map_or_else(new_store_id, |entry| entry.id.clone());
        manifest.set_state(file, &id, StoreState::Lost);
    })?;
    Ok(AcceptedLoss::WillBeRecreated(aside))
}

/// The error for which a start would refuse a store, if it is a loss.
fn find_loss(path: &Path, store: &ExpectedStore<'_>) -> Result<Option<OpenError>, OpenError> {
    let checked = sqlite::store_exists(path).and_then(|is_there| {
        if is_there {
            sqlite::open_checked(path, store.migrations.len() as u64, true).map(drop)
        } else {
            StoreLocation::load(path)?.check_may_be_absent()
        }
    });
    match checked {
        Err(error) if error.is_loss() => Ok(Some(error)),
        Err(error) => Err(error),
        Ok(()) => Ok(None),
    }
}

/// Whether there were other stores than those that are there is no longer known.
fn rebuild_manifest(dir: &Path, stores: &[ExpectedStore<'_>]) -> Result<AcceptedLoss, AcceptLossError> {
    let path = dir.join(MANIFEST_FILE);
    let io_error = |error| AcceptLossError::Io { path: dir.to_owned(), error };
    let mut named = Vec::new();
    for store in stores.iter().filter(|store| !files::is_missing_or_empty(&dir.join(store.file))) {
        if let Some(identity) = read_identity(&dir.join(store.file))? {
            named.push(ManifestEntry {
                file: store.file.to_owned(),
                id: identity.id,
                state: StoreState::Kept,
                requires_watermark: false,
            });
        }
    }
    match Manifest::read(dir) {
        Ok(Some(_)) => return Err(AcceptLossError::NothingLost(path)),
        // It is missing, and no store says that there was one.
        Ok(None) if named.is_empty() => {
            return Err(AcceptLossError::UnknownStore { dir: dir.to_owned(), file: MANIFEST_FILE.to_owned() });
        }
        _ => {}
    }
    // A store that is lost as well is recreated without notice, and its numbers start in a range that it cannot have
    // used.
    let range = id_ranges::next_id_range(dir, range_markers::last_id_range_without_manifest(dir)?)?;
    for component in DataComponent::ALL {
        range_markers::write_range_marker(dir, *component, range)?;
    }
    if path.exists() {
        copy_aside(dir, &path).map_err(io_error)?;
    }
    Manifest::new(range, named).write(dir).map_err(io_error)?;
    Ok(AcceptedLoss::ManifestRebuilt)
}

/// An unreadable store is detected when it is opened.
fn read_identity(path: &Path) -> Result<Option<StoreIdentity>, OpenError> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let identity = sqlite::open_without_checkpoint(path, flags).and_then(|connection| StoreIdentity::read(&connection));
    match identity.map_err(|error| OpenError::from_sqlite(path, &error)) {
        Ok(identity) => Ok(identity.filter(|identity| super::manifest::is_store_id(&identity.id))),
        Err(error) if error.is_loss() => Ok(None),
        Err(error) => Err(error),
    }
}

fn unused_name(dir: &Path, file: &str) -> io::Result<PathBuf> {
    (1..LOST_COPIES_MAX)
        .map(|n| dir.join(format!("{file}{LOST_SUFFIX}{n}")))
        .find(|path| path.symlink_metadata().is_err())
        .ok_or_else(|| io::Error::other(format!("{file} was put aside too often: remove what is no longer needed")))
}

/// Returns the new path, if the file was there.
fn move_aside(dir: &Path, file: &str) -> io::Result<Option<PathBuf>> {
    let path = dir.join(file);
    if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let aside = unused_name(dir, file)?;
    std::fs::rename(&path, &aside)?;
    files::sync_dir(dir)?;
    Ok(Some(aside))
}

fn copy_aside(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = unused_name(dir, &name)?;
    let mut from = std::fs::File::open(path)?;
    let mut to = files::private_file_options().write(true).create_new(true).open(&aside)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    files::sync_dir(dir)?;
    Ok(aside)
}

/// Such a file is no longer part of the data.
pub(super) fn is_moved_aside(name: &Path) -> bool {
    name.file_name().is_some_and(|name| name.to_string_lossy().contains(LOST_SUFFIX))
}
