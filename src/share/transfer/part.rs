//! The unfinished file, and the journal that says which of its pieces are good.
//!
//! Both lie beside the place where the finished file is to appear: `.p2s2-ID.part` and `.p2s2-ID.journal`.
//! The journal begins with one line of JSON that says all that is needed to go on; if that says `listed`, the
//! digests of the pieces follow (their BLAKE3 is the root, so they prove themselves), and then records of 16
//! bytes: first good piece, how many, and a checksum. A record is written only after the pieces are synced; a
//! torn one does not count, and its pieces are fetched again. A journal without the list has one record at most:
//! that the file is whole and synced, and about to go to its place.
//!
//! All of it is done by the folder's descriptor: it may be exchanged for a link at any time.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Content;
use super::plan::Turn;
use crate::net::threads::Full;
use crate::share::beneath::{HeldDir, How};
use crate::share::pieces::{Layout, digest, root_of};
use crate::share::wire::{Digest, FILE_SIZE_MAX, FileName, Seconds};
use crate::storage::files::parent_of;

#[cfg(test)]
mod tests;

/// What both files' names begin with.
const PREFIX: &str = ".p2s2-";
const JOURNAL: &str = ".journal";
const PART: &str = ".part";
/// A journal that is being written.
const NEW: &str = ".new";
/// Most characters of an id.
const ID_MAX: usize = 64;
/// Most bytes of a journal: its line, the digests, a record for each piece.
const JOURNAL_MAX: u64 = 16 * 1024 + 8192 * 48;
const RECORD: usize = 16;
/// Stands for a first piece where no list says what the pieces are: the file is whole.
const WHOLE: usize = u32::MAX as usize;

/// What is to be fetched, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchSpec {
    /// Names the fetch: 1–64 letters, digits, `-` or `_`.
    pub id: String,
    /// The file's name on the network.
    pub fname: FileName,
    /// The host that was chosen: named when nobody can be asked.
    pub hostname: String,
    /// Where it is to appear once it is whole. Its folder must be there.
    pub save_path: PathBuf,
    /// Of the host that was chosen.
    pub content: Content,
    /// The user wants what that host has. Where no digest tells it from what others have, only that one is asked.
    pub is_owner_named: bool,
    /// Whether it waits for [`Fetch::resume`](super::Fetch::resume) before it begins.
    pub is_paused: bool,
}

