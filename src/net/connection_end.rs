//! Why a connection of a message port ended, other than at the client's wish.

use std::io;

use super::conn::ConnError;
use super::lines::LineError;
use super::link::LinkError;

/// Why a connection ended before its client closed it.
#[derive(Debug)]
pub enum ConnectionEnd {
    /// Nothing was received for too long. This is not a failure.
    Idle,
    /// A failure, with its text for the log.
    Failed(String),
}

impl From<LineError> for ConnectionEnd {
    fn from(error: LineError) -> ConnectionEnd {
        match error {
            LineError::Idle { .. } => ConnectionEnd::Idle,
            error => ConnectionEnd::Failed(error.to_string()),
        }
    }
}

impl From<ConnError> for ConnectionEnd {
    fn from(error: ConnError) -> ConnectionEnd {
        match error {
            ConnError::FirstByteTimeout => ConnectionEnd::Idle,
            error => ConnectionEnd::Failed(error.to_string()),
        }
    }
}

impl From<io::Error> for ConnectionEnd {
    fn from(error: io::Error) -> ConnectionEnd {
        ConnectionEnd::Failed(format!("cannot answer: {error}"))
    }
}

impl From<LinkError> for ConnectionEnd {
    fn from(error: LinkError) -> ConnectionEnd {
        ConnectionEnd::Failed(format!("link: {error}"))
    }
}
