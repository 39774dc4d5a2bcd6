//! One tracked file: what is stored of it, and its forms for the registry and for its owner.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::Millis;
use crate::share::unix_time::{unix_ns, unix_seconds, unix_seconds_of};
use crate::share::wire::{Digest, FileEntry, FileName, RANGE_FEATURE};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFile {
    /// The name under which it is or can be published.
    pub name: FileName,
    /// Path and metadata at the last check.
    pub stat: FileStat,
    pub added_at: Millis,
    pub is_published: bool,
    pub published_at: Option<Millis>,
    /// BLAKE3 of the whole content, once it was hashed.
    pub blake3: Option<Digest>,
    /// BLAKE3 of its piece digests, once it was hashed.
    pub pieces_root: Option<Digest>,
    /// Since when a check has found no file at its path.
    pub missing_since: Option<Millis>,
}

impl TrackedFile {
    pub fn entry(&self) -> FileEntry {
        let has_pieces = self.pieces_root.is_some();
        FileEntry {
            size: self.stat.size,
            modified: unix_seconds(self.stat.modified_ns),
            created: self.stat.created_ns.map(unix_seconds),
            published_at: self.published_at.map(unix_seconds_of),
            is_published: self.is_published,
            blake3: self.blake3,
            pieces_root: self.pieces_root,
            features: if has_pieces { Arc::new([RANGE_FEATURE.into()]) } else { Arc::new([]) },
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "size": self.stat.size,
            "modified": unix_seconds(self.stat.modified_ns),
            "created": self.stat.created_ns.map(unix_seconds),
            "path": self.stat.path.to_string_lossy(),
            "is_published": self.is_published,
            "added_at": unix_seconds_of(self.added_at),
            "published_at": self.published_at.map(unix_seconds_of),
            "blake3": self.blake3,
            "pieces_root": self.pieces_root,
            "missing": self.missing_since.is_some(),
        })
    }

    /// Checks whether there is no file at its path. If that cannot be determined, the last result holds.
    pub fn is_missing(&self) -> bool {
        match fs::symlink_metadata(&self.stat.path) {
            Ok(found) => !found.is_file(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => true,
            Err(_) => self.missing_since.is_some(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// Its resolved path.
    pub path: PathBuf,
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Creation time, nanoseconds since 1970, if the file system has it.
    pub created_ns: Option<i64>,
}

impl FileStat {
    pub fn of(path: &Path, metadata: &Metadata) -> FileStat {
        FileStat {
            path: path.to_owned(),
            size: metadata.len(),
            modified_ns: metadata.modified().map_or(0, unix_ns),
            created_ns: metadata.created().ok().map(unix_ns),
        }
    }
}
