use std::io;

use super::conn::ConnError;
use super::lines::LineError;
use super::link::LinkError;

#[derive(Debug)]
pub enum ConnectionEnd {
    /// Nothing was received for too long, which is no failure.
    Idle,
    /// The text is for the log.
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
