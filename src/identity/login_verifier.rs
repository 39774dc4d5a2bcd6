//! Verifies the passwords of logins, with failures limited by [`LoginLimiter`].

use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

use super::login_limiter::LoginLimiter;
use super::password::{PasswordError, PasswordHasher};
use crate::model::Clock;
use crate::net::source::SourceKey;

pub struct LoginVerifier<U> {
    pub passwords: PasswordHasher,
    clock: Clock,
    limiter: Arc<Mutex<LoginLimiter<U>>>,
}

impl<U: Clone + Eq + Hash + Send + 'static> LoginVerifier<U> {
    pub fn new(passwords: PasswordHasher, clock: Clock) -> LoginVerifier<U> {
        LoginVerifier { passwords, clock, limiter: Arc::default() }
    }

    /// Fails if the user is locked out.
    pub fn check(&self, user: &U, source: SourceKey) -> Result<(), PasswordError> {
        self.limiter.lock().check(self.clock.now(), user, source).map_err(PasswordError::LockedOut)
    }

    /// Whether the password is right; a failure is counted. If the user is locked out when the turn comes, no hash is
    /// computed, and if others have failed too often meanwhile, the result is not told.
    pub fn verify(
        &self,
        user: U,
        source: SourceKey,
        password: &str,
        stored_hash: Option<&str>,
    ) -> Result<bool, PasswordError> {
        let is_still_needed = {
            let (limiter, clock, user) = (Arc::clone(&self.limiter), self.clock, user.clone());
            move || limiter.lock().check(clock.now(), &user, source).is_ok()
        };
        let verified = self.passwords.verify_if(password, stored_hash, source, is_still_needed);
        if verified.is_err() {
            // If failures meanwhile are why it was not checked, the error tells the pause.
            self.check(&user, source)?;
        }
        let is_right = verified?;
        // Under one lock, so that no more results are told than the limit allows.
        let mut limiter = self.limiter.lock();
        let now = self.clock.now();
        limiter.check(now, &user, source).map_err(PasswordError::LockedOut)?;
        if !is_right {
            limiter.record_failure(now, user, source);
        }
        Ok(is_right)
    }

    /// Called when the account was created: see [`LoginLimiter::reset`].
    pub fn reset(&self, user: &U) {
        self.limiter.lock().reset(user);
    }
}
