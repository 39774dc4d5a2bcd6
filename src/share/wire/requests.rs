//! Requests to the registry: one JSON object per line, read by [`parse`] and written by [`write()`]. `actions!` is the
//! list of them; an [`Action`] has all of one, for both ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::responses::{
    ChangesAnswer, DiscoverAnswer, EmptyAnswer, HoldersAnswer, ListAnswer, PingAnswer, RegisterAnswer,
};
use super::{FileEntry, FileName, PORT_MIN, Seconds};
use crate::model::{Name, Token, text};

mod parsing;
#[cfg(test)]
mod tests;

pub use parsing::RequestData;
use parsing::{RawField, display_name, files, missing, optional, optional_integer, required, secret};

/// The longest request in bytes.
pub const REQUEST_MAX: usize = 16 << 20;
/// The most files of a host.
pub const FILES_MAX: usize = 100_000;
/// The longest token or secret in bytes; ours are shorter.
pub(in crate::share) const SECRET_MAX: usize = 8 * 1024;
/// The longest state of a PING, in characters.
const STATE_MAX: usize = 32;

/// A host's files by name.
pub type FileMap = BTreeMap<FileName, Arc<FileEntry>>;

/// An action of the registry: the data of its request, its name, and what its response holds.
pub trait Action: Serialize + Sized {
    const NAME: &'static str;
    /// The statuses of its responses, besides ERROR.
    const STATUSES: &'static [&'static str];
    /// What a client reads from the response.
    type Answer: DeserializeOwned;
}

/// A row has the [`Action`] of the data (boxed if it is large, so that the others stay small), and whether the step
/// that carries it out also counts as a sign of life of the connection's host. For any other action the server counts
/// it before.
macro_rules! actions {
    ($(
        $(#[doc = $doc:literal])+
        $Variant:ident($Held:ty): $Data:ident, $name:literal, $statuses:tt, $Answer:ident,
        records_activity = $records:literal;
    )+) => {
        /// A request to the registry.
        #[derive(Debug)]
        pub enum RegistryRequest {
            $($(#[doc = $doc])+ $Variant($Held),)+
        }

        impl RegistryRequest {
            const NAMES: &[&str] = &[$($name),+];

            /// Whether the step that carries it out counts it as a sign of life.
            pub(in crate::share) fn records_activity(&self) -> bool {
                match self {
                    $(RegistryRequest::$Variant(_) => $records),+
                }
            }

            fn of_action(name: &str, data: RawField<'_>) -> Result<RegistryRequest, String> {
                match name {
                    $($name => {
                        $Data::parse(&RequestData::new(data)?).map(|data| RegistryRequest::$Variant(data.into()))
                    })+
                    _ => {
                        let (last, others) = RegistryRequest::NAMES.split_last().unwrap_or((&"", &[]));
                        Err(format!("action: expected {} or {last}", others.join(", ")))
                    }
                }
            }

            #[cfg(any(test, feature = "internals"))]
            pub fn write(&self) -> Vec<u8> {
                match self {
                    $(RegistryRequest::$Variant(data) => write::<$Data>(data)),+
                }
            }
        }

        $(impl Action for $Data {
            const NAME: &'static str = $name;
            const STATUSES: &'static [&'static str] = &$statuses;
            type Answer = $Answer;
        })+
    };
}

actions! {
    /// Registers a host.
    Register(Box<RegisterRequest>): RegisterRequest, "REGISTER", ["OK"], RegisterAnswer, records_activity = true;
    /// Adds or changes a file of a host.
    Publish(Box<PublishRequest>): PublishRequest, "PUBLISH", ["ACK"], EmptyAnswer, records_activity = true;
    /// Stops listing a file.
    Unpublish(UnpublishRequest): UnpublishRequest, "UNPUBLISH", ["ACK"], EmptyAnswer, records_activity = true;
    /// Finds hosts that have a file.
    Request(FileRequest): FileRequest, "REQUEST", ["FOUND", "NOTFOUND"], HoldersAnswer, records_activity = false;
    /// Gets a host's files and address.
    Discover(DiscoverRequest): DiscoverRequest, "DISCOVER", ["OK"], DiscoverAnswer, records_activity = false;
    /// Lists the hosts with their files.
    List(ListRequest): ListRequest, "LIST", ["OK"], ListAnswer, records_activity = false;
    /// Gets the changes after a known point.
    Changes(ChangesRequest): ChangesRequest, "CHANGES", ["OK"], ChangesAnswer, records_activity = false;
    /// Asks whether a host is live.
    Ping(PingRequest): PingRequest, "PING", ["ALIVE", "DEAD"], PingAnswer, records_activity = true;
    /// Removes a host.
    Unregister(UnregisterRequest): UnregisterRequest, "UNREGISTER", ["OK"], EmptyAnswer, records_activity = true;
}

/// Parses one line.
pub fn parse(line: &[u8]) -> Result<RegistryRequest, String> {
    let (action, data) = parsing::envelope(line)?;
    RegistryRequest::of_action(&action, data)
}

/// Serializes a request as one line, without the line end.
pub fn write<A: Action>(data: &A) -> Vec<u8> {
    #[derive(Serialize)]
    struct RequestLine<'a, D> {
        action: &'a str,
        data: &'a D,
    }
    // Only strings and numbers: serializing them to memory cannot fail.
    serde_json::to_vec(&RequestLine { action: A::NAME, data }).unwrap_or_default()
}

/// The data of REGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct RegisterRequest {
    /// Whether it contains only visible characters is checked by the caller, who knows the accounts: an account of an
    /// earlier version may have any name.
    pub hostname: Name,
    /// The port of the host's peer server.
    pub port: u16,
    /// The address of the peer server, if it is not the connection's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The name shown to people; it defaults to the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Name>,
    /// All files. Without it there are none, or with a valid `resume` the former ones.
    #[serde(rename = "files_metadata", skip_serializing_if = "Option::is_none")]
    pub files: Option<FileMap>,
    /// A token of the user whose account has the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// The secret from the last REGISTER.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Token>,
}

