//! A data dir is one whole: what was there is there, and holds what was on the disk.
//!
//! Each store has one row of its own that tells who it is and how far it is ([`Identity`]); the data dir's
//! manifest and the store's mark tell the same from outside. Where they differ, something is lost, and nothing is
//! made in its place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};

use super::jumps::{self, Part};
use super::manifest::{MANIFEST_FILE, Manifest, Stage, is_id, new_id, place_of};
use super::{OpenError, files, mark, sqlite};

/// In every store; a store of an earlier version gets it when it is taken into the manifest.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS store_identity (
    id TEXT NOT NULL, schema BIGINT NOT NULL, number BIGINT NOT NULL)";

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// As in the manifest.
    pub(super) id: String,
    /// As in `user_version`: damage to the file's header is not a newer version.
    pub(super) schema: u64,
    /// Counts up; everything that was committed before it did is in the store that holds the number.
    pub(super) number: u64,
}

impl Identity {
    /// What a store says of itself, if it does.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Option<Identity>> {
        if !has_identity(connection)? {
            return Ok(None);
        }
        let row = |row: &rusqlite::Row<'_>| {
            let (schema, number): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(Identity { id: row.get(0)?, schema: schema as u64, number: number as u64 })
        };
        connection.query_row("SELECT id, schema, number FROM store_identity", [], row).optional()
    }

    /// Writes it into the store, in one transaction; the number of one that is there stays.
    pub(super) fn settle(connection: &Connection, id: &str, schema: usize) -> rusqlite::Result<u64> {
        let settled = |known: &Identity| known.id == id && known.schema == schema as u64;
        if let Some(known) = Identity::of(connection)?.filter(settled) {
            return Ok(known.number);
        }
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let write = || {
            connection.execute_batch(TABLE)?;
            let number = Identity::of(connection)?.map_or(0, |known| known.number);
            connection.execute("DELETE FROM store_identity", [])?;
            let values = rusqlite::params![id, schema as i64, number as i64];
            connection.execute("INSERT INTO store_identity (id, schema, number) VALUES (?1, ?2, ?3)", values)?;
            connection.execute_batch("COMMIT")?;
            Ok(number)
        };
        let written = write();
        if written.is_err() && !connection.is_autocommit() {
            // The transaction's own error is the one to tell; the connection is closed next.
            let _closed_next = connection.execute_batch("ROLLBACK");
        }
        written
    }
}

/// Whether a store has the row.
pub(super) fn has_identity(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'store_identity'";
    Ok(connection.query_row(sql, [], |_row| Ok(())).optional()?.is_some())
}

/// A store's file, and what the manifest beside it says of it.
pub(super) struct Place {
    path: PathBuf,
    dir: PathBuf,
    file: String,
    manifest: Option<Manifest>,
}

impl Place {
    pub(super) fn of(path: &Path) -> Result<Place, OpenError> {
        let (dir, file) = place_of(path)?;
        let manifest = Manifest::read(&dir)?;
        Ok(Place { path: path.to_owned(), dir, file, manifest })
    }

    pub(super) fn stage(&self) -> Option<(Stage, &str)> {
        let entry = self.manifest.as_ref()?.entry(&self.file)?;
        Some((entry.state, &entry.id))
    }

    pub(super) fn has_manifest(&self) -> bool {
        self.manifest.is_some()
    }

    /// What the mark says; to be asked before the store is, which others may be writing to.
    pub(super) fn mark(&self) -> mark::Found {
        match self.stage() {
            Some((Stage::Kept, id)) => mark::read(&self.path, id),
            _ => mark::Found::Missing,
        }
    }

    /// Whether its mark has to be there.
    fn is_marked(&self) -> bool {
        self.manifest.as_ref().and_then(|manifest| manifest.entry(&self.file)).is_some_and(|entry| entry.marked)
    }

