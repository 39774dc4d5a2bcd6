//! `manifest.json` tells a lost store from one that is created for the first time. It lies beside the stores and names
//! each with a random id that the store contains too. It is replaced as a whole, so a power cut leaves either the old
//! or the new one. A store goes through these states, and nothing of it is acknowledged before the last:
//!
//! | state | on disk may be | what a start does |
//! |---|---|---|
//! | not listed | nothing; or a store of an earlier version, without an id | registers it as `making` or `adopting` |
//! | `making` | nothing, or any part of an empty store | creates it |
//! | `adopting` | a store of an earlier version, with or without the id | writes the id into it |
//! | `kept` | the store with this id | opens it; anything else is refused |
//! | `lost` | nothing | recreates it: its loss was accepted |

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{OpenError, files, range_markers};
use crate::model::secret;

pub(super) const MANIFEST_FILE: &str = "manifest.json";
/// Becomes [`MANIFEST_FILE`] once it is complete: see [`files::replace_durably`].
const TEMPORARY_FILE: &str = "manifest.json-new";
/// Locked while the manifest is read and replaced: the components of one data dir are separate processes.
const LOCK_FILE: &str = "lock-manifest";
const MANIFEST_FORMAT: u32 = 1;
/// Far more than the dozen stores of a data dir need.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// See the table at the top of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoreState {
    Making,
    Adopting,
    Kept,
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestEntry {
    /// The file's name in the folder.
    pub(super) file: String,
    /// The store contains it too, in hex.
    pub(super) id: String,
    pub(super) state: StoreState,
    /// The watermark is on disk and has to be there from now on.
    #[serde(rename = "marked", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) requires_watermark: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Manifest {
    format: u32,
    /// The last range of numbers that may have been used; see `id_ranges.rs`.
    #[serde(rename = "jumps")]
    pub(super) last_id_range: u64,
    pub(super) stores: Vec<ManifestEntry>,
}

/// A manifest as it may be found on disk.
#[derive(Deserialize)]
struct StoredManifest {
    format: u32,
    #[serde(rename = "jumps")]
    last_id_range: Option<u64>,
    /// An earlier version wrote the number of losses instead.
    losses: Option<u64>,
    stores: Vec<ManifestEntry>,
}

impl Manifest {
    pub(super) fn new(last_id_range: u64, stores: Vec<ManifestEntry>) -> Manifest {
        Manifest { format: MANIFEST_FORMAT, last_id_range, stores }
    }

    /// `None` if there is no manifest yet.
    pub(super) fn read(dir: &Path) -> Result<Option<Manifest>, OpenError> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = match files::read_up_to(&path, MANIFEST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(OpenError::from_io(&path, &error)),
        };
        Manifest::parse(&bytes).map(Some).map_err(|detail| OpenError::Manifest { path, detail })
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        if bytes.is_empty() {
            return Err("it is empty".to_owned());
        }
        let not_ours = || "it is not what this program writes".to_owned();
        let stored: StoredManifest = serde_json::from_slice(bytes).map_err(|_| not_ours())?;
        if stored.format != MANIFEST_FORMAT {
            return Err(format!("its format is {}, this version reads {MANIFEST_FORMAT}", stored.format));
        }
        let last_id_range = stored
            .last_id_range
            .or(stored.losses.map(range_markers::id_range_of_losses))
            .filter(|range| range_markers::is_id_range(*range));
        let manifest = Manifest::new(last_id_range.ok_or_else(not_ours)?, stored.stores);
        let is_valid = |entry: &ManifestEntry| !entry.file.contains(['/', '\\']) && is_store_id(&entry.id);
        let is_duplicate =
            |(index, entry): (usize, &ManifestEntry)| manifest.stores[..index].iter().any(|e| e.file == entry.file);
        if !manifest.stores.iter().all(is_valid) || manifest.stores.iter().enumerate().any(is_duplicate) {
            return Err("it names what cannot be a store, or one twice".to_owned());
        }
        Ok(manifest)
    }

    pub(super) fn entry(&self, file: &str) -> Option<&ManifestEntry> {
        self.stores.iter().find(|entry| entry.file == file)
    }

    pub(super) fn file_with_id(&self, id: &str) -> Option<&str> {
        self.stores.iter().find(|entry| entry.id == id).map(|entry| entry.file.as_str())
    }

    /// Adds a store or changes its state. Its watermark is then no longer required.
    pub(super) fn set_state(&mut self, file: &str, id: &str, state: StoreState) {
        let entry = ManifestEntry { file: file.to_owned(), id: id.to_owned(), state, requires_watermark: false };
        match self.stores.iter_mut().find(|known| known.file == file) {
            Some(known) => *known = entry,
            None => self.stores.push(entry),
        }
    }

    pub(super) fn set_requires_watermark(&mut self, file: &str, required: bool) {
        if let Some(entry) = self.stores.iter_mut().find(|entry| entry.file == file) {
            entry.requires_watermark = required;
        }
    }

    /// Changes the manifest durably, under a lock. After an error it is unchanged.
    pub(super) fn update(dir: &Path, change: impl FnOnce(&mut Manifest)) -> Result<Manifest, OpenError> {
        let lock_path = dir.join(LOCK_FILE);
        let lock = || {
            let lock = files::private_file_options().write(true).create(true).truncate(false).open(&lock_path)?;
            lock.lock().map(|()| lock)
        };
        let _held = lock().map_err(|error| OpenError::from_io(&lock_path, &error))?;
        let mut manifest = match Manifest::read(dir)? {
            Some(manifest) => manifest,
            None => Manifest::new(range_markers::initial_id_range(dir)?, Vec::new()),
        };
        change(&mut manifest);
        manifest.write(dir).map_err(|error| OpenError::from_io(&dir.join(MANIFEST_FILE), &error))?;
        Ok(manifest)
    }

    /// Replaces the folder's manifest durably.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::replace_durably(&dir.join(MANIFEST_FILE), &text)
    }
}

