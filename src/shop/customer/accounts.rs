//! Accounts and their passwords. They are held on disk only, so what is read is committed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::{read, store, unavailable};
use crate::identity::users::PASSWORD_CHARS_MAX;
use crate::identity::{LoginVerifier, PasswordError, PasswordHasher};
use crate::model::{Clock, Name, text};
use crate::net::source::{self, SourceKey};
use crate::shop::ops::{Account, ErrorCode, Refusal, Role, ShopResult};
use crate::storage::{Store, StoreError};

/// A retry of a Create gets the result of the first.
const REQUEST_RETENTION: Duration = Duration::from_secs(600);

pub struct Accounts {
    store: Arc<Store>,
    logins: LoginVerifier<LoginTarget>,
}

/// Failed logins are counted by role, name, and the user's id if there is one, so that those from before an account was
/// created do not count against it.
type LoginTarget = (Role, Name, Option<u64>);

impl Accounts {
    pub fn new(store: Arc<Store>, clock: Clock, passwords: PasswordHasher) -> Accounts {
        Accounts { store, logins: LoginVerifier::new(passwords, clock) }
    }

    /// A retry of the same request returns the same account. BUSY if too many passwords wait to be hashed.
    pub fn create(
        &self,
        request: String,
        role: Role,
        username: String,
        (password, source): (&str, &str),
        name: Option<String>,
    ) -> ShopResult<Account> {
        check_credentials_form(&username, password)?;
        text::check_visible(&username).map_err(|rule| Refusal::wrong("username", rule))?;
        if let Some(name) = &name {
            Name::new(name).map_err(|rule| Refusal::wrong("name", rule))?;
        }
        let now = Clock::wall();
        let is_retry = move |user: &store::UserRow, request: &str| {
            user.request == request && user.created_at.until(now) < REQUEST_RETENTION
        };
        let holder = || read(&self.store, |reader| store::user_by_name(reader, role, &username));
        let existing = |user: store::UserRow| {
            if is_retry(&user, &request) { Ok(user.account) } else { Err(username_taken(&username)) }
        };
        // Nothing is hashed if the name is taken, now or when the turn to hash comes.
        if let Some(user) = holder()? {
            return existing(user);
        }
        let is_free = {
            let (store, username) = (Arc::clone(&self.store), username.clone());
            move || !matches!(store.read(|reader| store::user_by_name(reader, role, &username)), Ok(Some(_)))
        };
        let hash = match self.logins.passwords.hash_if(password, source_of(source), is_free) {
            Ok(hash) => hash,
            Err(error @ PasswordError::NoLongerNeeded) => {
                return holder()?.map_or_else(|| Err(hash_failed(&error)), existing);
            }
            Err(error) => return Err(hash_failed(&error)),
        };
        let added = self.store.write({
            let username = username.clone();
            move |tx| match store::user_by_name(tx, role, &username)? {
                // Another request was faster; this may be a retry of it.
                Some(user) => Ok(is_retry(&user, &request).then_some(user.account)),
                None => store::add_user(tx, role, &username, name.as_deref(), (&hash, &request), now).map(Some),
            }
        });
        added.map_err(|error: StoreError| unavailable(&error))?.ok_or_else(|| username_taken(&username))
    }

    /// BAD_CREDENTIALS, whether the name or the password is wrong; BUSY after too many failures, or if too many
    /// passwords wait to be hashed.
    pub fn authenticate(&self, role: Role, username: &str, (password, source): (&str, &str)) -> ShopResult<Account> {
        let (name, source) = (check_credentials_form(username, password)?, source_of(source));
        let user = read(&self.store, |reader| store::user_by_name(reader, role, username))?;
        let target: LoginTarget = (role, name, user.as_ref().map(|user| user.account.user_id));
        self.logins.check(&target, source).map_err(|error| hash_failed(&error))?;
        let stored_hash = user.as_ref().map(|user| user.password.as_str());
        let verified = self.logins.verify(target, source, password, stored_hash);
        let is_right = verified.map_err(|error| hash_failed(&error))?;
        let wrong = || Refusal::new(ErrorCode::BadCredentials, "user name or password is wrong");
        user.filter(|_| is_right).map(|user| user.account).ok_or_else(wrong)
    }

    /// Finds a user by name, or else by id; NOT_FOUND if neither is given.
    pub fn find(&self, role: Role, username: Option<&str>, user_id: Option<u64>) -> ShopResult<Account> {
        let found = read(&self.store, |reader| match (username, user_id) {
            (Some(username), _) => Ok(store::user_by_name(reader, role, username)?.map(|user| user.account)),
            (None, Some(user_id)) => store::account_by_id(reader, role, user_id),
            (None, None) => Ok(None),
        })?;
        found.ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("there is no such {}", role.as_str())))
    }
}

/// Frontends have checked it already, but the database's own clients have not.
fn check_credentials_form(username: &str, password: &str) -> ShopResult<Name> {
    let name = Name::from_stored(username).map_err(|rule| Refusal::wrong("username", rule))?;
    text::check_length(password, 1, PASSWORD_CHARS_MAX).map_err(|rule| Refusal::wrong("password", rule))?;
    Ok(name)
}

/// Every frontend passes the client's address.
fn source_of(address: &str) -> SourceKey {
    source::key_of(address.parse().unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

fn username_taken(username: &str) -> Refusal {
    Refusal::new(ErrorCode::UsernameTaken, format!("username: {username} is taken"))
}

fn hash_failed(error: &PasswordError) -> Refusal {
    match error {
        PasswordError::Busy | PasswordError::NoLongerNeeded => Refusal::new(ErrorCode::Busy, error.to_string()),
        PasswordError::LockedOut(wait) => {
            let text = format!("too many failed logins of this user: try again in {} s", wait.as_secs() + 1);
            Refusal::new(ErrorCode::Busy, text)
        }
        PasswordError::Failed(_) => {
            log::error!("customer database: {error}");
            Refusal::new(ErrorCode::Unavailable, "the password could not be checked: try again")
        }
    }
}
