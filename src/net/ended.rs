//! How a connection ended that did not end well.

use std::io;

use super::conn::ConnError;
use super::lines::LineError;
use super::link::LinkError;

/// Why a connection is over.
#[derive(Debug)]
pub enum Ended {
    /// Nothing came for long: no failure.
    Silent,
    /// For the log.
    Failed(String),
}

impl From<LineError> for Ended {
    fn from(error: LineError) -> Ended {
        match error {
            LineError::Idle { .. } => Ended::Silent,
            error => Ended::Failed(error.to_string()),
        }
    }
}

impl From<ConnError> for Ended {
    fn from(error: ConnError) -> Ended {
        match error {
            ConnError::Silent => Ended::Silent,
            error => Ended::Failed(error.to_string()),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Failed(format!("cannot answer: {error}"))
    }
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Ended {
        Ended::Failed(format!("link: {error}"))
    }
}
