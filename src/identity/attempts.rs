//! Failed sign-ins, counted: who guesses has to wait. No I/O; the time is an argument.
//!
//! What counts is when a guess is answered, not when it is made: of a hundred at once, the first ten
//! that fail are told so, and the others learn nothing ([`Attempts::check`] is asked before the password is
//! looked at and again before the answer).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::model::Millis;

/// Failures within [`WITHIN`] after which there is a pause.
pub const FAILURES_MAX: usize = 10;
/// The time in which failures are counted together.
pub const WITHIN: Duration = Duration::from_secs(60);
/// How long the pause is.
pub const PAUSE: Duration = Duration::from_secs(60);
/// Most guessers remembered at once. Every failure costs a password hash: more than these do not fail
/// within a minute.
pub const GUESSERS_MAX: usize = 100_000;

/// Failures by whatever tells guessers apart: a user and where the guess comes from.
#[derive(Debug)]
pub struct Attempts<K> {
    guessers: HashMap<K, Guesser>,
    /// Who failed and when, oldest first: what is to be forgotten next.
    order: VecDeque<(Millis, K)>,
    failures_max: usize,
    most: usize,
}

#[derive(Debug, Default)]
struct Guesser {
    failures: VecDeque<Millis>,
    paused_until: Option<Millis>,
}

impl<K: Clone + Eq + Hash> Default for Attempts<K> {
    fn default() -> Attempts<K> {
        Attempts::with_bound(GUESSERS_MAX)
    }
}

impl<K: Clone + Eq + Hash> Attempts<K> {
    /// Remembers that many failures at most.
    pub fn with_bound(most: usize) -> Attempts<K> {
        Attempts::allowing(FAILURES_MAX, most)
    }

    /// With another number of failures than [`FAILURES_MAX`]; remembers `most` at most.
    pub fn allowing(failures_max: usize, most: usize) -> Attempts<K> {
        Attempts { guessers: HashMap::new(), order: VecDeque::new(), failures_max, most }
    }

    /// Whether an attempt may be answered now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn check(&self, now: Millis, who: &K) -> Result<(), Duration> {
        match self.guessers.get(who).and_then(|guesser| guesser.paused_until) {
            Some(until) if now < until => Err(now.until(until)),
            _ => Ok(()),
        }
    }

    /// An attempt has failed.
    pub fn failed(&mut self, now: Millis, who: K) {
        self.forget(now);
        let guesser = self.guessers.entry(who.clone()).or_default();
        guesser.failures.retain(|at| at.until(now) < WITHIN);
        guesser.failures.push_back(now);
        if guesser.failures.len() >= self.failures_max {
            guesser.failures.clear();
            guesser.paused_until = Some(now.plus(PAUSE));
        }
        self.order.push_back((now, who));
    }

    /// Lets go of what no longer counts, and of the oldest where there is too much.
    fn forget(&mut self, now: Millis) {
        while let Some((at, who)) = self.order.front() {
            if at.until(now) < WITHIN.max(PAUSE) && self.order.len() < self.most {
                break;
            }
            if let Some(guesser) = self.guessers.get_mut(who) {
                guesser.failures.retain(|failure| failure > at);
                let is_paused = guesser.paused_until.is_some_and(|until| now < until);
                // The failure that began a pause is the newest of its guesser: it is remembered as long.
                if guesser.failures.is_empty() && (!is_paused || guesser.paused_until == Some(at.plus(PAUSE))) {
                    self.guessers.remove(who);
                }
            }
            self.order.pop_front();
        }
    }

    /// How many guessers are remembered.
    pub fn guessers(&self) -> usize {
        self.guessers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_795_253_400_000);

    #[test]
    fn ten_failures_within_a_minute_pause_that_guesser_for_a_minute() {
        let mut attempts = Attempts::default();
        let (here, there) = (("ann", "10.0.0.1"), ("ann", "10.0.0.2"));
        for n in 0..9 {
            attempts.failed(NOW.plus_ms(n * 1000), here);
            assert_eq!(attempts.check(NOW.plus_ms(n * 1000), &here), Ok(()));
        }
        attempts.failed(NOW.plus_ms(59_999), here);
        assert_eq!(attempts.check(NOW.plus_ms(59_999), &here), Err(PAUSE));
        assert_eq!(attempts.check(NOW.plus_ms(119_998), &here), Err(Duration::from_millis(1)));
        assert_eq!(attempts.check(NOW.plus_ms(119_999), &here), Ok(()));
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &there), Ok(()), "another source may");
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &("bob", "10.0.0.1")), Ok(()), "another user may");
        // After the pause it takes ten again.
        attempts.failed(NOW.plus_ms(120_000), here);
        assert_eq!(attempts.check(NOW.plus_ms(120_000), &here), Ok(()));
    }

    #[test]
    fn slow_failures_do_not_add_up() {
        let mut attempts = Attempts::default();
        for n in 0..100 {
            let now = NOW.plus_ms(n * 6_700);
            attempts.failed(now, "ann");
            assert_eq!(attempts.check(now, &"ann"), Ok(()), "failure {n}");
        }
    }

    #[test]
    fn what_is_over_is_forgotten_and_the_oldest_goes_when_there_is_too_much() {
        let mut attempts = Attempts::with_bound(20);
        for n in 0..1000 {
            attempts.failed(NOW.plus_ms(n), n);
            assert!(attempts.guessers() <= 20);
        }
        attempts.failed(NOW.plus_ms(200_000), 5000);
        assert_eq!(attempts.guessers(), 1);
        // Nine failures, then as many as push the first out: it has fewer to its name.
        let mut attempts = Attempts::with_bound(9);
        for n in 0..9 {
            attempts.failed(NOW.plus_ms(n), "ann");
        }
        attempts.failed(NOW.plus_ms(10), "bob");
        attempts.failed(NOW.plus_ms(11), "ann");
        assert_eq!(attempts.check(NOW.plus_ms(11), &"ann"), Ok(()));
    }

    #[test]
    fn a_pause_is_remembered_to_its_end() {
        let mut attempts = Attempts::default();
        for _ in 0..10 {
            attempts.failed(NOW, "ann");
        }
        for n in 0..60 {
            attempts.failed(NOW.plus_ms(n * 1000), "bob");
            assert!(attempts.check(NOW.plus_ms(n * 1000), &"ann").is_err(), "after {n} s");
        }
        attempts.failed(NOW.plus_ms(60_000), "bob");
        assert_eq!(attempts.check(NOW.plus_ms(60_000), &"ann"), Ok(()));
    }
}
