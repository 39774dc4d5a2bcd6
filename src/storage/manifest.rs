//! The table of a data dir's stores, so that a lost one is told from one that is made for the first time.
//!
//! `manifest.json` lies beside the stores and names each with a random id that the store holds too. It is
//! replaced as a whole (written beside, synced, renamed, the folder synced), so a power cut leaves the old one
//! or the new one. A store goes through these states, and nothing of it is acknowledged before the last:
//!
//! | state | on disk may be | what a start does |
//! |---|---|---|
//! | not named | nothing; or a store of an earlier version, without an id | plans it, or takes it in |
//! | `making` | nothing, or any part of an empty store | makes it |
//! | `adopting` | a store of an earlier version, with the id or without it yet | writes the id into it |
//! | `kept` | the store with this id | opens it; anything else is refused |
//! | `lost` | nothing | makes it anew: its loss was accepted |

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{OpenError, files, jumps};
use crate::model::secret;

/// The manifest's file, beside the stores.
pub(super) const MANIFEST_FILE: &str = "manifest.json";
/// What becomes the manifest once it is whole.
const NEW_FILE: &str = "manifest.json-new";
/// Held while the manifest is read and replaced: the components of one data dir are processes.
const MANIFEST_LOCK: &str = "lock-manifest";
const FORMAT: u32 = 1;
/// A data dir has a dozen stores.
const BYTES_MAX: u64 = 1 << 20;

/// How far the life of a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    Making,
    Adopting,
    Kept,
    Lost,
}

/// One store of the data dir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its name in the folder.
    pub(super) file: String,
    /// What it holds too, in hex.
    pub(super) id: String,
    pub(super) state: Stage,
    /// Its mark is on disk, and has to be there from now on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) marked: bool,
}

/// All stores of one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Manifest {
    format: u32,
    /// How far numbers have jumped in the life of the data, because something was lost or taken back to a backup: see
    /// `jumps.rs`.
    pub(super) jumps: u64,
    pub(super) stores: Vec<Entry>,
}

/// A manifest as it may be found.
#[derive(Deserialize)]
struct Found {
    format: u32,
    jumps: Option<u64>,
    /// An earlier version has written how often something was lost instead.
    losses: Option<u64>,
    stores: Vec<Entry>,
}

impl Manifest {
    pub(super) fn new(jumps: u64, stores: Vec<Entry>) -> Manifest {
        Manifest { format: FORMAT, jumps, stores }
    }

    /// The manifest of a folder; nothing where there is none yet.
    ///
    /// # Errors
    /// It cannot be read, or is not what this program writes.
    pub(super) fn read(dir: &Path) -> Result<Option<Manifest>, OpenError> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = match files::read_up_to(&path, BYTES_MAX) {
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
        let strange = || "it is not what this program writes".to_owned();
        let found: Found = serde_json::from_slice(bytes).map_err(|_| strange())?;
        if found.format != FORMAT {
            return Err(format!("its format is {}, this version reads {FORMAT}", found.format));
        }
        let jumps = found.jumps.or(found.losses.map(jumps::of_losses)).filter(|jumps| jumps::may_be(*jumps));
        let manifest = Manifest::new(jumps.ok_or_else(strange)?, found.stores);
        let is_plain = |entry: &Entry| !entry.file.contains(['/', '\\']) && is_id(&entry.id);
        let is_double = |(place, entry): (usize, &Entry)| manifest.stores[..place].iter().any(|e| e.file == entry.file);
        if !manifest.stores.iter().all(is_plain) || manifest.stores.iter().enumerate().any(is_double) {
            return Err("it names what cannot be a store, or one twice".to_owned());
        }
        Ok(manifest)
    }

    pub(super) fn entry(&self, file: &str) -> Option<&Entry> {
        self.stores.iter().find(|entry| entry.file == file)
    }

    /// Whose id this is.
    pub(super) fn of_id(&self, id: &str) -> Option<&str> {
        self.stores.iter().find(|entry| entry.id == id).map(|entry| entry.file.as_str())
    }

