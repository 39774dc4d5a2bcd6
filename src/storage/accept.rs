//! A loss that an operator accepts: the server starts again, and no number is given out a second time.
//!
//! In an order that a kill at any point leaves good: first the notes for the next start that numbers must jump,
//! then what is left is put aside, and last, in one step, the data dir no longer asks for what is lost. Until that
//! last step no server starts, and the command can be given again.

use std::io;
use std::path::{Path, PathBuf};

use super::jumps::{self, Part};
use super::lock::{DataDirLock, LockError};
use super::manifest::{Entry, MANIFEST_FILE, Manifest, Stage, new_id};
use super::whole::{Expected, Identity};
use super::{OpenError, files, mark, sqlite};

/// What SQLite and the store keep beside a file.
const BESIDE: [&str; 4] = ["-wal", "-shm", "-journal", mark::ENDING];
/// Between a file's name and the number under which it was put aside.
const ASIDE: &str = ".lost-";
/// How often something of one name can be put aside.
const ASIDE_MAX: u32 = 10_000;

/// Why a loss was not accepted. Nothing has changed then that a start would miss.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Nothing of it is lost.
    #[error("{0} is whole: there is nothing to accept")]
    Whole(PathBuf),
    /// It is no store that this data dir has or had.
    #[error("{file} is no store of the data dir {dir}: name one of the files that a start refused")]
    NotOurs {
        /// The data dir.
        dir: PathBuf,
        /// What was named.
        file: String,
    },
    /// A server runs on it, or the like.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It cannot be looked at; whether anything is lost is not known.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the system said.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// What became of a store whose loss was accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The next start makes it anew; what was left of it was put aside under these names.
    Anew(Vec<PathBuf>),
    /// It stays as it is, without what it has lost; a copy of the log that could not be read, if there was one.
    Kept(Option<PathBuf>),
    /// The manifest was made anew of the stores that are there.
    Manifest,
}

