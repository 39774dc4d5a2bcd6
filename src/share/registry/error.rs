//! Why the registry refuses a request.

use crate::model::Name;
use crate::net::source::SourceKey;

/// Why a request is refused. The text begins with the name of the offending field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("ip: {0}")]
    Ip(&'static str),
    #[error("hostname: this connection is registered as {0} and may change nothing else")]
    OneHostname(Name),
    #[error("token: the hostname is a user account and needs a valid token of that user")]
    NeedsToken,
    #[error("hostname in use")]
    InUse,
    #[error("BUSY: the registry is full: it takes no more {0}")]
    Full(&'static str),
    #[error(
        "BUSY: {source_of_it} has {share} {what} here, as many as one source may; UNREGISTER and UNPUBLISH make room"
    )]
    ShareFull { what: &'static str, source_of_it: SourceKey, share: usize },
    #[error("fname: a host may have {0} files")]
    TooManyFiles(usize),
    #[error("expected REGISTER first")]
    NotRegistered,
    #[error("hostname: no such host is there")]
    UnknownHost,
    #[error("fname: this host has no such file")]
    UnknownFile,
}
