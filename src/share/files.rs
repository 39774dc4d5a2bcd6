//! The files that a node tracks: where they lie, never copied. SPEC.md section 6, Files.
//!
//! The store is all there is: every change is one transaction, and what was answered is on disk. A file is
//! known by its owner and its name; what is on disk under its path may change at any time, so that size and
//! modification time are those of when it was looked at last.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::pieces::Pieces;
use super::wire::{Digest, FileEntry, FileName, RANGE_FEATURE, Seconds};
use crate::model::{Millis, Name, text};
use crate::storage::{Query, Reader, Row, Store, StoreError, Tx};

/// Most files of one user: as many as the registry takes of a host.
pub const FILES_MAX: u64 = 100_000;
/// Modification times that are no further apart are one, seconds: file systems round.
pub const SAME_MODIFIED_S: f64 = 2.0;

/// The table, for the migrations of the node's store. `pieces` is the pieces' digests one behind the other.
pub const SCHEMA: &str = "
    CREATE TABLE share_file (owner TEXT NOT NULL, name TEXT NOT NULL, path TEXT NOT NULL, size BIGINT NOT NULL,
        modified_ns BIGINT NOT NULL, created_ns BIGINT, added_at BIGINT NOT NULL, is_published BIGINT NOT NULL,
        published_at BIGINT, blake3 BYTEA, pieces_root BYTEA, pieces BYTEA, PRIMARY KEY (owner, name));
    CREATE INDEX share_file_path ON share_file (owner, path);
";
/// What a later version added: since when there is nothing under a file's path.
pub const MISSING: &str = "ALTER TABLE share_file ADD COLUMN missing_since BIGINT;";
const COLUMNS: &str = "name, path, size, modified_ns, created_ns, added_at, is_published, published_at, blake3,
    pieces_root, missing_since";

/// Why a file is not tracked, or not as was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// The name stands for another path.
    #[error("{name} is tracked already, as {path}: choose another name")]
    NameTaken {
        /// The name.
        name: FileName,
        /// Where that one lies.
        path: String,
    },
    /// Nothing of that name is tracked.
    #[error("{0} is not tracked: add it first, or give its path")]
    Unknown(FileName),
    /// There is no room for one more.
    #[error("{FILES_MAX} files are tracked already: remove some first")]
    Full,
    /// The path cannot be kept.
    #[error("{0}: expected a path in UTF-8")]
    NotText(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a file looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where it really lies.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When its content last changed, nanoseconds since 1970.
    pub modified_ns: i64,
    /// When it was made, where the file system tells.
    pub created_ns: Option<i64>,
}

impl Facts {
    /// Of an opened file.
    pub fn of(path: &Path, metadata: &Metadata) -> Facts {
        Facts {
            path: path.to_owned(),
            size: metadata.len(),
            modified_ns: metadata.modified().map_or(0, unix_ns),
            created_ns: metadata.created().ok().map(unix_ns),
        }
    }
}

/// Nanoseconds since 1970, within the years 1677 to 2262.
pub fn unix_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// The same as Unix seconds, as exactly as a number of JSON holds them.
pub fn seconds(ns: i64) -> Seconds {
    const SECOND: i64 = 1_000_000_000;
    // Apart, for the sum is rounded once; as nanoseconds they would be rounded before.
    let exact = ns.div_euclid(SECOND) as f64 + ns.rem_euclid(SECOND) as f64 / SECOND as f64;
    Seconds::new(exact).expect("292 years around 1970 are within 2^53 seconds")
}

