//! Checks that a data dir is complete. Each store has its id and generation in itself ([`StoreIdentity`]); the data
//! dir's manifest and the store's watermark record the same outside of it. Where they differ, something is lost, and
//! nothing is created in its place.

use std::path::Path;

use rusqlite::Connection;

use super::manifest::{Manifest, StoreState, is_store_id, new_store_id};
use super::range_markers::DataComponent;
use super::store_identity::{PAGES_CHECKED, StoreIdentity, StoreLocation};
use super::{OpenError, files, id_ranges, sqlite};

/// The store must be the one that the manifest beside it names, and contain what its watermark says. One without a
/// manifest comes from an earlier version.
pub(super) fn check_backup_source(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let location = StoreLocation::load(path)?;
    if location.manifest.is_none() {
        return Ok(());
    }
    let watermark = location.read_watermark();
    let found = StoreIdentity::read(connection).map_err(|error| OpenError::from_sqlite(path, &error))?;
    location.check_identity(found.as_ref(), watermark)
}

#[derive(Debug, Clone, Copy)]
pub struct ExpectedStore<'a> {
    /// The file's name in the data dir.
    pub file: &'a str,
    /// See [`Store::open`](super::Store::open).
    pub migrations: &'a [&'a str],
    /// Files that no earlier version had without this store: in a data dir without a manifest they show that it is
    /// lost, not new.
    pub companions: &'a [&'a str],
}

/// Checks all stores that a start will open, before it changes or creates anything; then registers in the manifest
/// those that it will create. The error is that of the first store that is missing, damaged, not the one that belongs
/// there, of a newer version, or that has lost what was on disk; nothing was changed then.
pub fn check_stores(dir: &Path, stores: &[ExpectedStore<'_>]) -> Result<(), OpenError> {
    let (mut unregistered, mut new_components) = (Vec::new(), Vec::new());
    let mut checked = Vec::new();
    for store in stores {
        let path = dir.join(store.file);
        if !sqlite::store_exists(&path)? {
            let location = StoreLocation::load(&path)?;
            location.check_may_be_absent()?;
            match location.manifest_state() {
                Some((StoreState::Making, _)) => {}
                Some(_) => unregistered.push(store.file),
                None => {
                    let is_sign = |file: &&&str| {
                        let is_named = location.manifest.as_ref().is_some_and(|known| known.entry(file).is_some());
                        !is_named && !files::is_missing_or_empty(&dir.join(file))
                    };
                    if let Some(sign) = store.companions.iter().find(is_sign) {
                        return Err(OpenError::Missing { path, detail: format!(" ({sign} is of one that had it)") });
                    }
                    unregistered.push(store.file);
                    new_components.extend(DataComponent::of_store(store.file));
                }
            }
        } else {
            sqlite::open_checked(&path, store.migrations.len() as u64, true)?;
            checked.push(path);
        }
    }
    if !unregistered.is_empty() {
        files::create_private_dir(dir).map_err(|error| OpenError::from_io(dir, &error))?;
        new_components.dedup();
        new_components.into_iter().try_for_each(|component| id_ranges::start_new_component(dir, component))?;
        Manifest::update(dir, |manifest| {
            for file in unregistered {
                manifest.set_state(file, &new_store_id(), StoreState::Making);
            }
        })?;
    }
    PAGES_CHECKED.lock().extend(checked);
    Ok(())
}

/// The manifest beside a store must allow it to be missing.
pub fn check_may_be_absent(path: &Path) -> Result<(), OpenError> {
    StoreLocation::load(path)?.check_may_be_absent()
}

/// A restored store is not the one that the backup was made of.
pub(super) fn assign_new_id(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let Some(known) = StoreIdentity::read(connection)? else { return Ok(None) };
    if !is_store_id(&known.id) {
        return Ok(None);
    }
    let id = new_store_id();
    StoreIdentity::write(connection, &id, schema as usize)?;
    Ok(Some(id))
}
