//! Why the registry refuses a request.

use crate::model::Name;
use crate::net::source::SourceKey;

/// Why a request is refused. The text begins with the name of the offending field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The host may not be listed under this address.
    #[error("ip: {0}")]
    Ip(&'static str),
    /// The connection is already registered under another hostname.
    #[error("hostname: this connection is registered as {0} and may change nothing else")]
    OneHostname(Name),
    /// The hostname belongs to a user account, and the claim does not prove to come from that user.
    #[error("token: the hostname is a user account and needs a valid token of that user")]
    NeedsToken,
    /// Another host has the hostname.
    #[error("hostname in use")]
    InUse,
    /// A limit on hosts or files in total is reached.
    #[error("BUSY: the registry is full: it takes no more {0}")]
    Full(&'static str),
    /// The source address has used up its share.
    #[error(
        "BUSY: {source_of_it} has {share} {what} here, as many as one source may; UNREGISTER and UNPUBLISH make room"
    )]
    ShareFull {
        /// What is counted: hostnames or files.
        what: &'static str,
        /// The source address or network.
        source_of_it: SourceKey,
        /// The maximum for one source.
        share: usize,
    },
    /// The host already has the maximum number of files.
    #[error("fname: a host may have {0} files")]
    TooManyFiles(usize),
    /// The connection has not registered.
    #[error("expected REGISTER first")]
    NotRegistered,
    /// No host of that name is live.
    #[error("hostname: no such host is there")]
    UnknownHost,
    /// The host has no file of that name.
    #[error("fname: this host has no such file")]
    UnknownFile,
}
