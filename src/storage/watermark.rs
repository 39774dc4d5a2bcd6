//! The newest generation of a store that is known to be on disk, in a file beside it.
//!
//! To SQLite, a store whose log was lost or damaged is an intact, older store. So each store has a generation number in
//! a table of its own, and about once a second the generation whose transaction has been synced is written here. A
//! store whose generation is below its watermark has lost changes. The watermark itself is never synced: whatever a
//! power cut does to it, it is never ahead of the store, and an unreadable one says nothing.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::files;

/// It stands behind the name of the store's file.
pub(super) const SUFFIX: &str = "-mark";
const HEADER: &str = "p2s2-mark 1";
/// The length is always the same, within one disk sector: the file is overwritten in place.
const LENGTH_BYTES: usize = HEADER.len() + 1 + 32 + 1 + 20 + 1 + 16 + 1;

/// Says that this generation of the store with this id is on disk.
fn encode(id: &str, generation: u64) -> String {
    let text = format!("{HEADER} {id} {generation:020}");
    let sum = blake3::hash(text.as_bytes()).to_hex();
    format!("{text} {}\n", &sum[..16])
}

/// `None` unless it is intact and belongs to the store with this id.
fn decode(bytes: &[u8], id: &str) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let generation = text.strip_prefix(HEADER)?.get(1 + 32 + 1..1 + 32 + 1 + 20)?.parse().ok()?;
    (text == encode(id, generation)).then_some(generation)
}

pub(super) fn path_of(store: &Path) -> PathBuf {
    files::with_suffix(store, SUFFIX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredWatermark {
    Generation(u64),
    /// It is torn, garbled or of another store, which a power cut may cause: it says nothing.
    Unreadable,
    /// If there was one before, a power cut cannot explain that: it is created durably and then overwritten in place.
    Missing,
}

/// An unreadable watermark is logged as a warning.
pub(super) fn read(store: &Path, id: &str) -> StoredWatermark {
    let path = path_of(store);
    match files::read_up_to(&path, LENGTH_BYTES as u64 + 1) {
        Ok(bytes) => {
            let generation = decode(&bytes, id);
            if generation.is_none() {
                log::warn!(
                    "{}: it cannot be read as the mark of this store (a power cut?): it is made anew, and whether \
                     the store has lost its newest changes is not known this once",
                    path.display()
                );
            }
            generation.map_or(StoredWatermark::Unreadable, StoredWatermark::Generation)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => StoredWatermark::Missing,
        Err(error) => {
            log::warn!("{}: {error}: whether the store has lost its newest changes is not known", path.display());
            StoredWatermark::Unreadable
        }
    }
}

/// The file is created durably.
pub(super) fn create(store: &Path, id: &str, generation: u64) -> io::Result<()> {
    let mut file = files::private_file_options().write(true).create(true).truncate(true).open(path_of(store))?;
    file.write_all(encode(id, generation).as_bytes())?;
    file.sync_all()?;
    files::parent_of(store).map_or(Ok(()), files::sync_dir)
}

/// The file is removed durably: from then on the store may hold any generation.
pub(super) fn remove(store: &Path) -> io::Result<()> {
    match std::fs::remove_file(path_of(store)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => files::parent_of(store).map_or(Ok(()), files::sync_dir),
    }
}

/// Updates the watermark of an open store.
#[derive(Debug)]
pub(super) struct WatermarkWriter {
    path: PathBuf,
    id: String,
    /// Opened at the first write, and again after a failure.
    file: Option<File>,
    /// A failure is logged once until writing works again: errors of the disk itself are reported elsewhere.
    is_failing: bool,
}

impl WatermarkWriter {
    pub(super) fn new(store: &Path, id: String) -> WatermarkWriter {
        WatermarkWriter { path: path_of(store), id, file: None, is_failing: false }
    }

    /// Records that this generation is on disk. The file is written but not synced.
    pub(super) fn set(&mut self, generation: u64) {
        match self.write(generation) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.file = None;
                if !std::mem::replace(&mut self.is_failing, true) {
                    log::warn!(
                        "{}: {error}: a loss of the store's newest changes would not be seen",
                        self.path.display()
                    );
                }
            }
        }
    }

    fn write(&mut self, generation: u64) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                let mut options = files::private_file_options();
                // A pipe or device in its place must not block.
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
                let file = options.write(true).create(true).truncate(false).open(&self.path)?;
                // A longer file would never be valid again.
                if file.metadata()?.len() > LENGTH_BYTES as u64 {
                    file.set_len(LENGTH_BYTES as u64)?;
                }
                empty.insert(file)
            }
        };
        let line = encode(&self.id, generation);
        debug_assert_eq!(line.len(), LENGTH_BYTES);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_anything_else_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("a.db");
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(read(&store, id), StoredWatermark::Missing);
        let mut writer = WatermarkWriter::new(&store, id.to_owned());
        for generation in [0, 1, 987_654_321, u64::MAX] {
            writer.set(generation);
            assert_eq!(read(&store, id), StoredWatermark::Generation(generation));
        }
        assert_eq!(read(&store, "f".repeat(32).as_str()), StoredWatermark::Unreadable, "of another store");
        let whole = std::fs::read(path_of(&store)).unwrap();
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length], id), None, "{length}");
        }
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            assert_eq!(decode(&flipped, id), None, "{place}");
        }
        // A watermark that a power cut has lengthened is valid again after the next write.
        std::fs::write(path_of(&store), [&whole[..], &[0; 400]].concat()).unwrap();
        assert_eq!(read(&store, id), StoredWatermark::Unreadable);
        WatermarkWriter::new(&store, id.to_owned()).set(7);
        assert_eq!(read(&store, id), StoredWatermark::Generation(7));
    }
}
