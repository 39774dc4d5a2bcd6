//! The files that a node tracks where they are, without copying them. See `docs/spec/share.md`.
//!
//! There is no state besides the store (except for hashing in progress): every change is one transaction, and is on
//! disk once it is reported. A file is identified by its owner and name. What is on disk at its path may change at any
//! time, so size and modification time are those of the last check.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::pieces::FileDigests;
use super::wire::{Digest, FileEntry, FileName, RANGE_FEATURE, Seconds};
use crate::model::{Millis, Name, text};
use crate::storage::{Reader, ReaderExt, Row, Store, StoreError, Tx};

/// Maximum number of files per user: the registry's limit per host.
pub const FILES_MAX: u64 = 100_000;
/// Modification times that differ by no more than this count as equal, seconds: file systems round them.
pub const SAME_MODIFIED_S: f64 = 2.0;

/// The table, for the migrations of the node's store. `pieces` is the concatenated piece digests.
pub const SCHEMA: &str = "
    CREATE TABLE share_file (owner TEXT NOT NULL, name TEXT NOT NULL, path TEXT NOT NULL, size BIGINT NOT NULL,
        modified_ns BIGINT NOT NULL, created_ns BIGINT, added_at BIGINT NOT NULL, is_published BIGINT NOT NULL,
        published_at BIGINT, blake3 BYTEA, pieces_root BYTEA, pieces BYTEA, PRIMARY KEY (owner, name));
    CREATE INDEX share_file_path ON share_file (owner, path);
";
/// A later migration: since when the file at the path has been missing.
pub const ADD_MISSING_SINCE: &str = "ALTER TABLE share_file ADD COLUMN missing_since BIGINT;";
const COLUMNS: &str = "name, path, size, modified_ns, created_ns, added_at, is_published, published_at, blake3,
    pieces_root, missing_since";

/// Why an operation on a tracked file failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrackedFilesError {
    /// The name is already used for another path.
    #[error("{name} is tracked already, as {path}: choose another name")]
    NameTaken {
        /// The name.
        name: FileName,
        /// The other path.
        path: String,
    },
    /// No file of that name is tracked.
    #[error("{0} is not tracked: add it first, or give its path")]
    NotTracked(FileName),
    /// The maximum number of files is reached.
    #[error("{FILES_MAX} files are tracked already: remove some first")]
    TooManyFiles,
    /// The path is not UTF-8 and so cannot be stored.
    #[error("{0}: expected a path in UTF-8")]
    PathNotUtf8(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file's path and metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// Its resolved path.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Creation time, nanoseconds since 1970, if the file system has it.
    pub created_ns: Option<i64>,
}

impl FileStat {
    /// From the metadata of an opened file.
    pub fn of(path: &Path, metadata: &Metadata) -> FileStat {
        FileStat {
            path: path.to_owned(),
            size: metadata.len(),
            modified_ns: metadata.modified().map_or(0, unix_ns),
            created_ns: metadata.created().ok().map(unix_ns),
        }
    }
}

/// Nanoseconds since 1970, clamped to the years 1677 to 2262.
pub fn unix_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// Nanoseconds since 1970 as Unix seconds, as exactly as a JSON number can represent them.
pub fn unix_seconds(ns: i64) -> Seconds {
    const SECOND: i64 = 1_000_000_000;
    // Converted separately, so that only the sum is rounded; the nanoseconds as a whole would be rounded before.
    let exact = ns.div_euclid(SECOND) as f64 + ns.rem_euclid(SECOND) as f64 / SECOND as f64;
    Seconds::new(exact).expect("292 years around 1970 are within 2^53 seconds")
}

