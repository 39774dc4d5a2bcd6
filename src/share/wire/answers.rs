//! What the registry answers: one JSON object a line. Long ones are written piece by piece by the server; here
//! are their parts, the short ones whole, and what a client reads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Digest, FILE_SIZE_MAX, FileEntry, FileName, HostEntry, Seconds, requests};
use crate::model::{Name, Token};

/// Done.
pub const OK: &[u8] = b"{\"status\":\"OK\"}";
/// Taken.
pub const ACK: &[u8] = b"{\"status\":\"ACK\"}";
/// The host is there.
pub const ALIVE: &[u8] = b"{\"status\":\"ALIVE\"}";
/// The host is not there.
pub const DEAD: &[u8] = b"{\"status\":\"DEAD\"}";
/// Nobody has it.
pub const NOT_FOUND: &[u8] = b"{\"status\":\"NOTFOUND\",\"hosts\":[]}";

/// A refusal.
pub fn error(reason: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Refused<'a> {
        status: &'a str,
        reason: &'a str,
    }
    json(&Refused { status: "ERROR", reason })
}

/// The answer of REGISTER: the secret, and the address under which the host is shown.
pub fn registered(resume: &Token, ip: IpAddr) -> Vec<u8> {
    #[derive(Serialize)]
    struct Registered<'a> {
        status: &'a str,
        resume: &'a Token,
        ip: IpAddr,
    }
    json(&Registered { status: "OK", resume, ip })
}

/// JSON of what is nothing but texts and numbers: writing those to memory cannot fail.
pub(in crate::share) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Any answer, as a client reads it; which fields are there depends on what was asked.
#[derive(Debug, Deserialize)]
pub(in crate::share) struct Answer {
    pub(in crate::share) status: String,
    pub(in crate::share) reason: Option<String>,
    pub(in crate::share) resume: Option<Token>,
    pub(in crate::share) hosts: Option<Vec<Held>>,
    pub(in crate::share) files: Option<BTreeMap<FileName, FileEntry>>,
    pub(in crate::share) addr: Option<(IpAddr, u16)>,
    pub(in crate::share) total: Option<u64>,
    pub(in crate::share) registry: Option<BTreeMap<Name, Listed>>,
    pub(in crate::share) version: Option<u64>,
    pub(in crate::share) changes: Option<Vec<Changed>>,
    #[serde(default)]
    pub(in crate::share) reset: bool,
}

/// A change as CHANGES shows it: of a host, or of a file of a host.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Changed {
    /// Whose it is.
    pub hostname: Name,
    /// The name for people.
    pub display_name: Name,
    /// Where its peer port is.
    pub addr: (IpAddr, u16),
    /// Of which file; without it, of the host itself.
    pub fname: Option<FileName>,
    /// What is shown from now on; none of what is gone. A host that is there has none and is not gone.
    #[serde(default, deserialize_with = "given")]
    pub entry: Option<Option<FileEntry>>,
}

impl Changed {
    /// Whether it is the host itself that is not there any more.
    pub fn is_host_gone(&self) -> bool {
        self.fname.is_none() && self.entry == Some(None)
    }
}

/// A field that is there, be it null.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The answer of CHANGES.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// The number of the last change that it tells of.
    pub version: u64,
    /// What has changed; none where the whole list is to be read instead.
    pub changes: Option<Vec<Changed>>,
}

/// A host as LIST shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Listed {
    /// Where its peer port is.
    pub addr: (IpAddr, u16),
    /// The name for people; a registry that knows none gives none.
    pub display_name: Option<Name>,
    /// Its published files.
    pub files: BTreeMap<FileName, FileEntry>,
    /// When it was last heard.
    pub last_seen: Option<Seconds>,
    /// Since when it is registered.
    pub connected_at: Option<Seconds>,
}

/// The answer of LIST.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// How many hosts there are in all.
    pub total: u64,
    /// Those that were asked for.
    pub registry: BTreeMap<Name, Listed>,
}

#[derive(Deserialize)]
struct EntryFields {
    size: u64,
    modified: Seconds,
    created: Option<Seconds>,
    published_at: Option<Seconds>,
    /// A registry shows nothing else.
    #[serde(default = "yes")]
    is_published: bool,
    blake3: Option<Digest>,
    pieces_root: Option<Digest>,
    #[serde(default)]
    features: Vec<String>,
}

fn yes() -> bool {
    true
}

impl TryFrom<EntryFields> for FileEntry {
    type Error = String;

    fn try_from(fields: EntryFields) -> Result<FileEntry, String> {
        if fields.size > FILE_SIZE_MAX {
            return Err(format!("size: expected at most {FILE_SIZE_MAX} bytes"));
        }
        Ok(FileEntry {
            size: fields.size,
            modified: fields.modified,
            created: fields.created,
            published_at: fields.published_at,
            is_published: fields.is_published,
            blake3: fields.blake3,
            pieces_root: fields.pieces_root,
            features: requests::features(fields.features).map_err(|error| format!("features: {error}"))?,
        })
    }
}

impl<'de> Deserialize<'de> for FileEntry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<FileEntry, D::Error> {
        FileEntry::try_from(EntryFields::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for HostEntry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<HostEntry, D::Error> {
        Held::deserialize(deserializer).map(|held| held.host)
    }
}

/// A host that has a file, and the file's name there, where that was not what was asked for.
#[derive(Debug)]
pub(in crate::share) struct Held {
    pub(in crate::share) fname: Option<FileName>,
    pub(in crate::share) host: HostEntry,
}

/// A file that is like the one that was asked for, as the registry shows it.
#[derive(Debug, Serialize)]
pub(in crate::share) struct Alike<'a> {
    pub(in crate::share) fname: &'a FileName,
    #[serde(flatten)]
    pub(in crate::share) host: &'a HostEntry,
}

impl<'de> Deserialize<'de> for Held {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Held, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            fname: Option<FileName>,
            hostname: Name,
            display_name: Option<String>,
            ip: IpAddr,
            port: u16,
            #[serde(flatten)]
            file: EntryFields,
        }
        let fields = Fields::deserialize(deserializer)?;
        let file = FileEntry::try_from(fields.file).map_err(serde::de::Error::custom)?;
        let display_name = fields.display_name.unwrap_or_else(|| fields.hostname.as_str().to_owned());
        let host = HostEntry {
            hostname: fields.hostname,
            display_name: display_name.into(),
            ip: fields.ip,
            port: fields.port,
            file: Arc::new(file),
        };
        Ok(Held { fname: fields.fname, host })
    }
}
