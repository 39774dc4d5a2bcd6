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

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ContentIdentity;
use super::plan::FencingToken;
use crate::net::threads::ExecutorFull;
use crate::share::dir_handle::{DirHandle, OpenMode};
use crate::share::pieces::{PieceLayout, blake3_digest, digests_root};
use crate::share::wire::{Digest, FILE_SIZE_MAX, FileName, Seconds};
use crate::storage::files::parent_of;

#[cfg(test)]
mod tests;

/// Prefix of the names of both files.
const FILE_PREFIX: &str = ".p2s2-";
const JOURNAL_SUFFIX: &str = ".journal";
const PART_SUFFIX: &str = ".part";
/// Suffix of a journal that is being written.
const NEW_JOURNAL_SUFFIX: &str = ".new";
/// Most bytes of a fetch's id.
const ID_MAX: usize = 64;
/// Most bytes of a journal: its header, and a digest and a record for each piece.
const JOURNAL_MAX: u64 = 16 * 1024 + 8192 * 48;
const RECORD_BYTES: usize = 16;
/// First piece of the record which says, in a journal without a piece list, that the file is complete.
const WHOLE_MARKER: usize = u32::MAX as usize;

/// What to fetch, and where to save it.
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
    /// Whether to start paused, waiting for [`Fetch::resume`](super::Fetch::resume).
    pub is_paused: bool,
}

