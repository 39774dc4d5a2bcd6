//! Serves a node's published files to other peers, checking for each request that the file is still as published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use crate::share::files::{FileStat, TrackedFile, TrackedFiles};
use crate::share::folders::SharedFolders;
use crate::share::pieces::{FileDigests, PieceLayout};
use crate::share::transfer::{FileProvider, FileUnavailable, ServedFile};
use crate::share::wire::{Digest, FileName};

/// The cache is meant for the files that are being sent.
const CACHED_DIGESTS_MAX: usize = 8;

pub(super) struct PublishedFiles {
    files: TrackedFiles,
    folders: RwLock<SharedFolders>,
    is_serving: AtomicBool,
    /// It holds the digests of recently requested files, the newest last.
    digest_cache: Mutex<Vec<(FileName, Digest, Arc<FileDigests>)>>,
}

impl PublishedFiles {
    /// Serves nothing until [`PublishedFiles::set_serving`].
    pub(super) fn new(files: TrackedFiles, folders: SharedFolders) -> PublishedFiles {
        let (is_serving, digest_cache) = (AtomicBool::new(false), Mutex::default());
        PublishedFiles { files, folders: RwLock::new(folders), is_serving, digest_cache }
    }

    pub(super) fn set_serving(&self, is_serving: bool) {
        self.is_serving.store(is_serving, Relaxed);
    }

    pub(super) fn set_folders(&self, folders: SharedFolders) {
        *self.folders.write() = folders;
    }

    pub(super) fn folders(&self) -> SharedFolders {
        self.folders.read().clone()
    }

    /// A file's digests, if it has been hashed since it last changed.
    fn digests_of(&self, file: &TrackedFile) -> Option<Arc<FileDigests>> {
        let (whole, root) = (file.blake3?, file.pieces_root?);
        let cached = self.digest_cache.lock().iter().find(|(name, of, _)| *name == file.name && *of == root).cloned();
        if let Some((_, _, pieces)) = cached {
            return Some(pieces);
        }
        let bytes = match self.files.piece_digests(&file.name) {
            Ok(bytes) => bytes?,
            Err(error) => {
                log::warn!("{}: reading its digests: {error}", file.name);
                return None;
            }
        };
        let digests = bytes.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect();
        let pieces = Arc::new(FileDigests::new(PieceLayout::of(file.stat.size), whole, digests).ok()?);
        if pieces.root() != root {
            // The file was hashed anew between the two reads of the store.
            return None;
        }
        let mut digest_cache = self.digest_cache.lock();
        digest_cache.retain(|(name, ..)| *name != file.name);
        if digest_cache.len() >= CACHED_DIGESTS_MAX {
            digest_cache.remove(0);
        }
        digest_cache.push((file.name.clone(), root, Arc::clone(&pieces)));
        Some(pieces)
    }
}

impl FileProvider for PublishedFiles {
    fn open(&self, name: &[u8]) -> Result<ServedFile, FileUnavailable> {
        let name = std::str::from_utf8(name).ok().and_then(|name| FileName::new(name).ok());
        let name = name.filter(|_| self.is_serving.load(Relaxed)).ok_or(FileUnavailable::NotFound)?;
        let tracked = self.files.get(&name).map_err(|error| {
            log::warn!("{name}: {error}");
            FileUnavailable::NotFound
        })?;
        let tracked = tracked.filter(|tracked| tracked.is_published).ok_or(FileUnavailable::NotFound)?;
        // It was moved, deleted, or replaced by something that must not be served.
        let opened = self.folders().reopen(&tracked.stat.path).map_err(|error| {
            log::info!("{name} cannot be given: {error}");
            FileUnavailable::Moved
        })?;
        let now = FileStat::of(&opened.path, &opened.metadata);
        if (now.size, now.modified_ns) != (tracked.stat.size, tracked.stat.modified_ns) {
            return Err(FileUnavailable::Moved);
        }
        let modified = opened.metadata.modified().map_err(|_| FileUnavailable::Moved)?;
        let pieces = self.digests_of(&tracked);
        Ok(ServedFile { file: opened.file, size: now.size, modified, pieces })
    }
}
