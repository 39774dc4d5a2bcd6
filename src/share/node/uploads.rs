//! Files that come to a node from its user's browser: into the repo, under their own name, whole or not at all.
//!
//! What comes is written to a part of its own beside its place, which bears no name that could be asked for. Once it is
//! whole and on disk it gets its name, if nothing has that name: so of several that bring one name at once one wins, and
//! what is cut off at any time leaves at most a part, which the next start takes away. A kill between the name and the
//! note that the file is tracked leaves a file in the repo that nobody tracks, as one that was copied there.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::fetches::cannot_write;
use super::{Inner, NodeError};
use crate::model::Clock;
use crate::model::secret::random_hex;
use crate::share::beneath::{HeldDir, How};
use crate::share::files::{FILES_MAX, Facts, FilesError, Tracked};
use crate::share::folders::PathError;
use crate::share::wire::{FILE_SIZE_MAX, FileName};

/// Most that come at once for a user.
const OF_ONE_MAX: usize = 16;
/// Most that come at once for all users: each holds a connection and a file.
const IN_ALL_MAX: usize = 64;
/// What a part's name begins and ends with. It is hidden, so that it is never shown or given.
const PART: (&str, &str) = (".upload-", ".part");

/// How many come at once, counted for all users of a process together.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<AtomicUsize>);

/// One place of each of these, as long as it lives.
struct Places(Vec<Arc<AtomicUsize>>);

impl Places {
    /// One of a user's, and one of all.
    fn take(of_one: &Room, in_all: &Room) -> Result<Places, NodeError> {
        let mut places = Places(Vec::with_capacity(2));
        for (room, most) in [(of_one, OF_ONE_MAX), (in_all, IN_ALL_MAX)] {
            let taken = room.0.fetch_update(Relaxed, Relaxed, |taken| (taken < most).then_some(taken + 1));
            if taken.is_err() {
                return Err(NodeError::Busy(format!(
                    "{most} files are being uploaded already: try again when one is whole"
                )));
            }
            places.0.push(Arc::clone(&room.0));
        }
        Ok(places)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for room in &self.0 {
            room.fetch_sub(1, Relaxed);
        }
    }
}

/// A file that comes. Dropped before [`Upload::finish`] it leaves nothing.
pub struct Upload {
    inner: Arc<Inner>,
    folder: HeldDir,
    name: FileName,
    /// None once it bears its name.
    part: Option<String>,
    file: File,
    size: u64,
    _places: Places,
}

