//! Transfer speed and remaining time.

use std::collections::VecDeque;
use std::time::Duration;

/// Period over which speed is averaged: short enough to follow changes, long enough not to flicker.
const WINDOW: Duration = Duration::from_secs(3);
const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct SpeedMeter {
    /// Times, and the total bytes received until then.
    samples: VecDeque<(Duration, u64)>,
}

impl SpeedMeter {
    /// Records the total number of bytes received.
    pub(super) fn record(&mut self, now: Duration, bytes: u64) {
        match self.samples.back() {
            Some((at, _)) if now.saturating_sub(*at) < SAMPLE_INTERVAL_MIN => return,
            _ => self.samples.push_back((now, bytes)),
        }
        // One sample older than the window stays as the base of the average.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Average speed, given the total number of bytes received.
    pub(super) fn bytes_per_s(&self, now: Duration, bytes: u64) -> f64 {
        let Some((at, before)) = self.samples.front().copied() else { return 0.0 };
        let elapsed_s = now.saturating_sub(at).as_secs_f64();
        if elapsed_s <= 0.0 { 0.0 } else { bytes.saturating_sub(before) as f64 / elapsed_s }
    }
}

/// Seconds until the remaining bytes will have arrived, rounded up; none if the speed is too low to tell.
pub(super) fn eta_s(left: u64, bytes_per_s: f64) -> Option<u64> {
    match left {
        0 => Some(0),
        _ if bytes_per_s < 1.0 => None,
        // The cast saturates, which is exact enough for a transfer that never ends.
        _ => Some((left as f64 / bytes_per_s).ceil() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn speed_follows_the_last_seconds() {
        let mut speed = SpeedMeter::default();
        assert_eq!(speed.bytes_per_s(ms(0), 5), 0.0);
        for i in 0..=100 {
            speed.record(ms(i * 100), i * 1000);
        }
        let now = speed.bytes_per_s(ms(10_000), 100_000);
        assert!((9_900.0..10_100.0).contains(&now), "{now}");
        for i in 101..=140 {
            speed.record(ms(i * 100), 100_000);
        }
        assert_eq!(speed.bytes_per_s(ms(14_000), 100_000), 0.0, "nothing came for four seconds");
        assert!(speed.samples.len() <= 32);
        speed = SpeedMeter::default();
        assert_eq!(speed.bytes_per_s(ms(14_000), 100_000), 0.0);
    }

    #[test]
    fn the_time_left_is_known_when_something_moves() {
        assert_eq!(eta_s(0, 0.0), Some(0));
        assert_eq!(eta_s(10, 0.0), None);
        assert_eq!(eta_s(1001, 100.0), Some(11));
    }
}