fn seconds_of(at: Millis) -> Seconds {
    seconds(i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

/// A file that is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// Under which it is published.
    pub name: FileName,
    /// What it looked like last.
    pub facts: Facts,
    /// When it was first tracked.
    pub added_at: Millis,
    /// Whether others are shown it.
    pub is_published: bool,
    /// Since when, or when it last was.
    pub published_at: Option<Millis>,
    /// Of the whole content, once it was read.
    pub blake3: Option<Digest>,
    /// Of its pieces, once it was read.
    pub pieces_root: Option<Digest>,
    /// Since when there is no file under its path, as far as anybody has looked.
    pub missing_since: Option<Millis>,
}

impl Tracked {
    /// What the registry is told.
    pub fn entry(&self) -> FileEntry {
        let has_pieces = self.pieces_root.is_some();
        FileEntry {
            size: self.facts.size,
            modified: seconds(self.facts.modified_ns),
            created: self.facts.created_ns.map(seconds),
            published_at: self.published_at.map(seconds_of),
            is_published: self.is_published,
            blake3: self.blake3,
            pieces_root: self.pieces_root,
            features: if has_pieces { Arc::new([RANGE_FEATURE.into()]) } else { Arc::new([]) },
        }
    }

    /// What its owner is shown.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "size": self.facts.size,
            "modified": seconds(self.facts.modified_ns),
            "created": self.facts.created_ns.map(seconds),
            "path": self.facts.path.to_string_lossy(),
            "is_published": self.is_published,
            "added_at": seconds_of(self.added_at),
            "published_at": self.published_at.map(seconds_of),
            "blake3": self.blake3,
            "pieces_root": self.pieces_root,
            "missing": self.missing_since.is_some(),
        })
    }

    /// Looks whether there is a file under its path. Where that cannot be told, what was known before holds.
    pub fn is_missing(&self) -> bool {
        match fs::symlink_metadata(&self.facts.path) {
            Ok(found) => !found.is_file(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => true,
            Err(_) => self.missing_since.is_some(),
        }
    }
}

/// A part of a user's files, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Of all that were asked for.
    pub total: usize,
    /// Those of the part, by name.
    pub files: Vec<Tracked>,
}

/// How much two files look like one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// Same size, and modified within two seconds.
    Exact,
    /// Same size.
    Likely,
}

/// Compares two files by size and modification time (seconds); a time that is not known is like no other.
pub fn likeness(size: u64, modified: Option<f64>, other_size: u64, other_modified: f64) -> Option<Likeness> {
    if size != other_size {
        return None;
    }
    let is_near = modified.is_some_and(|modified| (modified - other_modified).abs() <= SAME_MODIFIED_S);
    Some(if is_near { Likeness::Exact } else { Likeness::Likely })
}

/// One user's tracked files.
#[derive(Debug, Clone)]
pub struct Files {
    store: Arc<Store>,
    /// The name as it is compared: it stands for all its spellings.
    owner: String,
    reading: Arc<Mutex<Reading>>,
}

/// What is read for its digests, while others may publish.
#[derive(Debug, Default)]
struct Reading {
    /// The file that is read now; none once it was published again meanwhile, for what was read may be of before.
    now: Option<FileName>,
    /// What could not be read, as it was: it is tried again when it is another file, or published again.
    given_up: HashMap<FileName, Facts>,
}

impl Files {
    /// Those of this user.
    pub fn of(store: Arc<Store>, owner: &Name) -> Files {
        Files { store, owner: owner.key().to_owned(), reading: Arc::default() }
    }

