//! Locks out whoever guesses passwords. Failures are counted per user and source address: guessing one name from an
//! office locks out nobody else there. (How many hashes one source may have computed is limited by the queue in
//! [`password`](super::password).)
//!
//! What counts is when an attempt is answered, not when it was made: of a hundred concurrent attempts, the first ten
//! that fail are told so, and the others learn nothing ([`LoginLimiter::check`] is called before the password is
//! verified and again before the response).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::model::Millis;
use crate::net::source::SourceKey;

/// So many failures within [`FAILURE_WINDOW`] cause a lockout.
pub const FAILURES_MAX: usize = 10;
pub const FAILURE_WINDOW: Duration = Duration::from_secs(60);
pub const LOCKOUT: Duration = Duration::from_secs(60);
/// Every failure costs a password hash, so more than these do not happen within a minute.
pub const TRACKED_FAILURES_MAX: usize = 100_000;

#[derive(Debug)]
pub struct LoginLimiter<U> {
    by_user: HashMap<U, HashMap<SourceKey, SourceFailures>>,
    /// Failures, oldest first: the order in which they are evicted.
    failures_by_age: VecDeque<(Millis, U, SourceKey)>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct SourceFailures {
    failures: VecDeque<Millis>,
    locked_until: Option<Millis>,
}

impl<U: Clone + Eq + Hash> Default for LoginLimiter<U> {
    fn default() -> LoginLimiter<U> {
        LoginLimiter::with_capacity(TRACKED_FAILURES_MAX)
    }
}

impl<U: Clone + Eq + Hash> LoginLimiter<U> {
    pub fn with_capacity(most: usize) -> LoginLimiter<U> {
        LoginLimiter { by_user: HashMap::new(), failures_by_age: VecDeque::new(), capacity: most }
    }

    /// Whether an attempt may be answered now; if not, the remaining time of the lockout.
    pub fn check(&self, now: Millis, user: &U, source: SourceKey) -> Result<(), Duration> {
        match self.by_user.get(user).and_then(|sources| sources.get(&source)?.locked_until) {
            Some(until) if now < until => Err(now.until(until)),
            _ => Ok(()),
        }
    }

    pub fn record_failure(&mut self, now: Millis, user: U, source: SourceKey) {
        self.evict(now);
        let guesser = self.by_user.entry(user.clone()).or_default().entry(source).or_default();
        guesser.failures.retain(|at| at.until(now) < FAILURE_WINDOW);
        guesser.failures.push_back(now);
        if guesser.failures.len() >= FAILURES_MAX {
            guesser.failures.clear();
            guesser.locked_until = Some(now.plus(LOCKOUT));
        }
        self.failures_by_age.push_back((now, user, source));
    }

    /// Called when the account was created: earlier attempts were made at a name without an account.
    pub fn reset(&mut self, user: &U) {
        self.by_user.remove(user);
    }

    /// Drops failures that no longer count, and the oldest beyond the capacity.
    fn evict(&mut self, now: Millis) {
        while let Some((at, user, source)) = self.failures_by_age.front() {
            if at.until(now) < FAILURE_WINDOW.max(LOCKOUT) && self.failures_by_age.len() < self.capacity {
                break;
            }
            if let Some(sources) = self.by_user.get_mut(user) {
                if let Some(guesser) = sources.get_mut(source) {
                    guesser.failures.retain(|failure| failure > at);
                    let is_paused = guesser.locked_until.is_some_and(|until| now < until);
                    // The failure that caused a lockout is the newest of its source: it is kept as long as the lockout.
                    if guesser.failures.is_empty() && (!is_paused || guesser.locked_until == Some(at.plus(LOCKOUT))) {
                        sources.remove(source);
                    }
                }
                if sources.is_empty() {
                    self.by_user.remove(user);
                }
            }
            self.failures_by_age.pop_front();
        }
    }

