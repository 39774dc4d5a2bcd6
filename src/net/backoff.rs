//! Pauses between attempts that double from one to the next, up to a longest one. Who waits is the caller's affair.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    current: Duration,
}

impl Backoff {
    /// If `first` is longer than `longest`, every pause is `longest`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        let first = if first < longest { first } else { longest };
        Backoff { first, longest, current: first }
    }

    pub fn next_pause(&mut self) -> Duration {
        let pause = self.current;
        self.current = self.current.saturating_mul(2).min(self.longest);
        pause
    }

    pub fn current(&self) -> Duration {
        self.current
    }

    pub fn reset(&mut self) {
        self.current = self.first;
    }
}

/// The pause after `doublings` doublings of the first, for those who count their failures anyway.
pub fn doubled(first: Duration, doublings: u32, longest: Duration) -> Duration {
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_millis(1000);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let pauses: Vec<u128> = (0..5).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!((backoff.current(), backoff.next_pause(), backoff.current()), (FIRST, FIRST, 2 * FIRST));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut endless = Backoff::new(Duration::from_secs(u64::MAX / 3), Duration::MAX);
        let pauses: Vec<Duration> = (0..3).map(|_| endless.next_pause()).collect();
        assert!(pauses.is_sorted());
        assert_eq!(endless.current(), Duration::MAX);
        let mut reversed = Backoff::new(LONGEST, FIRST);
        assert_eq!((reversed.next_pause(), reversed.next_pause()), (FIRST, FIRST));
    }

    #[test]
    fn counted_failures_give_the_same_pauses() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for doublings in 0..100 {
            assert_eq!(doubled(FIRST, doublings, LONGEST), backoff.next_pause(), "{doublings}");
        }
        assert_eq!(doubled(FIRST, u32::MAX, LONGEST), LONGEST);
    }
}
