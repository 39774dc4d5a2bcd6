//! Failed sign-ins, counted: who guesses has to wait. No I/O; the time is an argument.
//!
//! They are counted for one user and one source together: who guesses at one name from an office makes nobody
//! else there wait. (What a source may have computed at all is bounded where passwords wait: see
//! [`password`](super::password).)
//!
//! What counts is when a guess is answered, not when it is made: of a hundred at once, the first ten
//! that fail are told so, and the others learn nothing ([`Attempts::check`] is asked before the password is
//! looked at and again before the answer).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::model::Millis;
use crate::net::source::Source;

/// Failures within [`WITHIN`] after which there is a pause.
pub const FAILURES_MAX: usize = 10;
/// The time in which failures are counted together.
pub const WITHIN: Duration = Duration::from_secs(60);
/// How long the pause is.
pub const PAUSE: Duration = Duration::from_secs(60);
/// Most failures remembered at once. Every failure costs a password hash: more than these do not happen
/// within a minute.
pub const REMEMBERED_MAX: usize = 100_000;

/// Failures by user and by where the guess comes from.
#[derive(Debug)]
pub struct Attempts<U> {
    users: HashMap<U, HashMap<Source, Guesser>>,
    /// Who failed and when, oldest first: what is to be forgotten next.
    order: VecDeque<(Millis, U, Source)>,
    most: usize,
}

#[derive(Debug, Default)]
struct Guesser {
    failures: VecDeque<Millis>,
    paused_until: Option<Millis>,
}

impl<U: Clone + Eq + Hash> Default for Attempts<U> {
    fn default() -> Attempts<U> {
        Attempts::with_bound(REMEMBERED_MAX)
    }
}

impl<U: Clone + Eq + Hash> Attempts<U> {
    /// Remembers that many failures at most.
    pub fn with_bound(most: usize) -> Attempts<U> {
        Attempts { users: HashMap::new(), order: VecDeque::new(), most }
    }