    /// Whether there may be nothing.
    pub(super) fn check_absent(&self) -> Result<(), OpenError> {
        match self.stage() {
            Some((Stage::Kept | Stage::Adopting, _)) => {
                Err(OpenError::Missing { path: self.path.clone(), detail: String::new() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the store that is there is the one that belongs there, and holds what its mark says.
    pub(super) fn check_present(&self, found: Option<&Identity>, mark: mark::Found) -> Result<(), OpenError> {
        let stranger = |detail: String| Err(OpenError::Stranger { path: self.path.clone(), detail });
        let whose = |id: &str| match self.manifest.as_ref().and_then(|manifest| manifest.of_id(id)) {
            Some(file) => format!("it is {file}"),
            None => "it is of another data dir".to_owned(),
        };
        match (self.stage(), found) {
            (Some((Stage::Kept, id)), Some(found)) if found.id == id => match mark {
                mark::Found::Number(mark) if found.number < mark => {
                    Err(OpenError::Behind { path: self.path.clone(), holds: found.number, mark })
                }
                mark::Found::Missing if self.is_marked() => Err(OpenError::Unmarked { path: self.path.clone() }),
                _ => Ok(()),
            },
            (Some((Stage::Kept, _)), None) => stranger(
                "it is empty, its log (-wal) is lost or damaged, or it is a copy from before this data dir had a manifest"
                    .to_owned(),
            ),
            (Some(_), None) => Ok(()),
            (Some((_, id)), Some(found)) if found.id == id => Ok(()),
            (_, Some(found)) if self.has_manifest() => stranger(whose(&found.id)),
            // Of an earlier version.
            (None, None) => Ok(()),
            (_, Some(_)) => Err(OpenError::Manifest {
                path: self.dir.join(MANIFEST_FILE),
                detail: format!("it is missing, but {} was named in one", self.file),
            }),
        }
    }

    /// What is wrong with a file that could not be read as one of ours, if one of ours must be there.
    pub(super) fn explain(&self, error: OpenError) -> OpenError {
        match error {
            OpenError::Foreign { path } if self.stage().is_some() => {
                let detail = "it is another program's database, or its header is damaged".to_owned();
                OpenError::Stranger { path, detail }
            }
            other => other,
        }
    }

    /// Names a store that is about to be made or taken in, before anything of it is written; its id.
    pub(super) fn plan(&self, found: Option<&Identity>, is_new: bool) -> Result<String, OpenError> {
        let state = if is_new { Stage::Making } else { Stage::Adopting };
        let id = match (self.stage(), found) {
            (_, Some(found)) => found.id.clone(),
            (Some((Stage::Making | Stage::Adopting, id)), None) => return Ok(id.to_owned()),
            _ => new_id(),
        };
        Manifest::update(&self.dir, |manifest| manifest.set(&self.file, &id, state))?;
        Ok(id)
    }

    /// Says that the store is there, with its id and its mark: from now on both have to be.
    pub(super) fn keep(&self, id: &str, number: u64) -> Result<(), OpenError> {
        if self.stage() == Some((Stage::Kept, id)) && self.is_marked() {
            return Ok(());
        }
        if self.stage() != Some((Stage::Kept, id)) || mark::read(&self.path, id) == mark::Found::Missing {
            let mark = mark::path_of(&self.path);
            mark::create(&self.path, id, number).map_err(|error| OpenError::from_io(&mark, &error))?;
        }
        Manifest::update(&self.dir, |manifest| {
            manifest.set(&self.file, id, Stage::Kept);
            manifest.set_marked(&self.file, true);
        })?;
        Ok(())
    }
}

/// Whether a store that is about to be backed up is the one that the manifest beside it names, and holds what its
/// mark says. A store without a manifest comes from an earlier version.
pub(super) fn check_snapshot(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let place = Place::of(path)?;
    if !place.has_manifest() {
        return Ok(());
    }
    let mark = place.mark();
    let found = Identity::of(connection).map_err(|error| OpenError::from_sqlite(path, &error))?;
    place.check_present(found.as_ref(), mark)
}

/// One of the stores that a start opens.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Its file in the data dir.
    pub file: &'a str,
    /// As for [`Store::open`](super::Store::open).
    pub migrations: &'a [&'a str],
    /// Files that no earlier version has had without this one: in a data dir without a manifest they tell that it
    /// is lost, not new.
    pub companions: &'a [&'a str],
}

/// Stores that this process has looked at page by page and not opened yet: they are not read twice.
static EXAMINED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Whether [`examine`] has just read all pages of a store; asked once.
pub(super) fn was_examined(path: &Path) -> bool {
    EXAMINED.lock().remove(path)
}

/// Looks at all stores of a data dir that a start will open, before it changes or makes anything; then names in
/// the manifest those that it will make.
///
/// # Errors
/// The first that is missing, damaged, not the one that belongs there, of a newer version, or that has lost what
/// was on the disk; also what [`Store::open`](super::Store::open) may say. Nothing was changed.
pub fn examine(dir: &Path, stores: &[Expected<'_>]) -> Result<(), OpenError> {
    let (mut unplanned, mut begun) = (Vec::new(), Vec::new());
    let mut whole = Vec::new();
    for store in stores {
        let path = dir.join(store.file);
        if !sqlite::check_absent_or_there(&path)? {
            let place = Place::of(&path)?;
            place.check_absent()?;
            match place.stage() {
                Some((Stage::Making, _)) => {}
                Some(_) => unplanned.push(store.file),
                None => {
                    let is_sign = |file: &&&str| {
                        let is_named = place.manifest.as_ref().is_some_and(|known| known.entry(file).is_some());
                        !is_named && !files::is_absent(&dir.join(file))
                    };
                    if let Some(sign) = store.companions.iter().find(is_sign) {
                        return Err(OpenError::Missing { path, detail: format!(" ({sign} is of one that had it)") });
                    }
                    unplanned.push(store.file);
                    begun.extend(Part::of(store.file));
                }
            }
        } else {
            sqlite::look(&path, store.migrations.len() as u64, true)?;
            whole.push(path);
        }
    }
    if !unplanned.is_empty() {
        files::create_private_dir(dir).map_err(|error| OpenError::from_io(dir, &error))?;
        begun.dedup();
        begun.into_iter().try_for_each(|part| jumps::begin(dir, part))?;
        Manifest::update(dir, |manifest| {
            for file in unplanned {
                manifest.set(file, &new_id(), Stage::Making);
            }
        })?;
    }
    EXAMINED.lock().extend(whole);
    Ok(())
}

/// Whether a store that is not there had better be, by the manifest beside it.
///
/// # Errors
/// It had, or the manifest cannot be read.
pub fn check_may_be_absent(path: &Path) -> Result<(), OpenError> {
    Place::of(path)?.check_absent()
}

/// Gives a store that comes from a backup an id of its own: it is not the one that the backup was made of.
pub(super) fn rename_restored(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let Some(known) = Identity::of(connection)? else { return Ok(None) };
    if !is_id(&known.id) {
        return Ok(None);
    }
    let id = new_id();
    Identity::settle(connection, &id, schema as usize)?;
    Ok(Some(id))
}