/// Why a fetch cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartFetchError {
    /// A file exists at the destination; it is never overwritten.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The id cannot be part of a file name.
    #[error("id: expected 1 to {ID_MAX} letters, digits, - or _")]
    InvalidId,
    /// The destination has no folder, or a name that is not UTF-8.
    #[error("{0}: expected the path of a file")]
    InvalidSavePath(PathBuf),
    /// The size exceeds the largest that is supported.
    #[error("size: expected at most {FILE_SIZE_MAX} bytes, not {0}")]
    TooLarge(u64),
    /// The executor has no thread left.
    #[error("the fetch cannot begin: {0}; try again when others have ended")]
    Full(#[from] ExecutorFull),
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// Lists the interrupted fetches of a folder; each can be started again as it is. Journals that cannot be read are
/// logged and left alone.
///
/// # Errors
/// The folder cannot be read. A folder that does not exist has no fetches.
pub fn list_interrupted(dir: &Path) -> io::Result<Vec<FetchSpec>> {
    let held = match DirHandle::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        held => held?,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        let Some(id) = name.strip_prefix(FILE_PREFIX).and_then(|rest| rest.strip_suffix(JOURNAL_SUFFIX)) else {
            continue;
        };
        match read_journal(&held, name) {
            Ok(Some(contents)) if contents.header.id == id => found.push(contents.header.spec(dir)),
            Ok(_) => warn!("{}: not the journal of a fetch", dir.join(name).display()),
            Err(error) => warn!("{}: {error}", dir.join(name).display()),
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Finds the interrupted fetch with that id in a folder, if there is one.
///
/// # Errors
/// The folder or the journal cannot be read. A folder that does not exist has no fetches.
pub fn find_interrupted(dir: &Path, id: &str) -> io::Result<Option<FetchSpec>> {
    let Some((held, names)) = open_dir(dir, id)? else { return Ok(None) };
    match read_journal(&held, &names.journal) {
        Ok(contents) => {
            Ok(contents.filter(|contents| contents.header.id == id).map(|contents| contents.header.spec(dir)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes part file and journal of the fetch with that id from a folder. A finished file stays.
///
/// # Errors
/// A file cannot be removed. A folder that does not exist is no error.
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
    match DirHandle::open(dir) {
        Ok(held) => Ok(Some((held, FetchFileNames::of(id)))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names of a fetch's files.
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

/// The journal's first line, which identifies the fetch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct JournalHeader {
    version: u32,
    id: String,
    fname: FileName,
    hostname: String,
    /// The name of the finished file, in the journal's own folder.
    save_as: String,
    size: u64,
    #[serde(with = "seconds_as_text")]
    modified: Seconds,
    blake3: Option<Digest>,
    pieces_root: Option<Digest>,
    listed: bool,
    /// [`FetchSpec::is_owner_named`]; journals of earlier versions lack it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    owner_named: bool,
}

/// Stores a time as text, so that it is read back exactly: a JSON number may come back with another last digit.
mod seconds_as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::share::wire::Seconds;

    pub(super) fn serialize<S: Serializer>(seconds: &Seconds, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&seconds.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        let text = String::deserialize(deserializer)?;
        Seconds::new(text.parse().map_err(Error::custom)?).map_err(Error::custom)
    }
}

impl JournalHeader {
    const VERSION: u32 = 1;

    fn of(spec: &FetchSpec, save_as: &str) -> JournalHeader {
        let ContentIdentity { size, modified, blake3, pieces_root } = spec.content;
        JournalHeader {
            version: JournalHeader::VERSION,
            id: spec.id.clone(),
            fname: spec.fname.clone(),
            hostname: spec.hostname.clone(),
            save_as: save_as.to_owned(),
            size,
            modified,
            blake3,
            pieces_root,
            listed: false,
            owner_named: spec.is_owner_named,
        }
    }

    fn spec(&self, dir: &Path) -> FetchSpec {
        let JournalHeader { size, modified, blake3, pieces_root, .. } = *self;
        FetchSpec {
            id: self.id.clone(),
            fname: self.fname.clone(),
            hostname: self.hostname.clone(),
            save_path: dir.join(&self.save_as),
            content: ContentIdentity { size, modified, blake3, pieces_root },
            is_owner_named: self.owner_named,
            is_paused: false,
        }
    }

    fn to_line(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    fn is_valid(&self) -> bool {
        self.version == JournalHeader::VERSION
            && is_valid_id(&self.id)
            && self.size <= FILE_SIZE_MAX
            && Path::new(&self.save_as).file_name().is_some_and(|name| name == self.save_as.as_str())
    }
}

fn is_valid_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The parsed contents of a journal.
struct JournalContents {
    header: JournalHeader,
    piece_list: Option<Vec<Digest>>,
    synced_pieces: Vec<bool>,
    /// The file is complete, and perhaps in its final place already.
    is_whole: bool,
    /// Offset of the next record.
    end: u64,
}

/// Reads a journal. None: it is not a journal, or one of another version.
fn read_journal(dir: &DirHandle, name: &str) -> io::Result<Option<JournalContents>> {
    let mut bytes = Vec::new();
    dir.open_file(name, OpenMode::Read)?.take(JOURNAL_MAX).read_to_end(&mut bytes)?;
    let Some(line_end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let (line, rest) = bytes.split_at(line_end + 1);
    let Ok(header) = serde_json::from_slice::<JournalHeader>(line) else { return Ok(None) };
    if !header.is_valid() {
        return Ok(None);
    }
    let count = PieceLayout::of(header.size).count();
    let key = record_key(line);
    let mut contents = JournalContents {
        header,
        piece_list: None,
        synced_pieces: vec![false; count],
        is_whole: count == 0,
        end: line.len() as u64,
    };
    if !contents.header.listed {
        if rest.get(..RECORD_BYTES).is_some_and(|bytes| parse_record(bytes, &key) == Some((WHOLE_MARKER, 0))) {
            (contents.is_whole, contents.end) = (true, contents.end + RECORD_BYTES as u64);
        }
        return Ok(Some(contents));
    }
    let Some((piece_list, records)) = rest.split_at_checked(count * 32) else { return Ok(None) };
    // Chunks of 32 bytes each.
    let piece_list: Vec<Digest> =
        piece_list.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect();
    if Some(digests_root(&piece_list)) != contents.header.pieces_root {
        return Ok(None);
    }
    contents.end += count as u64 * 32;
    for record in records.chunks_exact(RECORD_BYTES) {
        let Some((first, pieces)) = parse_record(record, &key) else { break };
        let Some(run) = contents.synced_pieces.get_mut(first..first.saturating_add(pieces)) else { break };
        run.fill(true);
        contents.end += RECORD_BYTES as u64;
    }
    contents.is_whole = contents.synced_pieces.iter().all(|is_synced| *is_synced);
    contents.piece_list = Some(piece_list);
    Ok(Some(contents))
}

fn record_key(line: &[u8]) -> [u8; 32] {
    blake3_digest(line).0
}

fn record(first: usize, count: usize, key: &[u8; 32]) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    // At most PIECES_MAX, or WHOLE.
    record[..4].copy_from_slice(&(first as u32).to_le_bytes());
    record[4..8].copy_from_slice(&(count as u32).to_le_bytes());
    let check = blake3::keyed_hash(key, &record[..8]);
    record[8..].copy_from_slice(&check.as_bytes()[..8]);
    record
}

fn parse_record(bytes: &[u8], key: &[u8; 32]) -> Option<(usize, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let (first, count) = (number(0)?, number(4)?);
    (record(first, count, key) == bytes).then_some((first, count))
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
    fn open(dir: &DirHandle, name: &str, pieces: usize) -> io::Result<PartFile> {
        Ok(PartFile::of(dir.open_file(name, OpenMode::Write)?, name, pieces))
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

    /// Makes what was written survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The journal's file, owned by the saver's thread.
#[derive(Debug)]
pub(super) struct Journal {
    header: JournalHeader,
    dir: Arc<DirHandle>,
    names: FetchFileNames,
    file: File,
    key: [u8; 32],
    /// Offset of the next record: one that was torn by a full disk is overwritten.
    end: u64,
}

/// The files of a fetch, opened.
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
    let leftover = match read_journal(&dir, &names.journal) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        read => read
            .map_err(io_error_at(&path))?
            .filter(|contents| JournalHeader { listed: false, ..contents.header.clone() } == header),
    };
    if let Some(leftover) = leftover {
        let opened = match PartFile::open(&dir, &names.part, count) {
            Ok(part) if part.file.metadata().map_err(io_error_at(&part_path))?.len() == size => Some(part),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(io_error_at(&part_path)(error)),
        };
        let destination = dir.entry_info(save_as).map_err(io_error_at(&spec.save_path))?;
        let is_in_place = destination.is_some_and(|found| found.is_file && found.len == size);
        if opened.is_some() || (leftover.is_whole && is_in_place) {
            let file = dir.open_file(&names.journal, OpenMode::Write).map_err(io_error_at(&path))?;
            // Cut off a torn record, so that the next ones follow directly.
            file.set_len(leftover.end).map_err(io_error_at(&path))?;
            let key = record_key(&leftover.header.to_line().map_err(io_error_at(&path))?);
            let journal = Journal { header: leftover.header, dir, names, file, key, end: leftover.end };
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

impl Journal {
    /// Writes a journal under another name and replaces the former one with it. It is synced only if it has a piece
    /// list: before that there is nothing to lose in a power cut.
    fn create(
        header: JournalHeader,
        dir: Arc<DirHandle>,
        names: FetchFileNames,
        piece_list: &[Digest],
    ) -> io::Result<Journal> {
        let line = header.to_line()?;
        let key = record_key(&line);
        let mut bytes = line;
        bytes.extend(piece_list.iter().flat_map(|digest| digest.0));
        dir.remove(&names.new)?;
        let mut file = dir.open_file(&names.new, OpenMode::Create)?;
        let result = file.write_all(&bytes).and_then(|()| if header.listed { file.sync_data() } else { Ok(()) });
        if let Err(error) = result.and_then(|()| dir.rename_over(&names.new, &names.journal)) {
            // Frees space, as the disk may be full.
            dir.remove(&names.new)?;
            return Err(error);
        }
        if header.listed {
            dir.sync()?;
        }
        let end = bytes.len() as u64;
        Ok(Journal { header, dir, names, file, key, end })
    }

    /// Stores the piece list, after which pieces can be recorded. Does nothing if the journal has it already.
    pub(super) fn set_list(&mut self, piece_list: &[Digest]) -> io::Result<()> {
        if !self.header.listed {
            let header = JournalHeader { listed: true, ..self.header.clone() };
            *self = Journal::create(header, Arc::clone(&self.dir), FetchFileNames::of(&self.header.id), piece_list)?;
        }
        Ok(())
    }

    /// Records pieces, which must be synced. (The record itself is not synced: if it is lost, they are fetched again.)
    pub(super) fn append(&mut self, pieces: &mut [usize]) -> io::Result<()> {
        if !self.header.listed {
            // The record would take the place of the list.
            return Err(io::Error::other("the list of pieces is not in the journal"));
        }
        pieces.sort_unstable();
        let mut records = Vec::new();
        for run in pieces.chunk_by(|a, b| a + 1 == *b) {
            records.extend(record(run[0], run.len(), &self.key));
        }
        self.write_at_end(&records)?;
        self.end += records.len() as u64;
        Ok(())
    }

    /// Records that the file is complete if no pieces are recorded. After a crash, this tells that the file found at
    /// the destination is ours.
    fn record_whole(&self) -> io::Result<()> {
        if self.header.listed {
            return Ok(());
        }
        self.write_at_end(&record(WHOLE_MARKER, 0, &self.key))
    }

    fn write_at_end(&self, records: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::Start(self.end))?;
        file.write_all(records)
    }

    /// Moves the complete file to its final place and removes the journal.
    pub(super) fn finish(&self, part: Option<&PartFile>) -> io::Result<()> {
        if let Some(part) = part {
            part.file.sync_all()?;
            self.record_whole()?;
            self.dir.rename_exclusively(&part.name, &self.header.save_as)?;
        }
        self.dir.sync()?;
        self.dir.remove(&self.names.journal)
    }

    /// Removes all files of the fetch.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.names.remove(&self.dir)
    }
}
