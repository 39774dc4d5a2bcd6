//! Counters, for logs and the metrics page.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Relaxed, because a counter orders nothing: readers want a recent figure, not synchronisation.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Declares a struct of [`Counter`]s, and its `list` for the metrics page in the order of the declaration. The metric
/// name is the field's unless another is given.
///
/// ```ignore
/// counters! {
///     /// Counters of one pool.
///     pub struct PoolCounters {
///         requests,
///         /// Requests repeated because their link was dead.
///         retries = "repeats",
///     }
/// }
/// ```
macro_rules! counters {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field:ident $(= $metric:literal)?,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[$field_attribute])* pub $field: $crate::net::counters::Counter,)*
        }

        impl $name {
            $visibility fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$(($crate::net::counters::counters!(@name $field $($metric)?), self.$field.get()),)*]
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $metric:literal) => { $metric };
}
pub(crate) use counters;

/// The last bucket begins at nine minutes.
pub const LATENCY_BUCKETS: usize = 40;

/// A bucket per power of two of a nanosecond, so that recording costs two additions.
#[derive(Debug)]
pub struct LatencyHistogram {
    buckets: [Counter; LATENCY_BUCKETS],
    sum_ns: Counter,
}

impl Default for LatencyHistogram {
    fn default() -> LatencyHistogram {
        LatencyHistogram { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl LatencyHistogram {
    pub fn record(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // Bucket 0 is for 0 and 1.
        let bucket = ns.max(1).ilog2() as usize;
        self.buckets[bucket.min(LATENCY_BUCKETS - 1)].add(1);
        self.sum_ns.add(ns);
    }

    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot { buckets: std::array::from_fn(|n| self.buckets[n].get()), sum_ns: self.sum_ns.get() }
    }
}

/// What a [`LatencyHistogram`] recorded until some instant, or between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencySnapshot {
    buckets: [u64; LATENCY_BUCKETS],
    sum_ns: u64,
}

impl Default for LatencySnapshot {
    fn default() -> LatencySnapshot {
        LatencySnapshot { buckets: [0; LATENCY_BUCKETS], sum_ns: 0 }
    }
}

impl LatencySnapshot {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The upper bound of each bucket, and the number of durations below it.
    pub fn cumulative_buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut below = 0;
        self.buckets.iter().enumerate().map(move |(n, count)| {
            below += count;
            (Duration::from_nanos(2 << n), below)
        })
    }

    #[must_use]
    pub fn since(&self, before: &LatencySnapshot) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|n| self.buckets[n].saturating_sub(before.buckets[n])),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
        }
    }

    #[must_use]
    pub fn merged_with(&self, other: &LatencySnapshot) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|n| self.buckets[n] + other.buckets[n]),
            sum_ns: self.sum_ns.wrapping_add(other.sum_ns),
        }
    }

    /// The duration that the fraction `q` of them (0.5: half) did not exceed, as if they were evenly spread within
    /// their bucket; `None` if nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        let rank = (q * count as f64).clamp(0.0, count as f64);
        let mut below = 0;
        for (n, in_bucket) in self.buckets.iter().enumerate().filter(|(_, in_bucket)| **in_bucket > 0) {
            if (below + in_bucket) as f64 >= rank {
                let (from, width) = if n == 0 { (0, 2) } else { (1_u64 << n, 1_u64 << n) };
                let share = (rank - below as f64) / *in_bucket as f64;
                return Some(Duration::from_nanos(from + (share * width as f64) as u64));
            }
            below += in_bucket;
        }
        None
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

    counters! {
        struct ExampleCounters {
            asked,
            /// Not the name that the metrics page shows.
            retries = "repeats",
        }
    }

    #[test]
    fn a_list_has_the_metric_names_in_the_order_of_the_declaration() {
        let counters = ExampleCounters::default();
        counters.asked.add(3);
        counters.retries.add(1);
        assert_eq!(counters.list(), [("asked", 3), ("repeats", 1)]);
    }

    #[test]
    fn latencies_are_told_to_the_power_of_two() {
        let latencies = LatencyHistogram::default();
        assert_eq!(latencies.snapshot().quantile(0.5), None);
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        let counts = latencies.snapshot();
        assert_eq!((counts.count(), counts.sum()), (100, Duration::from_millis(5050)));
        let told = |q| counts.quantile(q).unwrap().as_secs_f64() * 1000.0;
        // Within a bucket they are not quite even here, so it is not quite exact.
        assert!((45.0..55.0).contains(&told(0.5)), "{}", told(0.5));
        assert!((90.0..135.0).contains(&told(0.95)), "{}", told(0.95));
        assert!(told(0.0) <= 1.0 && told(1.0) <= 135.0);
        for odd in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            latencies.record(odd);
        }
        let since = latencies.snapshot().since(&counts);
        assert_eq!(since.count(), 3);
        assert!(since.quantile(0.5).unwrap() <= Duration::from_nanos(2));
        assert_eq!(counts.merged_with(&since).count(), 103);
        let (longest, all) = counts.cumulative_buckets().last().unwrap();
        assert!(longest > Duration::from_secs(1000) && all == 100);
        assert_eq!(counts.cumulative_buckets().find(|(below, _)| *below > Duration::from_millis(1)).unwrap().1, 1);
    }
}