/// Checks that the stores are there which the folder's manifest requires.
pub(super) fn check_stores_present(dir: &Path) -> Result<(), OpenError> {
    let Some(manifest) = Manifest::read(dir)? else { return Ok(()) };
    let is_missing =
        |entry: &&ManifestEntry| entry.state == StoreState::Kept && files::is_missing_or_empty(&dir.join(&entry.file));
    match manifest.stores.iter().find(is_missing) {
        Some(entry) => Err(OpenError::Missing { path: dir.join(&entry.file), detail: String::new() }),
        None => Ok(()),
    }
}

pub(super) fn new_store_id() -> String {
    secret::random_hex::<16>()
}

pub(super) fn is_store_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Such a file is only a by-product of writing the manifest.
pub(super) fn is_temporary(name: &Path) -> bool {
    name.file_name().is_some_and(|file| file == TEMPORARY_FILE || file == LOCK_FILE)
}

pub(super) fn dir_and_file_name(path: &Path) -> Result<(PathBuf, String), OpenError> {
    let other = |detail: &str| OpenError::Other { path: path.to_owned(), detail: detail.to_owned() };
    let dir = files::parent_of(path).ok_or_else(|| other("it is a folder"))?;
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| other("its name is not UTF-8"))?;
    Ok((dir.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_its_folder_has_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        let id = new_store_id();
        Manifest::update(dir.path(), |manifest| manifest.set_state("a.db", &id, StoreState::Making)).unwrap();
        let kept = Manifest::update(dir.path(), |manifest| manifest.set_state("a.db", &id, StoreState::Kept)).unwrap();
        let read = Manifest::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.entry("a.db").map(|entry| entry.state), Some(StoreState::Kept));
        assert_eq!((read.file_with_id(&id), read.entry("b.db")), (Some("a.db"), None));
        assert!(!dir.path().join(TEMPORARY_FILE).exists());
    }

    #[test]
    fn two_who_change_it_at_once_both_count() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    Manifest::update(dir, |manifest| {
                        manifest.set_state(&format!("{n}.db"), &new_store_id(), StoreState::Kept)
                    })
                    .unwrap()
                });
            }
        });
        assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().stores.len(), 8);
    }

    #[test]
    fn what_is_no_manifest_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let id = new_store_id();
        let entry = format!(r#"{{"file":"a.db","id":"{id}","state":"kept"}}"#);
        for (text, said) in [
            (String::new(), "it is empty"),
            ("{\"format\":1,".to_owned(), "not what this program writes"),
            (r#"{"format":2,"jumps":0,"stores":[]}"#.to_owned(), "its format is 2"),
            (r#"{"format":1,"stores":[]}"#.to_owned(), "not what this program writes"),
            (r#"{"format":1,"jumps":9007199254740991,"stores":[]}"#.to_owned(), "not what this program writes"),
            (r#"{"format":1,"jumps":0,"stores":[{"file":"a.db","id":"x","state":"kept"}]}"#.to_owned(), "cannot be"),
            (format!(r#"{{"format":1,"jumps":0,"stores":[{entry},{entry}]}}"#), "one twice"),
            (format!(r#"{{"format":1,"jumps":0,"stores":[{}]}}"#, entry.replace("a.db", "../a.db")), "cannot be"),
        ] {
            std::fs::write(dir.path().join(MANIFEST_FILE), &text).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(MANIFEST_FILE) && error.contains(said), "{text}: {error}");
            assert!(error.contains("restore a backup") && error.contains("accept-loss"), "{error}");
        }
    }
}
