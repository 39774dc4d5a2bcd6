//! What a node gives to other peers: its published files, looked at afresh each time, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use crate::share::files::{Facts, Files, Tracked};
use crate::share::folders::Folders;
use crate::share::pieces::{Layout, Pieces};
use crate::share::transfer::{NotServed, Offer, Published};
use crate::share::wire::{Digest, FileName};

/// Files whose digests are held: those that are being sent.
const HELD_MAX: usize = 8;

/// One user's published files.
pub(super) struct Shelf {
    files: Files,
    folders: RwLock<Folders>,
    is_open: AtomicBool,
    /// The digests of files that were asked for last, the newest at the back.
    held: Mutex<Vec<(FileName, Digest, Arc<Pieces>)>>,
}

impl Shelf {
    /// Closed until it is opened.
    pub(super) fn new(files: Files, folders: Folders) -> Shelf {
        Shelf { files, folders: RwLock::new(folders), is_open: AtomicBool::new(false), held: Mutex::default() }
    }

    /// Whether anything is given at all.
    pub(super) fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Relaxed);
    }

    pub(super) fn set_folders(&self, folders: Folders) {
        *self.folders.write() = folders;
    }

    pub(super) fn folders(&self) -> Folders {
        self.folders.read().clone()
    }

    /// Its digests, if the file was read since it last changed.
    fn pieces(&self, file: &Tracked) -> Option<Arc<Pieces>> {
        let (whole, root) = (file.blake3?, file.pieces_root?);
        let held = self.held.lock().iter().find(|(name, of, _)| *name == file.name && *of == root).cloned();
        if let Some((_, _, pieces)) = held {
            return Some(pieces);
        }
        let bytes = match self.files.pieces(&file.name) {
            Ok(bytes) => bytes?,
            Err(error) => {
                log::warn!("{}: reading its digests: {error}", file.name);
                return None;
            }
        };
        let digests = bytes.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect();
        let pieces = Arc::new(Pieces::new(Layout::of(file.facts.size), whole, digests).ok()?);
        if pieces.root() != root {
            // Changed between the two reads.
            return None;
        }
        let mut held = self.held.lock();
        held.retain(|(name, ..)| *name != file.name);
        if held.len() >= HELD_MAX {
            held.remove(0);
        }
        held.push((file.name.clone(), root, Arc::clone(&pieces)));
        Some(pieces)
    }
}

impl Published for Shelf {
    fn open(&self, name: &[u8]) -> Result<Offer, NotServed> {
        let name = std::str::from_utf8(name).ok().and_then(|name| FileName::new(name).ok());
        let name = name.filter(|_| self.is_open.load(Relaxed)).ok_or(NotServed::NotFound)?;
        let tracked = self.files.get(&name).map_err(|error| {
            log::warn!("{name}: {error}");
            NotServed::NotFound
        })?;
        let tracked = tracked.filter(|tracked| tracked.is_published).ok_or(NotServed::NotFound)?;
        // Moved, deleted, or something that may not be given has come into its place.
        let opened = self.folders().open_resolved(&tracked.facts.path).map_err(|error| {
            log::info!("{name} cannot be given: {error}");
            NotServed::Moved
        })?;
        let now = Facts::of(&opened.path, &opened.metadata);
        if (now.size, now.modified_ns) != (tracked.facts.size, tracked.facts.modified_ns) {
            return Err(NotServed::Moved);
        }
        let modified = opened.metadata.modified().map_err(|_| NotServed::Moved)?;
        let pieces = self.pieces(&tracked);
        Ok(Offer { file: opened.file, size: now.size, modified, pieces })
    }
}
