//! Requests to the registry: one JSON object per line, read by [`parse`] and written by [`write()`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{FileEntry, FileName, Seconds};
use crate::model::{Name, Token};

mod parsing;
#[cfg(test)]
mod tests;

pub(super) use parsing::features;
pub use parsing::parse;

/// Maximum size of a request, bytes.
pub const REQUEST_MAX: usize = 16 << 20;
/// Maximum number of files per host.
pub const FILES_MAX: usize = 100_000;
/// Maximum length of a token or secret, bytes; ours are shorter.
pub(in crate::share) const SECRET_MAX: usize = 8 * 1024;

/// A host's files by name.
pub type FileMap = BTreeMap<FileName, Arc<FileEntry>>;

/// A request to the registry.
#[derive(Debug)]
pub enum RegistryRequest {
    /// Registers a host.
    Register(Box<RegisterRequest>),
    /// Adds or changes a file of a host.
    Publish(Box<PublishRequest>),
    /// Stops listing a file.
    Unpublish(UnpublishRequest),
    /// Finds hosts that have a file.
    Request(FileRequest),
    /// Gets a host's files and address.
    Discover(HostRequest),
    /// Lists the hosts with their files.
    List(ListRequest),
    /// Gets the changes after a known point.
    Changes(ChangesRequest),
    /// Asks whether a host is live.
    Ping(PingRequest),
    /// Removes a host.
    Unregister(HostRequest),
}

/// The data of REGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct RegisterRequest {
    /// The hostname. Whether it contains only visible characters is checked by the caller, who knows the accounts: an
    /// account of an earlier version may have any name.
    pub hostname: Name,
    /// Port of the host's peer server.
    pub port: u16,
    /// Address of the peer server, if it is not the connection's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Name shown to people; defaults to the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Name>,
    /// All files. Without it there are none, or with a valid `resume` the former ones.
    #[serde(rename = "files_metadata", skip_serializing_if = "Option::is_none")]
    pub files: Option<FileMap>,
    /// Token of the user whose account has the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// The secret from the last REGISTER.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Token>,
}

/// The data of PUBLISH.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The host.
    pub hostname: Name,
    /// The file's name.
    pub fname: FileName,
    /// The file; always published.
    pub entry: Arc<FileEntry>,
}

/// The data of UNPUBLISH.
#[derive(Debug, Clone, Serialize)]
pub struct UnpublishRequest {
    /// The host.
    pub hostname: Name,
    /// The file's name.
    pub fname: FileName,
}

/// The data of REQUEST.
#[derive(Debug, Clone, Serialize)]
pub struct FileRequest {
    /// The file's name.
    pub fname: FileName,
    /// Size in bytes, when looking for duplicates: the response then has only the most similar files, each with its
    /// name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Modification time, when looking for duplicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<Seconds>,
}

/// The data of DISCOVER and UNREGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct HostRequest {
    /// The host.
    pub hostname: Name,
}

/// The data of LIST; both fields count hosts in the order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ListRequest {
    /// Number of hosts to skip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Maximum number of hosts to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Longest wait of CHANGES, seconds.
pub const WAIT_MAX_S: f64 = 25.0;

/// The data of CHANGES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ChangesRequest {
    /// Returns the changes after this number of an earlier response; without it, only the number to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// How long to wait for the first change, seconds, at most [`WAIT_MAX_S`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Seconds>,
}

/// The data of PING.
#[derive(Debug, Clone, Serialize)]
pub struct PingRequest {
    /// The host whose presence is asked for.
    pub hostname: Name,
    /// How busy the sender is; only for people who inspect the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Serializes a request as one line, without the line end.
pub fn write(request: &RegistryRequest) -> Vec<u8> {
    fn line(action: &str, data: &impl Serialize) -> Vec<u8> {
        #[derive(Serialize)]
        struct RequestLine<'a, D> {
            action: &'a str,
            data: &'a D,
        }
        // Only strings and numbers: serializing them to memory cannot fail.
        serde_json::to_vec(&RequestLine { action, data }).unwrap_or_default()
    }
    match request {
        RegistryRequest::Register(data) => line("REGISTER", data),
        RegistryRequest::Publish(data) => line("PUBLISH", data),
        RegistryRequest::Unpublish(data) => line("UNPUBLISH", data),
        RegistryRequest::Request(data) => line("REQUEST", data),
        RegistryRequest::Discover(data) => line("DISCOVER", data),
        RegistryRequest::List(data) => line("LIST", data),
        RegistryRequest::Changes(data) => line("CHANGES", data),
        RegistryRequest::Ping(data) => line("PING", data),
        RegistryRequest::Unregister(data) => line("UNREGISTER", data),
    }
}

impl Serialize for PublishRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct FlatPublish<'a> {
            hostname: &'a Name,
            fname: &'a FileName,
            #[serde(flatten)]
            entry: &'a FileEntry,
        }
        FlatPublish { hostname: &self.hostname, fname: &self.fname, entry: &self.entry }.serialize(serializer)
    }
}