fn unix_seconds_of(at: Millis) -> Seconds {
    unix_seconds(i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

/// A tracked file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFile {
    /// The name under which it is or can be published.
    pub name: FileName,
    /// Path and metadata at the last check.
    pub stat: FileStat,
    /// When it was first tracked.
    pub added_at: Millis,
    /// Whether it is published.
    pub is_published: bool,
    /// When it was last published.
    pub published_at: Option<Millis>,
    /// BLAKE3 of the whole content, once it was hashed.
    pub blake3: Option<Digest>,
    /// BLAKE3 of its piece digests, once it was hashed.
    pub pieces_root: Option<Digest>,
    /// Since when a check has found no file at its path.
    pub missing_since: Option<Millis>,
}

impl TrackedFile {
    /// The entry that is published at the registry.
    pub fn entry(&self) -> FileEntry {
        let has_pieces = self.pieces_root.is_some();
        FileEntry {
            size: self.stat.size,
            modified: unix_seconds(self.stat.modified_ns),
            created: self.stat.created_ns.map(unix_seconds),
            published_at: self.published_at.map(unix_seconds_of),
            is_published: self.is_published,
            blake3: self.blake3,
            pieces_root: self.pieces_root,
            features: if has_pieces { Arc::new([RANGE_FEATURE.into()]) } else { Arc::new([]) },
        }
    }

    /// The JSON that is shown to its owner.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "size": self.stat.size,
            "modified": unix_seconds(self.stat.modified_ns),
            "created": self.stat.created_ns.map(unix_seconds),
            "path": self.stat.path.to_string_lossy(),
            "is_published": self.is_published,
            "added_at": unix_seconds_of(self.added_at),
            "published_at": self.published_at.map(unix_seconds_of),
            "blake3": self.blake3,
            "pieces_root": self.pieces_root,
            "missing": self.missing_since.is_some(),
        })
    }

    /// Checks whether there is no file at its path. If that cannot be determined, the last result holds.
    pub fn is_missing(&self) -> bool {
        match fs::symlink_metadata(&self.stat.path) {
            Ok(found) => !found.is_file(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => true,
            Err(_) => self.missing_since.is_some(),
        }
    }
}

/// A page of a user's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFilesPage {
    /// Number of matching files on all pages.
    pub total: usize,
    /// The files of the page, by name.
    pub files: Vec<TrackedFile>,
}

/// How similar two files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Similarity {
    /// Same size and modification times within two seconds.
    Exact,
    /// Only the same size.
    SameSize,
}

/// Compares two files by size and modification time (Unix seconds). An unknown time equals no other.
pub fn similarity(size: u64, modified: Option<f64>, other_size: u64, other_modified: f64) -> Option<Similarity> {
    if size != other_size {
        return None;
    }
    let is_near = modified.is_some_and(|modified| (modified - other_modified).abs() <= SAME_MODIFIED_S);
    Some(if is_near { Similarity::Exact } else { Similarity::SameSize })
}

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

impl TrackedFiles {
    /// The files of this user.
    pub fn of(store: Arc<Store>, owner: &Name) -> TrackedFiles {
        TrackedFiles { store, owner: owner.key().to_owned(), hashing: Arc::default() }
    }

    /// Tracks a file under a name, or updates the metadata of a tracked one. Digests of a different content are
    /// dropped.
    ///
    /// # Errors
    /// [`TrackedFilesError`].
    pub fn track(&self, name: &FileName, stat: FileStat, now: Millis) -> Result<TrackedFile, TrackedFilesError> {
        self.change(name, Some(stat), now, None, |_| {})
    }