/// Why a fetch cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It never overwrites a file.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The id would not do as part of a file's name.
    #[error("id: expected 1 to {ID_MAX} letters, digits, - or _")]
    Id,
    /// The place for the file has no folder, or a name that is not text.
    #[error("{0}: expected the path of a file")]
    SavePath(PathBuf),
    /// No file is that large.
    #[error("size: expected at most {FILE_SIZE_MAX} bytes, not {0}")]
    Size(u64),
    /// No thread is left for it.
    #[error("the fetch cannot begin: {0}; try again when others have ended")]
    Full(#[from] Full),
    /// The system's.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// The fetches that were interrupted in a folder: each may be started again as it is. What cannot be read is
/// logged and left alone.
///
/// # Errors
/// The system's, when the folder cannot be read. One that is not there has none.
pub fn interrupted(dir: &Path) -> io::Result<Vec<FetchSpec>> {
    let held = match HeldDir::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        held => held?,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        let Some(id) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(JOURNAL)) else { continue };
        match read_journal(&held, name) {
            Ok(Some(read)) if read.head.id == id => found.push(read.head.spec(dir)),
            Ok(_) => warn!("{}: not the journal of a fetch", dir.join(name).display()),
            Err(error) => warn!("{}: {error}", dir.join(name).display()),
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// The fetch of that id that was interrupted in a folder, if there is one to be gone on with.
///
/// # Errors
/// The system's, but for a folder that is not there.
pub fn left_of(dir: &Path, id: &str) -> io::Result<Option<FetchSpec>> {
    let Some((held, names)) = held_names(dir, id)? else { return Ok(None) };
    match read_journal(&held, &names.journal) {
        Ok(read) => Ok(read.filter(|read| read.head.id == id).map(|read| read.head.spec(dir))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes all that a fetch of that id has left in a folder, but for a file that came whole.
///
/// # Errors
/// The system's, but for a folder that is not there.
pub fn discard_left(dir: &Path, id: &str) -> io::Result<()> {
    match held_names(dir, id)? {
        Some((held, names)) => names.remove(&held),
        None => Ok(()),
    }
}

fn held_names(dir: &Path, id: &str) -> io::Result<Option<(HeldDir, Names)>> {
    if !is_id(id) {
        return Ok(None);
    }
    match HeldDir::open(dir) {
        Ok(held) => Ok(Some((held, Names::of(id)))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a fetch's files are called.
#[derive(Debug)]
struct Names {
    part: String,
    journal: String,
    /// A journal that is being written.
    new: String,
}

impl Names {
    fn of(id: &str) -> Names {
        let name = |ending: &str| format!("{PREFIX}{id}{ending}");
        Names { part: name(PART), journal: name(JOURNAL), new: name(NEW) }
    }

    /// The journal last: while it is there, what is beside it is known to be ours.
    fn remove(&self, dir: &HeldDir) -> io::Result<()> {
        [&self.part, &self.new, &self.journal].into_iter().try_for_each(|name| dir.remove(name))
    }
}

/// The journal's first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    version: u32,
    id: String,
    fname: FileName,
    hostname: String,
    /// The name of the finished file, in the journal's own folder.
    save_as: String,
    size: u64,
    #[serde(with = "exactly")]
    modified: Seconds,
    blake3: Option<Digest>,
    pieces_root: Option<Digest>,
    listed: bool,
    /// Since a fetch can be of one owner's content.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    owner_named: bool,
}

/// A number that comes back as the one it was: from JSON's numbers it may come back with another last digit.
mod exactly {
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

impl Head {
    const VERSION: u32 = 1;

    fn of(spec: &FetchSpec, save_as: &str) -> Head {
        let Content { size, modified, blake3, pieces_root } = spec.content;
        Head {
            version: Head::VERSION,
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
        let Head { size, modified, blake3, pieces_root, .. } = *self;
        FetchSpec {
            id: self.id.clone(),
            fname: self.fname.clone(),
            hostname: self.hostname.clone(),
            save_path: dir.join(&self.save_as),
            content: Content { size, modified, blake3, pieces_root },
            is_owner_named: self.owner_named,
            is_paused: false,
        }
    }

    fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    fn is_sound(&self) -> bool {
        self.version == Head::VERSION
            && is_id(&self.id)
            && self.size <= FILE_SIZE_MAX
            && Path::new(&self.save_as).file_name().is_some_and(|name| name == self.save_as.as_str())
    }
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// What a journal says.
struct Journaled {
    head: Head,
    list: Option<Vec<Digest>>,
    good: Vec<bool>,
    /// The file was about to go to its place.
    is_whole: bool,
    /// Where the next record belongs.
    end: u64,
}

/// None: it is not a journal, or one of another version.
fn read_journal(dir: &HeldDir, name: &str) -> io::Result<Option<Journaled>> {
    let mut bytes = Vec::new();
    dir.file(name, How::Read)?.take(JOURNAL_MAX).read_to_end(&mut bytes)?;
    let Some(line_end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let (line, rest) = bytes.split_at(line_end + 1);
    let Ok(head) = serde_json::from_slice::<Head>(line) else { return Ok(None) };
    if !head.is_sound() {
        return Ok(None);
    }
    let count = Layout::of(head.size).count();
    let key = record_key(line);
    let mut read =
        Journaled { head, list: None, good: vec![false; count], is_whole: count == 0, end: line.len() as u64 };
    if !read.head.listed {
        if rest.get(..RECORD).is_some_and(|bytes| parse_record(bytes, &key) == Some((WHOLE, 0))) {
            (read.is_whole, read.end) = (true, read.end + RECORD as u64);
        }
        return Ok(Some(read));
    }
    let Some((list, records)) = rest.split_at_checked(count * 32) else { return Ok(None) };
    // Chunks of 32 bytes each.
    let list: Vec<Digest> = list.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect();
    if Some(root_of(&list)) != read.head.pieces_root {
        return Ok(None);
    }
    read.end += count as u64 * 32;
    for record in records.chunks_exact(RECORD) {
        let Some((first, pieces)) = parse_record(record, &key) else { break };
        let Some(good) = read.good.get_mut(first..first.saturating_add(pieces)) else { break };
        good.fill(true);
        read.end += RECORD as u64;
    }
    read.is_whole = read.good.iter().all(|good| *good);
    read.list = Some(list);
    Ok(Some(read))
}

fn record_key(line: &[u8]) -> [u8; 32] {
    digest(line).0
}

fn record(first: usize, count: usize, key: &[u8; 32]) -> [u8; RECORD] {
    let mut record = [0; RECORD];
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

/// The unfinished file. Written by several threads at once, each where it is its turn.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    name: String,
    /// Whose turn it is to write each piece; [`DONE`] once it is right. (The whole of a file that has no list
    /// counts as piece 0.)
    turns: Vec<Mutex<Turn>>,
    #[cfg(not(unix))]
    position: Mutex<()>,
}

/// The turn after which nobody writes any more.
const DONE: Turn = Turn::MAX;

impl Part {
    fn open(dir: &HeldDir, name: &str, pieces: usize) -> io::Result<Part> {
        Ok(Part::of(dir.file(name, How::Write)?, name, pieces))
    }

    /// Nothing that is in the way is overwritten.
    fn create(dir: &HeldDir, name: &str, size: u64, pieces: usize) -> io::Result<Part> {
        let file = dir.file(name, How::Create)?;
        file.set_len(size)?;
        Ok(Part::of(file, name, pieces))
    }

    fn of(file: File, name: &str, pieces: usize) -> Part {
        Part {
            file,
            name: name.to_owned(),
            turns: (0..pieces.max(1)).map(|_| Mutex::new(0)).collect(),
            #[cfg(not(unix))]
            position: Mutex::new(()),
        }
    }

    /// A device in its place, which cannot be synced.
    #[cfg(test)]
    pub(super) fn of_device(path: &Path) -> Part {
        let device = File::options().read(true).write(true).open(path).expect("the device is there");
        Part::of(device, "device", 3)
    }

    /// Whether it is this turn's to write the piece; from then on no earlier one may.
    pub(super) fn claim(&self, piece: usize, turn: Turn) -> bool {
        let mut at = self.turns[piece].lock();
        let is_ours = *at <= turn;
        if is_ours {
            *at = turn;
        }
        is_ours
    }

    /// Writes, if it is still this turn's. Two never write the same piece at once: what a fast host sent
    /// rightly must not be spoilt by what a slow one sends wrongly later. (So here a lock is held across a write;
    /// only another connection with the same piece ever waits for it.)
    pub(super) fn write(&self, piece: usize, turn: Turn, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let at = self.turns[piece].lock();
        if *at != turn {
            return Ok(false);
        }
        self.write_all_at(bytes, offset)?;
        Ok(true)
    }

    /// The piece is right: nobody writes it again. False if it was no longer this turn's.
    pub(super) fn done(&self, piece: usize, turn: Turn) -> bool {
        let mut at = self.turns[piece].lock();
        let is_ours = *at == turn;
        if is_ours {
            *at = DONE;
        }
        is_ours
    }

    /// What was right is not on disk: it is to be had again.
    pub(super) fn undo(&self, piece: usize) {
        *self.turns[piece].lock() = 0;
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

    /// What was written survives a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The journal's file. One thread has it.
#[derive(Debug)]
pub(super) struct Journal {
    head: Head,
    dir: Arc<HeldDir>,
    names: Names,
    file: File,
    key: [u8; 32],
    /// Where the next record belongs: what was written in part, on a full disk, is written over.
    end: u64,
}

/// What a fetch begins with.
#[derive(Debug)]
pub(super) struct Begun {
    pub journal: Journal,
    /// Nothing was left by an earlier run.
    pub is_new: bool,
    /// None: the finished file is in its place already.
    pub part: Option<Arc<Part>>,
    pub list: Option<Vec<Digest>>,
    pub good: Vec<bool>,
}

/// Takes up what an earlier run left, or begins anew. What is left of another content under the same id goes.
pub(super) fn begin(spec: &FetchSpec) -> Result<Begun, StartError> {
    if !is_id(&spec.id) {
        return Err(StartError::Id);
    }
    let size = spec.content.size;
    if size > FILE_SIZE_MAX {
        return Err(StartError::Size(size));
    }
    let name = spec.save_path.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(save_as)) = (parent_of(&spec.save_path), name) else {
        return Err(StartError::SavePath(spec.save_path.clone()));
    };
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| StartError::Io { path, error }
    };
    let dir = Arc::new(HeldDir::open(folder).map_err(at(folder))?);
    let names = Names::of(&spec.id);
    let (path, part_path) = (folder.join(&names.journal), folder.join(&names.part));
    let head = Head::of(spec, save_as);
    let count = Layout::of(size).count();
    let left = match read_journal(&dir, &names.journal) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        read => read.map_err(at(&path))?.filter(|read| Head { listed: false, ..read.head.clone() } == head),
    };
    if let Some(left) = left {
        let opened = match Part::open(&dir, &names.part, count) {
            Ok(part) if part.file.metadata().map_err(at(&part_path))?.len() == size => Some(part),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(at(&part_path)(error)),
        };
        let in_place = dir.find(save_as).map_err(at(&spec.save_path))?;
        let is_in_place = in_place.is_some_and(|found| found.is_file && found.len == size);
        if opened.is_some() || (left.is_whole && is_in_place) {
            let file = dir.file(&names.journal, How::Write).map_err(at(&path))?;
            // A torn record must not stand between the next ones.
            file.set_len(left.end).map_err(at(&path))?;
            let key = record_key(&left.head.line().map_err(at(&path))?);
            let journal = Journal { head: left.head, dir, names, file, key, end: left.end };
            let part = opened.map(Arc::new);
            return Ok(Begun { journal, is_new: false, part, list: left.list, good: left.good });
        }
    }
    if dir.find(save_as).map_err(at(&spec.save_path))?.is_some() {
        return Err(StartError::Exists(spec.save_path.clone()));
    }
    names.remove(&dir).map_err(at(&part_path))?;
    let begun = Part::create(&dir, &names.part, size, count).and_then(|part| {
        let journal = Journal::create(head, Arc::clone(&dir), Names::of(&spec.id), &[])?;
        Ok(Begun { journal, is_new: true, part: Some(Arc::new(part)), list: None, good: vec![false; count] })
    });
    begun.map_err(|error| {
        // A fetch that did not begin leaves nothing.
        if let Err(error) = names.remove(&dir) {
            warn!("{}: what could not be begun stays: {error}", part_path.display());
        }
        at(folder)(error)
    })
}

impl Journal {
    /// Writes a journal under another name and puts it in the place of the one before, if there is one. It is synced
    /// once it has a list: before that there is nothing that a power cut could take.
    fn create(head: Head, dir: Arc<HeldDir>, names: Names, list: &[Digest]) -> io::Result<Journal> {
        let line = head.line()?;
        let key = record_key(&line);
        let mut bytes = line;
        bytes.extend(list.iter().flat_map(|digest| digest.0));
        dir.remove(&names.new)?;
        let mut file = dir.file(&names.new, How::Create)?;
        let written = file.write_all(&bytes).and_then(|()| if head.listed { file.sync_data() } else { Ok(()) });
        if let Err(error) = written.and_then(|()| dir.replace(&names.new, &names.journal)) {
            // Room that a full disk can do with.
            dir.remove(&names.new)?;
            return Err(error);
        }
        if head.listed {
            dir.sync()?;
        }
        let end = bytes.len() as u64;
        Ok(Journal { head, dir, names, file, key, end })
    }

    /// From now on pieces can be noted. Nothing is done if the list stands there already.
    pub(super) fn set_list(&mut self, list: &[Digest]) -> io::Result<()> {
        if !self.head.listed {
            let head = Head { listed: true, ..self.head.clone() };
            *self = Journal::create(head, Arc::clone(&self.dir), Names::of(&self.head.id), list)?;
        }
        Ok(())
    }

    /// Notes that pieces are good; they must be synced. (The note itself need not be: without it they are
    /// fetched again.)
    pub(super) fn append(&mut self, pieces: &mut [usize]) -> io::Result<()> {
        if !self.head.listed {
            // A record would stand where the list belongs.
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

    /// Notes that the file is whole, where no pieces say so: who finds the journal still here, and the file in its
    /// place, knows that it is ours.
    fn note_whole(&self) -> io::Result<()> {
        if self.head.listed {
            return Ok(());
        }
        self.write_at_end(&record(WHOLE, 0, &self.key))
    }

    fn write_at_end(&self, records: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::Start(self.end))?;
        file.write_all(records)
    }

    /// Puts the whole and synced file in its place, and the journal away.
    pub(super) fn finish(&self, part: Option<&Part>) -> io::Result<()> {
        if let Some(part) = part {
            part.file.sync_all()?;
            self.note_whole()?;
            self.dir.place(&part.name, &self.head.save_as)?;
        }
        self.dir.sync()?;
        self.dir.remove(&self.names.journal)
    }

    /// Puts everything away.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.names.remove(&self.dir)
    }
}