    #[cfg(test)]
    pub fn tracked_sources(&self) -> usize {
        self.by_user.values().map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    const NOW: Millis = Millis(1_795_253_400_000);

    fn from(number: u8) -> SourceKey {
        source::key_of([10, 0, 0, number].into())
    }

    #[test]
    fn ten_failures_within_a_minute_pause_that_guesser_for_a_minute() {
        let mut attempts = LoginLimiter::default();
        let (here, there) = (from(1), from(2));
        for n in 0..9 {
            attempts.record_failure(NOW.plus_ms(n * 1000), "ann", here);
            assert_eq!(attempts.check(NOW.plus_ms(n * 1000), &"ann", here), Ok(()));
        }
        attempts.record_failure(NOW.plus_ms(59_999), "ann", here);
        assert_eq!(attempts.check(NOW.plus_ms(59_999), &"ann", here), Err(LOCKOUT));
        assert_eq!(attempts.check(NOW.plus_ms(119_998), &"ann", here), Err(Duration::from_millis(1)));
        assert_eq!(attempts.check(NOW.plus_ms(119_999), &"ann", here), Ok(()));
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"ann", there), Ok(()), "another source may");
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"bob", here), Ok(()), "another user may");
        // After the lockout it takes ten failures again.
        attempts.record_failure(NOW.plus_ms(120_000), "ann", here);
        assert_eq!(attempts.check(NOW.plus_ms(120_000), &"ann", here), Ok(()));
    }

    #[test]
    fn slow_failures_do_not_add_up() {
        let mut attempts = LoginLimiter::default();
        for n in 0..100 {
            let now = NOW.plus_ms(n * 6_700);
            attempts.record_failure(now, "ann", from(1));
            assert_eq!(attempts.check(now, &"ann", from(1)), Ok(()), "failure {n}");
        }
    }

    #[test]
    fn an_account_that_is_made_has_no_failures() {
        let mut attempts = LoginLimiter::default();
        for n in 0..30 {
            attempts.record_failure(NOW, "ann", from(n % 3));
            attempts.record_failure(NOW, "bob", from(n % 3));
        }
        attempts.reset(&"ann");
        for n in 0..3 {
            assert_eq!(attempts.check(NOW, &"ann", from(n)), Ok(()));
            assert!(attempts.check(NOW, &"bob", from(n)).is_err());
        }
        // Their remaining entries in `failures_by_age` must not evict later failures.
        for n in 0..9 {
            attempts.record_failure(NOW.plus_ms(50_000 + n), "ann", from(1));
        }
        attempts.record_failure(NOW.plus_ms(60_001), "ann", from(1));
        assert!(attempts.check(NOW.plus_ms(60_001), &"ann", from(1)).is_err());
    }

    #[test]
    fn what_is_over_is_forgotten_and_the_oldest_goes_when_there_is_too_much() {
        let mut attempts = LoginLimiter::with_capacity(20);
        for n in 0..1000 {
            attempts.record_failure(NOW.plus_ms(n), n, from(1));
            assert!(attempts.tracked_sources() <= 20 && attempts.failures_by_age.len() <= 20);
        }
        attempts.record_failure(NOW.plus_ms(200_000), 5000, from(1));
        assert_eq!((attempts.tracked_sources(), attempts.by_user.len()), (1, 1));
        // Nine failures, then enough others to evict the first of them: fewer count for this source.
        let mut attempts = LoginLimiter::with_capacity(9);
        for n in 0..9 {
            attempts.record_failure(NOW.plus_ms(n), "ann", from(1));
        }
        attempts.record_failure(NOW.plus_ms(10), "bob", from(1));
        attempts.record_failure(NOW.plus_ms(11), "ann", from(1));
        assert_eq!(attempts.check(NOW.plus_ms(11), &"ann", from(1)), Ok(()));
    }

    #[test]
    fn a_pause_is_remembered_to_its_end() {
        let mut attempts = LoginLimiter::default();
        for _ in 0..10 {
            attempts.record_failure(NOW, "ann", from(1));
        }
        for n in 0..60 {
            attempts.record_failure(NOW.plus_ms(n * 1000), "bob", from(1));
            assert!(attempts.check(NOW.plus_ms(n * 1000), &"ann", from(1)).is_err(), "after {n} s");
        }
        attempts.record_failure(NOW.plus_ms(60_000), "bob", from(1));
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"ann", from(1)), Ok(()));
    }
}
