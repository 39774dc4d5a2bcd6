//! The unfinished file, and the journal that records which of its pieces are synced.
//!
//! Both are in the folder of the finished file: `.p2s2-ID.part` and `.p2s2-ID.journal`. The journal begins with a
//! header, one line of JSON with all that is needed to resume. If the header says `listed`, the digests of the pieces
//! follow (their BLAKE3 is the root, so they verify themselves), then records of 16 bytes: first synced piece, number
//! of pieces, checksum. A record is written only after its pieces are synced; a torn one is ignored, and its pieces are
//! fetched again. A journal without the list has at most one record: that the file is complete and synced, and about to
//! be moved to its final place.
//!
//! All access goes through the folder's descriptor, because the folder may be replaced by a link at any time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use parking_lot::Mutex;

use super::ContentIdentity;
use super::plan::FencingToken;
use crate::net::threads::ExecutorFull;
use crate::share::dir_handle::{DirHandle, OpenMode, if_found};
use crate::share::pieces::PieceLayout;
use crate::share::wire::{Digest, FILE_SIZE_MAX, FileName};
use crate::storage::files::parent_of;

mod journal;
#[cfg(test)]
mod tests;

pub(super) use journal::{Journal, seconds_as_text};
use journal::{JournalContents, JournalHeader, read_journal};