impl Upload {
    pub(super) fn begin(inner: &Arc<Inner>, name: &str, length: Option<u64>) -> Result<Upload, NodeError> {
        let name = FileName::new(name).map_err(|wrong| NodeError::Invalid(format!("the file's name: {wrong}")))?;
        if name.as_str().starts_with('.') {
            let reason = "the file's name: expected one that does not begin with a dot, for nothing hidden is shared";
            return Err(NodeError::Invalid(reason.to_owned()));
        }
        let folders = inner.shelf.folders();
        let target = folders.save_target(None, &name).map_err(|error| of_repo(folders.repo(), error.into()))?;
        match inner.files.get(&name)? {
            // It may have been there, and be gone from the disk.
            Some(known) if known.facts.path == target => {}
            Some(known) => {
                let path = known.facts.path.to_string_lossy().into_owned();
                return Err(FilesError::NameTaken { name, path }.into());
            }
            None if inner.files.count()? >= FILES_MAX => return Err(FilesError::Full.into()),
            None => {}
        }
        if length.is_some_and(|length| length > FILE_SIZE_MAX) {
            return Err(too_large());
        }
        let repo = folders.repo();
        let places = Places::take(&inner.uploads, &inner.floor.uploads)?;
        let folder = HeldDir::open(repo).map_err(|error| of_repo(repo, cannot_write(repo, &error)))?;
        if let (Some(length), Some(room)) = (length, folder.room())
            && length > room
        {
            return Err(NodeError::Folder {
                reason: format!("{} has room for {room} bytes, and the file has {length}", repo.display()),
                is_full: true,
            });
        }
        let part = format!("{}{}{}", PART.0, random_hex::<16>(), PART.1);
        let file = folder.file(&part, How::Create).map_err(|error| of_repo(repo, cannot_write(repo, &error)))?;
        let upload =
            Upload { inner: Arc::clone(inner), folder, name, part: Some(part), file, size: 0, _places: places };
        // Another process may share the repo, and start. Where files cannot be locked, it has to be believed.
        if let Err(TryLockError::Error(error)) = upload.file.try_lock() {
            log::debug!("{}: a part of an upload cannot be locked: {error}", inner.user);
        }
        Ok(upload)
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`NodeError`]: the disk is full, or the file is longer than any may be.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), NodeError> {
        self.size = self.size.saturating_add(piece.len() as u64);
        if self.size > FILE_SIZE_MAX {
            return Err(too_large());
        }
        self.file.write_all(piece).map_err(|error| self.unwritten(&error))
    }

    /// It is whole: it gets its name, and is tracked.
    ///
    /// # Errors
    /// [`NodeError`]: something has its name meanwhile, or the disk is full. Then nothing of it stays.
    pub fn finish(mut self) -> Result<Tracked, NodeError> {
        let inner = Arc::clone(&self.inner);
        self.file.sync_all().map_err(|error| self.unwritten(&error))?;
        let target = self.folder.path().join(self.name.as_str());
        let part = self.part.as_deref().unwrap_or_default();
        self.folder.place(part, self.name.as_str()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PathError::Exists(target.display().to_string()).into(),
            _ => self.unwritten(&error),
        })?;
        self.part = None;
        let tracked = self.track(&target);
        if tracked.is_err()
            && let Err(error) = self.folder.remove(self.name.as_str())
        {
            log::warn!("{}: {} is not tracked, and stays where it lies: {error}", inner.user, target.display());
        }
        let (file, was_published) = tracked?;
        if was_published {
            // What was published under this name is not there any more.
            inner.sync_later(&self.name);
        }
        inner.files_changed("added", &file);
        Ok(file)
    }

    fn track(&self, target: &Path) -> Result<(Tracked, bool), NodeError> {
        self.folder.sync().map_err(|error| self.unwritten(&error))?;
        let metadata = self.file.metadata()?;
        let was_published = self.inner.files.get(&self.name)?.is_some_and(|known| known.is_published);
        let file = self.inner.files.track_new(&self.name, Facts::of(target, &metadata), Clock::wall())?;
        Ok((file, was_published))
    }

    fn unwritten(&self, error: &io::Error) -> NodeError {
        of_repo(self.folder.path(), cannot_write(self.folder.path(), error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(part) = &self.part
            && let Err(error) = self.folder.remove(part)
        {
            log::warn!("{}: {part} of an upload could not be removed: {error}", self.inner.user);
        }
    }
}

/// The repo is the node's own: that it is gone, or no folder any more, is nothing that whoever brings a file has asked
/// for wrongly.
fn of_repo(repo: &Path, error: NodeError) -> NodeError {
    match error {
        NodeError::Path(PathError::NotFound(_) | PathError::NoFolder(_) | PathError::Invalid(_)) => NodeError::Folder {
            reason: format!("{}, the node's folder for files, is not there, or no folder any more", repo.display()),
            is_full: false,
        },
        error => error,
    }
}

fn too_large() -> NodeError {
    NodeError::TooLarge(format!("the file is too large: expected at most {FILE_SIZE_MAX} bytes"))
}

/// Takes away what was left in a repo by a process that was killed. What another one still writes stays.
///
/// # Errors
/// The system's.
pub(super) fn remove_left(repo: &Path) -> io::Result<()> {
    let folder = HeldDir::open(repo)?;
    let mut parts = Vec::new();
    folder.each(|name| {
        if name.starts_with(PART.0) && name.ends_with(PART.1) {
            parts.push(name.to_owned());
        }
        // As many as one process can leave, and more: the rest goes with the next start.
        parts.len() < IN_ALL_MAX * 64
    })?;
    for part in parts {
        let file = match folder.file(&part, How::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                log::warn!("{}/{part}: {error}", repo.display());
                continue;
            }
        };
        if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            folder.remove(&part)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn there_are_so_many_at_once_and_each_gives_its_place_back() {
        let (ann, bob, all) = (Room::default(), Room::default(), Room::default());
        let mut anns: Vec<Places> = (0..OF_ONE_MAX).map(|_| Places::take(&ann, &all).unwrap()).collect();
        assert!(matches!(Places::take(&ann, &all), Err(NodeError::Busy(_))));
        assert_eq!(all.0.load(Relaxed), OF_ONE_MAX, "one that was not to be had takes no other");
        let _bobs = Places::take(&bob, &all).unwrap();
        anns.pop();
        anns.push(Places::take(&ann, &all).unwrap());
        drop(anns);
        assert_eq!((ann.0.load(Relaxed), all.0.load(Relaxed)), (0, 1));
        let many = Room(Arc::new(AtomicUsize::new(IN_ALL_MAX)));
        assert!(Places::take(&ann, &many).is_err());
        assert_eq!(ann.0.load(Relaxed), 0);
    }

    #[test]
    fn what_was_left_is_taken_away_and_what_is_under_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let repo = fs::canonicalize(dir.path()).unwrap();
        for name in [".upload-1.part", ".upload-2.part", ".upload-3", "upload-4.part", "file"] {
            fs::write(repo.join(name), "x").unwrap();
        }
        let under_way = File::open(repo.join(".upload-2.part")).unwrap();
        under_way.try_lock().unwrap();
        remove_left(&repo).unwrap();
        let mut names: Vec<_> = fs::read_dir(&repo).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".upload-2.part", ".upload-3", "file", "upload-4.part"]);
        drop(under_way);
        remove_left(&repo).unwrap();
        assert!(!repo.join(".upload-2.part").exists());
        assert!(remove_left(&repo.join("none")).is_err());
    }
}
