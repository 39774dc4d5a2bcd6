//! How fast it goes, and how long it will take.

use std::collections::VecDeque;
use std::time::Duration;

/// What is older no longer counts: short enough to follow a change, long enough not to flicker.
const WINDOW: Duration = Duration::from_secs(3);
/// Samples closer to each other than this are one.
const APART: Duration = Duration::from_millis(100);

/// Bytes a second over the last moments.
#[derive(Debug, Default)]
pub(super) struct Speed {
    /// When, and how many bytes had come until then.
    samples: VecDeque<(Duration, u64)>,
}

impl Speed {
    /// So many bytes have come in all.
    pub(super) fn note(&mut self, now: Duration, bytes: u64) {
        match self.samples.back() {
            Some((at, _)) if now.saturating_sub(*at) < APART => return,
            _ => self.samples.push_back((now, bytes)),
        }
        // One that is older stays: what came since then came within the window, or nearly.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// It stands still: what comes later begins anew.
    pub(super) fn clear(&mut self) {
        self.samples.clear();
    }

    /// Bytes a second, given how many have come in all.
    pub(super) fn bytes_per_s(&self, now: Duration, bytes: u64) -> f64 {
        let Some((at, before)) = self.samples.front().copied() else { return 0.0 };
        let over = now.saturating_sub(at).as_secs_f64();
        if over <= 0.0 { 0.0 } else { bytes.saturating_sub(before) as f64 / over }
    }
}

/// Whole seconds until the rest is here; none where that cannot be known.
pub(super) fn eta_s(left: u64, bytes_per_s: f64) -> Option<u64> {
    match left {
        0 => Some(0),
        _ if bytes_per_s < 1.0 => None,
        // As far as an f64 goes: beyond that it never ends anyway.
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
        let mut speed = Speed::default();
        assert_eq!(speed.bytes_per_s(ms(0), 5), 0.0);
        for i in 0..=100 {
            speed.note(ms(i * 100), i * 1000);
        }
        let now = speed.bytes_per_s(ms(10_000), 100_000);
        assert!((9_900.0..10_100.0).contains(&now), "{now}");
        for i in 101..=140 {
            speed.note(ms(i * 100), 100_000);
        }
        assert_eq!(speed.bytes_per_s(ms(14_000), 100_000), 0.0, "nothing came for four seconds");
        assert!(speed.samples.len() <= 32);
        speed.clear();
        assert_eq!(speed.bytes_per_s(ms(14_000), 100_000), 0.0);
    }

    #[test]
    fn the_time_left_is_known_when_something_moves() {
        assert_eq!(eta_s(0, 0.0), Some(0));
        assert_eq!(eta_s(10, 0.0), None);
        assert_eq!(eta_s(1001, 100.0), Some(11));
    }
}
