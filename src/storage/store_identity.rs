use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};

use super::OpenError;
use super::manifest::{MANIFEST_FILE, Manifest, ManifestEntry, StoreState, dir_and_file_name, new_store_id};
use super::watermark::{self, StoredWatermark};

/// Every store has the table; one of an earlier version gets it when it is adopted into the manifest.
const CREATE_IDENTITY_TABLE: &str = "CREATE TABLE IF NOT EXISTS store_identity (
    id TEXT NOT NULL, schema BIGINT NOT NULL, number BIGINT NOT NULL)";

/// The row by which a store is known as the one that belongs at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreIdentity {
    /// The id that the manifest has, too.
    pub(super) id: String,
    /// The same as `user_version`, so that damage to the file's header is not taken for a newer version.
    pub(super) schema: u64,
    /// It counts up; a store with this generation contains everything that was committed before it advanced to it.
    pub(super) generation: u64,
}

impl StoreIdentity {
    /// `None` if the store has no identity row.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<StoreIdentity>> {
        if !has_identity_table(connection)? {
            return Ok(None);
        }
        let row = |row: &rusqlite::Row<'_>| {
            let (schema, generation): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(StoreIdentity { id: row.get(0)?, schema: schema as u64, generation: generation as u64 })
        };
        connection.query_row("SELECT id, schema, number FROM store_identity", [], row).optional()
    }

    /// Writes the row in one transaction; an existing generation is kept and returned.
    pub(super) fn write(connection: &Connection, id: &str, schema: usize) -> rusqlite::Result<u64> {
        let settled = |known: &StoreIdentity| known.id == id && known.schema == schema as u64;
        if let Some(known) = StoreIdentity::read(connection)?.filter(settled) {
            return Ok(known.generation);
        }
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let write = || {
            connection.execute_batch(CREATE_IDENTITY_TABLE)?;
            let generation = StoreIdentity::read(connection)?.map_or(0, |known| known.generation);
            connection.execute("DELETE FROM store_identity", [])?;
            let values = rusqlite::params![id, schema as i64, generation as i64];
            connection.execute("INSERT INTO store_identity (id, schema, number) VALUES (?1, ?2, ?3)", values)?;
            connection.execute_batch("COMMIT")?;
            Ok(generation)
        };
        let written = write();
        if written.is_err() && !connection.is_autocommit() {
            // The error of the transaction is the one to report; the connection is closed next.
            let _closed_next = connection.execute_batch("ROLLBACK");
        }
        written
    }
}

pub(super) fn has_identity_table(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'store_identity'";
    Ok(connection.query_row(sql, [], |_row| Ok(())).optional()?.is_some())
}

pub(super) struct StoreLocation {
    path: PathBuf,
    dir: PathBuf,
    file: String,
    pub(super) manifest: Option<Manifest>,
}

impl StoreLocation {
    pub(super) fn load(path: &Path) -> Result<StoreLocation, OpenError> {
        let (dir, file) = dir_and_file_name(path)?;
        let manifest = Manifest::read(&dir)?;
        Ok(StoreLocation { path: path.to_owned(), dir, file, manifest })
    }

    pub(super) fn manifest_state(&self) -> Option<(StoreState, &str)> {
        self.entry().map(|entry| (entry.state, &*entry.id))
    }

    fn entry(&self) -> Option<&ManifestEntry> {
        self.manifest.as_ref()?.entry(&self.file)
    }

    /// The watermark is to be read before the store, which another process may be writing to.
    pub(super) fn read_watermark(&self) -> StoredWatermark {
        match self.manifest_state() {
            Some((StoreState::Kept, id)) => watermark::read(&self.path, id),
            _ => StoredWatermark::Missing,
        }
    }

    pub(super) fn requires_watermark(&self) -> bool {
        self.entry().is_some_and(|entry| entry.requires_watermark)
    }

    /// The manifest must allow the store to be missing.
    pub(super) fn check_may_be_absent(&self) -> Result<(), OpenError> {
        match self.manifest_state() {
            Some((StoreState::Kept | StoreState::Adopting, _)) => {
                Err(OpenError::Missing { path: self.path.clone(), detail: String::new() })
            }
            _ => Ok(()),
        }
    }