    /// Tracks a file under a name, or looks at it again: what was known of another content is forgotten.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn track(&self, name: &FileName, facts: Facts, now: Millis) -> Result<Tracked, FilesError> {
        self.change(name, Some(facts), now, None, |_| {})
    }

    /// The same for a content that has just come under a name: it is not published, even if one of that name was.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn track_new(&self, name: &FileName, facts: Facts, now: Millis) -> Result<Tracked, FilesError> {
        self.change(name, Some(facts), now, None, |tracked| {
            (tracked.is_published, tracked.blake3, tracked.pieces_root) = (false, None, None);
        })
    }

    /// The same for a file that is published from now on. Its digests are those that were `read` just now, else none:
    /// a content may change and keep size and time.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn publish(
        &self,
        name: &FileName,
        facts: Facts,
        read: Option<&Pieces>,
        now: Millis,
    ) -> Result<Tracked, FilesError> {
        {
            let mut reading = self.reading.lock();
            reading.given_up.remove(name);
            reading.now.take_if(|read| read == name);
        }
        let digests = read.map(|read| (read.blake3(), read.root()));
        self.change(name, Some(facts), now, read.map(bytes_of), move |tracked| {
            if !tracked.is_published {
                (tracked.is_published, tracked.published_at) = (true, Some(now));
            }
            (tracked.blake3, tracked.pieces_root) = digests.unzip();
        })
    }

    /// A file is read for its digests from now on, until [`Files::hashed`]. False if that failed before and nothing
    /// has changed since.
    pub fn begin_reading(&self, name: &FileName, facts: &Facts) -> bool {
        let mut reading = self.reading.lock();
        let is_new = reading.given_up.get(name) != Some(facts);
        reading.now = is_new.then(|| name.clone());
        is_new
    }

    /// It cannot be read as it is.
    pub fn give_up_reading(&self, name: &FileName, facts: &Facts) {
        let mut reading = self.reading.lock();
        if reading.now.take().as_ref() == Some(name) {
            reading.given_up.insert(name.clone(), facts.clone());
        }
    }

    /// Hides a file, which stays tracked.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn unpublish(&self, name: &FileName) -> Result<Tracked, FilesError> {
        self.change(name, None, Millis::default(), None, |tracked| tracked.is_published = false)
    }

    /// A name that stands for nothing yet, or for this path: the one given, else one with a number.
    ///
    /// # Errors
    /// The store's.
    pub fn free_name(&self, wanted: &FileName, path: &Path) -> Result<FileName, StoreError> {
        let (stem, ending) = match wanted.as_str().rsplit_once('.') {
            Some((stem, ending)) if !stem.is_empty() => (stem, format!(".{ending}")),
            _ => (wanted.as_str(), String::new()),
        };
        let mut name = wanted.clone();
        for number in 2..10_000_u32 {
            match self.get(&name)? {
                Some(tracked) if tracked.facts.path != path => {}
                _ => return Ok(name),
            }
            // One that would be too long is cut at a character.
            let behind = format!(" ({number}){ending}");
            let room = super::wire::FILE_NAME_MAX.saturating_sub(behind.len());
            let cut = stem.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
            let Ok(next) = FileName::new(&format!("{}{behind}", &stem[..cut.unwrap_or(0)])) else { break };
            name = next;
        }
        Ok(name)
    }

    /// Keeps what reading the whole file has shown, if it is still the file that was read, and was not published again
    /// meanwhile: else false.
    ///
    /// # Errors
    /// The store's.
    pub fn hashed(&self, name: &FileName, read: &Facts, pieces: &Pieces) -> Result<bool, StoreError> {
        let (owner, name, read) = (self.owner.clone(), name.clone(), read.clone());
        let (blake3, root, bytes) = (pieces.blake3(), pieces.root(), bytes_of(pieces));
        let reading = Arc::clone(&self.reading);
        self.store.write(move |tx| {
            // Who publishes it from now on writes behind this.
            if reading.lock().now.as_ref() != Some(&name) {
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
                    as_int(read.size)?.into(),
                    read.modified_ns.into(),
                ],
            )?;
            Ok(rows > 0)
        })
    }

    /// The file of that name.
    ///
    /// # Errors
    /// The store's.
    pub fn get(&self, name: &FileName) -> Result<Option<Tracked>, StoreError> {
        self.store.read(|reader| get(reader, &self.owner, name))
    }

    /// The pieces' digests of a file, one behind the other.
    ///
    /// # Errors
    /// The store's.
    pub fn pieces(&self, name: &FileName) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT pieces FROM share_file WHERE owner = $1 AND name = $2";
        self.store.read(|reader| {
            let row = reader.first(sql, &[(&self.owner).into(), name.as_str().into()], |row| {
                Ok::<_, StoreError>(row.opt_blob(0)?.map(<[u8]>::to_vec))
            })?;
            Ok(row.flatten())
        })
    }

    /// All, by name; or those that are published.
    ///
    /// # Errors
    /// The store's.
    pub fn list(&self, published_alone: bool) -> Result<Vec<Tracked>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND is_published >= $2 ORDER BY name");
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), published_alone.into()], tracked))
    }

    /// A part of what [`Files::list`] gives: those whose name has `q` in it, in any case and however it is spelled.
    ///
    /// # Errors
    /// The store's.
    pub fn page(
        &self,
        published_alone: bool,
        sought: &text::Sought,
        (offset, limit): (usize, usize),
    ) -> Result<Page, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND is_published >= $2 ORDER BY name");
        let mut page = Page { total: 0, files: Vec::new() };
        self.store.read(|reader| {
            reader.query(&sql, &[(&self.owner).into(), published_alone.into()], &mut |row| {
                if !sought.is_in(row.text(0)?) {
                    return Ok(());
                }
                if page.total >= offset && page.files.len() < limit {
                    page.files.push(tracked(row)?);
                }
                page.total += 1;
                Ok(())
            })
        })?;
        Ok(page)
    }

    /// How many there are.
    ///
    /// # Errors
    /// The store's.
    pub fn count(&self) -> Result<u64, StoreError> {
        self.store.read(|reader| count(reader, &self.owner))
    }

    /// The next ones by name behind that one, `at_most` so many.
    ///
    /// # Errors
    /// The store's.
    pub fn after(&self, name: Option<&FileName>, at_most: usize) -> Result<Vec<Tracked>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name > $2 ORDER BY name LIMIT $3");
        let after = name.map_or("", FileName::as_str);
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        self.store.read(|reader| reader.all(&sql, &[(&self.owner).into(), after.into(), at_most.into()], tracked))
    }

    /// Keeps of these files that there is nothing under their paths since then, or that there is again. Of one that was
    /// tracked at another path meanwhile nothing is kept.
    ///
    /// # Errors
    /// The store's.
    pub fn set_missing(&self, files: &[Tracked]) -> Result<(), StoreError> {
        if files.is_empty() {
            return Ok(());
        }
        let (owner, files) = (self.owner.clone(), files.to_vec());
        self.store.write(move |tx| {
            for file in &files {
                let path = file.facts.path.to_string_lossy();
                tx.execute(
                    "UPDATE share_file SET missing_since = $1 WHERE owner = $2 AND name = $3 AND path = $4",
                    &[file.missing_since.into(), (&owner).into(), file.name.as_str().into(), path.as_ref().into()],
                )?;
            }
            Ok(())
        })
    }

    /// Tracks a file no more. It stays where it lies.
    ///
    /// # Errors
    /// [`FilesError::Unknown`], or the store's.
    pub fn remove(&self, name: &FileName) -> Result<Tracked, FilesError> {
        self.remove_if(name, |_| true)?.ok_or_else(|| FilesError::Unknown(name.clone()))
    }

    /// The same of one that has been missing since then; none where it is not any more, or was removed meanwhile.
    ///
    /// # Errors
    /// The store's.
    pub fn remove_missing(&self, name: &FileName, since: Millis) -> Result<Option<Tracked>, StoreError> {
        self.remove_if(name, move |known| known.missing_since == Some(since))
    }

    fn remove_if(
        &self,
        name: &FileName,
        is_it: impl FnOnce(&Tracked) -> bool + Send + 'static,
    ) -> Result<Option<Tracked>, StoreError> {
        {
            let mut reading = self.reading.lock();
            reading.given_up.remove(name);
            reading.now.take_if(|read| read == name);
        }
        let (owner, name) = (self.owner.clone(), name.clone());
        self.store.write(move |tx| {
            let Some(known) = get(tx, &owner, &name)?.filter(is_it) else { return Ok(None) };
            let sql = "DELETE FROM share_file WHERE owner = $1 AND name = $2";
            tx.execute(sql, &[(&owner).into(), known.name.as_str().into()])?;
            Ok(Some(known))
        })
    }

    /// Those that are published and were not read yet, by name.
    ///
    /// # Errors
    /// The store's.
    pub fn not_hashed(&self) -> Result<Vec<FileName>, StoreError> {
        let sql =
            "SELECT name FROM share_file WHERE owner = $1 AND is_published = 1 AND pieces_root IS NULL ORDER BY name";
        self.store.read(|reader| reader.all(sql, &[(&self.owner).into()], |row| file_name(row, 0)))
    }

    fn change(
        &self,
        name: &FileName,
        facts: Option<Facts>,
        now: Millis,
        pieces: Option<Vec<u8>>,
        then: impl FnOnce(&mut Tracked) + Send + 'static,
    ) -> Result<Tracked, FilesError> {
        if let Some(facts) = &facts
            && facts.path.to_str().is_none()
        {
            return Err(FilesError::NotText(facts.path.to_string_lossy().into_owned()));
        }
        let (owner, name) = (self.owner.clone(), name.clone());
        self.store.write(move |tx| {
            let known = get(tx, &owner, &name)?;
            let is_new = known.is_none();
            let mut changed = match (known.clone(), facts) {
                (None, None) => return Err(FilesError::Unknown(name)),
                (Some(known), Some(facts)) if known.facts.path != facts.path => {
                    let path = known.facts.path.to_string_lossy().into_owned();
                    return Err(FilesError::NameTaken { name, path });
                }
                (Some(known), Some(facts)) if content(&known.facts) != content(&facts) => {
                    Tracked { facts, blake3: None, pieces_root: None, missing_since: None, ..known }
                }
                // It was looked at just now.
                (Some(known), Some(_)) => Tracked { missing_since: None, ..known },
                (Some(known), None) => known,
                (None, Some(facts)) => Tracked {
                    name,
                    facts,
                    added_at: now,
                    is_published: false,
                    published_at: None,
                    blake3: None,
                    pieces_root: None,
                    missing_since: None,
                },
            };
            then(&mut changed);
            if is_new && count(tx, &owner)? >= FILES_MAX {
                return Err(FilesError::Full);
            }
            if known.as_ref() != Some(&changed) {
                put(tx, &owner, &changed, pieces.as_deref())?;
            }
            Ok(changed)
        })
    }
}

