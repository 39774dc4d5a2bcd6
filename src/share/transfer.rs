//! Files on their way from peer to peer: serving what is published, fetching what others publish.
//! SPEC.md section 6, "Peer to peer" and "Fetching".
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | what peers say to each other |
//! | `server.rs` | [`PeerServer`]: GET, META and RANGE, a thread per connection, straight from the page cache |
//! | `sendfile.rs` | from file to socket without passing through this process |
//! | `plan.rs` | which piece is asked of whom next: the rules, without sockets or files |
//! | `speed.rs` | how fast it goes, and how long it will take |
//! | `part.rs` | the unfinished file and the journal of its good pieces |
//! | `checker.rs` | hashing beside the writing |
//! | `lane.rs` | one connection to one host |
//! | `keeper.rs` | syncing on a thread of its own |
//! | `fetch.rs` | [`Fetch`]: the threads of one fetch around its plan |

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use super::pieces::Pieces;
use super::wire::{FileEntry, FileName, HostEntry, Seconds};

mod checker;
mod fetch;
mod keeper;
mod lane;
mod part;
pub mod plan;
mod sendfile;
mod server;
mod speed;
pub mod wire;

pub use fetch::{Fetch, Floor, Pace, Progress, Status, Told};
pub use part::{FetchSpec, StartError, discard_left, interrupted, left_of};
pub use server::{Limits, PeerServer};

use super::wire::Digest;

/// Times closer than this are the same: through JSON a number may come with another last digit.
const SAME_TIME_S: f64 = 1e-3;

/// What a peer server may send.
pub trait Published: Send + Sync {
    /// Opens the published file of that name, whatever bytes a stranger may have sent as a name.
    ///
    /// # Errors
    /// Why it is not to be had.
    fn open(&self, name: &[u8]) -> Result<Offer, NotServed>;
}

/// A published file, opened for one request.
#[derive(Debug)]
pub struct Offer {
    /// The file: regular, opened for this request alone (its position is the server's to move).
    pub file: File,
    /// Its size when it was published.
    pub size: u64,
    /// What the file system gave as its time of change when it was found to be as published. The server looks
    /// again before, during and after sending: with any other time, or size, it is not the file that was published.
    pub modified: SystemTime,
    /// What its content is checked by, once that is known.
    pub pieces: Option<Arc<Pieces>>,
}

/// Why a published file is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotServed {
    /// No file of that name is published.
    NotFound,
    /// It is no longer there, or no longer what was published.
    Moved,
    /// It is there but cannot be read.
    Unreadable,
}

/// Who has a file.
pub trait Sources: Send + Sync {
    /// The hosts that offer it at present, without ourselves and without those that may not be asked. Called on a
    /// thread of its own, as often as hosts are missing; may take its time.
    ///
    /// # Errors
    /// Why nobody can tell, for people to read.
    fn find(&self, fname: &FileName) -> Result<Vec<HostEntry>, String>;
}

/// What is known of the content that is fetched: another content under the same name is another file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// When it last changed at the host that was chosen.
    pub modified: Seconds,
    /// Of the whole.
    pub blake3: Option<Digest>,
    /// Of the list of pieces.
    pub pieces_root: Option<Digest>,
}

impl Content {
    /// As a host shows it.
    pub fn of(entry: &FileEntry) -> Content {
        Content { size: entry.size, modified: entry.modified, blake3: entry.blake3, pieces_root: entry.pieces_root }
    }

    /// Whether a host has this content, as far as can be known: the same digests, where there are none the same
    /// size and time.
    pub fn is_at(&self, entry: &FileEntry) -> bool {
        // A whole that no digest says anything about could not be checked.
        let can_be_checked = self.blake3.is_some() || entry.has_range();
        let same_digests = can_be_checked && self.blake3 == entry.blake3 && self.pieces_root == entry.pieces_root;
        let is_known = self.blake3.is_some() || self.pieces_root.is_some();
        let is_whole_known = self.blake3.is_some() && self.blake3 == entry.blake3;
        self.size == entry.size
            && if is_known {
                same_digests || (is_whole_known && (self.pieces_root.is_none() || entry.pieces_root.is_none()))
            } else {
                (self.modified.get() - entry.modified.get()).abs() < SAME_TIME_S
            }
    }

    /// Whether a host may have it and cannot tell yet: it reads the file anew, and shows no digest until it has.
    pub fn may_be_at(&self, entry: &FileEntry) -> bool {
        let is_known = self.blake3.is_some() || self.pieces_root.is_some();
        is_known && self.size == entry.size && entry.blake3.is_none() && entry.pieces_root.is_none()
    }

    /// Whether a host that has it can be asked for its pieces.
    pub fn is_in_pieces_at(&self, entry: &FileEntry) -> bool {
        self.pieces_root.is_some() && self.pieces_root == entry.pieces_root && entry.has_range()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::digest;

    fn entry(size: u64, modified: f64, digests: Option<&[u8]>, root: Option<&[u8]>) -> FileEntry {
        FileEntry {
            size,
            modified: Seconds::new(modified).unwrap(),
            created: None,
            published_at: None,
            is_published: true,
            blake3: digests.map(digest),
            pieces_root: root.map(digest),
            features: Arc::new(["range".into()]),
        }
    }

    #[test]
    fn the_same_content_is_told_by_digests_or_by_size_and_time() {
        let full = entry(5, 1.0, Some(b"a"), Some(b"r"));
        let of = Content::of(&full);
        assert!(of.is_at(&entry(5, 2.0, Some(b"a"), Some(b"r"))));
        assert!(of.is_at(&entry(5, 2.0, Some(b"a"), None)), "one who knows only GET");
        assert!(!of.is_in_pieces_at(&entry(5, 2.0, Some(b"a"), None)));
        assert!(of.is_in_pieces_at(&full));
        for other in [
            entry(6, 1.0, Some(b"a"), Some(b"r")),
            entry(5, 1.0, Some(b"b"), Some(b"r")),
            entry(5, 1.0, Some(b"a"), Some(b"s")),
            entry(5, 1.0, None, None),
        ] {
            assert!(!of.is_at(&other), "{other:?}");
        }
        let no_whole = entry(5, 1.0, None, Some(b"r"));
        let get_only = FileEntry { features: Arc::new([]), ..no_whole.clone() };
        assert!(Content::of(&no_whole).is_at(&no_whole) && !Content::of(&no_whole).is_at(&get_only));
        assert!(of.may_be_at(&entry(5, 9.0, None, None)), "it is read anew");
        assert!(!of.may_be_at(&entry(6, 1.0, None, None)) && !of.may_be_at(&entry(5, 1.0, Some(b"b"), None)));
        let bare = Content::of(&entry(5, 1.0, None, None));
        assert!(!bare.may_be_at(&entry(5, 2.0, None, None)));
        assert!(bare.is_at(&entry(5, 1.0, None, None)) && bare.is_at(&full));
        assert!(!bare.is_at(&entry(5, 1.5, None, None)) && !bare.is_at(&entry(6, 1.0, None, None)));
        assert!(!bare.is_in_pieces_at(&full), "nothing would check the pieces");
    }
}
