//! Why a request is answered with ERROR.

use crate::share::registry::RegistryError;
use crate::storage::StoreError;

#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Refused(#[from] RegistryError),
    /// The text names the field.
    #[error("{0}")]
    InvalidField(String),
    /// The hostname went to another connection or to a user.
    #[error("{0}")]
    HostnameLost(String),
    #[error("UNAVAILABLE: it could not be stored or read, and nothing has changed; try again")]
    Store(#[from] StoreError),
}

impl RequestError {
    /// The text of the response; a failure of the store is logged.
    pub(super) fn reason(self) -> String {
        if let RequestError::Store(error) = &self {
            log::error!("registry: {error}");
        }
        self.to_string()
    }
}
