//! The registry's responses: one JSON object per line. The server writes long ones in parts; this file has those parts,
//! the short responses, and the types that a client reads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Digest, FILE_SIZE_MAX, FileEntry, FileName, HostEntry, Seconds, features};
use crate::model::{Name, Token};

/// The request was carried out.
pub const OK: &[u8] = b"{\"status\":\"OK\"}";
/// The published or unpublished file was accepted.
pub const ACK: &[u8] = b"{\"status\":\"ACK\"}";
pub const ALIVE: &[u8] = b"{\"status\":\"ALIVE\"}";
pub const DEAD: &[u8] = b"{\"status\":\"DEAD\"}";
/// No host has such a file.
pub const NOT_FOUND: &[u8] = b"{\"status\":\"NOTFOUND\",\"hosts\":[]}";

/// The response to a refused request.
pub fn error_response(reason: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct ErrorResponse<'a> {
        status: &'a str,
        reason: &'a str,
    }
    to_json(&ErrorResponse { status: "ERROR", reason })
}

/// The response with status OK and these fields.
pub fn ok_response(fields: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct OkResponse<'a, F> {
        status: &'a str,
        #[serde(flatten)]
        fields: &'a F,
    }
    to_json(&OkResponse { status: "OK", fields })
}

/// Serializes a value of only strings and numbers, which cannot fail.
pub(in crate::share) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// What all responses have.
#[derive(Debug, Deserialize)]
pub(in crate::share) struct ResponseHead<'a> {
    #[serde(borrow)]
    pub(in crate::share) status: Cow<'a, str>,
    pub(in crate::share) reason: Option<String>,
}

/// A response that says no more than its status.
#[derive(Debug, Deserialize)]
pub struct EmptyAnswer {}

/// The response to REGISTER.
#[derive(Debug, Serialize, Deserialize)]
pub struct RegisterAnswer {
    /// The secret that gets the hostname back; an older registry issues none.
    pub resume: Option<Token>,
    /// The address under which the host is listed, which clients do not need.
    #[serde(skip_deserializing)]
    pub ip: Option<IpAddr>,
}

/// The response to REQUEST.
#[derive(Debug, Deserialize)]
pub struct HoldersAnswer {
    pub(in crate::share) hosts: Option<Vec<FileHolder>>,
}

/// The response to DISCOVER.
#[derive(Debug, Deserialize)]
pub struct DiscoverAnswer {
    pub(in crate::share) files: Option<BTreeMap<FileName, FileEntry>>,
    pub(in crate::share) addr: Option<(IpAddr, u16)>,
}

/// The response to LIST, as it comes.
#[derive(Debug, Deserialize)]
pub struct ListAnswer {
    pub(in crate::share) total: Option<u64>,
    pub(in crate::share) registry: Option<BTreeMap<Name, ListedHost>>,
}

/// The response to CHANGES, as it comes.
#[derive(Debug, Deserialize)]
pub struct ChangesAnswer {
    pub(in crate::share) version: Option<u64>,
    pub(in crate::share) changes: Option<Vec<ChangeEntry>>,
    #[serde(default)]
    pub(in crate::share) reset: bool,
}

/// The response to PING.
#[derive(Debug, Deserialize)]
pub struct PingAnswer {
    pub(in crate::share) status: String,
}

/// A change in the response to CHANGES: of a host, or of one of its files.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ChangeEntry {
    pub hostname: Name,
    pub display_name: Name,
    pub addr: (IpAddr, u16),
    /// Absent if the host itself has changed.
    pub fname: Option<FileName>,
    /// The file's current entry, or `Some(None)` for what is no longer listed. Absent for a host that is listed.
    #[serde(default, deserialize_with = "present")]
    pub entry: Option<Option<FileEntry>>,
}

impl ChangeEntry {
    /// Whether the host itself is no longer listed.
    pub fn is_host_gone(&self) -> bool {
        self.fname.is_none() && self.entry == Some(None)
    }
}

/// For a field that is present, even if it is null.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The response to CHANGES.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangesResponse {
    /// The number of the last change included.
    pub version: u64,
    /// `None` if the whole list must be read instead.
    pub changes: Option<Vec<ChangeEntry>>,
}

/// A host in the response to LIST.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ListedHost {
    pub addr: (IpAddr, u16),
    /// An older registry sends none.
    pub display_name: Option<Name>,
    pub files: BTreeMap<FileName, FileEntry>,
    pub last_seen: Option<Seconds>,
    pub connected_at: Option<Seconds>,
}

/// The response to LIST.
#[derive(Debug, Clone, PartialEq)]
pub struct ListResponse {
    /// The number of all hosts.
    pub total: u64,
    pub registry: BTreeMap<Name, ListedHost>,
}

/// A file as it is read.
#[derive(Deserialize)]
pub(super) struct EntryFields {
    size: u64,
    modified: Seconds,
    created: Option<Seconds>,
    published_at: Option<Seconds>,
    /// Absent in responses, which contain only published files.
    #[serde(default = "default_true")]
    is_published: bool,
    blake3: Option<Digest>,
    pieces_root: Option<Digest>,
    #[serde(default)]
    features: Vec<String>,
}

fn default_true() -> bool {
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
            features: features(fields.features).map_err(|error| format!("features: {error}"))?,
        })
    }
}

/// A host that has a file, and the file's name if it was not the one requested.
#[derive(Debug)]
pub(in crate::share) struct FileHolder {
    pub(in crate::share) fname: Option<FileName>,
    pub(in crate::share) host: HostEntry,
}

/// A file that is similar to the requested one, as the registry sends it.
#[derive(Debug, Serialize)]
pub(in crate::share) struct SimilarFile<'a> {
    pub(in crate::share) fname: &'a FileName,
    #[serde(flatten)]
    pub(in crate::share) host: &'a HostEntry,
}

impl<'de> Deserialize<'de> for FileHolder {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<FileHolder, D::Error> {
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
        let Fields { fname, hostname, ip, port, .. } = fields;
        let host = HostEntry { hostname, display_name: display_name.into(), ip, port, file: Arc::new(file) };
        Ok(FileHolder { fname, host })
    }
}