const FILE_PREFIX: &str = ".p2s2-";
const JOURNAL_SUFFIX: &str = ".journal";
const PART_SUFFIX: &str = ".part";
/// Suffix of a journal that is being written.
const NEW_JOURNAL_SUFFIX: &str = ".new";
const ID_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub struct FetchSpec {
    /// Identifies the fetch: 1–64 letters, digits, `-` or `_`.
    pub id: String,
    /// The file's name on the network.
    pub fname: FileName,
    /// The host that was chosen; error texts name it when no host is known.
    pub hostname: String,
    /// Destination of the finished file. Its folder must exist.
    pub save_path: PathBuf,
    /// The content that the chosen host offers.
    pub content: ContentIdentity,
    /// The user asked for that host's content. If no digest identifies the content, only that host is used.
    pub is_owner_named: bool,
    /// Whether to start paused, waiting for [`FetchAction::Resume`](super::FetchAction::Resume).
    pub is_paused: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StartFetchError {
    #[error("{0} exists already")]
    Exists(PathBuf),
    #[error("id: expected 1 to {ID_MAX} letters, digits, - or _")]
    InvalidId,
    #[error("{0}: expected the path of a file")]
    InvalidSavePath(PathBuf),
    #[error("size: expected at most {FILE_SIZE_MAX} bytes, not {0}")]
    TooLarge(u64),
    #[error("the fetch cannot begin: {0}; try again when others have ended")]
    Full(#[from] ExecutorFull),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

#[derive(Debug)]
pub(super) struct PreparedFetch {
    pub journal: Journal,
    /// There was nothing to resume.
    pub is_new: bool,
    /// None if the finished file is in its final place already.
    pub part: Option<Arc<PartFile>>,
    pub piece_list: Option<Vec<Digest>>,
    pub synced_pieces: Vec<bool>,
}

/// Resumes what an earlier run left, or creates new files. Leftovers of other content under the same id are removed.
pub(super) fn prepare(spec: &FetchSpec) -> Result<PreparedFetch, StartFetchError> {
    if !is_valid_id(&spec.id) {
        return Err(StartFetchError::InvalidId);
    }
    let size = spec.content.size;
    if size > FILE_SIZE_MAX {
        return Err(StartFetchError::TooLarge(size));
    }
    let name = spec.save_path.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(save_as)) = (parent_of(&spec.save_path), name) else {
        return Err(StartFetchError::InvalidSavePath(spec.save_path.clone()));
    };
    let io_error_at = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| StartFetchError::Io { path, error }
    };
    let dir = Arc::new(DirHandle::open(folder).map_err(io_error_at(folder))?);
    let names = FetchFileNames::of(&spec.id);
    let (path, part_path) = (folder.join(&names.journal), folder.join(&names.part));
    let header = JournalHeader::of(spec, save_as);
    let count = PieceLayout::of(size).count();
    let leftover = if_found(read_journal(&dir, &names.journal)).map_err(io_error_at(&path))?.flatten();
    let is_same = |contents: &JournalContents| JournalHeader { listed: false, ..contents.header.clone() } == header;
    if let Some(leftover) = leftover.filter(is_same) {
        let opened = if_found(PartFile::open(&dir, &names.part, count, size)).map_err(io_error_at(&part_path))?;
        let opened = opened.flatten();
        let destination = dir.entry_info(save_as).map_err(io_error_at(&spec.save_path))?;
        let is_in_place = destination.is_some_and(|found| found.is_file && found.len == size);
        if opened.is_some() || (leftover.is_whole && is_in_place) {
            let journal = Journal::resume(leftover.header, dir, names, leftover.end).map_err(io_error_at(&path))?;
            let part = opened.map(Arc::new);
            return Ok(PreparedFetch {
                journal,
                is_new: false,
                part,
                piece_list: leftover.piece_list,
                synced_pieces: leftover.synced_pieces,
            });
        }
    }
    if dir.entry_info(save_as).map_err(io_error_at(&spec.save_path))?.is_some() {
        return Err(StartFetchError::Exists(spec.save_path.clone()));
    }
    names.remove(&dir).map_err(io_error_at(&part_path))?;
    let prepared = PartFile::create(&dir, &names.part, size, count).and_then(|part| {
        let journal = Journal::create(header, Arc::clone(&dir), FetchFileNames::of(&spec.id), &[])?;
        Ok(PreparedFetch {
            journal,
            is_new: true,
            part: Some(Arc::new(part)),
            piece_list: None,
            synced_pieces: vec![false; count],
        })
    });
    prepared.map_err(|error| {
        // A fetch that could not start leaves no files.
        if let Err(error) = names.remove(&dir) {
            warn!("{}: what could not be begun stays: {error}", part_path.display());
        }
        io_error_at(folder)(error)
    })
}

/// The unfinished file. Several connections write it at once, each to the pieces that it has claimed.
#[derive(Debug)]
pub(super) struct PartFile {
    file: File,
    name: String,
    /// For each piece the token that may write it; [`FINISHED`] once it is verified. (A file without a piece list
    /// counts as one piece.)
    tokens: Vec<Mutex<FencingToken>>,
    #[cfg(not(unix))]
    position: Mutex<()>,
}

/// Token of a verified piece: larger than all others, so that nobody writes it again.
const FINISHED: FencingToken = FencingToken::MAX;

impl PartFile {
    /// None if the file has another size.
    fn open(dir: &DirHandle, name: &str, pieces: usize, size: u64) -> io::Result<Option<PartFile>> {
        let file = dir.open_file(name, OpenMode::Write)?;
        Ok((file.metadata()?.len() == size).then(|| PartFile::of(file, name, pieces)))
    }

    /// Creates the file; one that exists is not overwritten.
    fn create(dir: &DirHandle, name: &str, size: u64, pieces: usize) -> io::Result<PartFile> {
        let file = dir.open_file(name, OpenMode::Create)?;
        file.set_len(size)?;
        Ok(PartFile::of(file, name, pieces))
    }

    fn of(file: File, name: &str, pieces: usize) -> PartFile {
        PartFile {
            file,
            name: name.to_owned(),
            tokens: (0..pieces.max(1)).map(|_| Mutex::new(0)).collect(),
            #[cfg(not(unix))]
            position: Mutex::new(()),
        }
    }

    /// Uses a device as the part file, which cannot be synced.
    #[cfg(test)]
    pub(super) fn of_device(path: &Path) -> PartFile {
        let device = File::options().read(true).write(true).open(path).expect("the device is there");
        PartFile::of(device, "device", 3)
    }

    /// Claims a piece; from then on no earlier token may write it. False if a later token has claimed it already.
    pub(super) fn claim(&self, piece: usize, token: FencingToken) -> bool {
        let mut current = self.tokens[piece].lock();
        let is_ours = *current <= token;
        if is_ours {
            *current = token;
        }
        is_ours
    }

    /// Writes part of a piece unless a later token has claimed it; returns whether it was written. A lock is held
    /// across the write, so that what a fast host sent cannot be overwritten by what a slow one sends later; only
    /// another connection with the same piece ever waits for it.
    pub(super) fn write(&self, piece: usize, token: FencingToken, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let current = self.tokens[piece].lock();
        if *current != token {
            return Ok(false);
        }
        self.write_all_at(bytes, offset)?;
        Ok(true)
    }

    /// Seals a verified piece: nobody writes it again. False if a later token has claimed it.
    pub(super) fn finish_piece(&self, piece: usize, token: FencingToken) -> bool {
        let mut current = self.tokens[piece].lock();
        let is_ours = *current == token;
        if is_ours {
            *current = FINISHED;
        }
        is_ours
    }

    /// Makes a sealed piece writable again, because it could not be synced.
    pub(super) fn reopen_piece(&self, piece: usize) {
        *self.tokens[piece].lock() = 0;
    }

    #[cfg(unix)]
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::io::{Seek, SeekFrom};
        let _position = self.position.lock();
        (&self.file).seek(SeekFrom::Start(offset))?;
        (&self.file).write_all(bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The interrupted fetch with that id in a folder, if there is one; a folder that does not exist has none.
pub fn find_interrupted(dir: &Path, id: &str) -> io::Result<Option<FetchSpec>> {
    let Some((held, names)) = open_dir(dir, id)? else { return Ok(None) };
    let contents = if_found(read_journal(&held, &names.journal))?.flatten();
    Ok(contents.filter(|contents| contents.header.id == id).map(|contents| contents.header.spec(dir)))
}

/// Removes part file and journal of the fetch with that id. A finished file stays; a folder that does not exist is no
/// error.
pub fn discard_leftovers(dir: &Path, id: &str) -> io::Result<()> {
    match open_dir(dir, id)? {
        Some((held, names)) => names.remove(&held),
        None => Ok(()),
    }
}

fn open_dir(dir: &Path, id: &str) -> io::Result<Option<(DirHandle, FetchFileNames)>> {
    if !is_valid_id(id) {
        return Ok(None);
    }
    Ok(if_found(DirHandle::open(dir))?.map(|held| (held, FetchFileNames::of(id))))
}

#[derive(Debug)]
struct FetchFileNames {
    part: String,
    journal: String,
    /// A journal that is being written.
    new: String,
}

impl FetchFileNames {
    fn of(id: &str) -> FetchFileNames {
        let name = |ending: &str| format!("{FILE_PREFIX}{id}{ending}");
        FetchFileNames { part: name(PART_SUFFIX), journal: name(JOURNAL_SUFFIX), new: name(NEW_JOURNAL_SUFFIX) }
    }

    /// Removes the journal last: while it exists, the other files are known to be ours.
    fn remove(&self, dir: &DirHandle) -> io::Result<()> {
        [&self.part, &self.new, &self.journal].into_iter().try_for_each(|name| dir.remove(name))
    }
}

fn is_valid_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}
