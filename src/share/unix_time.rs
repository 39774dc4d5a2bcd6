//! Unix times: the one place where a file's or this process's time becomes the wire's seconds.

use std::time::{SystemTime, UNIX_EPOCH};

use super::wire::Seconds;
use crate::model::Millis;

/// Nanoseconds since 1970, clamped to the years 1677 to 2262.
pub fn unix_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// Nanoseconds since 1970 as Unix seconds, as exactly as a JSON number can represent them.
pub fn unix_seconds(ns: i64) -> Seconds {
    const SECOND: i64 = 1_000_000_000;
    // Converted separately, so that only the sum is rounded; the nanoseconds as a whole would be rounded before.
    let exact = ns.div_euclid(SECOND) as f64 + ns.rem_euclid(SECOND) as f64 / SECOND as f64;
    Seconds::new(exact).expect("292 years around 1970 are within 2^53 seconds")
}

/// The same for a time in milliseconds.
pub fn unix_seconds_of(at: Millis) -> Seconds {
    unix_seconds(i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_files_are_seconds() {
        assert_eq!(unix_seconds(1_699_267_200_000_000_000).get(), 1_699_267_200.0);
        assert_eq!(unix_seconds(1_699_267_200_250_000_000).get(), 1_699_267_200.25);
        assert_eq!(unix_ns(UNIX_EPOCH + std::time::Duration::from_nanos(5)), 5);
        assert_eq!(unix_ns(UNIX_EPOCH - std::time::Duration::from_nanos(5)), -5);
    }

    #[test]
    fn milliseconds_are_the_fraction_that_division_gives() {
        for at in [0, 1, 999, 1000, 1_699_267_200_123, 1_699_267_200_999, 4_102_444_800_001] {
            assert_eq!(unix_seconds_of(Millis(at)).get(), at as f64 / 1000.0);
        }
        assert_eq!(serde_json::to_string(&unix_seconds_of(Millis(1_699_267_200_000))).unwrap(), "1699267200");
        assert_eq!(serde_json::to_string(&unix_seconds_of(Millis(1_699_267_200_250))).unwrap(), "1699267200.25");
    }
}
