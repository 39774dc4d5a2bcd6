//! Why a request is answered with ERROR.

use crate::share::registry::RegistryError;
use crate::storage::StoreError;

/// Why a request is answered with ERROR.
#[derive(Debug)]
pub(super) enum RequestError {
    Refused(RegistryError),
    /// A field is invalid; the text names it.
    InvalidField(String),
    /// The hostname went to another connection or to a user.
    HostnameLost(String),
    Store(StoreError),
}

impl From<RegistryError> for RequestError {
    fn from(error: RegistryError) -> RequestError {
        RequestError::Refused(error)
    }
}

impl From<StoreError> for RequestError {
    fn from(error: StoreError) -> RequestError {
        RequestError::Store(error)
    }
}

impl RequestError {
    /// The text of the response.
    pub(super) fn reason(self) -> String {
        match self {
            RequestError::Refused(error) => error.to_string(),
            RequestError::InvalidField(reason) | RequestError::HostnameLost(reason) => reason,
            RequestError::Store(error) => {
                log::error!("registry: {error}");
                "UNAVAILABLE: it could not be stored or read, and nothing has changed; try again".to_owned()
            }
        }
    }
}