    /// The same for a file that was just received: it is not published, even if an earlier file of that name was.
    ///
    /// # Errors
    /// [`TrackedFilesError`].
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
    ///
    /// # Errors
    /// [`TrackedFilesError`].
    pub fn publish(
        &self,
        name: &FileName,
        stat: FileStat,
        read: Option<&FileDigests>,
        now: Millis,
    ) -> Result<TrackedFile, TrackedFilesError> {
        {
            let mut hashing = self.hashing.lock();
            hashing.unreadable.remove(name);
            hashing.current.take_if(|read| read == name);
        }
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

    /// Gives up hashing a file that cannot be read.
    pub fn abandon_hashing(&self, name: &FileName, stat: &FileStat) {
        let mut hashing = self.hashing.lock();
        if hashing.current.take().as_ref() == Some(name) {
            hashing.unreadable.insert(name.clone(), stat.clone());
        }
    }

    /// Unpublishes a file, which stays tracked.
    ///
    /// # Errors
    /// [`TrackedFilesError`].
    pub fn unpublish(&self, name: &FileName) -> Result<TrackedFile, TrackedFilesError> {
        self.change(name, None, Millis::default(), None, |tracked| tracked.is_published = false)
    }

    /// A name that is unused or already stands for this path: the given one, or else one with a number appended.
    ///
    /// # Errors
    /// Those of the store.
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
            let room = super::wire::FILE_NAME_MAX.saturating_sub(behind.len());
            let cut = stem.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
            let Ok(next) = FileName::new(&format!("{}{behind}", &stem[..cut.unwrap_or(0)])) else { break };
            name = next;
        }
        Ok(name)
    }

    /// Stores a file's digests if the file is unchanged and was not published again since hashing began; otherwise
    /// returns false.
    ///
    /// # Errors
    /// Those of the store.
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

    ///
    /// # Errors
    /// Those of the store.
    pub fn get(&self, name: &FileName) -> Result<Option<TrackedFile>, StoreError> {
        self.store.read(|reader| get(reader, &self.owner, name))
    }

    /// A file's concatenated piece digests.
    ///
    /// # Errors
    /// Those of the store.
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
    ///
    /// # Errors
    /// Those of the store.
    pub fn list(&self, published_only: bool) -> Result<Vec<TrackedFile>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND is_published >= $2 ORDER BY name");
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), published_only.into()], read_tracked))
    }

    /// A page of [`TrackedFiles::list`], restricted to names that match the search, ignoring case and spelling.
    ///
    /// # Errors
    /// Those of the store.
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

    /// Number of files.
    ///
    /// # Errors
    /// Those of the store.
    pub fn count(&self) -> Result<u64, StoreError> {
        self.store.read(|reader| count(reader, &self.owner))
    }

    /// Up to `at_most` files after that name.
    ///
    /// # Errors
    /// Those of the store.
    pub fn list_after(&self, name: Option<&FileName>, at_most: usize) -> Result<Vec<TrackedFile>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name > $2 ORDER BY name LIMIT $3");
        let after = name.map_or("", FileName::as_str);
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), after.into(), at_most.into()], read_tracked))
    }

    /// Stores `missing_since` of these files. A file that is tracked at another path by now is left unchanged.
    ///
    /// # Errors
    /// Those of the store.
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
    ///
    /// # Errors
    /// [`TrackedFilesError::NotTracked`], or those of the store.
    pub fn remove(&self, name: &FileName) -> Result<TrackedFile, TrackedFilesError> {
        self.remove_if(name, |_| true)?.ok_or_else(|| TrackedFilesError::NotTracked(name.clone()))
    }

    /// The same for a file that has been missing since then. `None` if it was found again or removed in the meantime.
    ///
    /// # Errors
    /// Those of the store.
    pub fn remove_missing(&self, name: &FileName, since: Millis) -> Result<Option<TrackedFile>, StoreError> {
        self.remove_if(name, move |known| known.missing_since == Some(since))
    }

    fn remove_if(
        &self,
        name: &FileName,
        matches: impl FnOnce(&TrackedFile) -> bool + Send + 'static,
    ) -> Result<Option<TrackedFile>, StoreError> {
        {
            let mut hashing = self.hashing.lock();
            hashing.unreadable.remove(name);
            hashing.current.take_if(|read| read == name);
        }
        let (owner, name) = (self.owner.clone(), name.clone());
        self.store.write(move |tx| {
            let Some(known) = get(tx, &owner, &name)?.filter(matches) else { return Ok(None) };
            let sql = "DELETE FROM share_file WHERE owner = $1 AND name = $2";
            tx.execute(sql, &[(&owner).into(), known.name.as_str().into()])?;
            Ok(Some(known))
        })
    }

    /// Names of published files that are not hashed yet.
    ///
    /// # Errors
    /// Those of the store.
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
            if is_new && count(tx, &owner)? >= FILES_MAX {
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

fn get(reader: &(impl Reader + ?Sized), owner: &str, name: &FileName) -> Result<Option<TrackedFile>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name = $2");
    // Try every spelling, first the given one. Separate lookups by key cost a fraction of one query that has to sort
    // its results.
    for spelled in text::distinct_spellings(name.as_str()) {
        if let Some(found) = reader.first(&sql, &[owner.into(), (&spelled).into()], read_tracked)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn count(reader: &(impl Reader + ?Sized), owner: &str) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM share_file WHERE owner = $1";
    Ok(reader.first(sql, &[owner.into()], |row| row.uint(0))?.unwrap_or_default())
}

/// The concatenated piece digests.
fn digest_bytes(pieces: &FileDigests) -> Vec<u8> {
    pieces.digests().iter().flat_map(|digest| digest.0).collect()
}

/// Writes a row, with the given piece digests or the stored ones; without a `pieces_root` they are cleared.
fn write_row(
    tx: &mut (impl Tx + ?Sized),
    owner: &str,
    it: &TrackedFile,
    pieces: Option<&[u8]>,
) -> Result<(), StoreError> {
    let path = it.stat.path.to_string_lossy();
    let sql = "INSERT INTO share_file (owner, name, path, size, modified_ns, created_ns, added_at, is_published,
            published_at, blake3, pieces_root, pieces, missing_since)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        ON CONFLICT (owner, name) DO UPDATE SET path = excluded.path, size = excluded.size,
            modified_ns = excluded.modified_ns, created_ns = excluded.created_ns, is_published = excluded.is_published,
            published_at = excluded.published_at, blake3 = excluded.blake3, pieces_root = excluded.pieces_root,
            missing_since = excluded.missing_since,
            pieces = CASE WHEN excluded.pieces_root IS NULL THEN NULL
                ELSE COALESCE(excluded.pieces, share_file.pieces) END";
    tx.execute(
        sql,
        &[
            owner.into(),
            it.name.as_str().into(),
            path.as_ref().into(),
            to_sql_integer(it.stat.size)?.into(),
            it.stat.modified_ns.into(),
            it.stat.created_ns.into(),
            it.added_at.into(),
            it.is_published.into(),
            it.published_at.into(),
            it.blake3.as_ref().map(|digest| &digest.0).into(),
            it.pieces_root.as_ref().map(|digest| &digest.0).into(),
            pieces.into(),
            it.missing_since.into(),
        ],
    )?;
    Ok(())
}