/// Accepts that a store of a data dir is lost, or has lost something. `stores` are all that a data dir may have;
/// `secrets` go with it: files that vouch for what only the lost store knew.
///
/// # Errors
/// Nothing is lost, or it cannot be done; it can be tried again.
pub fn accept_loss(dir: &Path, file: &str, stores: &[Expected<'_>], secrets: &[&str]) -> Result<Accepted, AcceptError> {
    let not_ours = || AcceptError::NotOurs { dir: dir.to_owned(), file: file.to_owned() };
    let io_error = |error| AcceptError::Io { path: dir.to_owned(), error };
    // Before a lock's file is put into someone's folder.
    let mut ours = stores.iter().flat_map(|store| [&store.file].into_iter().chain(store.companions));
    if !ours.any(|file| dir.join(file).exists()) && !dir.join(MANIFEST_FILE).exists() {
        return Err(not_ours());
    }
    let _locks = [
        DataDirLock::take(dir)?,
        DataDirLock::take_part(dir, Part::Product.component())?,
        DataDirLock::take_part(dir, Part::Customer.component())?,
    ];
    if file == MANIFEST_FILE {
        return accept_manifest(dir, stores);
    }
    let store = stores.iter().find(|store| store.file == file).ok_or_else(not_ours)?;
    let path = dir.join(file);
    let manifest = Manifest::read(dir)?;
    let loss = match find_loss(&path, store)? {
        Some(loss) => loss,
        // Neither there nor in the manifest. Where there is none, or one that does not know all that is there,
        // it may be lost all the same.
        None if files::is_absent(&path) => {
            let is_known = |name: &str| manifest.as_ref().is_some_and(|known| known.entry(name).is_some());
            let is_unnamed = |other: &str| !files::is_absent(&dir.join(other)) && !is_known(other);
            let signs = stores.iter().map(|other| &other.file).chain(store.companions);
            if is_known(file) || !signs.into_iter().any(|sign| is_unnamed(sign)) {
                return Err(not_ours());
            }
            // What shows that it is lost may be put aside next: from here on the manifest shows it.
            Manifest::update(dir, |manifest| manifest.set(file, &new_id(), Stage::Kept))?;
            OpenError::Missing { path: path.clone(), detail: String::new() }
        }
        None => return Err(AcceptError::Whole(path)),
    };
    let is_named = manifest.as_ref().is_some_and(|known| known.entry(file).is_some());
    if matches!(loss, OpenError::Manifest { .. }) || (matches!(loss, OpenError::Foreign { .. }) && !is_named) {
        return Err(loss.into());
    }
    if let Some(part) = Part::of(file) {
        jumps::count_loss(dir, part)?;
    }
    for secret in secrets {
        put_aside(dir, secret).map_err(io_error)?;
    }
    if let OpenError::Behind { .. } | OpenError::Unmarked { .. } = loss {
        let log = files::beside(&path, "-wal");
        let copy = if files::is_absent(&log) { None } else { Some(copy_aside(dir, &log).map_err(io_error)?) };
        // The mark that is ahead goes last: as long as it is there, no server starts.
        Manifest::update(dir, |manifest| manifest.set_marked(file, false))?;
        mark::remove(&path).map_err(io_error)?;
        return Ok(Accepted::Kept(copy));
    }
    let mut aside = put_aside(dir, file).map_err(io_error)?.map_or_else(Vec::new, |name| vec![name]);
    for ending in BESIDE {
        aside.extend(put_aside(dir, &format!("{file}{ending}")).map_err(io_error)?);
    }
    Manifest::update(dir, |manifest| {
        let id = manifest.entry(file).map_or_else(new_id, |entry| entry.id.clone());
        manifest.set(file, &id, Stage::Lost);
    })?;
    Ok(Accepted::Anew(aside))
}

/// What a start would refuse a store for, if it is a loss.
fn find_loss(path: &Path, store: &Expected<'_>) -> Result<Option<OpenError>, OpenError> {
    let looked = sqlite::check_absent_or_there(path).and_then(|is_there| {
        if is_there {
            sqlite::look(path, store.migrations.len() as u64, true).map(drop)
        } else {
            super::whole::Place::of(path)?.check_absent()
        }
    });
    match looked {
        Err(error) if error.is_loss() => Ok(Some(error)),
        Err(error) => Err(error),
        Ok(()) => Ok(None),
    }
}

/// Makes the manifest of what is there: whether anything else was there is not known any more.
fn accept_manifest(dir: &Path, stores: &[Expected<'_>]) -> Result<Accepted, AcceptError> {
    let path = dir.join(MANIFEST_FILE);
    let io_error = |error| AcceptError::Io { path: dir.to_owned(), error };
    let mut named = Vec::new();
    for store in stores.iter().filter(|store| !files::is_absent(&dir.join(store.file))) {
        if let Some(identity) = identity_of(&dir.join(store.file))? {
            named.push(Entry { file: store.file.to_owned(), id: identity.id, state: Stage::Kept, marked: false });
        }
    }
    match Manifest::read(dir) {
        Ok(Some(_)) => return Err(AcceptError::Whole(path)),
        // It is missing, and no store says that there was one.
        Ok(None) if named.is_empty() => {
            return Err(AcceptError::NotOurs { dir: dir.to_owned(), file: MANIFEST_FILE.to_owned() });
        }
        _ => {}
    }
    // A store that is lost as well is made anew without a word, and its numbers begin past all that it can have had.
    let stretch = jumps::after(dir, jumps::without_manifest(dir)?)?;
    for part in Part::ALL {
        jumps::note(dir, part, stretch)?;
    }
    if path.exists() {
        copy_aside(dir, &path).map_err(io_error)?;
    }
    Manifest::new(stretch, named).write(dir).map_err(io_error)?;
    Ok(Accepted::Manifest)
}

/// Who a store says that it is; one that cannot be read is found out when it is opened.
fn identity_of(path: &Path) -> Result<Option<Identity>, OpenError> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let found = sqlite::open_to_look(path, flags).and_then(|connection| Identity::of(&connection));
    match found.map_err(|error| OpenError::from_sqlite(path, &error)) {
        Ok(found) => Ok(found.filter(|identity| super::manifest::is_id(&identity.id))),
        Err(error) if error.is_loss() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name that nothing has, beside a file.
fn free_name(dir: &Path, file: &str) -> io::Result<PathBuf> {
    (1..ASIDE_MAX)
        .map(|n| dir.join(format!("{file}{ASIDE}{n}")))
        .find(|path| path.symlink_metadata().is_err())
        .ok_or_else(|| io::Error::other(format!("{file} was put aside too often: remove what is no longer needed")))
}

/// Gives a file, if it is there, another name; which.
fn put_aside(dir: &Path, file: &str) -> io::Result<Option<PathBuf>> {
    let path = dir.join(file);
    if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let aside = free_name(dir, file)?;
    std::fs::rename(&path, &aside)?;
    files::sync_dir(dir)?;
    Ok(Some(aside))
}

fn copy_aside(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = free_name(dir, &name)?;
    let mut from = std::fs::File::open(path)?;
    let mut to = files::private().write(true).create_new(true).open(&aside)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    files::sync_dir(dir)?;
    Ok(aside)
}

/// Whether a name in a data dir is of something that was put aside: it is no part of the data any more.
pub(super) fn is_aside(name: &Path) -> bool {
    name.file_name().is_some_and(|name| name.to_string_lossy().contains(ASIDE))
}
