//! File transfer between peers: serving published files, and fetching those of others. See `docs/spec/share.md`.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::pieces::FileDigests;
use super::wire::{FileEntry, FileName, HostEntry, Seconds};

mod context;
mod fetch;
mod fetch_worker;
mod part_file;
mod pass_on_drop;
pub mod plan;
mod progress;
mod saver;
mod sendfile;
mod server;
mod source_connection;
mod speed;
mod verifier;
pub mod wire;

pub use context::{FetchContext, FetchTiming};
pub use fetch::Fetch;
pub use fetch_worker::FetchAction;
pub use part_file::{FetchSpec, StartFetchError, discard_leftovers, find_interrupted};
pub use progress::{FetchProgress, FetchStatus};
pub use server::{PeerServer, PeerServerLimits};

use super::wire::Digest;

/// Times closer than this are equal: a number that passed through JSON may come back with another last digit.
const SAME_TIME_S: f64 = 1e-3;

pub trait FileProvider: Send + Sync {
    /// Opens the published file of that name. The name comes from a stranger and can be any bytes.
    fn open(&self, name: &[u8]) -> Result<ServedFile, FileUnavailable>;
}

#[derive(Debug)]
pub struct ServedFile {
    /// A regular file, opened for this request alone: the server moves its position.
    pub file: File,
    /// Size at the time of publishing.
    pub size: u64,
    /// Modification time when the file was last found to be as published. The server compares time and size before,
    /// during and after sending: if either differs, it is not the file that was published.
    pub modified: SystemTime,
    /// The digests of its content; none until it has been hashed.
    pub pieces: Option<Arc<FileDigests>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileUnavailable {
    NotFound,
    /// It has been moved, deleted or changed since it was published.
    Moved,
}

pub trait SourceFinder: Send + Sync {
    /// The hosts that currently publish the file, except ourselves and hosts that must not be contacted. Called
    /// repeatedly during a fetch, on a thread of its own; may block. An error says why, in words for users.
    fn find_hosts(&self, fname: &FileName) -> Result<Vec<HostEntry>, String>;
}

/// Identifies the content being fetched: different content under the same name is a different file. Serialized, it is
/// part of a journal's header.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ContentIdentity {
    pub size: u64,
    /// Modification time at the host that was chosen.
    #[serde(with = "part_file::seconds_as_text")]
    pub modified: Seconds,
    /// BLAKE3 of the whole content, if known.
    pub blake3: Option<Digest>,
    /// BLAKE3 of the list of the pieces' digests, if known.
    pub pieces_root: Option<Digest>,
}

impl ContentIdentity {
    pub fn of(entry: &FileEntry) -> ContentIdentity {
        let FileEntry { size, modified, blake3, pieces_root, .. } = *entry;
        ContentIdentity { size, modified, blake3, pieces_root }
    }

    /// Whether there is a digest to verify it by.
    pub fn is_known(&self) -> bool {
        self.blake3.is_some() || self.pieces_root.is_some()
    }

    /// Whether an entry describes this content: by its digests or, if none are known, by size and modification time.
    pub fn matches(&self, entry: &FileEntry) -> bool {
        // Content received as a whole without any digest of the whole could not be verified.
        let can_be_checked = self.blake3.is_some() || entry.has_range();
        let same_digests = can_be_checked && self.blake3 == entry.blake3 && self.pieces_root == entry.pieces_root;
        let is_whole_known = self.blake3.is_some() && self.blake3 == entry.blake3;
        self.size == entry.size
            && if self.is_known() {
                same_digests || (is_whole_known && (self.pieces_root.is_none() || entry.pieces_root.is_none()))
            } else {
                (self.modified.get() - entry.modified.get()).abs() < SAME_TIME_S
            }
    }

    /// Whether a host may have this content but has no digests yet, because it is still hashing the file.
    pub fn may_match(&self, entry: &FileEntry) -> bool {
        self.is_known() && self.size == entry.size && entry.blake3.is_none() && entry.pieces_root.is_none()
    }

    /// Whether a host that has this content serves it in verifiable pieces.
    pub fn offers_pieces(&self, entry: &FileEntry) -> bool {
        self.pieces_root.is_some() && self.pieces_root == entry.pieces_root && entry.has_range()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::blake3_digest;

    fn entry(size: u64, modified: f64, digests: Option<&[u8]>, root: Option<&[u8]>) -> FileEntry {
        FileEntry {
            size,
            modified: Seconds::new(modified).unwrap(),
            created: None,
            published_at: None,
            is_published: true,
            blake3: digests.map(blake3_digest),
            pieces_root: root.map(blake3_digest),
            features: Arc::new(["range".into()]),
        }
    }

    #[test]
    fn the_same_content_is_told_by_digests_or_by_size_and_time() {
        let full = entry(5, 1.0, Some(b"a"), Some(b"r"));
        let of = ContentIdentity::of(&full);
        assert!(of.matches(&entry(5, 2.0, Some(b"a"), Some(b"r"))));
        assert!(of.matches(&entry(5, 2.0, Some(b"a"), None)), "one who knows only GET");
        assert!(!of.offers_pieces(&entry(5, 2.0, Some(b"a"), None)));
        assert!(of.offers_pieces(&full));
        for other in [
            entry(6, 1.0, Some(b"a"), Some(b"r")),
            entry(5, 1.0, Some(b"b"), Some(b"r")),
            entry(5, 1.0, Some(b"a"), Some(b"s")),
            entry(5, 1.0, None, None),
        ] {
            assert!(!of.matches(&other), "{other:?}");
        }
        let no_whole = entry(5, 1.0, None, Some(b"r"));
        let get_only = FileEntry { features: Arc::new([]), ..no_whole.clone() };
        assert!(
            ContentIdentity::of(&no_whole).matches(&no_whole) && !ContentIdentity::of(&no_whole).matches(&get_only)
        );
        assert!(of.may_match(&entry(5, 9.0, None, None)), "it is read anew");
        assert!(!of.may_match(&entry(6, 1.0, None, None)) && !of.may_match(&entry(5, 1.0, Some(b"b"), None)));
        let bare = ContentIdentity::of(&entry(5, 1.0, None, None));
        assert!(!bare.may_match(&entry(5, 2.0, None, None)));
        assert!(bare.matches(&entry(5, 1.0, None, None)) && bare.matches(&full));
        assert!(!bare.matches(&entry(5, 1.5, None, None)) && !bare.matches(&entry(6, 1.0, None, None)));
        assert!(!bare.offers_pieces(&full), "nothing would check the pieces");
    }
}
