//! Accounts and their passwords. They are held on disk only, so what is read is committed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{read, store, unavailable};
use crate::identity::users::PASSWORD_CHARS_MAX;
use crate::identity::{LoginLimiter, PasswordError, PasswordHasher};
use crate::model::{Clock, Name, text};
use crate::net::source::{self, SourceKey};
use crate::shop::ops::{Account, ErrorCode, Refusal, Role, ShopResult};
use crate::storage::{Store, StoreError};

/// A retry of a Create gets the result of the first.
const REQUEST_RETENTION: Duration = Duration::from_secs(600);

pub struct Accounts {
    store: Arc<Store>,
    clock: Clock,
    passwords: PasswordHasher,
    attempts: Arc<Mutex<LoginLimiter<LoginTarget>>>,
}

/// Failed logins are counted by role, name, and the user's id if there is one, so that those from before an account was
/// created do not count against it.
type LoginTarget = (Role, Name, Option<u64>);

enum AddUserError {
    Taken,
    Store(StoreError),
}

impl From<StoreError> for AddUserError {
    fn from(error: StoreError) -> AddUserError {
        AddUserError::Store(error)
    }
}

impl Accounts {
    pub fn new(store: Arc<Store>, clock: Clock, passwords: PasswordHasher) -> Accounts {
        Accounts { store, clock, passwords, attempts: Arc::default() }
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
        let hash = match self.passwords.hash_if(password, source_of(source), is_free) {
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
                Some(user) if is_retry(&user, &request) => Ok(user.account),
                Some(_) => Err(AddUserError::Taken),
                None => Ok(store::add_user(tx, role, &username, name.as_deref(), (&hash, &request), now)?),
            }
        });
        added.map_err(|why| match why {
            AddUserError::Taken => username_taken(&username),
            AddUserError::Store(error) => unavailable(&error),
        })
    }

    /// BAD_CREDENTIALS, whether the name or the password is wrong; BUSY after too many failures, or if too many
    /// passwords wait to be hashed.
    pub fn authenticate(&self, role: Role, username: &str, (password, source): (&str, &str)) -> ShopResult<Account> {
        let (name, source) = (check_credentials_form(username, password)?, source_of(source));
        let user = read(&self.store, |reader| store::user_by_name(reader, role, username))?;
        let target: LoginTarget = (role, name, user.as_ref().map(|user| user.account.user_id));
        self.attempts.lock().check(self.clock.now(), &target, source).map_err(login_paused)?;
        let stored_hash = user.as_ref().map(|user| user.password.as_str());
        let may_guess = {
            let (attempts, clock, target) = (Arc::clone(&self.attempts), self.clock, target.clone());
            move || attempts.lock().check(clock.now(), &target, source).is_ok()
        };
        let is_right = match self.passwords.verify_if(password, stored_hash, source, may_guess) {
            Ok(is_right) => is_right,
            Err(error) => {
                // If failures meanwhile are why it was not checked, the refusal tells the pause.
                self.attempts.lock().check(self.clock.now(), &target, source).map_err(login_paused)?;
                return Err(hash_failed(&error));
            }
        };
        // If others have failed meanwhile, this result is not told either. The lock is held from here on, so that no
        // more results are told than the limit allows.
        let mut attempts = self.attempts.lock();
        let now = self.clock.now();
        attempts.check(now, &target, source).map_err(login_paused)?;
        match user.filter(|_| is_right) {
            Some(user) => Ok(user.account),
            None => {
                attempts.record_failure(now, target, source);
                Err(Refusal::new(ErrorCode::BadCredentials, "user name or password is wrong"))
            }
        }
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

fn login_paused(wait: Duration) -> Refusal {
    let text = format!("too many failed logins of this user: try again in {} s", wait.as_secs() + 1);
    Refusal::new(ErrorCode::Busy, text)
}

fn username_taken(username: &str) -> Refusal {
    Refusal::new(ErrorCode::UsernameTaken, format!("username: {username} is taken"))
}

fn hash_failed(error: &PasswordError) -> Refusal {
    match error {
        PasswordError::Busy | PasswordError::NoLongerNeeded => Refusal::new(ErrorCode::Busy, error.to_string()),
        PasswordError::Failed(_) => {
            log::error!("customer database: {error}");
            Refusal::new(ErrorCode::Unavailable, "the password could not be checked: try again")
        }
    }
}
