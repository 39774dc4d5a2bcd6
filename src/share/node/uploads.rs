//! Files that the user's browser uploads to a node: into the repo, under their own name, complete or not at all.
//!
//! An upload is written to a part file in the repo, whose hidden name cannot be requested by anybody. Once it is
//! complete and synced it is moved to its name, unless that is taken: of several simultaneous uploads of one name, one
//! wins. An upload that is cut off leaves at most its part file, which the next start removes. A kill between the move
//! and the tracking of the file leaves an untracked file in the repo, like one that was copied there.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::error::folder_write_error;
use super::{NodeError, NodeInner};
use crate::model::Clock;
use crate::model::secret::random_hex;
use crate::net::permits::{Permits, WorkPermit};
use crate::share::dir_handle::{DirHandle, OpenMode};
use crate::share::files::{FileStat, TrackedFile, TrackedFilesError};
use crate::share::folders::PathError;
use crate::share::wire::requests::FILES_MAX;
use crate::share::wire::{FILE_SIZE_MAX, FileName};

pub(super) const UPLOADS_PER_USER_MAX: usize = 16;
/// The limit is for all users together: each upload holds a connection and an open file.
const UPLOADS_MAX: usize = 64;
/// The name is hidden, so that the file is never listed or served.
const PART_NAME: (&str, &str) = (".upload-", ".part");

pub fn process_upload_permits() -> Permits {
    Permits::new(UPLOADS_MAX)
}

fn acquire_permits(of_user: &Permits, of_process: &Permits) -> Result<[WorkPermit; 2], NodeError> {
    let acquire = |permits: &Permits| {
        permits.try_acquire().ok_or_else(|| {
            let max = permits.max();
            NodeError::Busy(format!("{max} files are being uploaded already: try again when one is whole"))
        })
    };
    Ok([acquire(of_user)?, acquire(of_process)?])
}

/// An upload in progress. Dropping it before [`Upload::finish`] removes its data.
pub struct Upload {
    inner: Arc<NodeInner>,
    folder: DirHandle,
    name: FileName,
    /// None once it has been moved to the final name.
    part: Option<String>,
    file: File,
    size: u64,
    /// Of the user, and of the process.
    _permits: [WorkPermit; 2],
}

impl Upload {
    pub(super) fn begin(inner: &Arc<NodeInner>, name: &str, length: Option<u64>) -> Result<Upload, NodeError> {
        let name = FileName::new(name).map_err(|wrong| NodeError::Invalid(format!("the file's name: {wrong}")))?;
        if name.as_str().starts_with('.') {
            let reason = "the file's name: expected one that does not begin with a dot, for nothing hidden is shared";
            return Err(NodeError::Invalid(reason.to_owned()));
        }
        let folders = inner.published_files.folders();
        let target = folders.save_target(None, &name).map_err(|error| repo_error(folders.repo(), error.into()))?;
        match inner.files.get(&name)? {
            // The upload replaces a tracked file that no longer exists on disk.
            Some(known) if known.stat.path == target => {}
            Some(known) => {
                let path = known.stat.path.to_string_lossy().into_owned();
                return Err(TrackedFilesError::NameTaken { name, path }.into());
            }
            None if inner.files.count()? >= FILES_MAX as u64 => return Err(TrackedFilesError::TooManyFiles.into()),
            None => {}
        }
        if length.is_some_and(|length| length > FILE_SIZE_MAX) {
            return Err(too_large());
        }
        let repo = folders.repo();
        let failed = |error: io::Error| repo_error(repo, folder_write_error(repo, &error));
        let permits = acquire_permits(&inner.upload_permits, &inner.context.upload_permits)?;
        let folder = DirHandle::open(repo).map_err(failed)?;
        if let (Some(length), Some(room)) = (length, folder.free_bytes())
            && length > room
        {
            let reason = format!("{} has room for {room} bytes, and the file has {length}", repo.display());
            return Err(NodeError::Folder { reason, is_full: true });
        }
        let part = format!("{}{}{}", PART_NAME.0, random_hex::<16>(), PART_NAME.1);
        let file = folder.open_file(&part, OpenMode::Create).map_err(failed)?;
        let upload =
            Upload { inner: Arc::clone(inner), folder, name, part: Some(part), file, size: 0, _permits: permits };
        // The lock keeps another process with the same repo from removing the part file as a leftover. Without support
        // for locks, the upload goes on unprotected.
        if let Err(TryLockError::Error(error)) = upload.file.try_lock() {
            log::debug!("{}: a part of an upload cannot be locked: {error}", inner.user);
        }
        Ok(upload)
    }

