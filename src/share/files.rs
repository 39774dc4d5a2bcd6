//! The files that a node tracks where they are, without copying them. See `docs/spec/share.md`.
//!
//! There is no state besides the store (except for hashing in progress): every change is one transaction, and is on
//! disk once it is reported. A file is identified by its owner and name. What is on disk at its path may change at any
//! time, so size and modification time are those of the last check.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::pieces::FileDigests;
use super::wire::requests::FILES_MAX;
use super::wire::{FILE_NAME_MAX, FileName};
use crate::model::{Millis, Name, text};
use crate::storage::{ReaderExt, Store, StoreError};

mod rows;
mod tracked_file;

pub use rows::{ADD_MISSING_SINCE, SCHEMA};
pub use tracked_file::{FileStat, TrackedFile};

use rows::{COLUMNS, count, digest_bytes, get, read_file_name, read_tracked, to_sql_integer, write_row};

/// One user's tracked files.
#[derive(Debug, Clone)]
pub struct TrackedFiles {
    store: Arc<Store>,
    /// The user name in the form used for comparison, which stands for all its spellings.
    owner: String,
    hashing: Arc<Mutex<HashingState>>,
}

/// Hashing in progress, to detect publishing at the same time.
#[derive(Debug, Default)]
struct HashingState {
    /// The file being hashed. Cleared when it is published again, since the bytes read so far may be outdated.
    current: Option<FileName>,
    /// Files that could not be read, with their metadata then. They are retried once they have changed or are published
    /// again.
    unreadable: HashMap<FileName, FileStat>,
}

impl HashingState {
    /// Forgets what is known of a file's content: it may be another by now.
    fn forget(&mut self, name: &FileName) {
        self.unreadable.remove(name);
        self.current.take_if(|read| read == name);
    }
}

impl TrackedFiles {
    pub fn of(store: Arc<Store>, owner: &Name) -> TrackedFiles {
        TrackedFiles { store, owner: owner.key().to_owned(), hashing: Arc::default() }
    }

    /// If the file is tracked already, its metadata are updated, and digests of a different content are dropped.
    pub fn track(&self, name: &FileName, stat: FileStat, now: Millis) -> Result<TrackedFile, TrackedFilesError> {
        self.change(name, Some(stat), now, None, |_| {})
    }

    /// The same for a file that was just received: it is not published, even if an earlier file of that name was.
    pub fn track_received(
        &self,
        name: &FileName,
        stat: FileStat,
        now: Millis,
    ) -> Result<TrackedFile, TrackedFilesError> {
        self.change(name, Some(stat), now, None, |tracked| {
            (tracked.is_published, tracked.blake3, tracked.pieces_root) = (false, None, None);
        })
    }

    /// Tracks and publishes a file. Its digests are set to those that were `read` just now, or cleared, since a content
    /// may change without changing size and time.
    pub fn publish(
        &self,
        name: &FileName,
        stat: FileStat,
        read: Option<&FileDigests>,
        now: Millis,
    ) -> Result<TrackedFile, TrackedFilesError> {
        self.hashing.lock().forget(name);
        let digests = read.map(|read| (read.blake3(), read.root()));
        self.change(name, Some(stat), now, read.map(digest_bytes), move |tracked| {
            if !tracked.is_published {
                (tracked.is_published, tracked.published_at) = (true, Some(now));
            }
            (tracked.blake3, tracked.pieces_root) = digests.unzip();
        })
    }

    /// Begins hashing a file, until [`TrackedFiles::finish_hashing`]. Returns false if that failed before and the file
    /// has not changed since.
    pub fn begin_hashing(&self, name: &FileName, stat: &FileStat) -> bool {
        let mut hashing = self.hashing.lock();
        let is_new = hashing.unreadable.get(name) != Some(stat);
        hashing.current = is_new.then(|| name.clone());
        is_new
    }

    pub fn abandon_hashing(&self, name: &FileName, stat: &FileStat) {
        let mut hashing = self.hashing.lock();
        if hashing.current.take().as_ref() == Some(name) {
            hashing.unreadable.insert(name.clone(), stat.clone());
        }
    }

    /// Unpublishes a file, which stays tracked.
    pub fn unpublish(&self, name: &FileName) -> Result<TrackedFile, TrackedFilesError> {
        self.change(name, None, Millis::default(), None, |tracked| tracked.is_published = false)
    }

