//! The journal of a fetch; its form is described in [`part_file`](super).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FetchFileNames, FetchSpec, PartFile, is_valid_id};
use crate::share::dir_handle::{DirHandle, OpenMode};
use crate::share::pieces::{PieceLayout, blake3_digest, digests_root};
use crate::share::transfer::ContentIdentity;
use crate::share::wire::{Digest, FILE_SIZE_MAX, FileName};

/// Most bytes of a journal: its header, and a digest and a record for each piece.
const JOURNAL_MAX: u64 = 16 * 1024 + 8192 * 48;
const RECORD_BYTES: usize = 16;
/// First piece of the record which says, in a journal without a piece list, that the file is complete.
const WHOLE_MARKER: usize = u32::MAX as usize;

/// The journal's file, owned by the saver's thread.
#[derive(Debug)]
pub(in crate::share::transfer) struct Journal {
    header: JournalHeader,
    dir: Arc<DirHandle>,
    names: FetchFileNames,
    file: File,
    /// The digest of the header's line, by which records are checked.
    key: [u8; 32],
    /// Offset of the next record: one that was torn by a full disk is overwritten.
    end: u64,
}

impl Journal {
    /// Writes a journal under another name and replaces the former one with it. It is synced only if it has a piece
    /// list: before that there is nothing to lose in a power cut.
    pub(super) fn create(
        header: JournalHeader,
        dir: Arc<DirHandle>,
        names: FetchFileNames,
        piece_list: &[Digest],
    ) -> io::Result<Journal> {
        let line = header.to_line()?;
        let key = blake3_digest(&line).0;
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

    pub(super) fn resume(
        header: JournalHeader,
        dir: Arc<DirHandle>,
        names: FetchFileNames,
        end: u64,
    ) -> io::Result<Journal> {
        let file = dir.open_file(&names.journal, OpenMode::Write)?;
        // Cut off a torn record, so that the next ones follow directly.
        file.set_len(end)?;
        let key = blake3_digest(&header.to_line()?).0;
        Ok(Journal { header, dir, names, file, key, end })
    }

    /// Stores the piece list, after which pieces can be recorded. Does nothing if the journal has it already.
    pub fn set_list(&mut self, piece_list: &[Digest]) -> io::Result<()> {
        if !self.header.listed {
            let header = JournalHeader { listed: true, ..self.header.clone() };
            *self = Journal::create(header, Arc::clone(&self.dir), FetchFileNames::of(&self.header.id), piece_list)?;
        }
        Ok(())
    }

    /// Records pieces, which must be synced. (The record itself is not synced: if it is lost, they are fetched again.)
    pub fn append(&mut self, pieces: &mut [usize]) -> io::Result<()> {
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

    fn write_at_end(&self, records: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::Start(self.end))?;
        file.write_all(records)
    }

    pub fn finish(&self, part: Option<&PartFile>) -> io::Result<()> {
        if let Some(part) = part {
            part.file.sync_all()?;
            if !self.header.listed {
                // After a crash, this tells that the file found at the destination is ours.
                self.write_at_end(&record(WHOLE_MARKER, 0, &self.key))?;
            }
            self.dir.rename_exclusively(&part.name, &self.header.save_as)?;
        }
        self.dir.sync()?;
        self.dir.remove(&self.names.journal)
    }

    pub fn discard(&self) -> io::Result<()> {
        self.names.remove(&self.dir)
    }
}

/// The journal's first line, which identifies the fetch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JournalHeader {
    pub version: u32,
    pub id: String,
    pub fname: FileName,
    pub hostname: String,
    /// The name of the finished file, in the journal's own folder.
    pub save_as: String,
    #[serde(flatten)]
    pub content: ContentIdentity,
    pub listed: bool,
    /// [`FetchSpec::is_owner_named`]; journals of earlier versions lack it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owner_named: bool,
}

/// Stores a time as text, so that it is read back exactly: a JSON number may come back with another last digit.
pub(in crate::share::transfer) mod seconds_as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::share::wire::Seconds;

    pub fn serialize<S: Serializer>(seconds: &Seconds, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&seconds.get())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        let text = String::deserialize(deserializer)?;
        Seconds::new(text.parse().map_err(Error::custom)?).map_err(Error::custom)
    }
}

impl JournalHeader {
    const VERSION: u32 = 1;

    pub fn of(spec: &FetchSpec, save_as: &str) -> JournalHeader {
        JournalHeader {
            version: JournalHeader::VERSION,
            id: spec.id.clone(),
            fname: spec.fname.clone(),
            hostname: spec.hostname.clone(),
            save_as: save_as.to_owned(),
            content: spec.content,
            listed: false,
            owner_named: spec.is_owner_named,
        }
    }

    pub fn spec(&self, dir: &Path) -> FetchSpec {
        FetchSpec {
            id: self.id.clone(),
            fname: self.fname.clone(),
            hostname: self.hostname.clone(),
            save_path: dir.join(&self.save_as),
            content: self.content,
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
            && self.content.size <= FILE_SIZE_MAX
            && Path::new(&self.save_as).file_name().is_some_and(|name| name == self.save_as.as_str())
    }
}

pub(super) struct JournalContents {
    pub header: JournalHeader,
    pub piece_list: Option<Vec<Digest>>,
    pub synced_pieces: Vec<bool>,
    /// The file is complete, and perhaps in its final place already.
    pub is_whole: bool,
    /// Offset of the next record.
    pub end: u64,
}

/// Reads a journal. None: it is not a journal, or one of another version.
pub(super) fn read_journal(dir: &DirHandle, name: &str) -> io::Result<Option<JournalContents>> {
    let mut bytes = Vec::new();
    dir.open_file(name, OpenMode::Read)?.take(JOURNAL_MAX).read_to_end(&mut bytes)?;
    let Some(line_end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let (line, rest) = bytes.split_at(line_end + 1);
    let Ok(header) = serde_json::from_slice::<JournalHeader>(line) else { return Ok(None) };
    if !header.is_valid() {
        return Ok(None);
    }
    let count = PieceLayout::of(header.content.size).count();
    let key = blake3_digest(line).0;
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
    let piece_list: Vec<Digest> =
        piece_list.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok().map(Digest)).collect();
    if Some(digests_root(&piece_list)) != contents.header.content.pieces_root {
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