    /// Whether an attempt may be answered now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn check(&self, now: Millis, user: &U, source: Source) -> Result<(), Duration> {
        match self.users.get(user).and_then(|sources| sources.get(&source)?.paused_until) {
            Some(until) if now < until => Err(now.until(until)),
            _ => Ok(()),
        }
    }

    /// An attempt has failed.
    pub fn failed(&mut self, now: Millis, user: U, source: Source) {
        self.forget(now);
        let guesser = self.users.entry(user.clone()).or_default().entry(source).or_default();
        guesser.failures.retain(|at| at.until(now) < WITHIN);
        guesser.failures.push_back(now);
        if guesser.failures.len() >= FAILURES_MAX {
            guesser.failures.clear();
            guesser.paused_until = Some(now.plus(PAUSE));
        }
        self.order.push_back((now, user, source));
    }

    /// The user is another from now on: just made. Whoever tried the name before guessed at nobody.
    pub fn begin_anew(&mut self, user: &U) {
        self.users.remove(user);
    }

    /// Lets go of what no longer counts, and of the oldest where there is too much.
    fn forget(&mut self, now: Millis) {
        while let Some((at, user, source)) = self.order.front() {
            if at.until(now) < WITHIN.max(PAUSE) && self.order.len() < self.most {
                break;
            }
            if let Some(sources) = self.users.get_mut(user) {
                if let Some(guesser) = sources.get_mut(source) {
                    guesser.failures.retain(|failure| failure > at);
                    let is_paused = guesser.paused_until.is_some_and(|until| now < until);
                    // The failure that began a pause is the newest of its guesser: it is remembered as long.
                    if guesser.failures.is_empty() && (!is_paused || guesser.paused_until == Some(at.plus(PAUSE))) {
                        sources.remove(source);
                    }
                }
                if sources.is_empty() {
                    self.users.remove(user);
                }
            }
            self.order.pop_front();
        }
    }

    /// How many guessers are remembered.
    pub fn guessers(&self) -> usize {
        self.users.values().map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    const NOW: Millis = Millis(1_795_253_400_000);

    fn from(number: u8) -> Source {
        source::of([10, 0, 0, number].into())
    }

    #[test]
    fn ten_failures_within_a_minute_pause_that_guesser_for_a_minute() {
        let mut attempts = Attempts::default();
        let (here, there) = (from(1), from(2));
        for n in 0..9 {
            attempts.failed(NOW.plus_ms(n * 1000), "ann", here);
            assert_eq!(attempts.check(NOW.plus_ms(n * 1000), &"ann", here), Ok(()));
        }
        attempts.failed(NOW.plus_ms(59_999), "ann", here);
        assert_eq!(attempts.check(NOW.plus_ms(59_999), &"ann", here), Err(PAUSE));
        assert_eq!(attempts.check(NOW.plus_ms(119_998), &"ann", here), Err(Duration::from_millis(1)));
        assert_eq!(attempts.check(NOW.plus_ms(119_999), &"ann", here), Ok(()));
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"ann", there), Ok(()), "another source may");
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"bob", here), Ok(()), "another user may");
        // After the pause it takes ten again.
        attempts.failed(NOW.plus_ms(120_000), "ann", here);
        assert_eq!(attempts.check(NOW.plus_ms(120_000), &"ann", here), Ok(()));
    }

    #[test]
    fn slow_failures_do_not_add_up() {
        let mut attempts = Attempts::default();
        for n in 0..100 {
            let now = NOW.plus_ms(n * 6_700);
            attempts.failed(now, "ann", from(1));
            assert_eq!(attempts.check(now, &"ann", from(1)), Ok(()), "failure {n}");
        }
    }

    #[test]
    fn an_account_that_is_made_has_no_failures() {
        let mut attempts = Attempts::default();
        for n in 0..30 {
            attempts.failed(NOW, "ann", from(n % 3));
            attempts.failed(NOW, "bob", from(n % 3));
        }
        attempts.begin_anew(&"ann");
        for n in 0..3 {
            assert_eq!(attempts.check(NOW, &"ann", from(n)), Ok(()));
            assert!(attempts.check(NOW, &"bob", from(n)).is_err());
        }
        // What is left of them in the order of forgetting takes nothing away that came later.
        for n in 0..9 {
            attempts.failed(NOW.plus_ms(50_000 + n), "ann", from(1));
        }
        attempts.failed(NOW.plus_ms(60_001), "ann", from(1));
        assert!(attempts.check(NOW.plus_ms(60_001), &"ann", from(1)).is_err());
    }

    #[test]
    fn what_is_over_is_forgotten_and_the_oldest_goes_when_there_is_too_much() {
        let mut attempts = Attempts::with_bound(20);
        for n in 0..1000 {
            attempts.failed(NOW.plus_ms(n), n, from(1));
            assert!(attempts.guessers() <= 20 && attempts.order.len() <= 20);
        }
        attempts.failed(NOW.plus_ms(200_000), 5000, from(1));
        assert_eq!((attempts.guessers(), attempts.users.len()), (1, 1));
        // Nine failures, then as many as push the first out: it has fewer to its name.
        let mut attempts = Attempts::with_bound(9);
        for n in 0..9 {
            attempts.failed(NOW.plus_ms(n), "ann", from(1));
        }
        attempts.failed(NOW.plus_ms(10), "bob", from(1));
        attempts.failed(NOW.plus_ms(11), "ann", from(1));
        assert_eq!(attempts.check(NOW.plus_ms(11), &"ann", from(1)), Ok(()));
    }

    #[test]
    fn a_pause_is_remembered_to_its_end() {
        let mut attempts = Attempts::default();
        for _ in 0..10 {
            attempts.failed(NOW, "ann", from(1));
        }
        for n in 0..60 {
            attempts.failed(NOW.plus_ms(n * 1000), "bob", from(1));
            assert!(attempts.check(NOW.plus_ms(n * 1000), &"ann", from(1)).is_err(), "after {n} s");
        }
        attempts.failed(NOW.plus_ms(60_000), "bob", from(1));
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"ann", from(1)), Ok(()));
    }
}