    /// A name that is unused or already stands for this path: the given one, or else one with a number appended.
    pub fn free_name(&self, wanted: &FileName, path: &Path) -> Result<FileName, StoreError> {
        let (stem, ending) = match wanted.as_str().rsplit_once('.') {
            Some((stem, ending)) if !stem.is_empty() => (stem, format!(".{ending}")),
            _ => (wanted.as_str(), String::new()),
        };
        let mut name = wanted.clone();
        for number in 2..10_000_u32 {
            match self.get(&name)? {
                Some(tracked) if tracked.stat.path != path => {}
                _ => return Ok(name),
            }
            // A name that would be too long is cut at a character boundary.
            let behind = format!(" ({number}){ending}");
            let room = FILE_NAME_MAX.saturating_sub(behind.len());
            let cut = stem.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
            let Ok(next) = FileName::new(&format!("{}{behind}", &stem[..cut.unwrap_or(0)])) else { break };
            name = next;
        }
        Ok(name)
    }

    /// Stores the digests unless the file has changed or was published again since hashing began (false).
    pub fn finish_hashing(&self, name: &FileName, read: &FileStat, pieces: &FileDigests) -> Result<bool, StoreError> {
        let (owner, name, read) = (self.owner.clone(), name.clone(), read.clone());
        let (blake3, root, bytes) = (pieces.blake3(), pieces.root(), digest_bytes(pieces));
        let hashing = Arc::clone(&self.hashing);
        self.store.write(move |tx| {
            // Publishing it from now on is written after this.
            if hashing.lock().current.as_ref() != Some(&name) {
                return Ok(false);
            }
            let path = read.path.to_string_lossy().into_owned();
            let rows = tx.execute(
                "UPDATE share_file SET blake3 = $1, pieces_root = $2, pieces = $3
                 WHERE owner = $4 AND name = $5 AND path = $6 AND size = $7 AND modified_ns = $8",
                &[
                    (&blake3.0).into(),
                    (&root.0).into(),
                    (&bytes).into(),
                    (&owner).into(),
                    name.as_str().into(),
                    (&path).into(),
                    to_sql_integer(read.size)?.into(),
                    read.modified_ns.into(),
                ],
            )?;
            Ok(rows > 0)
        })
    }

    /// The file of that name, in whatever spelling.
    pub fn get(&self, name: &FileName) -> Result<Option<TrackedFile>, StoreError> {
        self.store.read(|reader| get(reader, &self.owner, name))
    }

