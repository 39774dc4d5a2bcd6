use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets a log message through once per period: an error that repeats a thousand times a second must not fill the log
/// (each one is counted all the same).
#[derive(Debug)]
pub(crate) struct LogThrottle {
    period: Duration,
    last: Mutex<Option<Instant>>,
}

impl LogThrottle {
    pub(crate) fn every_minute() -> LogThrottle {
        LogThrottle::with_period(Duration::from_secs(60))
    }

    fn with_period(period: Duration) -> LogThrottle {
        LogThrottle { period, last: Mutex::new(None) }
    }

    /// Whether to log now. If so, the next time is after the period.
    pub(crate) fn should_log(&self) -> bool {
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
    fn seldom_speaks_once_a_period() {
        let hourly = LogThrottle::with_period(Duration::from_secs(3600));
        assert!(hourly.should_log());
        assert!(!hourly.should_log());
        let always = LogThrottle::with_period(Duration::ZERO);
        assert!(always.should_log() && always.should_log());
    }
}
