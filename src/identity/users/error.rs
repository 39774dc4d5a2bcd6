//! Why an account is not what a caller asks for.

use std::time::Duration;

use crate::identity::jwt::TokenError;
use crate::identity::password::PasswordError;
use crate::model::Name;
use crate::storage::{OpenError, StoreError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("{0}")]
    InvalidField(String),
    #[error("username: {0} is taken")]
    UsernameTaken(Name),
    /// Whether the name or the password is wrong is not revealed.
    #[error("user name or password is wrong")]
    WrongCredentials,
    /// The password is right, but the account is blocked.
    #[error("this account is blocked: ask the operator")]
    Blocked,
    #[error("username: there is no account {0}")]
    UnknownUser(String),
    /// The operator would lock themselves out.
    #[error("username: {0} is the admin, who cannot be blocked")]
    IsAdmin(Name),
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is valid, but for another role.
    #[error("the token is not {0}'s")]
    WrongRole(&'static str),
    #[error("too many failed logins: try again in {} s", UserError::whole_seconds(*.0))]
    LockedOut(Duration),
    #[error("{0}")]
    Busy(String),
    /// Nothing was changed.
    #[error("accounts are not available at the moment: try again")]
    Unavailable,
}

impl UserError {
    /// A time to wait, rounded up.
    pub fn whole_seconds(wait: Duration) -> u64 {
        wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
    }
}

impl From<StoreError> for UserError {
    fn from(error: StoreError) -> UserError {
        log::error!("accounts: {error}");
        UserError::Unavailable
    }
}

impl From<PasswordError> for UserError {
    fn from(error: PasswordError) -> UserError {
        match error {
            PasswordError::LockedOut(wait) => UserError::LockedOut(wait),
            PasswordError::Busy | PasswordError::NoLongerNeeded => UserError::Busy(error.to_string()),
            PasswordError::Failed(_) => {
                log::error!("accounts: {error}");
                UserError::Unavailable
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenUsersError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("accounts: {0}")]
    Read(#[from] StoreError),
}