/// What tells one content from another without reading it.
fn content(facts: &Facts) -> (u64, i64) {
    (facts.size, facts.modified_ns)
}

fn get(reader: &(impl Reader + ?Sized), owner: &str, name: &FileName) -> Result<Option<Tracked>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name = $2");
    // However it is spelled; first as it is asked for. One after the other: a look by the key costs a small part of
    // one that has to put what it finds in order.
    for spelled in text::distinct_spellings(name.as_str()) {
        if let Some(found) = reader.first(&sql, &[owner.into(), (&spelled).into()], tracked)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn count(reader: &(impl Reader + ?Sized), owner: &str) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM share_file WHERE owner = $1";
    Ok(reader.first(sql, &[owner.into()], |row| row.uint(0))?.unwrap_or_default())
}

/// The pieces' digests one behind the other.
fn bytes_of(pieces: &Pieces) -> Vec<u8> {
    pieces.digests().iter().flat_map(|digest| digest.0).collect()
}

/// Writes a row, with these pieces or those that are there; digests that are not known any more take them along.
fn put(tx: &mut (impl Tx + ?Sized), owner: &str, it: &Tracked, pieces: Option<&[u8]>) -> Result<(), StoreError> {
    let path = it.facts.path.to_string_lossy();
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
            as_int(it.facts.size)?.into(),
            it.facts.modified_ns.into(),
            it.facts.created_ns.into(),
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

fn as_int(size: u64) -> Result<i64, StoreError> {
    i64::try_from(size).map_err(|_| StoreError::Invalid(format!("a file of {size} bytes")))
}

fn file_name(row: &Row<'_>, column: usize) -> Result<FileName, StoreError> {
    FileName::new(row.text(column)?)
        .map_err(|wrong| StoreError::Invalid(format!("a file's name in the store: {wrong}")))
}

fn digest(row: &Row<'_>, column: usize) -> Result<Option<Digest>, StoreError> {
    let wrong = |_| StoreError::Invalid("a digest in the store: expected 32 bytes".to_owned());
    row.opt_blob(column)?.map(|bytes| bytes.try_into().map(Digest).map_err(wrong)).transpose()
}

fn tracked(row: &Row<'_>) -> Result<Tracked, StoreError> {
    let millis =
        |at: i64| u64::try_from(at).map(Millis).map_err(|_| StoreError::Invalid("a time before 1970".to_owned()));
    Ok(Tracked {
        name: file_name(row, 0)?,
        facts: Facts {
            path: row.text(1)?.into(),
            size: row.uint(2)?,
            modified_ns: row.int(3)?,
            created_ns: row.opt_int(4)?,
        },
        added_at: row.millis(5)?,
        is_published: row.bool(6)?,
        published_at: row.opt_int(7)?.map(millis).transpose()?,
        blake3: digest(row, 8)?,
        pieces_root: digest(row, 9)?,
        missing_since: row.opt_int(10)?.map(millis).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Store;

    fn store(dir: &Path) -> Arc<Store> {
        Arc::new(Store::open(&dir.join("share.db"), &[SCHEMA, MISSING]).unwrap())
    }

    fn files(dir: &Path, owner: &str) -> Files {
        Files::of(store(dir), &Name::new(owner).unwrap())
    }

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    fn facts(path: &str, size: u64, modified_s: i64) -> Facts {
        Facts { path: path.into(), size, modified_ns: modified_s * 1_000_000_000 + 5, created_ns: Some(7) }
    }

    #[test]
    fn tracking_twice_is_tracking_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let first = files.track(&name("a"), facts("/x/a", 5, 1), Millis(1000)).unwrap();
        assert_eq!(files.track(&name("a"), facts("/x/a", 5, 1), Millis(2000)).unwrap(), first);
        assert_eq!(files.list(false).unwrap(), std::slice::from_ref(&first));
        assert_eq!((first.added_at, first.is_published), (Millis(1000), false));
        let taken = files.track(&name("a"), facts("/x/b", 5, 1), Millis(3000)).unwrap_err();
        assert!(matches!(&taken, FilesError::NameTaken { path, .. } if path == "/x/a"), "{taken:?}");
        // Under two names it may be.
        files.track(&name("b"), facts("/x/a", 5, 1), Millis(3000)).unwrap();
    }

    #[test]
    fn published_and_hidden_again_and_another_content_forgets_its_digests() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        assert_eq!(files.unpublish(&name("a")).unwrap_err(), FilesError::Unknown(name("a")));
        let was = facts("/x/a", 5, 1);
        let out = files.publish(&name("a"), was.clone(), None, Millis(1000)).unwrap();
        assert_eq!((out.is_published, out.published_at), (true, Some(Millis(1000))));
        assert_eq!(files.publish(&name("a"), was.clone(), None, Millis(2000)).unwrap(), out);
        assert_eq!(files.not_hashed().unwrap(), [name("a")]);
        let read = pieces(b"12345");
        let (whole, root) = (read.blake3(), read.root());
        assert!(files.begin_reading(&name("a"), &was) && files.hashed(&name("a"), &was, &read).unwrap());
        assert_eq!(files.not_hashed().unwrap(), []);
        let known = files.get(&name("a")).unwrap().unwrap();
        assert_eq!((known.blake3, known.pieces_root), (Some(whole), Some(root)));
        assert!(known.entry().has_range() && !out.entry().has_range());
        assert_eq!(files.pieces(&name("a")).unwrap(), Some(bytes_of(&read)));
        assert_eq!(files.unpublish(&name("a")).unwrap().blake3, Some(whole));
        assert_eq!(files.list(true).unwrap(), []);
        // What was read of another content counts for nothing.
        let is = facts("/x/a", 6, 1);
        let changed = files.publish(&name("a"), is, None, Millis(3000)).unwrap();
        assert_eq!((changed.blake3, changed.pieces_root, changed.published_at), (None, None, Some(Millis(3000))));
        assert_eq!(files.pieces(&name("a")).unwrap(), None);
        assert!(files.begin_reading(&name("a"), &was) && !files.hashed(&name("a"), &was, &read).unwrap());
    }

    fn pieces(mut content: &[u8]) -> Pieces {
        let size = content.len() as u64;
        Pieces::of(&mut content, size, &|| true).unwrap().unwrap()
    }

    #[test]
    fn publishing_again_forgets_what_was_read_of_a_content_that_looks_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let (a, facts) = (name("a"), facts("/x/a", 5, 1));
        let (old, new) = (pieces(b"first"), pieces(b"other"));
        let first = files.publish(&a, facts.clone(), Some(&old), Millis(1)).unwrap();
        assert_eq!((first.blake3, files.pieces(&a).unwrap()), (Some(old.blake3()), Some(bytes_of(&old))));
        assert_eq!(files.not_hashed().unwrap(), []);
        // Read at once, or later.
        let second = files.publish(&a, facts.clone(), Some(&new), Millis(2)).unwrap();
        assert_eq!((second.blake3, second.pieces_root), (Some(new.blake3()), Some(new.root())));
        assert_eq!(files.pieces(&a).unwrap(), Some(bytes_of(&new)));
        let third = files.publish(&a, facts.clone(), None, Millis(3)).unwrap();
        assert_eq!((third.blake3, third.pieces_root, files.pieces(&a).unwrap()), (None, None, None));
        // What was begun to be read before it was published again is of nobody knows which content.
        assert!(files.begin_reading(&a, &facts));
        files.publish(&a, facts.clone(), None, Millis(4)).unwrap();
        assert!(!files.hashed(&a, &facts, &old).unwrap());
        assert_eq!(files.not_hashed().unwrap(), [name("a")]);
        assert!(files.begin_reading(&a, &facts) && files.hashed(&a, &facts, &new).unwrap());
        // Adding what is tracked does not read anything.
        assert_eq!(files.track(&a, facts.clone(), Millis(5)).unwrap().blake3, Some(new.blake3()));
        // What cannot be read is not tried again and again, but when it is published again.
        files.publish(&a, facts.clone(), None, Millis(6)).unwrap();
        assert!(files.begin_reading(&a, &facts));
        files.give_up_reading(&a, &facts);
        assert!(!files.begin_reading(&a, &facts));
        files.publish(&a, facts.clone(), None, Millis(7)).unwrap();
        assert!(files.begin_reading(&a, &facts));
    }

    #[test]
    fn each_user_has_files_of_his_own_and_they_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let shared = store(dir.path());
        let of = |owner: &str| Files::of(Arc::clone(&shared), &Name::new(owner).unwrap());
        let anns = of("ann").publish(&name("a"), facts("/x/a", 5, 1), None, Millis(1)).unwrap();
        of("bob").track(&name("a"), facts("/y/a", 9, 1), Millis(1)).unwrap();
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
            files.track(&name(named), facts(&format!("/x/{number}"), 5, 1), Millis(1)).unwrap();
        }
        files.publish(&name("song.ogg"), facts("/x/1", 5, 1), None, Millis(1)).unwrap();
        let page = |published: bool, q: &str, offset: usize, limit: usize| {
            let page = files.page(published, &text::Sought::new(q), (offset, limit)).unwrap();
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
        let after: Vec<_> = files.after(Some(&name("Report.pdf")), 2).unwrap();
        assert_eq!(after.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["r\u{e9}port", "song.ogg"]);
        assert_eq!(files.after(None, 9).unwrap().len(), 5);
    }

    #[test]
    fn what_is_not_there_any_more_is_marked_and_what_is_removed_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        let path = dir.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        let facts = || Facts::of(&path, &std::fs::metadata(&path).unwrap());
        let it = files.publish(&name("a"), facts(), None, Millis(1)).unwrap();
        assert!(!it.is_missing() && it.json()["missing"] == false);
        std::fs::remove_file(&path).unwrap();
        assert!(it.is_missing());
        files.set_missing(&[Tracked { missing_since: Some(Millis(7)), ..it.clone() }]).unwrap();
        // Not what was found again meanwhile, or removed.
        assert_eq!(files.remove_missing(&name("a"), Millis(6)), Ok(None));
        assert_eq!(files.remove_missing(&name("b"), Millis(7)), Ok(None));
        let gone = files.get(&name("a")).unwrap().unwrap();
        assert_eq!((gone.missing_since, gone.json()["missing"].clone()), (Some(Millis(7)), json!(true)));
        // Hiding it says nothing of where it is; looking at it again does.
        assert_eq!(files.unpublish(&name("a")).unwrap().missing_since, Some(Millis(7)));
        std::fs::create_dir(&path).unwrap();
        assert!(gone.is_missing(), "a folder is no file");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(files.track(&name("a"), facts(), Millis(9)).unwrap().missing_since, None);
        // Another content under the name of one that was published is not published by that.
        files.publish(&name("a"), facts(), None, Millis(10)).unwrap();
        std::fs::write(&path, "other").unwrap();
        assert!(!files.track_new(&name("a"), facts(), Millis(11)).unwrap().is_published);
        assert_eq!(files.remove(&name("a")).unwrap().name, name("a"));
        assert_eq!(files.remove(&name("a")), Err(FilesError::Unknown(name("a"))));
        assert!(path.exists());
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), "ann");
        files.track(&name("a.tar.gz"), facts("/x/a.tar.gz", 5, 1), Millis(1)).unwrap();
        let free = |wanted: &str, path: &str| files.free_name(&name(wanted), Path::new(path)).unwrap().to_string();
        assert_eq!(free("b", "/x/b"), "b");
        assert_eq!(free("a.tar.gz", "/x/a.tar.gz"), "a.tar.gz");
        assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (2).gz");
        files.track(&name("a.tar (2).gz"), facts("/z", 5, 1), Millis(1)).unwrap();
        assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (3).gz");
        let long = "é".repeat(127);
        files.track(&name(&long), facts("/x/long", 5, 1), Millis(1)).unwrap();
        assert_eq!(free(&long, "/y"), format!("{} (2)", "é".repeat(125)));
    }

    #[test]
    fn likeness_is_by_size_and_then_by_time() {
        assert_eq!(likeness(5, Some(100.0), 5, 102.0), Some(Likeness::Exact));
        assert_eq!(likeness(5, Some(100.0), 5, 102.1), Some(Likeness::Likely));
        assert_eq!(likeness(5, None, 5, 100.0), Some(Likeness::Likely));
        assert_eq!(likeness(5, Some(100.0), 6, 100.0), None);
    }

    #[test]
    fn times_of_files_are_seconds() {
        assert_eq!(seconds(1_699_267_200_000_000_000).get(), 1_699_267_200.0);
        assert_eq!(seconds(1_699_267_200_250_000_000).get(), 1_699_267_200.25);
        assert_eq!(unix_ns(UNIX_EPOCH + std::time::Duration::from_nanos(5)), 5);
        assert_eq!(unix_ns(UNIX_EPOCH - std::time::Duration::from_nanos(5)), -5);
    }
}