impl RegisterRequest {
    fn parse(data: &RequestData<'_>) -> Result<RegisterRequest, String> {
        let port = match optional_integer("port", data.port)?.map(u16::try_from) {
            Some(Ok(port)) if port >= PORT_MIN => port,
            Some(_) => return Err(format!("port: expected a whole number from {PORT_MIN} to 65535")),
            None => return Err(missing("port")),
        };
        let hostname = required("hostname", data.hostname)?;
        let ip = optional::<String>("ip", data.ip)?;
        let ip = ip.map(|ip| ip.parse::<IpAddr>().map_err(|_| "ip: expected an IP address".to_owned()));
        Ok(RegisterRequest {
            hostname,
            port,
            ip: ip.transpose()?.map(|ip| ip.to_canonical()),
            display_name: display_name(data.display_name)?,
            files: data.files_metadata.map(files).transpose()?,
            token: secret("token", data.token)?,
            resume: secret("resume", data.resume)?,
        })
    }
}

/// The data of PUBLISH.
#[derive(Debug, Clone, Serialize)]
pub struct PublishRequest {
    pub hostname: Name,
    pub fname: FileName,
    /// The file; always published.
    #[serde(flatten)]
    pub entry: Arc<FileEntry>,
}

impl PublishRequest {
    /// The file's fields are on the same level as the others.
    fn parse(data: &RequestData<'_>) -> Result<PublishRequest, String> {
        let (hostname, fname) = (required("hostname", data.hostname)?, required("fname", data.fname)?);
        Ok(PublishRequest { hostname, fname, entry: Arc::new(data.published_entry()?) })
    }
}

/// The data of UNPUBLISH.
#[derive(Debug, Clone, Serialize)]
pub struct UnpublishRequest {
    pub hostname: Name,
    pub fname: FileName,
}

impl UnpublishRequest {
    fn parse(data: &RequestData<'_>) -> Result<UnpublishRequest, String> {
        Ok(UnpublishRequest { hostname: required("hostname", data.hostname)?, fname: required("fname", data.fname)? })
    }
}

/// The data of REQUEST.
#[derive(Debug, Clone, Serialize)]
pub struct FileRequest {
    pub fname: FileName,
    /// The size in bytes, when looking for duplicates: the response then has only the most similar files, with names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The modification time, when looking for duplicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<Seconds>,
}

impl FileRequest {
    fn parse(data: &RequestData<'_>) -> Result<FileRequest, String> {
        let (fname, size) = (required("fname", data.fname)?, optional_integer("size", data.size)?);
        Ok(FileRequest { fname, size, modified: optional("modified", data.modified)? })
    }
}

/// The data of DISCOVER.
#[derive(Debug, Clone, Serialize)]
pub struct DiscoverRequest {
    pub hostname: Name,
}

impl DiscoverRequest {
    fn parse(data: &RequestData<'_>) -> Result<DiscoverRequest, String> {
        Ok(DiscoverRequest { hostname: required("hostname", data.hostname)? })
    }
}

/// The data of UNREGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct UnregisterRequest {
    pub hostname: Name,
}

impl UnregisterRequest {
    fn parse(data: &RequestData<'_>) -> Result<UnregisterRequest, String> {
        Ok(UnregisterRequest { hostname: required("hostname", data.hostname)? })
    }
}

/// The data of LIST; both fields count hosts in the order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ListRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl ListRequest {
    fn parse(data: &RequestData<'_>) -> Result<ListRequest, String> {
        let (offset, limit) = (optional_integer("offset", data.offset)?, optional_integer("limit", data.limit)?);
        Ok(ListRequest { offset, limit })
    }
}

/// Longest wait of CHANGES, seconds.
pub const WAIT_MAX_S: f64 = 25.0;

/// The data of CHANGES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ChangesRequest {
    /// The changes after this number of an earlier response; without it, only the number to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// How long to wait for the first change, in seconds, at most [`WAIT_MAX_S`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Seconds>,
}

impl ChangesRequest {
    fn parse(data: &RequestData<'_>) -> Result<ChangesRequest, String> {
        let wait: Option<Seconds> = optional("wait", data.wait)?;
        if wait.is_some_and(|wait| !(0.0..=WAIT_MAX_S).contains(&wait.get())) {
            return Err(format!("wait: expected 0 to {WAIT_MAX_S} seconds"));
        }
        Ok(ChangesRequest { since: optional_integer("since", data.since)?, wait })
    }
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

impl PingRequest {
    fn parse(data: &RequestData<'_>) -> Result<PingRequest, String> {
        let state: Option<String> = optional("state", data.state)?;
        if let Some(state) = &state {
            text::check(state, 0, STATE_MAX).map_err(|error| format!("state: {error}"))?;
        }
        Ok(PingRequest { hostname: required("hostname", data.hostname)?, state })
    }
}