fn to_sql_integer(size: u64) -> Result<i64, StoreError> {
    i64::try_from(size).map_err(|_| StoreError::Invalid(format!("a file of {size} bytes")))
}

fn read_file_name(row: &Row<'_>, column: usize) -> Result<FileName, StoreError> {
    FileName::new(row.text(column)?)
        .map_err(|wrong| StoreError::Invalid(format!("a file's name in the store: {wrong}")))
}

fn read_digest(row: &Row<'_>, column: usize) -> Result<Option<Digest>, StoreError> {
    let wrong = |_| StoreError::Invalid("a digest in the store: expected 32 bytes".to_owned());
    row.opt_blob(column)?.map(|bytes| bytes.try_into().map(Digest).map_err(wrong)).transpose()
}

fn read_tracked(row: &Row<'_>) -> Result<TrackedFile, StoreError> {
    let millis =
        |at: i64| u64::try_from(at).map(Millis).map_err(|_| StoreError::Invalid("a time before 1970".to_owned()));
    Ok(TrackedFile {
        name: read_file_name(row, 0)?,
        stat: FileStat {
            path: row.text(1)?.into(),
            size: row.uint(2)?,
            modified_ns: row.int(3)?,
            created_ns: row.opt_int(4)?,
        },
        added_at: row.millis(5)?,
        is_published: row.bool(6)?,
        published_at: row.opt_int(7)?.map(millis).transpose()?,
        blake3: read_digest(row, 8)?,
        pieces_root: read_digest(row, 9)?,
        missing_since: row.opt_int(10)?.map(millis).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Store;

    fn store(dir: &Path) -> Arc<Store> {
        Arc::new(Store::open(&dir.join("share.db"), &[SCHEMA, ADD_MISSING_SINCE]).unwrap())
    }

    fn files(dir: &Path, owner: &str) -> TrackedFiles {
        TrackedFiles::of(store(dir), &Name::new(owner).unwrap())
    }

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    fn stat(path: &str, size: u64, modified_s: i64) -> FileStat {
        FileStat { path: path.into(), size, modified_ns: modified_s * 1_000_000_000 + 5, created_ns: Some(7) }
    }

    #[test]
    fn tracking_twice_is_tracking_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let first = files.track(&name("a"), stat("/x/a", 5, 1), Millis(1000)).unwrap();
        assert_eq!(files.track(&name("a"), stat("/x/a", 5, 1), Millis(2000)).unwrap(), first);
        assert_eq!(files.list(false).unwrap(), std::slice::from_ref(&first));
        assert_eq!((first.added_at, first.is_published), (Millis(1000), false));
        let taken = files.track(&name("a"), stat("/x/b", 5, 1), Millis(3000)).unwrap_err();
        assert!(matches!(&taken, TrackedFilesError::NameTaken { path, .. } if path == "/x/a"), "{taken:?}");
        // Two names may stand for one path.
        files.track(&name("b"), stat("/x/a", 5, 1), Millis(3000)).unwrap();
    }

    #[test]
    fn published_and_hidden_again_and_another_content_forgets_its_digests() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        assert_eq!(files.unpublish(&name("a")).unwrap_err(), TrackedFilesError::NotTracked(name("a")));
        let was = stat("/x/a", 5, 1);
        let out = files.publish(&name("a"), was.clone(), None, Millis(1000)).unwrap();
        assert_eq!((out.is_published, out.published_at), (true, Some(Millis(1000))));
        assert_eq!(files.publish(&name("a"), was.clone(), None, Millis(2000)).unwrap(), out);
        assert_eq!(files.unhashed().unwrap(), [name("a")]);
        let read = pieces(b"12345");
        let (whole, root) = (read.blake3(), read.root());
        assert!(files.begin_hashing(&name("a"), &was) && files.finish_hashing(&name("a"), &was, &read).unwrap());
        assert_eq!(files.unhashed().unwrap(), []);
        let known = files.get(&name("a")).unwrap().unwrap();
        assert_eq!((known.blake3, known.pieces_root), (Some(whole), Some(root)));
        assert!(known.entry().has_range() && !out.entry().has_range());
        assert_eq!(files.piece_digests(&name("a")).unwrap(), Some(digest_bytes(&read)));
        assert_eq!(files.unpublish(&name("a")).unwrap().blake3, Some(whole));
        assert_eq!(files.list(true).unwrap(), []);
        // Digests of a different content are ignored.
        let is = stat("/x/a", 6, 1);
        let changed = files.publish(&name("a"), is, None, Millis(3000)).unwrap();
        assert_eq!((changed.blake3, changed.pieces_root, changed.published_at), (None, None, Some(Millis(3000))));
        assert_eq!(files.piece_digests(&name("a")).unwrap(), None);
        assert!(files.begin_hashing(&name("a"), &was) && !files.finish_hashing(&name("a"), &was, &read).unwrap());
    }

    fn pieces(mut content: &[u8]) -> FileDigests {
        let size = content.len() as u64;
        FileDigests::hash(&mut content, size, &|| true).unwrap().unwrap()
    }

    #[test]
    fn publishing_again_forgets_what_was_read_of_a_content_that_looks_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let (a, stat) = (name("a"), stat("/x/a", 5, 1));
        let (old, new) = (pieces(b"first"), pieces(b"other"));
        let first = files.publish(&a, stat.clone(), Some(&old), Millis(1)).unwrap();
        assert_eq!((first.blake3, files.piece_digests(&a).unwrap()), (Some(old.blake3()), Some(digest_bytes(&old))));
        assert_eq!(files.unhashed().unwrap(), []);
        // Hashed when publishing, or later.
        let second = files.publish(&a, stat.clone(), Some(&new), Millis(2)).unwrap();
        assert_eq!((second.blake3, second.pieces_root), (Some(new.blake3()), Some(new.root())));
        assert_eq!(files.piece_digests(&a).unwrap(), Some(digest_bytes(&new)));
        let third = files.publish(&a, stat.clone(), None, Millis(3)).unwrap();
        assert_eq!((third.blake3, third.pieces_root, files.piece_digests(&a).unwrap()), (None, None, None));
        // Digests of a file that was published again while it was hashed may be of an outdated content.
        assert!(files.begin_hashing(&a, &stat));
        files.publish(&a, stat.clone(), None, Millis(4)).unwrap();
        assert!(!files.finish_hashing(&a, &stat, &old).unwrap());
        assert_eq!(files.unhashed().unwrap(), [name("a")]);
        assert!(files.begin_hashing(&a, &stat) && files.finish_hashing(&a, &stat, &new).unwrap());
        // Tracking it again does not hash anything.
        assert_eq!(files.track(&a, stat.clone(), Millis(5)).unwrap().blake3, Some(new.blake3()));
        // A file that cannot be read is not retried until it is published again.
        files.publish(&a, stat.clone(), None, Millis(6)).unwrap();
        assert!(files.begin_hashing(&a, &stat));
        files.abandon_hashing(&a, &stat);
        assert!(!files.begin_hashing(&a, &stat));
        files.publish(&a, stat.clone(), None, Millis(7)).unwrap();
        assert!(files.begin_hashing(&a, &stat));
    }

    #[test]
    fn each_user_has_files_of_his_own_and_they_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let shared = store(dir.path());
        let of = |owner: &str| TrackedFiles::of(Arc::clone(&shared), &Name::new(owner).unwrap());
        let anns = of("ann").publish(&name("a"), stat("/x/a", 5, 1), None, Millis(1)).unwrap();
        of("bob").track(&name("a"), stat("/y/a", 9, 1), Millis(1)).unwrap();
        shared.close();
        let again = files(dir.path(), "ann");
        assert_eq!(again.list(false).unwrap(), [anns]);
        assert_eq!(again.get(&name("b")).unwrap(), None);
    }

    #[test]
    fn files_are_found_by_a_part_of_their_name_and_paged() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        for (number, named) in ["Report.pdf", "song.ogg", "r\u{e9}port", "REPORT 2", "zoo"].into_iter().enumerate() {
            files.track(&name(named), stat(&format!("/x/{number}"), 5, 1), Millis(1)).unwrap();
        }
        files.publish(&name("song.ogg"), stat("/x/1", 5, 1), None, Millis(1)).unwrap();
        let page = |published: bool, q: &str, offset: usize, limit: usize| {
            let page = files.page(published, &text::TextFilter::new(q), (offset, limit)).unwrap();
            (page.total, page.files.into_iter().map(|file| file.name.to_string()).collect::<Vec<_>>())
        };
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = names(&["REPORT 2", "Report.pdf", "r\u{e9}port", "song.ogg", "zoo"]);
        assert_eq!(page(false, "", 0, usize::MAX), (5, all.clone()));
        assert_eq!(page(false, "", 1, 2), (5, all[1..3].to_vec()));
        assert_eq!(page(false, "", 9, 2), (5, vec![]));
        assert_eq!(page(false, "", 0, 0), (5, vec![]));
        assert_eq!(page(false, "rePOrt", 0, 9), (2, names(&["REPORT 2", "Report.pdf"])));
        assert_eq!(page(false, "report", 1, 9), (2, names(&["Report.pdf"])));
        assert_eq!(page(false, "RE\u{301}P", 0, 9), (1, names(&["r\u{e9}port"])), "however it is spelled");
        assert_eq!(page(true, "", 0, 9), (1, names(&["song.ogg"])));
        assert_eq!(page(true, "report", 0, 9), (0, vec![]));
        assert_eq!(files.count().unwrap(), 5);
        let after: Vec<_> = files.list_after(Some(&name("Report.pdf")), 2).unwrap();
        assert_eq!(after.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["r\u{e9}port", "song.ogg"]);
        assert_eq!(files.list_after(None, 9).unwrap().len(), 5);
    }

    #[test]
    fn what_is_not_there_any_more_is_marked_and_what_is_removed_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let path = dir.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        let stat = || FileStat::of(&path, &std::fs::metadata(&path).unwrap());
        let it = files.publish(&name("a"), stat(), None, Millis(1)).unwrap();
        assert!(!it.is_missing() && it.to_json()["missing"] == false);
        std::fs::remove_file(&path).unwrap();
        assert!(it.is_missing());
        files.set_missing(&[TrackedFile { missing_since: Some(Millis(7)), ..it.clone() }]).unwrap();
        // Not a file that was found again or removed in the meantime.
        assert_eq!(files.remove_missing(&name("a"), Millis(6)), Ok(None));
        assert_eq!(files.remove_missing(&name("b"), Millis(7)), Ok(None));
        let gone = files.get(&name("a")).unwrap().unwrap();
        assert_eq!((gone.missing_since, gone.to_json()["missing"].clone()), (Some(Millis(7)), json!(true)));
        // Unpublishing does not check the path; tracking it again does.
        assert_eq!(files.unpublish(&name("a")).unwrap().missing_since, Some(Millis(7)));
        std::fs::create_dir(&path).unwrap();
        assert!(gone.is_missing(), "a folder is no file");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(files.track(&name("a"), stat(), Millis(9)).unwrap().missing_since, None);
        // A different content received under the name of a published file is not published.
        files.publish(&name("a"), stat(), None, Millis(10)).unwrap();
        std::fs::write(&path, "other").unwrap();
        assert!(!files.track_received(&name("a"), stat(), Millis(11)).unwrap().is_published);
        assert_eq!(files.remove(&name("a")).unwrap().name, name("a"));
        assert_eq!(files.remove(&name("a")), Err(TrackedFilesError::NotTracked(name("a"))));
        assert!(path.exists());
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        files.track(&name("a.tar.gz"), stat("/x/a.tar.gz", 5, 1), Millis(1)).unwrap();
        let free = |wanted: &str, path: &str| files.free_name(&name(wanted), Path::new(path)).unwrap().to_string();
        assert_eq!(free("b", "/x/b"), "b");
        assert_eq!(free("a.tar.gz", "/x/a.tar.gz"), "a.tar.gz");
        assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (2).gz");
        files.track(&name("a.tar (2).gz"), stat("/z", 5, 1), Millis(1)).unwrap();
        assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (3).gz");
        let long = "é".repeat(127);
        files.track(&name(&long), stat("/x/long", 5, 1), Millis(1)).unwrap();
        assert_eq!(free(&long, "/y"), format!("{} (2)", "é".repeat(125)));
    }

    #[test]
    fn likeness_is_by_size_and_then_by_time() {
        assert_eq!(similarity(5, Some(100.0), 5, 102.0), Some(Similarity::Exact));
        assert_eq!(similarity(5, Some(100.0), 5, 102.1), Some(Similarity::SameSize));
        assert_eq!(similarity(5, None, 5, 100.0), Some(Similarity::SameSize));
        assert_eq!(similarity(5, Some(100.0), 6, 100.0), None);
    }

    #[test]
    fn times_of_files_are_seconds() {
        assert_eq!(unix_seconds(1_699_267_200_000_000_000).get(), 1_699_267_200.0);
        assert_eq!(unix_seconds(1_699_267_200_250_000_000).get(), 1_699_267_200.25);
        assert_eq!(unix_ns(UNIX_EPOCH + std::time::Duration::from_nanos(5)), 5);
        assert_eq!(unix_ns(UNIX_EPOCH - std::time::Duration::from_nanos(5)), -5);
    }
}
