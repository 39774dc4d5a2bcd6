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

/// How many buckets [`Latencies`] have: the last begins at nine minutes.
pub const LATENCY_BUCKETS: usize = 40;

/// How long something took, each time: counted by powers of two of a nanosecond, so that it costs two additions.
#[derive(Debug)]
pub struct Latencies {
    buckets: [Counter; LATENCY_BUCKETS],
    sum_ns: Counter,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Latencies {
    /// It took so long once more.
    pub fn took(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // Bucket 0 is for 0 and 1.
        let bucket = ns.max(1).ilog2() as usize;
        self.buckets[bucket.min(LATENCY_BUCKETS - 1)].add(1);
        self.sum_ns.add(ns);
    }

    /// All of them so far.
    pub fn counts(&self) -> LatencyCounts {
        LatencyCounts { buckets: std::array::from_fn(|n| self.buckets[n].get()), sum_ns: self.sum_ns.get() }
    }
}

/// What [`Latencies`] have counted by some instant, or between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyCounts {
    buckets: [u64; LATENCY_BUCKETS],
    sum_ns: u64,
}

impl Default for LatencyCounts {
    /// None.
    fn default() -> LatencyCounts {
        LatencyCounts { buckets: [0; LATENCY_BUCKETS], sum_ns: 0 }
    }
}

impl LatencyCounts {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Below which time how many stayed, bucket by bucket.
    pub fn up_to(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut below = 0;
        self.buckets.iter().enumerate().map(move |(n, count)| {
            below += count;
            (Duration::from_nanos(2 << n), below)
        })
    }

    /// What was counted since then.
    #[must_use]
    pub fn since(&self, before: &LatencyCounts) -> LatencyCounts {
        LatencyCounts {
            buckets: std::array::from_fn(|n| self.buckets[n].saturating_sub(before.buckets[n])),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &LatencyCounts) -> LatencyCounts {
        LatencyCounts {
            buckets: std::array::from_fn(|n| self.buckets[n] + other.buckets[n]),
            sum_ns: self.sum_ns.wrapping_add(other.sum_ns),
        }
    }

    /// The time that this part of them (0.5: half) did not exceed; nothing where nothing was counted. Within its
    /// bucket it is taken as if they were spread evenly.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let wanted = (part * count as f64).clamp(0.0, count as f64);
        let mut below = 0;
        for (n, in_it) in self.buckets.iter().enumerate().filter(|(_, in_it)| **in_it > 0) {
            if (below + in_it) as f64 >= wanted {
                let (from, width) = if n == 0 { (0, 2) } else { (1_u64 << n, 1_u64 << n) };
                let share = (wanted - below as f64) / *in_it as f64;
                return Some(Duration::from_nanos(from + (share * width as f64) as u64));
            }
            below += in_it;
        }
        None
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
    fn latencies_are_told_to_the_power_of_two() {
        let latencies = Latencies::default();
        assert_eq!(latencies.counts().quantile(0.5), None);
        for ms in 1..=100 {
            latencies.took(Duration::from_millis(ms));
        }
        let counts = latencies.counts();
        assert_eq!((counts.count(), counts.sum()), (100, Duration::from_millis(5050)));
        let told = |part| counts.quantile(part).unwrap().as_secs_f64() * 1000.0;
        // Within a bucket they are not quite even here, so it is not quite exact.
        assert!((45.0..55.0).contains(&told(0.5)), "{}", told(0.5));
        assert!((90.0..135.0).contains(&told(0.95)), "{}", told(0.95));
        assert!(told(0.0) <= 1.0 && told(1.0) <= 135.0);
        for odd in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            latencies.took(odd);
        }
        let since = latencies.counts().since(&counts);
        assert_eq!(since.count(), 3);
        assert!(since.quantile(0.5).unwrap() <= Duration::from_nanos(2));
        assert_eq!(counts.plus(&since).count(), 103);
        let (longest, all) = counts.up_to().last().unwrap();
        assert!(longest > Duration::from_secs(1000) && all == 100);
        assert_eq!(counts.up_to().find(|(below, _)| *below > Duration::from_millis(1)).unwrap().1, 1);
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
