//! Counters: what a module handled, dropped, refused or failed at, for logs and the metrics page.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A number that only grows, counted by many threads.
///
/// Relaxed, because a counter orders nothing: who reads it wants a recent figure, not a fence.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Lets something through at most once a period: an error that repeats a thousand times a second
/// must not fill the log (each one is counted all the same).
#[derive(Debug)]
pub(crate) struct Seldom {
    period: Duration,
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    /// At most once a minute.
    pub(crate) fn minutely() -> Seldom {
        Seldom::every(Duration::from_secs(60))
    }

    fn every(period: Duration) -> Seldom {
        Seldom { period, last: Mutex::new(None) }
    }

    /// Whether now is a time to speak.
    pub(crate) fn now(&self) -> bool {
        let mut last = self.last.lock();
        let is_due = last.is_none_or(|at| at.elapsed() >= self.period);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_count_exactly() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!(counter.get(), 8000);
    }

    #[test]
    fn seldom_speaks_once_a_period() {
        let hourly = Seldom::every(Duration::from_secs(3600));
        assert!(hourly.now());
        assert!(!hourly.now());
        let always = Seldom::every(Duration::ZERO);
        assert!(always.now() && always.now());
    }
}