    /// Names a store, or says anew how far it is.
    pub(super) fn set(&mut self, file: &str, id: &str, state: Stage) {
        let entry = Entry { file: file.to_owned(), id: id.to_owned(), state, marked: false };
        match self.stores.iter_mut().find(|known| known.file == file) {
            Some(known) => *known = entry,
            None => self.stores.push(entry),
        }
    }

    /// Says whether the mark of a store that is kept has to be there.
    pub(super) fn set_marked(&mut self, file: &str, marked: bool) {
        if let Some(entry) = self.stores.iter_mut().find(|entry| entry.file == file) {
            entry.marked = marked;
        }
    }

    /// Changes a folder's manifest, and has it on disk. Others wait meanwhile.
    ///
    /// # Errors
    /// Those of [`Manifest::read`], or it cannot be written: then it is as it was.
    pub(super) fn update(dir: &Path, change: impl FnOnce(&mut Manifest)) -> Result<Manifest, OpenError> {
        let lock_path = dir.join(MANIFEST_LOCK);
        let lock = || {
            let lock = files::private().write(true).create(true).truncate(false).open(&lock_path)?;
            lock.lock().map(|()| lock)
        };
        let _held = lock().map_err(|error| OpenError::from_io(&lock_path, &error))?;
        let mut manifest = match Manifest::read(dir)? {
            Some(manifest) => manifest,
            None => Manifest::new(jumps::at_first(dir)?, Vec::new()),
        };
        change(&mut manifest);
        manifest.write(dir).map_err(|error| OpenError::from_io(&dir.join(MANIFEST_FILE), &error))?;
        Ok(manifest)
    }

    /// Puts it in the place of the one that is there, durably.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(NEW_FILE);
        let mut file = files::private().write(true).create(true).truncate(true).open(&new)?;
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&new, dir.join(MANIFEST_FILE))?;
        files::sync_dir(dir)
    }
}

/// Whether all stores of a folder are there that its manifest asks for.
pub(super) fn check_all_there(dir: &Path) -> Result<(), OpenError> {
    let Some(manifest) = Manifest::read(dir)? else { return Ok(()) };
    let is_missing = |entry: &&Entry| entry.state == Stage::Kept && files::is_absent(&dir.join(&entry.file));
    match manifest.stores.iter().find(is_missing) {
        Some(entry) => Err(OpenError::Missing { path: dir.join(&entry.file), detail: String::new() }),
        None => Ok(()),
    }
}

/// A new store's id.
pub(super) fn new_id() -> String {
    secret::random_hex::<16>()
}

/// Whether it may be a store's id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name in a data dir is one that only the making of a manifest leaves.
pub(super) fn is_scratch(name: &Path) -> bool {
    name.file_name().is_some_and(|file| file == NEW_FILE || file == MANIFEST_LOCK)
}

/// The folder and the name in it of a store's file.
pub(super) fn place_of(path: &Path) -> Result<(PathBuf, String), OpenError> {
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
        let id = new_id();
        Manifest::update(dir.path(), |manifest| manifest.set("a.db", &id, Stage::Making)).unwrap();
        let kept = Manifest::update(dir.path(), |manifest| manifest.set("a.db", &id, Stage::Kept)).unwrap();
        let read = Manifest::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.entry("a.db").map(|entry| entry.state), Some(Stage::Kept));
        assert_eq!((read.of_id(&id), read.entry("b.db")), (Some("a.db"), None));
        assert!(!dir.path().join(NEW_FILE).exists());
    }

    #[test]
    fn two_who_change_it_at_once_both_count() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    Manifest::update(dir, |manifest| manifest.set(&format!("{n}.db"), &new_id(), Stage::Kept)).unwrap()
                });
            }
        });
        assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().stores.len(), 8);
    }

    #[test]
    fn what_is_no_manifest_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let id = new_id();
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