    pub fn piece_digests(&self, name: &FileName) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT pieces FROM share_file WHERE owner = $1 AND name = $2";
        self.store.read(|reader| {
            let row = reader.first(sql, &[(&self.owner).into(), name.as_str().into()], |row| {
                Ok::<_, StoreError>(row.opt_blob(0)?.map(<[u8]>::to_vec))
            })?;
            Ok(row.flatten())
        })
    }

    /// All files by name, or only the published ones.
    pub fn list(&self, published_only: bool) -> Result<Vec<TrackedFile>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND is_published >= $2 ORDER BY name");
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), published_only.into()], read_tracked))
    }

    /// A page of [`TrackedFiles::list`], restricted to names that match the search, ignoring case and spelling.
    pub fn page(
        &self,
        published_only: bool,
        sought: &text::TextFilter,
        (offset, limit): (usize, usize),
    ) -> Result<TrackedFilesPage, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND is_published >= $2 ORDER BY name");
        let mut page = TrackedFilesPage { total: 0, files: Vec::new() };
        self.store.read(|reader| {
            reader.query(&sql, &[(&self.owner).into(), published_only.into()], &mut |row| {
                if !sought.matches(row.text(0)?) {
                    return Ok(());
                }
                if page.total >= offset && page.files.len() < limit {
                    page.files.push(read_tracked(row)?);
                }
                page.total += 1;
                Ok(())
            })
        })?;
        Ok(page)
    }

    pub fn count(&self) -> Result<u64, StoreError> {
        self.store.read(|reader| count(reader, &self.owner))
    }

    /// Up to `at_most` files after that name.
    pub fn list_after(&self, name: Option<&FileName>, at_most: usize) -> Result<Vec<TrackedFile>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name > $2 ORDER BY name LIMIT $3");
        let after = name.map_or("", FileName::as_str);
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), after.into(), at_most.into()], read_tracked))
    }

    /// Stores `missing_since` of these files. A file that is tracked at another path by now is left unchanged.
    pub fn set_missing(&self, files: &[TrackedFile]) -> Result<(), StoreError> {
        if files.is_empty() {
            return Ok(());
        }
        let (owner, files) = (self.owner.clone(), files.to_vec());
        self.store.write(move |tx| {
            for file in &files {
                let path = file.stat.path.to_string_lossy();
                tx.execute(
                    "UPDATE share_file SET missing_since = $1 WHERE owner = $2 AND name = $3 AND path = $4",
                    &[file.missing_since.into(), (&owner).into(), file.name.as_str().into(), path.as_ref().into()],
                )?;
            }
            Ok(())
        })
    }

    /// Stops tracking a file, which is not deleted.
    pub fn remove(&self, name: &FileName) -> Result<TrackedFile, TrackedFilesError> {
        self.remove_if(name, |_| true)?.ok_or_else(|| TrackedFilesError::NotTracked(name.clone()))
    }

    /// The same for a file that has been missing since then. `None` if it was found again or removed in the meantime.
    pub fn remove_missing(&self, name: &FileName, since: Millis) -> Result<Option<TrackedFile>, StoreError> {
        self.remove_if(name, move |known| known.missing_since == Some(since))
    }

    fn remove_if(
        &self,
        name: &FileName,
        matches: impl FnOnce(&TrackedFile) -> bool + Send + 'static,
    ) -> Result<Option<TrackedFile>, StoreError> {
        self.hashing.lock().forget(name);
        let (owner, name) = (self.owner.clone(), name.clone());
        self.store.write(move |tx| {
            let Some(known) = get(tx, &owner, &name)?.filter(matches) else { return Ok(None) };
            let sql = "DELETE FROM share_file WHERE owner = $1 AND name = $2";
            tx.execute(sql, &[(&owner).into(), known.name.as_str().into()])?;
            Ok(Some(known))
        })
    }

    pub fn unhashed(&self) -> Result<Vec<FileName>, StoreError> {
        let sql =
            "SELECT name FROM share_file WHERE owner = $1 AND is_published = 1 AND pieces_root IS NULL ORDER BY name";
        self.store.read(|reader| reader.all(sql, &[(&self.owner).into()], |row| read_file_name(row, 0)))
    }

    fn change(
        &self,
        name: &FileName,
        stat: Option<FileStat>,
        now: Millis,
        pieces: Option<Vec<u8>>,
        update: impl FnOnce(&mut TrackedFile) + Send + 'static,
    ) -> Result<TrackedFile, TrackedFilesError> {
        if let Some(stat) = &stat
            && stat.path.to_str().is_none()
        {
            return Err(TrackedFilesError::PathNotUtf8(stat.path.to_string_lossy().into_owned()));
        }
        let (owner, name) = (self.owner.clone(), name.clone());
        self.store.write(move |tx| {
            let known = get(tx, &owner, &name)?;
            let is_new = known.is_none();
            let mut changed = match (known.clone(), stat) {
                (None, None) => return Err(TrackedFilesError::NotTracked(name)),
                (Some(known), Some(stat)) if known.stat.path != stat.path => {
                    let path = known.stat.path.to_string_lossy().into_owned();
                    return Err(TrackedFilesError::NameTaken { name, path });
                }
                (Some(known), Some(stat)) if size_and_mtime(&known.stat) != size_and_mtime(&stat) => {
                    TrackedFile { stat, blake3: None, pieces_root: None, missing_since: None, ..known }
                }
                // The caller has just found it.
                (Some(known), Some(_)) => TrackedFile { missing_since: None, ..known },
                (Some(known), None) => known,
                (None, Some(stat)) => TrackedFile {
                    name,
                    stat,
                    added_at: now,
                    is_published: false,
                    published_at: None,
                    blake3: None,
                    pieces_root: None,
                    missing_since: None,
                },
            };
            update(&mut changed);
            if is_new && count(tx, &owner)? >= FILES_MAX as u64 {
                return Err(TrackedFilesError::TooManyFiles);
            }
            if known.as_ref() != Some(&changed) {
                write_row(tx, &owner, &changed, pieces.as_deref())?;
            }
            Ok(changed)
        })
    }
}

/// What is compared to detect a changed content without reading it.
fn size_and_mtime(stat: &FileStat) -> (u64, i64) {
    (stat.size, stat.modified_ns)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFilesPage {
    /// Number of matching files on all pages.
    pub total: usize,
    pub files: Vec<TrackedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrackedFilesError {
    #[error("{name} is tracked already, as {path}: choose another name")]
    NameTaken { name: FileName, path: String },
    #[error("{0} is not tracked: add it first, or give its path")]
    NotTracked(FileName),
    #[error("{FILES_MAX} files are tracked already: remove some first")]
    TooManyFiles,
    #[error("{0}: expected a path in UTF-8")]
    PathNotUtf8(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