    /// The store found here must be the one that belongs here, and contain what its watermark says.
    pub(super) fn check_identity(
        &self,
        found: Option<&StoreIdentity>,
        watermark: StoredWatermark,
    ) -> Result<(), OpenError> {
        let wrong_store = |detail: String| Err(OpenError::WrongStore { path: self.path.clone(), detail });
        let owner_of = |id: &str| match self.manifest.as_ref().and_then(|manifest| manifest.file_with_id(id)) {
            Some(file) => format!("it is {file}"),
            None => "it is of another data dir".to_owned(),
        };
        match (self.manifest_state(), found) {
            (Some((StoreState::Kept, id)), Some(found)) if found.id == id => match watermark {
                StoredWatermark::Generation(watermark) if found.generation < watermark => {
                    Err(OpenError::BehindWatermark { path: self.path.clone(), stored: found.generation, watermark })
                }
                StoredWatermark::Missing if self.requires_watermark() => Err(OpenError::MissingWatermark { path: self.path.clone() }),
                _ => Ok(()),
            },
            (Some((StoreState::Kept, _)), None) => wrong_store(
                "it is empty, its log (-wal) is lost or damaged, or it is a copy from before this data dir had a manifest"
                    .to_owned(),
            ),
            (Some(_), None) => Ok(()),
            (Some((_, id)), Some(found)) if found.id == id => Ok(()),
            (_, Some(found)) if self.manifest.is_some() => wrong_store(owner_of(&found.id)),
            // Written by an earlier version.
            (None, None) => Ok(()),
            (_, Some(_)) => Err(OpenError::Manifest {
                path: self.dir.join(MANIFEST_FILE),
                detail: format!("it is missing, but {} was named in one", self.file),
            }),
        }
    }

    /// Where one of our databases must be, "not one of ours" is not precise enough.
    pub(super) fn explain_error(&self, error: OpenError) -> OpenError {
        match error {
            OpenError::Foreign { path } if self.manifest_state().is_some() => {
                let detail = "it is another program's database, or its header is damaged".to_owned();
                OpenError::WrongStore { path, detail }
            }
            other => other,
        }
    }

    /// Lists the store before anything of it is created or adopted; returns its id.
    pub(super) fn register(&self, found: Option<&StoreIdentity>, is_new: bool) -> Result<String, OpenError> {
        let state = if is_new { StoreState::Making } else { StoreState::Adopting };
        let id = match (self.manifest_state(), found) {
            (_, Some(found)) => found.id.clone(),
            (Some((StoreState::Making | StoreState::Adopting, id)), None) => return Ok(id.to_owned()),
            _ => new_store_id(),
        };
        Manifest::update(&self.dir, |manifest| manifest.set_state(&self.file, &id, state))?;
        Ok(id)
    }

    /// From now on the store must be there, with its id and its watermark.
    pub(super) fn mark_present(&self, id: &str, generation: u64) -> Result<(), OpenError> {
        if self.manifest_state() == Some((StoreState::Kept, id)) && self.requires_watermark() {
            return Ok(());
        }
        if self.manifest_state() != Some((StoreState::Kept, id))
            || watermark::read(&self.path, id) == StoredWatermark::Missing
        {
            let watermark = watermark::path_of(&self.path);
            watermark::create(&self.path, id, generation).map_err(|error| OpenError::from_io(&watermark, &error))?;
        }
        Manifest::update(&self.dir, |manifest| {
            manifest.set_state(&self.file, id, StoreState::Kept);
            manifest.set_requires_watermark(&self.file, true);
        })?;
        Ok(())
    }
}

/// Stores whose pages this process has checked but which it has not opened yet, so that they are not read twice.
pub(super) static PAGES_CHECKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// [`check_stores`](super::integrity::check_stores) has just checked all pages of the store; true only once.
pub(super) fn take_pages_checked(path: &Path) -> bool {
    PAGES_CHECKED.lock().remove(path)
}
