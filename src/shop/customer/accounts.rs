//! Accounts: who may sign in. They are on disk alone; what is read there is committed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::store;
use super::unavailable;
use crate::identity::{Attempts, PasswordError, Passwords};
use crate::model::{Clock, Name, text};
use crate::net::source::{self, Source};
use crate::shop::ops::{Account, Answer, Code, Refusal, Role};
use crate::storage::{Store, StoreError};

/// How long a repeated Create gets the answer of the first.
const REQUEST_KEPT: Duration = Duration::from_secs(600);
/// Most characters of a password.
const PASSWORD_MAX: usize = 256;

/// Creates users and tells whether someone is who he says.
pub struct Accounts {
    store: Arc<Store>,
    clock: Clock,
    passwords: Passwords,
    attempts: Arc<Mutex<Attempts<Guessed>>>,
}

/// Whose password is guessed: a user, or nobody of that name. Who is made later has none of nobody's failures.
type Guessed = (Role, Name, Option<u64>);

/// Why a transaction was not to be, or did not come about.
enum NotAdded {
    Taken,
    Store(StoreError),
}

impl From<StoreError> for NotAdded {
    fn from(error: StoreError) -> NotAdded {
        NotAdded::Store(error)
    }
}

impl Accounts {
    /// The accounts of a store.
    pub fn new(store: Arc<Store>, clock: Clock, passwords: Passwords) -> Accounts {
        Accounts { store, clock, passwords, attempts: Arc::default() }
    }

    /// A new account; for the same request again, the same.
    ///
    /// # Errors
    /// BAD_REQUEST, USERNAME_TAKEN (within its role), BUSY or UNAVAILABLE.
    pub fn create(
        &self,
        request: String,
        role: Role,
        username: String,
        (password, source): (&str, &str),
        name: Option<String>,
    ) -> Answer<Account> {
        check_form(&username, password)?;
        text::check_visible(&username).map_err(|rule| Refusal::new(Code::BadRequest, format!("username: {rule}")))?;
        if let Some(name) = &name {
            Name::new(name).map_err(|rule| Refusal::new(Code::BadRequest, format!("name: {rule}")))?;
        }
        let now = Clock::wall();
        let known = move |user: &store::UserRow, request: &str| {
            user.request == request && user.created_at.until(now) < REQUEST_KEPT
        };
        let holder =
            || self.store.read(|reader| store::user_named(reader, role, &username)).map_err(|e| unavailable(&e));
        let answer =
            |user: store::UserRow| if known(&user, &request) { Ok(user.account) } else { Err(taken(&username)) };
        // A name that is taken costs no hash, nor does one that is by the time its turn has come.
        if let Some(user) = holder()? {
            return answer(user);
        }
        let is_free = {
            let (store, username) = (Arc::clone(&self.store), username.clone());
            move || !matches!(store.read(|reader| store::user_named(reader, role, &username)), Ok(Some(_)))
        };
        let hash = match self.passwords.hash_if(password, source_of(source), is_free) {
            Ok(hash) => hash,
            Err(error @ PasswordError::NotWanted) => {
                return holder()?.map_or_else(|| Err(not_hashed(&error)), answer);
            }
            Err(error) => return Err(not_hashed(&error)),
        };
        let added = self.store.write({
            let username = username.clone();
            move |tx| match store::user_named(tx, role, &username)? {
                // Someone was quicker, perhaps the first of two that are the same.
                Some(user) if known(&user, &request) => Ok(user.account),
                Some(_) => Err(NotAdded::Taken),
                None => Ok(store::add_user(tx, role, &username, name.as_deref(), (&hash, &request), now)?),
            }
        });
        added.map_err(|why| match why {
            NotAdded::Taken => taken(&username),
            NotAdded::Store(error) => unavailable(&error),
        })
    }

    /// Whose name and password these are.
    ///
    /// # Errors
    /// BAD_CREDENTIALS, whether it was the name or the password; BUSY after too many of those, or when too
    /// many passwords wait; BAD_REQUEST; UNAVAILABLE.
    pub fn prove(&self, role: Role, username: &str, (password, source): (&str, &str)) -> Answer<Account> {
        let (name, source) = (check_form(username, password)?, source_of(source));
        let user = self.store.read(|reader| store::user_named(reader, role, username)).map_err(|e| unavailable(&e))?;
        let guessed: Guessed = (role, name, user.as_ref().map(|user| user.account.user_id));
        self.attempts.lock().check(self.clock.now(), &guessed, source).map_err(paused)?;
        let kept = user.as_ref().map(|user| user.password.as_str());
        let may_guess = {
            let (attempts, clock, guessed) = (Arc::clone(&self.attempts), self.clock, guessed.clone());
            move || attempts.lock().check(clock.now(), &guessed, source).is_ok()
        };
        let is_right = match self.passwords.check_if(password, kept, source, may_guess) {
            Ok(is_right) => is_right,
            Err(error) => {
                // Where it was not wanted, the pause is what is told.
                self.attempts.lock().check(self.clock.now(), &guessed, source).map_err(paused)?;
                return Err(not_hashed(&error));
            }
        };
        // Others may have failed meanwhile: then this one's outcome is not told either. Under one lock, so
        // that no more are told than may be.
        let mut attempts = self.attempts.lock();
        let now = self.clock.now();
        attempts.check(now, &guessed, source).map_err(paused)?;
        match user.filter(|_| is_right) {
            Some(user) => Ok(user.account),
            None => {
                attempts.failed(now, guessed, source);
                Err(Refusal::new(Code::BadCredentials, "user name or password is wrong"))
            }
        }
    }

    /// A user by name or by id.
    ///
    /// # Errors
    /// NOT_FOUND, BAD_REQUEST when neither is named, UNAVAILABLE.
    pub fn find(&self, role: Role, username: Option<&str>, user_id: Option<u64>) -> Answer<Account> {
        let found = self.store.read(|reader| match (username, user_id) {
            (Some(username), _) => Ok(store::user_named(reader, role, username)?.map(|user| user.account)),
            (None, Some(user_id)) => store::account_of(reader, role, user_id),
            (None, None) => Ok(None),
        });
        let found = found.map_err(|error: StoreError| unavailable(&error))?;
        found.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no such {}", role.as_text())))
    }
}

/// Frontends have checked this; who speaks to the database's own port is checked here.
fn check_form(username: &str, password: &str) -> Answer<Name> {
    let name = Name::kept(username).map_err(|rule| Refusal::new(Code::BadRequest, format!("username: {rule}")))?;
    let length = password.chars().count();
    if (1..=PASSWORD_MAX).contains(&length) {
        return Ok(name);
    }
    let text = format!("password: expected 1 to {PASSWORD_MAX} characters, not {length}");
    Err(Refusal::new(Code::BadRequest, text))
}

/// What the client's address counts as. (A frontend always tells it.)
fn source_of(address: &str) -> Source {
    source::of(address.parse().unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

fn paused(wait: Duration) -> Refusal {
    let text = format!("too many failed logins of this user: try again in {} s", wait.as_secs() + 1);
    Refusal::new(Code::Busy, text)
}

fn taken(username: &str) -> Refusal {
    Refusal::new(Code::UsernameTaken, format!("username: {username} is taken"))
}

fn not_hashed(error: &PasswordError) -> Refusal {
    match error {
        PasswordError::Busy | PasswordError::NotWanted => Refusal::new(Code::Busy, error.to_string()),
        PasswordError::Failed(_) => {
            log::error!("customer database: {error}");
            Refusal::new(Code::Unavailable, "the password could not be checked: try again")
        }
    }
}