    pub fn write(&mut self, chunk: &[u8]) -> Result<(), NodeError> {
        self.size = self.size.saturating_add(chunk.len() as u64);
        if self.size > FILE_SIZE_MAX {
            return Err(too_large());
        }
        self.file.write_all(chunk).map_err(|error| self.write_error(&error))
    }

    /// Syncs the file, moves it to its name and tracks it. After an error, the uploaded data is removed.
    pub fn finish(mut self) -> Result<TrackedFile, NodeError> {
        let inner = Arc::clone(&self.inner);
        self.file.sync_all().map_err(|error| self.write_error(&error))?;
        let target = self.folder.path().join(self.name.as_str());
        let part = self.part.as_deref().unwrap_or_default();
        self.folder.rename_exclusively(part, self.name.as_str()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PathError::AlreadyExists(target.display().to_string()).into(),
            _ => self.write_error(&error),
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
            // The file that was published under this name no longer exists.
            inner.sync_later(&self.name);
        }
        inner.notify_file_changed("added", &file);
        Ok(file)
    }

    fn track(&self, target: &Path) -> Result<(TrackedFile, bool), NodeError> {
        self.folder.sync().map_err(|error| self.write_error(&error))?;
        let metadata = self.file.metadata()?;
        let was_published = self.inner.files.get(&self.name)?.is_some_and(|known| known.is_published);
        let file = self.inner.files.track_received(&self.name, FileStat::of(target, &metadata), Clock::wall())?;
        Ok((file, was_published))
    }

    fn write_error(&self, error: &io::Error) -> NodeError {
        repo_error(self.folder.path(), folder_write_error(self.folder.path(), error))
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

/// A missing repo is the node's problem, not an error in the request.
fn repo_error(repo: &Path, error: NodeError) -> NodeError {
    match error {
        NodeError::Path(PathError::NotFound(_) | PathError::FolderNotFound(_) | PathError::Invalid(_)) => {
            let reason =
                format!("{}, the node's folder for files, is not there, or no folder any more", repo.display());
            NodeError::Folder { reason, is_full: false }
        }
        error => error,
    }
}

fn too_large() -> NodeError {
    NodeError::TooLarge(format!("the file is too large: expected at most {FILE_SIZE_MAX} bytes"))
}

/// Removes the part files that a killed process left in a repo. Those that another process still writes stay.
pub(super) fn remove_leftovers(repo: &Path) -> io::Result<()> {
    let folder = DirHandle::open(repo)?;
    let mut parts = Vec::new();
    folder.for_each_name(|name| {
        if name.starts_with(PART_NAME.0) && name.ends_with(PART_NAME.1) {
            parts.push(name.to_owned());
        }
        // More than one process can leave; any others are removed at the next start.
        parts.len() < UPLOADS_MAX * 64
    })?;
    for part in parts {
        let file = match folder.open_file(&part, OpenMode::Write) {
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
        let of_user = || Permits::new(UPLOADS_PER_USER_MAX);
        let (ann, bob, all) = (of_user(), of_user(), process_upload_permits());
        let mut anns: Vec<[WorkPermit; 2]> =
            (0..UPLOADS_PER_USER_MAX).map(|_| acquire_permits(&ann, &all).unwrap()).collect();
        assert!(matches!(acquire_permits(&ann, &all), Err(NodeError::Busy(_))));
        assert_eq!(all.in_use(), UPLOADS_PER_USER_MAX, "one that was not to be had takes no other");
        let _bobs = acquire_permits(&bob, &all).unwrap();
        anns.pop();
        anns.push(acquire_permits(&ann, &all).unwrap());
        drop(anns);
        assert_eq!((ann.in_use(), all.in_use()), (0, 1));
        let many = process_upload_permits();
        let _others: Vec<WorkPermit> = (0..UPLOADS_MAX).map(|_| many.try_acquire().unwrap()).collect();
        assert!(acquire_permits(&ann, &many).is_err());
        assert_eq!(ann.in_use(), 0);
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
        remove_leftovers(&repo).unwrap();
        let mut names: Vec<_> = fs::read_dir(&repo).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".upload-2.part", ".upload-3", "file", "upload-4.part"]);
        drop(under_way);
        remove_leftovers(&repo).unwrap();
        assert!(!repo.join(".upload-2.part").exists());
        assert!(remove_leftovers(&repo.join("none")).is_err());
    }
}
