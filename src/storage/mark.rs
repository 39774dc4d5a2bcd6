//! The mark beside a store: the number of its newest change that is known to be on disk.
//!
//! A store whose log was lost or damaged is a whole, older store to SQLite. So each store counts, in a row of
//! its own, and about once a second the count whose transaction has been synced is written beside it. The mark
//! itself is never synced: whatever a power cut makes of it, it is never ahead of the store, and one that cannot
//! be read says nothing. A store that holds less than its mark has lost something.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::files;

/// Behind the name of the store's file.
pub(super) const ENDING: &str = "-mark";
const HEAD: &str = "p2s2-mark 1";
/// Always the same length, within one sector of a disk: it is written over in place.
const BYTES: usize = HEAD.len() + 1 + 32 + 1 + 20 + 1 + 16 + 1;

/// What a mark says of the store with this id: the change of this number is on disk.
fn line(id: &str, number: u64) -> String {
    let text = format!("{HEAD} {id} {number:020}");
    let sum = blake3::hash(text.as_bytes()).to_hex();
    format!("{text} {}\n", &sum[..16])
}

/// The number that stands in a mark, if it is whole and of the store with this id.
fn parse(bytes: &[u8], id: &str) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number = text.strip_prefix(HEAD)?.get(1 + 32 + 1..1 + 32 + 1 + 20)?.parse().ok()?;
    (text == line(id, number)).then_some(number)
}

/// The file of a store's mark.
pub(super) fn path_of(store: &Path) -> PathBuf {
    files::beside(store, ENDING)
}

/// What there is of a store's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The change of this number is on disk.
    Number(u64),
    /// It is torn, garbled or of another store, which a power cut may leave: it says nothing.
    Unreadable,
    /// There is none. Where there was one, that is no power cut: it is made durably, and then written in its place.
    Missing,
}

/// Reads a store's mark. One that cannot be read is told as a warning.
pub(super) fn read(store: &Path, id: &str) -> Found {
    let path = path_of(store);
    match files::read_up_to(&path, BYTES as u64 + 1) {
        Ok(bytes) => {
            let number = parse(&bytes, id);
            if number.is_none() {
                log::warn!(
                    "{}: it cannot be read as the mark of this store (a power cut?): it is made anew, and whether \
                     the store has lost its newest changes is not known this once",
                    path.display()
                );
            }
            number.map_or(Found::Unreadable, Found::Number)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Missing,
        Err(error) => {
            log::warn!("{}: {error}: whether the store has lost its newest changes is not known", path.display());
            Found::Unreadable
        }
    }
}

/// Makes a store's mark where there is none, durably.
///
/// # Errors
/// The system's.
pub(super) fn create(store: &Path, id: &str, number: u64) -> io::Result<()> {
    let mut file = files::private().write(true).create(true).truncate(true).open(path_of(store))?;
    file.write_all(line(id, number).as_bytes())?;
    file.sync_all()?;
    files::parent_of(store).map_or(Ok(()), files::sync_dir)
}

/// Removes a store's mark, durably: what the store holds is all that is asked of it.
pub(super) fn remove(store: &Path) -> io::Result<()> {
    match std::fs::remove_file(path_of(store)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => files::parent_of(store).map_or(Ok(()), files::sync_dir),
    }
}

/// A store's mark, as its writer keeps it.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    id: String,
    /// Opened when it is first written, and again after a failure.
    file: Option<File>,
    /// A failure is told once until it works again: the disk's own errors are told elsewhere.
    has_failed: bool,
}

impl Mark {
    pub(super) fn new(store: &Path, id: String) -> Mark {
        Mark { path: path_of(store), id, file: None, has_failed: false }
    }

    /// Says that the change of this number is on disk. It is written and not synced.
    pub(super) fn set(&mut self, number: u64) {
        match self.write(number) {
            Ok(()) => self.has_failed = false,
            Err(error) => {
                self.file = None;
                if !std::mem::replace(&mut self.has_failed, true) {
                    log::warn!(
                        "{}: {error}: a loss of the store's newest changes would not be seen",
                        self.path.display()
                    );
                }
            }
        }
    }

    fn write(&mut self, number: u64) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                let mut options = files::private();
                // What is no file is not waited for.
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
                let file = options.write(true).create(true).truncate(false).open(&self.path)?;
                // Of another length it would never be whole again.
                if file.metadata()?.len() > BYTES as u64 {
                    file.set_len(BYTES as u64)?;
                }
                empty.insert(file)
            }
        };
        let line = line(&self.id, number);
        debug_assert_eq!(line.len(), BYTES);
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
        assert_eq!(read(&store, id), Found::Missing);
        let mut mark = Mark::new(&store, id.to_owned());
        for number in [0, 1, 987_654_321, u64::MAX] {
            mark.set(number);
            assert_eq!(read(&store, id), Found::Number(number));
        }
        assert_eq!(read(&store, "f".repeat(32).as_str()), Found::Unreadable, "of another store");
        let whole = std::fs::read(path_of(&store)).unwrap();
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length], id), None, "{length}");
        }
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            assert_eq!(parse(&flipped, id), None, "{place}");
        }
        // What a power cut has made longer is a mark again once it is written.
        std::fs::write(path_of(&store), [&whole[..], &[0; 400]].concat()).unwrap();
        assert_eq!(read(&store, id), Found::Unreadable);
        Mark::new(&store, id.to_owned()).set(7);
        assert_eq!(read(&store, id), Found::Number(7));
    }
}
